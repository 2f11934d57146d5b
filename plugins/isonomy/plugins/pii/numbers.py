"""Recognizers of numbers with a checksum (python-stdnum's): payment cards and IBANs.

Cards: a number of an issuer's prefix and length (the published ranges of ISO/IEC 7812 issuers,
below) that passes Luhn (ISO/IEC 7812-1, annex B), in one piece or in groups of 3 to 6 digits with
one kind of separator (space, hyphen, dot). 13-digit Visa numbers, out of use since 2003, are left
out: a tenth of the article numbers (EAN-13) that begin with 4 would pass.

IBANs (ISO 13616): the length belongs to the country, so the end is known even where text follows.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from string import ascii_uppercase
from typing import Any

import re2
from stdnum import iban as _iban
from stdnum import luhn, numdb

from .findings import Budget, Finding

_RUN = re2.compile(r"\d(?:[ .-]?\d){11,}")
_IBAN_HEAD = re2.compile(r"\b[A-Za-z]{2}\d{2}[ -]?[A-Za-z0-9]")
_NO_SEPARATORS = str.maketrans("", "", " .-")
_BASE_36 = {ord(letter): str(int(letter, 36)) for letter in ascii_uppercase}
_GROUP = range(3, 7)

_ISSUERS: tuple[tuple[int, int, int, frozenset[int]], ...] = tuple(
    (len(str(low)), low, high, frozenset(lengths))
    for low, high, lengths in (
        (4, 4, (16, 19)),  # Visa
        (51, 55, (16,)),  # Mastercard
        (2221, 2720, (16,)),  # Mastercard
        (34, 34, (15,)),  # American Express
        (37, 37, (15,)),  # American Express
        (6011, 6011, (16, 17, 18, 19)),  # Discover
        (644, 659, (16, 17, 18, 19)),  # Discover, RuPay
        (300, 305, (14, 16)),  # Diners Club
        (36, 36, (14, 16)),  # Diners Club
        (38, 39, (14, 16)),  # Diners Club
        (3528, 3589, (16, 17, 18, 19)),  # JCB
        (62, 62, (16, 17, 18, 19)),  # UnionPay
        (81, 82, (16,)),  # UnionPay, RuPay
        (508, 508, (16,)),  # RuPay
        (606, 608, (16,)),  # RuPay, Hipercard
        (2200, 2204, (16, 17, 18, 19)),  # Mir
        (979200, 979289, (16,)),  # Troy
        (5018, 5018, range(12, 20)),  # Maestro, as are all below
        (5020, 5020, range(12, 20)),
        (5038, 5038, range(12, 20)),
        (5893, 5893, range(12, 20)),
        (6304, 6304, range(12, 20)),
        (6759, 6759, range(12, 20)),
        (6761, 6763, range(12, 20)),
    )
)


def cards(text: str, budget: Budget) -> Iterator[Finding]:
    """Find payment card numbers in a folded text."""
    for match in _RUN.finditer(text):
        start, end = match.span()
        if start and (text[start - 1].isalnum() or text[start - 1] in "_+"):
            continue
        if end < len(text) and (text[end].isalnum() or text[end] == "_"):
            continue
        yield from _cards_of_run(text, start, end, budget)


def _cards_of_run(text: str, start: int, end: int, budget: Budget) -> Iterator[Finding]:
    """Find cards in a run of digits: whole groups that together make a number."""
    run = text[start:end]
    groups = run.replace("-", " ").replace(".", " ").split(" ")
    first, position = 0, start
    while first < len(groups):
        found = _card_at(text, groups, first, position, budget)
        if found is not None:
            last, finding = found
            yield finding
            position = finding.end + 1
            first = last + 1
        else:
            position += len(groups[first]) + 1
            first += 1


def _card_at(
    text: str, groups: list[str], first: int, position: int, budget: Budget
) -> tuple[int, Finding] | None:
    """Return the longest card that begins with group `first`, with the number of its last group."""
    before = text[position - 1] if first else ""
    if before == ".":  # the digits behind a decimal point
        return None
    digits = ""
    separator = ""
    end = position
    best: tuple[int, Finding] | None = None
    for last in range(first, len(groups)):
        group = groups[last]
        if last > first:
            used = text[end]
            if (
                len(groups[last - 1]) not in _GROUP
                or len(group) not in _GROUP
                or (separator or used) != used
            ):
                break
            separator = used
            end += 1
        digits += group
        end += len(group)
        if len(digits) > 19:
            break
        if (
            len(digits) >= 12
            and _issued(digits)
            and not (last + 1 < len(groups) and text[end] == ".")
        ):
            budget.spend()
            if luhn.is_valid(digits):
                best = last, Finding(position, end, "card", digits)
    return best


def _issued(digits: str) -> bool:
    return any(
        len(digits) in lengths and low <= int(digits[:width]) <= high
        for width, low, high, lengths in _ISSUERS
    )


def ibans(text: str, budget: Budget) -> Iterator[Finding]:
    """Find IBANs in a folded text."""
    end = 0
    for match in _IBAN_HEAD.finditer(text):
        start = match.start()
        if start < end:
            continue
        length = _iban_length(text[start : start + 2].upper())
        if length is None:
            continue
        compact = text[start : start + 2 * length].translate(_NO_SEPARATORS)[:length].upper()
        if len(compact) < length or not (compact.isascii() and compact.isalnum()):
            continue
        # ISO 7064 mod 97-10 first: it is cheap, and leaves one in 97 for a closer look.
        if int((compact[4:] + compact[:4]).translate(_BASE_36)) % 97 != 1:
            continue
        stop = _end(text, start, length)
        if stop is None:
            continue
        budget.spend()
        # Without the checks of single countries: their registries of banks go out of date.
        if _iban.is_valid(compact, check_country=False):
            end = stop
            yield Finding(start, stop, "iban", compact)


def _end(text: str, start: int, length: int) -> int | None:
    """Return where `length` letters and digits end, with single separators between them."""
    position = start
    while length:
        character = text[position]
        if character.isalnum():
            length -= 1
        elif not text[position - 1].isalnum():
            return None
        position += 1
    following = text[position : position + 1]
    return None if following.isalnum() or following == "_" else position


@cache
def _iban_length(country: str) -> int | None:
    """Return the length of a country's IBAN, from python-stdnum's registry."""
    info: list[tuple[str, dict[str, Any]]] = numdb.get("iban").info(country)
    structure = info[0][1].get("bban") if info else None
    if not structure:
        return None
    # "8!n10!n": 8 digits, then 10 digits.
    return 4 + sum(int(piece.lstrip("nac")) for piece in structure.split("!")[:-1])
