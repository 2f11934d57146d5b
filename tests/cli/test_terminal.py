"""Rich on a terminal, plain in a pipe, and quick to start."""

from __future__ import annotations

import re
import subprocess
import time
from pathlib import Path

import pytest
from tests.cli.conftest import ISONOMY, NASTY, Run, run_apart, run_on_terminal

from isonomy.sdk import Guard

CONTROL = re.compile(r"\x1b\[([0-9;?]*)([A-Za-z])")
HARMLESS = set("mKJAGhl")
"""Styles, and what a progress display needs: clearing, up, column, cursor on and off."""


@pytest.fixture
def filled(log: Path) -> Path:
    with Guard(lambda messages: NASTY, [], log) as guard:
        guard.chat(NASTY)
    return log


@pytest.mark.parametrize("command", ["log", "sql", "explain", "verify"])
def test_on_a_terminal(filled: Path, run: Run, command: str) -> None:
    """Only our own escapes reach it, and the log's text stays text."""
    more = {"sql": ["select * from calls"], "explain": []}.get(command, [])
    if command == "explain":
        more = [run("log", "--json", "--log", filled).json[0]["call_id"]]
    said = run_on_terminal(command, *more, "--log", filled)
    assert said.status == 0, said
    if command in ("log", "sql"):
        assert "\x1b[" in said.out, "not rich"
    if command == "log":  # a line each, under a heading and a rule
        assert "─" in said.out
        assert len([line for line in said.out.splitlines() if line.strip()]) == 3
    if command == "sql":  # too wide for a table
        assert "output_text" in said.out
        assert "complete" in said.out
    rest = CONTROL.sub(lambda found: "" if found[2] in HARMLESS else found[0], said.out)
    assert not set("\x1b\x07\x9b\u202e") & set(rest)
    if command in ("sql", "explain"):
        assert "[bold]" in rest.replace("\r\n", "").replace(" ", "")
        assert "\x1b[31m" not in said.out


def test_in_a_pipe(filled: Path) -> None:
    said = run_apart("sql", "select call_id, status from calls", "--log", filled)
    assert (said.status, said.err) == (0, "")
    header, row = said.out.splitlines()
    assert header == "call_id\tstatus"
    assert row.endswith("\tcomplete")


def test_help_answers_at_once() -> None:
    """The best of some runs: other work on the machine must not fail it."""
    best = float("inf")
    for _ in range(10):
        started = time.perf_counter()
        done = subprocess.run([ISONOMY, "--help"], capture_output=True, text=True, check=True)
        best = min(best, time.perf_counter() - started)
        for name in ("chat", "demo", "explain", "log", "plugins", "replay", "sql", "verify"):
            assert f"\n  {name} " in done.stdout
        if best < 0.3:
            break
    assert best < 0.3
