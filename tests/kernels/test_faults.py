"""Checksums of int8 linears: every injected fault found and made good, and never a false alarm."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from tests.kernels.oracle import data
from tests.kernels.oracle.paths import every_path

from isonomy import kernels
from isonomy.kernels import Fault, PackedLinear, linear
from isonomy.kernels.faults import inject_linear

NAME = "the weight matrix"


def example(m=9, n=70, k=50):
    rng = np.random.default_rng([40, m, n, k])
    x, w, bias = data.normal(rng, (m, k)), data.normal(rng, (n, k)), data.normal(rng, (n,))
    return x, PackedLinear(w, bias, storage="int8", checksums=True)


def test_every_single_fault_in_a_sum_is_found_and_made_good():
    x, packed = example()
    rng = np.random.default_rng(41)
    want = linear(x, packed).tobytes()
    for path in every_path():
        for _ in range(60):
            row, element, bit = (int(rng.integers(n)) for n in (9, 70, 32))
            with inject_linear(NAME, row=row, element=element, bit=bit) as injected:
                assert linear(x, packed).tobytes() == want, (path, row, element, bit)
            assert injected.hits == 1
            assert kernels.faults() == [
                Fault(linear=NAME, row=row, recomputed=True, damaged_panels=0)
            ], (path, row, element, bit)


def test_without_checksums_the_fault_would_have_been_returned():
    x, w = np.ones((2, 8), np.float32), np.ones((3, 8), np.float32)
    packed = PackedLinear(w, storage="int8", checksums=True)
    unchecked = PackedLinear(w, storage="int8")
    clean = linear(x, packed)
    with inject_linear(NAME, kind="weight", element=0, bit=6) as injected:
        assert linear(x, unchecked).tobytes() != clean.tobytes()
    assert injected.hits == 1
    assert kernels.faults() == []


def test_a_second_failure_ends_the_call():
    x, packed = example()
    want = linear(x, packed).tobytes()
    with (
        inject_linear(NAME, row=4, element=33, bit=30, times=2) as injected,
        pytest.raises(kernels.CorruptionError, match=r"row 4.*processor is to be distrusted"),
    ):
        linear(x, packed)
    assert injected.hits == 2
    assert kernels.faults() == [Fault(linear=NAME, row=4, recomputed=False, damaged_panels=0)]
    assert linear(x, packed).tobytes() == want


def test_damaged_weights_are_found_and_told_from_a_faulty_processor():
    x, packed = example(m=3)
    x[:, 0] = 100  # every row is sure to see the damaged weight
    want = linear(x, packed).tobytes()
    for path in every_path():
        with (
            inject_linear(NAME, kind="weight", element=5 * 4, bit=3) as injected,
            pytest.raises(kernels.CorruptionError, match="load the model again"),
        ):
            linear(x, packed)
        assert injected.hits == 1
        found = kernels.faults()
        assert [(f.row, f.recomputed, f.damaged_panels) for f in found] == [
            (row, False, 1) for row in range(3)
        ], path
        with inject_linear(NAME, kind="weight", element=5 * 4, bit=3):  # the same bit back
            assert linear(x, packed).tobytes() == want
        assert kernels.faults() == []


def test_every_bit_of_a_weight_counts():
    rng = np.random.default_rng(42)
    x = np.ones((1, 30), np.float32)
    packed = PackedLinear(data.normal(rng, (40, 30)), storage="int8", checksums=True)
    want = linear(x, packed).tobytes()
    for _ in range(200):
        panel, k, lane = (int(rng.integers(n)) for n in (1, 30, 32))
        at = panel * 32 * 32 + k // 4 * 128 + lane * 4 + k % 4
        bit = int(rng.integers(8))
        with (
            inject_linear(NAME, kind="weight", element=at, bit=bit),
            pytest.raises(kernels.CorruptionError),
        ):
            linear(x, packed)
        with inject_linear(NAME, kind="weight", element=at, bit=bit):
            assert linear(x, packed).tobytes() == want
    assert len(kernels.faults()) == 200


def test_faults_in_a_call_of_many_chunks():
    """Rows far apart, checked in different portions, keep their numbers."""
    rng = np.random.default_rng(43)
    x, w = data.normal(rng, (300, 8)), data.normal(rng, (32 * 1024, 8))
    packed = PackedLinear(w, storage="int8", checksums=True)
    want = linear(x, packed).tobytes()
    for row in (0, 63, 64, 299):
        with inject_linear(NAME, row=row, element=32 * 1024 - 1, bit=0):
            assert linear(x, packed).tobytes() == want
        assert [f.row for f in kernels.faults()] == [row]


@pytest.mark.parametrize("kind", data.KINDS.values(), ids=data.KINDS.keys())
def test_no_false_alarm(kind):
    rng = np.random.default_rng([44, len(kind.__name__)])
    for n, k in ((96, 64), (33, 129), (200, 31)):
        x, w = kind(rng, (700, k)), kind(rng, (n, k))
        checked = PackedLinear(w, storage="int8", checksums=True)
        plain = PackedLinear(w, storage="int8")
        for _ in every_path():
            assert linear(x, checked).tobytes() == linear(x, plain).tobytes()
    assert kernels.faults() == []


def test_faults_belong_to_the_thread_that_called():
    x, packed = example()
    theirs: list[list[Fault]] = []

    def call():
        with inject_linear(NAME, row=1):
            linear(x, packed)
        theirs.append(kernels.faults())

    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    assert kernels.faults() == []
    assert [f.row for f in theirs[0]] == [1]


def test_a_fault_elsewhere_does_not_hit():
    x, packed = example()
    for linear_name, row, element in (
        ("another", 0, 0),
        (NAME, 9, 0),
        (NAME, 0, 96),
    ):
        with inject_linear(linear_name, row=row, element=element) as injected:
            linear(x, packed)
        assert injected.hits == 0
    assert kernels.faults() == []


@pytest.mark.parametrize(("kind", "bit"), [("sum", 32), ("weight", 8), ("sum", -1)])
def test_no_such_bit(kind, bit):
    with pytest.raises(kernels.ArgumentError), inject_linear(NAME, kind=kind, bit=bit):
        pass
