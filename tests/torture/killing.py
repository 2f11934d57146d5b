"""Starting processes, killing them at random moments, and comparing what they leave behind.

Processes are forked from this one, which has loaded everything and opened nothing: so starting one
takes a millisecond, and the kill falls into its work.
"""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import time
from contextlib import closing, suppress
from pathlib import Path
from typing import NamedTuple

from tests.replay import making

from isonomy.replay import JournalLog, ReplayLog, database
from isonomy.replay.checkpoints import Checked, Checkpoint, origin_of, tree_of
from isonomy.replay.directory import LogDirectory

from .operations import OPERATIONS, make_version_1

LONGEST = (0.03, 0.06, 0.2)
"""Seconds until the last kill of a round, at most: one of these."""

BESIDE = {"fork": 0.5, "hold": 0.15, "ingest": 0.5, "migrate": 0.3, "erase": 0.2}
"""What runs beside writers in a round, each with its probability."""

ROUNDS_OF_A_LOG = 15
"""Rounds until the log is verified as a whole, and another begun."""


class Running(NamedTuple):
    """A process that is to be killed, and the pipe on which it acknowledges."""

    process: int
    reader: int


def start(operation: str, path: Path, name: str, seed: float) -> Running:
    """Fork a process that does an operation until it is killed."""
    reader, writer = os.pipe()
    process = os.fork()
    if process:
        os.close(writer)
        return Running(process, reader)
    try:  # A session of its own: what it forks is killed with it.
        os.setsid()
        os.close(reader)

        def acknowledge(sequence: int, kind: str, call_id: str) -> None:
            os.write(writer, f"{sequence} {kind} {call_id}\n".encode())

        OPERATIONS[operation](path, name, acknowledge, random.Random(seed))
        os._exit(0)
    except BaseException as error:
        # One line, so that it can be told from what a kill has cut.
        os.write(writer, f"! {' '.join(repr(error).split())}\n".encode())
        os._exit(1)


