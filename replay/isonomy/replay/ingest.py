"""Filling the DuckDB log from the journal, and publishing it.

    python -m isonomy.replay.ingest DIR [--rebuild] [--background]

One process does this at a time, under the log's lock, in a process of its own (`refresh` starts
it): DuckDB takes one writing process, and must not share one with whoever serves calls. It starts
from a copy of the published `audit.duckdb`, adds what the journal holds beyond it, and puts the
copy, read-only, in the place of the published file by atomic rename; readers that have the former
one open keep it. A crash at any point leaves the former one, and the next ingestion begins again.
Then the journal's write-ahead log is moved into its database, and `leaves` is completed.

Invariant: between ingestions no file but `audit.duckdb` holds rows that could be served, so that
verification, which compares that one with the journal, has seen everything. A working file that a
crash, or anybody, left behind is deleted unread.

In the background (`isonomy.replay.background` starts it so) it is nice to others, and SIGTERM asks
it to publish what it has and end.

A published file of another version is built anew from the journal. One that can't be read, or names
another log, is damage: it is left as it is, as evidence, until someone asks for `rebuild`.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from isonomy.sdk.errors import LogError

from . import audit, checking, database, projection
from .directory import AUDIT, INGEST, JOURNAL, LogDirectory
from .errors import DamagedLog, LogUnwritable
from .hashing import HASH_BYTES
from .leaves import LeavesFile
from .query import damaged
from .status import Last, last_ingestion, note_ingestion

if TYPE_CHECKING:
    import duckdb

BATCH = 1000
"""Records in a transaction, at most."""
BATCH_BYTES = 32 << 20
"""Bytes of content in a transaction, as soon as it has more: what bounds an ingestion's memory."""
_AT_ONCE = 20
"""Records that are read at once: their content is in memory before it can be counted."""

_CONFIG: Final[dict[str, Any]] = {"threads": 2, "checkpoint_threshold": "1GB"}


class Ingested(msgspec.Struct, frozen=True):
    """What an ingestion did: records and rows taken, the last record now in the DuckDB log."""

    records: int
    rows: int
    last: int
    rebuilt: bool


def refresh(path: str | os.PathLike[str], *, rebuild: bool = False) -> Ingested:
    """Bring the DuckDB log of the log at `path` up to date, in a subprocess.

    Raises:
        LogError: it could not be; the message is the subprocess's.
    """
    directory = LogDirectory(path)
    directory.require()
    command = [sys.executable, "-m", "isonomy.replay.ingest", str(directory)]
    if rebuild:
        command.append("--rebuild")
    search = os.pathsep.join(entry for entry in sys.path if entry)
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": search},
        )
    except OSError as error:
        raise LogError(
            f"The DuckDB log of {directory} could not be brought up to date: {sys.executable} "
            f"can't be started ({error.strerror or error}). Check the installation of Python.",
            path=str(directory),
        ) from error
    if done.returncode == 0:
        return msgspec.json.decode(done.stdout, type=Ingested)
    message = done.stderr.strip().splitlines()[-1:] or ["it gave no message."]
    raise LogError(
        f"The DuckDB log of {directory} could not be brought up to date: {message[0]}",
        path=str(directory),
    )


def ingest(path: str | os.PathLike[str], *, rebuild: bool = False) -> Ingested:
    """Do the work, in this process; meant for a process of its own."""
    directory = LogDirectory(path)
    directory.require()
    with directory.locked():
        begun = time.monotonic()
        try:
            done = _ingest(directory, rebuild=rebuild)
        except LogError as error:
            problem = " ".join(str(error).split())
            former = last_ingestion(directory)
            note_ingestion(
                directory,
                Last(former.record, time.time_ns(), time.monotonic() - begun, 0, problem),
            )
            raise
        note_ingestion(
            directory, Last(done.last, time.time_ns(), time.monotonic() - begun, done.records)
        )
    return done


def _ingest(directory: LogDirectory, *, rebuild: bool) -> Ingested:
    with database.explained(directory, writing=True):
        journal = database.connect(directory, writable=True)
        try:
            log_id = database.check(journal, directory, writing=True)["log"]
            done = _fill(directory, journal, log_id, rebuild=rebuild)
            _complete_leaves(directory, journal)
        finally:
            journal.close()
        database.checkpoint(directory)
    return done


