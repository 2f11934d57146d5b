"""The journal's SQLite file: its schema, how it is opened, and what SQLite's errors mean.

Invariants
    - Nothing but sqlite3 opens the journal's files in a process that uses it: closing a raw
      descriptor would drop SQLite's locks.
    - WAL mode, every transaction flushed (``synchronous=FULL``) unless its writer is told not to
      (`isonomy.replay.durability`), deleted content overwritten (``secure_delete``).
    - No automatic checkpoints: `checkpoint` is the only one, under the log's lock and with writers
      kept out. SQLite before 3.51.3 can corrupt a write-ahead log that one connection resets while
      a second checkpoint runs. (Python before 3.12 can't switch off the checkpoint which SQLite
      runs as the very last connection closes; that one holds the file alone, so nothing races it.)
    - No connection survives a fork (`isonomy.replay.journal` closes its own before one).
"""

from __future__ import annotations

import os
import sqlite3
import sys
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from typing import Final
from urllib.parse import quote

from isonomy.sdk.errors import LogError

from . import packing
from .directory import JOURNAL, LogDirectory
from .errors import DamagedLog, LogUnwritable, NewerLog, NotALog
from .hashing import SHARED_KEY

SCHEMA: Final = 2
"""Version of the journal's tables; also in ``meta`` and in SQLite's user_version.

1 kept every payload in `contents`, tied to its record by rows of a table of their own. 2 keeps them
in the record's row: one row, one page, where there were four to ten. A log of version 1 is read as
it stands, and becomes one of version 2 when it is next written to.
"""

WAL_KEPT: Final = 64 << 20
"""Bytes of the write-ahead log's file that are kept for use again; beyond, it is cut."""

APPLICATION_ID: Final = 0x49534F4E  # "ISON"
FORMAT: Final = "isonomy journal"
SHARED_SUBJECT: Final = 0
"""Row of `subjects` for shared content; its subject is NULL, its key 32 zero bytes."""

_COMMON: Final = (
    "CREATE TABLE meta (name TEXT PRIMARY KEY NOT NULL, value TEXT NOT NULL) WITHOUT ROWID",
    "CREATE TABLE subjects (id INTEGER PRIMARY KEY NOT NULL, subject TEXT UNIQUE, key BLOB NOT "
    "NULL)",
    "CREATE INDEX records_by_call ON records (call_id)",
    "CREATE TABLE contents (id INTEGER PRIMARY KEY NOT NULL, subject INTEGER NOT NULL,"
    " address BLOB NOT NULL, body BLOB NOT NULL)",
    "CREATE UNIQUE INDEX contents_by_address ON contents (subject, address)",
)
_RECORDS: Final = (
    "CREATE TABLE records (sequence INTEGER PRIMARY KEY NOT NULL, call_id TEXT NOT NULL,"
    " kind TEXT NOT NULL, leaf BLOB NOT NULL, leaf_hash BLOB NOT NULL"
)
TABLES: Final[Mapping[int, tuple[str, ...]]] = {
    1: (
        *_COMMON[:2],
        _RECORDS + ")",
        *_COMMON[2:],
        "CREATE TABLE payloads (sequence INTEGER NOT NULL, position INTEGER NOT NULL,"
        " content INTEGER NOT NULL, salt BLOB NOT NULL, PRIMARY KEY (sequence, position)) WITHOUT "
        "ROWID",
    ),
    2: (*_COMMON[:2], _RECORDS + ", payloads BLOB)", *_COMMON[2:]),
}
"""What each version lays down. `records.leaf` holds the hashed bytes; the columns beside it are for
finding. `records.payloads` holds the payloads in the order of the leaf, as `isonomy.replay.packing`
writes them: those that may come again in the subject by their row in `contents`."""


def defined(sql: str) -> tuple[str, str, str]:
    """Return kind, name and table of what one of `TABLES` defines."""
    words = sql.split()
    at = words.index("TABLE") if "TABLE" in words else words.index("INDEX")
    name = words[at + 1]
    table = name if words[at] == "TABLE" else words[words.index("ON") + 1]
    return words[at].lower(), name, table


FAILURES: Final = (sqlite3.Error, UnicodeDecodeError)
"""What sqlite3 raises over a damaged file: its message may quote bytes that are no text."""


_PASSES: Final = tuple(
    f"SQLITE_{name}"
    for name in ("READONLY", "CANTOPEN", "PERM", "FULL", "BUSY", "LOCKED", "PROTOCOL", "IOERR")
)
"""Errors that may be gone later, with the journal as it is."""


