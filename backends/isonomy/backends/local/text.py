"""Text from tokens, as it becomes final: whole characters only, and never past a stop string.

Two small state machines without I/O. `Detokenizer` turns ids into pieces of text, holding back the
bytes of a character that is not complete yet. `StopStrings` passes pieces on, holding back whatever
could still become the beginning of a stop string. Both give the same text whichever way it was cut
into pieces.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"

_PENDING_LIMIT = 64
"""Tokens without a whole character after which broken bytes are passed on as they are: a character
has four bytes, so what is still broken by then stays broken."""


class Detokenizer:
    """Turns token ids into pieces of text, each as soon as it is final.

    Args:
        decode: Ids to text, special tokens left out and broken UTF-8 replaced.
        single: What `decode` gives for a single token, by id: filled here, and shared by all that
            have the same `decode`.
    """

    def __init__(
        self, decode: Callable[[Sequence[int]], str], single: dict[int, str] | None = None
    ) -> None:
        self._decode = decode
        self._single = {} if single is None else single
        self._ids: list[int] = []
        self._start = 0  # where the window of tokens begins that gives the next piece its context
        self._read = 0  # tokens before this one are in the pieces already given
        self._before = ""  # the text of the window's tokens before `_read`

    def push(self, token: int) -> str:
        """Take the next token and return the text that became final, often empty."""
        self._ids.append(token)
        text = self._decode(self._ids[self._start :])
        if text.endswith(REPLACEMENT) and len(self._ids) - self._read < _PENDING_LIMIT:
            return ""
        return self._take(text)

    def finish(self) -> str:
        """Return what was held back; call it once, after the last token."""
        return self._take(self._decode(self._ids[self._start :]))

    def _take(self, text: str) -> str:
        piece = text[len(self._before) :]
        if piece:
            # The last piece's tokens stay as context: some decoders treat the first token apart.
            self._start = self._read
            self._before = self._context()
        self._read = len(self._ids)
        return piece

    def _context(self) -> str:
        ids = self._ids[self._start :]
        if len(ids) != 1:
            return self._decode(ids)
        text = self._single.get(ids[0])
        if text is None:
            text = self._single[ids[0]] = self._decode(ids)
        return text


class StopStrings:
    """Passes text on until a stop string is complete; of several, the one that ends first counts.

    The stop string itself is cut off. `stopped` tells whether one was met; nothing is passed on
    after it.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self._held = ""
        self.stopped = False

    def push(self, piece: str) -> str:
        """Take a piece of text and return the text that is final now."""
        if self.stopped or not piece:
            return ""
        if not self._stops:
            return piece
        self._held += piece
        ends = [(at + len(stop), at) for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if ends:
            _, start = min(ends)
            self.stopped = True
            text, self._held = self._held[:start], ""
            return text
        keep = max((_overlap(self._held, stop) for stop in self._stops), default=0)
        cut = len(self._held) - keep
        text, self._held = self._held[:cut], self._held[cut:]
        return text

    def finish(self) -> str:
        """Return what was held back, because no more text comes."""
        text, self._held = self._held, ""
        return text


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest end of `text` that begins `stop`."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
