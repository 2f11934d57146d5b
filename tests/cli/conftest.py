"""The command line in this process, in a process of its own, and on a terminal."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import struct
import subprocess
import sys
import termios
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from tests.backends.local.conftest import tiny_config, write_checkpoint

from isonomy.sdk.cli import main

ISONOMY = Path(sys.executable).with_name("isonomy")
NASTY = "\x1b[31mred\x1b]0;title\x07 [bold]x[/bold] \u202egnp.exe :smile: \x9b2J"
"""Terminal escapes (C0 and C1), Rich markup, a bidirectional override."""


class Said(NamedTuple):
    """What a command printed, and its exit status."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Run = Callable[..., Said]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command in this process: quick."""

    def run(*arguments: Any) -> Said:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return Said(int(stop.value.code or 0), out, err)

    return run


def run_apart(*arguments: Any, **options: Any) -> Said:
    done = subprocess.run(
        [ISONOMY, *map(str, arguments)], capture_output=True, text=True, check=False, **options
    )
    return Said(done.returncode, done.stdout, done.stderr)


def run_on_terminal(*arguments: Any) -> Said:
    """Run a command with a terminal of 100 columns as its standard output and error."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
    environment = {**os.environ, "TERM": "xterm-256color"}
    for name in ("NO_COLOR", "COLUMNS", "FORCE_COLOR"):
        environment.pop(name, None)
    with subprocess.Popen(
        [ISONOMY, *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
        env=environment,
    ) as process:
        os.close(theirs)
        pieces = []
        while True:
            try:
                piece = os.read(ours, 65536)
            except OSError:  # the terminal's other end is closed
                break
            if not piece:
                break
            pieces.append(piece)
    os.close(ours)
    return Said(process.returncode, b"".join(pieces).decode(), "")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The spec of a tiny model with random weights."""
    return f"local:{write_checkpoint(tmp_path_factory.mktemp('cli') / 'tiny', tiny_config())}"


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A path for a log; commands run in a folder of their own, without ISONOMY_LOG."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ISONOMY_LOG", raising=False)
    return tmp_path / "log"