@contextmanager
def explained(directory: LogDirectory, *, writing: bool) -> Iterator[None]:
    """Turn whatever SQLite raises into one of the log's errors."""
    try:
        yield
    except FAILURES as error:
        raise explain(error, directory, writing=writing) from error


def explain(error: Exception, directory: LogDirectory, *, writing: bool) -> LogError:
    """Return the log's error for one of SQLite's, naming the log and what to do."""
    name = getattr(error, "sqlite_errorname", None) or ""
    path = str(directory)
    verb = "written" if writing else "read"
    if name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB", "SQLITE_FORMAT")) or not name:
        # Without an error code the text came from Python's own reading of a stored value.
        return DamagedLog(
            f"{JOURNAL} of the log {path} is damaged ({error}). Run `isonomy verify --log {path}` "
            "to see what is, and restore it from a backup.",
            path=path,
            file=JOURNAL,
        )
    if name == "SQLITE_ERROR":
        return DamagedLog(
            f"{JOURNAL} of the log {path} lacks tables that belong there ({error}). Restore it "
            "from a backup.",
            path=path,
            file=JOURNAL,
        )
    advice = {
        "SQLITE_READONLY": "it is read-only. Make the directory and its files writable for this "
        "user.",
        "SQLITE_CANTOPEN": "its files can't be opened. Check that they exist and belong to this "
        "user, and that the directory is writable (SQLite keeps its index of the write-ahead log "
        "there).",
        "SQLITE_PERM": "access is denied. Check that its files belong to this user.",
        "SQLITE_FULL": "the disk is full. Free some room; nothing of this batch was recorded.",
        "SQLITE_BUSY": "other processes held its lock for too long. Find out what blocks it, or "
        "lessen the load.",
        "SQLITE_LOCKED": "it is locked. Find out what blocks it.",
        "SQLITE_IOERR": "the disk reports an error. Look into the system's log, and move the log "
        "to a sound disk.",
        "SQLITE_TOOBIG": "a record is larger than SQLite's limit of 1 GB. Record less content.",
    }
    if not writing:
        advice["SQLITE_READONLY"] = (
            "SQLite must write its index of the write-ahead log beside it, and this directory is "
            "read-only. Copy the log to a writable directory, and read it there."
        )
    reason = next(
        (text for code, text in advice.items() if name.startswith(code)), "see the cause."
    )
    message = f"The log {path} can't be {verb} ({error}): {reason}"
    if not writing:
        return LogError(message, path=path)
    return LogUnwritable(message, path=path, passes=name.startswith(_PASSES))


def connect(
    directory: LogDirectory,
    *,
    writable: bool,
    busy_seconds: float = 30.0,
    flushed: bool = True,
) -> sqlite3.Connection:
    """Open the journal's file as it is. Transactions are explicit.

    What is written is flushed with each of them, unless `flushed` is false; then with the next that
    is, by whichever process, or at a checkpoint.

    The caller serializes the use of a connection; any thread may use it. Raises `sqlite3.Error`.
    """
    uri = f"file:{quote(str(directory.journal))}?mode={'rw' if writable else 'ro'}"
    if not writable and at_rest(directory):
        uri += "&immutable=1"
    connection = sqlite3.connect(
        uri, uri=True, isolation_level=None, timeout=busy_seconds, check_same_thread=False
    )
    try:
        if sys.version_info >= (3, 12):
            connection.setconfig(sqlite3.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, True)
        connection.execute("PRAGMA wal_autocheckpoint=0")
        connection.execute("PRAGMA trusted_schema=OFF")
        if writable:
            connection.execute(f"PRAGMA synchronous={'FULL' if flushed else 'NORMAL'}")
            connection.execute("PRAGMA secure_delete=ON")
            connection.execute(f"PRAGMA journal_size_limit={WAL_KEPT}")
        else:
            # A text column whose bytes were damaged must reach verification instead of failing the
            # whole query.
            connection.text_factory = lambda raw: raw.decode("utf-8", "surrogateescape")
    except BaseException:
        connection.close()
        raise
    return connection


def at_rest(directory: LogDirectory) -> bool:
    """Tell whether nobody can be writing, so that SQLite needs no files of its own to read.

    True for a directory that this user can't write to, without a write-ahead log.
    """
    wal = directory.path / (JOURNAL + "-wal")
    try:
        return not os.access(directory.path, os.W_OK, effective_ids=True) and (
            not wal.exists() or not wal.stat().st_size
        )
    except OSError:
        return False


