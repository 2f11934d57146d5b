"""Correctly rounded exp, log, tanh, erf, cos, sin and powers, by Ziv's growing precision.

Contract: `settle` asks for an approximation at a growing precision and returns once both ends of
its error interval round to the same number. mpmath gives the approximations; its error is taken to
be below 2^10 units in the last place, far above what it claims. Values where the real function lies
in the format (zeros, exp(0), ...) round the same from both ends of an interval around them, so they
need no cases of their own; the limits are cases, because mpmath would compute exp(1e38) to the end.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache
from typing import Any

import mpmath
from mpmath import libmp

from .ieee import B32, B64, Format, to_float

_SLACK = 10
_LONGEST = 8192


def settle(fmt: Format, approximate: Callable[[int], Any]) -> int:
    """Bits of the number nearest to the real value that `approximate(precision)` approaches."""
    precision = 2 * fmt.precision + 32
    while precision <= _LONGEST:
        sign, man, exponent, _ = approximate(precision)
        if not man:
            return 0
        man = int(man) << precision
        exponent -= precision
        error = (man >> (precision - _SLACK)) + 1
        low = fmt.round(man - error, exponent, bool(sign))
        high = fmt.round(man + error, exponent, bool(sign))
        if low == high:
            return low
        precision *= 2
    raise ArithmeticError(
        "no precision decides this rounding: an exact tie needs a case of its own"
    )


def real(fmt: Format, a: int) -> Any:
    """The exact value of a finite number, in mpmath's raw form."""
    return libmp.from_man_exp(fmt.unpack(a), fmt.least)


@lru_cache(maxsize=1 << 16)
def exp32(x: int) -> int:
    """The binary32 nearest to e^x."""
    if B32.is_nan(x):
        return B32.nan
    if B32.key(x) >= B32.key(_HUNDRED):
        return B32.inf
    if B32.key(x) <= -B32.key(_TWO_HUNDRED):
        return 0
    return settle(B32, lambda p: libmp.mpf_exp(real(B32, x), p))


@lru_cache(maxsize=1 << 16)
def log32(x: int) -> int:
    """The binary32 nearest to the natural logarithm; -inf at both zeros, NaN below."""
    if B32.is_zero(x):
        return B32.neg(B32.inf)
    if B32.is_nan(x) or x & B32.sign_bit:
        return B32.nan
    if B32.is_inf(x):
        return x
    return settle(B32, lambda p: libmp.mpf_log(real(B32, x), p))


@lru_cache(maxsize=1 << 16)
def tanh32(x: int) -> int:
    """The binary32 nearest to the hyperbolic tangent."""
    return _odd_towards_one(x, libmp.mpf_tanh)


@lru_cache(maxsize=1 << 16)
def erf32(x: int) -> int:
    """The binary32 nearest to the error function."""
    return _odd_towards_one(x, libmp.mpf_erf)


def _odd_towards_one(x: int, function: Callable[[Any, int], Any]) -> int:
    if B32.is_nan(x):
        return B32.nan
    if B32.is_zero(x):
        return x
    if B32.magnitude(x) >= _TWENTY:  # 1 - f(20) < 2^-56, far less than half a unit below 1
        return (x & B32.sign_bit) | B32.one
    return settle(B32, lambda p: function(real(B32, x), p))


def cos_to_b32(angle: int) -> int:
    """The binary32 nearest to the cosine of a binary64."""
    return settle(B32, lambda p: libmp.mpf_cos(real(B64, angle), p))


def sin_to_b32(angle: int) -> int:
    """The binary32 nearest to the sine of a binary64."""
    if B64.is_zero(angle):
        return B32.convert(angle, B64)
    return settle(B32, lambda p: libmp.mpf_sin(real(B64, angle), p))


def settle_b64(formula: Callable[[], Any]) -> float:
    """The binary64 nearest to a real formula that is written with mpmath numbers."""

    def approximate(precision: int) -> Any:
        # Room for a formula's few operations: each may lose a bit, a subtraction more.
        with mpmath.workprec(precision + 64):
            return mpmath.mpf(formula())._mpf_

    return to_float(settle(B64, approximate))


def exact(x: float) -> Any:
    """A Python float or int as the mpmath number of exactly that value."""
    fraction = Fraction(x)
    return mpmath.mpf(fraction.numerator) / fraction.denominator


_TWENTY = B32.from_int(20)
_HUNDRED = B32.from_int(100)
_TWO_HUNDRED = B32.from_int(200)
