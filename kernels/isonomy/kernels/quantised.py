"""int8 weights: a row is int8 numbers and one float32 scale (kernels/NUMERICS.md, section 2).

Invariants: `q` is never -128, scales are finite and not negative, and a row of scale 0 is all 0;
the library refuses anything else when it packs.
"""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from isonomy.kernels.arrays import Floats, Weights, address, floats_of, weights
from isonomy.kernels.errors import DtypeError, NonFiniteError, ShapeError
from isonomy.kernels.library import check, load


class Quantised(msgspec.Struct, frozen=True, eq=False):
    """A matrix in int8; element (n, k) stands for `float32(q[n, k]) * scales[n]`.

    Attributes:
        q: int8 `[N, K]`, -127 to 127.
        scales: float32 `[N]`.
    """

    q: npt.NDArray[np.int8]
    scales: Floats

    @property
    def shape(self) -> tuple[int, ...]:
        """Of `q`."""
        return self.q.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of `q`."""
        return self.q.dtype


def quantise_rows(x: Weights) -> Quantised:
    """Quantise each row: the scale is absmax/127, elements are rint(x/scale) within +-127.

    Args:
        x: `[M, K]`, float32 or uint16 holding bfloat16 bits; weights and activations go by the
            same rule.

    Raises:
        NonFiniteError: a row holds NaN or infinity.
    """
    x, storage = weights("x", x)
    if not x.shape[1]:
        raise ShapeError("x", "with at least one column", x.shape)
    q = np.empty(x.shape, np.int8)
    scales = np.empty(x.shape[0], np.float32)
    check(load().iso_quantise(address(x), storage, *x.shape, address(q), address(scales)))
    if np.isnan(scales).any():
        row = int(np.isnan(scales).argmax())
        raise NonFiniteError(f"x: row {row} holds NaN or infinity: there is no scale for it")
    return Quantised(q, scales)


def is_linear(name: str, *, tied: bool) -> bool:
    """Whether a decoder's tensor of this canonical name is int8 where `weights="int8"`.

    Args:
        name: as in `expected_shapes`.
        tied: the embedding is the output layer, too.
    """
    if name == "model.embed_tokens.weight":
        return tied
    return name == "lm_head.weight" or name.endswith("_proj.weight")


def quantised(name: str, w: Quantised) -> Quantised:
    """`w` with C-contiguous arrays of the right types and shapes, or an error."""
    if not isinstance(w.q, np.ndarray) or w.q.dtype != np.int8:
        raise DtypeError(f"{name}.q", "an int8 array", getattr(w.q, "dtype", type(w.q).__name__))
    if w.q.ndim != 2:
        raise ShapeError(f"{name}.q", "of 2 dimensions", w.q.shape)
    scales = floats_of(f"{name}.scales", w.scales, (w.q.shape[0],))
    return Quantised(np.ascontiguousarray(w.q), scales)
