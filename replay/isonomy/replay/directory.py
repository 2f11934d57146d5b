"""The log's directory: which files it holds, with which rights, and the lock that guards them.

    journal.sqlite   where a record becomes durable (beside it SQLite's -wal and -shm)
    leaves           the leaf hashes in sequence, 32 bytes each (see `isonomy.replay.leaves`)
    lock             held (flock) while ingesting, publishing, or creating the log; always empty
    ingest.duckdb    the working file of an ingestion, while it runs
    audit.duckdb     what readers open: published whole, read-only

The directory is 0700, its files 0600, the published one 0400. A directory that holds anything else
and no journal is not a log and is left alone.
"""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from isonomy.sdk.errors import LogError

from .errors import DamagedLog, LogUnwritable, NotALog

JOURNAL = "journal.sqlite"
LEAVES = "leaves"
LOCK = "lock"
INGEST = "ingest.duckdb"
AUDIT = "audit.duckdb"

_REMAINS = (LEAVES, INGEST, AUDIT, JOURNAL + "-wal")
"""Files whose presence without a journal means that the journal was lost."""


class LogDirectory:
    """Paths within a log's directory; nothing is opened by constructing it."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path).expanduser().absolute()
        self.journal = self.path / JOURNAL
        self.leaves = self.path / LEAVES
        self.lock = self.path / LOCK
        self.ingest = self.path / INGEST
        self.audit = self.path / AUDIT

    def __str__(self) -> str:
        return str(self.path)

    def require(self) -> None:
        """Check that a log is here to be read.

        Raises:
            NotALog: nothing is here, a file is, or a directory without a journal.
            DamagedLog: other files of a log are here, but no journal.
        """
        with _explained(self, "read"):
            if not self.path.exists():
                raise NotALog(
                    f"There is no log at {self.path}. Check the path, or write a first call to it.",
                    path=str(self),
                )
            self._require_directory()
            if not self.journal.exists():
                self._refuse_remains()
                raise NotALog(
                    f"{self.path} is a directory, but not a log: it has no {JOURNAL}. Check the "
                    "path.",
                    path=str(self),
                )

    def prepare(self) -> None:
        """Make the directory ready for a journal, creating it if needed.

        Raises `require`'s errors, or `LogUnwritable`.
        """
        with _explained(self, "created"):
            if not self.path.exists():
                self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._require_directory()
            if self.journal.exists():
                return
            self._refuse_remains()
            foreign = sorted(
                {file.name for file in self.path.iterdir()} - {LOCK, JOURNAL, JOURNAL + "-journal"}
            )
            if foreign:
                shown = ", ".join(foreign[:3]) + (", ..." if len(foreign) > 3 else "")
                raise NotALog(
                    f"{self.path} is not a log: it holds other files ({shown}) and no {JOURNAL}. "
                    "Name an empty or a new directory.",
                    path=str(self),
                )
            self.path.chmod(0o700)
            self.make(self.lock)

    def make(self, file: Path) -> None:
        """Create `file` empty, 0600, unless it is there."""
        with suppress(FileExistsError):
            os.close(os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))

    @contextmanager
    def locked(self, *, shared: bool = False) -> Iterator[None]:
        """Hold the log's lock.

        Alone to create, ingest and publish; shared to read what must not be replaced meanwhile.
        """
        with _explained(self, "locked"):
            if shared:
                descriptor = os.open(self.lock, os.O_RDONLY | os.O_CLOEXEC)
            else:
                descriptor = os.open(self.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            with _explained(self, "locked"):
                fcntl.flock(descriptor, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _require_directory(self) -> None:
        if not stat.S_ISDIR(self.path.stat().st_mode):
            raise NotALog(
                f"{self.path} is a file; a log is a directory. Name a directory.", path=str(self)
            )

    def _refuse_remains(self) -> None:
        for name in _REMAINS:
            file = self.path / name
            if file.exists() and (name != LEAVES or file.stat().st_size):
                raise DamagedLog(
                    f"{JOURNAL}: {self.path} holds {name} but no {JOURNAL}: the journal was "
                    "removed. Restore it from a backup, or name another directory.",
                    path=str(self),
                    file=JOURNAL,
                )


@contextmanager
def _explained(directory: LogDirectory, what: str) -> Iterator[None]:
    """Turn an `OSError` into the log's error."""
    try:
        yield
    except OSError as error:
        message = (
            f"The log {directory} can't be {what}: {error.strerror or error}. Check that the path "
            "is right, its disk has room, and its owner is the user of this process."
        )
        if what == "read":
            raise LogError(message, path=str(directory)) from error
        raise LogUnwritable(message, path=str(directory), passes=True) from error
