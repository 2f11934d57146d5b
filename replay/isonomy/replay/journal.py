"""The journal: where a record becomes durable.

`append` writes its entries in one transaction that is flushed to disk before it returns; sequence
numbers are assigned inside it, from 1 without gaps, across all threads and processes that write.
Either all entries are recorded or none, and then an error says why.

A journal is safe in a program that forks: before a fork the connection is closed (SQLite's locks
would be lost in the child without its knowing), after it both sides open their own when they next
write.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from isonomy.sdk.errors import InputError
from isonomy.sdk.records import Entry, Payload

from . import database, packing
from .database import SHARED_SUBJECT
from .directory import JOURNAL, LogDirectory
from .errors import DamagedLog, LogUnwritable
from .hashing import (
    KEY_BYTES,
    SALT_BYTES,
    SHARED_KEY,
    SHARED_SALT,
    Commitment,
    address,
    commitment,
    leaf_bytes,
    leaf_hash,
)
from .leaves import LeavesFile

if TYPE_CHECKING:
    from isonomy.sdk.resuming import Left

_REPEATED = "message/"
"""How the names of payloads begin that may come again in their subject: they are stored once."""

_SHARED_KNOWN = 64
"""Bodies of shared content whose row is remembered, more or less."""

Entropy = Callable[[int], bytes]
"""Returns that many random bytes; `os.urandom` outside tests."""


_INSERT = "INSERT INTO records VALUES (?, ?, ?, ?, ?, ?)"
Row = tuple[int | None, str, str, bytes, bytes, bytes]
_BEGUN = "SELECT 1 FROM records WHERE call_id = ? LIMIT 1"


class _Prepared:
    """An entry turned into what is stored, before the journal is locked for writing."""

    __slots__ = ("call_id", "hash", "kind", "leaf", "payloads", "subject")

    def __init__(self, entry: Entry, entropy: Entropy) -> None:
        record = entry.record
        if len({payload.name for payload in entry.payloads}) != len(entry.payloads):
            raise InputError(
                f"an entry of call {record.call_id!r} has two payloads of one name. Give each its "
                "own."
            )
        self.call_id = record.call_id
        self.kind = str(record.__struct_config__.tag)
        self.subject = record.subject
        self.payloads: list[tuple[Payload, bytes]] = [
            (payload, SHARED_SALT if payload.shared else entropy(SALT_BYTES))
            for payload in entry.payloads
        ]
        self.leaf = leaf_bytes(
            record,
            [
                Commitment(commitment(salt, payload.body), payload.name)
                for payload, salt in self.payloads
            ],
        )
        self.hash = leaf_hash(self.leaf)

    def repeats(self, payload: Payload) -> bool:
        """Return whether a payload may come again in its subject, and is stored where all find it.

        A subject of one call only (what a call without a session is) repeats nothing.
        """
        return payload.name.startswith(_REPEATED) and self.subject != self.call_id

    def row(self, sequence: int | None, kept: list[packing.Kept]) -> Row:
        """Return the record's row."""
        return (sequence, self.call_id, self.kind, self.leaf, self.hash, packing.packed(kept))


def _mark(leaves: LeavesFile, first: int, prepared: list[_Prepared]) -> None:
    """Tell the second witness of records; they are durable, and the next ingestion tells it too."""
    with suppress(OSError):
        leaves.mark(first, [entry.hash for entry in prepared])


class _Turns:
    """A lock that is given in turn.

    Python's own goes to whoever asks first after its release, mostly the thread that released it:
    a busy writer would keep others, and forks, waiting. Here whoever waits next bars the door.
    """

    def __init__(self) -> None:
        self._door = threading.Lock()
        self._lock = threading.Lock()

    def acquire(self) -> None:
        with self._door:
            self._lock.acquire()

    def release(self) -> None:
        self._lock.release()

    def stop(self) -> None:
        """Acquire the lock and bar the door, so that no other thread holds either over a fork."""
        self._door.acquire()
        self._lock.acquire()

    def go_on(self) -> None:
        """Undo `stop`."""
        self._lock.release()
        self._door.release()

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


