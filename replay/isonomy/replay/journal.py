"""The journal: where a record becomes durable.

`append` writes its entries in one transaction that is flushed to disk before it returns; sequence
numbers are assigned inside it, from 1 without gaps, across all threads and processes that write.
Either all entries are recorded or none, and then an error says why. What may be had instead of
that, for speed or to go on where nothing can be written, is in `isonomy.replay.durability`.

A journal is safe in a program that forks: before a fork the connection is closed (SQLite's locks
would be lost in the child without its knowing), after it both sides open their own when they next
write. What threads of the parent had queued, and gaps it has to record, stay with the parent.
"""

from __future__ import annotations

import atexit
import os
import random
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from isonomy.sdk.errors import LogError
from isonomy.sdk.records import Entry

from . import database, packing
from .database import SHARED_SUBJECT
from .directory import JOURNAL, LogDirectory
from .durability import (
    GROUP_SECONDS,
    LONGEST_PAUSE,
    OPENING_SECONDS,
    PROBE_SECONDS,
    SHORTEST_PAUSE,
    Durability,
    OnFull,
    Settings,
    passes,
    retried,
)
from .errors import DamagedLog, LogUnwritable, NotALog
from .gaps import Gaps
from .hashing import KEY_BYTES, SHARED_KEY, address
from .leaves import LeavesFile
from .prepared import Entropy, Prepared, Row
from .room import Room
from .turns import Queue, Request, Turns

if TYPE_CHECKING:
    from isonomy.sdk.resuming import Left

    from .background import Background

_SHARED_KNOWN = 64
"""Bodies of shared content whose row is remembered, more or less."""

_INSERT = "INSERT INTO records VALUES (?, ?, ?, ?, ?, ?)"
_BEGUN = "SELECT count(*) FROM (SELECT 1 FROM records WHERE call_id = ? LIMIT 1)"
_REOPEN = ("SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_PERM")
"""Errors after which a new connection is needed. Not those of writing: what a flush that failed has
left behind would be found valid by the next that opens the file."""


