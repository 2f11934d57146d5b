#!/usr/bin/env python3
"""Check the proof bundle of one call of an Isonomy log.

    python verify_proof.py BUNDLE.json KEY [KEY ...]

KEY is a public key of whoever signs the log's checkpoints (a line NAME+ID+BASE64), which you have
from somebody you trust, not from the bundle. Exit status: 0 proven, 1 not proven, 2 unusable.

This file stands alone: it imports the standard library and cryptography, and nothing of Isonomy.
What it checks, by RFC 6962 and the C2SP forms signed-note and tlog-checkpoint:

1. a given key signed the checkpoint (origin, number of records n, Merkle root);
2. each record's leaf hash, SHA-256(0x00 || leaf), is at its place in the tree of n leaves;
3. each payload fits the commitment in its record: SHA-256(0x02 || salt || body);
4. every record is one of the call that the bundle is said to be of.

It does not show that the call has no further records: the log's owner may have left some out.
"""

import base64
import hashlib
import json
import sys
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

Key = tuple[str, bytes, bytes]
"""Name, id and public key."""


class NotProven(Exception):
    """What does not fit."""


def decoded(text: str) -> bytes:
    """Return the bytes of base64 text."""
    return base64.b64decode(text, validate=True)


def parse_key(line: str) -> Key:
    """Return name, id and public key of a line NAME+ID+BASE64."""
    name, key_id, encoded = line.strip().split("+", 2)
    data = decoded(encoded)
    if data[:1] != b"\x01" or len(data) != 33:
        raise ValueError("this is no Ed25519 key")
    expected = hashlib.sha256(name.encode() + b"\n" + data).digest()[:4]
    if expected.hex() != key_id:
        raise ValueError("the key does not fit its id")
    return name, expected, data[1:]


def open_checkpoint(note: str, keys: list[Key]) -> tuple[str, int, bytes, str]:
    """Return origin, size and root of a checkpoint that one of the keys signed."""
    text, _, signatures = note.rpartition("\n\n")
    text += "\n"
    for line in signatures.splitlines():
        if not line.startswith("\N{EM DASH} "):
            continue
        name, _, encoded = line[2:].partition(" ")
        data = decoded(encoded)
        for key_name, key_id, public in keys:
            if (name, data[:4]) == (key_name, key_id):
                try:
                    Ed25519PublicKey.from_public_bytes(public).verify(data[4:], text.encode())
                except InvalidSignature:
                    raise NotProven(f"the signature of {name} does not fit") from None
                origin, size, root = text.split("\n")[:3]
                return origin, int(size), decoded(root), name
    raise NotProven("none of the given keys signed the checkpoint")


def node(left: bytes, right: bytes) -> bytes:
    """Return the hash of an inner node."""
    return hashlib.sha256(b"\x01" + left + right).digest()


def included(leaf: bytes, index: int, size: int, proof: list[bytes], root: bytes) -> bool:
    """Return whether the proof leads from a leaf hash to the root (RFC 9162, 2.1.3.2)."""
    if not 0 <= index < size:
        return False
    at, last, found = index, size - 1, leaf
    for sibling in proof:
        if last == 0:
            return False
        if at & 1 or at == last:
            found = node(sibling, found)
            while not at & 1 and at:
                at, last = at >> 1, last >> 1
        else:
            found = node(found, sibling)
        at, last = at >> 1, last >> 1
    return last == 0 and found == root


def check(bundle: Any, keys: list[Key]) -> list[str]:
    """Return what the bundle proves, in lines; raises NotProven."""
    if bundle["format"] != "isonomy proof bundle 1":
        raise ValueError("another format")
    origin, size, root, signer = open_checkpoint(bundle["checkpoint"], keys)
    lines = [f"checkpoint of {size} records of {origin}, signed by {signer}"]
    if not bundle["records"]:
        raise NotProven("the bundle holds no record")
    seen: set[int] = set()
    for record in bundle["records"]:
        sequence, leaf = record["sequence"], decoded(record["leaf"])
        if sequence in seen:
            raise NotProven(f"record {sequence} is there twice")
        seen.add(sequence)
        leaf_hash = hashlib.sha256(b"\x00" + leaf).digest()
        proof = [decoded(text) for text in record["proof"]]
        if not included(leaf_hash, sequence - 1, size, proof, root):
            raise NotProven(f"record {sequence} is not in the tree")
        content = json.loads(leaf)
        if content["record"]["call_id"] != bundle["call_id"]:
            raise NotProven(f"record {sequence} is of another call")
        commitments = {entry["name"]: entry["commitment"] for entry in content["payloads"]}
        for payload in record["payloads"]:
            salt, body = decoded(payload["salt"]), decoded(payload["body"])
            digest = hashlib.sha256(b"\x02" + salt + body).hexdigest()
            if len(salt) != 32 or commitments.get(payload["name"]) != "sha256:" + digest:
                raise NotProven(
                    f"the payload {payload['name']} of record {sequence} does not fit its record"
                )
        told = ", ".join(payload["name"] for payload in record["payloads"]) or "none"
        lines.append(f"record {sequence}, {content['record']['kind']}; payloads: {told}")
    return lines


def main(arguments: list[str]) -> int:
    """Run from the command line."""
    if len(arguments) < 2:
        print(__doc__, file=sys.stderr)
        return 2
    try:
        with open(arguments[0], encoding="utf-8") as stream:  # noqa: PTH123
            bundle = json.load(stream)
        lines = check(bundle, [parse_key(line) for line in arguments[1:]])
    except NotProven as problem:
        print(f"NOT PROVEN: {problem}")
        return 1
    except (OSError, ValueError, KeyError, TypeError) as error:
        print(f"unusable: {type(error).__name__}: {error}", file=sys.stderr)
        return 2
    print("\n".join(lines))
    print(f"PROVEN: call {bundle['call_id']}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
