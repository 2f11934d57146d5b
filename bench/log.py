"""What recording costs: the journal beside a bare SQLite insert of the same bytes, both flushed."""

from __future__ import annotations

import os
import sqlite3
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from .measuring import alternate, median, table

if TYPE_CHECKING:
    from isonomy.sdk.records import Entry

BYTES = 4096


def main(*, repetitions: int = 300, quick: bool = False) -> str:
    """Return append times and ingestion speed as a Markdown table."""
    from isonomy.replay import open_log

    from . import appending, ingestion

    repetitions = 50 if quick else repetitions
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bare = sqlite3.connect(folder / "bare.sqlite", isolation_level=None)
        bare.execute("pragma journal_mode=wal")
        bare.execute("pragma synchronous=full")
        bare.execute("create table records (sequence integer primary key, body blob)")
        size = appending.stored_bytes()
        log = open_log(str(folder / "log"), background=False)

        def insert() -> float:
            body = os.urandom(size)
            started = time.perf_counter()
            bare.execute("insert into records (body) values (?)", (body,))
            return time.perf_counter() - started

        def append() -> float:
            entry = entry_of(os.urandom(BYTES // 2).hex())
            started = time.perf_counter()
            log.append([entry])
            return time.perf_counter() - started

        times = alternate({"bare": insert, "ours": append}, repetitions=repetitions, warm_up=20)
        bare.close()
        log.close()
    ingested = ingestion.measure(2000 if quick else 5000)
    old, new = median(times["bare"]) * 1e6, median(times["ours"]) * 1e6
    rows = [
        [f"bare SQLite insert of its {size} bytes, WAL, synchronous=FULL, µs", f"{old:.0f}"],
        ["journal append of one record with one payload, µs", f"{new:.0f}"],
        ["ratio", f"{new / old:.2f}"],
        [
            f"rows/s into DuckDB, from {ingested.records} records, subprocess start included",
            f"{ingested.rows / ingested.seconds:.0f}",
        ],
        ["records/s of the same", f"{ingested.records / ingested.seconds:.0f}"],
        ["memory of that subprocess, MB", f"{ingested.peak / 1e6:.0f}"],
    ]
    return (
        f"{BYTES} bytes a record, medians of {repetitions} alternating runs\n\n"
        + table(["what", "figure"], rows)
        + "\n\nBy processes and durability:\n\n"
        + appending.main(records=200 if quick else 2000)
    )


def entry_of(text: str) -> Entry:
    """Return a result record that holds `text` as its output."""
    from isonomy.sdk.canonical import canonical
    from isonomy.sdk.generation import Usage
    from isonomy.sdk.records import Entry, Output, Payload, Result
    from isonomy.sdk.requests import new_call_id

    call_id = new_call_id()
    record = Result(
        call_id=call_id,
        session="bench",
        subject="bench",
        wall_ns=time.time_ns(),
        monotonic_ns=time.monotonic_ns(),
        host="bench",
        process=os.getpid(),
        verdict="allow",
        finish_reason="stop",
        usage=Usage(1, 1),
        rounds=0,
        duration_ns=1,
    )
    return Entry(
        record,
        (Payload("events", canonical([])), Payload("output", canonical(Output(text=text)))),
    )