class JournalLog:
    """A log open for writing; the SDK's `Log`.

    Safe to use from several threads, and by several processes at a time.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        entropy: Entropy = os.urandom,
        busy_seconds: float = 30.0,
    ) -> None:
        """Open the log at `path`, creating it if nothing is there.

        Args:
            path: the log's directory.
            entropy: source of salts and keys.
            busy_seconds: how long `append` waits for other writers before it gives up.

        Raises:
            NotALog: `path` is a file, or a directory with other things in it.
            NewerLog: a later version wrote it.
            LogUnwritable: no permission, no room, or locked.
            DamagedLog: it can't be trusted to go on from.
        """
        self._directory = LogDirectory(path)
        self._file = str(self._directory.journal)
        self._entropy = entropy
        self._busy_seconds = busy_seconds
        self._lock = _Turns()
        self._connection: sqlite3.Connection | None = None
        self._leaves: LeavesFile | None = None
        self._identity: tuple[int, int] | None = None
        self._shared: dict[bytes, int] = {}
        self._log_id: str | None = None
        self._closed = False
        with self._lock:
            self._open()
        _open_journals.add(self)

    @property
    def path(self) -> str:
        """The log's directory."""
        return str(self._directory)

    def append(self, entries: Sequence[Entry]) -> list[int]:
        """Make entries durable in one transaction and return their sequence numbers.

        Raises:
            LogError: nothing was recorded; the message says why and what to do.
            InputError: an entry is malformed.
        """
        return self._append([_Prepared(entry, self._entropy) for entry in entries])

    def claim(self, entry: Entry) -> bool:
        """Make a call's first record durable, unless the call has one already.

        Of several claims, by whatever processes, one succeeds.

        Raises:
            LogError: as `append`.
        """
        return bool(self._append([_Prepared(entry, self._entropy)], only_first=True))

    def left(self, call_id: str) -> Left | None:
        """Return what a call left that waits for a person; `None` where there is none.

        Raises:
            LogError: the log can't be read.
        """
        from .reading import ReplayLog
        from .waiting import left

        with ReplayLog(self.path) as log:
            return left(log, call_id)

    def _append(self, prepared: list[_Prepared], *, only_first: bool = False) -> list[int]:
        """Insert records; with `only_first` none where the call has records already."""
        if not prepared:
            return []
        with self._lock:
            connection, leaves = self._usable()
            with database.explained(self._directory, writing=True):
                try:
                    row = None if only_first or len(prepared) > 1 else self._alone(prepared[0])
                    if row is not None:
                        first = connection.execute(_INSERT, row).lastrowid
                        assert first is not None
                        _mark(leaves, first, prepared)
                        return [first]
                    connection.execute("BEGIN IMMEDIATE")
                    if only_first and connection.execute(_BEGUN, (prepared[0].call_id,)).fetchone():
                        connection.execute("ROLLBACK")
                        return []
                    first, shared = self._insert(connection, prepared)
                    connection.execute("COMMIT")
                except BaseException:
                    self._abandon(connection)
                    raise
            if len(self._shared) > _SHARED_KNOWN:
                self._shared.clear()
            self._shared.update(shared)
            _mark(leaves, first, prepared)
        return list(range(first, first + len(prepared)))

    def close(self) -> None:
        """Release files; calling it twice is harmless."""
        with self._lock:
            self._closed = True
            self._release()
        _open_journals.discard(self)

    def __enter__(self) -> JournalLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # All below is called with the lock held.

    def _usable(self) -> tuple[sqlite3.Connection, LeavesFile]:
        if self._closed:
            raise LogUnwritable(f"The log {self} is closed. Open it again.", path=self.path)
        if self._connection is None or self._leaves is None:
            self._open()
        assert self._connection is not None
        assert self._leaves is not None
        if self._file_identity() != self._identity:
            raise LogUnwritable(
                f"The journal of the log {self} was moved or deleted while it was open. Put it "
                "back, or open the log anew.",
                path=self.path,
            )
        return self._connection, self._leaves

    def _open(self) -> None:
        directory = self._directory
        if self._log_id is None:
            directory.prepare()
        else:  # Opened again, after a fork: never begin another log in its place.
            directory.require()
        with database.explained(directory, writing=True):
            try:
                if not directory.journal.exists() or not directory.journal.stat().st_size:
                    self._create()
                self._leaves = LeavesFile(directory.leaves, writable=True)
                connection = database.connect(
                    directory, writable=True, busy_seconds=self._busy_seconds
                )
            except OSError as error:
                self._release()
                raise LogUnwritable(
                    f"The log {self} can't be opened for writing: {error.strerror or error}. Check "
                    "that its directory and files are writable for this user, and that the disk "
                    "has room.",
                    path=self.path,
                ) from error
            self._connection = connection
            try:
                if database.is_empty(connection):
                    # Another process is still creating it, or died over it: both end under the
                    # lock.
                    self._create()
                meta = database.check(connection, directory, writing=True)
                if meta["schema"] != str(database.SCHEMA):
                    database.migrate(connection)
                self._recognize(meta["log"])
                self._refuse_lost_end(connection)
            except BaseException:
                self._release()
                raise
        self._identity = self._file_identity()

    def _recognize(self, log_id: str) -> None:
        if self._log_id not in (None, log_id):
            raise LogUnwritable(
                f"The log {self} was replaced by another one while it was open. Open the log anew.",
                path=self.path,
            )
        self._log_id = log_id

    def _create(self) -> None:
        directory = self._directory
        with directory.locked():
            directory.make(directory.journal)
            directory.make(directory.leaves)
            connection = database.connect(directory, writable=True, busy_seconds=self._busy_seconds)
            try:
                if not database.is_empty(connection):
                    return
                if directory.leaves.stat().st_size:
                    raise DamagedLog(
                        f"{JOURNAL} of the log {self} is empty, although the file leaves knows of "
                        "records. Restore it from a backup.",
                        path=self.path,
                        file=JOURNAL,
                    )
                database.create(connection, self._entropy(16).hex())
            finally:
                connection.close()
            for folder in (directory.path, directory.path.parent):
                descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                try:
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)

    def _refuse_lost_end(self, connection: sqlite3.Connection) -> None:
        assert self._leaves is not None
        known = self._leaves.last()  # Before the journal is asked: writers mark after they commit.
        last = connection.execute("SELECT coalesce(max(sequence), 0) FROM records").fetchone()[0]
        if known > last:
            raise DamagedLog(
                f"{JOURNAL} of the log {self} ends at record {last}, but the file leaves shows "
                f"that there were {known}: records were lost, perhaps with a deleted or damaged "
                "write-ahead log. Writing on would hide that. Restore the log from a backup, or "
                "keep it as it is for evidence and write to a new directory.",
                path=self.path,
                file=JOURNAL,
            )

    def _alone(self, entry: _Prepared) -> Row | None:
        """Return the row of a record that needs no other: one statement, and its own transaction.

        SQLite numbers it: the next after the highest there is.
        """
        kept: list[packing.Kept] = []
        for payload, salt in entry.payloads:
            if payload.shared:
                row = self._shared.get(payload.body)
                if row is None:
                    return None
                kept.append((salt, row))
            elif entry.repeats(payload):
                return None
            else:
                kept.append((salt, payload.body))
        return entry.row(None, kept)

    def _insert(
        self, connection: sqlite3.Connection, prepared: list[_Prepared]
    ) -> tuple[int, dict[bytes, int]]:
        """Return the first sequence number, and the rows of shared content that was looked up."""
        execute = connection.execute
        first = execute("SELECT coalesce(max(sequence), 0) + 1 FROM records").fetchone()[0]
        keys: dict[str, tuple[int, bytes]] = {}
        shared: dict[bytes, int] = {}
        for sequence, entry in enumerate(prepared, first):
            kept: list[packing.Kept] = []
            for payload, salt in entry.payloads:
                body = payload.body
                if payload.shared:
                    row = self._shared.get(body) or shared.get(body)
                    if row is None:
                        row = self._content(connection, SHARED_SUBJECT, SHARED_KEY, body)
                        shared[body] = row
                    kept.append((salt, row))
                elif entry.repeats(payload):
                    if entry.subject not in keys:
                        keys[entry.subject] = self._subject(connection, entry.subject)
                    kept.append((salt, self._content(connection, *keys[entry.subject], body)))
                else:
                    kept.append((salt, body))
            execute(_INSERT, entry.row(sequence, kept))
        return int(first), shared

    def _subject(self, connection: sqlite3.Connection, subject: str) -> tuple[int, bytes]:
        """Return row and key of a subject, adding it when new."""
        row: tuple[int, bytes] | None = connection.execute(
            "SELECT id, key FROM subjects WHERE subject = ?", (subject,)
        ).fetchone()
        if row is not None:
            return row
        key = self._entropy(KEY_BYTES)
        added = connection.execute("INSERT INTO subjects VALUES (NULL, ?, ?)", (subject, key))
        assert added.lastrowid is not None
        return added.lastrowid, key

    def _content(
        self, connection: sqlite3.Connection, subject: int, key: bytes, body: bytes
    ) -> int:
        """Return the row of a body within its subject, storing it when new."""
        place = address(key, body)
        row: tuple[int] | None = connection.execute(
            "SELECT id FROM contents WHERE subject = ? AND address = ?", (subject, place)
        ).fetchone()
        if row is not None:
            return row[0]
        added = connection.execute(
            "INSERT INTO contents VALUES (NULL, ?, ?, ?)", (subject, place, body)
        )
        assert added.lastrowid is not None
        return added.lastrowid

    def _abandon(self, connection: sqlite3.Connection) -> None:
        """Roll back; if even that fails, start from a new connection next time."""
        try:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
        except sqlite3.Error:
            self._release()

    def _release(self) -> None:
        connection, self._connection = self._connection, None
        leaves, self._leaves = self._leaves, None
        self._shared.clear()
        if leaves is not None:
            leaves.close()
        if connection is not None:
            connection.close()

    def _file_identity(self) -> tuple[int, int] | None:
        try:
            found = os.stat(self._file)  # noqa: PTH116 (every append asks)
        except OSError:
            return None
        return found.st_dev, found.st_ino

    def __str__(self) -> str:
        return self.path

    def __repr__(self) -> str:
        return f"JournalLog({self.path!r})"

    def _before_fork(self) -> None:
        self._lock.stop()
        self._release()

    def _after_fork(self) -> None:
        self._lock.go_on()


def open_log(path: str | os.PathLike[str]) -> JournalLog:
    """Open the log at `path` for writing, creating it if nothing is there; see `JournalLog`."""
    return JournalLog(path)


_open_journals: weakref.WeakSet[JournalLog] = weakref.WeakSet()
_forking = threading.local()  # Several threads may fork at the same time.


def _before_fork() -> None:
    _forking.journals = sorted(_open_journals, key=id)
    for journal in _forking.journals:
        journal._before_fork()


def _after_fork() -> None:
    while _forking.journals:
        _forking.journals.pop()._after_fork()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork)