def _fill(
    directory: LogDirectory, journal: sqlite3.Connection, log_id: str, *, rebuild: bool
) -> Ingested:
    import duckdb

    marks = None if rebuild else _published_marks(directory, log_id)
    last = checking.last_sequence(journal)
    if marks is not None and marks[0] > last:
        raise DamagedLog(
            f"{JOURNAL} of the log {directory} ends at record {last}, but {marks[0]} were taken "
            f"from it before: records were lost. Run `isonomy verify --log {directory}`, and "
            "restore the journal from a backup.",
            path=str(directory),
            file=JOURNAL,
        )
    if marks is not None and marks[0] == last:
        return Ingested(0, 0, last, False)
    try:
        _discard(directory)
        try:
            with _Stopping():
                done = _work(directory, journal, log_id, marks)
                database.flush(journal)  # What is published must not be lost from the journal.
                _publish(directory)
        finally:
            _discard(directory)
        return done
    except duckdb.Error as error:
        raise LogUnwritable(
            f"The DuckDB log of {directory} can't be written ({error}). Check that its disk has "
            f"room; if it has, rebuild {AUDIT} with ReplayLog.refresh(rebuild=True).",
            path=str(directory),
        ) from error
    except OSError as error:
        raise LogUnwritable(
            f"The DuckDB log of {directory} can't be published: {error.strerror or error}. Check "
            "rights and room.",
            path=str(directory),
        ) from error


def _published_marks(directory: LogDirectory, log_id: str) -> list[int] | None:
    """Return the high-water marks of the published file: last record, last row of contents.

    `None` where there is no published file, or one of another version.

    Raises:
        DamagedLog: it can't be read, or is another log's.
    """
    import duckdb

    if not directory.audit.exists():
        return None
    try:
        with duckdb.connect(str(directory.audit), read_only=True, config=_CONFIG) as published:
            known = audit.state(published)
        if known.get("schema") != str(audit.AUDIT_SCHEMA):
            return None
        if known.get("log") != log_id:
            raise damaged(directory, ValueError("it belongs to another log"))
        return [int(known["records"]), int(known["contents"])]
    except (duckdb.Error, UnicodeDecodeError, KeyError, ValueError) as error:
        raise damaged(directory, error) from error


def _work(
    directory: LogDirectory, journal: sqlite3.Connection, log_id: str, marks: list[int] | None
) -> Ingested:
    """Make the working file: the published one, or an empty one, and what the journal adds."""
    import duckdb

    fresh = marks is None
    marks = marks or [0, 0]
    if not fresh:
        copied(directory.audit, directory.ingest)
    with duckdb.connect(str(directory.ingest), config=_CONFIG) as connection:
        directory.ingest.chmod(0o600)
        if fresh:
            connection.execute("BEGIN")
            audit.create_tables(connection)
            audit.create_views(connection)
            audit.set_state(connection, _state(log_id, marks))
            connection.execute("COMMIT")
        records = rows = 0
        for batch in _batches(journal, marks[0]):
            rows += _store(connection, journal, batch, marks, log_id)
            records += len(batch)
            if _Stopping.asked:
                break
        connection.execute("CHECKPOINT")
    return Ingested(records, rows, marks[0], fresh)


def _state(log_id: str, marks: list[int]) -> dict[str, object]:
    return {
        "schema": audit.AUDIT_SCHEMA,
        "log": log_id,
        "records": marks[0],
        "contents": marks[1],
    }


def waiting(journal: sqlite3.Connection, after: int) -> tuple[int, int]:
    """Return the number of records beyond `after`, and the bytes of what stands in them."""
    stored = "leaf" if journal.execute("PRAGMA user_version").fetchone()[0] == 1 else "payloads"
    records, held = journal.execute(
        f"SELECT count(*), coalesce(sum(length({stored})), 0) FROM records WHERE sequence > ?",
        (after,),
    ).fetchone()
    return int(records), int(held)


def _batches(journal: sqlite3.Connection, after: int) -> Iterator[list[checking.RawRecord]]:
    batch: list[checking.RawRecord] = []
    held = 0
    for raw in checking.read(journal, after, batch=_AT_ONCE):
        batch.append(raw)
        held += sum(
            len(payload.body) for payload in raw.payloads or () if isinstance(payload.body, bytes)
        )
        if len(batch) == BATCH or held >= BATCH_BYTES:
            yield batch
            batch, held = [], 0
    if batch:
        yield batch


