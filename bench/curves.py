"""Cost curves of ours: tokens a second by the length of the context and by the number of calls."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from . import checkpoints
from .contenders import Absent, Contender
from .measuring import median, table

CONTEXTS = (128, 256, 512, 1024, 2048, 4096, 8192)
CALLS = (1, 2, 4, 8, 16, 32, 64)


def main(*, quick: bool = False, threads: int = 2) -> Iterator[str]:
    """Give two tables for each size, bf16 weights. BENCH_SIZES narrows them down."""
    yield f"tokens a second, bf16 weights, {threads} threads, medians of {1 if quick else 3} runs"
    given = os.environ.get("BENCH_SIZES", "135M" if quick else "135M,600M")
    for size in given.split(","):
        with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_TMP")) as folder:
            path = Path(folder) / size
            checkpoints.write_apart(path, dtype="bfloat16", shape=size)
            options = {"folder": str(path), "weights": "bf16", "max_concurrent": max(CALLS)}
            with Contender("ours", threads=threads, **options) as ours:
                yield f"\n### {size}\n\n{_contexts(ours, quick)}\n\n{_calls(ours, quick)}"


def _contexts(ours: Contender, quick: bool) -> str:
    rows = []
    for number, context in enumerate(CONTEXTS[:4] if quick else CONTEXTS):
        runs = [
            ours.ask("context", length=context, tokens=16, number=100 * number + again)
            for again in range(1 if quick or context > 1024 else 3)
        ]
        prompt, decode = (median([run[what] for run in runs]) for what in ("prompt", "decode"))
        rows.append([context, f"{prompt:.0f}", f"{decode:.1f}"])
    return table(["context", "prompt of that length", "decode after it"], rows)


def _calls(ours: Contender, quick: bool) -> str:
    rows = []
    alone: float | None = None
    for number, calls in enumerate(CALLS[:5] if quick else CALLS):
        tokens = max(16, 32 // calls)
        try:
            rate = median(
                [
                    ours.ask(
                        "batch", calls=calls, tokens=tokens, number=2000 + 100 * number + 10 * r
                    )
                    for r in range(1 if quick else 3)
                ]
            )
        except Absent as absent:
            rows.append([calls, str(absent), ""])
            continue
        alone = alone or rate
        rows.append([calls, f"{rate:.1f}", f"{rate / alone:.2f}"])
    return table(["calls at a time", "all together", "times one call"], rows)
