"""Linear layers, bit for bit: sizes around blocks and vectors, data that tells the orders apart."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tests.kernels.oracle import data
from tests.kernels.oracle.ieee import B32, bf16_to_b32
from tests.kernels.oracle.paths import agree
from tests.kernels.oracle.reductions import STANDARD, Order, Row
from tests.kernels.oracle.reductions import linear as exact_linear

from isonomy.kernels import PackedLinear, linear

SIZES = [1, 2, 15, 16, 17, 31, 32, 33, 255, 256, 257, 511, 512, 513]

WRONG_ORDERS = {
    "blocks of 128": Order(block=128),
    "blocks of 512": Order(block=512),
    "one chain": Order(block=1 << 30),
    "mul and add": Order(fused=False),
    "descending": Order(descending=True),
}


def expected(x, w, bias=None, order=STANDARD, at=None):
    """The oracle's outputs, all of them or those at (row, output) pairs."""
    xs, ws = [Row(r) for r in data.rows(x)], [Row(r) for r in data.rows(w)]
    bs = [None] * len(ws) if bias is None else data.bits(bias)
    pairs = [(m, n) for m in range(len(xs)) for n in range(len(ws))] if at is None else at
    return [exact_linear(xs[m], ws[n], bs[n], order) for m, n in pairs]


def widened(stored):
    """float32 of bf16 bits."""
    return data.from_bits([bf16_to_b32(b) for b in stored.ravel().tolist()]).reshape(stored.shape)


def picked(y, at):
    return np.array([y[m, n] for m, n in at], dtype=np.float32)


def some(rng, m, n, count=9):
    """Corners and a few places between."""
    corners = {(0, 0), (m - 1, n - 1), (m - 1, 0), (0, n - 1)}
    while len(corners) < min(count, m * n):
        corners.add((int(rng.integers(m)), int(rng.integers(n))))
    return sorted(corners)


@pytest.mark.parametrize("k", SIZES)
@pytest.mark.parametrize("kind", data.KINDS.values(), ids=data.KINDS.keys())
def test_linear(kind, k):
    rng = np.random.default_rng([10, k, len(kind.__name__)])
    m, n = 5, 37
    x, w = kind(rng, (m, k)), kind(rng, (n, k))
    bias = data.signed_zeros(rng, (n,)) if k % 2 else None
    at = some(rng, m, n)
    packed = PackedLinear(w, bias)
    agree(expected(x, w, bias, at=at), lambda: picked(linear(x, packed), at))


@pytest.mark.parametrize("k", [1, 17, 32, 255, 256, 257, 513])
@pytest.mark.parametrize("kind", data.KINDS.values(), ids=data.KINDS.keys())
def test_linear_with_bf16_weights(kind, k):
    rng = np.random.default_rng([11, k, len(kind.__name__)])
    m, n = 4, 35
    x = kind(rng, (m, k))
    stored = (kind(rng, (n, k)).view(np.uint32) >> 16).astype(np.uint16)
    w = widened(stored)
    bias = data.normal(rng, (n,))
    at = some(rng, m, n)
    packed = PackedLinear(stored, bias)
    agree(expected(x, w, bias, at=at), lambda: picked(linear(x, packed), at))


@pytest.mark.parametrize("n", [1, 2, 7, 8, 9, 15, 16, 17, 31, 32, 33, 47, 48, 49, 63, 64, 65])
@pytest.mark.parametrize("m", [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 16, 17, 25])
def test_every_output_of_every_tile_shape(m, n):
    rng = np.random.default_rng([12, m, n])
    k = 20
    x, w, bias = data.cancelling(rng, (m, k)), data.normal(rng, (n, k)), data.normal(rng, (n,))
    packed = PackedLinear(w, bias)
    agree(expected(x, w, bias), lambda: linear(x, packed))