class JournalLog:
    """A log open for writing; the SDK's `Log`.

    Safe to use from several threads, and by several processes at a time.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        durability: Durability = "call",
        on_full: OnFull = "fail",
        wait_seconds: float = 30.0,
        background: bool = False,
        entropy: Entropy = os.urandom,
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        """Open the log at `path`, creating it if nothing is there.

        Args:
            path: the log's directory.
            durability: what has happened when `append` returns; see `durability`.
            on_full: what `append` does where nothing can be written; see `durability`.
            wait_seconds: how long `append` waits for other writers, and with `on_full="wait"` for
                anything that may pass, before it gives up.
            background: whether what is written is ingested without anybody's asking; see
                `isonomy.replay.background`.
            entropy: source of salts and keys.
            clock: nanoseconds since 1970, for records of gaps.

        Raises:
            InputError: a setting can't be used.
            NotALog: `path` is a file, or a directory with other things in it.
            NewerLog: a later version wrote it.
            LogUnwritable: no permission, no room, or locked; whatever `on_full` says.
            DamagedLog: it can't be trusted to go on from.
        """
        self.settings = Settings(durability=durability, on_full=on_full, wait_seconds=wait_seconds)
        self._directory = LogDirectory(path)
        self._file = str(self._directory.journal)
        self._entropy = entropy
        self._lock = Turns()
        self._queue = Queue()
        self._gaps = Gaps(str(self._directory), clock)
        self._group = durability == "group"
        self._crowded = False
        self._flushed = durability != "relaxed"
        self._connection: sqlite3.Connection | None = None
        self._leaves: LeavesFile | None = None
        self._room: Room | None = None
        self._identity: tuple[int, int] | None = None
        self._shared: dict[bytes, int] = {}
        self._log_id: str | None = None
        self._closed = False
        self._background: Background | None = None
        with self._lock:
            self._open()
        _open_journals.add(self)
        if background:
            from .background import Background

            self._background = Background(self._directory)

    @property
    def path(self) -> str:
        """The log's directory."""
        return str(self._directory)

    def append(self, entries: Sequence[Entry]) -> list[int]:
        """Make entries durable in one transaction and return their sequence numbers.

        With `on_full="gap"` the list is empty where they could not be recorded.

        Raises:
            LogError: nothing was recorded; the message says why and what to do.
            InputError: an entry is malformed.
        """
        if not entries:
            return []
        return self._append([Prepared(entry, self._entropy) for entry in entries])

    def claim(self, entry: Entry) -> bool:
        """Make a call's first record durable, unless the call has one already.

        Of several claims, by whatever processes, one succeeds; none where nothing can be written,
        not even with `on_full="gap"`.

        Raises:
            LogError: as `append`.
        """
        return bool(self._append([Prepared(entry, self._entropy)], only_first=True))

    def left(self, call_id: str) -> Left | None:
        """Return what a call left that waits for a person; `None` where there is none.

        Raises:
            LogError: the log can't be read.
        """
        from .reading import ReplayLog
        from .waiting import left

        with ReplayLog(self.path) as log:
            return left(log, call_id)

    def _append(self, prepared: list[Prepared], *, only_first: bool = False) -> list[int]:
        """Insert records; with `only_first` none where the call has records already."""
        begun = time.monotonic()
        if self.settings.on_full == "wait":
            written = retried(
                lambda: self._submit(Request(prepared, begun, only_first)), self.settings
            )
        else:
            written = self._submit(Request(prepared, begun, only_first))
        if self._background is not None and written:
            self._background.note(written[-1])
        return written

    def _submit(self, request: Request) -> list[int]:
        """Queue a request, and write all that is queued unless another thread does."""
        self._queue.enter(request)
        if request.leads:
            taken: list[Request] = []
            try:
                with self._lock:
                    if self._group and (self._crowded or len(self._queue) > 1):
                        time.sleep(GROUP_SECONDS)  # Others queue meanwhile.
                    taken = self._queue.take()
                    self._crowded = len(taken) > 1
                    self._write(taken)
            finally:
                self._queue.leave(request, taken)
        if request.error is not None:
            raise request.error
        return request.sequences

    def close(self) -> None:
        """Record an open gap if that is possible now, and release files.

        Calling it twice is harmless.
        """
        self._settle()
        with self._lock:
            self._closed = True
            self._release()
        _open_journals.discard(self)
        if self._background is not None:
            self._background.close()

    def __enter__(self) -> JournalLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _settle(self) -> None:
        """Record an open gap, if that is possible now."""
        with self._lock:
            if self._gaps and not self._closed:
                with suppress(LogError):
                    self._commit([])

    # All below is called with the lock held.

    def _write(self, requests: list[Request]) -> None:
        """Write requests: all in one transaction, or if it fails as no lock or disk does, each."""
        try:
            self._commit(requests)
        except Exception as error:
            if len(requests) > 1 and not passes(error):
                for request in requests:
                    self._write([request])
                return
            self._fail(requests, error)

    def _fail(self, requests: list[Request], error: Exception) -> None:
        """Tell the threads; where calls are to go on, note what is lost instead."""
        for request in requests:
            if request.done:
                continue
            if self.settings.on_full == "gap" and passes(error) and not request.only_first:
                lost = ((entry.call_id, entry.kind) for entry in request.prepared)
                self._gaps.add(lost, error)
                request.done = True
            else:
                request.failed(error)

    def _commit(self, requests: list[Request]) -> None:
        """Write requests in one transaction, an open gap before them."""
        connection, leaves = self._usable()
        with database.explained(self._directory, writing=True):
            try:
                pause = SHORTEST_PAUSE
                while True:
                    try:
                        self._attempt(connection, leaves, requests)
                        break
                    except sqlite3.OperationalError as error:
                        if not _is_busy(error) or time.monotonic() > self._deadline(requests):
                            raise
                    # SQLite's own waiting sleeps for up to 100 ms, however soon the lock is free.
                    time.sleep(pause * (0.5 + random.random()))
                    pause = min(pause * 2, LONGEST_PAUSE)
            except sqlite3.Error as error:
                # Rights may come back without this connection's noticing: one that was opened
                # read-only stays so.
                if str(getattr(error, "sqlite_errorname", "")).startswith(_REOPEN):
                    self._release()
                raise
        if self._room is not None:
            self._room.make(connection)

    def _attempt(
        self, connection: sqlite3.Connection, leaves: LeavesFile, requests: list[Request]
    ) -> None:
        alone = len(requests) == 1 and not self._gaps
        if not (alone and self._alone(connection, leaves, requests[0])):
            self._together(connection, leaves, requests)

    def _deadline(self, requests: list[Request]) -> float:
        """Return until when to wait for a lock: as long as the one may that waits longest."""
        if self.settings.on_full == "gap" and self._gaps:
            return requests[-1].begun + PROBE_SECONDS if requests else 0.0
        oldest = min((request.begun for request in requests), default=0.0)
        return oldest + self.settings.wait_seconds

    def _alone(self, connection: sqlite3.Connection, leaves: LeavesFile, request: Request) -> bool:
        """Write a record that needs no other: one statement, and its own transaction.

        SQLite numbers it: the next after the highest there is.
        """
        if request.only_first or len(request.prepared) > 1:
            return False
        row = self._row(request.prepared[0])
        if row is None:
            return False
        first = connection.execute(_INSERT, row).lastrowid
        assert first is not None
        request.succeeded(first)
        self._mark(leaves, first, request.prepared)
        return True

    def _together(
        self, connection: sqlite3.Connection, leaves: LeavesFile, requests: list[Request]
    ) -> None:
        """Write the record of an open gap, and requests, in one transaction."""
        first = 0
        placed: list[tuple[Request, int]] = []
        prepared: list[Prepared] = []
        shared: dict[bytes, int] = {}
        execute = connection.execute
        try:
            execute("BEGIN IMMEDIATE")
            (first,) = execute("SELECT coalesce(max(sequence), 0) + 1 FROM records").fetchone()
            if self._gaps:
                lost = Prepared(self._gaps.entry(self._entropy(16).hex()), self._entropy)
                self._insert(connection, first, [lost], shared)
                prepared.append(lost)
            for request in requests:
                if request.only_first:
                    (begun,) = execute(_BEGUN, (request.prepared[0].call_id,)).fetchone()
                    if begun:
                        placed.append((request, 0))
                        continue
                at = first + len(prepared)
                self._insert(connection, at, request.prepared, shared)
                placed.append((request, at))
                prepared += request.prepared
            execute("COMMIT")
            _place(placed)
        except BaseException as error:
            if not first or isinstance(error, Exception) or connection.in_transaction:
                self._abandon(connection)
            else:  # An interrupt after the commit: what is written must not be written again.
                _place(placed)
                self._gaps.clear()
            raise
        if self._gaps:
            self._gaps.recorded()
        if len(self._shared) > _SHARED_KNOWN:
            self._shared.clear()
        self._shared.update(shared)
        self._mark(leaves, first, prepared)

    def _usable(self) -> tuple[sqlite3.Connection, LeavesFile]:
        if self._closed:
            raise LogUnwritable(f"The log {self} is closed. Open it again.", path=self.path)
        if self._connection is None or self._leaves is None:
            self._open()
        assert self._connection is not None
        assert self._leaves is not None
        if self._file_identity() != self._identity:
            raise self._moved()
        return self._connection, self._leaves

    def _moved(self) -> LogUnwritable:
        return LogUnwritable(
            f"The journal of the log {self} was moved or deleted while it was open. Put it "
            "back, or open the log anew.",
            path=self.path,
            passes=True,
        )

    def _open(self) -> None:
        directory = self._directory
        if self._log_id is None:
            directory.prepare()
        else:  # Opened again, after a fork or a failure: never begin another log in its place.
            try:
                directory.require()
            except NotALog as error:
                raise self._moved() from error
        with database.explained(directory, writing=True):
            try:
                if not directory.journal.exists() or not directory.journal.stat().st_size:
                    self._create()
                self._leaves = LeavesFile(directory.leaves, writable=True)
                connection = database.connect(
                    directory,
                    writable=True,
                    busy_seconds=OPENING_SECONDS
                    if self._log_id is None
                    else self.settings.wait_seconds,
                    flushed=self._flushed,
                )
            except OSError as error:
                self._release()
                raise LogUnwritable(
                    f"The log {self} can't be opened for writing: {error.strerror or error}. Check "
                    "that its directory and files are writable for this user, and that the disk "
                    "has room.",
                    path=self.path,
                    passes=True,
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
                connection.execute("PRAGMA busy_timeout=0")  # `_commit` waits by itself.
                self._recognize(meta["log"])
                self._refuse_lost_end(connection)
                if self._flushed:
                    with suppress(OSError):
                        self._room = Room(self._file + "-wal")
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
            connection = database.connect(directory, writable=True, busy_seconds=OPENING_SECONDS)
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

    def _row(self, entry: Prepared) -> Row | None:
        """Return the row of a record that needs no other one; `None` where it does."""
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
        self,
        connection: sqlite3.Connection,
        first: int,
        prepared: list[Prepared],
        shared: dict[bytes, int],
    ) -> None:
        """Insert records from number `first` on; rows of shared content are added to `shared`."""
        keys: dict[str, tuple[int, bytes]] = {}
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
            connection.execute(_INSERT, entry.row(sequence, kept))

    def _mark(self, leaves: LeavesFile, first: int, prepared: list[Prepared]) -> None:
        """Tell the second witness of records, unless they are not durable yet.

        It is told of all of them at the next ingestion, too.
        """
        if self._flushed and prepared:
            with suppress(OSError):
                leaves.mark(first, [entry.hash for entry in prepared])

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
        room, self._room = self._room, None
        self._shared.clear()
        if leaves is not None:
            leaves.close()
        if room is not None:
            room.close()
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
        self._queue.stop()
        self._release()

    def _after_fork(self, *, child: bool) -> None:
        if child:
            self._gaps.clear()
        self._queue.go_on(child=child)
        self._lock.go_on()


