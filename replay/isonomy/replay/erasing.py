"""Erasing: content of a call or a subject is taken out of the log, and every proof still holds.

What goes: the bodies, salts and addresses of payloads; for a subject its key. What stays: records,
which hold no content, the leaves over them, and content that is shared by everyone (the policy).
A payload that another call of the same subject holds too stays, and is listed.

In this order, each step such that a crash after it leaves nothing false, and `erase` again ends it:

1. A `Tombstone` that says what is about to be erased, appended like any record.
2. The published DuckDB log and whatever an ingestion left are deleted (under the log's lock, which
   is held until step 4 is done): readers make it anew from the journal.
3. The payloads are taken out of the journal in one transaction, with SQLite's `secure_delete`.
4. The journal is rewritten (VACUUM: moving rows leaves copies in pages that `secure_delete` does
   not see), and its write-ahead log cut to nothing.
5. The DuckDB log is made anew, and the snapshots that the log knows of.
6. A second `Tombstone`: it is done.

Writers go on meanwhile, as far as SQLite lets them in: they wait while the journal is rewritten.

Invariants
    - Only payloads that a tombstone before names are gone; verification reports every other.
    - The log's `leaves`, checkpoints and inclusion proofs are as they were.

Not reached: copies that were made of the log's files (backups, moved or copied snapshots, exports),
what a reader has open or in memory, and what stands in records themselves: ids, session, subject,
actor, tags. Blocks that a file system or a disk keeps of files deleted and overwritten are theirs.
"""

from __future__ import annotations

import os
import socket
import sqlite3
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Final, Literal

import msgspec

from isonomy.sdk.errors import InputError, LogError
from isonomy.sdk.records import Entry, Erased, Tombstone

from . import checking, database, packing
from .checking import TOMBSTONE
from .database import SHARED_SUBJECT
from .directory import INGEST, JOURNAL, LogDirectory
from .errors import DamagedLog, LogUnwritable, NoSuchCall
from .hashing import LeafContent
from .journal import JournalLog
from .proofs import BundledRecord

if TYPE_CHECKING:
    from .notes import Signer

What = Literal["call", "subject"]

_LEAF = msgspec.json.Decoder(LeafContent)
_PATIENCE: Final = 30.0
"""Seconds to wait for readers that still need what the write-ahead log holds."""


class Erasure(msgspec.Struct, frozen=True, kw_only=True):
    """What was erased.

    Attributes:
        what: whether a call's content was, or a subject's.
        target: the call's id, or the subject.
        tombstone: number of the record that says that it is done.
        call_id: that record's own id.
        erased: payloads that are gone.
        kept: payloads that stay, since other calls of the subject hold the same.
        at_ns: when, by the wall clock.
    """

    what: What
    target: str
    tombstone: int
    call_id: str
    erased: tuple[Erased, ...]
    kept: tuple[Erased, ...]
    at_ns: int

    @property
    def payloads(self) -> int:
        """How many payloads are gone."""
        return sum(len(each.payloads) for each in self.erased)


def erase(
    path: str | os.PathLike[str],
    *,
    call: str | None = None,
    subject: str | None = None,
    by: str,
    reason: str,
    clock: Callable[[], int] = time.time_ns,
) -> Erasure:
    """Erase the content of a call or of a subject, or end an erasure that was broken off.

    Records that are written while it runs are not among what is erased.

    Args:
        path: the log's directory.
        call: the call's whole id; or
        subject: whose content, as it stands in the records.
        by: who wants it; stands in the log for ever: an opaque id.
        reason: why; stands in the log for ever: no content.
        clock: nanoseconds since 1970, for the tombstones.

    Raises:
        InputError: not exactly one of `call` and `subject` was given, or `by` or `reason` is empty.
        NoSuchCall: the log has no such call, or nothing of this subject.
        DamagedLog: what is to be erased can't be read.
        LogError: the log can't be written, or readers kept it from being rewritten. What is gone is
            gone; call it again.
    """
    what, target = _target(call, subject)
    if not by.strip() or not reason.strip():
        raise InputError("say who has it erased, and why: both stand in the tombstone.")
    directory = LogDirectory(path)
    directory.require()
    with (
        JournalLog(directory.path) as log,
        directory.locked(),  # of two erasures of the same one finds it done
        database.explained(directory, writing=True),
    ):
        planned = _plan(directory, what, target)
        before = _tombstones(directory, what, target)
        if not planned.records and not before:
            raise _nothing(directory, what, target)
        begun = [stone for _, stone in before if not stone.done]
        if planned.erased and not _named(planned.erased, begun):
            stone = _stone(what, target, by, reason, planned.erased, planned.kept, clock())
            log.append([Entry(stone)])
            begun.append(stone)
        elif before and before[-1][1].done:
            return _erasure(*before[-1])
        _drop_published(directory)
        kept = _take_out(directory, planned)
        _rewrite(directory)
    _renew(directory)
    with JournalLog(directory.path) as log, database.explained(directory, writing=True):
        gone = _still_gone(directory, begun)
        done = _stone(what, target, by, reason, gone, kept, clock(), done=True)
        (number,) = log.append([Entry(done)])
    return _erasure(number, done)


