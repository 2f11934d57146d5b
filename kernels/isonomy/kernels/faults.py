"""Silent data corruption that the checksums of int8 linears found (kernels/NUMERICS.md, "Faults").

Invariant: what is recorded here was never returned: a row was computed again, and where it was
wrong a second time the call ended with CorruptionError.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator
from ctypes import c_char, c_int32, c_uint64
from typing import Literal

import msgspec

from isonomy.kernels.library import check, load


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    """A row of an int8 linear whose checksum did not hold.

    Attributes:
        linear: the matrices that are multiplied together, such as "layer 3 gate_proj + layer 3
            up_proj".
        row: which row of the pass.
        recomputed: the second attempt was right; otherwise the call failed.
        damaged_panels: after a failed second attempt, how many groups of 32 outputs of the weights
            in memory are no longer what was loaded; 0 points at the processor.
    """

    linear: str
    row: int
    recomputed: bool
    damaged_panels: int


class _Record(ctypes.Structure):
    """`iso_fault` of isonomy.h."""

    _fields_ = (
        ("linear", c_char * 128),
        ("row", c_uint64),
        ("damaged_panels", c_uint64),
        ("recomputed", c_int32),
    )


_ROOM = 4096  # as many as the library keeps for a thread
_room = _Record * _ROOM


def faults() -> list[Fault]:
    """What the calls of this thread found since it last asked; at most 4096 are kept."""
    library = load()
    if not library.iso_faults_waiting():
        return []
    records = _room()
    count = min(library.iso_faults(ctypes.addressof(records), _ROOM), _ROOM)
    return [
        Fault(
            linear=record.linear.decode(errors="replace"),
            row=record.row,
            recomputed=bool(record.recomputed),
            damaged_panels=record.damaged_panels,
        )
        for record in records[:count]
    ]


class Injected:
    """How often an injected fault hit; filled in when the block ends."""

    hits: int = 0


@contextlib.contextmanager
def inject_linear(
    linear: str,
    *,
    kind: Literal["sum", "weight"] = "sum",
    row: int = 0,
    element: int = 0,
    bit: int = 0,
    times: int = 1,
) -> Iterator[Injected]:
    """Flip a bit in an int8 linear while the block runs, in the whole process: for tests.

    Args:
        linear: as in `Fault.linear`; a `PackedLinear` is "the weight matrix".
        kind: "sum" flips a bit of one int32 sum; "weight" one of the packed weights in memory,
            which stays so.
        row: of the pass, for a sum.
        element: the packed output of the sum, or the byte of the packed matrix.
        bit: 0 to 31, or 0 to 7.
        times: so many computations are hit; 2 hits the second attempt, too.
    """
    library = load()
    kinds = {"sum": 0, "weight": 1}
    injected = Injected()
    check(library.iso_inject_linear(kinds[kind], linear.encode(), row, element, bit, times))
    try:
        yield injected
    finally:
        injected.hits = library.iso_inject_linear_end()
