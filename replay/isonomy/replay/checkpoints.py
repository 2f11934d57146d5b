"""Checkpoints: what a log was at some size, signed, to be kept where its writer can't change it.

A checkpoint is a signed note (see `notes`) of the C2SP form tlog-checkpoint: the log's origin, the
number of its records, and the base64 of its Merkle root. Whoever holds one can tell later whether
the log still begins with the same records: an altered, removed, added or swapped record up to its
size changes the root, and a log that was cut short has no such root any more. What lies beyond the
newest checkpoint that is held outside of the log is unproven.

The origin is ``isonomy/`` and the log's id, so that one log's checkpoint can't pass for another's.
"""

from __future__ import annotations

import base64
import binascii
import os
import sqlite3
import subprocess
from collections.abc import Iterable, Sequence
from contextlib import closing
from pathlib import Path

import msgspec

from isonomy.sdk.errors import InputError

from . import database, notes
from .directory import LogDirectory
from .errors import DamagedLog
from .hashing import HASH_BYTES
from .merkle import Tree

_READ = 1 << 16
"""Leaf hashes that are read at a time."""


class Checkpoint(msgspec.Struct, frozen=True):
    """The root of the first `size` records of the log that `origin` names."""

    origin: str
    size: int
    root: bytes

    def text(self) -> str:
        """Return the text that is signed."""
        root = base64.b64encode(self.root).decode()
        return f"{self.origin}\n{self.size}\n{root}\n"

    @classmethod
    def parse(cls, text: str) -> Checkpoint:
        """Read a checkpoint's text; further lines are passed over, as the form demands.

        Raises:
            InputError: it is none.
        """
        lines = text.split("\n")
        try:
            origin, count, encoded = lines[:3]
            root = base64.b64decode(encoded, validate=True)
            if not origin or not count.isascii() or not count.isdigit() or len(root) != HASH_BYTES:
                raise ValueError
            if count != str(int(count)):
                raise ValueError
        except (ValueError, binascii.Error):
            raise InputError(
                "this is no checkpoint: it begins with three lines, origin, number of records, "
                "and the base64 of 32 bytes."
            ) from None
        return cls(origin, int(count), root)


class Checked(msgspec.Struct, frozen=True):
    """A checkpoint that was opened: what it says, and the names of the trusted keys that signed."""

    checkpoint: Checkpoint
    signers: tuple[str, ...]


def origin_of(log_id: str) -> str:
    """Return the origin of a log's checkpoints."""
    return f"isonomy/{log_id}"


def take(path: str | os.PathLike[str], signers: Sequence[notes.Signer]) -> str:
    """Return a signed checkpoint of the log at `path` as it stands.

    Args:
        path: the log's directory.
        signers: who signs; several make one note with several signatures (witnesses).

    Raises:
        InputError: nobody signs.
        DamagedLog: records are missing, or their hashes are no hashes: such a log is not signed.
        LogError: it can't be read.
    """
    if not signers:
        raise InputError("a checkpoint needs at least one signing key.")
    directory = LogDirectory(path)
    directory.require()
    with (
        database.explained(directory, writing=False),
        closing(database.connect(directory, writable=False)) as journal,
    ):
        log_id = database.check(journal, directory, writing=False)["log"]
        journal.execute("BEGIN")
        tree = tree_of(journal, directory)
    return notes.signed(Checkpoint(origin_of(log_id), tree.size, tree.root).text(), signers)


def open_checkpoint(note: str, trusted: Iterable[notes.Key]) -> Checked:
    """Read a signed checkpoint.

    Raises:
        InputError: it is none, a signature does not fit, or no trusted key signed it.
    """
    keys = tuple(trusted)
    text, bearing = notes.opened(note, keys)
    if not bearing:
        names = ", ".join(key.name for key in keys) or "none were given"
        raise InputError(f"no trusted key signed this checkpoint (trusted: {names}).")
    return Checked(Checkpoint.parse(text), tuple(key.name for key in bearing))