def _target(call: str | None, subject: str | None) -> tuple[What, str]:
    if (call is None) == (subject is None) or "" in (call, subject):
        raise InputError("name what to erase: either a call, by its id, or a subject.")
    return ("call", call) if call is not None else ("subject", str(subject))


def _nothing(directory: LogDirectory, what: What, target: str) -> NoSuchCall:
    named = f"no call {target!r}" if what == "call" else f"nothing of a subject {target!r}"
    return NoSuchCall(
        f"The log {directory} has {named}. Give the whole id, as it stands in the view calls.",
        path=str(directory),
        nearest=(),
    )


def _erasure(number: int, stone: Tombstone) -> Erasure:
    return Erasure(
        what=stone.what,
        target=stone.target,
        tombstone=number,
        call_id=stone.call_id,
        erased=stone.erased,
        kept=stone.kept,
        at_ns=stone.wall_ns,
    )


def _stone(
    what: What,
    target: str,
    by: str,
    reason: str,
    erased: tuple[Erased, ...],
    kept: tuple[Erased, ...],
    now: int,
    *,
    done: bool = False,
) -> Tombstone:
    name = TOMBSTONE + os.urandom(16).hex()
    return Tombstone(
        call_id=name,
        session=name,
        subject=name,
        wall_ns=now,
        monotonic_ns=time.monotonic_ns(),
        host=socket.gethostname(),
        process=os.getpid(),
        what=what,
        target=target,
        by=by,
        reason=reason,
        done=done,
        erased=erased,
        kept=kept,
    )


def _tombstones(directory: LogDirectory, what: What, target: str) -> list[tuple[int, Tombstone]]:
    with closing(database.connect(directory, writable=False)) as journal:
        return [
            (number, stone)
            for number, stone in checking.tombstones(journal)
            if (stone.what, stone.target) == (what, target)
        ]


def _named(erased: Iterable[Erased], stones: Iterable[Tombstone]) -> bool:
    """Return whether tombstones name all that is to be erased."""
    known = {(each.sequence, name) for s in stones for each in s.erased for name in each.payloads}
    return all((each.sequence, name) in known for each in erased for name in each.payloads)


# What is to be erased.


class _Plan(msgspec.Struct):
    """`records` are the numbers of the target's records; `last` the last that was looked at.

    `others` are rows of contents that records of the same subjects use which are no target.
    """

    records: list[int] = []
    erased: tuple[Erased, ...] = ()
    kept: tuple[Erased, ...] = ()
    subjects: set[str] = set()
    others: set[int] = set()
    last: int = 0


_SUBJECT = (
    "CASE WHEN json_valid(CAST(leaf AS TEXT))"
    " THEN json_extract(CAST(leaf AS TEXT), '$.record.subject') END"
)


def _plan(directory: LogDirectory, what: What, target: str) -> _Plan:
    plan = _Plan()
    with closing(database.connect(directory, writable=False)) as journal:
        journal.execute("BEGIN")
        last = checking.last_sequence(journal)
        where = "call_id" if what == "call" else _SUBJECT
        plan.records = [
            int(sequence)
            for (sequence,) in journal.execute(
                f"SELECT sequence FROM records WHERE {where} = ? ORDER BY sequence", (target,)
            )
        ]
        for number in plan.records:
            (leaf,) = journal.execute(
                "SELECT leaf FROM records WHERE sequence = ?", (number,)
            ).fetchone()
            plan.subjects.add(_read_leaf(directory, number, leaf)[0])
        _look_at_others(journal, directory, plan, last)
        plan.erased, plan.kept = _sorted_out(journal, directory, plan)
    return plan


