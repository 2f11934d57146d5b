"""Cold start: from nothing to the first token of `isonomy chat` on the demo model.

The command answers in one piece, as policies judge whole answers; so the answer is one token long
here, and the time ends with the first byte of output. The files are in the page cache.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time

from .measuring import median, table


def main(*, repetitions: int = 9, quick: bool = False) -> str:
    """Return the times as a Markdown table."""
    repetitions = 3 if quick else repetitions
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for what, command in (
            ("`isonomy chat`, first token", _chat(folder, 1)),
            ("`isonomy chat`, 32 tokens", _chat(folder, 32)),
            ("`python -c pass`", [sys.executable, "-c", "pass"]),
        ):
            times = [_first_byte(command) for _ in range(repetitions + 1)][1:]
            rows.append([what, f"{median(times):.2f}", f"{max(times):.2f}"])
    return "seconds, processes started one after the other\n\n" + table(
        ["what", "median", "longest"], rows
    )


def _chat(folder: str, tokens: int) -> list[str]:
    program = "from isonomy.sdk.cli import main; main()"
    options = ["--log", f"{folder}/log", "--seed", "1", "--max-tokens", str(tokens)]
    return [sys.executable, "-c", program, "chat", "Where is my order?", *options]


def _first_byte(command: list[str]) -> float:
    started = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        process.stdout.read(1)
        spent = time.perf_counter() - started
        process.stdout.read()
    if process.returncode:
        raise RuntimeError(f"{command[3:]} failed")
    return spent
