"""Folding of a text: one plain spelling of digits, dashes, spaces and full-width forms.

Recognizers look at the folded text and report places of the original one. Invisible format
characters (zero-width spaces, soft hyphens, direction marks) are left out, since one of them inside
a number would hide it; everything else is folded character by character.
"""

from __future__ import annotations

import unicodedata
from typing import NamedTuple

_INVISIBLE = dict.fromkeys(
    (
        *(0xAD, 0x34F, 0x61C, 0x180E, 0xFEFF),
        *range(0x200B, 0x2010),
        *range(0x202A, 0x202F),
        *range(0x2060, 0x2070),
    )
)


class Folded(NamedTuple):
    """A folded text.

    `origins` gives the original position of each of its characters, `None` where they are equal.
    """

    text: str
    origins: list[int] | None

    def place(self, start: int, end: int) -> tuple[int, int]:
        """Return a range of the folded text (not empty) as a range of the original."""
        if self.origins is None:
            return start, end
        return self.origins[start], self.origins[end - 1] + 1


def fold(text: str) -> Folded:
    """Fold a text; ASCII comes back as it is, in no time."""
    if text.isascii():
        return Folded(text, None)
    characters = {character for character in set(text) if character > "\x7f"}
    index: list[int] | None = None
    if any(ord(character) in _INVISIBLE for character in characters):
        index = [i for i, character in enumerate(text) if ord(character) not in _INVISIBLE]
        text = text.translate(_INVISIBLE)
    return Folded(text.translate({ord(c): _plain(c) for c in characters}), index)


def _plain(character: str) -> str:
    digit = unicodedata.decimal(character, None)
    if digit is not None:
        return str(digit)
    code = ord(character)
    if 0xFF01 <= code <= 0xFF5E:  # full-width forms of ASCII
        return chr(code - 0xFEE0)
    category = unicodedata.category(character)
    if category == "Zs":
        return " "
    if category == "Pd" or code == 0x2212:  # dashes, and the minus sign
        return "-"
    return "?" if category == "Cs" else character  # RE2 takes no lone surrogates