def _store(
    connection: duckdb.DuckDBPyConnection,
    journal: sqlite3.Connection,
    batch: list[checking.RawRecord],
    marks: list[int],
    log_id: str,
) -> int:
    rows, contents = projected(journal, batch, marks[1])
    marks[:] = [batch[-1].sequence, max(marks[1], *contents, 0)]
    connection.execute("BEGIN")
    try:
        stored = audit.insert(connection, rows, contents.items())
        audit.set_state(connection, _state(log_id, marks))
        connection.execute("COMMIT")
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    return stored


def projected(
    journal: sqlite3.Connection, batch: list[checking.RawRecord], after: int
) -> tuple[projection.Projection, dict[int, bytes]]:
    """Return the rows of a batch, and the contents it uses whose number is beyond `after`.

    Rows of contents are numbered in the order of commits, so whatever lies beyond the mark is new;
    so is whatever stands in a record itself, with a number below zero.
    """
    known = checking.subjects(journal)
    rows = projection.empty()
    contents: dict[int, bytes] = {}
    for raw in batch:
        examined = checking.examine(raw, known)
        projection.project(examined, rows)
        if not examined.problems:
            for name, content in examined.contents.items():
                if content < 0 or content > after:
                    contents[content] = examined.payloads[name]
    return rows, contents


def copied(source: Path, target: Path) -> None:
    """Copy a file that nobody changes to a new one, 0600."""
    descriptor = os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    with source.open("rb") as read, os.fdopen(descriptor, "wb") as written:
        try:  # in the kernel: where the file system can share blocks, nothing is copied at all
            while os.copy_file_range(read.fileno(), written.fileno(), 1 << 30):
                pass
        except OSError:
            read.seek(0)
            written.truncate(0)
            written.seek(0)
            shutil.copyfileobj(read, written, 1 << 20)


def _publish(directory: LogDirectory) -> None:
    """Flush the working file, and put it in the place of the published one."""
    descriptor = os.open(directory.ingest, os.O_RDONLY)
    try:
        os.fchmod(descriptor, 0o400)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    directory.ingest.rename(directory.audit)
    descriptor = os.open(directory.path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _discard(directory: LogDirectory) -> None:
    """Delete the working file, whoever left it."""
    for file in (directory.ingest, directory.path / (INGEST + ".wal")):
        file.unlink(missing_ok=True)


def _complete_leaves(directory: LogDirectory, journal: sqlite3.Connection) -> None:
    leaves = LeavesFile(directory.leaves, writable=True)
    try:
        last = checking.last_sequence(journal)
        database.flush(journal)  # `leaves` must never know of more than the journal.
        absent = leaves.absent(last)
        leaves.fill(
            (sequence, digest)
            for sequence in absent
            for (digest,) in journal.execute(
                "SELECT leaf_hash FROM records WHERE sequence = ?", (sequence,)
            )
            if isinstance(digest, bytes) and len(digest) == HASH_BYTES
        )
    finally:
        leaves.close()


class _Stopping:
    """What SIGTERM does: while rows are taken it ends that, at any other time the process."""

    asked = False
    _working = False

    def __enter__(self) -> None:
        _Stopping._working = True

    def __exit__(self, *_: object) -> None:
        _Stopping._working = False

    @staticmethod
    def heed(*_: object) -> None:
        """Handle the signal."""
        if not _Stopping._working:
            sys.exit(0)
        _Stopping.asked = True


def main(arguments: list[str]) -> int:
    """Run the ingestion; the result goes to standard output as JSON, an error to standard error."""
    options = {"--rebuild", "--background"}
    rebuild = "--rebuild" in arguments
    paths = [argument for argument in arguments if argument not in options]
    if len(paths) != 1:
        print(
            "usage: python -m isonomy.replay.ingest DIR [--rebuild] [--background]", file=sys.stderr
        )
        return 2
    if "--background" in arguments:
        signal.signal(signal.SIGTERM, _Stopping.heed)
        os.nice(10)
    try:
        print(json.dumps(msgspec.to_builtins(ingest(paths[0], rebuild=rebuild))))
    except LogError as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
