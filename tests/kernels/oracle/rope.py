"""Rope frequencies and tables, from the real formulas, rounded once.

Contract: the numbers of a configuration are the exact values of their binary64; a frequency is the
binary64 nearest to the real formula; a table entry the binary32 nearest to the cosine or sine of
the binary64 product of position and frequency, times the binary32 attention factor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import mpmath

from .functions import cos_to_b32, exact, settle_b64, sin_to_b32
from .ieee import B32, B64


def frequencies(
    rotary_dim: int, theta: float, scaling: Mapping[str, Any] | None = None
) -> list[float]:
    """rotary_dim / 2 frequencies in radians per position, each the nearest binary64."""
    return [_frequency(j, rotary_dim, theta, scaling or {}) for j in range(rotary_dim // 2)]


def _frequency(j: int, rotary_dim: int, theta: float, scaling: Mapping[str, Any]) -> float:
    kind = scaling.get("rope_type", "default")

    def plain() -> Any:
        return mpmath.power(exact(theta), -mpmath.mpf(2 * j) / rotary_dim)

    def linear() -> Any:
        return plain() / exact(scaling["factor"])

    def llama3() -> Any:
        f = plain()
        factor = exact(scaling["factor"])
        low = exact(scaling["low_freq_factor"])
        high = exact(scaling["high_freq_factor"])
        length = exact(scaling["original_max_position_embeddings"])
        wave = 2 * mpmath.pi / f
        if wave < length / high:
            return f
        if wave > length / low:
            return f / factor
        s = (length / wave - low) / (high - low)
        return (1 - s) * f / factor + s * f

    return settle_b64({"default": plain, "linear": linear, "llama3": llama3}[kind])


def table_row(
    freqs: Sequence[float], position: int, attention_factor: float = 1.0
) -> tuple[list[int], list[int]]:
    """Cosines and sines (binary32 bits) of one position."""
    factor = B32.from_float(attention_factor)
    angles = [B64.mul(B64.from_int(position), B64.from_float(f)) for f in freqs]
    cos = [B32.mul(cos_to_b32(a), factor) for a in angles]
    sin = [B32.mul(sin_to_b32(a), factor) for a in angles]
    return cos, sin
