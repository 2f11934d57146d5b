"""A log that is written to is ingested, in a process of its own, and nothing is left of it."""

from __future__ import annotations

import fcntl
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.replay import making

from isonomy.replay import ReplayLog, open_log
from isonomy.replay import background as background_module
from isonomy.replay.background import Background
from isonomy.replay.directory import LogDirectory
from isonomy.replay.ingest import ingest, main
from isonomy.replay.journal import JournalLog
from isonomy.replay.status import Last, last_ingestion, status


def until(condition: Callable[[], object], seconds: float = 30.0) -> None:
    """Wait for what happens by itself."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "isonomy-ingestion"]


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses between ingestions would take most of the time."""
    monkeypatch.setattr(background_module, "PAUSE", 0.01)
    monkeypatch.setattr(background_module, "REST", 0.01)


@pytest.fixture
def journal(path: Path) -> Iterator[JournalLog]:
    """A log whose ingestion starts at once."""
    with JournalLog(path, background=True) as log:
        log._background = Background(log._directory, records=4, seconds=0.2)
        yield log
    assert threads() == []


def ingested(path: Path) -> int:
    return last_ingestion(LogDirectory(path)).record


def test_what_is_written_gets_ingested_without_anybody_asking(
    journal: JournalLog, path: Path
) -> None:
    journal.append(making.call("a", "x", ["y"]))  # by time: fewer than enough records
    until(lambda: ingested(path) == 2)
    for number in range(3):
        journal.append(making.call(f"b-{number}", "x", ["y"]))
    until(lambda: ingested(path) == 8)
    journal.close()
    assert ReplayLog(path).verify().audited == 8
    assert ReplayLog(path).verify().findings == ()


def test_enough_records_are_not_kept_waiting(path: Path) -> None:
    with JournalLog(path, background=True) as log:
        log._background = Background(log._directory, records=4, seconds=3600)
        log.append(making.call("a", "x", ["y"]))
        time.sleep(0.3)
        assert ingested(path) == 0
        log.append(making.call("b", "x", ["y"]))
        until(lambda: ingested(path) == 4)


