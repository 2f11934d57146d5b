"""A call as the log holds it: its records decoded, its payloads as bytes.

What is decoded is a convenience; `leaf` and `payloads` are the bytes that were hashed.
"""

from __future__ import annotations

from typing import TypeVar

import msgspec

from isonomy.sdk.events import Event
from isonomy.sdk.records import (
    Intent,
    Opening,
    Output,
    Record,
    RequestContent,
    Result,
    Segment,
)
from isonomy.sdk.vocabulary import Message

from .checking import Examined

_T = TypeVar("_T")


class StoredRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One record of the log.

    Attributes:
        sequence: its number in the log; leaf `sequence` - 1 of the tree.
        leaf: the hashed bytes.
        leaf_hash: hexadecimal RFC 6962 leaf hash, as stored.
        record: the record proper; `None` where the leaf can't be read.
        payloads: the bodies whose commitment fits, by name.
        missing: names in the leaf without such a body.
        erased: those of them that were erased, as a tombstone of the log says.
        damage: what does not fit, in words; empty for an intact record.
    """

    sequence: int
    leaf: bytes
    leaf_hash: str
    record: Record | None
    payloads: dict[str, bytes]
    missing: tuple[str, ...] = ()
    damage: tuple[str, ...] = ()
    erased: tuple[str, ...] = ()

    @classmethod
    def of(cls, examined: Examined) -> StoredRecord:
        """Return the record that was examined."""
        raw = examined.raw
        return cls(
            sequence=raw.sequence,
            leaf=raw.leaf if isinstance(raw.leaf, bytes) else b"",
            leaf_hash=raw.leaf_hash.hex() if isinstance(raw.leaf_hash, bytes) else "",
            record=examined.record,
            payloads=examined.payloads,
            missing=tuple(
                name for name, _ in examined.commitments if name not in examined.payloads
            ),
            damage=examined.problems,
            erased=examined.erased,
        )

    def events(self) -> tuple[Event, ...]:
        """Decode the events of this record; none where the payload is missing."""
        return self.decode("events", tuple[Event, ...]) or ()

    def decode(self, name: str, type: type[_T]) -> _T | None:
        """Decode a payload, `None` where the record has none of this name.

        Raises:
            msgspec.MsgspecError: it is of another shape, as a later version may write it.
        """
        body = self.payloads.get(name)
        return None if body is None else msgspec.json.decode(body, type=type)


class StoredCall(msgspec.Struct, frozen=True, kw_only=True):
    """A call: its records in sequence. `intent` without `result` is evidence of a crash."""

    call_id: str
    records: tuple[StoredRecord, ...]

    @property
    def openings(self) -> tuple[Opening, ...]:
        """Records of effects before the intent."""
        return tuple(stored.record for stored in self.records if isinstance(stored.record, Opening))

    @property
    def intent(self) -> Intent | None:
        """What was about to happen."""
        stored = self.intent_record
        return stored.record if stored and isinstance(stored.record, Intent) else None

    @property
    def result(self) -> Result | None:
        """What happened; `None` for an unfinished call."""
        stored = self.result_record
        return stored.record if stored and isinstance(stored.record, Result) else None

    @property
    def intent_record(self) -> StoredRecord | None:
        """The first record that is an intent."""
        return next((s for s in self.records if isinstance(s.record, Intent)), None)

    @property
    def result_record(self) -> StoredRecord | None:
        """The first record that is a result."""
        return next((s for s in self.records if isinstance(s.record, Result)), None)

    @property
    def status(self) -> str:
        """``complete`` or ``unfinished``."""
        return "complete" if self.result is not None else "unfinished"

    @property
    def events(self) -> tuple[Event, ...]:
        """The call's events: the intent's, then the result's."""
        return tuple(event for stored in self.records for event in stored.events())

    @property
    def messages(self) -> dict[int, Message]:
        """The call's message table, by number."""
        return {
            int(name.removeprefix("message/")): msgspec.json.decode(body, type=Message)
            for stored in self.records
            for name, body in stored.payloads.items()
            if name.startswith("message/")
        }

    @property
    def request(self) -> RequestContent | None:
        """What the caller asked for."""
        stored = self.intent_record
        return stored.decode("request", RequestContent) if stored else None

    @property
    def policy(self) -> bytes | None:
        """The policy as written, JSON."""
        stored = self.intent_record
        return stored.payloads.get("policy") if stored else None

    @property
    def output(self) -> Output | None:
        """What was released to the caller."""
        stored = self.result_record
        return stored.decode("output", Output) if stored else None

    @property
    def segments(self) -> tuple[tuple[Segment, str | None], ...]:
        """What left as a stream, in order: each record with its text (`None` where missing)."""
        return tuple(
            (stored.record, stored.decode("text", str))
            for stored in self.records
            if isinstance(stored.record, Segment)
        )

    @property
    def damage(self) -> tuple[str, ...]:
        """What does not fit in any of its records, each with the record's number."""
        return tuple(
            f"record {stored.sequence}: {problem}"
            for stored in self.records
            for problem in stored.damage
        )
