"""Attention, bit for bit: positions around lanes and blocks, windows, grouped heads, soft caps."""

from __future__ import annotations

import numpy as np
import pytest
from tests.kernels.oracle import data
from tests.kernels.oracle.attention import attend
from tests.kernels.oracle.ieee import B32
from tests.kernels.oracle.paths import agree
from tests.kernels.oracle.reductions import STANDARD, Order

from isonomy import kernels

EDGES = [0, 1, 15, 16, 31, 32, 33, 63, 255, 256, 257, 511, 512, 513]


def heads(x):
    """[T, H, D] as nested lists of bits."""
    return [data.rows(t) for t in x]


def expected(q, k, v, positions, *, order=STANDARD, **options):
    ks, vs, unpacked = heads(k), heads(v), {}
    out = []
    for row, p in zip(heads(q), positions, strict=True):
        for head in attend(row, ks, vs, p, order=order, unpacked=unpacked, **options):
            out += head
    return out


def check(q, k, v, positions, **options):
    want = expected(q, k, v, positions, **options)
    p = np.array(positions, dtype=np.int32)
    agree(want, lambda: kernels.attention(q, k, v, p, **options), f"positions {positions}")


def draw(rng, kind, rows, keys, h, kv, d):
    return kind(rng, (rows, h, d)), kind(rng, (keys, kv, d)), kind(rng, (keys, kv, d))


@pytest.mark.parametrize("kind", data.KINDS.values(), ids=data.KINDS.keys())
def test_kinds_of_data(kind):
    rng = np.random.default_rng([50, len(kind.__name__)])
    positions = [0, 5, 31, 40, 287]
    q, k, v = draw(rng, kind, len(positions), 300, 2, 1, 6)
    check(q, k, v, positions, scale=0.35)


@pytest.mark.parametrize("window", [0, 1, 2, 31, 33, 255, 256, 257, 300])
def test_positions_and_windows(window):
    rng = np.random.default_rng([51, window])
    q, k, v = draw(rng, data.normal, len(EDGES), 514, 1, 1, 4)
    check(q, k, v, EDGES, scale=1.0, window=window)


@pytest.mark.parametrize(
    ("h", "kv", "d"),
    [(1, 1, 1), (3, 1, 8), (4, 2, 15), (6, 3, 16), (4, 4, 17), (9, 3, 33), (2, 1, 64), (2, 1, 257)],
)
def test_heads_and_their_sizes(h, kv, d):
    rng = np.random.default_rng([52, h, kv, d])
    positions = [0, 7, 33]
    q, k, v = draw(rng, data.normal, 3, 34, h, kv, d)
    check(q, k, v, positions, scale=d**-0.5)


@pytest.mark.parametrize("softcap", [0.0, 0.5, 30.0, 1e-3])
@pytest.mark.parametrize("window", [0, 20])
def test_soft_cap(softcap, window):
    rng = np.random.default_rng(53)
    q, k, v = draw(rng, data.normal, 3, 40, 2, 2, 8)
    check(q, k, v, [0, 19, 39], scale=0.7, softcap=softcap, window=window)


@pytest.mark.parametrize("rows", [1, 2, 3, 5, 8, 17])
def test_a_chunk_of_queries(rows):
    rng = np.random.default_rng([54, rows])
    q, k, v = draw(rng, data.cancelling, rows, 50, 2, 1, 8)
    check(q, k, v, list(range(50 - rows, 50)), scale=0.25)


def test_no_query_at_all():
    q, k = np.zeros((0, 2, 4), np.float32), np.zeros((3, 1, 4), np.float32)
    assert kernels.attention(q, k, k, [], scale=1.0).shape == (0, 2, 4)


def test_scores_far_apart():
    """All but the first key's weight underflow, partly through the subnormals."""
    q, k = np.zeros((1, 1, 3), dtype=np.float32), np.zeros((130, 1, 3), dtype=np.float32)
    q[:, :, 0], k[:, 0, 0] = 1, -np.arange(130)
    v = data.wide(np.random.default_rng(55), (130, 1, 3))
    check(q, k, v, [129], scale=0.9)


def test_values_that_underflow_to_minus_zero_come_out_as_zero():
    q, k = np.zeros((1, 1, 2), dtype=np.float32), np.zeros((40, 1, 2), dtype=np.float32)
    v = data.from_bits([B32.sign_bit, B32.sign_bit | 1] * 40).reshape(40, 1, 2)
    want = expected(q, k, v, [39], scale=1.0)
    assert want == [0, B32.sign_bit | 1]
    check(q, k, v, [39], scale=1.0)


def test_scale_is_rounded_once_to_binary32():
    rng = np.random.default_rng(56)
    q, k, v = draw(rng, data.normal, 2, 33, 1, 1, 8)
    assert float(np.float32(0.1)) != 0.1
    check(q, k, v, [20, 32], scale=0.1)


def test_keys_after_the_query_are_not_seen():
    rng = np.random.default_rng(57)
    q, k, v = draw(rng, data.normal, 1, 70, 1, 1, 8)
    poisoned = k.copy(), v.copy()
    for x in poisoned:
        x[41:] = np.float32(3e38)
        x[:11] = np.float32(-3e38)
    want = expected(q, k, v, [40], scale=0.5, window=30)
    position = np.array([40], dtype=np.int32)
    agree(want, lambda: kernels.attention(q, *poisoned, position, scale=0.5, window=30))


WRONG_ORDERS = {
    "blocks of 128": (Order(block=128), 0),
    "one block": (Order(block=1 << 30), 0),
    "mul and add": (Order(fused=False), 0),
    "descending": (Order(descending=True), 0),
    "16 lanes": (Order(lanes=16), 0),
    "lanes added one by one": (Order(tree=False), 0),
    "blocks counted from the window's first key": (Order(relative=True), 300),
}


@pytest.mark.parametrize("name", WRONG_ORDERS)
def test_this_data_tells_the_orders_apart(name):
    order, window = WRONG_ORDERS[name]
    rng = np.random.default_rng([51, window])
    q, k, v = draw(rng, data.normal, len(EDGES), 514, 1, 1, 4)
    q, last = q[-4:], EDGES[-4:]
    right = expected(q, k, v, last, scale=1.0, window=window)
    assert right != expected(q, k, v, last, scale=1.0, window=window, order=order)
