"""IEEE-754 binary32 and binary64 in Python integers: every operation exact, then rounded once.

Contract: numbers travel as bit patterns (Python ints). Every operation computes its exact real
result with integers and rounds it once, to nearest, ties to even, subnormals kept. Nothing here
touches a floating-point unit; Python floats appear only in `from_float`, as carriers of a bit
pattern. Any NaN is returned as the quiet NaN `Format.nan`.

Every finite number of a format is an integer multiple of the format's least subnormal (2^-149,
2^-1074); that integer is what `unpack` gives, and it is what makes the arithmetic short.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from fractions import Fraction
from math import isqrt


def shift_to_even(n: int, cut: int) -> int:
    """`n / 2^cut` rounded to the nearest integer, ties to even; `n` may be negative, `cut` too."""
    if cut <= 0:
        return n << -cut
    return (n + (1 << (cut - 1)) - 1 + ((n >> cut) & 1)) >> cut


class Format:
    """A binary interchange format and its correctly rounded arithmetic on bit patterns."""

    def __init__(self, precision: int, exponent_bits: int) -> None:
        self.precision = precision
        fraction_bits = precision - 1
        bias = (1 << (exponent_bits - 1)) - 1
        self.fraction_bits = fraction_bits
        self.least = 1 - bias - fraction_bits  # exponent of the least subnormal
        self.top_field = (1 << exponent_bits) - 1
        self.sign_bit = 1 << (exponent_bits + fraction_bits)
        self.inf = self.top_field << fraction_bits
        self.nan = self.inf | (1 << (fraction_bits - 1))
        self.one = bias << fraction_bits
        self.overflow_bits = bias + 1 - self.least  # |n| of this many bits or fewer is finite

    # Classification and order

    def magnitude(self, a: int) -> int:
        return a & (self.sign_bit - 1)

    def is_nan(self, a: int) -> bool:
        return self.magnitude(a) > self.inf

    def is_inf(self, a: int) -> bool:
        return self.magnitude(a) == self.inf

    def is_finite(self, a: int) -> bool:
        return self.magnitude(a) < self.inf

    def is_zero(self, a: int) -> bool:
        return self.magnitude(a) == 0

    def key(self, a: int) -> int:
        """An integer ordered as the numbers are; -0 and +0 give the same one, NaN has no place."""
        return -self.magnitude(a) if a & self.sign_bit else a

    # Bits and integers

    def unpack(self, a: int) -> int:
        """The signed integer n with value n * 2^least of a finite number."""
        magnitude = self.magnitude(a)
        field = magnitude >> self.fraction_bits
        n = magnitude & ((1 << self.fraction_bits) - 1)
        if field:
            n = (n | (1 << self.fraction_bits)) << (field - 1)
        return -n if a & self.sign_bit else n

    def pack(self, n: int, negative: bool | None = None) -> int:
        """Bits of n * 2^least, for an integer of no more than `precision` significant bits.

        `negative` gives the sign of a zero (and must agree with n otherwise).
        """
        sign = self.sign_bit if (n < 0 if negative is None else negative) else 0
        n = abs(n)
        up = n.bit_length() - self.precision
        if up < 0:
            return sign | n
        if n.bit_length() > self.overflow_bits:
            return sign | self.inf
        return sign | (
            ((up + 1) << self.fraction_bits) | ((n >> up) & ((1 << self.fraction_bits) - 1))
        )

    def round(self, n: int, exponent: int, negative: bool | None = None) -> int:
        """Bits of the number nearest to n * 2^exponent; `negative` is the sign, zeros included."""
        if negative is None:
            negative = n < 0
        n = abs(n)
        cut = max(self.least - exponent, n.bit_length() - self.precision)
        rounded = shift_to_even(n, cut)
        up = exponent + cut - self.least
        assert up >= 0
        return self.pack(rounded << up, negative)

    def round_fraction(self, x: Fraction, negative: bool | None = None) -> int:
        """Bits of the number nearest to a rational."""
        return self._quotient(x.numerator, x.denominator, x < 0 if negative is None else negative)

    def _quotient(self, n: int, d: int, negative: bool) -> int:
        n, d = abs(n), abs(d)
        up = max(0, self.precision + 4 + d.bit_length() - n.bit_length())
        q, rest = divmod(n << up, d)
        # The last bit says whether anything was cut off; it lies below any rounding's half.
        return self.round((q << 1) | (rest != 0), -up - 1, negative)

    def fraction(self, a: int) -> Fraction:
        """The exact value of a finite number."""
        return Fraction(self.unpack(a)) * Fraction(2) ** self.least

    # Operations

    def neg(self, a: int) -> int:
        return a ^ self.sign_bit

    def add(self, a: int, b: int) -> int:
        if self.is_nan(a) or self.is_nan(b):
            return self.nan
        if self.is_inf(a):
            return self.nan if self.is_inf(b) and a != b else a
        if self.is_inf(b):
            return b
        n = self.unpack(a) + self.unpack(b)
        return self.round(n, self.least, self._zero_sum_sign(n, a, b))

    def sub(self, a: int, b: int) -> int:
        return self.add(a, self.neg(b))

    def _zero_sum_sign(self, n: int, a: int, b: int) -> bool:
        """Sign of a sum: an exact zero is +0 unless both addends are negative zeros."""
        return n < 0 if n else bool(a & b & self.sign_bit)

    def mul(self, a: int, b: int) -> int:
        if self.is_nan(a) or self.is_nan(b):
            return self.nan
        sign = (a ^ b) & self.sign_bit
        if self.is_inf(a) or self.is_inf(b):
            return self.nan if self.is_zero(a) or self.is_zero(b) else sign | self.inf
        return self.round(self.unpack(a) * self.unpack(b), 2 * self.least, bool(sign))

    def div(self, a: int, b: int) -> int:
        if self.is_nan(a) or self.is_nan(b):
            return self.nan
        sign = (a ^ b) & self.sign_bit
        if self.is_inf(a):
            return self.nan if self.is_inf(b) else sign | self.inf
        if self.is_inf(b):
            return sign
        if self.is_zero(b):
            return self.nan if self.is_zero(a) else sign | self.inf
        return self._quotient(self.unpack(a), self.unpack(b), bool(sign))

    def sqrt(self, a: int) -> int:
        if self.is_nan(a) or self.is_zero(a):
            return self.nan if self.is_nan(a) else a
        if a & self.sign_bit:
            return self.nan
        if self.is_inf(a):
            return a
        n, exponent = self.unpack(a), self.least
        up = 2 * self.precision + 8
        up += (exponent - up) & 1
        n, exponent = n << up, exponent - up
        root = isqrt(n)
        return self.round((root << 1) | (root * root != n), exponent // 2 - 1)

    def fma(self, a: int, b: int, c: int) -> int:
        """a * b + c with one rounding."""
        if self.is_nan(a) or self.is_nan(b) or self.is_nan(c):
            return self.nan
        sign = (a ^ b) & self.sign_bit
        if self.is_inf(a) or self.is_inf(b):
            if (
                self.is_zero(a)
                or self.is_zero(b)
                or (self.is_inf(c) and (c & self.sign_bit) != sign)
            ):
                return self.nan
            return sign | self.inf
        if self.is_inf(c):
            return c
        n = self.unpack(a) * self.unpack(b) + (self.unpack(c) << -self.least)
        return self.round(n, 2 * self.least, self._zero_sum_sign(n, sign, c))

    def max(self, values: Sequence[int]) -> int:
        """The greatest of finite numbers; of equal zeros the first."""
        return max(values, key=self.key)

    # Conversions

    def from_int(self, n: int) -> int:
        return self.round(n, 0)

    def from_float(self, x: float) -> int:
        """The binary64 `x`, rounded once to this format."""
        return self.convert(struct.unpack("<Q", struct.pack("<d", x))[0], B64)

    def convert(self, a: int, source: Format) -> int:
        """A number of another format, rounded once to this one."""
        sign = self.sign_bit if a & source.sign_bit else 0
        if source.is_nan(a):
            return self.nan
        if source.is_inf(a):
            return sign | self.inf
        return self.round(source.unpack(a), source.least, bool(sign))


B32 = Format(24, 8)
B64 = Format(53, 11)


def bf16_to_b32(a: int) -> int:
    """bfloat16 is the upper half of a binary32."""
    return a << 16


def to_float(a: int) -> float:
    """The Python float that carries the bits of a binary64."""
    value: float = struct.unpack("<d", struct.pack("<Q", a))[0]
    return value
