"""The one scheme by which records and payloads are hashed. Everything else calls this module.

All of it is fixed to the byte from schema version 1 on; changing any of it would change every leaf
ever written. `||` is concatenation, `hex` lower-case hexadecimal, `canonical` the SDK's canonical
JSON (sorted keys, no white space, UTF-8).

Leaf bytes
    ``canonical({"payloads": [{"commitment": C, "name": N}, ...], "record": R})``: the record
    proper, and for each payload its name and commitment, in the order in which the entry listed
    them. Names are distinct within an entry.
Leaf hash
    ``SHA-256(0x00 || leaf bytes)``, the leaf hash of RFC 6962. The record of sequence number n
    (from 1, without gaps) is leaf n - 1 of the log's Merkle tree. 0x01 is reserved for the tree's
    inner nodes.
Commitment
    ``"sha256:" || hex(SHA-256(0x02 || salt || body))`` with a salt of exactly 32 bytes: fresh
    random bytes for every payload of every record, or 32 zero bytes for shared content (the same
    for everyone, hence nothing to hide). The fixed length leaves no two ways to split the hashed
    bytes.
Address
    ``HMAC-SHA256(key, body)``, 32 bytes, where `key` is 32 random bytes of the payload's subject,
    or 32 zero bytes for shared content. A body that may come again (a message, the policy) is
    stored once at its address within its subject.
    Addresses never appear in leaves: they can be erased, and say nothing to whoever lacks the key.

Equal bodies therefore have equal addresses within a subject, unrelated ones across subjects, and
unrelated commitments everywhere. ``tests/replay/golden`` holds a log whose every hash a test
derives anew.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable
from typing import Any

import msgspec

from isonomy.sdk.canonical import canonical

SALT_BYTES = 32
KEY_BYTES = 32
HASH_BYTES = 32
SHARED_SALT = bytes(SALT_BYTES)
SHARED_KEY = bytes(KEY_BYTES)

_LEAF = b"\x00"
_COMMITMENT = b"\x02"
_SMALL = 1 << 16
"""Bytes that are sooner copied than hashed in two calls."""


class Commitment(msgspec.Struct, frozen=True):
    """What a leaf says of a payload."""

    commitment: str
    name: str


class LeafContent(msgspec.Struct, frozen=True):
    """A leaf's two members, with the record still as the JSON text that was hashed."""

    payloads: tuple[Commitment, ...]
    record: msgspec.Raw


def commitment(salt: bytes, body: bytes) -> str:
    """Return the commitment to `body` as ``sha256:hex``; `salt` is 32 bytes."""
    if len(salt) != SALT_BYTES:
        raise ValueError(f"a salt is {SALT_BYTES} bytes, not {len(salt)}")
    if len(body) < _SMALL:
        return "sha256:" + hashlib.sha256(_COMMITMENT + salt + body).hexdigest()
    digest = hashlib.sha256(_COMMITMENT + salt)
    digest.update(body)
    return "sha256:" + digest.hexdigest()


def address(key: bytes, body: bytes) -> bytes:
    """Return the 32-byte address of `body` under a subject's key."""
    return hmac.digest(key, body, "sha256")


def leaf_bytes(record: Any, payloads: Iterable[Commitment]) -> bytes:
    """Return the bytes that stand for a record in the log."""
    return canonical({"payloads": list(payloads), "record": record})


def leaf_hash(leaf: bytes) -> bytes:
    """Return the 32-byte RFC 6962 leaf hash."""
    return hashlib.sha256(_LEAF + leaf).digest()
