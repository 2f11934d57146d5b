"""Rope frequencies in arbitrary precision, and tables (kernels/NUMERICS.md, section 5).

The formulas are statements about real numbers: they are evaluated with 60 decimal digits and
rounded once to binary64. Numbers of the configuration are taken as their exact binary64 values,
constants of a formula as the decimal fractions they are.
"""

from __future__ import annotations

import decimal
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import numpy as np
import numpy.typing as npt

from isonomy.kernels.arrays import Floats, address
from isonomy.kernels.errors import ArgumentError, DtypeError, ShapeError, UnsupportedError
from isonomy.kernels.library import check, load

_CONTEXT = decimal.Context(prec=60)
_PI = Decimal("3.14159265358979323846264338327950288419716939937510582097494459230781640628620899")
_KINDS = ("default", "linear", "llama3", "yarn", "longrope")


def rope_frequencies(
    rotary_dim: int, theta: float, scaling: Mapping[str, Any] | None = None
) -> npt.NDArray[np.float64]:
    """Angles per position of the `rotary_dim / 2` rotated pairs.

    Args:
        rotary_dim: even, positive.
        theta: the base, such as 10000.0; above 1 for "yarn".
        scaling: a checkpoint's `rope_scaling` (or `rope_parameters`): its kind under "rope_type" or
            "type" ("default", "linear", "llama3", "yarn", "longrope"), and that kind's numbers.
            Of "longrope" these are the frequencies of sequences that never exceed
            "original_max_position_embeddings"; others are not covered.

    Returns:
        float64 `[rotary_dim / 2]`, each entry the real value rounded once.

    Raises:
        UnsupportedError: another kind of scaling.
        ArgumentError: a number is missing or out of range.
    """
    if rotary_dim <= 0 or rotary_dim % 2:
        raise ArgumentError(f"rotary_dim must be even and positive, not {rotary_dim}")
    if not 0 < theta < 1e18:
        raise ArgumentError(f"theta must be a positive number, not {theta!r}")
    settings = scaling or {}
    kind = _kind(settings)
    half = rotary_dim // 2
    with decimal.localcontext(_CONTEXT):
        base = Decimal(theta)
        plain = [base ** (Decimal(-2 * j) / Decimal(rotary_dim)) for j in range(half)]
        if kind == "linear":
            factor = _number(settings, "factor")
            plain = [frequency / factor for frequency in plain]
        elif kind == "llama3":
            plain = [_llama3(frequency, settings) for frequency in plain]
        elif kind == "yarn":
            plain = _yarn(plain, base, settings)
        elif kind == "longrope":
            shorts = _shorts(settings, half)
            plain = [frequency / short for frequency, short in zip(plain, shorts, strict=True)]
        return np.array([float(frequency) for frequency in plain], np.float64)


def rope_attention_factor(scaling: Mapping[str, Any] | None = None) -> float:
    """The factor by which a kind of scaling multiplies its tables; 1.0 for most.

    Args:
        scaling: as for `rope_frequencies`. "yarn" and "longrope" have a factor: the one given as
            "attention_factor", or else the one that their papers suggest.

    Returns:
        The real value rounded once to binary64.

    Raises:
        UnsupportedError: a kind that is not covered.
        ArgumentError: a number is missing or out of range.
    """
    settings = scaling or {}
    kind = _kind(settings)
    if kind not in ("yarn", "longrope"):
        return 1.0
    with decimal.localcontext(_CONTEXT):
        if settings.get("attention_factor") is not None:
            return float(_number(settings, "attention_factor"))
        factor = _number(settings, "factor")
        if factor <= 1:
            return 1.0
        if kind == "longrope":
            length = _number(settings, "original_max_position_embeddings")
            if length <= 1:
                raise ArgumentError("rope scaling: original_max_position_embeddings must be > 1")
            return float((1 + factor.ln() / length.ln()).sqrt())
        # Both or none of the two weights, as in transformers.
        if settings.get("mscale") and settings.get("mscale_all_dim"):
            over, under = _number(settings, "mscale"), _number(settings, "mscale_all_dim")
            return float(_mscale(factor, over) / _mscale(factor, under))
        return float(_mscale(factor, Decimal(1)))