def migrate(connection: sqlite3.Connection) -> None:
    """Make a journal of version 1 one of version 2, in one transaction; no other is touched."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        if connection.execute("PRAGMA user_version").fetchone()[0] == 1:
            connection.execute("ALTER TABLE records ADD COLUMN payloads BLOB")
            connection.create_function("packed", 1, packing.packed_text, deterministic=True)
            connection.execute(
                "UPDATE records SET payloads = packed((SELECT json_group_array(json_array("
                "hex(salt), content)) FROM (SELECT salt, content FROM payloads p WHERE p.sequence"
                " = records.sequence ORDER BY position)))"
            )
            connection.execute("DROP TABLE payloads")
            connection.execute("UPDATE meta SET value = '2' WHERE name = 'schema'")
            connection.execute("PRAGMA user_version=2")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def create(connection: sqlite3.Connection, log_id: str) -> None:
    """Lay down the schema in an empty file, in one transaction."""
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("BEGIN IMMEDIATE")
    try:
        for statement in TABLES[SCHEMA]:
            connection.execute(statement)
        connection.executemany(
            "INSERT INTO meta VALUES (?, ?)",
            [("format", FORMAT), ("schema", str(SCHEMA)), ("log", log_id)],
        )
        connection.execute("INSERT INTO subjects VALUES (?, NULL, ?)", (SHARED_SUBJECT, SHARED_KEY))
        connection.execute(f"PRAGMA application_id={APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version={SCHEMA}")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def is_empty(connection: sqlite3.Connection) -> bool:
    """Tell whether the file holds no table at all."""
    (count,) = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    return not count


def check(
    connection: sqlite3.Connection, directory: LogDirectory, *, writing: bool
) -> dict[str, str]:
    """Return the journal's `meta`, having checked that it is one and of a version that can be used.

    Raises:
        NotALog: an SQLite file, but no journal.
        NewerLog: of a later schema, and `writing`.
        DamagedLog: it contradicts itself.
    """
    path = str(directory)
    names = {name for (name,) in connection.execute("SELECT name FROM sqlite_schema")}
    application = connection.execute("PRAGMA application_id").fetchone()[0]
    if application != APPLICATION_ID and "meta" not in names:
        raise NotALog(
            f"{directory.journal} is empty, or not the journal of a log any more. Restore it from "
            "a backup, or name another directory.",
            path=path,
        )
    meta = dict(connection.execute("SELECT name, value FROM meta").fetchall())
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if (
        application != APPLICATION_ID
        or meta.get("format") != FORMAT
        or meta.get("schema") != str(version)
        or not {"format", "schema", "log"} <= set(meta)
    ):
        raise DamagedLog(
            f"{JOURNAL} of the log {path} is damaged: its header and its table meta disagree. Run "
            f"`isonomy verify --log {path}`, and restore it from a backup.",
            path=path,
            file=JOURNAL,
        )
    if version > SCHEMA and writing:
        raise NewerLog(
            f"The log {path} was written by a later version of isonomy (schema {version}; this one "
            f"writes {SCHEMA}). It can be read; to write to it, upgrade isonomy.",
            path=path,
            version=version,
        )
    if version < 1:
        raise DamagedLog(
            f"{JOURNAL} of the log {path} claims schema {version}, which never was. Restore it "
            "from a backup.",
            path=path,
            file=JOURNAL,
        )
    return meta


def flush(connection: sqlite3.Connection) -> None:
    """Flush whatever any process has written so far.

    A transaction that changes nothing, and yet writes a page (an UPDATE to equal values writes
    none, and so flushes nothing).
    """
    connection.execute(f"PRAGMA application_id={APPLICATION_ID}")


def checkpoint(directory: LogDirectory) -> None:
    """Move the write-ahead log into the database; the caller holds the log's lock.

    One connection keeps writers out while another one copies. Writers then start the write-ahead
    log from its beginning again as soon as no reader needs it. A checkpoint that resets the log
    itself would have to wait for readers with all writers waiting behind it, and in SQLite before
    3.51.3 could corrupt it.
    """
    with (
        closing(connect(directory, writable=True)) as holder,
        closing(connect(directory, writable=True)) as copier,
    ):
        holder.execute("BEGIN IMMEDIATE")
        copier.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        holder.execute("ROLLBACK")
