"""Room for the write-ahead log, made ahead of need.

A flush of a file that has just grown flushes the file system's own notes, too, and takes about
twice as long as one of bytes that were there before. So whenever the write-ahead log has grown, a
piece of zeros is put behind its end, which it then fills. To SQLite they are what remains of an
unfinished write: frames are valid by their checksums, and it passes over what follows the last.

The zeros are written under SQLite's lock for writers, so nobody writes behind the end meanwhile.
SQLite's locks lie on the database and on its ``-shm``, never on the ``-wal``: opening and closing
that one drops none.
"""

from __future__ import annotations

import os
import sqlite3
from contextlib import suppress
from typing import Final

BEGIN: Final = 64 << 10
"""Bytes of a write-ahead log that is worth the room: a log of a few records stays small."""

ROOM: Final = 4 << 20
"""Bytes put behind its end at a time."""


_FRAME: Final = 8 << 10
"""More bytes than a frame has, whose head is never all zeros."""


def _has_room(descriptor: int, size: int) -> bool:
    """Return whether another process has put room there already."""
    return not any(os.pread(descriptor, _FRAME, size - _FRAME))


class Room:
    """The file of a write-ahead log that is open. Not safe across a fork."""

    def __init__(self, path: str) -> None:
        """Open it; raises `OSError`."""
        self._descriptor: int | None = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        self._size = os.fstat(self._descriptor).st_size

    def make(self, connection: sqlite3.Connection) -> None:
        """Put room behind the end if it has moved; the connection is in no transaction.

        Where that is not possible now, nothing happens: a flush takes longer.
        """
        descriptor = self._descriptor
        assert descriptor is not None
        size = os.fstat(descriptor).st_size
        if size == self._size:
            return
        grown, self._size = size > self._size, size
        if not grown or size < BEGIN or _has_room(descriptor, size):
            return
        with suppress(sqlite3.Error, OSError):
            connection.execute("BEGIN IMMEDIATE")
            try:
                end = os.fstat(descriptor).st_size
                if not _has_room(descriptor, end):
                    os.pwrite(descriptor, bytes(ROOM), end)
                    os.fdatasync(descriptor)
            finally:
                connection.execute("ROLLBACK")
                self._size = os.fstat(descriptor).st_size

    def close(self) -> None:
        """Close the file; calling it twice is harmless."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
