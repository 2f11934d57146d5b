"""Rope tables are correctly rounded, also where binary64 cannot tell the two neighbours apart."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest

from isonomy import kernels


def nearest(x: mpmath.mpf) -> np.float32:
    """The binary32 nearest to a 300-bit number (never a tie: sines are transcendental)."""
    guess = np.float32(float(x))
    around = (np.nextafter(guess, np.float32(-2)), guess, np.nextafter(guess, np.float32(2)))
    return min(around, key=lambda y: abs(mpmath.mpf(float(y)) - x))


def hard_angles(cosine: bool) -> np.ndarray:
    """Angles whose cosine (or sine) is a midpoint of two floats, as nearly as binary64 has them."""
    rng = np.random.default_rng(int(cosine))
    inverse = mpmath.acos if cosine else mpmath.asin
    angles = []
    with mpmath.workprec(300):
        for i in range(400):
            y = np.float32(rng.uniform(-1, 1) * 2.0 ** -rng.integers(0, 20))
            midpoint = (
                mpmath.mpf(float(y)) + mpmath.mpf(float(np.nextafter(y, np.float32(2))))
            ) / 2
            angle = inverse(midpoint)
            if not cosine and angle < 0:
                angle = mpmath.pi - angle
            turns = 0 if i % 2 else int(rng.integers(0, 20000))
            angles.append(float(angle + 2 * mpmath.pi * turns))
    return np.array(angles)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("cosine", [False, True])
def test_entries_next_to_a_midpoint(cosine: bool) -> None:
    angles = hard_angles(cosine)
    table = kernels.rope_tables(angles, 2)[0 if cosine else 1][1]  # at position 1
    with mpmath.workprec(300):
        function = mpmath.cos if cosine else mpmath.sin
        expected = np.array([nearest(function(mpmath.mpf(angle))) for angle in angles])
    assert table.tobytes() == expected.tobytes()


@pytest.mark.parametrize("position", [0, 1, 2, 511, 131071])
def test_ordinary_entries(position: int) -> None:
    frequencies = kernels.rope_frequencies(64, 500000.0)
    cos, sin = kernels.rope_tables(frequencies, position + 1)
    with mpmath.workprec(300):
        angles = [mpmath.mpf(float(np.float64(position) * f)) for f in frequencies]
        expected_cos = np.array([nearest(mpmath.cos(a)) for a in angles])
        expected_sin = np.array([nearest(mpmath.sin(a)) for a in angles])
    assert cos[-1].tobytes() == expected_cos.tobytes()
    assert sin[-1].tobytes() == expected_sin.tobytes()


def test_the_attention_factor_is_one_more_rounding() -> None:
    frequencies = kernels.rope_frequencies(32, 10000.0)
    plain, scaled = kernels.rope_tables(frequencies, 40), kernels.rope_tables(frequencies, 40, 1.23)
    for a, b in zip(plain, scaled, strict=True):
        assert (a * np.float32(1.23)).tobytes() == b.tobytes()


@pytest.mark.parametrize("frequency", [-1.0, np.nan, np.inf, 1e299])
def test_frequencies_out_of_range(frequency: float) -> None:
    with pytest.raises(kernels.ArgumentError, match="frequencies must be between 0 and 1e298"):
        kernels.rope_tables(np.array([frequency]), 3)
