"""Recognizer of telephone numbers: windows by RE2, then phonenumbers on each.

A number with ``+`` is recognized wherever it is from; one without only in the numbering plans of
`regions`. phonenumbers runs Python's `re`, so it only ever sees windows of at most 40 characters,
and the number of windows is bounded by the budget.

Without ``+``, a valid number may still be an order number or a date. Not reported are: numbers
right behind a word that names something else (order, invoice, ticket, ...; "order number
2125550123" too), behind ``#``, ``/``, ``_`` or a currency sign, dates, four numbers with dots, and
four groups of four digits (a card).
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator

import re2
from phonenumbers import (
    Leniency,
    PhoneNumberFormat,
    PhoneNumberMatcher,
    format_number,
)

from .findings import Budget, Finding

_RUN = re2.compile(r"(?:\+[ (]?|\()?\d[\d ().\-/]{4,}\d")
_WINDOW = 40
_FEWEST, _MOST = 7, 17
"""Digits of a candidate: E.164 allows 15, an exit code or a trunk prefix in brackets may come
before them."""
_INNER_TRIES = 5
_NOT_PHONE = re2.compile(
    r"\d{4}[-./]\d{1,2}[-./]\d{1,2}(?:[^\d].*|$)"  # 2024-05-12
    r"|\d{1,2}[-./ ]\d{1,2}[-./ ](?:19|20)\d{2}(?:[^\d].*|$)"  # 12.05.2024
    r"|\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}"
    r"|\d{4}([ -])\d{4}[ -]\d{4}[ -]\d{4}.*"
)
_NAMES = (
    "order orders invoice ticket case id ref reference account customer client item article sku "
    "part serial tracking parcel shipment transaction booking reservation policy claim isbn issn "
    "ean version build bestellung auftrag rechnung kunde konto artikel commande facture pedido "
    "factura"
)
_OTHER_THINGS = frozenset(_NAMES.split())
_BETWEEN = "no nr num number numbers nummer is was the code my your our n"
_FILLERS = frozenset(_BETWEEN.split())


def phones(regions: tuple[str, ...], text: str, budget: Budget) -> Iterator[Finding]:
    """Find telephone numbers in a folded text."""
    if not regions and "+" not in text:
        return
    for match in _RUN.finditer(text):
        start, end = match.span()
        if text[start] == "+":
            if not text[start - 1 : start].isalnum():
                yield from _in_run(text, start, end, (None,), budget)
        elif regions:
            yield from _in_run(text, start, end, regions, budget)


def _in_run(
    text: str, start: int, end: int, regions: tuple[str | None, ...], budget: Budget
) -> Iterator[Finding]:
    """Walk along a run, a window at a time: behind what was found, else to the next word."""
    while end - start >= _FEWEST:
        stop = min(end, start + _WINDOW)
        if stop < end:
            # Don't cut a number in two; a longer one without a space is none.
            space = text.rfind(" ", start, stop + 1)
            stop = space if space > start else start
        found = _first(text, start, stop, regions, budget) if stop - start >= _FEWEST else None
        if found is not None:
            yield found
            start = found.end
        else:
            space = text.find(" ", start + 1, end)
            start = space + 1 if space > 0 else end


def _first(
    text: str, start: int, end: int, regions: tuple[str | None, ...], budget: Budget
) -> Finding | None:
    """Return the first number in a window."""
    window = text[start:end]
    if sum(map(str.isdigit, window)) < _FEWEST:
        return None
    if sum(map(str.isdigit, window.split(" ", 1)[0])) > _MOST:
        return None
    left = max(
        0, start - 1
    )  # a character of context each side: phonenumbers looks at what touches a number
    best: Finding | None = None
    for region in regions:
        budget.spend()
        matcher = PhoneNumberMatcher(
            text[left : end + 1], region, leniency=Leniency.VALID, max_tries=_INNER_TRIES
        )
        for match in matcher:
            at, to = left + match.start, left + match.end
            if text[at] != "+" and _is_other(text, at, to):
                continue
            value = format_number(match.number, PhoneNumberFormat.E164)
            finding = Finding(at, to, "phone", value)
            if best is None or (finding.start, -finding.end) < (best.start, -best.end):
                best = finding
            break
    return best


def _is_other(text: str, start: int, end: int) -> bool:
    """Whether a number without ``+`` is more likely something else."""
    if _NOT_PHONE.fullmatch(text[start:end]) is not None:
        return True
    before = text[max(0, start - 40) : start].rstrip(" (")
    last = before[-1:]
    if last and (last in "#/_" or unicodedata.category(last) == "Sc"):
        return True
    words = "".join(c if c.isalpha() else " " for c in before.lower()).split()
    while words and words[-1] in _FILLERS:
        words.pop()
    return bool(words) and words[-1] in _OTHER_THINGS
