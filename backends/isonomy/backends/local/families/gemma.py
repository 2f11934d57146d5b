"""Gemma 2 and Gemma 3 (text): norms around both blocks, 1 + weight, a scaled embedding."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import msgspec

from .. import rope
from ..architecture import Architecture, Rope
from ..errors import DamagedModel, NotCovered
from ..rope import Number, Positive
from .base import Count, Id, Rotary, Size, activation, typed_windows


class Gemma2(Rotary, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Gemma 2: soft caps on scores and logits, a window in every other layer."""

    NAME: ClassVar[str] = "gemma2"
    CLASS: ClassVar[str] = "Gemma2ForCausalLM"

    num_key_value_heads: Size | None = 4
    head_dim: Size | None = 256
    hidden_activation: str = "gelu_pytorch_tanh"
    tie_word_embeddings: bool = True
    pad_token_id: int | None = 0
    bos_token_id: Id | None = 2
    eos_token_id: Id | tuple[Id, ...] | None = 1
    attention_bias: bool = False
    query_pre_attn_scalar: Positive = 256
    sliding_window: Size | None = 4096
    layer_types: tuple[str, ...] | None = None
    attn_logit_softcapping: Positive | None = 50.0
    final_logit_softcapping: Positive | None = 30.0

    def architecture(self, path: object, context: int | None) -> Architecture:
        """Scores are scaled by a scalar of the configuration, not by the dimensions of a head."""
        return msgspec.structs.replace(
            super().architecture(path, context),
            norm_offset=True,
            post_norm=True,
            scale=1.0 / math.sqrt(self.query_pre_attn_scalar),
            embedding_multiplier=math.sqrt(self.hidden_size),
            attention_softcap=float(self.attn_logit_softcapping or 0.0),
            logit_softcap=float(self.final_logit_softcapping or 0.0),
            qkv_bias=self.attention_bias,
            o_bias=self.attention_bias,
        )

    def activated(self, path: object) -> str:
        """`hidden_act`, which old files have beside it, is not read."""
        return activation("hidden_activation", self.hidden_activation, path)

    def kinds(self) -> tuple[str, ...]:
        """The kind of every layer."""
        return self.pattern(2) if self.layer_types is None else self.layer_types

    def pattern(self, every: int) -> tuple[str, ...]:
        """Every so many layers one that sees everything, the others with a window."""
        return tuple(
            "sliding_attention" if (i + 1) % every else "full_attention"
            for i in range(self.num_hidden_layers)
        )

    def windows(self, path: object) -> tuple[int, ...]:
        """As the kinds of the layers say."""
        return typed_windows(
            self.kinds(),
            self.sliding_window,
            self.num_hidden_layers,
            path,
            "sliding_window is null",
        )


class Gemma3(Gemma2, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Gemma 3, text only: q and k are normalised; layers with a window have a rope of their own."""

    NAME: ClassVar[str] = "gemma3_text"
    CLASS: ClassVar[str] = "Gemma3ForCausalLM"
    THETA: ClassVar[float] = 1000000.0
    LOCAL_THETA: ClassVar[float] = 10000.0

    attn_logit_softcapping: Positive | None = None
    final_logit_softcapping: Positive | None = None
    rope_local_base_freq: Number | None = None
    sliding_window_pattern: Count | None = None
    _sliding_window_pattern: Count | None = None

    def architecture(self, path: object, context: int | None) -> Architecture:
        """Layers that see everything have the first rope, the others the second."""
        if self.attn_logit_softcapping is not None:
            raise NotCovered(
                path,
                "attn_logit_softcapping",
                "attn_logit_softcapping is given, which transformers does not apply in Gemma 3. "
                "Remove the key from config.json if the model was trained without it.",
            )
        if self.layer_types is None and self._sliding_window_pattern not in (None, 6):
            raise NotCovered(
                path,
                "_sliding_window_pattern",
                "_sliding_window_pattern is given without layer_types; transformers then takes 6. "
                "Name it sliding_window_pattern if it is meant.",
            )
        return msgspec.structs.replace(
            super().architecture(path, context),
            qk_norm="head",
            layer_ropes=tuple(int(kind == "sliding_attention") for kind in self.kinds()),
        )

    def kinds(self) -> tuple[str, ...]:
        """By default every sixth layer sees everything."""
        if self.layer_types is not None:
            return self.layer_types
        return self.pattern(self.sliding_window_pattern or 6)

    def ropes(self, path: object, context: int | None) -> tuple[Rope, ...]:
        """Of layers that see everything, and of those with a window; scaling is the former's."""
        where, parameters = rope.given(self.rope_scaling, self.rope_parameters, path)
        if where == "rope_scaling" or not parameters:
            parts: dict[str, Any] = {"full_attention": parameters, "sliding_attention": {}}
        else:
            parts = parameters
        unknown = sorted(set(parts) - {"full_attention", "sliding_attention"})
        if unknown:
            raise NotCovered(
                path,
                f"{where}.{unknown[0]}",
                f"{where} holds {unknown[0]!r}, but has one part for full_attention and one for "
                "sliding_attention in Gemma 3. Use the config.json of this checkpoint.",
            )
        full = self.setting(path, context, where)
        local = msgspec.structs.replace(
            full, theta=float(self.rope_local_base_freq or self.LOCAL_THETA)
        )
        return (
            rope.read(_part(parts, "full_attention", path), full),
            rope.read(_part(parts, "sliding_attention", path), local),
        )


def _part(parts: dict[str, Any], kind: str, path: object) -> dict[str, Any]:
    part = parts.get(kind) or {}
    if not isinstance(part, dict):
        raise DamagedModel(path, f"rope_parameters.{kind} is not an object. Correct this key.")
    # transformers looks for `truncate` beside the parts, where it never is.
    if not part.get("truncate", True):
        raise NotCovered(
            path,
            f"rope_parameters.{kind}.truncate",
            f"rope_parameters.{kind}.truncate is false, which transformers does not apply in "
            "Gemma 3. Remove the key if the model was trained without it.",
        )
    return dict(part)
