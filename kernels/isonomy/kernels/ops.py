"""The canonical operations on numpy arrays (kernels/NUMERICS.md, sections 2 to 6 and 8).

Arrays are C-contiguous float32 unless said; results are new arrays. Bits depend on the arguments
only. Wrong shapes and types raise ShapeError and DtypeError; values out of range ArgumentError.
"""

from __future__ import annotations

import ctypes
import math
import weakref
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from isonomy.kernels.arrays import (
    INT8,
    Floats,
    Weights,
    address,
    floats,
    floats_of,
    ids,
    weights,
)
from isonomy.kernels.errors import ArgumentError, ShapeError
from isonomy.kernels.library import check, load
from isonomy.kernels.quantised import Quantised, quantised


def _function(which: int, name: str, x: npt.NDArray[Any]) -> Floats:
    x = floats(name, x)
    y = np.empty_like(x)
    check(load().iso_function(which, address(x), address(y), x.size))
    return y


def exp(x: Floats) -> Floats:
    """Correctly rounded exponential, elementwise, any shape."""
    return _function(0, "x", x)


def log(x: Floats) -> Floats:
    """Correctly rounded natural logarithm, elementwise, any shape."""
    return _function(1, "x", x)


def tanh(x: Floats) -> Floats:
    """Correctly rounded hyperbolic tangent, elementwise, any shape."""
    return _function(2, "x", x)


def erf(x: Floats) -> Floats:
    """Correctly rounded error function, elementwise, any shape."""
    return _function(3, "x", x)


def silu(x: Floats) -> Floats:
    """`x / (1 + exp(-x))`, elementwise, any shape."""
    return _function(4, "x", x)


def gelu_erf(x: Floats) -> Floats:
    """`(0.5*x) * (1 + erf(x*sqrt(0.5)))`, elementwise, any shape."""
    return _function(5, "x", x)


def gelu_tanh(x: Floats) -> Floats:
    """The tanh form of gelu, elementwise, any shape."""
    return _function(6, "x", x)


def _binary(which: int, a: Floats, b: Floats) -> Floats:
    a, b = floats("a", a), floats("b", b)
    if a.shape != b.shape:
        raise ShapeError("b", str(a.shape), b.shape)
    y = np.empty_like(a)
    check(load().iso_binary(which, address(a), address(b), address(y), a.size))
    return y


def add(a: Floats, b: Floats) -> Floats:
    """`a + b` of equal shapes."""
    return _binary(0, a, b)


def mul(a: Floats, b: Floats) -> Floats:
    """`a * b` of equal shapes."""
    return _binary(1, a, b)


def softmax(x: Floats) -> Floats:
    """Softmax of each row of `x[M, N]`, N at least 1."""
    x = floats("x", x, 2)
    y = np.empty_like(x)
    check(load().iso_softmax(address(x), address(y), *x.shape))
    return y


def row_sum(x: Floats) -> Floats:
    """The row reduction of NUMERICS.md section 3: `x[M, N]` to `[M]`."""
    x = floats("x", x, 2)
    y = np.empty(x.shape[0], np.float32)
    check(load().iso_row_sum(address(x), address(y), *x.shape))
    return y


def rms_norm(x: Floats, w: Floats, eps: float, *, unit_offset: bool = False) -> Floats:
    """RMS norm of each row of `x[M, D]` with weights `w[D]`; with `unit_offset`, `1 + w`."""
    x = floats("x", x, 2)
    w = floats_of("w", w, (x.shape[1],))
    y = np.empty_like(x)
    check(load().iso_rms_norm(address(x), address(w), address(y), *x.shape, eps, unit_offset))
    return y


def layer_norm(x: Floats, w: Floats, b: Floats, eps: float) -> Floats:
    """Layer norm of each row of `x[M, D]` with weights `w[D]` and bias `b[D]`."""
    x = floats("x", x, 2)
    w, b = floats_of("w", w, (x.shape[1],)), floats_of("b", b, (x.shape[1],))
    y = np.empty_like(x)
    check(load().iso_layer_norm(address(x), address(w), address(b), address(y), *x.shape, eps))
    return y


class PackedLinear:
    """Weights of a linear, copied into the layout that the kernels stream.

    Attributes:
        n: outputs.
        k: inputs.
    """

    def __init__(
        self,
        w: Weights | Quantised,
        bias: Floats | None = None,
        *,
        storage: Literal["stored", "int8"] = "stored",
        checksums: bool = False,
    ) -> None:
        """Pack.

        Args:
            w: `[N, K]`, float32, uint16 holding bfloat16 bits, or int8 with scales.
            bias: `[N]`.
            storage: "int8" quantises float weights; int8 stays int8 either way.
            checksums: check every row of every product against silent data corruption (int8 only).

        Raises:
            NonFiniteError: a weight is NaN or infinite.
            UnsupportedError: int8 with more than 131072 inputs.
            ArgumentError: int8 weights that quantising never gives; checksums without int8.
        """
        scales = None
        if isinstance(w, Quantised):
            w = quantised("w", w)
            stored, kind, scales = address(w.q), INT8, address(w.scales)
        else:
            w, kind = weights("w", w)
            stored = address(w)
        packed = INT8 if storage == "int8" else kind
        if checksums and packed != INT8:
            raise ArgumentError("checksums are for int8 weights only: float sums are not exact")
        self.n, self.k = int(w.shape[0]), int(w.shape[1])
        if not self.n or not self.k:
            raise ShapeError("w", "with at least one row and one column", w.shape)
        if bias is not None:
            bias = floats_of("bias", bias, (self.n,))
        library = load()
        handle = ctypes.c_void_p()
        bias_address = None if bias is None else address(bias)
        check(
            library.iso_linear_new(
                stored,
                kind,
                scales,
                self.n,
                self.k,
                bias_address,
                packed,
                checksums,
                ctypes.byref(handle),
            )
        )
        self._handle = handle
        # Not at exit: a daemon thread may compute with it until the process is gone.
        weakref.finalize(self, library.iso_linear_free, handle).atexit = False

    def __call__(self, x: Floats) -> Floats:
        """`x[M, K]` to `[M, N]`.

        Raises:
            CorruptionError: with checksums, a row was wrong twice.
        """
        x = floats("x", x, 2)
        if x.shape[1] != self.k:
            raise ShapeError("x", f"(rows, {self.k})", x.shape)
        y = np.empty((x.shape[0], self.n), np.float32)
        check(load().iso_linear_apply(self._handle, address(x), x.shape[0], address(y)))
        return y


