"""int8 weights in transformers' graph (kernels/NUMERICS.md, section 2, "Linear, int8").

Linears but those of routers, and the rows of an embedding that is also the output layer, are
replaced. Unlike everything else here, this arithmetic is not the kernels': sums of integers are
exact in any order, so numpy computes them in binary64, and the rule is written down a second time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from .dispatch import KERNELS


def quantised(
    x: npt.NDArray[np.float32],
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Rows of `x[M, K]` as whole numbers `[M, K]` between -127 and 127, and scales `[M, 1]`."""
    scales = np.abs(x).max(axis=1, keepdims=True) / np.float32(127)
    quotients = np.divide(x, scales, out=np.zeros_like(x), where=scales != 0)
    # An integer has no sign where it is 0: -0 + 0 is +0.
    return np.clip(np.rint(quotients), -127, 127) + np.float32(0), scales


@torch.library.custom_op("isonomy::linear_int8", mutates_args=())
def linear(x: torch.Tensor, w: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """`x[M, K]` times `w[N, K]`, both quantised by rows, plus `bias[N]`: `[M, N]`."""
    qx, sx = quantised(x.detach().numpy())
    qw, sw = quantised(w.detach().numpy())
    # Below 2^53 at every step, so that neither order nor fused operations change a bit.
    sums = (qx.astype(np.float64) @ qw.T.astype(np.float64)).astype(np.float32)
    y = sums * (sx * sw.T)
    return torch.from_numpy(y if bias is None else y + bias.detach().numpy())


@torch.library.custom_op("isonomy::embedding_int8", mutates_args=())
def embedding(ids: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """Rows `ids` (int64, any shape) of the quantised `w[V, D]`."""
    q, scales = quantised(w.detach()[ids.reshape(-1)].numpy())
    return torch.from_numpy((q * scales).reshape(*ids.shape, w.shape[1]))


def kernels_for(model: Any, running: list[str]) -> dict[str, Callable[..., Any]]:
    """What replaces entries of `dispatch.KERNELS` for a model with int8 weights.

    Args:
        model: transformers' model.
        running: the modules that are running, the innermost last; followed while the model runs.
    """
    output = model.get_output_embeddings().weight

    def mm(x: torch.Tensor, w: torch.Tensor) -> Any:
        if "Router" in running[-1]:
            return KERNELS["aten.mm.default"](x, w)
        return linear(x, w.t(), None)

    def addmm(bias: torch.Tensor, x: torch.Tensor, w: torch.Tensor, **scalars: Any) -> Any:
        if scalars or "Router" in running[-1]:
            return KERNELS["aten.addmm.default"](bias, x, w, **scalars)
        return linear(x, w.t(), bias)

    def rows(weight: torch.Tensor, ids: torch.Tensor, *others: Any) -> Any:
        if weight.data_ptr() == output.data_ptr():
            return embedding(ids, weight)
        return KERNELS["aten.embedding.default"](weight, ids, *others)

    return {
        "aten.mm.default": mm,
        "aten.addmm.default": addmm,
        "aten.embedding.default": rows,
    }
