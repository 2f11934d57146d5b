"""int8 linears, bit for bit against exact arithmetic: quantising, sums, scales, refusals."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from tests.kernels.oracle import data, int8
from tests.kernels.oracle.ieee import B32
from tests.kernels.oracle.paths import agree, every_path

from isonomy import kernels
from isonomy.kernels import PackedLinear, Quantised, linear, quantise_rows

RAGGED = [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 63, 65, 255, 256, 257, 300, 513]


def exact_rows(x):
    return [int8.quantise(r) for r in data.rows(x)]


def expected(x, w, bias=None):
    xs, ws = exact_rows(x), exact_rows(w)
    bs = [None] * len(ws) if bias is None else data.bits(bias)
    return [int8.linear(a, b, c) for a in xs for b, c in zip(ws, bs, strict=True)]


def agree_rows(x):
    """Quantising gives the oracle's integers and scales on every path."""
    want = exact_rows(x)
    for path in every_path():
        got = quantise_rows(x)
        assert got.q.tolist() == [q for q, _ in want], path
        assert data.bits(got.scales) == [scale for _, scale in want], path


@pytest.mark.parametrize("k", [1, 2, 3, 7, 31, 64, 65, 257])
@pytest.mark.parametrize("kind", data.KINDS.values(), ids=data.KINDS.keys())
def test_quantising(kind, k):
    agree_rows(kind(np.random.default_rng([30, k, len(kind.__name__)]), (6, k)))


def test_ties_go_to_the_even_integer():
    row = np.arange(-127, 127.5, 0.5, dtype=np.float32)
    got = quantise_rows(row[None])
    assert got.scales.tolist() == [1.0]
    assert got.q[0].tolist() == np.rint(row).astype(int).tolist()
    agree_rows(np.stack([row, row * np.float32(3), row * np.float32(2.0**-140), -row]))


def test_small_rows_keep_what_their_scale_can_say():
    """Scales round among the subnormals: to 0 below 64 units, to too little up to 190 of them."""
    units = [0, 1, 2, 62, 63, 64, 65, 100, 127, 128, 150, 190, 191, 254, 317, 318, 1000, 1 << 23]
    rows = [[n, n >> 1, 0x80000000 | n, 0x80000000 | (n >> 2), 0, 0x80000000] for n in units]
    x = data.from_bits([n for row in rows for n in row]).reshape(len(units), -1)
    agree_rows(x)
    got = quantise_rows(x)
    assert [row for row, n in zip(got.q.tolist(), units, strict=True) if n < 64 and any(row)] == []
    assert got.q[units.index(190)].tolist() == [127, 95, -127, -47, 0, 0]
    assert got.q[units.index(64), 0] == 64


def test_the_largest_numbers():
    huge = float(np.finfo(np.float32).max)
    agree_rows(np.array([[huge, -huge, huge / 2, huge / 254, 1.0]], np.float32))


@pytest.mark.parametrize("k", RAGGED)
def test_every_k(k):
    rng = np.random.default_rng([31, k])
    x, w = data.normal(rng, (5, k)), data.normal(rng, (37, k))
    bias = data.normal(rng, (37,)) if k % 2 else None
    packed = PackedLinear(w, bias, storage="int8")
    agree(expected(x, w, bias), lambda: linear(x, packed))


@pytest.mark.parametrize("kind", data.KINDS.values(), ids=data.KINDS.keys())
def test_every_kind_of_number(kind):
    rng = np.random.default_rng([32, len(kind.__name__)])
    x, w, bias = kind(rng, (4, 37)), kind(rng, (35, 37)), kind(rng, (35,))
    packed = PackedLinear(w, bias, storage="int8")
    agree(expected(x, w, bias), lambda: linear(x, packed))


@pytest.mark.parametrize("n", [1, 31, 32, 33, 65])
@pytest.mark.parametrize("m", [1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 16, 24, 25])
def test_every_tile_shape(m, n):
    rng = np.random.default_rng([33, m, n])
    x, w = data.normal(rng, (m, 21)), data.normal(rng, (n, 21))
    want = expected(x, w)
    for checksums in (False, True):
        packed = PackedLinear(w, storage="int8", checksums=checksums)
        agree(want, lambda packed=packed: linear(x, packed))
    assert kernels.faults() == []


def test_bf16_weights_are_quantised_as_the_floats_they_are():
    rng = np.random.default_rng(34)
    x, w = data.normal(rng, (3, 45)), data.normal(rng, (40, 45))
    stored = (w.view(np.uint32) >> 16).astype(np.uint16)
    wide = (stored.astype(np.uint32) << 16).view(np.float32)
    packed = PackedLinear(stored, storage="int8")
    agree(expected(x, wide), lambda: linear(x, packed))
    assert quantise_rows(stored).q.tobytes() == quantise_rows(wide).q.tobytes()


def test_quantised_weights_are_taken_as_they_are():
    rng = np.random.default_rng(35)
    x, w = data.normal(rng, (3, 45)), data.normal(rng, (40, 45))
    before = quantise_rows(w)
    assert before.shape == (40, 45)
    want = linear(x, PackedLinear(w, storage="int8")).tobytes()
    assert linear(x, PackedLinear(before)).tobytes() == want
    assert linear(x, PackedLinear(before, storage="int8")).tobytes() == want
    reversed_twice = Quantised(before.q[::-1][::-1], before.scales[::-1][::-1])  # not contiguous
    assert linear(x, PackedLinear(reversed_twice)).tobytes() == want


