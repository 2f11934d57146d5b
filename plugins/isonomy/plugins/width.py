r"""How many characters a pattern of RE2 can match at most: what a stream must hold back.

A reader of RE2's syntax (https://github.com/google/re2/wiki/Syntax) that only counts; patterns are
compiled by RE2 before, so they are well formed. What it does not know counts as unbounded.
"""

from __future__ import annotations

import string

_ZERO = "AzbB"
_OCTAL = "01234567"


def widest(pattern: str) -> int | None:
    """Return how many characters a match of `pattern` has at most; `None` without a bound."""
    try:
        return _Reader(pattern).alternatives()
    except (_Unknown, IndexError, ValueError):
        return None


class _Unknown(Exception):
    """Something in a pattern that this reader does not know."""


class _Reader:
    def __init__(self, pattern: str) -> None:
        self._text = pattern
        self._at = 0

    def alternatives(self) -> int | None:
        """Read up to the end of the group, or of the pattern."""
        widths = [self._sequence()]
        while self._next("|"):
            widths.append(self._sequence())
        return None if None in widths else max(width for width in widths if width is not None)

    def _sequence(self) -> int | None:
        total: int | None = 0
        while self._at < len(self._text) and self._text[self._at] not in "|)":
            width, most = self._atom(), self._repeated()
            if width == 0 or most == 0:
                continue
            total = None if total is None or width is None or most is None else total + width * most
        return total

    def _next(self, expected: str) -> bool:
        if self._text.startswith(expected, self._at):
            self._at += len(expected)
            return True
        return False

    def _take(self) -> str:
        self._at += 1
        return self._text[self._at - 1]

    def _until(self, end: str) -> str:
        stop = self._text.index(end, self._at)
        found, self._at = self._text[self._at : stop], stop + len(end)
        return found

    def _repeated(self) -> int | None:
        """Read how often the atom before may come; 1 where nothing is said."""
        most: int | None = 1
        while True:
            if self._next("*") or self._next("+"):
                most = None
            elif self._next("?"):
                pass  # once at most, or a lazy repetition
            elif (count := self._count()) is not False:
                most = None if most is None or count is None else most * count
            else:
                return most

    def _count(self) -> int | bool | None:
        """Read ``{n}``, ``{n,}`` or ``{n,m}``; `False` where a brace is only a brace."""
        if not self._text.startswith("{", self._at):
            return False
        stop = self._text.find("}", self._at)
        low, comma, high = self._text[self._at + 1 : stop].partition(",")
        numbers = [low, *([high] if high else [])]
        if stop < 0 or not all(n.isascii() and n.isdigit() for n in numbers):
            return False
        self._at = stop + 1
        return None if comma and not high else int(high or low)

    def _atom(self) -> int | None:
        character = self._take()
        if character == "(":
            return self._group()
        if character == "[":
            return self._class()
        if character == "\\":
            return self._escape()
        return 0 if character in "^$" else 1

    def _group(self) -> int | None:
        if self._next("?"):
            if self._next("P<") or self._next("<"):
                self._until(">")
            else:
                while (character := self._take()) not in ":)":
                    if character not in "imsU-":
                        raise _Unknown
                if character == ")":  # flags alone
                    return 0
        width = self.alternatives()
        if not self._next(")"):
            raise _Unknown
        return width

    def _class(self) -> int:
        self._next("^")
        if self._next("]"):
            pass  # the first one is meant as it stands
        while True:
            if self._next("[:"):
                self._until(":]")
            elif self._next("\\"):
                self._escape()
            elif self._take() == "]":
                return 1

    def _escape(self) -> int:
        character = self._take()
        if character in _ZERO:
            return 0
        if character == "Q":
            quoted = self._until("\\E") if "\\E" in self._text[self._at :] else None
            if quoted is None:
                quoted, self._at = self._text[self._at :], len(self._text)
            return len(quoted)
        if character in "pPx" and self._next("{"):
            self._until("}")
        elif character in "pP":
            self._take()
        elif character == "x":
            self._at += 2
        elif character in _OCTAL:
            while self._at < len(self._text) and self._text[self._at] in _OCTAL:
                self._at += 1
        elif character in string.ascii_letters and character not in "aftnrvdDsSwWC":
            raise _Unknown
        return 1
