"""Randomness, sampling, log-probabilities and digests, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
from blake3 import blake3
from tests.kernels.oracle import data, sampling
from tests.kernels.oracle.functions import exp32
from tests.kernels.oracle.ieee import B32, B64
from tests.kernels.oracle.paths import agree, every_path

from isonomy import kernels
from isonomy.kernels import SamplingParams


def check(logits, *, position=7, history=(), **options):
    """Token and log-probability on every path; returns the oracle's token."""
    b = data.bits(logits)
    token = sampling.sample(b, sampling.Params(**options), position, history)
    logprob = sampling.logprob(b, token)
    ids = np.array(list(history), dtype=np.int32)
    for path in every_path():
        got = kernels.sample(logits, SamplingParams(**options), position=position, history=ids)
        assert got.token == token, (path, options)
        assert data.bits(np.array([got.logprob], dtype=np.float32)) == [logprob], (path, options)
    return token


def f32(*values):
    return np.array(values, dtype=np.float32)


# Philox


def test_philox():
    rng = np.random.default_rng(60)
    cases = [(0, (0, 0, 0, 0)), (2**64 - 1, (2**32 - 1,) * 4), (1 << 32, (1, 2, 3, 4))]
    for _ in range(200):
        key = int.from_bytes(rng.bytes(8), "little")
        cases.append((key, tuple(rng.integers(0, 1 << 32, 4).tolist())))
    for _ in every_path():
        for key, counter in cases:
            got = kernels.philox4x32_10(key, counter)
            assert tuple(got) == sampling.philox4x32_10(key, counter)


# Noise


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 15, 16, 17, 31, 33, 100, 257])
@pytest.mark.parametrize("seed", [0, 1, 2**32, 2**64 - 1, 0x299F31D0A4093822])
def test_sizes_and_seeds(size, seed):
    rng = np.random.default_rng([61, size])
    logits = data.normal(rng, size) * np.float32(3)
    for position in (0, 1, 1000, 2**31 - 1):
        check(logits, temperature=0.8, seed=seed, position=position, candidate=position % 3)


def test_equal_logits_leave_the_noise_alone():
    """Every draw is the greatest noise: 40 of them agree only if ids, words and counters do."""
    logits = np.zeros(61, dtype=np.float32)
    tokens = [check(logits, temperature=1.0, seed=5, position=p) for p in range(40)]
    assert len(set(tokens)) > 20


def test_noise_is_keyed_by_id_position_and_candidate():
    logits = np.zeros(61, dtype=np.float32)
    draws = {
        check(logits, temperature=1.0, seed=s, position=p, candidate=c)
        for s, p, c in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1 << 32, 0, 0)]
    }
    assert len(draws) > 2


def border(wins):
    """The least binary32 between -100 and 100 for which `wins` holds, and the one below it."""

    def bits_of(key):  # the inverse of B32.key
        return key if key >= 0 else B32.neg(-key)

    low, high = -B32.key(B32.from_int(100)), B32.key(B32.from_int(100))
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if wins(bits_of(middle)) else (middle, high)
    return bits_of(high), bits_of(low)


@pytest.mark.parametrize("temperature", [1.0, 0.7, 3.0])
@pytest.mark.parametrize("seed", range(12))
def test_noise_and_temperature_to_the_last_bit(seed, temperature):
    """The least logit with which id 0 still wins against id 1, and the one below it.

    The two sums are equal there, and the tie goes to id 0; a unit in the last place of either
    noise, or of a quotient, moves the border.
    """
    g0 = sampling.gumbel(seed, 0, 9, 0)
    g1 = sampling.gumbel(seed, 1, 9, 0)
    t = B32.from_float(temperature)
    against = B32.key(B32.add(B32.div(B32.one, t), g1))
    at, below = border(lambda a: B32.key(B32.add(B32.div(a, t), g0)) >= against)
    for logit, token in ((at, 0), (below, 1)):
        logits = data.from_bits([logit, B32.one])
        assert check(logits, temperature=temperature, seed=seed, position=9) == token


