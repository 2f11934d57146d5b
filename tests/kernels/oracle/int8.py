"""int8 linears in integers and exact roundings: "Linear, int8" in section 2 of NUMERICS.md.

Contract: binary32 bit patterns in and out, as everywhere in this package; q are Python integers.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from .ieee import B32

MOST = B32.from_int(127)


def scale_of(x: Sequence[int]) -> int:
    """absmax / 127; NaN where the row holds NaN or infinity."""
    top = max(B32.magnitude(a) for a in x)
    return B32.nan if top >= B32.inf else B32.div(top, MOST)


def rint(a: int) -> int:
    """The integer nearest to a finite number, ties to even."""
    value = B32.fraction(a)
    below = value.numerator // value.denominator
    rest = value - below
    return below + (rest > Fraction(1, 2) or (rest == Fraction(1, 2) and below % 2 == 1))


def quantise(x: Sequence[int]) -> tuple[list[int], int]:
    """The row's elements as integers within +-127, and its scale."""
    scale = scale_of(x)
    if B32.is_nan(scale) or B32.is_zero(scale):
        return [0] * len(x), scale
    return [max(-127, min(127, rint(B32.div(a, scale)))) for a in x], scale


def linear(
    x: tuple[Sequence[int], int], w: tuple[Sequence[int], int], bias: int | None = None
) -> int:
    """One output, from a quantised row and a quantised row of weights."""
    total = sum(a * b for a, b in zip(x[0], w[0], strict=True))
    y = B32.mul(B32.from_int(total), B32.mul(x[1], w[1]))
    return y if bias is None else B32.add(y, bias)


def dequantised(w: tuple[Sequence[int], int]) -> list[int]:
    """A row of a table that is the output layer, too."""
    return [B32.mul(B32.from_int(a), w[1]) for a in w[0]]
