"""Proof bundles: one call's records, provable to somebody who has nothing else of the log.

A bundle is a JSON object (`Bundle`): the records of a call as hashed, their payloads with the salts
of the commitments, an inclusion proof for each record, and a signed checkpoint. It proves that the
log which the checkpoint's key signs for held exactly these records at these places. The script
``verify_proof.py`` beside this module checks it; it needs Python and the package cryptography, and
nothing of Isonomy, so that whoever doubts us need not run us.

Payloads can be left out: the commitments then stand for them, and show when they are told later.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import msgspec

from isonomy.sdk.errors import InputError

from . import checking, checkpoints, database, notes
from .directory import LogDirectory
from .errors import NoSuchCall

FORMAT = "isonomy proof bundle 1"

SCRIPT = Path(__file__).with_name("verify_proof.py")
"""The script that checks a bundle."""


class BundledPayload(msgspec.Struct, frozen=True, kw_only=True):
    """A payload: base64 of the bytes that were committed to, and of the commitment's salt."""

    name: str
    salt: str
    body: str


class BundledRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A record: base64 of the bytes that were hashed, and of its inclusion proof's hashes.

    `sequence` counts the log's records from 1; it is leaf `sequence` - 1 of the tree.
    """

    sequence: int
    leaf: str
    proof: tuple[str, ...]
    payloads: tuple[BundledPayload, ...]


class Bundle(msgspec.Struct, frozen=True, kw_only=True):
    """What proves a call. `key` is told for convenience: trust must come from elsewhere."""

    format: str = FORMAT
    call_id: str
    checkpoint: str
    key: tuple[str, ...]
    records: tuple[BundledRecord, ...]


def prove(
    path: str | os.PathLike[str],
    call_id: str,
    *,
    signers: Sequence[notes.Signer],
    payloads: bool = True,
) -> Bundle:
    """Return the bundle of a call, under a checkpoint of the log as it stands.

    Args:
        path: the log's directory.
        call_id: the call's whole id.
        signers: who signs the checkpoint.
        payloads: put what was said into the bundle too.

    Raises:
        NoSuchCall: the log has no such call.
        InputError: a record of it is damaged: that proves nothing.
        LogError: the log can't be read.
    """
    directory = LogDirectory(path)
    directory.require()
    with (
        database.explained(directory, writing=False),
        closing(database.connect(directory, writable=False)) as journal,
    ):
        log_id = database.check(journal, directory, writing=False)["log"]
        journal.execute("BEGIN")
        known = checking.subjects(journal)
        examined = [checking.examine(raw, known) for raw in checking.read_call(journal, call_id)]
        if not examined:
            raise NoSuchCall(
                f"The log {directory} has no call {call_id}. Give its whole id.",
                path=str(directory),
                nearest=(),
            )
        tree = checkpoints.tree_of(journal, directory)
        for each in examined:
            if each.problems:
                raise InputError(
                    f"record {each.raw.sequence} is damaged ({each.problems[0]}), and proves "
                    "nothing. Run isonomy verify."
                )
        records = tuple(
            BundledRecord(
                sequence=each.raw.sequence,
                leaf=_base64(each.raw.leaf),
                proof=tuple(_base64(h) for h in tree.inclusion(each.raw.sequence - 1)),
                payloads=_payloads(each) if payloads else (),
            )
            for each in examined
        )
    checkpoint = checkpoints.Checkpoint(checkpoints.origin_of(log_id), tree.size, tree.root)
    return Bundle(
        call_id=call_id,
        checkpoint=notes.signed(checkpoint.text(), signers),
        key=tuple(str(signer.key) for signer in signers),
        records=records,
    )


def _payloads(examined: checking.Examined) -> tuple[BundledPayload, ...]:
    salts = {payload.position: payload.salt for payload in examined.raw.payloads or ()}
    return tuple(
        BundledPayload(
            name=name, salt=_base64(salts[position]), body=_base64(examined.payloads[name])
        )
        for position, (name, _) in enumerate(examined.commitments)
        if name not in examined.erased
    )


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
