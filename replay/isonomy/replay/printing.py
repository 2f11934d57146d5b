r"""Text from a log, made safe to print.

What a log holds was written by strangers: users, models, documents. Printed as it is, it could move
the cursor, retitle the terminal, hide words behind bidirectional controls, or style itself with
Rich markup.

`printable` keeps letters and marks of every script, newline excepted only where asked for, and
spells out everything that is not visible: control characters (C0, C1, DEL), format characters
(bidirectional controls and isolates, zero-width characters, soft hyphen, tags), line and paragraph
separators, private use, unassigned and surrogates, as ``\x1b``, ``\u202e`` or ``\U000e0041``,
the way Python writes them. A backslash stays one, so the result is for reading, not for parsing.
"""

from __future__ import annotations

import re
import unicodedata

_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
_PLAIN = re.compile(r"[ -~]*")
_BRACKET = re.compile(r"(\\*)\[")


def _escaped(character: str) -> str:
    number = ord(character)
    if number <= 0xFF:
        return f"\\x{number:02x}"
    return f"\\u{number:04x}" if number <= 0xFFFF else f"\\U{number:08x}"


def printable(text: str, *, newlines: bool = False) -> str:
    """Return `text` with everything invisible spelled out.

    Args:
        text: anything, lone surrogates included.
        newlines: keep line feeds and tabs (a carriage return never is).
    """
    if _PLAIN.fullmatch(text):
        return text
    kept = "\n\t" if newlines else ""
    return "".join(
        character
        if character in kept or unicodedata.category(character) not in _HIDDEN
        else _escaped(character)
        for character in text
    )


def safe_text(text: str, *, newlines: bool = False) -> str:
    r"""Return `printable(text)` with Rich markup escaped: what may be handed to Rich's `print`.

    Every bracket gets an odd number of backslashes before it, and the text never ends in an odd
    number of them: so no tag is ever read out of it, whatever tags and text are put around it.
    (`rich.markup.escape` escapes only what looks like a tag by itself.) Where a text has
    backslashes right before a bracket or at its end, Rich may show more of them than there are.
    Emoji codes such as ``:smile:`` are Rich's to leave alone: ``Console(emoji=False)``.
    """
    escaped = _BRACKET.sub(lambda match: match[1] * 2 + "\\[", printable(text, newlines=newlines))
    trailing = len(escaped) - len(escaped.rstrip("\\"))
    return escaped + "\\" if trailing % 2 else escaped
