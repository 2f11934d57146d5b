"""How things are measured here.

The contenders of a comparison take turns, repetition by repetition, so that a machine that slows
down or speeds up meanwhile does so for all of them; medians are reported, and ratios are of
medians.
"""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence


def alternate(
    contenders: Mapping[str, Callable[[], float]], *, repetitions: int, warm_up: int = 1
) -> dict[str, list[float]]:
    """Run each contender in turn and return what each returned, warm-up rounds left out."""
    values: dict[str, list[float]] = {name: [] for name in contenders}
    for round_number in range(-warm_up, repetitions):
        for name, run in contenders.items():
            value = run()
            if round_number >= 0:
                values[name].append(value)
    return values


def seconds(function: Callable[[], object]) -> float:
    """Return how long a call takes."""
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def median(values: Sequence[float]) -> float:
    """Return the median."""
    return statistics.median(values)


def percentile(values: Sequence[float], percent: float) -> float:
    """Return a percentile, the nearest value above."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


def table(headings: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a Markdown table."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def machine() -> str:
    """Return the processor and the number of cores, for the head of a report."""
    import os

    name = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo") as lines:  # noqa: PTH123
            name = next(line.split(":", 1)[1].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        pass
    return f"{name}, {os.cpu_count()} cores, Python {platform.python_version()}"