def tree_of(journal: sqlite3.Connection, directory: LogDirectory) -> Tree:
    """Return the Merkle tree over the journal's stored leaf hashes, within the open transaction.

    Raises:
        DamagedLog: they are not those of an unbroken sequence.
    """
    (size, last) = journal.execute(
        "SELECT count(*), coalesce(max(sequence), 0) FROM records"
    ).fetchone()

    def read(first: int, count: int) -> bytes:
        rows = journal.execute(
            "SELECT leaf_hash FROM records WHERE sequence > ? AND sequence <= ? ORDER BY sequence",
            (first, first + count),
        ).fetchall()
        hashes = [digest for (digest,) in rows]
        sound = all(isinstance(h, bytes) and len(h) == HASH_BYTES for h in hashes)
        if len(hashes) != count or not sound:
            raise DamagedLog(
                f"The log {directory} is damaged between records {first + 1} and {first + count}."
                f" Run `isonomy verify --log {directory}` for what is.",
                path=str(directory),
                file=directory.journal.name,
            )
        return b"".join(hashes)

    if size != last:
        raise DamagedLog(
            f"The log {directory} lacks records: there are {size}, and the last is {last}. Run "
            f"`isonomy verify --log {directory}` for which.",
            path=str(directory),
            file=directory.journal.name,
        )
    return Tree(read, size)


def compare(
    journal: sqlite3.Connection, directory: LogDirectory, log_id: str, given: Sequence[Checked]
) -> tuple[list[str], int]:
    """Compare a log with checkpoints that were kept outside of it.

    Returns what does not fit, in words, and up to which record the log is proven to be the one that
    was signed.
    """
    problems: list[str] = []
    proven = 0
    try:
        tree = tree_of(journal, directory)
    except DamagedLog:
        return ["the checkpoints can't be compared: records are missing"], 0
    for each in given:
        checkpoint, signers = each.checkpoint, " and ".join(each.signers)
        if checkpoint.origin != origin_of(log_id):
            problems.append(
                f"the checkpoint of {checkpoint.size} records that {signers} signed is of another "
                f"log ({checkpoint.origin})"
            )
        elif checkpoint.size > tree.size:
            problems.append(
                f"its end was cut off: {signers} signed {checkpoint.size} records, and it holds "
                f"{tree.size}"
            )
        elif tree.root_at(checkpoint.size) != checkpoint.root:
            problems.append(
                f"its first {checkpoint.size} records are not those that {signers} signed: one or "
                "more were altered, added, removed or swapped"
            )
        else:
            proven = max(proven, checkpoint.size)
    return problems, proven


def keep(note: str, destination: str | os.PathLike[str]) -> Path:
    """Put a checkpoint into a file, or under a name of its own into a directory.

    The file appears whole or not at all. Returns where it is.

    Raises:
        InputError: it can't be written there.
    """
    target = Path(destination)
    if target.is_dir():
        size = Checkpoint.parse(note).size
        target = target / f"{size:020d}.checkpoint"
    draft = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        descriptor = os.open(draft, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o644)
        with os.fdopen(descriptor, "w") as stream:
            stream.write(note)
            stream.flush()
            os.fsync(descriptor)
        draft.rename(target)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise InputError(
            f"the checkpoint can't be written to {target}: {error.strerror or error}."
        ) from None
    return target


def hand_over(note: str, command: Sequence[str], *, seconds: float = 60.0) -> None:
    """Give a checkpoint to a command on its standard input (a mail, a ledger, another machine).

    Raises:
        InputError: the command can't be run, hangs, or fails.
    """
    try:
        done = subprocess.run(
            tuple(command), input=note, text=True, capture_output=True, check=False, timeout=seconds
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise InputError(
            f"the command {command[0]} could not take the checkpoint: {type(error).__name__}."
        ) from None
    if done.returncode:
        raise InputError(
            f"the command {command[0]} did not take the checkpoint: exit status {done.returncode}."
        )


def read_notes(places: Iterable[str | os.PathLike[str]]) -> list[tuple[str, str]]:
    """Return the notes in files, and in the ``.checkpoint`` files of directories, with their names.

    Raises:
        InputError: one can't be read, or there is none at all.
    """
    found = []
    for place in places:
        path = Path(place)
        files = sorted(path.glob("*.checkpoint")) if path.is_dir() else [path]
        for file in files:
            try:
                found.append((str(file), file.read_text("utf-8")))
            except (OSError, UnicodeDecodeError) as error:
                raise InputError(
                    f"the checkpoint {file} can't be read ({type(error).__name__}). Check the path."
                ) from None
        if not files:
            raise InputError(f"the directory {path} holds no file *.checkpoint.")
    return found
