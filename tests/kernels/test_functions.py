"""exp, log, tanh, erf: the nearest binary32 for every argument; rope tables as whole tables.

All 2^32 arguments are swept by `make verify-math`; here are samples of them, every boundary, and
the arguments whose results lie nearest to a tie, against mpmath at growing precision.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from tests.kernels.oracle import functions as oracle
from tests.kernels.oracle import rope

from isonomy import kernels

FUNCTIONS = {
    "exp": (kernels.exp, oracle.exp32),
    "log": (kernels.log, oracle.log32),
    "tanh": (kernels.tanh, oracle.tanh32),
    "erf": (kernels.erf, oracle.erf32),
}
NAN = 0x7FC00000
INF = 0x7F800000
SIGN = 0x80000000
ONE = 0x3F800000

# The arguments whose results come nearest to a tie between two binary32 numbers (relative distance
# 2^-47 and less, found by scanning all arguments with MPFR); the last four of log's are also those
# that a binary64 result rounded twice gets wrong.
HARD = {
    "exp": (
        0xC16912CD, 0xBBF0EDF1, 0xBAE0E25C, 0xB3000000, 0x377EFF81, 0x40315B33, 0x4001B249,
        0x39C6BE5B, 0x38E69CC1, 0x383A3EF1, 0xBC2A461A, 0x3D1A274E, 0x4288942B, 0xBBB70EE8,
        0x3FE67199, 0xC13D6631, 0x39E5BB1D, 0x41CBF87B, 0x36FDFFC1, 0x367BFFE1, 0x35F7FFF1,
        0x356FFFF9, 0x34DFFFFD, 0x343FFFFF, 0x33800000, 0x337FFFFF, 0xBCB8F40F, 0xC0781533,
    ),
    "log": (
        0x4C5D65A5, 0x4D604EBE, 0x66A8C860, 0x1F116AB8, 0x38DCBE38, 0x5EE8984E, 0x4665A9A6,
        0x3BF86EF0, 0x79E7EC37, 0x2C4C24B7, 0x0DC8BBA4, 0x1A8446CB, 0x28E3FA26, 0x66ABBD63,
        0x29FD22F8, 0x111C87F8, 0x29E6126B, 0x2E492984, 0x464D5B2B, 0x54AF989D, 0x4E85F412,
        0x6D1F23EB, 0x62B467BA, 0x145CB6D4, 0x5D800341, 0x39C31348, 0x064CB44B, 0x16C5EE7A,
        0x65D890D3, 0x41178FEB, 0x3C413D3A, 0x6F31A8EC,
    ),
    "tanh": (
        0x3AC37DE2, 0x3EEE0566, 0x40ACB4D0, 0x3CD41B91, 0x40C5E8CA, 0x3D7C3055, 0x40A6EF82,
        0x3FF8BC7E, 0x4013CD84, 0x3C96AE2E, 0x3F97FBC7, 0x3BC8B605, 0x3EF6AFEE, 0x3ADBC904,
        0x40C7B05F, 0x3F20B67F, 0x39B89BA2, 0x39B89BA3, 0x3DEE483B, 0x3FB3C82A, 0x4053EEA7,
    ),
    "erf": (
        0x3940EAD6, 0x39C0057D, 0x36AEA466, 0x358E9D2D, 0x0F2A320C, 0x122A320C, 0x23AA320C,
        0x102A320C, 0x112A320C, 0x21AA320C, 0x272A320C, 0x19AA320C, 0x1D2A320C, 0x17AA320C,
    ),
}  # fmt: skip


def apply(name: str, arguments: list[int]) -> list[int]:
    """Results (bits) of the kernel for arguments (bits), all in one call."""
    x = np.array(arguments, np.uint32).view(np.float32)
    return FUNCTIONS[name][0](x).view(np.uint32).tolist()


def check(name: str, arguments: list[int]) -> None:
    """Every path of this machine against the oracle."""
    correct = [FUNCTIONS[name][1](x) for x in arguments]
    for isa in kernels.info().isas:
        with kernels.using_isa(isa):
            got = apply(name, arguments)
        wrong = [
            tuple(f"{bits:#010x}" for bits in case)
            for case in zip(arguments, got, correct, strict=True)
            if case[1] != case[2]
        ]
        assert not wrong, f"{isa}: {len(wrong)} wrong; (argument, result, correct) {wrong[:5]}"


def around(center: int, reach: int) -> list[int]:
    """The arguments within `reach` of a magnitude's bits, of both signs."""
    magnitudes = range(max(0, center - reach), min(SIGN - 1, center + reach) + 1)
    return [m | s for m in magnitudes for s in (0, SIGN)]


