"""The file `leaves`: the leaf hashes in sequence, a second witness of what the journal held.

The hash of the record with sequence number n stands at offset 32 * (n - 1). It is written right
after the record's transaction, without a flush of its own, so the file may lack entries at its end
or, as 32 zero bytes, in between, but never knows more than the journal did. Hence a journal that
ends before the file does has lost records: SQLite itself would silently drop the end of a damaged
or deleted write-ahead log. The file also shows records that were swapped, replaced or altered
together with their stored hash. `fill` completes and flushes it at every ingestion.

It is evidence against accident and careless hands, not against whoever rewrites both files; against
those, only a checkpoint kept elsewhere helps.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from .hashing import HASH_BYTES

_ABSENT = bytes(HASH_BYTES)


class LeavesFile:
    """An open `leaves` file. Not safe across a fork; safe between processes and threads."""

    def __init__(self, path: Path, *, writable: bool) -> None:
        """Open it; raises `OSError`. A writer creates it."""
        flags = os.O_RDWR | os.O_CREAT if writable else os.O_RDONLY
        self._descriptor: int | None = os.open(path, flags | os.O_CLOEXEC, 0o600)

    @property
    def descriptor(self) -> int:
        """The file's descriptor."""
        if self._descriptor is None:
            raise ValueError("the leaves file is closed")
        return self._descriptor

    def mark(self, first: int, hashes: Sequence[bytes]) -> None:
        """Write the hashes of the records from sequence number `first` on."""
        os.pwrite(self.descriptor, b"".join(hashes), HASH_BYTES * (first - 1))

    def last(self) -> int:
        """Return the highest sequence number that the file knows of."""
        return -(-os.fstat(self.descriptor).st_size // HASH_BYTES)

    def read(self, first: int, count: int) -> list[bytes | None]:
        """Return `count` entries from record `first` on; `None` where the file has none."""
        data = os.pread(self.descriptor, HASH_BYTES * count, HASH_BYTES * (first - 1))
        data = data.ljust(HASH_BYTES * count, b"\x00")
        entries = (data[at : at + HASH_BYTES] for at in range(0, len(data), HASH_BYTES))
        return [None if entry == _ABSENT else entry for entry in entries]

    def absent(self, last: int, *, batch: int = 4096) -> Iterator[int]:
        """Yield the sequence numbers up to `last` for which the file has no entry."""
        for first in range(1, last + 1, batch):
            entries = self.read(first, min(batch, last + 1 - first))
            yield from (first + at for at, entry in enumerate(entries) if entry is None)

    def fill(self, hashes: Iterable[tuple[int, bytes]]) -> None:
        """Complete absent entries and flush the file; those that are there stay, right or wrong."""
        for sequence, digest in hashes:
            if self.read(sequence, 1)[0] is None:
                self.mark(sequence, [digest])
        os.fsync(self.descriptor)

    def close(self) -> None:
        """Close the file; calling it twice is harmless."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
