"""Where nothing can be written and calls are to go on: every loss is told, and explains itself."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.replay import making
from tests.replay.test_journal import alone, without_privileges

from isonomy.replay import JournalLog, LogUnwritable, ReplayLog, gaps, open_log
from isonomy.sdk import Guard
from isonomy.sdk.errors import LogError
from isonomy.sdk.records import Gap

ROOT = Path(__file__).parents[2]


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the journal's lock for writers, as a process that hangs would."""
    with closing(sqlite3.connect(path / "journal.sqlite", isolation_level=None)) as holder:
        holder.execute("BEGIN IMMEDIATE")
        yield
        holder.execute("ROLLBACK")


@pytest.fixture
def going_on(path: Path) -> Iterator[JournalLog]:
    """A log that goes on where it can't be written."""
    with open_log(path, on_full="gap", wait_seconds=0.05) as log:
        yield log


def told(path: Path) -> list[Gap]:
    with ReplayLog(path) as log:
        names = log.sql("select call_id from records where kind = 'gap' order by sequence")
        found = [log.call(name).records[0].record for (name,) in names.fetchall()]
    return [gap for gap in found if isinstance(gap, Gap)]


def kinds(path: Path) -> list[str]:
    rows = ReplayLog(path).sql("select kind from records order by sequence").fetchall()
    return [kind for (kind,) in rows]


def test_what_is_lost_is_named_before_anything_else_is_written(
    going_on: JournalLog, path: Path
) -> None:
    going_on.append([making.opening("before")])
    with locked(path):
        assert going_on.append(making.call("a", "x", ["y"])) == []
        assert going_on.append([making.intent("b", "x")]) == []
        assert going_on.append(making.segments("b", ["p", "q"])) == []
    assert going_on.append([making.result("b", ["pq"])]) == [3]
    assert kinds(path) == ["opening", "gap", "result"]
    (gap,) = told(path)
    assert gap.lost == {"a": {"intent": 1, "result": 1}, "b": {"intent": 1, "segment": 2}}
    assert (gap.entries, gap.calls, gap.unnamed) == (5, 2, 0)
    assert gap.call_id.startswith("gap-")
    assert gap.since_ns <= gap.until_ns == gap.wall_ns
    assert "lock" in gap.reason
    assert gap.process == os.getpid()
    # One gap, told once.
    assert going_on.append([making.opening("after")]) == [4]
    assert ReplayLog(path).verify().findings == ()


def test_it_is_in_sql_and_is_no_call(going_on: JournalLog, path: Path) -> None:
    with locked(path):
        going_on.append([making.intent("a", "x")])
    going_on.append([making.result("a", ["y"])])
    log = ReplayLog(path)
    for _ in range(2):
        ((entries, calls, lost),) = log.sql("select entries, calls, lost from gaps").fetchall()
        assert (entries, calls, json.loads(lost)) == (1, 1, {"a": {"intent": 1}})
        assert log.sql("select call_id from calls").fetchall() == [("a",)]
        assert [call.call_id for call in log.calls()] == ["a"]
        log.refresh()
    report = log.verify()
    assert (report.findings, report.audited) == ((), 2)


@pytest.mark.parametrize(
    "gap",
    [
        None,
        making.gap(lost={"other": {"intent": 1}}, unnamed=0),
        making.gap(lost={"a": {"segment": 1}}, unnamed=0),
        making.gap(lost={"a": {"result": 1}}, unnamed=0),
    ],
)
def test_a_result_without_an_intent_that_no_gap_names_is_damage(
    journal: JournalLog, gap: Any
) -> None:
    if gap is not None:
        journal.append([gap])
    journal.append([making.result("a", ["y"])])
    problems = [finding.problem for finding in ReplayLog(journal.path).verify().findings]
    assert problems == ["it is a result without an intent before it"]


def test_a_gap_that_comes_after_explains_nothing(journal: JournalLog) -> None:
    journal.append([making.result("a", ["y"]), making.gap(lost={"a": {"intent": 1}}, unnamed=0)])
    assert len(ReplayLog(journal.path).verify().findings) == 1


