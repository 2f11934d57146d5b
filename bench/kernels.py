"""The linears alone, as shares of what the machine can do: where prompts and decoding spend it.

A product of M rows with a matrix of N outputs and K inputs has to read the weights once and to do
M*N*K multiplications and additions. Whichever of both takes longer at the speeds that are probed
right before and after is the least time; each cell is that time as a share of the time taken, and
the rate. Few rows run over as many copies of the matrix as the processor's caches can't hold.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Any

from .checkpoints import BYTES
from .measuring import median, table
from .probes import Probes

MATRICES = {
    "135M gate and up": (3072, 576),
    "135M down": (576, 1536),
    "600M gate and up": (6144, 1024),
    "600M down": (1024, 3072),
    "600M output": (151936, 1024),
}
ROWS = (1, 8, 32, 512)
BEYOND_CACHES = 256 << 20
SECONDS = 0.15


def main(*, quick: bool = False, threads: int = 2) -> Iterator[str]:
    """Give one table a weight type. BENCH_WEIGHTS narrows them down."""
    os.environ["ISONOMY_THREADS"] = str(threads)
    from isonomy.kernels import info

    yield f"{info().isa}, {threads} threads; share of the least possible time, and G op/s"
    kinds = os.environ.get("BENCH_WEIGHTS", ",".join(BYTES)).split(",")
    with Probes(threads) as probes:
        for kind in kinds:
            rows = []
            for name, (outputs, inputs) in MATRICES.items():
                if quick and "135M" in name:
                    continue
                cells = _cells(kind, outputs, inputs, probes, 1 if quick else 3)
                rows.append([f"{name}, {outputs} x {inputs}", *cells])
            headings = [kind, *(f"{count} rows" if count > 1 else "1 row" for count in ROWS)]
            yield "\n" + table(headings, rows)


def _cells(kind: str, outputs: int, inputs: int, probes: Probes, rounds: int) -> Iterator[str]:
    import numpy as np

    size = int(outputs * inputs * BYTES[kind])
    random = np.random.default_rng(1)
    values = random.standard_normal((outputs, inputs), dtype=np.float32)
    copies = [_packed(kind, values) for _ in range(-(-BEYOND_CACHES // size))]
    peak = probes.vnni if kind == "int8" else probes.fma
    for rows in ROWS:
        if rows == ROWS[-1] and outputs > 100_000:
            yield "–"  # nobody needs all logits of a prompt
            continue
        x = random.standard_normal((rows, inputs), dtype=np.float32)
        y = np.empty((rows, outputs), np.float32)
        used = copies if rows < 512 else copies[:1]
        operations = 2.0 * rows * outputs * inputs
        shares, rates = [], []
        _apply(used, x, y)
        for _ in range(rounds):
            before = probes.read(), peak()
            taken = _apply(used, x, y)
            after = probes.read(), peak()
            rates.append(operations / taken / 1e9)
            if before[0] and after[0] and before[1] and after[1]:
                reading = size / ((before[0] + after[0]) / 2)
                computing = operations / ((before[1] + after[1]) / 2)
                shares.append(max(reading, computing) / taken)
        share = f"{100 * median(shares):.0f} %, " if shares else ""
        yield f"{share}{median(rates):.0f}"


def _packed(kind: str, values: Any) -> Any:
    import numpy as np

    from isonomy.kernels import PackedLinear

    if kind == "bf16":
        return PackedLinear((values.view(np.uint32) >> 16).astype(np.uint16))
    return PackedLinear(values, storage="int8" if kind == "int8" else "stored")


def _apply(copies: list[Any], x: Any, y: Any) -> float:
    """Return the seconds of one product; the output's memory is that of the product before."""
    from isonomy.kernels.library import load

    apply = load().iso_linear_apply
    done = 0
    started = time.perf_counter()
    while (now := time.perf_counter()) - started < SECONDS or done < len(copies):
        packed = copies[done % len(copies)]
        if apply(packed._handle, x.ctypes.data, x.shape[0], y.ctypes.data):
            raise RuntimeError("the product failed")
        done += 1
    return (now - started) / done
