"""What each manner of writing promises, and what happens where a disk or a lock says no."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from tests.replay import making
from tests.replay.test_gaps import locked

from isonomy.replay import DamagedLog, JournalLog, LogUnwritable, ReplayLog, open_log, room
from isonomy.sdk.errors import InputError, LogError
from isonomy.sdk.records import Entry, Payload

ROOT = Path(__file__).parents[2]
FRAME = 4096 + 24
"""Bytes of a frame of SQLite's write-ahead log, behind a header of 32."""


@pytest.mark.parametrize(
    "settings",
    [
        {"durability": "often"},
        {"on_full": "ignore"},
        {"wait_seconds": -1},
        {"wait_seconds": float("nan")},
        {"wait_seconds": "3"},
        {"wait_seconds": True},
    ],
)
def test_settings_that_mean_nothing_are_refused(path: Path, settings: dict[str, object]) -> None:
    with pytest.raises(InputError, match=next(iter(settings))):
        open_log(path, **settings)  # type: ignore[arg-type]
    assert not path.exists()


@pytest.mark.parametrize(("durability", "level"), [("call", 2), ("group", 2), ("relaxed", 1)])
def test_what_is_asked_of_the_disk(path: Path, durability: str, level: int) -> None:
    with open_log(path, durability=durability) as log:  # type: ignore[arg-type]
        log.append([making.opening("a")])
        assert log._connection is not None
        assert log._connection.execute("PRAGMA synchronous").fetchone() == (level,)
    assert [call.call_id for call in ReplayLog(path).calls()] == ["a"]


@pytest.mark.parametrize("durability", ["call", "group"])
def test_threads_that_wait_share_a_flush(path: Path, durability: str) -> None:
    """The first waits for the lock; the others come meanwhile, and share the next transaction."""
    threads: list[threading.Thread] = []
    sequences: list[int] = []
    with open_log(path, durability=durability) as log:  # type: ignore[arg-type]
        log.append([making.opening("before")])
        assert log._connection is not None
        statements: list[str] = []
        log._connection.set_trace_callback(statements.append)
        with locked(path):
            for number in range(8):
                entry = making.opening(f"call-{number}")
                threads.append(
                    threading.Thread(target=lambda e=entry: sequences.extend(log.append([e])))
                )
                threads[-1].start()
                time.sleep(0.02)
        for thread in threads:
            thread.join()
        # The first tried in vain again and again, while the lock was held.
        inserts = {text for text in statements if text.startswith("INSERT")}
        commits = [text for text in statements if text == "COMMIT"]
    assert len(inserts) == 8
    assert len(commits) == 1
    assert sorted(sequences) == list(range(2, 10))
    report = ReplayLog(path).verify()
    assert (report.records, report.findings) == (9, ())


def test_an_entry_that_fails_alone_does_not_take_others_along(journal: JournalLog) -> None:
    """Threads share a transaction: the one that can't be written must not keep the others out."""
    journal.append([making.opening("before")])
    assert journal._connection is not None
    journal._connection.execute(
        "CREATE TEMP TRIGGER broken BEFORE INSERT ON records WHEN NEW.call_id = 'call-3'"
        " BEGIN SELECT RAISE(ABORT, 'broken'); END"
    )
    outcomes: dict[int, object] = {}

    def work(number: int) -> None:
        try:
            outcomes[number] = journal.append([making.opening(f"call-{number}")])
        except LogError as error:
            outcomes[number] = error

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    with locked(Path(journal.path)):
        for thread in threads:
            thread.start()
            time.sleep(0.02)
    for thread in threads:
        thread.join()
    assert isinstance(outcomes.pop(3), LogError)
    assert sorted(outcomes.values()) == [[2], [3], [4], [5], [6]]  # type: ignore[type-var]
    assert ReplayLog(journal.path).verify().findings == ()