def test_segments_that_were_lost(journal: JournalLog) -> None:
    pieces = making.segments("a", ["p", "q", "r", "s"])
    journal.append([making.intent("a", "x"), pieces[0]])
    journal.append(
        [making.gap(lost={"a": {"segment": 2}}, unnamed=0), pieces[3], making.result("a", ["x"])]
    )
    assert ReplayLog(journal.path).verify().findings == ()
    journal.append([making.intent("b", "x"), making.segments("b", ["p", "q"])[1]])
    problems = [finding.problem for finding in ReplayLog(journal.path).verify().findings]
    assert problems == ["it is segment 1 of its call, and number 0 should follow"]


def test_calls_beyond_the_number_that_is_named_are_counted(
    going_on: JournalLog, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gaps, "NAMED", 3)
    with locked(path):
        for number in range(5):
            going_on.append([making.intent(f"call-{number}", "x")])
    going_on.append([making.opening("z")])
    (gap,) = told(path)
    assert (gap.entries, gap.calls, gap.unnamed, [*gap.lost]) == (
        5,
        3,
        2,
        ["call-0", "call-1", "call-2"],
    )


def test_a_gap_with_unnamed_calls_explains_its_process_only(journal: JournalLog) -> None:
    journal.append([making.gap(lost={}, unnamed=2), making.result("a", ["y"])])
    assert ReplayLog(journal.path).verify().findings == ()
    entry = making.result("b", ["y"])
    record = msgspec.structs.replace(entry.record, process=1)
    journal.append([msgspec.structs.replace(entry, record=record)])
    assert [finding.call_id for finding in ReplayLog(journal.path).verify().findings] == ["b"]


def test_an_open_gap_is_recorded_when_the_log_is_closed(path: Path) -> None:
    with open_log(path, on_full="gap", wait_seconds=0.05) as log, locked(path):
        log.append([making.intent("a", "x")])
    assert [gap.lost for gap in told(path)] == [{"a": {"intent": 1}}]