def bits(x: float) -> int:
    return int(np.float32(x).view(np.uint32))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_random_bit_patterns(name):
    rng = np.random.default_rng(20)
    check(name, rng.integers(0, 1 << 32, 20000, np.uint64).tolist())


@pytest.mark.parametrize("name", FUNCTIONS)
def test_random_arguments_where_the_function_varies(name):
    """Exponents from 2^-14 to 2^7: random patterns fall there one time in twelve."""
    rng = np.random.default_rng(21)
    magnitudes = rng.integers(bits(2.0**-14), bits(128.0), 16000, np.uint64)
    signs = rng.integers(0, 2, 16000, np.uint64) << np.uint64(31)
    check(name, (magnitudes | signs).tolist())


@pytest.mark.parametrize("name", FUNCTIONS)
def test_around_every_power_of_two(name):
    """Subnormals, the least normal, the largest finite, infinities and the first NaNs included."""
    exponents = [m for field in range(256) for m in around(field << 23, 3)]
    subnormals = [m for place in range(23) for m in around(1 << place, 3)]
    check(name, sorted(set(exponents + subnormals)))


# Where a result saturates, overflows, underflows or becomes subnormal, and where the code changes
# from one formula to the other.
BOUNDARIES = {
    "exp": (88.72284, 103.97208, 87.33655, 105.0, 0.34657359, 1.0397208, 2.0**-24, 2.0**-25),
    "log": (1.0, 0.70710678, 1.41421356, 2.8284271, 2.7182817, 2.0**-126),
    "tanh": (9.010913, 10.0, 0.1732868, 0.5198604, 2.0**-12, 4.2e-4),
    "erf": (1.25, 3.8325067, 3.9375, 3.9192059, 1.0, 2.0**-12, 1.0418e-38),
}


@pytest.mark.parametrize(
    ("name", "boundary"), [(name, b) for name, values in BOUNDARIES.items() for b in values]
)
def test_boundary(name, boundary):
    check(name, around(bits(boundary), 200))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_hardest_arguments(name):
    hard = [x for h in HARD[name] for x in range(h - 2, h + 3)]
    check(name, hard + [x ^ SIGN for x in hard])


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_nan_becomes_the_one_quiet_nan(name):
    nans = [0x7FC00000, 0xFFC00000, 0x7F800001, 0xFF800001, 0x7FFFFFFF, 0xFFFFFFFF, 0x7FA5A5A5]
    assert apply(name, nans) == [NAN] * len(nans)


def test_values_at_the_limits():
    zeros_and_infinities = [0, SIGN, INF, INF | SIGN]
    assert apply("exp", zeros_and_infinities) == [ONE, ONE, INF, 0]
    assert apply("log", zeros_and_infinities) == [INF | SIGN, INF | SIGN, INF, NAN]
    assert apply("tanh", zeros_and_infinities) == [0, SIGN, ONE, ONE | SIGN]
    assert apply("erf", zeros_and_infinities) == [0, SIGN, ONE, ONE | SIGN]


def test_logarithm_of_negative_numbers_is_nan():
    negative = [SIGN | m for m in (1, 0x007FFFFF, 0x00800000, ONE, 0x7F7FFFFF)]
    assert apply("log", negative) == [NAN] * len(negative)


