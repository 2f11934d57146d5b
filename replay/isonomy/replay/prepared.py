"""Entries turned into what the journal stores, before it is locked for writing."""

from __future__ import annotations

from collections.abc import Callable

from isonomy.sdk.errors import InputError
from isonomy.sdk.records import Entry, Payload

from . import packing
from .hashing import SALT_BYTES, SHARED_SALT, Commitment, commitment, leaf_bytes, leaf_hash

Entropy = Callable[[int], bytes]
"""Returns that many random bytes; `os.urandom` outside tests."""

Row = tuple[int | None, str, str, bytes, bytes, bytes]
"""A row of the journal's `records`; without a sequence number SQLite gives the next."""

_REPEATED = "message/"
"""How the names of payloads begin that may come again in their subject: they are stored once."""


class Prepared:
    """An entry with its salts and its leaf."""

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