def _look_at_others(
    journal: sqlite3.Connection, directory: LogDirectory, plan: _Plan, last: int
) -> None:
    """Note which contents other records of the subjects use, up to record `last`."""
    own = set(plan.records)
    for subject in sorted(plan.subjects):
        for sequence, stored in journal.execute(
            f"SELECT sequence, payloads FROM records WHERE sequence > ? AND sequence <= ?"
            f" AND {_SUBJECT} = ?",
            (plan.last, last, subject),
        ):
            if sequence not in own:
                plan.others.update(
                    row for _, row in _unpacked(directory, sequence, stored) if type(row) is int
                )
    plan.last = last


def _sorted_out(
    journal: sqlite3.Connection, directory: LogDirectory, plan: _Plan
) -> tuple[tuple[Erased, ...], tuple[Erased, ...]]:
    """Return what of the records is to go, and what stays as others use it."""
    erased: list[Erased] = []
    kept: list[Erased] = []
    for number, names, payloads in _payloads(journal, directory, plan.records):
        going: list[str] = []
        staying: list[str] = []
        for name, (_, body) in zip(names, payloads, strict=True):
            if body is None or (type(body) is int and _shared(journal, body)):
                continue
            (staying if body in plan.others else going).append(name)
        if going:
            erased.append(Erased(number, tuple(going)))
        if staying:
            kept.append(Erased(number, tuple(staying)))
    return tuple(erased), tuple(kept)


def _payloads(
    journal: sqlite3.Connection, directory: LogDirectory, numbers: Iterable[int]
) -> Iterable[tuple[int, tuple[str, ...], tuple[packing.Kept, ...]]]:
    """Yield records with the names and the stored form of their payloads."""
    for number in numbers:
        leaf, stored = journal.execute(
            "SELECT leaf, payloads FROM records WHERE sequence = ?", (number,)
        ).fetchone()
        names, payloads = (
            _read_leaf(directory, number, leaf)[1],
            _unpacked(directory, number, stored),
        )
        if len(names) != len(payloads):
            raise _damaged(directory, number)
        yield number, names, payloads


def _shared(journal: sqlite3.Connection, row: int) -> bool:
    found = journal.execute("SELECT subject FROM contents WHERE id = ?", (row,)).fetchone()
    return found is not None and found[0] == SHARED_SUBJECT


def _read_leaf(directory: LogDirectory, number: int, leaf: object) -> tuple[str, tuple[str, ...]]:
    """Return a leaf's subject, and the names of its payloads."""
    try:
        if isinstance(leaf, bytes):
            content = _LEAF.decode(leaf)
            subject = msgspec.json.decode(content.record)["subject"]
            return subject, tuple(each.name for each in content.payloads)
    except (msgspec.MsgspecError, UnicodeDecodeError, KeyError):
        pass
    raise _damaged(directory, number)


def _unpacked(directory: LogDirectory, number: int, stored: object) -> tuple[packing.Kept, ...]:
    kept = packing.unpacked(stored)
    if kept is None:
        raise _damaged(directory, number)
    return kept


def _damaged(directory: LogDirectory, number: int) -> DamagedLog:
    return DamagedLog(
        f"{JOURNAL}: record {number} of the log {directory} is damaged, so it can't be told what "
        f"is to be erased. Run `isonomy verify --log {directory}`, and restore it from a backup.",
        path=str(directory),
        file=JOURNAL,
    )


# Taking it out.


