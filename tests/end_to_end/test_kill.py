"""Kill -9 at any moment of a call: the journal opens, nothing acknowledged is missing.

A process that has everything loaded forks one victim after another; a victim makes guarded calls
in a loop and says on a pipe what it is doing, and is killed from outside at a random moment of
that.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from isonomy.replay import ReplayLog

ISONOMY = Path(sys.executable).with_name("isonomy")
KILLS = 25
NURSERY = """
import os, sys, threading
from isonomy.sdk import Guard, Flag, hookimpl
import isonomy.backends.callable, isonomy.replay.journal

log = sys.argv[1]

def say(*words):
    os.write(1, (" ".join(words) + "\\n").encode())

class Looks:
    @hookimpl
    def pre_filter(self, ctx):
        ctx.effect("look", lambda: say("looking"))  # writes an opening record first
        return Flag("looked")

def live(hang):
    def answer(messages):
        say("asked")
        if hang:
            threading.Event().wait()
        return "an answer " * 200
    with Guard(answer, [Looks()], log) as guard:
        while True:
            say("answered", guard.chat("a question " * 100).call_id)

for line in sys.stdin:
    pid = os.fork()
    if not pid:
        try:
            live(line == "hang\\n")
        finally:
            os._exit(1)
    say("born", str(pid))
    _, status = os.waitpid(pid, 0)
    say("died", str(os.waitstatus_to_exitcode(status)))
"""


@pytest.fixture
def nursery(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", NURSERY, tmp_path / "log"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
    ) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(30) == 0


def life_and_death(nursery: subprocess.Popen[str], chance: random.Random) -> tuple[set[str], str]:
    """Have a victim killed at a random moment; returns what it acknowledged, and its last word."""
    assert nursery.stdin is not None
    assert nursery.stdout is not None
    hang = chance.random() < 0.2
    nursery.stdin.write("hang\n" if hang else "\n")
    nursery.stdin.flush()
    pid, said, acknowledged, last = 0, 0, set(), ""
    words = chance.randrange(12)
    for line in nursery.stdout:
        word, _, value = line.strip().partition(" ")
        if word == "born":
            pid = int(value)
        elif word == "died":
            assert int(value) == -signal.SIGKILL
            return acknowledged, last
        else:
            said, last = said + 1, word
        if word == "answered":
            acknowledged.add(value)
        if pid and (word == "asked" if hang else said >= words):
            until = time.perf_counter_ns() + chance.randrange(6_000_000)
            while time.perf_counter_ns() < until:
                pass
            os.kill(pid, signal.SIGKILL)
            pid = 0
    raise AssertionError("the nursery died")


def test_kill_at_any_moment(tmp_path: Path, nursery: subprocess.Popen[str]) -> None:
    seed = random.SystemRandom().getrandbits(32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    acknowledged: set[str] = set()
    for number in range(KILLS):
        promised, _ = life_and_death(nursery, chance)
        acknowledged |= promised
        if (tmp_path / "log").exists() and promised:
            with ReplayLog(tmp_path / "log") as log:
                for call_id in promised:
                    assert log.call(call_id).output is not None, f"lost after kill {number}"
    with ReplayLog(tmp_path / "log") as log:
        rows = log.sql("select call_id, status, output_text from calls").fetchall()
        assert len({call_id for call_id, _, _ in rows}) == len(rows)
        states = {call_id: (status, text) for call_id, status, text in rows}
        for call_id in acknowledged:
            assert states[call_id] == ("complete", "an answer " * 200)
        unfinished = {call_id for call_id, (status, _) in states.items() if status == "unfinished"}
        assert unfinished, "no kill came in the middle of a call"
        assert not unfinished & acknowledged
        for call_id in unfinished:
            assert log.call(call_id).result is None
        assert {status for status, _ in states.values()} == {"complete", "unfinished"}
    done = subprocess.run([ISONOMY, "verify", "--log", tmp_path / "log"], capture_output=True)
    assert done.returncode == 0, (done.stdout, done.stderr)
    done = subprocess.run(
        [ISONOMY, "replay", sorted(unfinished)[0], "--log", tmp_path / "log"], capture_output=True
    )
    assert done.returncode == 2
    assert b"its process ended in the middle" in done.stdout or b"no intent record" in done.stdout


def test_kill_the_command(tmp_path: Path) -> None:
    """The real command on the real model, at random moments from its start on."""
    chance = random.Random()
    log = tmp_path / "log"
    acknowledged = set()
    for _ in range(4):
        with subprocess.Popen(
            [ISONOMY, "chat", "Where is my order 4821?", "--log", log, "--json"],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        ) as process:
            try:
                said, _ = process.communicate(timeout=chance.uniform(0.2, 1.5))
            except subprocess.TimeoutExpired:
                process.kill()
                said, _ = process.communicate()
        if said:
            acknowledged.add(said)
    subprocess.run([ISONOMY, "chat", "Hello", "--log", log], check=True, capture_output=True)
    with ReplayLog(log) as replay_log:
        calls = replay_log.calls()
        assert replay_log.verify().intact
    complete = [call for call in calls if call.status == "complete"]
    assert len(complete) >= len(acknowledged) + 1
    for said in acknowledged:
        assert any(call.call_id.encode() in said for call in complete)