class Torture:
    """One log after the other, each killed at over and over.

    After every round the log must go on, hold each acknowledged record once under its number, and
    have the tree of before as the beginning of its own; at a log's end all of it must verify, with
    the checkpoints that were taken on the way.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.seed = seed
        self.kills: dict[str, int] = dict.fromkeys(OPERATIONS, 0)
        self.acknowledged = 0
        self.gaps = 0
        self.logs = 0
        self._rng = random.Random(seed)
        self._left = 0
        self._path = folder
        self._known: dict[int, tuple[str, str]] = {}
        self._checkpoints: list[Checked] = []

    def round(self) -> None:
        """Start some processes on the log, kill each, and compare."""
        if not self._left:
            self._begin()
        self._left -= 1
        chosen = ["write"] * self._rng.choice((1, 2, 3))
        chosen += [each for each, often in BESIDE.items() if self._rng.random() < often]
        self._kill(chosen, longest=self._rng.choice(LONGEST))
        self._compare()
        if not self._left:
            self._finish()

    def migration(self) -> None:
        """Kill a migration from version 1, again and again, until one gets through.

        The rounds after it go on with that log.
        """
        if self._left:
            self._finish()
        path = self.folder / f"old-{self.logs}"
        self.logs += 1
        with JournalLog(path) as log:
            for number in range(self._rng.choice((20, 200))):
                log.append(making.call(f"call-{number}", f"question {number % 7}", ["an", "swer"]))
        make_version_1(path)
        before = [call.payloads for call in _records(path)]
        self._path, self._known, self._checkpoints = path, {}, []
        self._note()
        longest = 0.004
        while _version(path) == 1:
            self._kill(["migrate"] * self._rng.choice((1, 2)), longest=longest)
            longest *= 1.2
            self._compare(recover=False)
        assert [call.payloads for call in _records(path)][: len(before)] == before
        self._left = ROUNDS_OF_A_LOG

    def _begin(self) -> None:
        self._left = ROUNDS_OF_A_LOG
        self._path = self.folder / f"log-{self.logs}"
        self.logs += 1
        self._known, self._checkpoints = {}, []

    def _kill(self, chosen: list[str], *, longest: float) -> None:
        running = [
            (each, start(each, self._path, f"{sum(self.kills.values())}-{at}", self._rng.random()))
            for at, each in enumerate(chosen)
        ]
        started = time.monotonic()
        for moment, (operation, each) in sorted(
            ((self._rng.random() * longest, one) for one in running), key=lambda pair: pair[0]
        ):
            time.sleep(max(started + moment - time.monotonic(), 0))
            with suppress(ProcessLookupError):
                os.kill(each.process, signal.SIGKILL)
            self.kills[operation] += 1
        for operation, each in running:
            with suppress(ProcessLookupError):  # what it has forked
                os.killpg(each.process, signal.SIGKILL)
            text = b""
            while piece := os.read(each.reader, 1 << 16):
                text += piece
            os.close(each.reader)
            os.waitpid(each.process, 0)
            for line in text.decode().splitlines(keepends=True):
                assert not line.startswith("!"), (operation, self._path, line)
                if line.endswith("\n"):
                    number, kind, call_id = line.split()
                    assert int(number) not in self._known, ("acknowledged twice", line)
                    self._known[int(number)] = (kind, call_id)
                    self.acknowledged += 1

    def _compare(self, *, recover: bool = True) -> None:
        """Compare what the log holds with what was acknowledged."""
        if recover:
            with JournalLog(self._path) as log:
                name = f"recovered-{sum(self.kills.values())}"
                (number,) = log.append([making.opening(name)])
                lost = self._known.get(number)
                assert lost is None, ("acknowledged and lost", self._path, number, lost)
                self._known[number] = ("opening", name)
        elif not self._path.exists():
            return
        stored = records_of(self._path)
        missing = [each for each in self._known.items() if stored.get(each[0]) != each[1]]
        assert not missing, ("acknowledged and lost", self._path, missing)
        assert sorted(stored) == [*range(1, len(stored) + 1)], ("numbers have gaps", self._path)
        assert len({*stored.values()}) == len(stored), ("recorded twice", self._path)
        self._note()

    def _note(self) -> None:
        """Take a checkpoint, and hold the log against those of before."""
        directory = LogDirectory(self._path)
        with closing(_reading(self._path)) as journal:
            journal.execute("BEGIN")
            tree = tree_of(journal, directory)
            for checked in self._checkpoints:
                point = checked.checkpoint
                assert tree.root_at(point.size) == point.root, ("the tree changed", self._path)
            (log_id,) = journal.execute("SELECT value FROM meta WHERE name = 'log'").fetchone()
            point = Checkpoint(origin_of(log_id), tree.size, tree.root)
        self._checkpoints = [*self._checkpoints[-3:], Checked(point, ("torture",))]

    def _finish(self) -> None:
        """Ingest and verify all of the log."""
        log = ReplayLog(self._path)
        log.refresh()
        report = log.verify(checkpoints=self._checkpoints)
        assert report.findings == (), (self._path, report.findings[:5])
        assert report.audited == report.records == report.proven, (self._path, report)
        assert report.records >= len(self._known)
        ((gaps,),) = log.sql("select count(*) from gaps").fetchall()
        self.gaps += gaps


def records_of(path: Path) -> dict[int, tuple[str, str]]:
    """Return kind and call id of every record of a log by number, wherever it keeps them."""
    with closing(_reading(path)) as journal:
        return {
            sequence: (kind, call_id)
            for sequence, kind, call_id in journal.execute(
                "SELECT sequence, kind, call_id FROM records"
            )
        }


def _reading(path: Path) -> sqlite3.Connection:
    return database.connect(LogDirectory(path), writable=False)


def _version(path: Path) -> int:
    with closing(_reading(path)) as journal:
        return int(journal.execute("PRAGMA user_version").fetchone()[0])


def _records(path: Path) -> list:  # type: ignore[type-arg]
    """Return all records of a log, in sequence."""
    found = [record for call in ReplayLog(path).calls() for record in call.records]
    return sorted(found, key=lambda record: record.sequence)
