"""Reading records out of the journal, and checking each against its own hashes.

`read` gives the stored bytes as they are; `examine` re-derives from them everything that can be
re-derived and says in words what does not fit. Nothing here raises because of what is stored:
damage is a finding, not a failure.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from itertools import pairwise
from typing import Any

import msgspec

from isonomy.sdk.events import Event
from isonomy.sdk.records import Intent, Record, Result, Tombstone, header_of

from . import packing
from .database import SHARED_SUBJECT
from .hashing import SALT_BYTES, SHARED_SALT, LeafContent, address, commitment, leaf_hash

_LEAF = msgspec.json.Decoder(LeafContent)
_RECORD = msgspec.json.Decoder(Record)
_EVENTS = msgspec.json.Decoder(tuple[Event, ...])

_VARIABLES = 500
"""Variables of one statement; SQLite allows more."""

TOMBSTONE = "tombstone-"
"""How the ids of tombstones begin."""

FIRST = -(1 << 63)
"""Below every sequence number that a damaged row could hold."""


class Subjects(dict[Any, tuple[Any, Any]]):
    """Row of a subject: its name (`None` for shared content) and key.

    `erased` are the payloads that tombstones of the journal name, by record; `done` those whose
    erasure had come to its end.
    """

    def __init__(
        self,
        rows: Iterable[tuple[Any, tuple[Any, Any]]] = (),
        erased: Mapping[int, frozenset[str]] | None = None,
        done: Mapping[int, frozenset[str]] | None = None,
    ) -> None:
        super().__init__(rows)
        self.erased: Mapping[int, frozenset[str]] = erased or {}
        self.done: Mapping[int, frozenset[str]] = done or {}


class RawPayload(msgspec.Struct, frozen=True):
    """A payload as stored; of any type where damaged.

    `content` is its row in `contents`, which has `subject` and `address`, or (below zero, see
    `packing.number`) stands for a body that stands in its record.
    """

    position: Any
    content: Any
    salt: Any
    subject: Any
    address: Any
    body: Any


class RawRecord(msgspec.Struct, frozen=True):
    """A row of the journal's `records`, as stored; of any type where damaged.

    `payloads` is `None` where what holds them can't be read.
    """

    sequence: int
    call_id: Any
    kind: Any
    leaf: Any
    leaf_hash: Any
    payloads: list[RawPayload] | None


class Examined(msgspec.Struct, frozen=True):
    """A record after its examination.

    `record` is `None` if the leaf can't be read. `payloads` holds the bodies whose commitment fits,
    by name, `contents` the numbers of their bodies (`RawPayload.content`), `erased` the names of
    those that are gone as a tombstone says. `problems` is empty for an intact record.
    """

    raw: RawRecord
    record: Record | None
    commitments: tuple[tuple[str, str], ...]
    payloads: dict[str, bytes]
    contents: dict[str, int]
    problems: tuple[str, ...]
    erased: tuple[str, ...] = ()

    @property
    def call_id(self) -> str:
        """The call's id by the leaf, or by the column beside it where the leaf can't be read."""
        return self.record.call_id if self.record is not None else str(self.raw.call_id)


def subjects(connection: sqlite3.Connection) -> Subjects:
    """Return all subjects with their keys, and what was erased."""
    return Subjects(
        (
            (row, (name, key))
            for row, name, key in connection.execute("SELECT id, subject, key FROM subjects")
        ),
        erased(connection),
        erased(connection, done=True),
    )


def tombstones(connection: sqlite3.Connection) -> Iterator[tuple[int, Tombstone]]:
    """Yield the tombstones of the journal with their numbers; not those that are damaged."""
    for sequence, leaf, hash_ in connection.execute(
        "SELECT sequence, leaf, leaf_hash FROM records WHERE call_id >= ? AND call_id < ?"
        " AND kind = 'tombstone' ORDER BY sequence",
        (TOMBSTONE, TOMBSTONE[:-1] + chr(ord(TOMBSTONE[-1]) + 1)),
    ).fetchall():
        if not isinstance(leaf, bytes) or leaf_hash(leaf) != hash_:
            continue
        with suppress(msgspec.MsgspecError, UnicodeDecodeError):
            record = _RECORD.decode(_LEAF.decode(leaf).record)
            if isinstance(record, Tombstone):
                yield sequence, record


def erased(connection: sqlite3.Connection, *, done: bool = False) -> dict[int, frozenset[str]]:
    """Return the names of the payloads that tombstones name, by record; or only those `done`."""
    found: dict[int, frozenset[str]] = {}
    for number, tombstone in tombstones(connection):
        for each in tombstone.erased if tombstone.done or not done else ():
            if each.sequence < number:  # nothing can be erased ahead
                found[each.sequence] = found.get(each.sequence, frozenset()) | {*each.payloads}
    return found


def last_sequence(connection: sqlite3.Connection) -> int:
    """Return the highest sequence number, 0 for an empty log."""
    return int(connection.execute("SELECT coalesce(max(sequence), 0) FROM records").fetchone()[0])


def read(
    connection: sqlite3.Connection, after: int = FIRST, *, batch: int = 500
) -> Iterator[RawRecord]:
    """Yield the records beyond `after` (else all of them), in strictly rising sequence.

    Raises `sqlite3.Error` where pages are damaged, or hold rows out of order: SQLite would serve
    those again and again to whoever asks for the next.
    """
    while True:
        found = connection.execute(
            "SELECT sequence FROM records WHERE sequence > ? ORDER BY sequence LIMIT ?",
            (after, batch),
        ).fetchall()
        if not found:
            return
        expected = [sequence for (sequence,) in found]
        if any(later <= earlier for earlier, later in pairwise([after, *expected])):
            raise sqlite3.DatabaseError("the table of records is out of order")
        for raw in read_range(connection, expected[0], expected[-1]):
            if raw.sequence <= after:
                break
            after = raw.sequence
            yield raw
        if after != expected[-1]:
            raise sqlite3.DatabaseError("the table of records is out of order")


def read_range(connection: sqlite3.Connection, first: int, last: int) -> Iterator[RawRecord]:
    """Yield the records from `first` to `last`, both included; they must be few."""
    yield from _read_batch(connection, "BETWEEN ? AND ?", (first, last))


def read_call(connection: sqlite3.Connection, call_id: str) -> Iterator[RawRecord]:
    """Yield the records of a call, in sequence."""
    yield from _read_batch(
        connection, "IN (SELECT sequence FROM records WHERE call_id = ?)", (call_id,)
    )


def _read_batch(
    connection: sqlite3.Connection, which: str, parameters: tuple[Any, ...]
) -> Iterator[RawRecord]:
    if connection.execute("PRAGMA user_version").fetchone()[0] == 1:
        yield from _read_version_1(connection, which, parameters)
        return
    rows = [
        (row[:5], packing.unpacked(row[5]))
        for row in connection.execute(
            "SELECT sequence, call_id, kind, leaf, leaf_hash, payloads FROM records"
            f" WHERE sequence {which} ORDER BY sequence",
            parameters,
        )
    ]
    wanted = {body for _, kept in rows for _, body in kept or () if isinstance(body, int)}
    known = _contents(connection, sorted(wanted))
    for row, kept in rows:
        payloads: list[RawPayload] | None = None
        if kept is not None:
            payloads = [
                RawPayload(position, body, salt, *known.get(body, (None, None, None)))
                if isinstance(body, int)
                else RawPayload(position, packing.number(row[0], position), salt, None, None, body)
                for position, (salt, body) in enumerate(kept)
            ]
        sequence, call_id, kind, leaf, hash_ = row
        yield RawRecord(sequence, call_id, kind, leaf, hash_, payloads)


def _contents(connection: sqlite3.Connection, wanted: list[int]) -> dict[int, tuple[Any, Any, Any]]:
    """Return subject, address and body of rows of `contents`."""
    known = {}
    for at in range(0, len(wanted), _VARIABLES):
        part = wanted[at : at + _VARIABLES]
        for row, *rest in connection.execute(
            "SELECT id, subject, address, body FROM contents WHERE id IN"
            f" ({', '.join('?' * len(part))})",
            part,
        ):
            known[row] = tuple(rest)
    return known


def _read_version_1(
    connection: sqlite3.Connection, which: str, parameters: tuple[Any, ...]
) -> Iterator[RawRecord]:
    payloads: dict[Any, list[RawPayload]] = {}
    for sequence, *row in connection.execute(
        "SELECT p.sequence, p.position, p.content, p.salt, c.subject, c.address, c.body"
        f" FROM payloads p LEFT JOIN contents c ON c.id = p.content WHERE p.sequence {which}"
        " ORDER BY p.sequence, p.position",
        parameters,
    ):
        payloads.setdefault(sequence, []).append(RawPayload(*row))
    for row in connection.execute(
        f"SELECT sequence, call_id, kind, leaf, leaf_hash FROM records WHERE sequence {which}"
        " ORDER BY sequence",
        parameters,
    ):
        sequence, call_id, kind, leaf, hash_ = row
        yield RawRecord(sequence, call_id, kind, leaf, hash_, payloads.get(sequence, []))


def examine(raw: RawRecord, known: Subjects) -> Examined:
    """Check a record against its hashes; `known` are the subjects of the journal."""
    problems: list[str] = []
    commitments: tuple[tuple[str, str], ...] = ()
    record: Record | None = None
    if not isinstance(raw.leaf, bytes):
        problems.append("the leaf is not stored as bytes")
    else:
        if raw.leaf_hash != leaf_hash(raw.leaf):
            problems.append("leaf and leaf hash don't fit")
        try:
            content = _LEAF.decode(raw.leaf)
            commitments = tuple((entry.name, entry.commitment) for entry in content.payloads)
            record = _RECORD.decode(content.record)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            problems.append(f"the leaf can't be read ({error})")
    if record is not None:
        if raw.call_id != record.call_id:
            problems.append("the column call_id differs from the leaf")
        if raw.kind != record.__struct_config__.tag:
            problems.append("the column kind differs from the leaf")
    bodies: dict[str, bytes] = {}
    contents: dict[str, int] = {}
    gone: list[str] = []
    if raw.payloads is None:
        problems.append("its payloads can't be read")
    stored = {payload.position: payload for payload in raw.payloads or ()}
    for position, (name, expected) in enumerate(commitments):
        payload = stored.pop(position, None)
        if payload is None:
            problems.append(f"payload {name} is missing")
            continue
        if (payload.salt, payload.body) == packing.ERASED:
            if name in known.erased.get(raw.sequence, ()):
                gone.append(name)
            else:
                problems.append(f"payload {name} was removed, and no tombstone says so")
            continue
        problem = _payload_problem(payload, expected, record, known)
        if problem is None:
            bodies[name] = payload.body
            contents[name] = payload.content
        else:
            problems.append(f"payload {name}: {problem}")
    problems.extend(f"a payload at position {position} is not in the leaf" for position in stored)
    if isinstance(record, Intent | Result) and "events" in bodies:
        try:
            headers = tuple(header_of(event) for event in _EVENTS.decode(bodies["events"]))
            if headers != record.events:
                problems.append("the record's events are not those of its payload events")
        except msgspec.MsgspecError as error:
            problems.append(f"payload events can't be read ({error})")
    return Examined(raw, record, commitments, bodies, contents, tuple(problems), tuple(gone))


def _payload_problem(
    payload: RawPayload, expected: str, record: Record | None, known: Subjects
) -> str | None:
    if not isinstance(payload.body, bytes):
        return "its content is missing" if payload.body is None else "it is not stored as bytes"
    if not isinstance(payload.salt, bytes) or len(payload.salt) != SALT_BYTES:
        return "its salt is damaged"
    if commitment(payload.salt, payload.body) != expected:
        return "content or salt does not fit its commitment"
    if (payload.salt == SHARED_SALT) != (payload.subject == SHARED_SUBJECT):
        return "it is stored under the wrong subject"
    if payload.content < 0:  # its body stands in its record
        return None
    subject, key = known.get(payload.subject, (None, None))
    if not isinstance(key, bytes):
        return "the key of its subject is missing"
    if payload.subject != SHARED_SUBJECT and record is not None and subject != record.subject:
        return "it is stored under the wrong subject"
    if payload.address != address(key, payload.body):
        return "its address does not fit content and subject key"
    return None
