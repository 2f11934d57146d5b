"""What was computed of earlier sequences, for those that begin alike.

Keys and values of a token depend on the tokens up to it and on nothing else, so a session that
begins with the same tokens is the same to the bit, wherever it came from: cold and warm give the
same answers by construction. Sessions share their full pages (`Session.fork`), so what is kept
costs memory only for what no other has.

Bounded in bytes, the least recently used goes first. A sequence's bytes are counted in full, shared
pages too: the bound is kept with room to spare.
"""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from isonomy.kernels import Session

Ids = npt.NDArray[np.int32]

LEAST = 16
"""Tokens in common below which computing anew is as good."""

MOST_ENTRIES = 256
"""Looking one up takes a microsecond an entry."""


class Entry(msgspec.Struct, eq=False):
    """A session and the ids that it holds."""

    ids: Any  # int32, all of `session`
    session: Any
    bytes: int


def common(a: Ids, b: Ids) -> int:
    """Return how many ids two sequences begin with in common."""
    n = min(len(a), len(b))
    differ = a[:n] != b[:n]
    first = int(differ.argmax()) if n else 0
    return first if n and differ[first] else n


class PrefixCache:
    """Sessions of sequences that are no longer computed.

    Args:
        limit: Most bytes to keep; 0 keeps nothing.

    Attributes:
        bytes: of all sessions kept.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._entries: list[Entry] = []  # the most recently used last

    @property
    def bytes(self) -> int:
        """What is kept, in bytes."""
        return sum(entry.bytes for entry in self._entries)

    def __len__(self) -> int:
        """Return the number of sessions kept."""
        return len(self._entries)

    def keep(self, ids: Ids, session: Session) -> None:
        """Keep a session that holds exactly `ids`, and forget what begins it or is too much."""
        if len(ids) < LEAST or session.cache_bytes > self._limit:
            return
        entries = []
        for entry in self._entries:
            shared = common(entry.ids, ids)
            if shared == len(ids):  # nothing new
                return
            if shared < len(entry.ids):
                entries.append(entry)
        entries.append(Entry(ids=ids.copy(), session=session, bytes=session.cache_bytes))
        self._entries = entries[-MOST_ENTRIES:]
        self.shrink(self._limit)

    def find(self, ids: Ids, least: int = LEAST) -> tuple[Session, int] | None:
        """Return the session that has most tokens in common with `ids`, and how many.

        None where that is fewer than `least`, which is at least 1. The last of `ids` never counts:
        its logits are to be computed.
        """
        wanted = ids[:-1]
        best: Entry | None = None
        most = least - 1
        for entry in self._entries:
            # To be better it must have the first token that the best so far lacks.
            if len(entry.ids) > most < len(wanted) and entry.ids[most] == wanted[most]:
                shared = common(entry.ids, wanted)
                if shared > most:
                    best, most = entry, shared
        if best is None:
            return None
        entries = [entry for entry in self._entries if entry is not best]
        self._entries = [*entries, best]
        return best.session, most

    def shrink(self, limit: int) -> None:
        """Forget the least recently used until at most `limit` bytes are kept."""
        kept = self.bytes
        drop = 0
        while kept > limit:
            kept -= self._entries[drop].bytes
            drop += 1
        if drop:
            self._entries = self._entries[drop:]
