"""The engines that are compared, each in a process of its own, taking turns.

A contender is a module here that serves commands over its standard input and output (`serving`):
its threads sleep while another one is measured, its memory is its own, and it may live in another
virtual environment.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PEERS = Path(os.environ.get("BENCH_PEERS", ROOT / "build" / "peers"))
"""The virtual environment of llama-cpp-python, which `make bench-peers` makes."""


class Absent(Exception):
    """A contender can't take part; the message says why."""


class Contender:
    """A running contender.

    Args:
        module: of this package, by name.
        options: what its `main` is told, as keyword arguments.
        python: the interpreter to run it with.
        threads: how many it may use.

    Raises:
        Absent: it did not start.
    """

    def __init__(
        self, module: str, *, python: str = sys.executable, threads: int = 2, **options: Any
    ) -> None:
        environment = {
            **os.environ,
            "ISONOMY_THREADS": str(threads),
            "OMP_NUM_THREADS": str(threads),
            "HF_HUB_OFFLINE": "1",
            "TRANSFORMERS_VERBOSITY": "error",
        }
        self.name = module
        self._process = subprocess.Popen(
            [python, "-m", f"bench.contenders.{module}", json.dumps(options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=environment,
        )
        try:
            self._read()
        except Absent:
            self.close()
            raise

    def ask(self, command: str, **arguments: Any) -> Any:
        """Run one command and return its answer.

        Raises:
            Absent: the contender can't do that, or ended.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps([command, arguments]) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise Absent("ended") from None
        return self._read()

    def _read(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise Absent("ended")
        answer = json.loads(line)
        if "error" in answer:
            raise Absent(answer["error"])
        return answer["value"]

    def close(self) -> None:
        """End the process."""
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()
        self._process.wait()

    def __enter__(self) -> Contender:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def peer_python() -> str:
    """Return the interpreter that has llama-cpp-python.

    Raises:
        Absent: there is none.
    """
    python = PEERS / "bin" / "python"
    if not python.exists():
        raise Absent("not installed")
    return str(python)


def run_peer(module: str, arguments: Sequence[str]) -> None:
    """Run a module of this package to its end in the peers' environment.

    Raises:
        Absent: there is no such environment, or it failed.
    """
    command = [peer_python(), "-m", f"bench.contenders.{module}", *arguments]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, check=False)
    if done.returncode:
        raise Absent(f"{module} failed")
