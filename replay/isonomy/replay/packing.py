"""How a record's payloads stand in its row of the journal.

MessagePack, an array with one pair for each payload in the order of the leaf: the salt of its
commitment, and its body, or a number: the row of `contents` that holds the body, since the same
content may come again in the same subject (messages, the policy as written). What was erased keeps
its place, with neither salt nor body (`ERASED`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import msgspec

Kept = tuple[bytes, bytes | int | None]
"""A payload as kept: its salt, and its body or the row of its body."""

ERASED: Kept = (b"", None)
"""What stands in the place of a payload that was erased."""

_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(tuple[Kept, ...])

PLACES = 1 << 20
"""Payloads that a record can have, for the numbers of `number`."""


def packed(payloads: Sequence[Kept]) -> bytes:
    """Return the bytes that stand for payloads."""
    return _ENCODER.encode(payloads)


def unpacked(stored: object) -> tuple[Kept, ...] | None:
    """Return the payloads that stored bytes stand for; `None` where they are damaged."""
    if not isinstance(stored, bytes):
        return None
    try:
        kept = _DECODER.decode(stored)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
    # Only one way to write it: a changed byte must not go unnoticed.
    return kept if packed(kept) == stored else None


def packed_text(pairs: str) -> bytes:
    """Return the bytes for a JSON array of pairs of a salt in hexadecimal and a row."""
    return packed([(bytes.fromhex(salt), row) for salt, row in json.loads(pairs)])


def number(sequence: int, position: int) -> int:
    """Return the number under which a body that stands in its record is known: below zero.

    Rows of `contents` are numbered from 1, so no two bodies of a log have the same number.
    """
    return -(sequence * PLACES + position)
