"""Phrase templates: ``[a|b|c]`` picks one alternative, brackets nest, ``{slot}`` stays as it is.

Everything random comes from the generator that is passed in, so that equal seeds give equal text.
"""

from __future__ import annotations

import random
import re

_CHOICE = re.compile(r"\[([^\[\]]*)\]")
_SPACES = re.compile(r" {2,}")
_SPACE_BEFORE_MARK = re.compile(r" ([,.?!])")
_SLOT = re.compile(r"(\{[a-z_]+\})")
_LONG_WORD = re.compile(r"[A-Za-z]{4,}")


def expand(template: str, rng: random.Random) -> str:
    """Picks one text of a template, alternatives being equally likely; slots stay in place."""
    text = template
    while match := _CHOICE.search(text):
        chosen = rng.choice(match.group(1).split("|"))
        text = text[: match.start()] + chosen + text[match.end() :]
    return _SPACE_BEFORE_MARK.sub(r"\1", _SPACES.sub(" ", text)).strip()


def misspell(text: str, rng: random.Random) -> str:
    """Puts one slip of the keyboard into a word of four letters or more, never into a slot."""
    parts = _SLOT.split(text)
    words = [
        (index, match)
        for index, part in enumerate(parts)
        if not part.startswith("{")
        for match in _LONG_WORD.finditer(part)
    ]
    if not words:
        return text
    index, match = rng.choice(words)
    word = match.group()
    at = rng.randrange(1, len(word) - 1)
    slip = rng.randrange(3)
    if slip == 0:  # a letter left out
        word = word[:at] + word[at + 1 :]
    elif slip == 1:  # a letter twice
        word = word[:at] + word[at] + word[at:]
    else:  # two letters exchanged
        word = word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    parts[index] = parts[index][: match.start()] + word + parts[index][match.end() :]
    return "".join(parts)


def fill(text: str, slots: dict[str, str]) -> str:
    """Replaces every ``{slot}`` by its value.

    Raises:
        KeyError: The text names a slot that has no value.
    """
    return _SLOT.sub(lambda match: slots[match.group()[1:-1]], text)
