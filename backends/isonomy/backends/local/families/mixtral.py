"""Mixtral: Mistral whose every MLP is a mixture of experts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import msgspec

from ..architecture import Architecture
from ..errors import DamagedModel
from ..rope import Positive
from .base import Count, Id, Rotary, Size


class Mixtral(Rotary, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Mixtral; `intermediate_size` is that of one expert."""

    NAME: ClassVar[str] = "mixtral"
    CLASS: ClassVar[str] = "MixtralForCausalLM"
    THETA: ClassVar[float] = 1000000.0
    ALIASES: ClassVar[Mapping[str, str]] = {"num_experts": "num_local_experts"}

    num_key_value_heads: Size | None = 8
    rms_norm_eps: Positive = 1e-5
    bos_token_id: Id | None = 1
    eos_token_id: Id | tuple[Id, ...] | None = 2
    sliding_window: Size | None = None
    num_local_experts: Count = 8
    num_experts_per_tok: Count = 2

    def architecture(self, path: object, context: int | None) -> Architecture:
        """The weights of the experts taken are always divided by their sum."""
        require_experts(self.num_local_experts, self.num_experts_per_tok, path)
        return msgspec.structs.replace(
            super().architecture(path, context),
            experts=self.num_local_experts,
            experts_per_token=self.num_experts_per_tok,
            expert_intermediate=self.intermediate_size,
            normalise_experts=True,
        )

    def windows(self, path: object) -> tuple[int, ...]:
        """The same window in every layer."""
        return (self.sliding_window or 0,) * self.num_hidden_layers


def require_experts(experts: int, taken: int, path: object) -> None:
    """Refuse to take more experts than there are."""
    if taken > experts:
        raise DamagedModel(
            path,
            f"num_experts_per_tok ({taken}) is above the number of experts ({experts}). Correct "
            "one of them.",
        )
