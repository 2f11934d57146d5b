"""How a log is doing: what it holds, how far it is ingested, what it takes on disk.

`ingestion.json` tells what the last ingestion came to. It is for people, and for whoever decides
when to ingest again: nothing that is asked of the log depends on it.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Final

import msgspec

from . import checking, database
from .directory import JOURNAL, LogDirectory

STATUS: Final = "ingestion.json"


class Last(msgspec.Struct, frozen=True):
    """What the last ingestion came to, as `ingestion.json` tells it; nothing depends on it."""

    record: int = 0
    """The last record that is in the DuckDB log."""
    ended_ns: int = 0
    """Wall clock at its end, nanoseconds since 1970."""
    seconds: float = 0.0
    records: int = 0
    """How many records it took."""
    problem: str = ""
    """Why it failed; empty where it did not."""


def last_ingestion(directory: LogDirectory) -> Last:
    """Return what the last ingestion came to; zeros where there was none, or nothing legible."""
    try:
        return msgspec.json.decode((directory.path / STATUS).read_bytes(), type=Last)
    except (OSError, msgspec.MsgspecError):
        return Last()


def note_ingestion(directory: LogDirectory, last: Last) -> None:
    """Keep what an ingestion came to; the caller holds the log's lock."""
    file = directory.path / STATUS
    beside = file.with_suffix(".new")
    with suppress(OSError):
        beside.unlink(missing_ok=True)
        descriptor = os.open(beside, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(msgspec.json.encode(last))
        beside.rename(file)


class Status(msgspec.Struct, frozen=True):
    """How a log is doing."""

    path: str
    records: int
    """The last record's number."""
    ingested: int
    """The last record that an ingestion has taken."""
    last_ingestion: Last
    sizes: dict[str, int]
    """Bytes of each file, and in all of each directory, of the log."""

    @property
    def behind(self) -> int:
        """How many records no ingestion has taken yet."""
        return max(self.records - self.ingested, 0)


def status(directory: LogDirectory) -> Status:
    """Return how a log is doing.

    Raises:
        LogError: its journal can't be read.
    """
    directory.require()
    with database.explained(directory, writing=False):
        journal = database.connect(directory, writable=False)
        try:
            database.check(journal, directory, writing=False)
            records = checking.last_sequence(journal)
        finally:
            journal.close()
    last = last_ingestion(directory)
    ingested = last.record if directory.audit.exists() else 0
    return Status(str(directory), records, ingested, last, _sizes(directory))


def _sizes(directory: LogDirectory) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for file in directory.path.rglob("*"):
        top = file.relative_to(directory.path).parts[0]
        with suppress(OSError):  # gone meanwhile
            if file.is_file():
                sizes[top] = sizes.get(top, 0) + file.stat().st_size
    return {JOURNAL: 0, **dict(sorted(sizes.items()))}
