"""Which tensor operation of torch is computed by what; everything else is refused by name.

`Canonical` sees every operation that a model's forward pass hands to torch, after torch has broken
composite ones up. In this order: an operation of the table below goes to the kernels; one of the
lists in `coverage` goes to torch, if its operands keep what the list promises; any other raises
`OperationRefused`. Floating-point tensors are float32 throughout.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from . import operators
from .coverage import INTEGERS, MOVES, ROUNDED
from .errors import OperationRefused


class _Refused(Exception):
    """Why an operation is refused; the mode adds which one, and where."""


class Canonical(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While it is entered, all arithmetic is canonical.

    Attributes:
        canonical: operations that the kernels computed, and how often.
        passed: operations that torch computed, and how often.
    """

    def __init__(
        self, where: Callable[[], str], instead: Mapping[str, Callable[..., Any]] | None = None
    ) -> None:
        """Be ready.

        Args:
            where: names the module that runs, for errors.
            instead: what replaces entries of `KERNELS`.
        """
        super().__init__()  # type: ignore[no-untyped-call]
        self.canonical: Counter[str] = Counter()
        self.passed: Counter[str] = Counter()
        self._where = where
        self._kernels = KERNELS | dict(instead or {})

    def __torch_dispatch__(
        self,
        func: Any,
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Compute one operation, or refuse it."""
        name, named = str(func), kwargs or {}
        try:
            _require_float32([args, named])
            if name in KERNELS and not (name in ON_INTEGERS_TOO and not _floating(args)):
                result = self._kernels[name](*args, **named)
                self.canonical[name] += 1
            else:
                _may_pass(name, args, named)
                result = func(*args, **named)
                self.passed[name] += 1
            _require_float32(result)
        except _Refused as refused:
            raise OperationRefused(name, self._where(), str(refused)) from None
        return result


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _tensors(one)


def _floating(value: Any) -> bool:
    return any(not _integral(tensor) for tensor in _tensors(value))


def _integral(x: torch.Tensor) -> bool:
    return not (x.is_floating_point() or x.is_complex())


def _require_float32(value: Any) -> None:
    for tensor in _tensors(value):
        if not _integral(tensor) and tensor.dtype != torch.float32:
            raise _Refused(f"a tensor of type {tensor.dtype}, where all must be float32")


def _may_pass(name: str, args: tuple[Any, ...], named: dict[str, Any]) -> None:
    if name in MOVES:
        return
    if name in INTEGERS or name in ON_INTEGERS_TOO:
        if _floating([args, named]) or isinstance(args[-1], float):
            raise _Refused("covered on integers only")
    elif name in ROUNDED:
        if named.get("alpha", 1) != 1:
            raise _Refused(f"alpha = {named['alpha']} folds a product in")
    else:
        raise _Refused("not covered")


def _last(x: torch.Tensor, dim: int | Sequence[int] | None) -> None:
    """Refuse a reduction over anything but the last dimension."""
    dims = [dim] if isinstance(dim, int) else list(dim or ())
    if len(dims) != 1 or dims[0] not in (-1, x.dim() - 1):
        raise _Refused(f"covered over the last dimension only, not over {dim}")


def _same_type(dtype: torch.dtype | None) -> None:
    if dtype not in (None, torch.float32):
        raise _Refused(f"covered in float32 only, not in {dtype}")


def _mm(x: torch.Tensor, w: torch.Tensor) -> Any:
    return operators.linear(x, w.t(), None)


def _addmm(
    bias: torch.Tensor, x: torch.Tensor, w: torch.Tensor, *, beta: float = 1, alpha: float = 1
) -> Any:
    if (beta, alpha) != (1, 1):
        raise _Refused(f"beta = {beta} and alpha = {alpha} fold products in")
    if bias.shape != w.shape[1:]:
        raise _Refused(f"a bias of shape {tuple(bias.shape)} for {w.shape[1]} outputs")
    return operators.linear(x, w.t(), bias)


def _row_sum(
    x: torch.Tensor, dim: Sequence[int] | None, keepdim: bool, dtype: torch.dtype | None
) -> Any:
    _last(x, dim)
    _same_type(dtype)
    total = operators.row_sum(x)
    return total.unsqueeze(-1) if keepdim else total


def _sum(
    x: torch.Tensor,
    dim: Sequence[int] | None,
    keepdim: bool = False,
    *,
    dtype: torch.dtype | None = None,
) -> Any:
    return _row_sum(x, dim, keepdim, dtype)


def _mean(
    x: torch.Tensor,
    dim: Sequence[int] | None,
    keepdim: bool = False,
    *,
    dtype: torch.dtype | None = None,
) -> Any:
    return _row_sum(x, dim, keepdim, dtype) / x.shape[-1]


def _power(x: torch.Tensor, exponent: float) -> Any:
    if exponent == 2:
        return x * x
    if exponent == 3:
        return (x * x) * x
    raise _Refused(f"covered for the exponents 2 and 3, not {exponent}")


def _softmax(x: torch.Tensor, dim: int, half_to_float: bool) -> Any:
    _last(x, dim)
    return operators.softmax(x)


def _topk(
    x: torch.Tensor, k: int, dim: int = -1, largest: bool = True, is_sorted: bool = True
) -> Any:
    _last(x, dim)
    if not (largest and is_sorted):
        raise _Refused("covered for the largest, sorted")
    return operators.ranked(x, k)


def _layer_norm(
    x: torch.Tensor,
    shape: Sequence[int],
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
) -> Any:
    if len(shape) != 1 or weight is None or bias is None:
        raise _Refused("covered over one dimension, with weight and bias")
    # The statistics are for gradients; whoever used them here would end up with NaN.
    unused = x.new_full((*x.shape[:-1], 1), float("nan"))
    return operators.layer_norm(x, weight, bias, eps), unused, unused.clone()


def _embedding(weight: torch.Tensor, ids: torch.Tensor, *_: Any) -> Any:
    return operators.embedding(ids, weight)


def _gelu(x: torch.Tensor, *, approximate: str = "none") -> Any:
    return operators.function(x, {"none": "gelu_erf", "tanh": "gelu_tanh"}[approximate])


def _function(name: str) -> Callable[[torch.Tensor], Any]:
    return lambda x: operators.function(x, name)


def _index_add(
    total: torch.Tensor, dim: int, index: torch.Tensor, source: torch.Tensor, *, alpha: float = 1
) -> Any:
    """One rounding an element, as long as no index comes twice."""
    if alpha != 1 or dim != 0 or torch.unique(index).numel() != index.numel():
        raise _Refused("covered for different indices along dimension 0, without alpha")
    return total.index_add_(0, index, source)


KERNELS: dict[str, Callable[..., Any]] = {
    "aten.mm.default": _mm,
    "aten.addmm.default": _addmm,
    "aten.mean.dim": _mean,
    "aten.sum.dim_IntList": _sum,
    "aten.pow.Tensor_Scalar": _power,
    "aten.rsqrt.default": operators.rsqrt,
    "aten._softmax.default": _softmax,
    "aten.topk.default": _topk,
    "aten.native_layer_norm.default": _layer_norm,
    "aten.embedding.default": _embedding,
    "aten.silu.default": _function("silu"),
    "aten.gelu.default": _gelu,
    "aten.tanh.default": _function("tanh"),
    "aten.exp.default": _function("exp"),
    "aten.erf.default": _function("erf"),
    "aten.index_add_.default": _index_add,
    "isonomy.attention.default": operators.attention,
}
"""Operations that the kernels compute, in the form NUMERICS.md gives them."""

ON_INTEGERS_TOO = frozenset({"aten.sum.dim_IntList"})
"""Operations of `KERNELS` that are exact on integers, and then torch's."""
