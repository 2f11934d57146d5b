"""Row reductions, norms, softmax, elementwise functions and embedding, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
from tests.kernels.oracle import data, operations
from tests.kernels.oracle.functions import erf32, exp32, log32, tanh32
from tests.kernels.oracle.ieee import B32, bf16_to_b32
from tests.kernels.oracle.paths import agree
from tests.kernels.oracle.reductions import Order, row_sum, sum_of_squares

from isonomy import kernels

SIZES = [1, 2, 15, 16, 17, 31, 32, 33, 63, 64, 65, 255, 256, 257, 511, 512, 513]
KINDS = pytest.mark.parametrize("kind", data.KINDS.values(), ids=data.KINDS.keys())


def flat(matrix):
    return [a for row in matrix for a in row]


@KINDS
@pytest.mark.parametrize("n", SIZES)
def test_row_sum(kind, n):
    x = kind(np.random.default_rng([20, n]), (3, n))
    agree([row_sum(r) for r in data.rows(x)], lambda: kernels.row_sum(x))


def test_row_sum_of_minus_zeros_is_zero():
    x = data.from_bits([B32.sign_bit] * 40).reshape(1, 40)
    agree([0], lambda: kernels.row_sum(x))


@KINDS
@pytest.mark.parametrize("n", [1, 16, 31, 33, 64, 257, 513])
@pytest.mark.parametrize("unit_offset", [False, True])
def test_rms_norm(kind, n, unit_offset):
    rng = np.random.default_rng([21, n])
    x, w = kind(rng, (2, n)), data.normal(rng, (n,))
    want = [
        operations.rms_norm(r, data.bits(w), 1e-6, unit_offset=unit_offset) for r in data.rows(x)
    ]
    agree(flat(want), lambda: kernels.rms_norm(x, w, 1e-6, unit_offset=unit_offset))


@KINDS
@pytest.mark.parametrize("n", [1, 16, 31, 33, 64, 257, 513])
def test_layer_norm(kind, n):
    rng = np.random.default_rng([22, n])
    x, w, b = kind(rng, (2, n)), data.normal(rng, (n,)), data.signed_zeros(rng, (n,))
    want = [operations.layer_norm(r, data.bits(w), data.bits(b), 1e-5) for r in data.rows(x)]
    agree(flat(want), lambda: kernels.layer_norm(x, w, b, 1e-5))


@pytest.mark.parametrize("eps", [0.1, 1e-5, 1e-12, 0.0, 1e-45])
def test_epsilon_is_rounded_once_to_binary32(eps):
    rng = np.random.default_rng(23)
    x, w = data.normal(rng, (1, 48)) * np.float32(2.0**-12), data.normal(rng, (48,))
    want = operations.rms_norm(data.bits(x), data.bits(w), eps)
    agree(want, lambda: kernels.rms_norm(x, w, eps))


def test_norms_of_rows_whose_squares_vanish_or_overflow():
    w = np.ones(4, dtype=np.float32)
    tiny = data.from_bits([1, B32.sign_bit | 5, 0, B32.sign_bit]).reshape(1, 4)
    huge = np.full((1, 4), 2.0**100, dtype=np.float32)
    for x in (tiny, huge):
        want = operations.rms_norm(data.bits(x), data.bits(w), 1e-6)
        agree(want, lambda x=x: kernels.rms_norm(x, w, 1e-6))


@KINDS
@pytest.mark.parametrize("n", [1, 17, 32, 33, 255, 256, 257, 513])
def test_softmax(kind, n):
    x = kind(np.random.default_rng([24, n]), (2, n))
    agree(flat([operations.softmax(r) for r in data.rows(x)]), lambda: kernels.softmax(x))


def test_softmax_of_close_values_and_of_zeros_of_both_signs():
    rng = np.random.default_rng(25)
    x = data.normal(rng, (2, 513)) * np.float32(0.01)
    x[1, :] = data.from_bits((rng.integers(0, 2, 513) << 31).tolist())
    agree(flat([operations.softmax(r) for r in data.rows(x)]), lambda: kernels.softmax(x))


def test_softmax_of_differences_that_overflow():
    huge = np.float32(3e38)
    x = np.array([[huge, -huge, 0, huge], [-np.inf, 1, -np.inf, 2]], dtype=np.float32)
    want = flat([operations.softmax(r) for r in data.rows(x)])
    assert want[1] == want[2] == want[4] == want[6] == 0
    agree(want, lambda: kernels.softmax(x))


# Functions: the sweep over all inputs is a command of its own, these are samples where it bends.


def inputs(name: str) -> data.F32:
    rng = np.random.default_rng([26, len(name)])
    any_bits = rng.integers(0, 1 << 32, 1500, dtype=np.uint32)
    special = [0, 1, 0x7FFFFF, 0x800000, 0x7F7FFFFF, 0x7F800000, B32.one, B32.one - 1, B32.one + 1]
    # Around the ends of exp's range, where tanh and erf become 1, and ln 2.
    ends = [0x42B17217, 0x42B17218, 0x42CFF1B4, 0x42CFF1B5, 0x42AEAC4F, 0x42AEAC50, 0x3F317218]
    ends += [0x41102CB3, 0x41102CB4, 0x4079A000, 0x407AD444, 0x407AD445]
    signed = np.array([s | b for b in special + ends for s in (0, 1 << 31)], dtype=np.uint32)
    return np.concatenate(
        [
            any_bits.view(np.float32),
            signed.view(np.float32),
            data.normal(rng, 1000) * np.float32(4),
            data.normal(rng, 300) * np.float32(30),
            np.float32(1) + data.normal(rng, 300) * np.float32(1e-3),
            data.subnormal(rng, 200),
        ]
    )


FUNCTIONS = {
    "exp": exp32,
    "log": log32,
    "tanh": tanh32,
    "erf": erf32,
    "silu": operations.silu,
    "gelu_erf": operations.gelu_erf,
    "gelu_tanh": operations.gelu_tanh,
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions(name):
    x = inputs(name)
    agree([FUNCTIONS[name](a) for a in data.bits(x)], lambda: getattr(kernels, name)(x), name)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_do_not_depend_on_the_place_in_the_array(name):
    """Lengths that leave every possible remainder of a vector."""
    x = data.normal(np.random.default_rng(27), 70)
    want = [FUNCTIONS[name](a) for a in data.bits(x)]
    for n in (0, 1, 3, 7, 8, 9, 15, 16, 17, 31, 33, 70):
        agree(want[:n], lambda n=n: getattr(kernels, name)(x[:n].copy()), name)


@KINDS
def test_add_and_mul(kind):
    rng = np.random.default_rng(28)
    a, b = kind(rng, (7, 37)), kind(rng, (7, 37))
    b[0], b[1] = -a[0], a[1]
    pairs = list(zip(data.bits(a), data.bits(b), strict=True))
    agree([B32.add(p, q) for p, q in pairs], lambda: kernels.add(a, b))
    agree([B32.mul(p, q) for p, q in pairs], lambda: kernels.mul(a, b))


def test_embedding():
    rng = np.random.default_rng(29)
    table = data.wide(rng, (11, 33))
    ids = np.array([3, 0, 10, 3, 7], dtype=np.int32)
    agree(flat(data.rows(table)[i] for i in ids), lambda: kernels.embedding(ids, table))
    stored = (table.view(np.uint32) >> 16).astype(np.uint16)
    want = [bf16_to_b32(b) for i in ids for b in stored[i].tolist()]
    agree(want, lambda: kernels.embedding(ids, stored))


# The data can tell the orders apart.


WRONG_LANES = {
    "16 lanes": Order(lanes=16),
    "64 lanes": Order(lanes=64),
    "8 lanes": Order(lanes=8),
    "one lane": Order(lanes=1),
    "lanes added one by one": Order(tree=False),
    "blocks of 256": Order(lane_blocks=True),
}


@pytest.mark.parametrize("name", WRONG_LANES)
def test_this_data_tells_lanes_apart(name):
    for kind in (data.normal, data.cancelling, data.wide):
        x = data.rows(kind(np.random.default_rng(30), (6, 513)))
        assert [row_sum(r) for r in x] != [row_sum(r, WRONG_LANES[name]) for r in x], kind.__name__


def test_this_data_tells_fused_squares_apart():
    x = data.rows(data.normal(np.random.default_rng(31), (20, 513)))
    fused = [sum_of_squares(r, Order(fused_squares=True)) for r in x]
    assert [sum_of_squares(r) for r in x] != fused
    w = [B32.one] * 513
    assert [operations.rms_norm(r, w, 1e-6) for r in x] != [
        operations.rms_norm(r, w, 1e-6, order=Order(fused_squares=True)) for r in x
    ]


@pytest.mark.parametrize(
    "order",
    [Order(block=1 << 30), Order(block=128), Order(lanes=16), Order(tree=False)],
    ids=["whole row", "blocks of 128", "16 lanes", "no tree"],
)
def test_this_data_tells_softmax_orders_apart(order):
    x = data.rows(data.normal(np.random.default_rng(32), (6, 513)))
    assert [operations.softmax(r) for r in x] != [operations.softmax(r, order) for r in x]
