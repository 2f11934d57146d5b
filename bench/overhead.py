"""What a guard costs around a model that answers at once, and what importing the SDK costs."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time

from .measuring import median, percentile, table

_ANSWER = "Your order has shipped and will arrive on Tuesday."


def main(*, calls: int = 2000, quick: bool = False) -> str:
    """Return latencies as a Markdown table: microseconds a call, the model's own cost taken off."""
    from isonomy.plugins import Patterns
    from isonomy.sdk import Guard

    calls = 200 if quick else calls
    one = [Patterns(deny=["(?i)password is"])]
    five = [Patterns(deny=[f"(?i)forbidden {number}"]) for number in range(5)]
    rows = []
    for name, policy, logged in (
        ("one regex check each way, no log", one, False),
        ("one regex check each way, every event logged", one, True),
        ("five regex checks each way, no log", five, False),
        ("five regex checks each way, every event logged", five, True),
    ):
        with tempfile.TemporaryDirectory() as folder:
            log = f"{folder}/log" if logged else None
            with Guard(lambda messages: _ANSWER, policy=policy, log=log) as guard:
                times = _times(guard, calls)
        rows.append([name, f"{median(times) * 1e6:.0f}", f"{percentile(times, 99) * 1e6:.0f}"])
    rows.append(["`import isonomy.sdk`, ms", f"{_import_time('import isonomy.sdk'):.0f}", ""])
    return "microseconds a call\n\n" + table(["what", "median", "p99"], rows)


def _times(guard: object, calls: int) -> list[float]:
    times = []
    for _ in range(calls):
        started = time.perf_counter()
        guard.chat("Where is my order 4821?")  # type: ignore[attr-defined]
        times.append(time.perf_counter() - started)
    return times


def _import_time(statement: str, *, repetitions: int = 9) -> float:
    """Return the median milliseconds of a statement in a fresh interpreter, its start taken off."""
    spent = []
    for _ in range(repetitions):
        runs = []
        for code in ("pass", statement):
            started = time.perf_counter()
            subprocess.run([sys.executable, "-c", code], check=True)
            runs.append(time.perf_counter() - started)
        spent.append((runs[1] - runs[0]) * 1000)
    return median(spent)