@pytest.mark.parametrize("moment", ["before", "after"])
def test_an_interrupt_of_who_leads_loses_and_doubles_nothing_of_the_others(
    journal: JournalLog, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """Ctrl-C in the middle of a transaction, or between its commit and the next statement."""
    module = sys.modules[JournalLog.__module__]
    name, owner = ("_insert", JournalLog) if moment == "before" else ("_place", module)
    real = getattr(owner, name)
    interrupted: list[str] = []

    def interrupt(*given: Any) -> Any:
        if not interrupted and threading.current_thread().name == "call-1":
            interrupted.append(threading.current_thread().name)
            raise KeyboardInterrupt
        return real(*given)

    outcomes: dict[str, object] = {}

    def work() -> None:
        name = threading.current_thread().name
        try:
            outcomes[name] = journal.append([making.opening(name)])
        except KeyboardInterrupt as error:
            outcomes[name] = error

    monkeypatch.setattr(owner, name, interrupt)
    threads = [threading.Thread(target=work, name=f"call-{number}") for number in range(6)]
    with locked(Path(journal.path)):
        for thread in threads:
            thread.start()
            time.sleep(0.02)
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()
    # The second leads the four that came after it.
    assert isinstance(outcomes.pop("call-1"), KeyboardInterrupt)
    written = 5 if moment == "before" else 6
    rows = ReplayLog(journal.path).sql("select call_id, sequence from records").fetchall()
    stored = dict(rows)
    assert len(rows) == len(stored) == written
    assert outcomes == {name: [stored[name]] for name in outcomes}
    assert len(outcomes) == 5
    assert journal.append([making.opening("after")]) == [written + 1]


def test_a_lock_that_is_held_for_long_keeps_no_thread_longer_than_it_may(path: Path) -> None:
    """They fail together, not one after the other."""
    failed: list[float] = []
    with open_log(path, wait_seconds=0.4) as log:

        def work(number: int) -> None:
            started = time.monotonic()
            with pytest.raises(LogUnwritable, match="lock"):
                log.append([making.opening(f"call-{number}")])
            failed.append(time.monotonic() - started)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        with locked(path):
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert log.append([making.opening("after")]) == [1]
    assert len(failed) == 8
    assert 0.3 < max(failed) < 1.6


def test_waiting_outlasts_a_lock_and_gives_up_in_time(path: Path) -> None:
    with open_log(path, on_full="wait", wait_seconds=20) as log:
        with locked(path):
            writer = threading.Thread(target=lambda: log.append([making.opening("a")]))
            writer.start()
            time.sleep(0.3)
            assert writer.is_alive()
        writer.join()
    with open_log(path, on_full="wait", wait_seconds=0.3) as log, locked(path):
        started = time.monotonic()
        with pytest.raises(LogUnwritable, match="lock"):
            log.append([making.opening("b")])
        assert 0.2 < time.monotonic() - started < 2
    assert [call.call_id for call in ReplayLog(path).calls()] == ["a"]


FULL = """
import os, sys, threading, time
from pathlib import Path
from isonomy.replay import LogUnwritable, ReplayLog, open_log
from tests.replay import making
disk = Path(sys.argv[1])
def fill():
    with open(disk / "filler", "wb", 0) as file:
        try:
            while True: file.write(bytes(4096))
        except OSError: pass
def free(): (disk / "filler").unlink()
path = disk / "log"
fail, wait, gap = (
    open_log(path, on_full=name, wait_seconds=8) for name in ("fail", "wait", "gap"))
assert fail.append([making.opening("before")]) == [1]
fill()
# Until what SQLite has left of its last page is used up.
written = 0
while True:
    try: fail.append([making.intent(f"filling-{written}", "x" * 9000)])
    except LogUnwritable as problem: error = problem; break
    written += 1
assert "full" in str(error), error
assert "nothing of this batch" in str(error), error
assert gap.append([making.intent("lost", "x" * 9000)]) == []
waiting = threading.Thread(target=lambda: wait.append([making.intent("waited", "x" * 9000)]))
waiting.start()
time.sleep(0.3)
assert waiting.is_alive()
free()
waiting.join()
assert gap.append([making.result("lost", ["y"])]) == [written + 4]
assert fail.append([making.opening("after")]) == [written + 5]
for log in (fail, wait, gap): log.close()
log = ReplayLog(path)
assert log.verify().findings == (), log.verify().findings
assert log.verify().records == written + 5
assert [c.call_id for c in log.calls(limit=3)] == ["after", "lost", "waited"]
"""


def test_a_disk_that_is_full_and_is_freed(tmp_path: Path) -> None:
    """A real one, of 3 MB, in a namespace of its own."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    mount = 'mount -t tmpfs -o size=3m none "$0" && exec "$@"'
    try:
        possible = subprocess.run(
            [*mounted, mount, str(disk), "true"], capture_output=True
        ).returncode
    except FileNotFoundError:
        possible = 1
    if possible != 0:
        pytest.skip("no namespaces here to mount a small disk in")
    done = subprocess.run(
        [*mounted, mount, str(disk), sys.executable, "-c", FULL, str(disk)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


# What a crash of the machine leaves behind.


def cut(path: Path, to: Path, frames: int) -> Path:
    """Copy a log as it would stand after a crash that lost the end of the write-ahead log."""
    shutil.copytree(path, to)
    (to / "journal.sqlite-shm").unlink(missing_ok=True)
    wal = to / "journal.sqlite-wal"
    with wal.open("r+b") as file:
        file.truncate(32 + FRAME * frames)
    return to


def frames_of(path: Path) -> int:
    """Count the frames that hold something."""
    wal = (path / "journal.sqlite-wal").read_bytes()[32:]
    return sum(any(wal[at : at + 24]) for at in range(0, len(wal), FRAME))


def test_a_relaxed_log_is_written_on_after_a_crash_that_lost_its_end(
    path: Path, tmp_path: Path
) -> None:
    with open_log(path, durability="relaxed") as log:
        for number in range(20):
            log.append([making.opening(f"call-{number}")])
        whole = frames_of(path)
        for lost in (1, 7, 20):
            crashed = cut(path, tmp_path / f"crashed-{lost}", whole - lost)
            with open_log(crashed, durability="relaxed") as again:
                (sequence,) = again.append([making.opening("after")])
            assert 1 < sequence <= 20
            names = [call.call_id for call in ReplayLog(crashed).calls()][::-1]
            # A beginning of what was written: never one from the middle.
            assert names == [f"call-{number}" for number in range(sequence - 1)] + ["after"]
            assert ReplayLog(crashed).verify().findings == ()


def test_a_flushed_log_that_lost_its_end_is_not_written_on(path: Path, tmp_path: Path) -> None:
    with open_log(path) as log:
        for number in range(5):
            log.append([making.opening(f"call-{number}")])
        crashed = cut(path, tmp_path / "crashed", frames_of(path) - 2)
    with pytest.raises(DamagedLog, match="records were lost"):
        open_log(crashed)


def test_what_is_ingested_from_a_relaxed_log_is_durable_in_the_journal(
    path: Path, tmp_path: Path
) -> None:
    """Otherwise a crash would leave rows of records that the journal gives other numbers to."""
    with open_log(path, durability="relaxed") as log:
        for number in range(5):
            log.append([making.opening(f"call-{number}")])
        assert (path / "leaves").stat().st_size == 0
        ReplayLog(path).refresh()
        assert (path / "leaves").stat().st_size == 5 * 32
        log.append([making.opening("later")])
        report = ReplayLog(path).verify()
    assert (report.records, report.audited, report.findings) == (6, 5, ())


# Room for the write-ahead log.


def test_room_is_made_ahead_of_need_and_is_used(path: Path, tmp_path: Path) -> None:
    wal = path / "journal.sqlite-wal"
    with open_log(path) as log, open_log(path) as other:
        log.append([making.opening("small")])
        assert wal.stat().st_size < room.BEGIN
        number = 0
        while wal.stat().st_size < room.ROOM:
            number += 1
            log.append([making.intent(f"call-{number}", "x" * 3000)])
        size = wal.stat().st_size
        for further in range(40):
            (log, other)[further % 2].append([making.intent(f"further-{further}", "x" * 3000)])
        assert wal.stat().st_size == size
        # A crash leaves the zeros behind; whoever reads or writes next passes over them.
        crashed = Path(shutil.copytree(path, tmp_path / "crashed"))
    (crashed / "journal.sqlite-shm").unlink()
    with open_log(crashed) as again:
        assert again.append([making.opening("after")]) == [number + 42]
    report = ReplayLog(crashed).verify()
    assert (report.records, report.findings) == (number + 42, ())


def test_a_checkpoint_uses_the_room_again(path: Path) -> None:
    wal = path / "journal.sqlite-wal"
    with open_log(path) as log:
        for number in range(60):
            log.append([making.intent(f"call-{number}", "x" * 3000)])
        ReplayLog(path).refresh()
        size = wal.stat().st_size
        for number in range(60):
            log.append([making.intent(f"later-{number}", "x" * 3000)])
        assert wal.stat().st_size == size
    assert ReplayLog(path).verify().findings == ()


# Large records.

LARGE = """
import os, resource, sys
from isonomy.replay import ReplayLog, ingest, open_log
from isonomy.sdk.canonical import canonical
from isonomy.sdk.records import Entry, Output, Payload
from tests.replay import making
mb = 1 << 20
size = int(sys.argv[2]) * mb
body = canonical(Output(text=os.urandom(size // 2).hex()))
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
start = peak()
with open_log(sys.argv[1]) as log:
    log.append([making.intent("a", "x")])
    ended = making.result("a", ["y"])
    kept = tuple(p for p in ended.payloads if p.name != "output")
    log.append([Entry(ended.record, (*kept, Payload("output", body)))])
log = ReplayLog(sys.argv[1])
assert log.call("a").records[1].payloads["output"] == body
print("append and read", (peak() - start) // mb, file=sys.stderr)
assert log.verify().findings == ()
((length,),) = log.sql("select length(output_text) from calls").fetchall()
assert length == size
print("tail", (peak() - start) // mb, file=sys.stderr)
ingest.ingest(sys.argv[1])
assert log.verify().findings == ()
((length,),) = log.sql("select length(output_text) from calls").fetchall()
assert length == size
print((peak() - start) // mb)
"""


def test_large_payloads_go_through_everything_in_bounded_memory(path: Path) -> None:
    """Fifty megabytes in full; appended, read, verified, asked for, ingested, asked for again."""
    size = 50 if os.environ.get("ISONOMY_TORTURE") == "1" else 8
    done = subprocess.run(
        [sys.executable, "-c", LARGE, str(path), str(size)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    # DuckDB alone takes some 100 MB.
    assert int(done.stdout.split()[-1]) < 200 + 15 * size, done.stderr


def test_a_payload_beyond_what_sqlite_can_hold_is_refused_and_never_waited_for(
    path: Path,
) -> None:
    with open_log(path, on_full="gap") as log:
        assert log._connection is not None
        log._connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 100_000)
        entry = Entry(making.opening("a").record, (Payload("x", bytes(200_000)),))
        with pytest.raises(LogUnwritable, match="larger"):
            log.append([entry])
        assert log.append([making.opening("b")]) == [1]
    with closing(sqlite3.connect(path / "journal.sqlite")) as connection:
        assert connection.execute("SELECT count(*) FROM records").fetchone() == (1,)