def _kind(settings: Mapping[str, Any]) -> str:
    kind = str(settings.get("rope_type", settings.get("type", "default")))
    if kind not in _KINDS:
        raise UnsupportedError("rope type", kind, _KINDS)
    return kind


def _number(scaling: Mapping[str, Any], key: str, default: float | None = None) -> Decimal:
    value = scaling.get(key)
    return _positive(key, default if value is None and default is not None else value)


def _positive(key: str, value: object) -> Decimal:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e18:
        raise ArgumentError(f"rope scaling: {key} must be a positive number, not {value!r}")
    return Decimal(value)


def _llama3(frequency: Decimal, scaling: Mapping[str, Any]) -> Decimal:
    factor = _number(scaling, "factor")
    low, high = _number(scaling, "low_freq_factor"), _number(scaling, "high_freq_factor")
    length = _number(scaling, "original_max_position_embeddings")
    if low >= high:
        raise ArgumentError("rope scaling: low_freq_factor must be below high_freq_factor")
    wavelength = 2 * _PI / frequency
    if wavelength < length / high:
        return frequency
    if wavelength > length / low:
        return frequency / factor
    smooth = (length / wavelength - low) / (high - low)
    return (1 - smooth) * frequency / factor + smooth * frequency


def _yarn(plain: list[Decimal], base: Decimal, scaling: Mapping[str, Any]) -> list[Decimal]:
    """Peng et al., "YaRN" (arXiv 2309.00071); the ramp's bounds are those of transformers."""
    if base <= 1:
        raise ArgumentError(f"theta must be above 1 for rope of kind 'yarn', not {base}")
    factor = _number(scaling, "factor")
    length = _number(scaling, "original_max_position_embeddings")
    rotary = 2 * len(plain)

    def dimension(rotations: Decimal) -> Decimal:
        """The (real) pair that turns so often over the original length."""
        return rotary * (length / (rotations * 2 * _PI)).ln() / (2 * base.ln())

    low = dimension(_number(scaling, "beta_fast", 32.0))
    high = dimension(_number(scaling, "beta_slow", 1.0))
    if scaling.get("truncate", True):
        low = low.to_integral_value(decimal.ROUND_FLOOR)
        high = high.to_integral_value(decimal.ROUND_CEILING)
    low, high = max(low, Decimal(0)), min(high, Decimal(rotary - 1))
    if low == high:
        high += Decimal("0.001")
    frequencies = []
    for j, frequency in enumerate(plain):
        ramp = min(max((j - low) / (high - low), Decimal(0)), Decimal(1))
        frequencies.append(frequency / factor * ramp + frequency * (1 - ramp))
    return frequencies


def _mscale(factor: Decimal, weight: Decimal) -> Decimal:
    return Decimal("0.1") * weight * factor.ln() + 1


def _shorts(scaling: Mapping[str, Any], half: int) -> list[Decimal]:
    given = scaling.get("short_factor")
    if not isinstance(given, (list, tuple)) or len(given) != half:
        raise ArgumentError(f"rope scaling: short_factor must be a list of {half} numbers")
    return [_positive("short_factor", value) for value in given]


def rope_tables(
    frequencies: npt.NDArray[np.float64], n_positions: int, attention_factor: float = 1.0
) -> tuple[Floats, Floats]:
    """Cosines and sines of `position * frequency` for positions 0 .. n_positions - 1.

    Args:
        frequencies: float64 `[n]`, from `rope_frequencies`.
        n_positions: rows of the tables.
        attention_factor: multiplies every entry, after rounding to float32.

    Returns:
        Two float32 arrays `[n_positions, n]`.
    """
    if frequencies.dtype != np.float64:
        raise DtypeError("frequencies", "a float64 array", frequencies.dtype)
    if frequencies.ndim != 1:
        raise ShapeError("frequencies", "(n,)", frequencies.shape)
    if n_positions < 0:
        raise ArgumentError(f"n_positions must not be negative, got {n_positions}")
    frequencies = np.ascontiguousarray(frequencies)
    half = frequencies.shape[0]
    cos = np.empty((n_positions, half), np.float32)
    sin = np.empty((n_positions, half), np.float32)
    check(
        load().iso_rope_tables(
            address(frequencies), half, n_positions, attention_factor, address(cos), address(sin)
        )
    )
    return cos, sin
