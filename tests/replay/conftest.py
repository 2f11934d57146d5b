"""Logs to play with: empty ones, and one with every kind of record."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.replay import making

from isonomy.replay import JournalLog, ReplayLog, open_log


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "log"


@pytest.fixture
def journal(path: Path) -> Iterator[JournalLog]:
    with open_log(path) as log:
        yield log


@pytest.fixture
def filled(journal: JournalLog) -> ReplayLog:
    """Two finished calls, one blocked, one that stopped after its opening, one after its intent."""
    journal.append(making.call("call-finished", "hello", ["a", "b"]))
    journal.append(making.call("call-blocked", "hello", ["c"], blocked=True, session="session-2"))
    journal.append(making.call("call-remote", "bye", ["d"], remote=True))
    journal.append([making.opening("call-opened")])
    journal.append([making.intent("call-intended", "events", events=making.every_event())])
    return ReplayLog(journal.path)
