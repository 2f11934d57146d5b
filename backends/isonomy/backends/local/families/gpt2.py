"""GPT-2: layer norms, learned positions, biases everywhere, an MLP without a gate."""

from __future__ import annotations

from typing import ClassVar

from ..architecture import Architecture
from ..errors import DamagedModel
from ..rope import Positive
from .base import Count, Family, Id, Size, activation


class Gpt2(Family, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """GPT-2 and its kin, under their own names of the sizes."""

    NAME: ClassVar[str] = "gpt2"
    CLASS: ClassVar[str] = "GPT2LMHeadModel"
    IGNORED: ClassVar[frozenset[str]] = frozenset({"n_ctx"})

    n_positions: Size
    n_embd: Size
    n_layer: Count
    n_head: Size
    n_inner: Size | None = None
    activation_function: str = "gelu_new"
    layer_norm_epsilon: Positive = 1e-5
    scale_attn_weights: bool = True
    tie_word_embeddings: bool = True
    bos_token_id: Id | None = 50256
    eos_token_id: Id | tuple[Id, ...] | None = 50256

    def architecture(self, path: object, context: int | None) -> Architecture:
        """No rope: positions are rows of a table that has `n_positions` of them."""
        if self.n_embd % self.n_head:
            raise DamagedModel(
                path,
                f"n_embd ({self.n_embd}) is not a multiple of n_head ({self.n_head}). Correct one "
                "of them.",
            )
        return Architecture(
            family=self.NAME,
            vocab=self.vocab_size,
            hidden=self.n_embd,
            intermediate=self.n_inner or 4 * self.n_embd,
            layers=self.n_layer,
            heads=self.n_head,
            kv_heads=self.n_head,
            head_dim=self.n_embd // self.n_head,
            max_positions=self.n_positions,
            rms_eps=self.layer_norm_epsilon,
            activation=activation("activation_function", self.activation_function, path),
            tied=self.tie_word_embeddings,
            eos_ids=self.eos(),
            windows=(0,) * self.n_layer,
            ropes=(),
            positions="learned",
            norm="layer",
            gated=False,
            qkv_bias=True,
            o_bias=True,
            mlp_bias=True,
            scale=None if self.scale_attn_weights else 1.0,
        )
