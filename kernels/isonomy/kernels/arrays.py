"""Checks of arrays on their way into the library: dtype, shape, contiguity, addresses.

Nothing is converted silently: a float64 array is refused, a strided one is copied.
"""

from __future__ import annotations

import ctypes
from typing import Any, TypeAlias, cast

import numpy as np
import numpy.typing as npt

from isonomy.kernels.errors import ArgumentError, DtypeError, ShapeError

Floats: TypeAlias = npt.NDArray[np.float32]
Ids: TypeAlias = npt.NDArray[np.int32]
Weights: TypeAlias = npt.NDArray[np.float32] | npt.NDArray[np.uint16]

F32, BF16, INT8 = 0, 1, 2


def floats(name: str, x: npt.NDArray[Any], ndim: int | None = None) -> Floats:
    """`x` as C-contiguous float32 of `ndim` dimensions, or an error."""
    if not isinstance(x, np.ndarray) or x.dtype != np.float32:
        raise DtypeError(name, "a float32 array", getattr(x, "dtype", type(x).__name__))
    if ndim is not None and x.ndim != ndim:
        raise ShapeError(name, f"of {ndim} dimensions", x.shape)
    return np.ascontiguousarray(x) if x.ndim else x


def floats_of(name: str, x: npt.NDArray[Any], shape: tuple[int, ...]) -> Floats:
    """`x` as C-contiguous float32 of exactly this shape, or an error."""
    y = floats(name, x, len(shape))
    if y.shape != shape:
        raise ShapeError(name, str(shape), y.shape)
    return y


def weights(name: str, x: npt.NDArray[Any], ndim: int = 2) -> tuple[Weights, int]:
    """`x` as C-contiguous float32, or uint16 that holds bfloat16 bits, and its storage code."""
    if not isinstance(x, np.ndarray) or x.dtype not in (np.float32, np.uint16):
        raise DtypeError(
            name,
            "a float32 array, or uint16 holding bfloat16 bits",
            getattr(x, "dtype", type(x).__name__),
        )
    if x.ndim != ndim:
        raise ShapeError(name, f"of {ndim} dimensions", x.shape)
    return np.ascontiguousarray(x), F32 if x.dtype == np.float32 else BF16


def ids(name: str, x: npt.ArrayLike, length: int | None = None) -> Ids:
    """`x` (an array or a sequence of integers) as C-contiguous int32 of one dimension."""
    y = np.asarray(x)
    if y.size == 0:
        y = y.astype(np.int32)
    if y.dtype.kind not in "iu":
        raise DtypeError(name, "integers", y.dtype)
    if y.ndim != 1 or (length is not None and y.shape[0] != length):
        raise ShapeError(name, f"({'n' if length is None else length},)", y.shape)
    if y.dtype != np.int32:
        if y.size and (int(y.min()) < -(2**31) or int(y.max()) >= 2**31):
            raise ArgumentError(f"{name}: values must fit into int32")
        y = y.astype(np.int32)
    return np.ascontiguousarray(y)


def widened(x: Weights) -> Floats:
    """bfloat16 bits as float32, exactly; float32 as it is."""
    if x.dtype == np.float32:
        return x.view(np.float32)
    return (x.astype(np.uint32) << np.uint32(16)).view(np.float32)


def address(x: npt.NDArray[Any] | bytearray) -> int:
    """Where the elements of a C-contiguous array lie; 0 of an empty bytearray."""
    try:
        # A fifth of the time of x.ctypes; numpy's arrays are buffers, whatever their stubs say.
        return ctypes.addressof(ctypes.c_char.from_buffer(cast(bytearray, x)))
    except (TypeError, ValueError):  # read-only, or empty
        return 0 if isinstance(x, bytearray) else int(x.ctypes.data)
