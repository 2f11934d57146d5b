"""Filling the DuckDB log from the journal, and publishing it.

    python -m isonomy.replay.ingest DIR [--rebuild]

One process does this at a time, under the log's lock, in a process of its own (`refresh` starts
it): DuckDB takes one writing process, and must not share one with whoever serves calls. Rows come
in batches, each in a transaction together with its high-water mark, so that a crash at any point
loses nothing and doubles nothing. The ingesting process's own file is published by copy and atomic
rename as the read-only `audit.duckdb`; readers that have the former one open keep it. Then the
journal's write-ahead log is moved into its database, and `leaves` is completed.

The own file holds nothing that the journal doesn't: where it can't be opened, or is of another
version, it is built anew.
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import msgspec

from isonomy.sdk.errors import LogError

from . import audit, checking, database, projection
from .directory import INGEST, JOURNAL, LogDirectory
from .errors import DamagedLog, LogUnwritable
from .hashing import HASH_BYTES
from .leaves import LeavesFile

if TYPE_CHECKING:
    import duckdb

BATCH = 1000
"""Records in a transaction."""


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
    with directory.locked(), database.explained(directory, writing=True):
        journal = database.connect(directory, writable=True)
        try:
            log_id = database.check(journal, directory, writing=True)["log"]
            if rebuild:
                _discard(directory)
            done = _fill(directory, journal, log_id)
            _complete_leaves(directory, journal)
        finally:
            journal.close()
        database.checkpoint(directory)
    return done


def _fill(directory: LogDirectory, journal: sqlite3.Connection, log_id: str) -> Ingested:
    import duckdb

    rebuilt = not directory.ingest.exists()
    try:
        try:
            connection, marks = _open(directory, log_id)
        except (duckdb.Error, _Foreign):
            _discard(directory)
            rebuilt = True
            connection, marks = _open(directory, log_id)
        try:
            last = checking.last_sequence(journal)
            if marks[0] > last:
                raise DamagedLog(
                    f"{JOURNAL} of the log {directory} ends at record {last}, but {marks[0]} were "
                    "taken from it before: records were lost. Run `isonomy verify --log "
                    f"{directory}`, and restore the journal from a backup.",
                    path=str(directory),
                    file=JOURNAL,
                )
            records = rows = 0
            for batch in _batches(journal, marks[0]):
                rows += _store(connection, journal, batch, marks, log_id)
                records += len(batch)
            connection.execute("CHECKPOINT")
        finally:
            connection.close()
        if records or rebuilt or not directory.audit.exists():
            _publish(directory)
        return Ingested(records, rows, marks[0], rebuilt)
    except duckdb.Error as error:
        raise LogUnwritable(
            f"The DuckDB log of {directory} can't be written ({error}). Check that its disk has "
            f"room, and delete {INGEST} if it persists.",
            path=str(directory),
        ) from error
    except OSError as error:
        raise LogUnwritable(
            f"The DuckDB log of {directory} can't be published: {error.strerror or error}. Check "
            "rights and room.",
            path=str(directory),
        ) from error


class _Foreign(Exception):
    """The ingesting process's file belongs to another log or another version."""


def _open(directory: LogDirectory, log_id: str) -> tuple[duckdb.DuckDBPyConnection, list[int]]:
    """Open the own file and return its high-water marks: last record, last row of contents."""
    import duckdb

    fresh = not directory.ingest.exists()
    connection = duckdb.connect(
        str(directory.ingest), config={"threads": 2, "checkpoint_threshold": "1GB"}
    )
    try:
        directory.ingest.chmod(0o600)
        if fresh:
            connection.execute("BEGIN")
            audit.create_tables(connection)
            audit.create_views(connection)
            audit.set_state(connection, _state(log_id, [0, 0]))
            connection.execute("COMMIT")
        known = audit.state(connection)
        if known.get("log") != log_id or known.get("schema") != str(audit.AUDIT_SCHEMA):
            raise _Foreign
        return connection, [int(known["records"]), int(known["contents"])]
    except BaseException:
        connection.close()
        raise


def _state(log_id: str, marks: list[int]) -> dict[str, object]:
    return {
        "schema": audit.AUDIT_SCHEMA,
        "log": log_id,
        "records": marks[0],
        "contents": marks[1],
    }


def _batches(journal: sqlite3.Connection, after: int) -> Iterator[list[checking.RawRecord]]:
    batch: list[checking.RawRecord] = []
    for raw in checking.read(journal, after):
        batch.append(raw)
        if len(batch) == BATCH:
            yield batch
            batch = []
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
    """Return the rows of a batch, and the contents it uses whose row is beyond `after`.

    Rows of contents are numbered in the order of commits, so whatever lies beyond the mark is new.
    """
    known = checking.subjects(journal)
    rows = projection.empty()
    contents: dict[int, bytes] = {}
    for raw in batch:
        examined = checking.examine(raw, known)
        projection.project(examined, rows)
        if not examined.problems:
            for name, content in examined.contents.items():
                if content > after:
                    contents[content] = examined.payloads[name]
    return rows, contents


def _publish(directory: LogDirectory) -> None:
    """Copy the own file, flush the copy, and put it in the place of the published one."""
    fresh = directory.path / "audit.duckdb.new"
    fresh.unlink(missing_ok=True)
    with (
        directory.ingest.open("rb") as source,
        os.fdopen(os.open(fresh, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as target,
    ):
        shutil.copyfileobj(source, target, 1 << 20)
        target.flush()
        os.fchmod(target.fileno(), 0o400)
        os.fsync(target.fileno())
    fresh.rename(directory.audit)
    descriptor = os.open(directory.path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _discard(directory: LogDirectory) -> None:
    for file in (directory.ingest, directory.path / (INGEST + ".wal")):
        file.unlink(missing_ok=True)


def _complete_leaves(directory: LogDirectory, journal: sqlite3.Connection) -> None:
    leaves = LeavesFile(directory.leaves, writable=True)
    try:
        absent = leaves.absent(checking.last_sequence(journal))
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


def main(arguments: list[str]) -> int:
    """Run the ingestion; the result goes to standard output as JSON, an error to standard error."""
    rebuild = "--rebuild" in arguments
    paths = [argument for argument in arguments if argument != "--rebuild"]
    if len(paths) != 1:
        print("usage: python -m isonomy.replay.ingest DIR [--rebuild]", file=sys.stderr)
        return 2
    try:
        print(json.dumps(msgspec.to_builtins(ingest(paths[0], rebuild=rebuild))))
    except LogError as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
