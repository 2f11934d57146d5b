"""Faults on purpose: to test what is there to find them.

Not for anything but tests; a fault lasts for its `with` block and reaches all sessions of the
process.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from isonomy.kernels.errors import UnsupportedError
from isonomy.kernels.library import check, load
from isonomy.kernels.steps import STAGES


@contextmanager
def inject(*, layer: int, stage: str, row: int, element: int, bit: int) -> Iterator[None]:
    """Flip one bit of one number in each pass.

    Args:
        layer: index of the decoder layer.
        stage: the operation whose result is damaged; one of `STAGES`.
        row: absolute position of the token, in its session.
        element: index within the row of the stage's result; one beyond its end does nothing.
        bit: 0 (the last of the fraction) .. 31 (the sign).

    Raises:
        UnsupportedError: there is no such stage.
        ArgumentError: the bit is out of its range.
    """
    if stage not in STAGES:
        raise UnsupportedError("stage", stage, STAGES)
    library = load()
    check(library.iso_inject(layer, STAGES.index(stage), row, element, bit))
    try:
        yield
    finally:
        library.iso_inject_clear()
