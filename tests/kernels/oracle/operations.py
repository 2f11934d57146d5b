"""Norms, softmax, activations, embedding and rope rotation on single rows of binary32 bit patterns.

Contract: each function is the line of NUMERICS.md with the same name, one rounding an operator,
written once more from the text. Scalars of a configuration come in as Python floats (binary64) and
are rounded once.
"""

from __future__ import annotations

from collections.abc import Sequence

from .functions import erf32, exp32, tanh32
from .ieee import B32
from .reductions import STANDARD, Order, blocked_lane_sum, row_sum, sum_of_squares

ONE = B32.one
HALF = B32.from_float(0.5)
SQRT_HALF = 0x3F3504F3  # fl32(sqrt(0.5))
SQRT_2_OVER_PI = 0x3F4C422A  # fl32(sqrt(2 / pi))
GELU_CUBIC = 0x3D372713  # fl32(0.044715)


def reciprocal_root_mean(ss: int, d: int, eps: float) -> int:
    """1 / sqrt(ss / d + eps)."""
    mean = B32.div(ss, B32.from_int(d))
    return B32.div(ONE, B32.sqrt(B32.add(mean, B32.from_float(eps))))


def rms_norm(
    x: Sequence[int],
    w: Sequence[int],
    eps: float,
    *,
    unit_offset: bool = False,
    order: Order = STANDARD,
) -> list[int]:
    r = reciprocal_root_mean(sum_of_squares(x, order), len(x), eps)
    if unit_offset:
        w = [B32.add(ONE, a) for a in w]
    return [B32.mul(B32.mul(a, r), b) for a, b in zip(x, w, strict=True)]


def layer_norm(
    x: Sequence[int], w: Sequence[int], b: Sequence[int], eps: float, order: Order = STANDARD
) -> list[int]:
    mean = B32.div(row_sum(x, order), B32.from_int(len(x)))
    c = [B32.sub(a, mean) for a in x]
    r = reciprocal_root_mean(sum_of_squares(c, order), len(x), eps)
    return [B32.add(B32.mul(B32.mul(a, r), g), h) for a, g, h in zip(c, w, b, strict=True)]


def softmax(x: Sequence[int], order: Order = STANDARD) -> list[int]:
    m = B32.max(x)
    e = [exp32(B32.sub(a, m)) for a in x]
    total = blocked_lane_sum(list(enumerate(e)), order)
    return [B32.div(a, total) for a in e]


def silu(x: int) -> int:
    return B32.div(x, B32.add(ONE, exp32(B32.neg(x))))


def gelu_erf(x: int) -> int:
    return B32.mul(B32.mul(HALF, x), B32.add(ONE, erf32(B32.mul(x, SQRT_HALF))))


def gelu_tanh(x: int) -> int:
    cube = B32.mul(B32.mul(x, x), x)
    inner = B32.mul(SQRT_2_OVER_PI, B32.add(x, B32.mul(GELU_CUBIC, cube)))
    return B32.mul(B32.mul(HALF, x), B32.add(ONE, tanh32(inner)))


def soft_cap(z: int, cap: float) -> int:
    c = B32.from_float(cap)
    return B32.mul(tanh32(B32.div(z, c)), c)


def rotate(x: Sequence[int], cos: Sequence[int], sin: Sequence[int]) -> list[int]:
    """Half-split rope of one head by one position's tables; further dimensions are unchanged."""
    half = len(cos)
    y = list(x)
    for j in range(half):
        x1, x2 = x[j], x[j + half]
        y[j] = B32.add(B32.mul(x1, cos[j]), B32.mul(B32.neg(x2), sin[j]))
        y[j + half] = B32.add(B32.mul(x2, cos[j]), B32.mul(x1, sin[j]))
    return y
