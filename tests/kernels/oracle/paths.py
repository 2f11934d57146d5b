"""The kernels as the oracle's tests see them: every path of this machine, few threads and many.

Contract: `agree` runs a computation on each path and thread count and compares bits; any NaN equals
any other. What was set before is set again afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from isonomy import kernels

from . import data
from .ieee import B32

THREADS = (1, 3)


def every_path() -> Iterator[str]:
    """Each combination of instruction set and thread count, in force while the loop body runs."""
    threads = kernels.info().threads
    try:
        for isa in kernels.info().isas:
            with kernels.using_isa(isa):
                for n in THREADS:
                    kernels.set_threads(n)
                    yield f"{isa}, {n} threads"
    finally:
        kernels.set_threads(threads)


def agree(expected: Sequence[int], compute: Callable[[], data.F32], what: str = "") -> None:
    """Fails where any path's bits differ from the oracle's."""
    for path in every_path():
        got = data.bits(compute())
        assert len(got) == len(expected)
        for i, (ours, theirs) in enumerate(zip(expected, got, strict=True)):
            if ours != theirs and not (B32.is_nan(ours) and B32.is_nan(theirs)):
                raise AssertionError(
                    f"{what} [{path}] element {i}: oracle {ours:08x}, kernel {theirs:08x}"
                )
