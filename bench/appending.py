"""Appending to the journal by several processes in each durability, beside a bare SQLite insert.

The bare one inserts rows of the size that the journal stores (leaf, payloads, ids), in WAL mode
with ``synchronous=FULL`` and SQLite's own checkpoints; and once more without flushing, beside
`relaxed`. All of them wait for each other's locks. The contenders take turns, twice; each runs on a
fresh file.
"""

from __future__ import annotations

import os
import sqlite3
import struct
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

import msgspec

from .measuring import percentile, table

PROCESSES: Final = (1, 2, 8)
_MODES: Final = ("call", "group", "relaxed")

Append = Callable[[], None]


class Appended(msgspec.Struct, frozen=True):
    """What appending came to: seconds of each append, and all appends of all processes a second."""

    times: list[float]
    rate: float


def main(*, records: int = 2000) -> str:
    """Return a Markdown table of p50, p99 and records/s."""
    contenders: dict[str, Callable[[Path], Append]] = {
        "bare SQLite, FULL": partial(_bare, synchronous="full"),
        **{f"journal, {mode}": partial(_journal, mode=mode) for mode in _MODES},
        "bare SQLite, NORMAL": partial(_bare, synchronous="normal"),
    }
    rows = []
    for processes in PROCESSES:
        found: dict[str, list[Appended]] = {name: [] for name in contenders}
        for _ in range(2):
            for name, opened in contenders.items():
                found[name].append(measure(opened, processes, records // 2))
        base = percentile([t for each in found["bare SQLite, FULL"] for t in each.times], 50)
        for name, runs in found.items():
            times = [seconds for run in runs for seconds in run.times]
            rows.append(
                [
                    processes,
                    name,
                    f"{percentile(times, 50) * 1e6:.0f}",
                    f"{percentile(times, 99) * 1e6:.0f}",
                    f"{sum(run.rate for run in runs) / len(runs):.0f}",
                    f"{percentile(times, 50) / base:.2f}",
                ]
            )
    return table(["processes", "what", "p50, µs", "p99, µs", "records/s", "p50 / bare FULL"], rows)


def measure(opened: Callable[[Path], Append], processes: int, records: int) -> Appended:
    """Return what `processes` come to that append `records` together.

    Args:
        opened: opens a file in a folder, and returns what appends one record to it.
        processes: how many append at a time.
        records: how many in all; each process appends some before, uncounted.
    """
    each = records // processes
    with tempfile.TemporaryDirectory() as name:
        opened(Path(name))  # Creates it; each process opens its own.
        gate, held = os.pipe()
        running = []
        for _ in range(processes):
            reader, writer = os.pipe()
            child = os.fork()
            if not child:
                os.close(held)
                _append(opened(Path(name)), each, gate, writer)
            os.close(writer)
            running.append((child, reader))
        os.close(gate)
        for _, reader in running:
            os.read(reader, 1)  # It is ready.
        started = time.perf_counter()
        os.close(held)
        times: list[float] = []
        for child, reader in running:
            with os.fdopen(reader, "rb") as told:
                times += [seconds for (seconds,) in struct.iter_unpack("d", told.read())]
            if os.waitpid(child, 0)[1]:
                raise RuntimeError("a process of the measurement failed")
        return Appended(times, processes * each / (time.perf_counter() - started))


def _append(append: Append, records: int, gate: int, told: int) -> None:
    """Append, in a process of its own, and tell how long each took."""
    status = 1
    try:
        for _ in range(20):
            append()
        os.write(told, b"r")
        os.read(gate, 1)
        times = []
        for _ in range(records):
            started = time.perf_counter()
            append()
            times.append(time.perf_counter() - started)
        with os.fdopen(told, "wb") as stream:
            stream.write(struct.pack(f"{records}d", *times))
        status = 0
    finally:
        os._exit(status)


def _journal(path: Path, *, mode: str) -> Append:
    from isonomy.replay import open_log

    from .log import BYTES, entry_of

    log = open_log(path / "log", durability=mode, background=False)  # type: ignore[arg-type]
    entries = [[entry_of(os.urandom(BYTES // 2).hex())] for _ in range(50)]
    at = 0

    def append() -> None:
        nonlocal at
        at += 1
        log.append(entries[at % len(entries)])

    return append


def _bare(path: Path, *, synchronous: str) -> Append:
    bare = sqlite3.connect(path / "bare.sqlite", isolation_level=None, timeout=30)
    bare.execute("pragma journal_mode=wal")
    bare.execute(f"pragma synchronous={synchronous}")
    bare.execute("create table if not exists records (sequence integer primary key, body blob)")
    body = os.urandom(stored_bytes())

    def append() -> None:
        bare.execute("insert into records (body) values (?)", (body,))

    return append


def stored_bytes() -> int:
    """Return how many bytes the journal's row of one of `log.entry_of` holds."""
    from isonomy.replay.prepared import Prepared

    from .log import BYTES, entry_of

    prepared = Prepared(entry_of("x" * BYTES), os.urandom)
    row = prepared.row(None, [(salt, payload.body) for payload, salt in prepared.payloads])
    return sum(len(column) for column in row if isinstance(column, str | bytes))