def test_an_open_gap_is_recorded_when_the_interpreter_ends(path: Path) -> None:
    script = (
        "import sys; from pathlib import Path\n"
        "from isonomy.replay import open_log\n"
        "from tests.replay import making, test_gaps\n"
        "log = open_log(sys.argv[1], on_full='gap', wait_seconds=0.05)\n"
        "with test_gaps.locked(Path(sys.argv[1])): log.append([making.intent('a', 'x')])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "a gap begins in the log" in done.stderr
    assert [gap.lost for gap in told(path)] == [{"a": {"intent": 1}}]


def test_a_lock_is_waited_for_once_in_a_gap(path: Path) -> None:
    """Calls go on at once, then: a lock that is held for long must not hold each of them."""
    waited = 0.6
    with open_log(path, on_full="gap", wait_seconds=waited) as log, locked(path):
        started = time.monotonic()
        for number in range(3):
            log.append([making.intent(f"call-{number}", "x")])
        took = time.monotonic() - started
    assert waited * 0.9 <= took < waited * 2.5


def test_a_forked_child_leaves_the_gap_to_its_parent(going_on: JournalLog, path: Path) -> None:
    with locked(path):
        going_on.append([making.intent("a", "x")])
    child = alone(lambda: going_on.append([making.opening("child")]))
    assert os.waitpid(child, 0)[1] == 0
    assert kinds(path) == ["opening"]
    going_on.append([making.opening("parent")])
    assert kinds(path) == ["opening", "gap", "opening"]


def test_a_claim_is_never_passed_over(going_on: JournalLog, path: Path) -> None:
    """Two processes would both go on with a call that only one may resume."""
    with locked(path), pytest.raises(LogUnwritable, match="lock"):
        going_on.claim(making.opening("a"))
    assert going_on.claim(making.opening("a"))
    assert not going_on.claim(making.opening("a"))
    assert kinds(path) == ["opening"]


def test_damage_and_a_closed_log_are_never_passed_over(going_on: JournalLog) -> None:
    connection = going_on._connection
    assert connection is not None
    connection.execute("ALTER TABLE records RENAME TO broken")
    with pytest.raises(LogError, match=r"damaged|lacks"):
        going_on.append([making.opening("a")])
    going_on.close()
    with pytest.raises(LogUnwritable, match="closed"):
        going_on.append([making.opening("a")])


def test_a_log_that_is_moved_away_and_put_back(going_on: JournalLog, path: Path) -> None:
    moved = path.with_name("moved")
    path.rename(moved)
    assert going_on.append([making.intent("a", "x")]) == []
    moved.rename(path)
    assert going_on.append([making.result("a", ["y"])]) == [2]
    assert [gap.lost for gap in told(path)] == [{"a": {"intent": 1}}]


@pytest.fixture
def open_path() -> Iterator[Path]:
    """A log's path that an unprivileged user can reach, unlike pytest's own folders."""
    import shutil
    import tempfile

    folder = Path(tempfile.mkdtemp(prefix="isonomy-test-"))
    folder.chmod(0o777)
    yield folder / "log"
    shutil.rmtree(folder)


def test_permission_that_is_lost_and_comes_back(open_path: Path) -> None:
    with without_privileges(), open_log(open_path, on_full="gap") as log:
        log.append([making.opening("before")])
        other = open_log(open_path)
        try:
            # A fork closes the files; they must be opened again with the rights of then.
            assert os.waitpid(alone(lambda: None), 0)[1] == 0
            for file in open_path.iterdir():
                file.chmod(0o444)
            open_path.chmod(0o555)
            assert log.append([making.intent("a", "x")]) == []
            with pytest.raises(LogUnwritable, match=r"writable|permission"):
                other.append([making.opening("b")])
            open_path.chmod(0o700)
            for file in open_path.iterdir():
                file.chmod(0o600)
            assert log.append([making.result("a", ["y"])]) == [3]
            assert other.append([making.opening("b")]) == [4]
        finally:
            other.close()
    assert kinds(open_path) == ["opening", "gap", "result", "opening"]
    assert ReplayLog(open_path).verify().findings == ()


# A guard whose log can't be written.


class Model:
    """Answers; meanwhile the lock is given back, or taken."""

    def __init__(self, between: Any) -> None:
        self.between = between

    def __call__(self, messages: Any) -> str:
        self.between()
        return "an answer"


def test_a_guard_fails_closed_or_goes_on_as_configured(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with open_log(path):
        pass
    asked: list[int] = []
    with (
        Guard(Model(lambda: asked.append(1)), log=open_log(path, wait_seconds=0.05)) as guard,
        locked(path),
        pytest.raises(LogError, match="lock"),
    ):
        guard.chat("hello")
    assert asked == []  # not even asked: the intent comes first
    going_on = open_log(path, on_full="gap", wait_seconds=0.05)
    with Guard(Model(lambda: asked.append(1)), log=going_on) as guard:
        with locked(path):
            assert guard.chat("hello").text == "an answer"
        lost = guard.chat("and now?").call_id
    (gap,) = told(path)
    assert [*gap.lost.values()] == [{"intent": 1, "result": 1}]
    assert [call.call_id for call in ReplayLog(path).calls()] == [lost]


def test_a_result_is_kept_whose_intent_was_lost(tmp_path: Path) -> None:
    path = tmp_path / "log"
    held = threading.Event()
    with open_log(path):
        pass
    with closing(
        sqlite3.connect(path / "journal.sqlite", isolation_level=None, check_same_thread=False)
    ) as holder:
        holder.execute("BEGIN IMMEDIATE")

        def let_go() -> None:
            if not held.is_set():
                holder.execute("ROLLBACK")
                held.set()

        log = open_log(path, on_full="gap", wait_seconds=0.05)
        with Guard(Model(let_go), log=log) as guard:
            reply = guard.chat("hello")
    with ReplayLog(path) as read:
        call = read.call(reply.call_id)
        assert (call.intent, call.result is not None, call.status) == (None, True, "complete")
        assert call.output is not None
        assert call.output.text == "an answer"
        assert read.verify().findings == ()
        assert read.replay(reply.call_id).status == "refused"


def test_settings_stand_in_the_configuration_file(tmp_path: Path) -> None:
    file = tmp_path / "isonomy.toml"
    file.write_text(
        '[backend]\nuse = "local:demo"\n[log]\npath = "audit"\ndurability = "relaxed"\n'
        'on_full = "gap"\nwait_seconds = 2\n'
    )
    with Guard.from_file(file, backend=lambda messages: "x") as guard:
        assert isinstance(guard.log, JournalLog)
        settings = guard.log.settings
        assert (settings.durability, settings.on_full) == ("relaxed", "gap")
        assert settings.wait_seconds == 2
        assert guard.log.path == str(tmp_path / "audit")
    # A directory given in code takes the file's manner of writing along.
    with Guard.from_file(file, backend=lambda messages: "x", log=tmp_path / "other") as guard:
        assert isinstance(guard.log, JournalLog)
        assert guard.log.settings.durability == "relaxed"
