"""The oracle held to things that are not it: the processor, rationals, MPFR, known answers.

A wrong oracle would condemn right kernels, so its primitives are compared here with single hardware
operations on random bit patterns, and its functions with a second arbitrary-precision library where
that is installed.
"""

from __future__ import annotations

from fractions import Fraction

import mpmath
import numpy as np
import pytest
from mpmath import libmp
from tests.kernels.oracle import data, operations
from tests.kernels.oracle.functions import (
    cos_to_b32,
    erf32,
    exp32,
    log32,
    settle,
    settle_b64,
    sin_to_b32,
    tanh32,
)
from tests.kernels.oracle.ieee import B32, B64, Format, shift_to_even
from tests.kernels.oracle.reductions import (
    Order,
    Row,
    chain,
    chain_of_integers,
    dot,
    lane_sum,
    row_sum,
)
from tests.kernels.oracle.rope import frequencies
from tests.kernels.oracle.sampling import philox4x32_10

FORMATS = [(B32, np.uint32, np.float32), (B64, np.uint64, np.float64)]


def patterns(rng: np.random.Generator, fmt: Format, n: int) -> list[int]:
    """Random bit patterns: uniform ones, and the corners of the format."""
    width = fmt.precision + (8 if fmt is B32 else 11)
    corners = [0, 1, 2, fmt.inf - 1, fmt.inf, fmt.nan, fmt.one, fmt.one + 1, 1 << fmt.fraction_bits]
    corners += [(1 << fmt.fraction_bits) - 1, (1 << fmt.fraction_bits) + 1]
    corners += [c | fmt.sign_bit for c in corners]
    out = [int.from_bytes(rng.bytes(width // 8), "little") for _ in range(n)]
    for i in range(0, n, 3):
        out[i] = int(rng.choice(np.array(corners, dtype=np.uint64)))
    return out


def same(fmt: Format, ours: int, theirs: int) -> bool:
    return ours == theirs or (fmt.is_nan(ours) and fmt.is_nan(theirs))


@pytest.mark.parametrize(("fmt", "unsigned", "floating"), FORMATS, ids=["binary32", "binary64"])
@pytest.mark.parametrize("name", ["add", "subtract", "multiply", "divide"])
def test_arithmetic_agrees_with_the_processor(name, fmt, unsigned, floating):
    rng = np.random.default_rng([1, len(name), fmt.precision])
    a = patterns(rng, fmt, 6000)
    b = patterns(rng, fmt, 6000)
    for i in range(0, 6000, 4):  # neighbours: cancellation, quotients near 1
        b[i] = (a[i] ^ int(rng.integers(0, 8))) ^ (fmt.sign_bit * int(rng.integers(0, 2)))
    ours = {"add": fmt.add, "subtract": fmt.sub, "multiply": fmt.mul, "divide": fmt.div}[name]
    with np.errstate(all="ignore"):
        x = np.array(a, dtype=unsigned).view(floating)
        y = np.array(b, dtype=unsigned).view(floating)
        theirs = getattr(np, name)(x, y).view(unsigned).tolist()
    wrong = [
        (hex(p), hex(q), hex(ours(p, q)), hex(t))
        for p, q, t in zip(a, b, theirs, strict=True)
        if not same(fmt, ours(p, q), t)
    ]
    assert not wrong


@pytest.mark.parametrize(("fmt", "unsigned", "floating"), FORMATS, ids=["binary32", "binary64"])
def test_square_root_agrees_with_the_processor(fmt, unsigned, floating):
    a = patterns(np.random.default_rng(2), fmt, 6000)
    with np.errstate(all="ignore"):
        theirs = np.sqrt(np.array(a, dtype=unsigned).view(floating)).view(unsigned).tolist()
    wrong = [(hex(p), t) for p, t in zip(a, theirs, strict=True) if not same(fmt, fmt.sqrt(p), t)]
    assert not wrong


def test_conversions_agree_with_the_processor():
    rng = np.random.default_rng(3)
    a = patterns(rng, B64, 3000)
    spread = rng.standard_normal(3000) * 2.0 ** rng.integers(-160, 130, 3000).astype(np.float64)
    a += spread.view(np.uint64).tolist()
    with np.errstate(all="ignore"):
        x = np.array(a, dtype=np.uint64).view(np.float64)
        theirs = x.astype(np.float32).view(np.uint32).tolist()
    assert all(same(B32, B32.convert(p, B64), t) for p, t in zip(a, theirs, strict=True))
    for n in [0, 1, (1 << 24) + 1, (1 << 25) + 2, (1 << 63) - 1, 3 << 61, *a[:200]]:
        assert B64.from_int(n) == B64.from_float(float(n))


def nearest_by_search(x: Fraction) -> int:
    """Bits of the binary32 nearest to a rational, by bisection over all magnitudes."""
    low, high = 0, B32.inf
    limit = Fraction(2) ** 128
    while high - low > 1:
        middle = (low + high) // 2
        if B32.fraction(middle) <= abs(x):
            low = middle
        else:
            high = middle
    below = B32.fraction(low)
    above = limit if high == B32.inf else B32.fraction(high)
    twice = 2 * abs(x) - (below + above)
    magnitude = high if twice > 0 or (twice == 0 and low & 1) else low
    return magnitude | (B32.sign_bit if x < 0 else 0)


def test_fma_and_rational_rounding_agree_with_a_search():
    rng = np.random.default_rng(4)
    for _ in range(1500):
        a, b = (v & 0xBFFFFFFF for v in patterns(rng, B32, 2))  # clears a bit: no inf, no nan
        c = B32.neg(B32.mul(a, b)) if rng.random() < 0.4 else patterns(rng, B32, 2)[1] & 0xBFFFFFFF
        x = B32.fraction(a) * B32.fraction(b) + B32.fraction(c)
        if x:
            assert B32.fma(a, b, c) == nearest_by_search(x)
            assert B32.round_fraction(x) == nearest_by_search(x)
    third = Fraction(int(rng.integers(1, 1 << 60)), int(rng.integers(1, 1 << 60)))
    for exponent in range(-170, 130, 7):
        x = third * Fraction(2) ** exponent
        assert B32.round_fraction(x) == nearest_by_search(x)


def test_fma_signs_of_zero_and_special_values():
    one, zero, minus = B32.one, 0, B32.sign_bit
    tiny = 1
    assert B32.fma(zero, one, minus) == zero
    assert B32.fma(minus, one, minus) == minus
    assert B32.fma(one, one, B32.neg(one)) == zero
    assert B32.fma(tiny, B32.neg(tiny), zero) == minus  # an underflowing chain ends in -0
    assert B32.fma(tiny, tiny, minus) == zero
    assert B32.fma(B32.inf, one, B32.neg(B32.inf)) == B32.nan
    assert B32.fma(B32.inf, zero, one) == B32.nan
    assert B32.fma(B32.inf - 1, one | 1, zero) == B32.inf
    # The product lies beyond the largest number, the sum does not.
    assert B32.fma(B32.inf - 1, B32.from_int(2), B32.neg(B32.inf - 1)) == B32.inf - 1


def test_rounding_of_ties():
    assert [shift_to_even(n, 1) for n in range(-5, 6)] == [-2, -2, -2, -1, 0, 0, 0, 1, 2, 2, 2]
    assert B32.add(B32.one, B32.from_float(2.0**-24)) == B32.one
    assert B32.add(B32.one | 1, B32.from_float(2.0**-24)) == B32.one | 2
    assert B32.mul(1, B32.from_float(0.5)) == 0
    assert B32.mul(3, B32.from_float(0.5)) == 2


@pytest.mark.parametrize("kind", data.KINDS.values(), ids=data.KINDS.keys())
def test_short_cut_of_the_chain_is_the_chain(kind):
    rng = np.random.default_rng(5)
    for n in (1, 17, 300):
        x, w = data.bits(kind(rng, (n,))), data.bits(kind(rng, (n,)))
        fast = chain_of_integers([B32.unpack(a) for a in x], [B32.unpack(a) for a in w])
        slow = chain(list(zip(x, w, strict=True)))
        assert fast is not None
        assert B32.pack(fast) == (0 if B32.is_zero(slow) else slow)


def test_chain_overflows_like_a_chain_of_fma():
    huge = B32.inf - 1
    assert chain_of_integers([B32.unpack(huge)] * 2, [B32.unpack(B32.one)] * 2) is None
    assert dot(Row([huge] * 3), Row([B32.one] * 3)) == B32.inf
    last = [B32.one, B32.one, B32.neg(B32.inf)]
    assert dot(Row([huge] * 3), Row(last)) == B32.nan


def test_lanes_and_tree_by_hand():
    """Elements whose sum depends on the grouping: 2^24 swallows a 1, but not a 2."""
    big, one = B32.from_int(1 << 24), B32.one
    x = [big, one, one, 0, one, one, one]
    # Four lanes: big + 1 = big, 1 + 1, 1 + 1, 0; the tree: (big + 2) + (2 + 0).
    assert lane_sum(enumerate(x), Order(lanes=4)) == B32.from_int((1 << 24) + 4)
    # 32 lanes, seven of them filled; the tree adds 4 to 0, 5 to 1, 6 to 2: the same sums.
    assert row_sum(x) == B32.from_int((1 << 24) + 4)
    assert row_sum(x, Order(lanes=1)) == big


@pytest.mark.parametrize("name", ["exp", "log", "tanh", "erf"])
def test_functions_agree_with_mpfr(name):
    gmpy2 = pytest.importorskip("gmpy2")
    ours = {"exp": exp32, "log": log32, "tanh": tanh32, "erf": erf32}[name]
    rng = np.random.default_rng([6, len(name), ord(name[0])])
    x = [a for a in patterns(rng, B32, 1500) if not B32.is_nan(a)]
    x += data.bits(data.normal(rng, 1500) * np.float32(8))
    x += data.bits(np.float32(1) + data.normal(rng, 200) * np.float32(1e-4))
    single = gmpy2.ieee(32)
    with gmpy2.context(single):
        for a in x:
            value = data.from_bits(a)[()]
            theirs = float(getattr(gmpy2, name)(gmpy2.mpfr(float(value))))
            assert same(B32, ours(a), B32.from_float(theirs)), hex(a)


def test_function_limits_and_signed_zeros():
    inf, zero, minus = B32.inf, 0, B32.sign_bit
    assert [exp32(a) for a in (zero, minus, inf, B32.neg(inf))] == [B32.one, B32.one, inf, zero]
    assert [log32(a) for a in (zero, minus, B32.one, inf)] == [B32.neg(inf)] * 2 + [zero, inf]
    assert log32(B32.neg(B32.one)) == B32.nan
    for f in (tanh32, erf32):
        assert [f(a) for a in (zero, minus, inf, B32.neg(inf))] == [
            zero,
            minus,
            B32.one,
            B32.neg(B32.one),
        ]
        assert f(B32.nan) == B32.nan
    # The edges of overflow and underflow of exp, by the reals: ln(2^128 - 2^103) and ln(2^-150).
    assert B32.is_finite(exp32(0x42B17217))  # 88.7228317
    assert exp32(0x42B17218) == inf  # 88.7228394
    assert exp32(B32.from_float(-103.97)) == 1
    assert exp32(B32.from_float(-103.98)) == 0


def test_cosines_of_large_angles():
    """Published digits: sin(1e22) = -0.8522008497671888..., cos(1e22) = 0.5232147853951389..."""
    angle = B64.from_float(1e22)
    assert sin_to_b32(angle) == B32.from_float(-0.8522008497671888)
    assert cos_to_b32(angle) == B32.from_float(0.5232147853951389)
    assert cos_to_b32(0) == B32.one
    assert sin_to_b32(0) == 0


def test_frequencies_are_the_nearest_binary64():
    f = frequencies(8, 10000.0)
    assert f == [1.0, 0.1, 0.01, 0.001]
    assert frequencies(4, 2.0**40, {"rope_type": "linear", "factor": 8.0}) == [0.125, 2.0**-23]


def test_the_constants_of_gelu_are_what_the_text_says():
    half = settle(B32, lambda p: libmp.mpf_sqrt(libmp.from_man_exp(1, -1), p))
    two_over_pi = settle(
        B32, lambda p: libmp.mpf_sqrt(libmp.mpf_div(libmp.from_int(2), libmp.mpf_pi(p), p), p)
    )
    assert half == operations.SQRT_HALF
    assert two_over_pi == operations.SQRT_2_OVER_PI
    assert B32.round_fraction(Fraction(44715, 10**6)) == operations.GELU_CUBIC


def test_an_exact_tie_is_refused_instead_of_guessed():
    with pytest.raises(ArithmeticError, match="tie"):
        settle_b64(lambda: 1 + mpmath.mpf(2) ** -53)


@pytest.mark.parametrize(
    ("key", "counter", "words"),
    [
        (0, (0, 0, 0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        (2**64 - 1, (2**32 - 1,) * 4, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            0x299F31D0A4093822,
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_known_answers(key, counter, words):
    """The known-answer vectors that Random123 ships."""
    assert philox4x32_10(key, counter) == words
