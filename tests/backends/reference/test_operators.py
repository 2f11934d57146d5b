"""The custom operators compute what the kernels do; what passes is rounded once, by torch too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tests.backends.families import torch

from isonomy import kernels
from isonomy.backends.reference import int8
from isonomy.backends.reference.dispatch import Canonical

RNG = np.random.default_rng(5)


def run(compute: Callable[[], Any]) -> Any:
    with torch.no_grad(), Canonical(lambda: "here"):
        return compute()


def bits(x: Any) -> bytes:
    y = x.detach().numpy() if isinstance(x, torch.Tensor) else x
    return np.ascontiguousarray(y).astype(np.float32, copy=False).tobytes()


def test_operators_are_registered() -> None:
    """Torch knows them by name, with a schema, like any other."""
    for name in ("linear", "row_sum", "softmax", "layer_norm", "rsqrt", "function", "attention"):
        assert str(getattr(torch.ops.isonomy, name).default).startswith("isonomy.")


def test_linear() -> None:
    x, w = RNG.standard_normal((3, 300), np.float32), RNG.standard_normal((40, 300), np.float32)
    bias = RNG.standard_normal(40, np.float32)
    layer = torch.nn.Linear(300, 40)
    layer.weight.data, layer.bias.data = torch.from_numpy(w), torch.from_numpy(bias)
    ours = kernels.linear(x, kernels.PackedLinear(w, bias))
    t = torch.from_numpy(x)
    assert bits(run(lambda: layer(t))) == bits(ours)
    assert bits(run(lambda: layer(t[None]))) == bits(ours)
    assert bits(torch.ops.isonomy.linear(t, layer.weight, layer.bias)) == bits(ours)


@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("exp", torch.exp),
        ("erf", torch.erf),
        ("tanh", torch.tanh),
        ("silu", torch.nn.functional.silu),
        ("gelu_erf", torch.nn.functional.gelu),
        ("gelu_tanh", lambda x: torch.nn.functional.gelu(x, approximate="tanh")),
    ],
)
def test_functions(name: str, theirs: Callable[[Any], Any]) -> None:
    x = RNG.standard_normal((5, 70), np.float32) * 3
    t = torch.from_numpy(x)
    assert bits(run(lambda: theirs(t))) == bits(getattr(kernels, name)(x))


def test_rms_norm_by_parts() -> None:
    """As every family writes it, in pieces; the kernel has it in one."""
    x, w = RNG.standard_normal((9, 77), np.float32), RNG.standard_normal(77, np.float32)
    t, weight = torch.from_numpy(x), torch.from_numpy(w)

    def written() -> Any:
        return weight * (t * torch.rsqrt(t.pow(2).mean(-1, keepdim=True) + 1e-6))

    assert bits(run(written)) == bits(kernels.rms_norm(x, w, 1e-6))


def test_rows() -> None:
    x = RNG.standard_normal((6, 500), np.float32)
    t = torch.from_numpy(x)
    assert bits(run(lambda: t.sum(-1))) == bits(kernels.row_sum(x))
    assert bits(run(lambda: t.softmax(-1))) == bits(kernels.softmax(x))
    w, b = RNG.standard_normal((2, 500), np.float32)
    ours = kernels.layer_norm(x, w, b, 1e-5)
    weight, bias = torch.from_numpy(w), torch.from_numpy(b)
    assert bits(run(lambda: torch.layer_norm(t, (500,), weight, bias, 1e-5))) == bits(ours)


def test_gelu_written_out() -> None:
    """GPT-2's, with its cube."""
    x = RNG.standard_normal(2000, np.float32) * 4
    t = torch.from_numpy(x)

    def written() -> Any:
        inner = np.sqrt(2 / np.pi).item() * (t + 0.044715 * torch.pow(t, 3.0))
        return 0.5 * t * (1.0 + torch.tanh(inner))

    assert bits(run(written)) == bits(kernels.gelu_tanh(x))


def test_ties_go_to_the_lowest_id() -> None:
    x = torch.tensor([[1.0, 3.0, 0.0, 3.0, -0.0, 3.0], [0.0, -0.0, -1.0, 0.0, -1.0, 0.0]])
    values, ids = run(lambda: torch.topk(x, 4, dim=-1))
    assert ids.tolist() == [[1, 3, 5, 0], [0, 1, 3, 5]]
    assert bits(values) == bits(x.gather(1, ids))


@pytest.mark.parametrize("operation", ["add", "sub", "mul", "div"])
def test_torch_rounds_once(operation: str) -> None:
    """On arbitrary bits, subnormals included, against binary64 rounded once to binary32.

    For sums, products and quotients of binary32 numbers that detour is exact (Figueroa, 1995).
    """
    words = RNG.integers(0, 2**32, (2, 200_000), dtype=np.uint64).astype(np.uint32)
    words[:, ::3] &= 0x807FFFFF  # subnormal
    a, b = words.view(np.float32)
    usable = np.isfinite(a) & np.isfinite(b) & (b != 0)
    a, b = a[usable], b[usable]
    exactly = {"add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide}[operation]
    compute = getattr(torch, operation)
    left, right, scalar = torch.from_numpy(a), torch.from_numpy(b), 0.22
    with np.errstate(all="ignore"):
        two = exactly(a.astype(np.float64), b.astype(np.float64)).astype(np.float32)
        one = exactly(a.astype(np.float64), np.float64(np.float32(scalar))).astype(np.float32)
    assert bits(run(lambda: compute(left, right))) == bits(two)
    assert bits(run(lambda: compute(left, scalar))) == bits(one)


@pytest.mark.parametrize("k", [1, 64, 272, 1000])
def test_int8_linear(k: int) -> None:
    """Written down a second time in numpy, and the kernels' bits; rows of zeros included."""
    x, w = RNG.standard_normal((7, k), np.float32), RNG.standard_normal((40, k), np.float32)
    x[2] = w[5] = 0
    x[3] *= np.float32(1e-38)
    bias = RNG.standard_normal(40, np.float32)
    ours = kernels.linear(x, kernels.PackedLinear(w, bias, storage="int8"))
    theirs = int8.linear(torch.from_numpy(x), torch.from_numpy(w), torch.from_numpy(bias))
    assert bits(theirs) == bits(ours)


def test_int8_embedding() -> None:
    w = RNG.standard_normal((50, 77), np.float32)
    ids = RNG.integers(0, 50, 9)
    table = kernels.quantise_rows(w)
    ours = table.q[ids].astype(np.float32) * table.scales[ids, None]
    assert bits(int8.embedding(torch.from_numpy(ids), torch.from_numpy(w))) == bits(ours)
