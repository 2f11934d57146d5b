"""Llama and the families that differ from it in a switch or two."""

from __future__ import annotations

from typing import ClassVar

import msgspec

from ..architecture import Architecture
from ..errors import DamagedModel
from ..rope import Positive
from .base import Count, Id, Rotary, Size, typed_windows


class Llama(Rotary, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Llama, SmolLM and SmolLM2."""

    NAME: ClassVar[str] = "llama"
    CLASS: ClassVar[str] = "LlamaForCausalLM"

    attention_bias: bool = False
    mlp_bias: bool = False
    bos_token_id: Id | None = 1
    eos_token_id: Id | tuple[Id, ...] | None = 2

    def architecture(self, path: object, context: int | None) -> Architecture:
        """One switch for the biases of attention, one for those of the MLP."""
        return msgspec.structs.replace(
            super().architecture(path, context),
            qkv_bias=self.attention_bias,
            o_bias=self.attention_bias,
            mlp_bias=self.mlp_bias,
        )


class Granite(Llama, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Granite (dense): Llama with scalars on embedding, scores, residuals and logits."""

    NAME: ClassVar[str] = "granite"
    CLASS: ClassVar[str] = "GraniteForCausalLM"

    embedding_multiplier: Positive = 1.0
    attention_multiplier: Positive = 1.0
    residual_multiplier: Positive = 1.0
    logits_scaling: Positive = 1.0

    def architecture(self, path: object, context: int | None) -> Architecture:
        """The scores are scaled by the multiplier alone."""
        return msgspec.structs.replace(
            super().architecture(path, context),
            embedding_multiplier=float(self.embedding_multiplier),
            scale=float(self.attention_multiplier),
            residual_multiplier=float(self.residual_multiplier),
            logit_divisor=float(self.logits_scaling),
        )


class Mistral(Rotary, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Mistral: every layer has the same window, or none."""

    NAME: ClassVar[str] = "mistral"
    CLASS: ClassVar[str] = "MistralForCausalLM"

    num_key_value_heads: Size | None = 8
    sliding_window: Size | None = 4096
    bos_token_id: Id | None = 1
    eos_token_id: Id | tuple[Id, ...] | None = 2

    def windows(self, path: object) -> tuple[int, ...]:
        """The same window in every layer."""
        return (self.sliding_window or 0,) * self.num_hidden_layers


class Olmo2(Rotary, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """OLMo 2: norms after the blocks and not before; q and k are normalised as a whole."""

    NAME: ClassVar[str] = "olmo2"
    CLASS: ClassVar[str] = "Olmo2ForCausalLM"

    attention_bias: bool = False
    rms_norm_eps: Positive = 1e-5
    pad_token_id: int | None = 1
    eos_token_id: Id | tuple[Id, ...] | None = 50279

    def architecture(self, path: object, context: int | None) -> Architecture:
        """Biases on all four projections of attention, or none."""
        return msgspec.structs.replace(
            super().architecture(path, context),
            pre_norm=False,
            post_norm=True,
            qk_norm="projection",
            qkv_bias=self.attention_bias,
            o_bias=self.attention_bias,
        )


class SmolLM3(Llama, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """SmolLM3: Llama in which some layers, by default every fourth, have no positions."""

    NAME: ClassVar[str] = "smollm3"
    CLASS: ClassVar[str] = "SmolLM3ForCausalLM"
    THETA: ClassVar[float] = 2000000.0

    num_key_value_heads: Size | None = 4
    tie_word_embeddings: bool = True
    bos_token_id: Id | None = 128000
    eos_token_id: Id | tuple[Id, ...] | None = 128001
    pad_token_id: int | None = 128004
    use_sliding_window: bool = False
    sliding_window: Size | None = None
    no_rope_layers: tuple[int, ...] | None = None
    no_rope_layer_interval: Count = 4
    layer_types: tuple[str, ...] | None = None

    def architecture(self, path: object, context: int | None) -> Architecture:
        """Despite its name, `no_rope_layers` is 1 where a layer has rope."""
        return msgspec.structs.replace(
            super().architecture(path, context),
            layer_ropes=tuple(0 if rope else -1 for rope in self._roped(path)),
        )

    def windows(self, path: object) -> tuple[int, ...]:
        """As `layer_types` says; by default layers without rope have the window, if it is used."""
        window = self.sliding_window if self.use_sliding_window else None
        kinds = self.layer_types
        if kinds is None:
            kinds = tuple(
                "full_attention" if rope or window is None else "sliding_attention"
                for rope in self._roped(path)
            )
        source = "use_sliding_window is false or sliding_window is null"
        return typed_windows(kinds, window, self.num_hidden_layers, path, source)

    def _roped(self, path: object) -> tuple[bool, ...]:
        layers, given = self.num_hidden_layers, self.no_rope_layers
        if given is None:
            return tuple((i + 1) % self.no_rope_layer_interval != 0 for i in range(layers))
        if len(given) != layers:
            raise DamagedModel(
                path,
                f"no_rope_layers names {len(given)} layers, num_hidden_layers is {layers}. Correct "
                "one of them.",
            )
        return tuple(bool(rope) for rope in given)
