"""Qwen2, Qwen3, and Qwen3 with experts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar

import msgspec

from ..architecture import Architecture
from .base import Count, Natural, Rotary, Size, typed_windows
from .mixtral import require_experts


class Qwen2(Rotary, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Qwen2 and Qwen2.5: biases on q, k, v; windows from `max_window_layers` on, if used."""

    NAME: ClassVar[str] = "qwen2"
    CLASS: ClassVar[str] = "Qwen2ForCausalLM"

    num_key_value_heads: Size | None = 32
    use_sliding_window: bool = False
    sliding_window: Size | None = 4096
    max_window_layers: Natural = 28
    layer_types: tuple[str, ...] | None = None

    def architecture(self, path: object, context: int | None) -> Architecture:
        """Biases are always on q, k and v."""
        return msgspec.structs.replace(super().architecture(path, context), qkv_bias=True)

    def windows(self, path: object) -> tuple[int, ...]:
        """As `layer_types` says, or else from layer `max_window_layers` on."""
        window = self.sliding_window if self.use_sliding_window else None
        kinds = self.layer_types
        if kinds is None:
            kinds = tuple(
                "sliding_attention"
                if window is not None and i >= self.max_window_layers
                else "full_attention"
                for i in range(self.num_hidden_layers)
            )
        source = "use_sliding_window is false or sliding_window is null"
        return typed_windows(kinds, window, self.num_hidden_layers, path, source)


class Qwen3(Qwen2, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Qwen3 (dense): q and k are normalised, biases only where `attention_bias` says so."""

    NAME: ClassVar[str] = "qwen3"
    CLASS: ClassVar[str] = "Qwen3ForCausalLM"

    head_dim: Size | None = 128
    attention_bias: bool = False

    def architecture(self, path: object, context: int | None) -> Architecture:
        """Biases on all four projections, or none."""
        return msgspec.structs.replace(
            super().architecture(path, context),
            qk_norm="head",
            qkv_bias=self.attention_bias,
            o_bias=self.attention_bias,
        )


class Qwen3Moe(Rotary, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Qwen3 with experts, in every layer or in some."""

    NAME: ClassVar[str] = "qwen3_moe"
    CLASS: ClassVar[str] = "Qwen3MoeForCausalLM"
    IGNORED: ClassVar[frozenset[str]] = frozenset({"max_window_layers"})
    ALIASES: ClassVar[Mapping[str, str]] = {"num_local_experts": "num_experts"}

    num_key_value_heads: Size | None = 4
    attention_bias: bool = False
    use_sliding_window: bool = False
    sliding_window: Size | None = 4096
    num_experts: Annotated[int, msgspec.Meta(ge=0, le=1 << 12)] = 128
    num_experts_per_tok: Count = 8
    moe_intermediate_size: Size = 768
    norm_topk_prob: bool = False
    decoder_sparse_step: Count = 1
    mlp_only_layers: tuple[int, ...] | None = None

    def architecture(self, path: object, context: int | None) -> Architecture:
        """Layers without experts have an ordinary MLP of `intermediate_size`."""
        dense = self.mlp_only_layers or ()
        sparse = tuple(
            self.num_experts > 0 and i not in dense and (i + 1) % self.decoder_sparse_step == 0
            for i in range(self.num_hidden_layers)
        )
        plain = msgspec.structs.replace(
            super().architecture(path, context),
            qk_norm="head",
            qkv_bias=self.attention_bias,
            o_bias=self.attention_bias,
        )
        if not any(sparse):
            return plain
        require_experts(self.num_experts, self.num_experts_per_tok, path)
        return msgspec.structs.replace(
            plain,
            experts=self.num_experts,
            experts_per_token=self.num_experts_per_tok,
            expert_intermediate=self.moe_intermediate_size,
            normalise_experts=self.norm_topk_prob,
            sparse_layers=() if all(sparse) else sparse,
        )

    def windows(self, path: object) -> tuple[int, ...]:
        """One window for all layers, if it is used."""
        window = self.sliding_window if self.use_sliding_window else None
        return (window or 0,) * self.num_hidden_layers
