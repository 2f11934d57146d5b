"""What a guard costs around a model that answers at once: ours by all ways, and others beside it.

Every figure is of a whole call with its model's own cost taken off. "Flush apart" is a log on a
memory disk, where a flush costs nothing: what recording computes and writes. The others run in
environments of their own (``make bench-guards``); those that are not installed are left out.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .guards.peer import (
    ANSWER,
    CONCURRENT,
    PEERS,
    QUESTION,
    import_ms,
    installed_mb,
    latencies,
    patterns,
    throughput,
)
from .measuring import median, percentile, table

if TYPE_CHECKING:
    from isonomy.sdk import Guard

ENVIRONMENTS = Path("build/guards")
MEMORY_DISK = Path("/dev/shm")


def main(*, calls: int = 3000, quick: bool = False) -> Iterator[str]:
    """Yield the tables, as Markdown."""
    calls = 200 if quick else calls
    yield f"microseconds a call, model taken off; {CONCURRENT} calls at a time in calls a second\n"
    yield _ours(calls) + "\n"
    yield f"side by side: one check each way, then five; no log; {calls // 4} calls each\n"
    yield _others(calls // 4) + "\n"


@contextmanager
def _guard(checks: int, log: str, *, awaited: bool = False) -> Iterator[Guard]:
    """Give a guard around a function that answers at once; async where it is `awaited`."""
    from isonomy.plugins import Patterns
    from isonomy.sdk import Guard

    policy = [Patterns(deny=[pattern]) for pattern in patterns(checks)]
    folder = MEMORY_DISK if log == "flush apart" and MEMORY_DISK.is_dir() else None
    with tempfile.TemporaryDirectory(dir=folder) as path:
        where = None if log == "no log" else f"{path}/log"
        with Guard(_aanswer if awaited else _answer, policy=policy, log=where) as guard:
            yield guard


def _answer(messages: object) -> str:
    return ANSWER


async def _aanswer(messages: object) -> str:
    return ANSWER


def _ours(calls: int) -> str:
    rows = []
    for checks in (1, 5):
        for log in ("no log", "flush apart", "flushed"):
            count = calls if log == "no log" else max(calls // 4, 50)
            ways: dict[str, Callable[[Guard], list[float]]] = {
                "chat": lambda g, n=count: latencies(lambda: g.chat(QUESTION), n),
                "achat": lambda g, n=count: _async_latencies(g, n),
                "stream": lambda g, n=count: latencies(lambda: "".join(g.stream(QUESTION)), n),
            }
            for way, measure in ways.items():
                with _guard(checks, log, awaited=way == "achat") as guard:
                    times = measure(guard)
                    many = throughput(lambda g=guard: g.achat(QUESTION), count)
                rows.append(
                    [
                        f"{checks} each way, {log}, `{way}`",
                        f"{median(times) * 1e6:.0f}",
                        f"{percentile(times, 99) * 1e6:.0f}",
                        f"{len(times) / sum(times):.0f}",
                        f"{many:.0f}" if way == "achat" else "",
                    ]
                )
    return table(["what", "median", "p99", "calls/s, 1", f"calls/s, {CONCURRENT}"], rows)


def _async_latencies(guard: Guard, calls: int) -> list[float]:
    import time

    async def run() -> list[float]:
        for _ in range(20):
            await guard.achat(QUESTION)
        times = []
        for _ in range(calls):
            started = time.perf_counter()
            await guard.achat(QUESTION)
            times.append(time.perf_counter() - started)
        return times

    return asyncio.run(run())


def _others(calls: int) -> str:
    rows = []
    for checks in (1, 5):
        measured = [_isonomy(checks, calls), *(_peer(name, checks, calls) for name in PEERS)]
        for found in measured:
            if found is None:
                continue
            rows.append(
                [
                    f"{found['name']} {found['version']}",
                    checks,
                    f"{found['median_us']:.0f}",
                    f"{found['p99_us']:.0f}",
                    f"{found['calls_s']:.0f}",
                    f"{found['import_ms']:.0f}",
                    f"{found['installed_mb']:.0f}",
                ]
            )
    headings = ["guard", "checks", "median", "p99", f"calls/s, {CONCURRENT}", "import, ms", "MB"]
    return table(headings, rows)


def _isonomy(checks: int, calls: int) -> dict[str, Any]:
    from importlib.metadata import version

    with _guard(checks, "no log", awaited=True) as guard:
        many = throughput(lambda: guard.achat(QUESTION), calls)
    with _guard(checks, "no log") as guard:
        times = latencies(lambda: guard.chat(QUESTION), calls)
        return {
            "name": "isonomy",
            "version": version("isonomy"),
            "median_us": median(times) * 1e6,
            "p99_us": percentile(times, 99) * 1e6,
            "calls_s": max(many, len(times) / sum(times)),
            "import_ms": import_ms("isonomy.sdk"),
            "installed_mb": installed_mb("isonomy"),
        }


def _peer(name: str, checks: int, calls: int) -> dict[str, Any] | None:
    python = ENVIRONMENTS / name / "bin" / "python"
    if not python.exists():
        return None
    done = subprocess.run(
        [python, "bench/guards/peer.py", name, str(checks), str(calls)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        print(f"{name} failed: {done.stderr.strip().splitlines()[-1:]}", file=sys.stderr)
        return None
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found