@pytest.mark.parametrize("penalty", [1.1, 1.3, 0.7, 1.9])
@pytest.mark.parametrize("value", [0.37, 2.71, 11.3, -0.37, -2.71, -11.3])
def test_penalty_to_the_last_bit(value, penalty):
    """The least logit that, penalised, still beats an unpenalised one of a higher id."""
    r, against = B32.from_float(penalty), B32.from_float(value)

    def penalised(a):
        return B32.div(a, r) if B32.key(a) > 0 else B32.mul(a, r)

    at, below = border(lambda a: B32.key(penalised(a)) >= B32.key(against))
    for logit, token in ((at, 0), (below, 1)):
        logits = data.from_bits([logit, against])
        drawn_token = check(logits, temperature=0.0, repetition_penalty=penalty, history=[0])
        assert drawn_token == token


# Greedy, ties


def test_greedy_takes_the_lowest_id_of_the_greatest():
    minus_zero = -np.float32(0)
    assert check(f32(1, 3, 2, 3), temperature=0.0) == 1
    assert check(f32(-1, minus_zero, 0, minus_zero), temperature=0.0) == 1
    assert check(f32(-1, 0, minus_zero), temperature=0.0) == 1
    assert check(np.full(300, -5, dtype=np.float32), temperature=0.0) == 0


@pytest.mark.parametrize("n", [8, 17, 33, 64, 257])
def test_greedy_ties_across_lanes(n):
    rng = np.random.default_rng([62, n])
    for _ in range(8):
        check(rng.integers(-2, 3, n).astype(np.float32), temperature=0.0)


def test_a_temperature_that_rounds_to_zero_is_zero():
    check(data.normal(np.random.default_rng(63), 50), temperature=1e-50, seed=4)


def test_greedy_ignores_truncation_and_noise():
    logits = data.normal(np.random.default_rng(63), 50)
    plain = check(logits, temperature=0.0)
    assert check(logits, temperature=0.0, top_k=3, top_p=0.1, min_p=0.9, seed=9) == plain


# Truncation


@pytest.mark.parametrize("quantum", [0.0, 0.25, 1.0], ids=["distinct", "ties", "many ties"])
@pytest.mark.parametrize(
    "options",
    [
        {"top_k": 1},
        {"top_k": 2},
        {"top_k": 7},
        {"top_k": 1000},
        {"top_p": 1e-9},
        {"top_p": 0.3},
        {"top_p": 0.9},
        {"top_p": 0.999999},
        {"min_p": 0.05},
        {"min_p": 1.0},
        {"top_k": 9, "top_p": 0.6},
        {"top_k": 9, "top_p": 0.8, "min_p": 0.3},
        {"top_p": 0.95, "min_p": 0.1},
    ],
    ids=str,
)
def test_truncation(options, quantum):
    rng = np.random.default_rng([64, int(quantum * 4)])
    for draw in range(6):
        logits = data.normal(rng, 67) * np.float32(2)
        if quantum:
            logits = np.round(logits / np.float32(quantum)) * np.float32(quantum)
        check(logits, temperature=1.3, seed=draw, position=draw, **options)


def drawn(logits, draws=60, **options):
    """The tokens that many seeds draw: with equal logits, all survivors turn up."""
    return {check(logits, temperature=1.0, seed=s, **options) for s in range(draws)}


def test_top_k_keeps_the_lowest_ids_among_equals():
    assert drawn(np.zeros(8, dtype=np.float32), top_k=3) == {0, 1, 2}
    assert drawn(f32(0, 1, 0, 1, 0, 0), top_k=3, draws=200) == {0, 1, 3}


def test_top_p_stops_exactly_where_the_mass_is_reached():
    four = np.zeros(4, dtype=np.float32)
    assert drawn(four, top_p=0.5) == {0, 1}
    assert drawn(four, top_p=float(np.nextafter(0.5, 1))) == {0, 1, 2}
    assert drawn(four, top_p=float(np.nextafter(0.5, 0))) == {0, 1}
    assert drawn(four, top_p=5e-324) == {0}
    assert drawn(four, top_p=float(np.nextafter(1.0, 0))) == {0, 1, 2, 3}