def linear(x: Floats, packed: PackedLinear) -> Floats:
    """`x[M, K]` times the packed weights, plus their bias: `[M, N]`."""
    return packed(x)


def embedding(token_ids: npt.ArrayLike, w: Weights) -> Floats:
    """Rows `token_ids[M]` of `w[V, D]` (float32 or bfloat16 bits) as float32 `[M, D]`."""
    rows = ids("token_ids", token_ids)
    w, storage = weights("w", w)
    y = np.empty((rows.shape[0], w.shape[1]), np.float32)
    check(
        load().iso_embedding(
            address(rows), rows.shape[0], address(w), storage, *w.shape, address(y)
        )
    )
    return y


def rope(x: Floats, cos: Floats, sin: Floats, positions: npt.ArrayLike) -> Floats:
    """Half-split rotation of `x[M, H, D]` by the tables' rows `positions[M]`.

    Args:
        x: heads; the first `2 * cos.shape[1]` dimensions are rotated.
        cos: `[positions, rotary/2]`, from `rope_tables`.
        sin: likewise.
        positions: one a row, below the tables' length.
    """
    x, cos = floats("x", x, 3), floats("cos", cos, 2)
    sin = floats_of("sin", sin, cos.shape)
    at = ids("positions", positions, x.shape[0])
    y = np.empty_like(x)
    check(
        load().iso_rope(
            address(x),
            address(cos),
            address(sin),
            cos.shape[1],
            cos.shape[0],
            address(at),
            *x.shape,
            address(y),
        )
    )
    return y


def attention(
    q: Floats,
    k: Floats,
    v: Floats,
    positions: npt.ArrayLike,
    *,
    scale: float,
    window: int = 0,
    softcap: float = 0.0,
) -> Floats:
    """Causal attention of queries at absolute `positions` over keys 0 .. T-1.

    Args:
        q: `[M, H, D]`.
        k: `[T, KV, D]`, H a multiple of KV; key t has absolute position t.
        v: `[T, KV, D]`, finite.
        positions: `[M]`, below T; query m sees keys up to its own position.
        scale: multiplies the scores; rounded once to float32.
        window: a query sees this many keys, its own included; 0 is all.
        softcap: `tanh(s/c)*c` on the scores; 0 is none.

    Returns:
        `[M, H, D]`.
    """
    q, k = floats("q", q, 3), floats("k", k, 3)
    v = floats_of("v", v, k.shape)
    rows, heads, dim = q.shape
    keys, kv_heads, _ = k.shape
    if k.shape[2] != dim:
        raise ShapeError("k", f"(keys, kv_heads, {dim})", k.shape)
    if not math.isfinite(scale) or not math.isfinite(softcap):
        raise ArgumentError("scale and softcap must be finite")
    if not 0 <= window < 2**62:
        raise ArgumentError(f"window must not be negative, got {window}")
    at = ids("positions", positions, rows)
    y = np.empty_like(q)
    check(
        load().iso_attention(
            address(q),
            address(k),
            address(v),
            address(at),
            rows,
            keys,
            heads,
            kv_heads,
            dim,
            scale,
            window,
            softcap,
            address(y),
        )
    )
    return y


def blake3(data: bytes) -> bytes:
    """The 32-byte BLAKE3 digest of `data`."""
    digest = ctypes.create_string_buffer(32)
    check(load().iso_blake3(data, len(data), ctypes.addressof(digest)))
    return digest.raw


def step_digests(logits: Floats) -> list[bytes]:
    """BLAKE3 of each row of `logits[M, V]` as little-endian float32: 32 bytes each."""
    logits = floats("logits", logits, 2)
    rows = logits.shape[0]
    digests = ctypes.create_string_buffer(32 * rows or 1)
    check(load().iso_step_digests(address(logits), *logits.shape, ctypes.addressof(digests)))
    return [digests.raw[32 * m : 32 * m + 32] for m in range(rows)]


CHAIN_START = bytes(32)


def chain(prev: bytes, digest: bytes) -> bytes:
    """The chain of step digests: `BLAKE3(prev || digest)`; it starts at `CHAIN_START`."""
    if len(prev) != 32 or len(digest) != 32:
        raise ArgumentError("a chain links digests of 32 bytes")
    return blake3(prev + digest)
