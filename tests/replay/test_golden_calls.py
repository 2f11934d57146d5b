"""Calls recorded by every version that ever wrote logs: read, verified and replayed by this one."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.replay.golden import policy

from isonomy.replay import ReplayLog
from isonomy.sdk import Guard, check

GOLDEN = Path(policy.__file__).parent
VERSIONS = {1: 3, 2: 4}
"""How many calls there are of each version of the records."""


@pytest.fixture(params=VERSIONS)
def version(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture
def log(version: int, tmp_path: Path) -> Path:
    # A copy: opening a journal puts files of SQLite's beside it.
    return Path(shutil.copytree(GOLDEN / f"calls-{version}", tmp_path / "log"))


def guard_of(checks: int, log: Path, version: int) -> Guard:
    if not checks:
        return Guard(policy.Reciter(), [], log)
    declared: dict[str, Any] = {} if version == 1 else {"lookback": 4}
    tidy = check(policy.tidy, id="tidy", stages=("post_validate",), **declared)
    return Guard(policy.Reciter(), [check(policy.Looks(), id="looks"), tidy], log)


def test_they_are_read_and_verified(log: Path, version: int) -> None:
    with ReplayLog(log) as opened:
        assert opened.verify().findings == ()
        calls = opened.calls()
        assert len(calls) == VERSIONS[version]
        assert {call.status for call in calls} == {"complete"}
        assert {call.intent.schema for call in calls if call.intent} == {version}
        rows = opened.sql("select operation, error from calls order by sequence").fetchall()
        operation = "chat" if version == 1 else "stream"
        assert rows == [*[(operation, None)] * (VERSIONS[version] - 1), (operation, "BackendError")]
        left = opened.sql(
            "select c.output_text, (select string_agg(s.text, '' order by s.number) from segments s"
            " where s.call_id = c.call_id) from calls c where c.error is null"
        ).fetchall()
        assert all(text == (released or text) for text, released in left)
        assert any(released for _, released in left) == (version == 2)


def test_they_are_replayed(log: Path, version: int) -> None:
    with ReplayLog(log) as opened:
        calls = opened.calls()
    for call in calls:
        assert call.intent is not None
        with guard_of(len(call.intent.checks), log, version) as guard:
            replayed = guard.replay(call.call_id)
        if call.intent.checks and sys.version_info[:2] != (3, 11):
            # The digest of a function is that of its byte code, which is Python's own.
            assert (replayed.status, "code" in str(replayed.reason)) == ("refused", True)
            continue
        assert replayed.status == "verified", replayed.sentence()


def test_a_call_without_checks_is_replayed_in_a_child_process(log: Path) -> None:
    with ReplayLog(log) as opened:
        (call,) = (c for c in opened.calls() if c.intent and not c.intent.checks)
        assert opened.replay(call.call_id).status == "verified"