def test_top_p_counts_the_mass_of_what_top_k_left():
    assert drawn(np.zeros(100, dtype=np.float32), top_k=4, top_p=0.5) == {0, 1}


def test_top_p_in_binary64():
    """Z = 3 * 2^32: at the binary64 below 2/3 the product rounds to 2^33, or not, and S = 2^33."""
    three = np.zeros(3, dtype=np.float32)
    for top_p in (2 / 3, float(np.nextafter(2 / 3, 1)), float(np.nextafter(2 / 3, 0))):
        threshold = B64.mul(B64.from_float(top_p), B64.from_int(3 << 32))
        kept = 2 if B64.key(B64.from_int(2 << 32)) >= B64.key(threshold) else 3
        assert drawn(three, top_p=top_p) == set(range(kept))


def test_mass_that_rounds_to_nothing_and_ties_of_the_rounding():
    """exp(l - m) * 2^32 below one half is no mass; ids without mass never lengthen the prefix."""
    logits = f32(0, -22.2, -22.9, -30, -103, -200)
    masses = [sampling.mass(a, 0) for a in data.bits(logits)]
    assert masses[0] == 1 << 32
    assert masses[2:] == [0, 0, 0, 0]
    assert masses[1] == 1
    for seed in range(20):
        check(logits, temperature=1.0, top_p=float(np.nextafter(1.0, 0)), seed=seed)
        check(logits, temperature=40.0, top_p=0.99, seed=seed)


def test_min_p_at_its_border():
    for value in (-0.5, -1.0, -2.3):
        logits = f32(0, value, value)
        p = float(data.from_bits(exp32(B32.from_float(float(logits[1]))))[()])
        assert drawn(logits, min_p=p) == {0, 1, 2}
        assert drawn(logits, min_p=float(np.nextafter(np.float32(p), np.float32(1)))) == {0}


def test_min_p_is_rounded_to_binary32():
    """A binary64 just above the border rounds onto it, and the id survives."""
    logits = f32(0, -0.5, -0.5)
    p = float(data.from_bits(exp32(B32.from_float(-0.5)))[()])
    assert drawn(logits, min_p=float(np.nextafter(p, 1))) == {0, 1, 2}


@pytest.mark.parametrize(
    "options", [{}, {"top_p": 0.9}, {"top_p": 0.4, "top_k": 700}, {"top_k": 50, "min_p": 0.02}]
)
def test_a_large_vocabulary(options):
    rng = np.random.default_rng(72)
    logits = np.round(data.normal(rng, 2000) * np.float32(16)) / np.float32(8)
    for seed in range(2):
        check(logits, temperature=0.7, seed=seed, **options)


# Penalty and temperature


@pytest.mark.parametrize("penalty", [1.0, 1.1, 1.3, 0.7, 3.0])
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_repetition_penalty(penalty, temperature):
    rng = np.random.default_rng(65)
    for draw in range(6):
        logits = data.normal(rng, 30) * np.float32(2)
        history = rng.integers(0, 30, 20).tolist()
        history += history[:5]
        check(
            logits,
            temperature=temperature,
            repetition_penalty=penalty,
            history=history,
            seed=draw,
            position=draw,
        )


def test_repetition_penalty_once_an_id_and_by_sign():
    assert check(f32(2, 1.5), temperature=0.0, repetition_penalty=1.25, history=[0, 0, 0]) == 0
    assert check(f32(2, 1.7), temperature=0.0, repetition_penalty=1.25, history=[0]) == 1
    assert check(f32(-2, -2.1), temperature=0.0, repetition_penalty=1.25, history=[0]) == 1
    assert check(f32(-2, -2.1), temperature=0.0, repetition_penalty=0.5, history=[1]) == 1
    zeros = data.from_bits([B32.sign_bit, 0, 0])
    assert check(zeros, temperature=0.0, repetition_penalty=2.0, history=[0, 1]) == 0


@pytest.mark.parametrize("temperature", [0.1, 0.3, 1.0, 1.7, 100.0, 1e-3])
def test_temperature_divides(temperature):
    rng = np.random.default_rng(66)
    for draw in range(8):
        logits = data.normal(rng, 40) * np.float32(0.5)
        check(logits, temperature=temperature, top_p=0.9, seed=draw)


