"""What a second opinion and a comparison return; importable without torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Logits = npt.NDArray[np.float32]
else:
    Logits = Any


class Opinion(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """What transformers' graph computes on the canonical operations.

    Attributes:
        logits: float32 `[n, vocab]`, one row a position.
        model: the class that ran, such as ``LlamaForCausalLM``.
        canonical: tensor operations that the kernels computed, and how often.
        passed: those left to torch, which round at most once, and how often.
        layers: for each decoder layer, the BLAKE3 digest of every position's hidden state after it.
    """

    logits: Logits
    model: str
    canonical: dict[str, int]
    passed: dict[str, int]
    layers: tuple[tuple[bytes, ...], ...]


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """Where the engine's logits and the second opinion first differ.

    Attributes:
        position: of the token whose logits they are.
        token: the id that the logit belongs to.
        engine: the engine's value.
        opinion: the second opinion's.
        logits: how many logits differ.
        positions: at how many positions.
        layer: the first decoder layer after which the hidden state of a position differs; None
            where all agree, and the difference comes from the output layer or its norm.
    """

    position: int
    token: int
    engine: float
    opinion: float
    logits: int
    positions: int
    layer: int | None = None

    def __str__(self) -> str:
        where = "the output layer" if self.layer is None else f"layer {self.layer}"
        return (
            f"the logit of token {self.token} at position {self.position} is "
            f"{self.engine.hex()} in the engine and {self.opinion.hex()} in transformers' graph; "
            f"{self.logits} logits differ, at {self.positions} positions, first in {where}"
        )
