"""The second opinion: a checkpoint through transformers' own graph, on the canonical operations.

The engine (`isonomy.backends.local`) computes logits by a graph of its own, written in C++. Here
the same checkpoint runs through transformers' model classes, whose every tensor operation is
caught: reductions, matrix products and functions are computed by the canonical kernels, moves and
single roundings pass, anything else is refused by name. What the two graphs share is the leaf
operations and nothing above them, so logits that are equal as bits say that the engine's graph is
the model's. See backends/README.md, "The second opinion".

Needs the extra `torch`; nothing of it is imported before a function is called. The modules:

- `running`: load, run, compare
- `dispatch`: which tensor operation is computed by what, and the refusal of the rest
- `coverage`: the lists of what passes
- `operators`: the canonical operations as torch custom operators
- `int8`: linears with int8 weights, written down a second time
- `replacements`: rope tables and attention, replaced whole
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from isonomy.sdk.errors import MissingExtra

from .errors import GraphRefused, OperationRefused, OpinionError
from .results import Difference, Opinion

if TYPE_CHECKING:
    from pathlib import Path
    from types import ModuleType

    import numpy as np
    import numpy.typing as npt

__all__ = [
    "Difference",
    "GraphRefused",
    "OperationRefused",
    "Opinion",
    "OpinionError",
    "compare",
    "logits",
    "opinion",
]


def opinion(
    folder: str | Path, ids: npt.ArrayLike, *, weights: Literal["int8"] | None = None
) -> Opinion:
    """Run one sequence through transformers' graph on the canonical operations.

    Args:
        folder: a checkpoint folder with `config.json` and safetensors.
        ids: token ids `[n]`, at least one, at positions 0 .. n-1.
        weights: "int8" quantises all linears but routers, as the engine's option does.

    Returns:
        The logits of every position, and the tensor operations that were met.

    Raises:
        OperationRefused: the graph uses an operation that is not covered.
        GraphRefused: the checkpoint can't be loaded whole, or rope, mask or attention are of a kind
            that the numerics don't describe.
        OpinionError: weights or hidden states are not finite, or torch rounds otherwise.
        InputError: the ids are not one sequence that fits the model.
        MissingExtra: torch or transformers is not installed.
    """
    return _module().opinion(folder, ids, weights=weights)  # type: ignore[no-any-return]


def logits(
    folder: str | Path, ids: npt.ArrayLike, *, weights: Literal["int8"] | None = None
) -> npt.NDArray[np.float32]:
    """Return the logits of `opinion`: float32 `[n, vocab]`."""
    return opinion(folder, ids, weights=weights).logits


def compare(
    folder: str | Path, ids: npt.ArrayLike, *, weights: Literal["int8"] | None = None
) -> Difference | None:
    """Compare the engine's logits with the second opinion, bit for bit.

    Args:
        folder: a checkpoint folder with `config.json` and safetensors.
        ids: token ids `[n]`, at least one.
        weights: "int8" quantises them at load, in both.

    Returns:
        The first difference by position and token id; None where all bits are equal.

    Raises:
        OpinionError: see `opinion`; or the engine could not compute it.
        ModelError: the engine does not load the checkpoint.
        MissingExtra: torch, transformers or packages of the engine are not installed.
    """
    return _module().compare(folder, ids, weights=weights)  # type: ignore[no-any-return]


def _module() -> ModuleType:
    from importlib import import_module

    for name in ("numpy", "torch", "transformers"):
        try:
            import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or error.name.partition(".")[0] != name:
                raise
            raise MissingExtra("the second opinion", "torch", name) from error
    return import_module(".running", __name__)