def test_who_falls_far_behind_takes_no_long_pause(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(background_module, "PAUSE", 10_000.0)
    with JournalLog(path, background=True) as log:
        log._background = Background(log._directory, records=2, seconds=0)
        log.append(making.call("a", "x", ["y"]))
        until(lambda: ingested(path) == 2)
        until(lambda: log._background and log._background._running is None)
        log.append(making.call("b", "x", ["y"]))
        time.sleep(0.5)
        assert ingested(path) == 2  # it rests
        log.append([entry for n in range(10) for entry in making.call(f"{n}", "x", ["y"])])
        until(lambda: ingested(path) == 24)


def test_the_write_ahead_log_of_a_log_that_nobody_queries_stays_small(
    journal: JournalLog, path: Path
) -> None:
    """It is moved into the database, and begun again from its start."""
    wal = path / "journal.sqlite-wal"
    sizes = []
    for number in range(5):
        last = journal.append(making.call(f"{number}", os.urandom(300_000).hex(), ["y"]))[-1]
        until(lambda last=last: ingested(path) == last)  # type: ignore[misc]
        until(lambda: unlocked(path / "ingesting"))
        sizes.append(wal.stat().st_size)
    assert sizes[0] > 600_000
    assert sizes[-1] < 2 * sizes[0]
    journal.close()
    assert ReplayLog(path).verify().findings == ()


def unlocked(file: Path) -> bool:
    with file.open("rb") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def test_a_process_that_writes_never_loads_duckdb(tmp_path: Path) -> None:
    script = f"""
import sys, time
from tests.replay import making
from isonomy.replay.journal import JournalLog
from isonomy.replay.background import Background
from isonomy.replay.directory import LogDirectory
from isonomy.replay.status import last_ingestion
log = JournalLog({str(tmp_path / "log")!r}, background=True)
log._background = Background(log._directory, records=1, seconds=0)
log.append(making.call("a", "x", ["y"]))
while not last_ingestion(LogDirectory(log.path)).record:
    time.sleep(0.01)
assert "duckdb" not in sys.modules
log.close()
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_never_two_at_a_time(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever has the lock ingests; others look again later."""
    started = []
    real = background_module._started

    def starts(*arguments: object) -> object:
        started.append(1)
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(background_module, "_started", starts)
    with JournalLog(path, background=True) as one, JournalLog(path, background=True) as other:
        for log in (one, other):
            log._background = Background(log._directory, records=1, seconds=0)
        lock = background_module._taken(LogDirectory(path))
        assert lock is not None
        assert background_module._taken(LogDirectory(path)) is None
        one.append(making.call("a", "x", ["y"]))
        other.append(making.call("b", "x", ["y"]))
        time.sleep(0.5)
        assert started == []
        os.close(lock)
        until(lambda: ingested(path) == 4)
        until(lambda: unlocked(path / "ingesting"))
    assert len(started) <= 2
    assert ReplayLog(path).verify().findings == ()


def test_the_lock_is_the_subprocess_s_own(path: Path) -> None:
    """A process that dies leaves it to the ingestion, which holds it until its end."""
    open_log(path, background=False).close()
    directory = LogDirectory(path)
    with directory.locked():  # so that the ingestion has to wait
        lock = background_module._taken(directory)
        assert lock is not None
        running = background_module._started(directory, lock)
        os.close(lock)
        assert not unlocked(path / "ingesting")
    assert running.wait(30) == 0
    assert unlocked(path / "ingesting")
    assert running.stderr is not None
    running.stderr.close()


def test_an_append_does_not_wait_for_an_ingestion(journal: JournalLog, path: Path) -> None:
    with LogDirectory(path).locked():  # no ingestion can begin its work
        journal.append(making.call("a", "x", ["y"]))
        until(lambda: journal._background and journal._background._running)
        began = time.perf_counter()
        for number in range(20):
            journal.append(making.call(f"b-{number}", "x", ["y"]))
        assert time.perf_counter() - began < 10  # of course: it would wait for ever
    until(lambda: ingested(path) > 0)


def test_closing_ends_a_running_ingestion(journal: JournalLog, path: Path) -> None:
    with LogDirectory(path).locked():
        journal.append(making.call("a", "x", ["y"]))
        until(lambda: journal._background and journal._background._running)
        background = journal._background
        assert background is not None
        running = background._running
        assert running is not None
        began = time.perf_counter()
        journal.close()
        journal.close()
        assert time.perf_counter() - began < 10
        assert running.returncode is not None
    assert threads() == []
    assert unlocked(path / "ingesting")
    assert list(path.glob("ingest.duckdb*")) == []
    assert ReplayLog(path).verify().findings == ()


def test_an_ingestion_that_is_told_to_stop_publishes_what_it_has(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from isonomy.replay import ingest as ingesting

    with open_log(path, background=False) as log:
        for number in range(4):
            log.append(making.call(f"{number}", "x", ["y"]))
    monkeypatch.setattr(ingesting, "BATCH", 2)
    real = ingesting._store

    def stopping(*arguments: object) -> int:
        signal.raise_signal(signal.SIGTERM)
        return real(*arguments)  # type: ignore[arg-type]

    former = signal.signal(signal.SIGTERM, ingesting._Stopping.heed)
    monkeypatch.setattr(ingesting, "_store", stopping)
    try:
        done = ingest(path)
        assert (done.records, done.last) == (2, 2)
        with pytest.raises(SystemExit):  # nothing is being taken any more
            signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, former)
        monkeypatch.setattr(ingesting._Stopping, "asked", False)
    monkeypatch.setattr(ingesting, "_store", real)
    assert ReplayLog(path).verify().findings == ()
    assert ingest(path).records == 6


def test_a_process_ends_while_an_ingestion_runs(tmp_path: Path) -> None:
    """Without closing its log; the ingestion comes to its end alone."""
    script = f"""
from tests.replay import making
from isonomy.replay.journal import JournalLog
from isonomy.replay.background import Background
import time
log = JournalLog({str(tmp_path / "log")!r}, background=True)
log._background = Background(log._directory, records=1, seconds=0)
log.append(making.call("a", "x", ["y"]))
while log._background._running is None:
    time.sleep(0.001)
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
    until(lambda: ingested(tmp_path / "log") == 2)
    until(lambda: unlocked(tmp_path / "log" / "ingesting"))


def write_in_child(path: str, log: JournalLog) -> None:
    assert log._background is not None
    log.append(making.call("child", "x", ["y"]))
    assert [thread.is_alive() for thread in threads()] == [True]
    until(lambda: ingested(Path(path)) >= 4)
    log.close()
    assert threads() == []


def test_a_forked_child_has_its_own(journal: JournalLog, path: Path) -> None:
    journal.append(making.call("parent", "x", ["y"]))
    until(lambda: ingested(path) == 2)
    child = multiprocessing.get_context("fork").Process(
        target=write_in_child, args=(str(path), journal)
    )
    child.start()
    child.join(60)
    assert child.exitcode == 0
    assert journal._background is not None
    assert len(threads()) == 1
    journal.append(making.call("again", "x", ["y"]))
    until(lambda: ingested(path) == 6)


def test_forks_while_ingestions_start_leave_no_lock_behind(path: Path) -> None:
    """A child that does nothing must not hold the lock that its parent was about to hand over."""
    directory = LogDirectory(path)
    open_log(path, background=False).close()
    stop = threading.Event()

    def start() -> None:
        while not stop.is_set():
            with background_module._starting:
                lock = background_module._taken(directory)
                time.sleep(0.001)
                if lock is not None:
                    os.close(lock)

    starter = threading.Thread(target=start)
    starter.start()
    children = []
    try:
        for _ in range(20):
            child = os.fork()
            if not child:
                time.sleep(5)
                os._exit(0)
            children.append(child)
    finally:
        stop.set()
        starter.join()
        free = unlocked(path / "ingesting")
        for child in children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    assert free


def test_failures_are_told_once_and_shown(
    path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(background_module, "BACK_OFF", (0.01, 0.01))
    with JournalLog(path, background=True) as log:
        log._background = Background(log._directory, records=1, seconds=0)
        (path / "audit.duckdb").write_bytes(b"no database")
        with caplog.at_level(logging.WARNING, "isonomy"):
            log.append(making.call("a", "x", ["y"]))
            background = log._background
            until(lambda: background._failures >= 2)
    told = [record for record in caplog.records if "can't be ingested" in record.getMessage()]
    assert len(told) == 1
    assert "audit.duckdb" in told[0].getMessage()
    shown = status(LogDirectory(path))
    assert "damaged" in shown.last_ingestion.problem
    assert (shown.records, shown.ingested, shown.behind) == (2, 0, 2)
    assert shown.sizes["audit.duckdb"] == 11
    assert main([str(path), "--rebuild"]) == 0
    shown = status(LogDirectory(path))
    assert (shown.last_ingestion.problem, shown.behind) == ("", 0)


def test_a_python_that_cannot_be_started_is_told(
    journal: JournalLog,
    path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    with caplog.at_level(logging.WARNING, "isonomy"):
        journal.append(making.call("a", "x", ["y"]))
        until(lambda: "can't be started" in caplog.text)


def test_a_status_that_is_no_status_is_none(path: Path) -> None:
    open_log(path, background=False).close()
    assert last_ingestion(LogDirectory(path)) == Last()
    (path / "ingestion.json").write_text("{")
    assert last_ingestion(LogDirectory(path)) == Last()
    ingest(path)
    assert last_ingestion(LogDirectory(path)).ended_ns > 0
    assert (path / "ingestion.json").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("background", [True, False])
def test_the_setting_of_a_configuration_file(tmp_path: Path, background: bool) -> None:
    from isonomy.sdk import Guard

    file = tmp_path / "isonomy.toml"
    file.write_text(f'[log]\npath = "log"\nbackground = {str(background).lower()}\n')
    with Guard.from_file(file, backend=lambda text: "fine") as guard:
        assert isinstance(guard.log, JournalLog)
        assert (guard.log._background is not None) is background
    with Guard(backend=lambda text: "fine", log=tmp_path / "log") as guard:
        assert isinstance(guard.log, JournalLog)
        assert guard.log._background is not None
        assert threads() == []  # nothing was written yet


def test_the_command_that_tells_how_a_log_is_doing(path: Path) -> None:
    from click.testing import CliRunner

    from isonomy.sdk.cli.log import log_command

    with open_log(path, background=False) as log:
        log.append(making.call("a", "x", ["y"]))
        told = CliRunner().invoke(log_command, ["status", "--log", str(path)])
        assert told.exit_code == 0, told.output
        assert "2 records\nnot ingested yet\n" in told.output
        ingest(path)
        log.append(making.call("b", "x", ["y"]))
        told = CliRunner().invoke(log_command, ["status", "--log", str(path)])
        assert "ingested up to record 2, 2 to come\n" in told.output
        assert "MB  audit.duckdb\n" in told.output
        (path / "audit.duckdb").chmod(0o600)
        (path / "audit.duckdb").write_bytes(b"no database")
        assert main([str(path)]) == 1
        told = CliRunner().invoke(log_command, ["status", "--log", str(path)])
        assert "it failed: audit.duckdb" in told.output
        told = CliRunner().invoke(log_command, ["status", "--json", "--log", str(path)])
        assert '"behind": 2' in told.output