@pytest.mark.parametrize("name", ["tanh", "erf"])
def test_odd_functions(name):
    rng = np.random.default_rng(22)
    x = rng.integers(0, INF + 1, 50000, np.uint64).tolist()
    positive, negative = apply(name, x), apply(name, [m | SIGN for m in x])
    assert negative == [r | SIGN for r in positive]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_length_and_position_in_the_array_do_not_matter(name):
    """The last elements of an array go another way than whole vectors do."""
    rng = np.random.default_rng(23)
    x = rng.integers(0, 1 << 32, 100, np.uint64).tolist()
    single = [apply(name, [value])[0] for value in x]
    for length in range(70):
        for start in (0, 1, 3, 17):
            assert apply(name, x[start : start + length]) == single[start : start + length]


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("shape", [(), (0,), (7,), (3, 5), (2, 0, 4), (2, 3, 4)])
def test_shape_is_kept(name, shape):
    x = np.linspace(0.5, 2.0, int(np.prod(shape)), dtype=np.float32).reshape(shape)
    y = FUNCTIONS[name][0](x)
    assert y.shape == shape
    assert y.dtype == np.float32


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("isa", ["avx2", "avx512"])
def test_every_path_gives_the_scalar_path_bits(name, isa):
    """A million arguments, against the scalar path."""
    if isa not in kernels.info().isas:
        pytest.skip(f"this machine or build has no {isa} path")
    x = np.random.default_rng(24).integers(0, 1 << 32, 1 << 20, np.uint64).astype(np.uint32)
    results = []
    for path in ("scalar", isa):
        with kernels.using_isa(path):
            results.append(FUNCTIONS[name][0](x.view(np.float32)).tobytes())
    assert results[0] == results[1]


TABLES = {
    "10000, 64 dimensions": (64, 10000.0, None, 600, 1.0),
    "500000, 128 dimensions": (128, 500000.0, None, 200, 1.0),
    "one frequency, long": (2, 10000.0, None, 12000, 1.0),
    "llama3 with an attention factor": (
        64,
        500000.0,
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
        200,
        1.1386294,
    ),
}


@pytest.mark.parametrize("name", TABLES)
def test_whole_rope_table(name):
    rotary, theta, scaling, positions, factor = TABLES[name]
    frequencies = kernels.rope_frequencies(rotary, theta, scaling)
    cosines, sines = kernels.rope_tables(frequencies, positions, factor)
    assert cosines.shape == sines.shape == (positions, rotary // 2)
    rows = [rope.table_row(frequencies.tolist(), p, factor) for p in range(positions)]
    assert cosines.view(np.uint32).tolist() == [row[0] for row in rows]
    assert sines.view(np.uint32).tolist() == [row[1] for row in rows]


def test_rope_table_of_huge_angles():
    """Angles near 2^31 and beyond: the argument's reduction keeps every bit."""
    rng = np.random.default_rng(25)
    frequencies = np.concatenate(
        [rng.uniform(0, 2.0**31, 300), 2.0 ** rng.uniform(-60, 300, 300), np.pi / 4 * np.arange(64)]
    )
    cosines, sines = kernels.rope_tables(frequencies, 4)
    for position in range(4):
        cos, sin = rope.table_row(frequencies.tolist(), position)
        assert cosines[position].view(np.uint32).tolist() == cos
        assert sines[position].view(np.uint32).tolist() == sin


def test_constants_are_those_that_the_script_derives(capsys):
    source = Path(__file__).parents[2] / "kernels"
    spec = importlib.util.spec_from_file_location(
        "coefficients", source / "verify" / "coefficients.py"
    )
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    script.main()
    header = (source / "src" / "functions.hpp").read_text()
    printed = [line.strip(" ,-") for line in capsys.readouterr().out.splitlines()]
    constants = [literal for literal in printed if literal.startswith("0x")]
    assert len(constants) > 80
    assert [literal for literal in constants if literal not in header] == []
