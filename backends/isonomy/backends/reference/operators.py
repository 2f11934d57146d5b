"""The canonical operations as torch custom operators, namespace ``isonomy``.

Each calls `isonomy.kernels` on numpy views of its arguments, which are float32 on the CPU unless
said, and returns a new tensor. What they compute, to the bit, is kernels/NUMERICS.md. They have no
gradient.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from isonomy import kernels


def _array(x: torch.Tensor) -> npt.NDArray[Any]:
    return np.ascontiguousarray(x.detach().numpy())


def _rows(x: torch.Tensor) -> npt.NDArray[Any]:
    return _array(x).reshape(-1, x.shape[-1])


def _tensor(y: npt.NDArray[Any], shape: tuple[int, ...]) -> torch.Tensor:
    return torch.from_numpy(y.reshape(shape))


@torch.library.custom_op("isonomy::linear", mutates_args=())
def linear(x: torch.Tensor, w: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Section 2: `x[..., K]` times `w[N, K]`, plus `bias[N]` where there is one: `[..., N]`."""
    packed = kernels.PackedLinear(_array(w), None if bias is None else _array(bias))
    return _tensor(kernels.linear(_rows(x), packed), (*x.shape[:-1], w.shape[0]))


@torch.library.custom_op("isonomy::row_sum", mutates_args=())
def row_sum(x: torch.Tensor) -> torch.Tensor:
    """Section 3: the sum over the last dimension, `x[..., d]` to `[...]`."""
    return _tensor(kernels.row_sum(_rows(x)), tuple(x.shape[:-1]))


@torch.library.custom_op("isonomy::softmax", mutates_args=())
def softmax(x: torch.Tensor) -> torch.Tensor:
    """Section 3, over the last dimension."""
    return _tensor(kernels.softmax(_rows(x)), tuple(x.shape))


@torch.library.custom_op("isonomy::layer_norm", mutates_args=())
def layer_norm(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float
) -> torch.Tensor:
    """Section 3, over the last dimension."""
    y = kernels.layer_norm(_rows(x), _array(weight), _array(bias), eps)
    return _tensor(y, tuple(x.shape))


@torch.library.custom_op("isonomy::rsqrt", mutates_args=())
def rsqrt(x: torch.Tensor) -> torch.Tensor:
    """`1 / sqrt(x)`: a square root, a quotient, each rounded."""
    return _tensor(np.float32(1) / np.sqrt(_array(x)), tuple(x.shape))


@torch.library.custom_op("isonomy::function", mutates_args=())
def function(x: torch.Tensor, name: str) -> torch.Tensor:
    """Sections 1 and 4, elementwise: a name of `FUNCTIONS`."""
    return _tensor(FUNCTIONS[name](_array(x)), tuple(x.shape))


FUNCTIONS = {
    "exp": kernels.exp,
    "tanh": kernels.tanh,
    "erf": kernels.erf,
    "silu": kernels.silu,
    "gelu_erf": kernels.gelu_erf,
    "gelu_tanh": kernels.gelu_tanh,
}


@torch.library.custom_op("isonomy::embedding", mutates_args=())
def embedding(ids: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """Section 4: rows `ids` (int64, any shape) of `w[V, D]`."""
    rows = kernels.embedding(_array(ids).reshape(-1), _array(w))
    return _tensor(rows, (*ids.shape, w.shape[1]))


@torch.library.custom_op("isonomy::ranked", mutates_args=())
def ranked(x: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The `k` first of each row by (value descending, id ascending): values, and ids as int64."""
    rows = _rows(x)
    order = np.ascontiguousarray(np.argsort(-rows, axis=1, kind="stable")[:, :k])
    shape = (*x.shape[:-1], k)
    return _tensor(np.take_along_axis(rows, order, axis=1), shape), _tensor(order, shape)


class NotCausal(ValueError):
    """A mask is not a causal window over one sequence."""


@torch.library.custom_op("isonomy::attention", mutates_args=())
def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    seen: torch.Tensor,
    scale: float,
    softcap: float,
) -> torch.Tensor:
    """Section 6 on one whole sequence: `q[n, H, D]`, `k` and `v` `[n, KV, D]` to `[n, H, D]`.

    `seen[n, n]` is the boolean mask, one row a query.

    Raises:
        NotCausal: the mask is of another form than section 6's windows.
    """
    y = kernels.attention(
        _array(q),
        _array(k),
        _array(v),
        np.arange(q.shape[0]),
        scale=scale,
        window=_window(_array(seen)),
        softcap=softcap,
    )
    return _tensor(y, tuple(q.shape))


def _window(seen: npt.NDArray[Any]) -> int:
    """The window that a mask is; 0 where every query sees all keys up to its own position."""
    length = len(seen)
    if seen.dtype == np.bool_ and seen.shape == (length, length):
        window = int(seen[-1].sum())
        visible = np.tri(length, dtype=bool) & ~np.tri(length, k=-window, dtype=bool)
        if np.array_equal(seen, visible):
            return 0 if window == length else window
    raise NotCausal
