"""Inputs that tell orders and roundings apart, and the passage from numpy arrays to bit patterns.

Contract: every generator takes a numpy Generator and a shape and returns finite float32. Values of
one kind are small enough that neither a product nor a sum of them overflows, unless said.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
Shape = int | tuple[int, ...]
Kind = Callable[[np.random.Generator, Shape], F32]


def bits(x: F32) -> list[int]:
    """Bit patterns of a float32 array, flattened."""
    assert x.dtype == np.float32
    return np.ascontiguousarray(x).view(np.uint32).ravel().tolist()


def rows(x: F32) -> list[list[int]]:
    """Bit patterns of a float32 matrix, row by row."""
    return [bits(r) for r in x]


def from_bits(b: list[int] | int) -> F32:
    """The float32 array of these bit patterns."""
    return np.array(b, dtype=np.uint32).view(np.float32)


def normal(rng: np.random.Generator, shape: Shape) -> F32:
    return rng.standard_normal(shape, dtype=np.float32)


def wide(rng: np.random.Generator, shape: Shape) -> F32:
    """Magnitudes from 2^-50 to 2^50, uniform in the exponent."""
    exponent = rng.integers(127 - 50, 127 + 50, shape, dtype=np.uint32)
    fraction = rng.integers(0, 1 << 23, shape, dtype=np.uint32)
    sign = rng.integers(0, 2, shape, dtype=np.uint32)
    return ((sign << 31) | (exponent << 23) | fraction).view(np.float32)


def near_underflow(rng: np.random.Generator, shape: Shape) -> F32:
    """Magnitudes around 2^-75, whose products fall among the subnormals, some of them to zero."""
    exponent = rng.integers(127 - 82, 127 - 64, shape, dtype=np.uint32)
    fraction = rng.integers(0, 1 << 23, shape, dtype=np.uint32)
    sign = rng.integers(0, 2, shape, dtype=np.uint32)
    return ((sign << 31) | (exponent << 23) | fraction).view(np.float32)


def subnormal(rng: np.random.Generator, shape: Shape) -> F32:
    """Subnormals of either sign, small and large, with a few ordinary numbers to meet them."""
    small = rng.integers(0, 1 << 23, shape, dtype=np.uint32)
    small >>= rng.integers(0, 23, shape, dtype=np.uint32)
    sign = rng.integers(0, 2, shape, dtype=np.uint32)
    out = ((sign << 31) | small).view(np.float32).copy()
    ordinary = rng.random(shape) < 0.3
    out[ordinary] = normal(rng, shape)[ordinary]
    return out


def signed_zeros(rng: np.random.Generator, shape: Shape) -> F32:
    """Mostly zeros of either sign."""
    out = (rng.integers(0, 2, shape, dtype=np.uint32) << 31).view(np.float32).copy()
    other = rng.random(shape) < 0.2
    out[other] = subnormal(rng, shape)[other]
    return out


def cancelling(rng: np.random.Generator, shape: Shape) -> F32:
    """Large numbers that return with the other sign, over small ones that decide what is left."""
    out = normal(rng, shape)
    flat = out.reshape(-1, out.shape[-1])
    n = flat.shape[-1]
    for row in flat:
        for _ in range(max(1, n // 4)):
            i, j = rng.integers(0, n, 2)
            if i != j:
                row[i] = np.float32(rng.standard_normal() * 2.0 ** float(rng.integers(10, 24)))
                row[j] = -row[i]
    return out


def ties(rng: np.random.Generator, shape: Shape) -> F32:
    """Small odd integers times 2^0, 2^12 or 2^24: results fall on exact midpoints often."""
    odd = rng.integers(-8, 8, shape) * 2 + 1
    scale = np.float32(2) ** rng.choice(np.array([0, 12, 24], dtype=np.float32), shape)
    return odd.astype(np.float32) * scale


KINDS: dict[str, Kind] = {
    kind.__name__: kind
    for kind in (normal, wide, near_underflow, subnormal, signed_zeros, cancelling, ties)
}
