"""Rope: frequencies, tables and rotation, bit for bit."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest
from tests.kernels.oracle import data, rope
from tests.kernels.oracle.ieee import B32, B64
from tests.kernels.oracle.operations import rotate
from tests.kernels.oracle.paths import agree, every_path

from isonomy import kernels

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
LONGROPE = {
    "rope_type": "longrope",
    "factor": 32.0,
    "original_max_position_embeddings": 4096,
    "short_factor": [1.0, 1.25, 1.1, 3, 2.7, 8.125],
}

KINDS_OF_ROPE = {
    "plain 10000": (64, 10000.0, None),
    "plain 500000": (128, 500000.0, None),
    "plain 1e6": (24, 1e6, None),
    "plain, theta with a fraction": (10, 12345.678, None),
    "one pair": (2, 10000.0, None),
    "linear": (32, 10000.0, {"rope_type": "linear", "factor": 2.5}),
    "linear, a factor that is no power of two": (
        16,
        1e5,
        {"rope_type": "linear", "factor": 3.1},
    ),
    "llama3": (128, 500000.0, LLAMA3),
    "llama3, other numbers": (
        64,
        500000.0,
        LLAMA3 | {"factor": 32.0, "low_freq_factor": 1.5, "high_freq_factor": 3.7},
    ),
    "llama3, short context": (
        20,
        10000.0,
        LLAMA3 | {"factor": 2.3, "original_max_position_embeddings": 64},
    ),
    "yarn": (128, 1e6, YARN),
    "yarn, not truncated": (64, 150000.0, YARN | {"factor": 32.0, "truncate": False}),
    "yarn, other bounds": (
        48,
        10000.0,
        YARN | {"beta_fast": 17.5, "beta_slow": 0.3, "factor": 2.7},
    ),
    "yarn, a ramp of one point": (
        16,
        10000.0,
        YARN | {"original_max_position_embeddings": 6, "beta_fast": 2, "beta_slow": 1},
    ),
    "yarn, a ramp that falls": (8, 5.0, YARN),
    "longrope, its short table": (12, 10000.0, LONGROPE),
}


@pytest.mark.parametrize("name", KINDS_OF_ROPE)
def test_frequencies(name):
    rotary, theta, scaling = KINDS_OF_ROPE[name]
    got = kernels.rope_frequencies(rotary, theta, scaling)
    assert got.dtype == np.float64
    assert got.tolist() == rope.frequencies(rotary, theta, scaling)


@pytest.mark.parametrize(
    "scaling",
    [
        YARN,
        YARN | {"factor": 1.0},
        YARN | {"factor": 3.7},
        YARN | {"factor": 40.0, "mscale": 0.707, "mscale_all_dim": 1.0},
        YARN | {"factor": 40, "mscale": 1, "mscale_all_dim": 0.3},
        YARN | {"mscale": 0.707, "mscale_all_dim": 0.0},
        YARN | {"attention_factor": 1.2, "mscale": 0.707, "mscale_all_dim": 1.0},
        LONGROPE,
        LONGROPE | {"factor": 1.0},
        LONGROPE | {"attention_factor": 1.19},
    ],
)
def test_attention_factor(scaling):
    got = kernels.rope_attention_factor(scaling)
    assert got == rope.attention_factor(scaling)
    assert (got == 1.0) == (scaling["factor"] == 1.0)


def test_kinds_without_an_attention_factor():
    assert kernels.rope_attention_factor() == 1.0
    assert kernels.rope_attention_factor(LLAMA3 | {"attention_factor": 2.0}) == 1.0


@pytest.mark.parametrize(
    ("theta", "scaling", "said"),
    [
        (1.0, YARN, "theta must be above 1"),
        (10000.0, YARN | {"factor": None}, "factor"),
        (10000.0, YARN | {"beta_fast": -1.0}, "beta_fast"),
        (10000.0, {"rope_type": "yarn", "factor": 2.0}, "original_max_position_embeddings"),
        (10000.0, LONGROPE | {"short_factor": [1.0]}, "short_factor must be a list of 6 numbers"),
        (10000.0, LONGROPE | {"short_factor": [1.0] * 5 + [True]}, "short_factor"),
    ],
)
def test_numbers_out_of_range(theta, scaling, said):
    with pytest.raises(kernels.ArgumentError, match=said):
        kernels.rope_frequencies(12, theta, scaling)


@pytest.mark.parametrize("kind", ["dynamic", "proportional", "su", ""])
def test_kinds_that_are_not_covered(kind):
    with pytest.raises(kernels.UnsupportedError, match="rope type"):
        kernels.rope_frequencies(12, 10000.0, {"rope_type": kind})
    with pytest.raises(kernels.UnsupportedError, match="rope type"):
        kernels.rope_attention_factor({"rope_type": kind})


def test_frequencies_are_not_those_of_binary64_arithmetic():
    """So that the comparison above can fail: a power and a division, rounded each, miss some."""
    plain = 1.0 / np.power(500000.0, np.arange(0, 128, 2) / 128)
    assert plain.tolist() != rope.frequencies(128, 500000.0)


POSITIONS = [0, 1, 2, 3, 15, 100, 511, 512, 2047, 4095]


@pytest.mark.parametrize("attention_factor", [1.0, 0.1 * 3 + 1, 1.3465735902799727])
def test_tables(attention_factor):
    freqs = rope.frequencies(48, 10000.0, None)
    want = [rope.table_row(freqs, p, attention_factor) for p in POSITIONS]
    f = np.array(freqs)

    def table(which: int):
        return kernels.rope_tables(f, 4096, attention_factor)[which][POSITIONS]

    agree([a for cos, _ in want for a in cos], lambda: table(0), "cos")
    agree([a for _, sin in want for a in sin], lambda: table(1), "sin")


def test_whole_tables():
    freqs = rope.frequencies(16, 500000.0, LLAMA3 | {"original_max_position_embeddings": 256})
    want = [rope.table_row(freqs, p) for p in range(200)]
    f = np.array(freqs)
    agree([a for cos, _ in want for a in cos], lambda: kernels.rope_tables(f, 200)[0], "cos")
    agree([a for _, sin in want for a in sin], lambda: kernels.rope_tables(f, 200)[1], "sin")


def test_tables_near_multiples_of_half_a_turn():
    """Angles whose cosine or sine nearly vanishes, where a careless reduction loses its digits."""
    half_pi = float(np.pi / 2)
    freqs = [half_pi, 2 * half_pi, half_pi * 3, half_pi * 355, 1.0, 11.0, 344.0, 2.0**-30, 1e-300]
    want = [rope.table_row(freqs, p) for p in range(40)]
    f = np.array(freqs)
    agree([a for cos, _ in want for a in cos], lambda: kernels.rope_tables(f, 40)[0], "cos")
    agree([a for _, sin in want for a in sin], lambda: kernels.rope_tables(f, 40)[1], "sin")


@pytest.mark.parametrize("function", ["cos", "sin"])
def test_tables_are_correctly_rounded_where_binary64_cannot_tell(function):
    """Angles whose cosine (or sine) lies as near to the middle of two binary32 as angles get.

    An evaluation in binary64 that errs by a quarter of a unit lands on the wrong side, or on the
    middle itself. In ordinary tables one entry in some 2^29 is like these.
    """
    rng = np.random.default_rng(42)
    inverse = {"cos": mpmath.acos, "sin": mpmath.asin}[function]
    freqs = []
    with mpmath.workprec(200):
        for _ in range(1000):
            middle = mpmath.ldexp(2 * int(rng.integers(1 << 23, 1 << 24)) + 1, -25)
            middle = mpmath.ldexp(middle, -int(rng.integers(0, 4)))
            turns = 2 * mpmath.pi * int(rng.integers(0, 3))
            freqs.append(float(inverse(middle) + turns))
    f, which = np.array(freqs), ["cos", "sin"].index(function)
    agree(rope.table_row(freqs, 1)[which], lambda: kernels.rope_tables(f, 2)[which][1], function)


def test_angles_are_binary64_products():
    """A binary32 angle gives another table: the comparison can fail."""
    freqs = rope.frequencies(48, 10000.0)
    narrow = [B64.convert(B32.from_float(f), B32) for f in freqs]
    assert narrow != [B64.from_float(f) for f in freqs]
    single = [float(np.float32(f)) for f in freqs]
    assert rope.table_row(freqs, 2047) != rope.table_row(single, 2047)


@pytest.mark.parametrize("kind", data.KINDS.values(), ids=data.KINDS.keys())
@pytest.mark.parametrize(("d", "rotary"), [(2, 2), (16, 16), (64, 64), (24, 16), (34, 34), (10, 2)])
def test_rotation(kind, d, rotary):
    rng = np.random.default_rng([40, d])
    x = kind(rng, (5, 3, d))
    positions = np.array([0, 1, 63, 63, 17], dtype=np.int32)
    freqs = rope.frequencies(rotary, 10000.0)
    cos, sin = kernels.rope_tables(np.array(freqs), 64)
    want = [
        a
        for m, p in enumerate(positions.tolist())
        for h in range(3)
        for a in rotate(data.bits(x[m, h]), *rope.table_row(freqs, p))
    ]
    agree(want, lambda: kernels.rope(x, cos, sin, positions))


def test_rotation_rounds_three_times_an_element():
    x = data.normal(np.random.default_rng(41), (40, 2))
    cos, sin = rope.table_row([1.0], 1)
    fused = [B32.fma(a, cos[0], B32.mul(B32.neg(b), sin[0])) for a, b in map(data.bits, x)]
    assert fused != [rotate(data.bits(r), cos, sin)[0] for r in x]


def test_tables_are_the_same_objects_of_mathematics_on_every_path():
    f = np.array(rope.frequencies(32, 10000.0))
    seen = {b"".join(t.tobytes() for t in kernels.rope_tables(f, 300)) for _ in every_path()}
    assert len(seen) == 1