def _is_busy(error: sqlite3.Error) -> bool:
    return str(getattr(error, "sqlite_errorname", "")).startswith("SQLITE_BUSY")


def _place(placed: list[tuple[Request, int]]) -> None:
    """Tell requests their numbers; 0 for what was not written since it need not be."""
    for request, first in placed:
        if first:
            request.succeeded(first)
        else:
            request.done = True


def open_log(
    path: str | os.PathLike[str],
    *,
    durability: Durability = "call",
    on_full: OnFull = "fail",
    wait_seconds: float = 30.0,
    background: bool = True,
) -> JournalLog:
    """Open the log at `path` for writing, creating it if nothing is there; see `JournalLog`."""
    return JournalLog(
        path,
        durability=durability,
        on_full=on_full,
        wait_seconds=wait_seconds,
        background=background,
    )


_open_journals: weakref.WeakSet[JournalLog] = weakref.WeakSet()
_forking = threading.local()  # Several threads may fork at the same time.


def _before_fork() -> None:
    _forking.journals = sorted(_open_journals, key=id)
    for journal in _forking.journals:
        journal._before_fork()


def _after_fork(*, child: bool) -> None:
    while _forking.journals:
        _forking.journals.pop()._after_fork(child=child)


os.register_at_fork(
    before=_before_fork,
    after_in_parent=lambda: _after_fork(child=False),
    after_in_child=lambda: _after_fork(child=True),
)


@atexit.register
def _at_exit() -> None:
    for journal in list(_open_journals):
        journal._settle()
