"""Text as it comes from a provider, made fit to be passed on.

Two things can be wrong with it wherever it is cut into pieces: half of a surrogate pair (some
servers cut a character outside the basic plane in two), and a secret that an endpoint repeats.
`Flow` holds back what could become either, so that its pieces joined are what `clean` makes of the
whole text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_HALF = re.compile("[\ud800-\udfff]")
_OPEN_HALVES = ("\ud800", "\udbff")


def whole(text: str) -> str:
    """Return text with surrogate halves joined to characters; what stays half becomes U+FFFD."""
    if text.isascii() or not _HALF.search(text):
        return text
    joined = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return joined


def clean(text: str, secrets: Mapping[str, str]) -> str:
    """Return whole text, with each secret replaced by its mask.

    Args:
        text: anything an endpoint said.
        secrets: masks by secret; none is empty.
    """
    text = whole(text)
    for secret, mask in secrets.items():
        text = text.replace(secret, mask)
    return text


class Flow:
    """Pieces of one text, cleaned as they come.

    Args:
        secrets: masks by secret; none is empty.
    """

    def __init__(self, secrets: Mapping[str, str]) -> None:
        self._secrets = secrets
        self._held = ""
        self._half = ""

    def push(self, piece: str) -> str:
        """Take a piece and return the text that is final now, often all of it."""
        text = self._half + piece
        self._half = ""
        if text and _OPEN_HALVES[0] <= text[-1] <= _OPEN_HALVES[1]:
            text, self._half = text[:-1], text[-1]
        self._held += whole(text)
        return self._released(self._keep())

    def finish(self) -> str:
        """Return what was held back, because no more text comes."""
        self._held += whole(self._half)
        self._half = ""
        return self._released(0)

    def _keep(self) -> int:
        """Return how many characters at the end could be the beginning of a secret."""
        keep = 0
        for secret in self._secrets:
            for length in range(min(len(self._held), len(secret) - 1), keep, -1):
                if self._held.endswith(secret[:length]):
                    keep = length
                    break
        return keep

    def _released(self, keep: int) -> str:
        text = self._held
        for secret, mask in self._secrets.items():
            text = text.replace(secret, mask)
        cut = len(text) - keep
        text, self._held = text[:cut], text[cut:]
        return text
