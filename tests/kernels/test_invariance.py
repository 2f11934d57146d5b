"""Bits do not depend on path, threads, batch size or a row's position among its neighbours."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from isonomy import kernels
from isonomy.kernels.library import load

F32 = npt.NDArray[np.float32]
EDGES = (1, 15, 16, 17, 31, 32, 33, 63, 255, 256, 257, 511, 512, 513)
BATCHES = (*range(1, 18), 32, 64)


def _normal(rng: np.random.Generator, shape: tuple[int, ...]) -> F32:
    return rng.standard_normal(shape, np.float32)


def _subnormal(rng: np.random.Generator, shape: tuple[int, ...]) -> F32:
    return (rng.standard_normal(shape) * 1e-39).astype(np.float32)


def _underflowing(rng: np.random.Generator, shape: tuple[int, ...]) -> F32:
    return (rng.standard_normal(shape) * 2.0 ** rng.integers(-80, -60, shape)).astype(np.float32)


def _signed_zeros(rng: np.random.Generator, shape: tuple[int, ...]) -> F32:
    return rng.choice(np.array([0.0, -0.0, -0.0, 1e-45, -1.5], np.float32), shape)


def _cancelling(rng: np.random.Generator, shape: tuple[int, ...]) -> F32:
    x = (rng.standard_normal(shape) * 2.0 ** rng.integers(-20, 20, shape)).astype(np.float32)
    x[..., 1::2] = -x[..., : x.shape[-1] - x.shape[-1] % 2 : 2]
    return x


def _coarse(rng: np.random.Generator, shape: tuple[int, ...]) -> F32:
    """Few bits and many ties: sums that fall midway between two floats."""
    return (rng.integers(-7, 8, shape) * 2.0 ** rng.integers(-13, 13, shape)).astype(np.float32)


KINDS = [_normal, _subnormal, _underflowing, _signed_zeros, _cancelling, _coarse]
Kind = Callable[[np.random.Generator, tuple[int, ...]], F32]


def bits(*arrays: npt.NDArray[np.generic]) -> bytes:
    return b"|".join(a.tobytes() for a in arrays)


def on_every_path(compute: Callable[[], bytes]) -> None:
    """Scalar on one thread is the reference for all paths and thread counts."""
    kernels.set_threads(1)
    with kernels.using_isa("scalar"):
        expected = compute()
    for isa in kernels.info().isas:
        for threads in (1, 2, 5):
            kernels.set_threads(threads)
            with kernels.using_isa(isa):
                assert compute() == expected, f"{isa}, {threads} threads"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("k", EDGES)
def test_linear_on_every_path(kind: Kind, k: int) -> None:
    rng = np.random.default_rng(k)
    x, w, bias = kind(rng, (7, k)), kind(rng, (67, k)), kind(rng, (67,))
    plain, biased = kernels.PackedLinear(w), kernels.PackedLinear(w, bias)
    half = kernels.PackedLinear((w.view(np.uint32) >> 16).astype(np.uint16))
    on_every_path(lambda: bits(plain(x), biased(x), half(x), plain(x[:1])))


def test_a_sum_just_beside_a_midpoint_is_rounded_once(isa: str) -> None:
    """An fma by way of binary64 would see the midpoint itself, and go to the even neighbour.

    The product is half a unit of c, less a part in 2^46: c + product and c - product round to c.
    """
    j = np.arange(1, 200, dtype=np.float32)
    for exponent, bound in ((0, -23), (60, 37), (-100, -123), (-126, -149), (-127, -149)):
        c = np.float32(2.0**exponent) + np.float32(2.0**bound)  # odd, so that a tie leaves it
        left = np.float32(2.0 ** ((bound - 1) // 2)) * (1 + j * np.float32(2.0**-23))
        right = np.float32(2.0 ** (bound - 1 - (bound - 1) // 2)) * (1 - j * np.float32(2.0**-23))
        for sign in (1, -1):
            for a, b in zip(left, right * np.float32(sign), strict=True):
                x, w = np.array([[c, a]], np.float32), np.array([[1, b]] * 33, np.float32)
                got = kernels.linear(x, kernels.PackedLinear(w))
                assert (got == c).all(), (isa, exponent, sign, a, b)


@pytest.mark.parametrize("n", [1, 31, 32, 33, 64, 97])
def test_linear_rows_are_alone_whatever_the_batch(isa: str, n: int) -> None:
    rng = np.random.default_rng(n)
    w, x = _cancelling(rng, (n, 300)), _cancelling(rng, (64, 300))
    packed = kernels.PackedLinear(w, _normal(rng, (n,)))
    alone = np.concatenate([packed(x[i : i + 1]) for i in range(64)])
    for batch in BATCHES:
        assert bits(packed(x[:batch])) == bits(alone[:batch])
        assert bits(packed(x[64 - batch :])) == bits(alone[64 - batch :])
    order = rng.permutation(64)
    assert bits(packed(x[order])) == bits(alone[order])


@pytest.mark.usefixtures("isa")
def test_bfloat16_weights_are_their_float32_values() -> None:
    rng = np.random.default_rng(5)
    halves = rng.integers(0, 2**16, (70, 261)).astype(np.uint16)
    halves[(halves & 0x7F80) == 0x7F80] = 0x8001  # neither infinity nor NaN
    halves &= 0xBFFF  # below 2, so that sums stay finite
    w = (halves.astype(np.uint32) << 16).view(np.float32)
    x = _normal(rng, (5, 261))
    assert bits(kernels.linear(x, kernels.PackedLinear(halves))) == bits(
        kernels.linear(x, kernels.PackedLinear(w))
    )
    ids = np.array([0, 69, 3, 3])
    assert bits(kernels.embedding(ids, halves)) == bits(w[ids])
    assert bits(kernels.embedding(ids, w)) == bits(w[ids])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", EDGES)
def test_rows_on_every_path(kind: Kind, n: int) -> None:
    rng = np.random.default_rng(n)
    x, w, b = kind(rng, (5, n)), kind(rng, (n,)), _normal(rng, (n,))

    def compute() -> bytes:
        results = [
            kernels.row_sum(x),
            kernels.rms_norm(x, w, 1e-5),
            kernels.rms_norm(x, w, 1e-6, unit_offset=True),
            kernels.layer_norm(x, w, b, 1e-5),
            kernels.softmax(x),
        ]
        for i, result in enumerate(results[1:], 1):  # each row as if it were alone
            assert bits(result[3:4]) == bits(
                [
                    lambda r: r,
                    lambda r: kernels.rms_norm(r, w, 1e-5),
                    lambda r: kernels.rms_norm(r, w, 1e-6, unit_offset=True),
                    lambda r: kernels.layer_norm(r, w, b, 1e-5),
                    kernels.softmax,
                ][i](x[3:4])
            )
        return bits(*results)

    on_every_path(compute)


def test_elementwise_on_every_path() -> None:
    rng = np.random.default_rng(1)
    patterns = rng.integers(0, 2**32, 20000, np.uint32).view(np.float32)
    x = np.concatenate([patterns[np.isfinite(patterns)], _normal(rng, (9001,)) * 5])
    y = rng.permutation(x)

    def compute() -> bytes:
        f = kernels
        unary = (f.exp, f.log, f.tanh, f.erf, f.silu, f.gelu_erf, f.gelu_tanh)
        results = [function(x) for function in unary] + [f.add(x, y), f.mul(x, y)]
        canonical = np.where(np.isnan(results), np.float32(np.nan), results)
        return bits(canonical.astype(np.float32))

    on_every_path(compute)


@pytest.mark.parametrize("kind", [_normal, _underflowing, _cancelling])
@pytest.mark.parametrize(
    ("keys", "heads", "kv_heads", "dim", "window", "softcap"),
    [
        (1, 1, 1, 8, 0, 0.0),
        (33, 4, 2, 33, 0, 30.0),
        (257, 9, 3, 64, 0, 0.0),
        (300, 4, 4, 16, 40, 0.0),
        (513, 14, 2, 32, 256, 0.0),
        (70, 3, 1, 260, 33, 5.0),
        (1100, 6, 2, 24, 0, 0.0),  # single rows: a task a block of keys
        (1300, 4, 1, 40, 700, 20.0),
    ],
)
def test_attention_on_every_path(
    kind: Kind, keys: int, heads: int, kv_heads: int, dim: int, window: int, softcap: float
) -> None:
    rng = np.random.default_rng(keys)
    positions = np.unique(np.append(rng.integers(0, keys, 20), keys - 1)).astype(np.int32)
    q = kind(rng, (len(positions), heads, dim))
    k, v = kind(rng, (keys, kv_heads, dim)), kind(rng, (keys, kv_heads, dim))
    scale = 1 / np.sqrt(dim)

    def attend(rows: slice, seen: int) -> F32:
        return kernels.attention(
            q[rows],
            k[:seen],
            v[:seen],
            positions[rows],
            scale=scale,
            window=window,
            softcap=softcap,
        )

    on_every_path(lambda: bits(attend(slice(None), keys)))
    together = attend(slice(None), keys)
    for i, position in enumerate(positions):  # one row, and no key that it does not see
        assert bits(attend(slice(i, i + 1), int(position) + 1)) == bits(together[i : i + 1])


def test_rope_on_every_path() -> None:
    rng = np.random.default_rng(3)
    frequencies = kernels.rope_frequencies(48, 10000.0)
    x = _normal(rng, (9, 3, 64))
    positions = rng.integers(0, 500, 9)

    def compute() -> bytes:
        cos, sin = kernels.rope_tables(frequencies, 500, 1.1)
        return bits(cos, sin, kernels.rope(x, cos, sin, positions))

    on_every_path(compute)


@pytest.mark.parametrize(
    "params",
    [
        kernels.GREEDY,
        kernels.SamplingParams(seed=2**64 - 1, candidate=2**32 - 1),
        kernels.SamplingParams(temperature=0.7, top_k=40, repetition_penalty=1.3, seed=3),
        kernels.SamplingParams(top_p=0.9, min_p=0.05, seed=4),
        kernels.SamplingParams(temperature=2.0, top_k=300, top_p=0.5, seed=5),
    ],
)
def test_sampling_on_every_path(params: kernels.SamplingParams) -> None:
    rng = np.random.default_rng(8)
    logits = (_normal(rng, (10, 1003)) * 4).round(1)  # with ties

    def compute() -> bytes:
        drawn = [
            kernels.sample(row, params, position=i, history=[1, 5, 5, 1002])
            for i, row in enumerate(logits)
        ]
        tops = [kernels.top_logprobs(row, 7) for row in logits]
        forced = kernels.logprobs(logits, [d.token for d in drawn])
        assert bits(forced) == b"".join(d.logprob.tobytes() for d in drawn)
        return repr((drawn, tops, kernels.step_digests(logits))).encode()

    on_every_path(compute)


def test_a_caller_that_flushes_subnormals_or_rounds_up_changes_nothing(isa: str) -> None:
    library = load()
    before = library.iso_float_state()
    if before & ~0x3F != 0x1F80:
        pytest.skip("this processor's floating-point control register is not MXCSR")
    rng = np.random.default_rng(6)
    x, w = _underflowing(rng, (9, 300)), _underflowing(rng, (70, 300))
    packed = kernels.PackedLinear(w)
    ones = np.ones(300, np.float32)
    tiny = _subnormal(rng, (9, 300))

    def compute() -> bytes:
        logits = _normal(np.random.default_rng(1), (999,))
        return (
            bits(packed(x), kernels.rms_norm(x, ones, 0.0), kernels.add(tiny, tiny), kernels.exp(x))
            + repr(kernels.sample(logits, kernels.SamplingParams(), position=3)).encode()
        )

    kernels.set_threads(3)
    expected = compute()
    for odd_state in (0x1F80 | 0x8040, 0x1F80 | 0x4000, 0x1F80 | 0x2000):  # FTZ+DAZ, up, down
        library.iso_set_float_state(odd_state)
        try:
            got = compute()
            after = library.iso_float_state()
        finally:
            library.iso_set_float_state(before)
        assert got == expected
        assert after & ~0x3F == odd_state  # (the flags below only say what happened)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of forking with threads: the point
def test_a_forked_child_computes_the_same() -> None:
    rng = np.random.default_rng(9)
    packed, x = kernels.PackedLinear(_normal(rng, (500, 300))), _normal(rng, (40, 300))
    kernels.set_threads(3)
    expected = bits(packed(x))  # the parent's workers run now
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            same = bits(packed(x)) == expected and bits(packed(x)) == expected
            workers = Path("/proc/self/task")
            alone = workers.is_dir() and len(list(workers.iterdir())) < 3
            os.write(write, b"no workers" if alone else b"same" if same else b"different")
            status = 0
        finally:
            os._exit(status)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        assert pipe.read() == b"same"
    assert os.waitpid(child, 0)[1] == 0
    assert bits(packed(x)) == expected