def test_scalars_are_rounded_once_to_binary32():
    """At T = 0.1 a logit of 0.1 (binary32) becomes exactly 1, and its distance to 1 exactly 0."""
    logits = f32(0.1, 0.05, 0.1)
    assert B32.div(data.bits(logits)[0], B32.from_float(0.1)) == B32.one
    assert drawn(logits, min_p=1.0) == {0, 2}
    for seed in range(10):
        check(logits, temperature=0.1, seed=seed, min_p=float(np.exp(-0.5)))


# Log-probabilities


@pytest.mark.parametrize("size", [1, 2, 16, 33, 257, 513])
@pytest.mark.parametrize("spread", [0.01, 1.0, 30.0])
def test_top_logprobs(size, spread):
    rng = np.random.default_rng([67, size])
    logits = data.normal(rng, size) * np.float32(spread)
    logits[size // 2] = logits[0]
    b = data.bits(logits)
    n = min(size, 20)
    ranked = sorted(range(size), key=lambda i: (-B32.key(b[i]), i))[:n]
    want = sampling.logprobs(b, ranked)
    for path in every_path():
        got = kernels.top_logprobs(logits, n)
        assert [i for i, _ in got] == ranked, path
        values = np.array([p for _, p in got], dtype=np.float32)
        assert data.bits(values) == want, path


def test_logprobs_of_chosen_ids():
    rng = np.random.default_rng(71)
    logits = data.normal(rng, (4, 60)) * np.float32(3)
    ids = np.array([0, 59, 31, 32], dtype=np.int32)
    want = [sampling.logprob(r, i) for r, i in zip(data.rows(logits), ids.tolist(), strict=True)]
    agree(want, lambda: kernels.logprobs(logits, ids))


def test_logprob_comes_from_the_logits_before_penalty_and_temperature():
    logits = f32(1, 2, 3)
    b = data.bits(logits)
    options = SamplingParams(temperature=5.0, repetition_penalty=4.0, top_k=1, seed=3)
    got = kernels.sample(logits, options, position=0, history=np.array([2, 1], dtype=np.int32))
    assert got.token == 0
    assert data.bits(np.array([got.logprob], dtype=np.float32)) == [sampling.logprob(b, 0)]


def test_the_sum_of_masses_is_rounded_once():
    """Enough mass that Z needs more than 24 bits."""
    logits = data.normal(np.random.default_rng(68), 400) * np.float32(0.3)
    b = data.bits(logits)
    z = sum(sampling.mass(a, B32.max(b)) for a in b)
    assert z.bit_length() > 32
    for seed in range(5):
        check(logits, temperature=1.0, seed=seed)


# Digests


@pytest.mark.parametrize(
    "n", [0, 1, 63, 64, 65, 1023, 1024, 1025, 2047, 2048, 2049, 3072, 3073, 4097, 65537, 100000]
)
def test_blake3(n):
    """Sizes around blocks of 64 bytes, chunks of 1024, and subtrees of every fill."""
    message = np.random.default_rng([73, n]).bytes(n)
    for path in every_path():
        assert kernels.blake3(message) == blake3(message).digest(), path


@pytest.mark.parametrize("n", [1, 15, 255, 256, 257, 512, 1025, 5000])
def test_step_digests(n):
    """Sizes around BLAKE3's blocks of 64 bytes and chunks of 1024."""
    rng = np.random.default_rng([69, n])
    logits = data.wide(rng, (3, n))
    logits[0, 0] = -np.float32(0)
    want = [sampling.digest(r) for r in data.rows(logits)]
    for path in every_path():
        assert list(kernels.step_digests(logits)) == want, path


def test_chain():
    rng = np.random.default_rng(70)
    digests = [rng.bytes(32) for _ in range(5)]
    state = bytes(32)
    for i, one in enumerate(digests):
        state = kernels.chain(state, one)
        assert state == sampling.chain_digests(digests[: i + 1])


def test_digest_sees_the_sign_of_zero():
    plus = np.zeros((1, 4), dtype=np.float32)
    assert kernels.step_digests(plus) != kernels.step_digests(-plus)
