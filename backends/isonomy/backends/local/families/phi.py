"""Phi-3, Phi-3.5 and Phi-4 (also mini): rope over a part of a head, fused projections."""

from __future__ import annotations

from typing import Annotated, ClassVar

import msgspec

from .. import rope
from ..architecture import Architecture, Rope
from ..rope import Length, Positive
from .base import Id, Rotary, Size


class Phi3(Rotary, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Phi-3 and Phi-4; of longrope only the table of sequences within the original length."""

    NAME: ClassVar[str] = "phi3"
    CLASS: ClassVar[str] = "Phi3ForCausalLM"

    rms_norm_eps: Positive = 1e-5
    original_max_position_embeddings: Length = 4096
    partial_rotary_factor: Annotated[float, msgspec.Meta(gt=0, le=1)] | None = None
    sliding_window: Size | None = None
    bos_token_id: Id | None = 1
    eos_token_id: Id | tuple[Id, ...] | None = 32000
    pad_token_id: int | None = 32000

    def architecture(self, path: object, context: int | None) -> Architecture:
        """Longrope's table ends where its angles would begin to depend on the length."""
        plain = super().architecture(path, context)
        if plain.ropes[0].kind != "longrope":
            return plain
        most = min(plain.max_positions, self.original_max_position_embeddings)
        return msgspec.structs.replace(plain, max_positions=most)

    def windows(self, path: object) -> tuple[int, ...]:
        """The same window in every layer, or none."""
        return (self.sliding_window or 0,) * self.num_hidden_layers

    def ropes(self, path: object, context: int | None) -> tuple[Rope, ...]:
        """Plain or longrope; older files call the latter `su`, or even `yarn`."""
        where, parameters = rope.given(self.rope_scaling, self.rope_parameters, path)
        for key in ("type", "rope_type"):
            if parameters.get(key) in ("su", "yarn"):
                parameters[key] = "longrope"
        return (rope.read(parameters, self.setting(path, context, where)),)

    def setting(self, path: object, context: int | None, where: str) -> rope.Setting:
        """The original length stands beside the parameters, and counts before theirs."""
        return msgspec.structs.replace(
            super().setting(path, context, where),
            partial_covered=True,
            kinds=("default", "longrope"),
            original=self.original_max_position_embeddings,
        )
