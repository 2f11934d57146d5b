r"""Regular expressions in linear time: RE2, its errors explained, spans in characters.

RE2 (https://github.com/google/re2/wiki/Syntax) matches in time linear in the text, whatever the
pattern, and so has neither backreferences nor look-around. It works on UTF-8: `characters` turns
its byte offsets into offsets of the Python string.

One search is linear; a search for *all* matches is not, in any engine: after each match the next
search may look at the rest of the text again (``a(.*b)?`` on a run of ``a``). `find_all` therefore
takes a limit, so that its cost is at most `limit` passes.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol, cast

import re2

MAX_PATTERN = 10_000
"""Longest pattern, in characters."""
MAX_MEMORY = 64 << 20
"""What one compiled pattern may take, in bytes: RE2 refuses a pattern whose program does not
fit."""

_NOT_LINEAR = ("(?=", "(?!", "(?<=", "(?<!", "(?>", "(?P=", "(?(")


class Match(Protocol):
    """What RE2 gives for a match."""

    def span(self, group: int = 0) -> tuple[int, int]:
        """Return the half-open range of a group, in bytes for bytes."""
        ...


class Regexp(Protocol):
    """A compiled pattern of RE2."""

    def search(self, text: bytes, pos: int = 0) -> Match | None:
        """Return the leftmost match at or after `pos`."""
        ...


def compile_linear(
    pattern: str, *, what: str, ignore_case: bool = False, longest: int = MAX_PATTERN
) -> Regexp:
    """Compile a pattern with RE2.

    Args:
        pattern: in RE2's syntax.
        what: names the pattern in errors.
        ignore_case: match letters of either case.
        longest: how many characters the pattern may have.

    Raises:
        ValueError: the pattern is too long, wrong, or needs what RE2 does not have; the sentence
        says which.
    """
    if len(pattern) > longest:
        raise ValueError(
            f"{what} has {len(pattern)} characters; the limit is {longest}. "
            "Split it into several patterns."
        )
    options: Any = re2.Options()
    options.log_errors = False
    options.max_mem = MAX_MEMORY
    options.case_sensitive = not ignore_case
    try:
        return cast(Regexp, re2.compile(pattern, options))
    except re2.error as error:
        reason = error.args[0] if error.args else "unknown error"
        reason = reason.decode(errors="replace") if isinstance(reason, bytes) else str(reason)
    except UnicodeEncodeError:
        reason = "it holds a lone surrogate, which UTF-8 can't carry"
    raise ValueError(
        f"{what} is not a pattern that RE2 can run: {reason}. {_advice(pattern, reason)}"
    )


def _advice(pattern: str, reason: str) -> str:
    backreference = reason.startswith("invalid escape sequence: \\") and reason[-1:].isdigit()
    if backreference or (
        reason.startswith("invalid perl operator") and any(x in pattern for x in _NOT_LINEAR)
    ):
        return (
            "RE2 runs in linear time and therefore has no backreferences and no look-around: "
            "write it without, or write a check of your own."
        )
    if "too large" in reason:
        return "Repetitions multiply its size: lower their bounds."
    if reason.startswith("invalid repetition size"):
        return "RE2 repeats at most 1000 times."
    if reason == "invalid escape sequence: \\Z":
        return "RE2 writes the end of the text as \\z."
    return "See https://github.com/google/re2/wiki/Syntax for the syntax."


def escape(text: str) -> str:
    """Return a pattern that matches `text` literally."""
    return cast(str, re2.escape(text))


def to_utf8(text: str) -> bytes:
    """Return UTF-8 for RE2, a lone surrogate as one ``?``: characters still count the same."""
    return text.encode("utf-8", "replace")


def find_all(
    regexp: Regexp, data: bytes, *, limit: int, group: int = 0
) -> tuple[list[tuple[int, int]], bool]:
    """Return byte ranges of separate matches, and whether there are more than `limit`.

    The search goes on right behind `group` (not behind the whole match), so that two matches can
    share what delimits them. Empty ranges are left out.
    """
    spans: list[tuple[int, int]] = []
    position = 0
    for _ in range(limit + 1):
        match = regexp.search(data, position)
        if match is None:
            return spans, False
        start, end = match.span(group)
        if end > start:
            spans.append((start, end))
        position = max(end, position + 1)
        if position > len(data):
            return spans, False
    return spans[:limit], True


def characters(text: str, data: bytes, offsets: Iterable[int]) -> dict[int, int]:
    """Return the character offset of each byte offset, in one pass over the text."""
    if len(text) == len(data):
        return {offset: offset for offset in offsets}
    result: dict[int, int] = {}
    last_byte = last_character = 0
    for offset in sorted(set(offsets)):
        last_character += len(data[last_byte:offset].decode("utf-8", "replace"))
        last_byte = offset
        result[offset] = last_character
    return result