@pytest.mark.parametrize("n", [1, 31, 32, 33, 65])
@pytest.mark.parametrize("m", [1, 2, 4, 5, 6, 7, 11, 12, 13, 25])
def test_every_output_of_every_tile_shape_with_bf16_weights(m, n):
    rng = np.random.default_rng([16, m, n])
    k = 20
    x = data.cancelling(rng, (m, k))
    stored = (data.normal(rng, (n, k)).view(np.uint32) >> 16).astype(np.uint16)
    packed = PackedLinear(stored)
    agree(expected(x, widened(stored)), lambda: linear(x, packed))


@pytest.mark.parametrize("k", [1024, 1025, 4095])
def test_many_blocks(k):
    rng = np.random.default_rng([13, k])
    x, w = data.cancelling(rng, (2, k)), data.normal(rng, (18, k))
    at = [(0, 0), (1, 16), (1, 17)]
    packed = PackedLinear(w)
    agree(expected(x, w, at=at), lambda: picked(linear(x, packed), at))


@pytest.mark.parametrize("k", [1, 5, 256, 300])
def test_an_underflowing_chain_ends_in_minus_zero_and_the_total_does_not(k):
    tiny = data.from_bits([1] * k).reshape(1, k)
    w = np.repeat(-tiny, 3, axis=0)
    xs, ws = Row(data.bits(tiny)), Row(data.bits(w[0]))
    assert exact_linear(xs, ws, order=Order(from_zero=False)) == B32.sign_bit
    minus_zeros = data.from_bits([B32.sign_bit] * 3)
    for bias in (None, minus_zeros):
        packed = PackedLinear(w, bias)
        agree([0, 0, 0], lambda packed=packed: linear(tiny, packed))


def test_overflow_is_ieee():
    """A chain that leaves the range gives an infinity; two blocks of opposite ones a NaN."""
    huge = float(np.finfo(np.float32).max)
    x = np.zeros((1, 258), dtype=np.float32)
    x[0, [0, 1, 256, 257]] = huge
    w = np.zeros((5, 258), dtype=np.float32)
    places = [[1, 1, 0, 0], [1, 1, -1, -1], [0, 0, -1, -1], [1, -1, 0, 0], [1, 1, -huge, -huge]]
    w[:, [0, 1, 256, 257]] = places
    want = expected(x, w)
    assert want == [B32.inf, B32.nan, B32.neg(B32.inf), 0, B32.nan]
    packed = PackedLinear(w)
    agree(want, lambda: linear(x, packed))


def test_a_product_beyond_the_range_within_a_chain_is_not_an_overflow():
    huge = np.float32(2.0**127)
    x = np.array([[huge, 1.5 * huge]], dtype=np.float32)
    w = np.array([[-1.5, 2.0]], dtype=np.float32)
    want = expected(x, w)
    assert want == [B32.from_float(1.5 * 2.0**127)]
    packed = PackedLinear(w)
    agree(want, lambda: linear(x, packed))


@pytest.mark.parametrize("name", WRONG_ORDERS)
def test_this_data_tells_the_orders_apart(name):
    rng = np.random.default_rng(14)
    for kind in (data.normal, data.wide, data.cancelling):
        x, w = kind(rng, (3, 513)), kind(rng, (3, 513))
        assert expected(x, w) != expected(x, w, order=WRONG_ORDERS[name]), kind.__name__


def test_bias_comes_last():
    rng = np.random.default_rng(15)
    x, w, bias = data.normal(rng, (4, 300)), data.normal(rng, (8, 300)), data.normal(rng, (8,))
    ones = np.ones((4, 1), dtype=np.float32)
    first = expected(
        np.concatenate([ones, x], axis=1),
        np.concatenate([bias[:, None], w], axis=1),
        order=replace(STANDARD, block=1 << 30),
    )
    assert expected(x, w, bias) != first
    packed = PackedLinear(w, bias)
    agree(expected(x, w, bias), lambda: linear(x, packed))
