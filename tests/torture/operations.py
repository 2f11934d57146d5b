"""What is killed beside the writers: each a function that changes a log and may die at any moment.

A further one is added to `OPERATIONS`, and to `killing.BESIDE` with how often it runs. Every record
that was acknowledged must still be there after every kill: see `killing.stored`.
"""

from __future__ import annotations

import os
import random
import sqlite3
import time
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from pathlib import Path

from tests.replay import making

from isonomy.replay import JournalLog, NotALog, database, hashing, open_log, packing
from isonomy.replay.directory import LogDirectory
from isonomy.replay.erasing import erase
from isonomy.replay.ingest import ingest

Acknowledge = Callable[[int, str, str], None]
"""Takes sequence number, kind and call id of a record that is durable."""


def write(path: Path, name: str, acknowledge: Acknowledge, rng: random.Random) -> None:
    """Write calls until killed: alone, in batches, with one thread or three, in any manner."""
    import threading

    going_on = rng.random() < 0.3
    log = JournalLog(
        path,
        durability=rng.choice(("call", "call", "group", "relaxed")),
        on_full="gap" if going_on else rng.choice(("fail", "wait")),
        wait_seconds=0.002 if going_on else 30,
    )

    def work(worker: int, draw: random.Random) -> None:
        number = 0
        while True:
            number += 1
            call_id = f"{name}-{worker}-{number}"
            text = "x" * draw.choice((10, 100, 3000, 30_000))
            entries = making.call(call_id, f"question {number} {text}", ["an", "swer"])
            kinds = ("intent", "result")
            if draw.random() < 0.3:
                for sequence, kind in zip(log.append(entries), kinds, strict=not going_on):
                    acknowledge(sequence, kind, call_id)
                continue
            for entry, kind in zip(entries, kinds, strict=True):
                for sequence in log.append([entry]):  # None, where it fell into a gap.
                    acknowledge(sequence, kind, call_id)

    workers = [
        threading.Thread(target=work, args=(at, random.Random(rng.random())), daemon=True)
        for at in range(rng.choice((1, 1, 3)))
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()


def fork_and_write(path: Path, name: str, acknowledge: Acknowledge, rng: random.Random) -> None:
    """Write, fork while writing, and let both sides write on until both are killed."""
    log = JournalLog(path)
    log.append([making.opening(f"{name}-before")])
    child = os.fork()
    side = "child" if child == 0 else "parent"
    number = 0
    while child == 0 or os.waitpid(child, os.WNOHANG) == (0, 0):
        number += 1
        call_id = f"{name}-{side}-{number}"
        (sequence,) = log.append([making.opening(call_id)])
        acknowledge(sequence, "opening", call_id)
        if side == "child" and number == 12:
            os._exit(0)


def hold(path: Path, name: str, acknowledge: Acknowledge, rng: random.Random) -> None:
    """Hold the lock for writers, again and again, as no process of ours would."""
    file = path / "journal.sqlite"
    while not file.exists() or not file.stat().st_size:
        time.sleep(0.001)
    with closing(sqlite3.connect(file, isolation_level=None, timeout=30)) as holder:
        while True:
            holder.execute("BEGIN IMMEDIATE")
            time.sleep(rng.random() * 0.01)
            holder.execute("ROLLBACK")
            time.sleep(rng.random() * 0.005)


def ingest_again(path: Path, name: str, acknowledge: Acknowledge, rng: random.Random) -> None:
    """Ingest, now and then from nothing, until killed."""
    while True:
        with suppress(NotALog):  # Nobody has begun it yet.
            ingest(path, rebuild=rng.random() < 0.2)


def erase_some(path: Path, name: str, acknowledge: Acknowledge, rng: random.Random) -> None:
    """Erase the content of one call after the other."""
    while True:
        with closing(sqlite3.connect(f"file:{path}/journal.sqlite?mode=ro", uri=True)) as journal:
            try:
                calls = journal.execute(
                    "SELECT DISTINCT call_id FROM records WHERE kind = 'intent'"
                ).fetchall()
            except sqlite3.Error:  # Nobody has begun it yet.
                calls = []
        if not calls:
            time.sleep(0.005)
            continue
        (call_id,) = rng.choice(calls)
        erase(path, call=call_id, by="torture", reason="torture")


def migrate(path: Path, name: str, acknowledge: Acknowledge, rng: random.Random) -> None:
    """Open a log for writing: of an earlier version, it becomes one of the newest."""
    with open_log(path, background=False) as log:
        (sequence,) = log.append([making.opening(f"{name}-migrated")])
        acknowledge(sequence, "opening", f"{name}-migrated")


OPERATIONS: Mapping[str, Callable[[Path, str, Acknowledge, random.Random], None]] = {
    "write": write,
    "fork": fork_and_write,
    "hold": hold,
    "ingest": ingest_again,
    "erase": erase_some,
    "migrate": migrate,
}


def make_version_1(path: Path) -> None:
    """Turn a log into one of version 1, as the version that wrote those would have laid it down."""
    directory = LogDirectory(path)
    with closing(database.connect(directory, writable=True)) as journal:
        journal.execute("BEGIN IMMEDIATE")
        journal.execute(database.TABLES[1][-1])
        keys = dict(journal.execute("SELECT subject, id FROM subjects").fetchall())
        for sequence, leaf, stored in journal.execute(
            "SELECT sequence, leaf, payloads FROM records"
        ).fetchall():
            subject = _subject(journal, keys, leaf)
            for position, (salt, body) in enumerate(packing.unpacked(stored) or ()):
                assert body is not None
                row = body if isinstance(body, int) else _content(journal, *subject, body)
                journal.execute(
                    "INSERT INTO payloads VALUES (?, ?, ?, ?)", (sequence, position, row, salt)
                )
        journal.execute("ALTER TABLE records DROP COLUMN payloads")
        journal.execute("UPDATE meta SET value = '1' WHERE name = 'schema'")
        journal.execute("PRAGMA user_version=1")
        journal.execute("COMMIT")


def _subject(journal: sqlite3.Connection, keys: dict[str, int], leaf: bytes) -> tuple[int, bytes]:
    import json

    name = json.loads(leaf)["record"]["subject"]
    if name not in keys:
        added = journal.execute(
            "INSERT INTO subjects VALUES (NULL, ?, ?)", (name, os.urandom(hashing.KEY_BYTES))
        )
        assert added.lastrowid is not None
        keys[name] = added.lastrowid
    (key,) = journal.execute("SELECT key FROM subjects WHERE id = ?", (keys[name],)).fetchone()
    return keys[name], key


def _content(journal: sqlite3.Connection, subject: int, key: bytes, body: bytes) -> int:
    place = hashing.address(key, body)
    found = journal.execute(
        "SELECT id FROM contents WHERE subject = ? AND address = ?", (subject, place)
    ).fetchone()
    if found is None:
        found = (
            journal.execute(
                "INSERT INTO contents VALUES (NULL, ?, ?, ?)", (subject, place, body)
            ).lastrowid,
        )
    return int(found[0])