@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_sums_fit(sign):
    """131072 products of 127 * 127: no instruction on the way saturates."""
    k = 131072
    x = np.full((2, k), 127, np.float32)
    w = np.full((3, k), sign * 127, np.float32)
    w[1, ::2] *= -1
    want = [B32.from_int(sign * k * 127 * 127), 0, B32.from_int(sign * k * 127 * 127)] * 2
    packed = PackedLinear(w, storage="int8", checksums=True)
    agree(want, lambda: linear(x, packed))
    assert kernels.faults() == []


def test_more_inputs_are_refused():
    w = np.zeros((1, 131073), np.float32)
    with pytest.raises(kernels.KernelError, match="131073 inputs"):
        PackedLinear(w, storage="int8")


def test_pairs_that_would_saturate():
    """Neighbours of 127 * 127, the most that a pair in 16 bits holds, of either sign."""
    x = np.array([[127, 127, -127, -127, 127, -127, 127, 127]] * 2, np.float32)
    w = np.array([[127] * 8, [-127] * 8, [127, 127, -127, -127] * 2], np.float32)
    packed = PackedLinear(w, storage="int8")
    agree(expected(x, w), lambda: linear(x, packed))


def test_rows_do_not_depend_on_neighbours():
    rng = np.random.default_rng(36)
    x, w = data.normal(rng, (61, 130)), data.normal(rng, (70, 130))
    for path in every_path():
        for checksums in (False, True):
            packed = PackedLinear(w, storage="int8", checksums=checksums)
            whole = linear(x, packed)
            for start in (0, 1, 17, 60):
                for count in (1, 2, 5, 13, 29):
                    part = linear(x[start : start + count], packed)
                    assert part.tobytes() == whole[start : start + count].tobytes(), path


@pytest.mark.parametrize("checksums", [False, True])
def test_another_path_may_be_chosen_in_the_middle_of_a_product(checksums):
    """Paths pack rows differently: a call stays with the one that it began with."""
    rng = np.random.default_rng(38)
    x = data.normal(rng, (600, 400))
    packed = PackedLinear(data.normal(rng, (40, 400)), storage="int8", checksums=checksums)
    want, done, results = linear(x, packed).tobytes(), threading.Event(), set()

    def compute():
        for _ in range(100):
            results.add(linear(x, packed).tobytes())
        done.set()

    worker = threading.Thread(target=compute)
    worker.start()
    while not done.is_set():
        for isa in kernels.info().isas:
            with kernels.using_isa(isa):
                pass
    worker.join()
    assert results == {want}
    assert kernels.faults() == []


def test_a_row_that_is_not_finite_gives_nan_and_its_neighbours_go_on():
    rng = np.random.default_rng(37)
    x, w = data.normal(rng, (5, 40)), data.normal(rng, (33, 40))
    clean = linear(x, PackedLinear(w, storage="int8"))
    x[1, 3], x[3, 39] = np.nan, -np.inf
    for path in every_path():
        for checksums in (False, True):
            y = linear(x, PackedLinear(w, storage="int8", checksums=checksums))
            assert np.isnan(y[[1, 3]]).all(), path
            assert y[[0, 2, 4]].tobytes() == clean[[0, 2, 4]].tobytes(), path
    assert kernels.faults() == []


def test_weights_that_quantising_never_gives_are_refused():
    q, scales = np.ones((2, 4), np.int8), np.ones(2, np.float32)
    PackedLinear(Quantised(q, scales))
    low = q.copy()
    low[1, 2] = -128
    with pytest.raises(kernels.ArgumentError, match="row 1 holds -128"):
        PackedLinear(Quantised(low, scales))
    for bad in (-1.0, np.nan, np.inf):
        with pytest.raises(kernels.ArgumentError, match="scale of row 0"):
            PackedLinear(Quantised(q, np.array([bad, 1], np.float32)))
    with pytest.raises(kernels.ArgumentError, match="row 0 has scale 0"):
        PackedLinear(Quantised(q, np.array([0, 1], np.float32)))
    with pytest.raises(kernels.ShapeError):
        PackedLinear(Quantised(q, np.ones(3, np.float32)))
    with pytest.raises(kernels.DtypeError):
        PackedLinear(Quantised(q.astype(np.int16), scales))
    with pytest.raises(kernels.NonFiniteError):
        PackedLinear(np.array([[1, np.inf]], np.float32), storage="int8")
    with pytest.raises(kernels.NonFiniteError, match="row 1"):
        quantise_rows(np.array([[1, 2], [3, np.nan]], np.float32))
    with pytest.raises(kernels.ArgumentError, match="int8"):
        PackedLinear(np.ones((2, 2), np.float32), checksums=True)


def test_this_data_tells_the_roundings_apart():
    """Scaling one factor after the other, or rounding a quotient up, gives other bits."""
    rng = np.random.default_rng(38)
    x, w = data.normal(rng, (4, 40)), data.normal(rng, (40, 40))
    xs, ws = exact_rows(x), exact_rows(w)
    totals = [[sum(a * b for a, b in zip(r[0], s[0], strict=True)) for s in ws] for r in xs]
    one_by_one = [
        B32.mul(B32.mul(B32.from_int(t), r[1]), s[1])
        for r, row in zip(xs, totals, strict=True)
        for s, t in zip(ws, row, strict=True)
    ]
    assert one_by_one != expected(x, w)
