r"""Recognizer of e-mail addresses.

``local@domain`` in the dot-atom form of RFC 5322, with letters of alphabetic scripts (RFC 6531)
besides ASCII. Not found: quoted local parts, addresses in scripts written without spaces (where
nothing shows where an address ends), and spellings made to be read by people only ("jo at example
dot org").
"""

from __future__ import annotations

from collections.abc import Iterator

import re2

from .findings import Budget, Finding

_LETTERS = (
    r"\p{Latin}\p{Greek}\p{Cyrillic}\p{Armenian}\p{Hebrew}\p{Arabic}\p{Georgian}\p{Devanagari}"
)
_ADDRESS = re2.compile(
    rf"[{_LETTERS}\d._%+'-]+@(?:[{_LETTERS}\d](?:[{_LETTERS}\d-]*[{_LETTERS}\d])?\.)+"
    rf"(?:xn--[a-zA-Z0-9-]*[a-zA-Z0-9]|[{_LETTERS}]{{2,}})"
)
# What looks like a domain but ends like a file: image@2x.png. None of these is a top-level domain.
_ENDINGS = (
    "png jpg jpeg gif svg webp bmp ico tiff css js mjs ts jsx tsx html htm json xml yaml yml txt"
)
_FILES = frozenset(_ENDINGS.split())


def emails(text: str, budget: Budget) -> Iterator[Finding]:
    """Find addresses in a folded text."""
    if "@" not in text:
        return
    for match in _ADDRESS.finditer(text):
        start, end = match.span()
        address = text[start:end]
        bare = address.lstrip(".'-%+")
        start = end - len(bare)
        if bare.startswith("@") or bare.rpartition(".")[2].lower() in _FILES:
            continue
        budget.spend()
        yield Finding(start, end, "email", bare.lower())