def _drop_published(directory: LogDirectory) -> None:
    """Delete every file that holds rows made from the journal; the caller holds the lock."""
    try:
        for file in (directory.audit, directory.ingest, directory.path / (INGEST + ".wal")):
            file.unlink(missing_ok=True)
        descriptor = os.open(directory.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise LogUnwritable(
            f"{error.filename} can't be deleted: {error.strerror or error}. Check the rights to "
            f"{directory}, and erase again.",
            path=str(directory),
        ) from error


def _take_out(directory: LogDirectory, plan: _Plan) -> tuple[Erased, ...]:
    """Take the plan's payloads out of the journal, in one transaction; return what stays."""
    with closing(database.connect(directory, writable=True)) as journal:
        journal.execute("BEGIN IMMEDIATE")
        try:
            # What was written since the plan was made may use what was to go.
            _look_at_others(journal, directory, plan, checking.last_sequence(journal))
            going, kept = _sorted_out(journal, directory, plan)
            names = {each.sequence: set(each.payloads) for each in going}
            rows: set[int] = set()
            for number, listed, payloads in list(_payloads(journal, directory, names)):
                left = []
                for name, payload in zip(listed, payloads, strict=True):
                    if name not in names[number]:
                        left.append(payload)
                        continue
                    left.append(packing.ERASED)
                    if type(payload[1]) is int:
                        rows.add(payload[1])
                journal.execute(
                    "UPDATE records SET payloads = ? WHERE sequence = ?",
                    (packing.packed(left), number),
                )
            journal.executemany("DELETE FROM contents WHERE id = ?", [(row,) for row in rows])
            for subject in plan.subjects:
                journal.execute(
                    "DELETE FROM subjects WHERE subject = ? AND id NOT IN (SELECT subject FROM"
                    " contents)",
                    (subject,),
                )
            journal.execute("COMMIT")
        except BaseException:
            if journal.in_transaction:
                journal.execute("ROLLBACK")
            raise
    return kept


def _rewrite(directory: LogDirectory) -> None:
    """Rewrite the journal, and cut its write-ahead log; the caller holds the log's lock.

    This is the one checkpoint that cuts it. It runs alone (every other is under the same lock), and
    with SQLite's lock for writers, so that none of them begins the write-ahead log anew meanwhile.
    """
    with closing(database.connect(directory, writable=True)) as journal:
        journal.execute("VACUUM")
        until = time.monotonic() + _PATIENCE
        while True:
            busy, _, _ = journal.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            if not busy:
                return
            if time.monotonic() > until:
                raise LogUnwritable(
                    f"The content is erased, but readers of the log {directory} keep its "
                    "write-ahead log from being cut, which still holds it. Close them, and erase "
                    "again.",
                    path=str(directory),
                    passes=True,
                )
            time.sleep(0.05)


def _still_gone(directory: LogDirectory, stones: Iterable[Tombstone]) -> tuple[Erased, ...]:
    """Return what of these tombstones is gone: something may have stayed after all."""
    named: dict[int, set[str]] = {}
    for stone in stones:
        for each in stone.erased:
            named.setdefault(each.sequence, set()).update(each.payloads)
    gone = []
    with closing(database.connect(directory, writable=False)) as journal:
        for number, names, payloads in _payloads(journal, directory, sorted(named)):
            missing = tuple(
                name
                for name, payload in zip(names, payloads, strict=True)
                if payload == packing.ERASED and name in named[number]
            )
            if missing:
                gone.append(Erased(number, missing))
    return tuple(gone)


def _renew(directory: LogDirectory) -> None:
    """Make the DuckDB log anew, and the snapshots from it.

    Where it can't be made and there is no snapshot, the next reader does it.
    """
    from .ingest import refresh
    from .snapshot import listed, renew

    try:
        refresh(directory.path)
        with directory.locked():
            renew(directory)
    except LogError:
        if listed(directory):
            raise


# Telling others.


class Certificate(msgspec.Struct, frozen=True, kw_only=True):
    """What shows to others that content was erased.

    `erasure` says what, and `not_reached` what no erasure reaches. The rest is the bundle of
    `isonomy.replay.proofs` that proves the tombstone, so ``verify_proof.py`` checks it; without a
    signer it has neither checkpoint nor proof, and proves nothing.
    """

    log: str
    erasure: Erasure
    not_reached: str = (
        "Copies made of the log's files before: backups, exports, snapshots that were moved or "
        "copied. Records, which stay, hold no content, but ids, session, subject, actor and tags."
    )
    format: str
    call_id: str
    checkpoint: str
    key: tuple[str, ...]
    records: tuple[BundledRecord, ...]


def certify(
    path: str | os.PathLike[str], erasure: Erasure, *, signers: Sequence[Signer] = ()
) -> Certificate:
    """Return the certificate of an erasure, under a checkpoint of the log as it stands.

    Args:
        path: the log's directory.
        erasure: as `erase` returned it.
        signers: who signs the checkpoint.

    Raises:
        LogError: the log can't be read, or does not hold the tombstone.
    """
    from . import proofs

    directory = LogDirectory(path)
    with (
        database.explained(directory, writing=False),
        closing(database.connect(directory, writable=False)) as journal,
    ):
        log_id = database.check(journal, directory, writing=False)["log"]
    bundle = proofs.prove(directory.path, erasure.call_id, signers=signers)
    records = bundle.records
    if not signers:
        records = tuple(msgspec.structs.replace(each, proof=()) for each in records)
    return Certificate(
        log=log_id,
        erasure=erasure,
        format=bundle.format,
        call_id=bundle.call_id,
        checkpoint=bundle.checkpoint if signers else "",
        key=bundle.key,
        records=records,
    )
