"""What stands in place of a finding.

==========  ==============================================================
``redact``  the kind: ``[EMAIL]``
``mask``    enough to tell two apart: see `masked`
``hash``    a pseudonym, the same for the same datum however it is written: ``[EMAIL:kfgbaobjpdie]``
==========  ==============================================================

No result is recognized as personal data again, so that a treated text stays as it is.
"""

from __future__ import annotations

import hmac

from .findings import Finding, Kind

_LETTERS = str.maketrans("0123456789abcdef", "abcdefghijklmnop")


def redacted(kind: Kind) -> str:
    """Return the placeholder of a kind."""
    return f"[{kind.upper()}]"


def masked(kind: Kind, text: str) -> str:
    """Return a finding's text with most of it starred out.

    Kept are: of an e-mail address the first character and the domain (``j***@example.org``); of a
    card and a telephone number the last four digits; of an IBAN the country and the last four
    characters; of an IP address the first two parts (``192.0.*.*``, ``2001:db8:*``). Separators
    stay.
    """
    if kind == "email":
        local, _, domain = text.rpartition("@") if "@" in text else text.rpartition("\uff20")
        return f"{local[:1]}***@{domain}"
    if kind == "ip":
        if "." in text and ":" not in text:
            parts = text.split(".")
            return ".".join([*parts[:2], "*", "*"])
        return ":".join([*filter(None, text.split(":")[:2]), "*"])
    shown = 4
    total = sum(character.isalnum() for character in text)
    head = 2 if kind == "iban" else 0
    result = []
    seen = 0
    for character in text:
        if character.isalnum():
            seen += 1
            if head < seen <= total - shown:
                character = "*"
        result.append(character)
    return "".join(result)


def pseudonym(finding: Finding, key: str) -> str:
    """Return the finding's pseudonym under a secret key.

    HMAC-SHA256 of kind and canonical value, its first 48 bits, written in the letters a to p:
    digits could be taken for a number again. Without the key, a telephone number can't be found by
    trying all of them, as it could from a plain hash.
    """
    message = f"{finding.kind}\0{finding.value}".encode("utf-8", "replace")
    digest = hmac.digest(key.encode("utf-8", "replace"), message, "sha256").hex()[:12]
    return f"[{finding.kind.upper()}:{digest.translate(_LETTERS)}]"
