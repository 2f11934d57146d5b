"""Kill -9 at random moments: what was acknowledged is there, what was begun is unfinished."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from pathlib import Path

from tests.replay import making

from isonomy.replay import ReplayLog, open_log

ROOT = Path(__file__).parents[2]
ROUNDS = 12


def test_no_acknowledged_record_is_lost(path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.replay.crashing_writer", str(path), str(ROUNDS)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    acknowledged = {sequence: (kind, call_id) for sequence, kind, call_id in rows}
    assert len(acknowledged) == len(rows) >= 3 * ROUNDS
    log = ReplayLog(path)
    report = log.verify()
    assert report.findings == ()
    stored = {
        sequence: (kind, call_id)
        for sequence, kind, call_id in log.sql(
            "select sequence, kind, call_id from records"
        ).fetchall()
    }
    assert acknowledged.items() <= stored.items()
    assert sorted(stored) == list(range(1, len(stored) + 1))
    # Between its acknowledgement and the kill a process can have written one more record.
    assert len(stored) - len(acknowledged) <= 3 * ROUNDS
    finished = {call_id for kind, call_id in stored.values() if kind == "result"}
    statuses = dict(log.sql("select call_id, status from calls").fetchall())
    assert statuses == {
        call_id: "complete" if call_id in finished else "unfinished"
        for _, call_id in stored.values()
    }
    with open_log(path) as journal:
        assert journal.append([making.opening("after")]) == [len(stored) + 1]


def test_an_ingestion_that_is_killed_loses_and_doubles_nothing(path: Path) -> None:
    rng = random.Random(5)
    with open_log(path) as journal:
        for batch in range(4):
            journal.append(
                [
                    entry
                    for number in range(100)
                    for entry in making.call(f"call-{batch}-{number}", f"q {number}", ["a"])
                ]
            )
            ingestion = subprocess.Popen(
                [sys.executable, "-m", "isonomy.replay.ingest", str(path)],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            time.sleep(0.2 + rng.random() * 0.6)
            ingestion.kill()
            ingestion.wait()
            counted = ReplayLog(path).sql("select count(*), count(distinct call_id) from calls")
            assert counted.fetchall() == [((batch + 1) * 100,) * 2]
    log = ReplayLog(path)
    assert log.refresh().last == 800
    report = log.verify()
    assert (report.records, report.audited, report.findings) == (800, 800, ())
