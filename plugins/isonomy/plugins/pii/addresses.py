"""Recognizer of IP addresses, version 4 and 6, decided by the standard library's `ipaddress`.

Four numbers with dots may be a version or a section as well. They are not reported right behind a
word that says so (version, release, section, ...) or a ``v``, nor where a letter or a further part
follows (1.2.3.4-rc1, 1.2.3.4.5). Loopback and unspecified addresses are nobody's and are not
reported either. A version 6 address must hold a digit: ``face::bad`` may be code.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator

import re2

from .findings import Budget, Finding

_V4 = re2.compile(r"\d{1,3}(?:\.\d{1,3}){3}")
_V6 = re2.compile(r"[0-9A-Fa-f]*:[0-9A-Fa-f:]*:[0-9A-Fa-f:]*(?:\d{1,3}(?:\.\d{1,3}){3})?")
_VERSION = (
    "v ver version versions release releases rev revision build firmware driver upgrade update "
    "section sections chapter clause paragraph article figure table appendix § §§"
)
_VERSION_WORDS = frozenset(_VERSION.split())
_LONGEST_V6 = 45


def addresses(text: str, budget: Budget) -> Iterator[Finding]:
    """Find addresses in a folded text."""
    if text.count(".") >= 3:
        yield from _version_4(text, budget)
    if text.count(":") >= 2:
        yield from _version_6(text, budget)


def _version_4(text: str, budget: Budget) -> Iterator[Finding]:
    for match in _V4.finditer(text):
        start, end = match.span()
        if _joined(text, start, end) or _versioned(text, start):
            continue
        budget.spend()
        yield from _finding(text, start, end)


def _joined(text: str, start: int, end: int) -> bool:
    """Whether the number goes on before or behind the place, or is part of a word."""
    before, after = text[start - 1 : start], text[end : end + 1]
    if before.isalnum() or (before and before in "._-"):
        return True
    beyond = text[end + 1 : end + 2]
    return after.isalnum() or after == "_" or (after in (".", "-") and beyond.isalnum())


def _versioned(text: str, start: int) -> bool:
    words = text[max(0, start - 24) : start].rstrip(" :=\"'(").split()
    return bool(words) and words[-1].lower().lstrip("(\"'").rstrip(".") in _VERSION_WORDS


def _version_6(text: str, budget: Budget) -> Iterator[Finding]:
    for match in _V6.finditer(text):
        start, end = match.span()
        before, after = text[start - 1 : start], text[end : end + 1]
        if before.isalnum() or before in ("_", ".") or after.isalnum() or after == "_":
            continue
        while end > start and text[end - 1] == ":" and text[end - 2 : end] != "::":
            end -= 1  # the colon of the sentence: "2001:db8::1: no answer"
        if end - start > _LONGEST_V6 or not any(c.isdigit() for c in text[start:end]):
            continue
        budget.spend()
        yield from _finding(text, start, end)


def _finding(text: str, start: int, end: int) -> Iterator[Finding]:
    try:
        address = ipaddress.ip_address(text[start:end])
    except ValueError:
        return
    if not (address.is_loopback or address.is_unspecified):
        yield Finding(start, end, "ip", str(address))
