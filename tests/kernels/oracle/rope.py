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

    def yarn() -> Any:
        length = exact(scaling["original_max_position_embeddings"])

        def pair_with(turns: float) -> Any:
            """Where theta^(2 x / rot) = length / (2 pi turns), in pairs: x."""
            ratio = length / (2 * mpmath.pi * exact(turns))
            return rotary_dim * mpmath.log(ratio) / mpmath.log(exact(theta)) / 2

        first = pair_with(scaling.get("beta_fast") or 32.0)
        last = pair_with(scaling.get("beta_slow") or 1.0)
        if scaling.get("truncate", True):
            first, last = mpmath.floor(first), mpmath.ceil(last)
        if first < 0:
            first = mpmath.mpf(0)
        if last > rotary_dim - 1:
            last = mpmath.mpf(rotary_dim - 1)
        if first == last:
            last += mpmath.mpf(1) / 1000
        share = (j - first) / (last - first)
        share = 0 if share < 0 else 1 if share > 1 else share
        return plain() * (share / exact(scaling["factor"]) + (1 - share))

    def longrope() -> Any:
        return plain() / exact(scaling["short_factor"][j])

    kinds = {
        "default": plain,
        "linear": linear,
        "llama3": llama3,
        "yarn": yarn,
        "longrope": longrope,
    }
    return settle_b64(kinds[kind])


def attention_factor(scaling: Mapping[str, Any]) -> float:
    """What the tables of yarn and longrope are multiplied with, the nearest binary64."""
    given = scaling.get("attention_factor")
    if given is not None:
        return float(given)
    factor = scaling["factor"]
    if factor <= 1:
        return 1.0
    if scaling["rope_type"] == "longrope":
        length = scaling["original_max_position_embeddings"]
        return settle_b64(
            lambda: mpmath.sqrt(1 + mpmath.log(exact(factor)) / mpmath.log(exact(length)))
        )

    def weighted(weight: float) -> Any:
        return exact(weight) * mpmath.log(exact(factor)) / 10 + 1

    over, under = scaling.get("mscale"), scaling.get("mscale_all_dim")
    if over and under:
        return settle_b64(lambda: weighted(over) / weighted(under))
    return settle_b64(lambda: weighted(1.0))


def table_row(
    freqs: Sequence[float], position: int, attention_factor: float = 1.0
) -> tuple[list[int], list[int]]:
    """Cosines and sines (binary32 bits) of one position."""
    factor = B32.from_float(attention_factor)
    angles = [B64.mul(B64.from_int(position), B64.from_float(f)) for f in freqs]
    cos = [B32.mul(cos_to_b32(a), factor) for a in angles]
    sin = [B32.mul(sin_to_b32(a), factor) for a in angles]
    return cos, sin
