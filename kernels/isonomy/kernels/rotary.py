"""Rope frequencies in arbitrary precision, and tables (kernels/NUMERICS.md, section 5).

The formulas are statements about real numbers: they are evaluated with 60 decimal digits and
rounded once to binary64. Numbers of the configuration are taken as their exact binary64 values.
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
_KINDS = ("default", "linear", "llama3")


def _number(scaling: Mapping[str, Any], key: str) -> Decimal:
    value = scaling.get(key)
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


def rope_frequencies(
    rotary_dim: int, theta: float, scaling: Mapping[str, Any] | None = None
) -> npt.NDArray[np.float64]:
    """Angles per position of the `rotary_dim / 2` rotated pairs.

    Args:
        rotary_dim: even, positive.
        theta: the base, such as 10000.0.
        scaling: a checkpoint's `rope_scaling` (or `rope_parameters`): its kind under "rope_type" or
            "type" ("default", "linear", "llama3"), and that kind's numbers.

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
    kind = str(settings.get("rope_type", settings.get("type", "default")))
    if kind not in _KINDS:
        raise UnsupportedError("rope type", kind, _KINDS)
    values = np.empty(rotary_dim // 2, np.float64)
    with decimal.localcontext(_CONTEXT):
        for j in range(rotary_dim // 2):
            frequency = Decimal(theta) ** (Decimal(-2 * j) / Decimal(rotary_dim))
            if kind == "linear":
                frequency = frequency / _number(settings, "factor")
            elif kind == "llama3":
                frequency = _llama3(frequency, settings)
            values[j] = float(frequency)
    return values


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
