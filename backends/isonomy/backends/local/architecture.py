"""What a checkpoint computes, whichever way its configuration says it.

An `Architecture` has the switches of `kernels.DecoderConfig` under the same names; a value that a
family does not mention is the neutral one, which costs no operation. Nothing here needs the extra
`local`.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec


class Rope(msgspec.Struct, frozen=True, kw_only=True):
    """Rotary positions: base, rotated dimensions, and the scaling as the kernels take it.

    `scaling` is `None` for plain rope, else the arguments of `kernels.rope_frequencies` and
    `kernels.rope_attention_factor`.
    """

    theta: float
    rotary_dim: int
    scaling: dict[str, Any] | None = None

    @property
    def kind(self) -> str:
        """`default`, `linear`, `llama3`, `yarn` or `longrope`."""
        return str((self.scaling or {}).get("rope_type", "default"))


class Architecture(msgspec.Struct, frozen=True, kw_only=True):
    """Shape and switches of a model.

    Attributes:
        family: its `model_type`.
        vocab, hidden, layers, heads, kv_heads, head_dim: sizes.
        intermediate: width of the MLP of layers that have no experts.
        max_positions: the longest sequence that the model can take.
        rms_eps: of every norm.
        activation: as the kernels name it.
        tied: the output layer is the embedding.
        eos_ids: tokens that end an answer, where generation_config.json does not say.
        qkv_bias, o_bias, mlp_bias: which linears have biases.
        norm: RMS norm or layer norm (which has biases).
        norm_offset: every RMS norm multiplies with 1 + its weight.
        pre_norm, post_norm: norms before a block, and between a block and the residual.
        qk_norm: RMS norm of queries and keys: over each head, or over the whole projection.
        windows: the sliding window of every layer; 0 sees everything before it.
        scale: of attention scores; `None` is 1/sqrt(head_dim).
        gated: the MLP has a gate.
        experts: how many there are; 0 is an ordinary MLP.
        experts_per_token: how many each token takes.
        expert_intermediate: width of one expert.
        normalise_experts: the weights of the experts taken are divided by their sum.
        sparse_layers: which layers have experts; empty: all, if there are any.
        positions: rope, or a learned table.
        ropes: frequency tables in use.
        layer_ropes: which of them each layer has, -1 for none; empty: the first everywhere.
        embedding_multiplier, residual_multiplier, logit_divisor: scalars at those places.
        attention_softcap, logit_softcap: caps of scores and logits; 0 is none.
    """

    family: str
    vocab: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    max_positions: int
    rms_eps: float
    activation: str
    tied: bool
    eos_ids: tuple[int, ...]
    windows: tuple[int, ...]
    ropes: tuple[Rope, ...]
    layer_ropes: tuple[int, ...] = ()
    positions: Literal["rope", "learned"] = "rope"
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    norm: Literal["rms", "layer"] = "rms"
    norm_offset: bool = False
    pre_norm: bool = True
    post_norm: bool = False
    qk_norm: Literal["none", "head", "projection"] = "none"
    scale: float | None = None
    gated: bool = True
    experts: int = 0
    experts_per_token: int = 0
    expert_intermediate: int = 0
    normalise_experts: bool = True
    sparse_layers: tuple[bool, ...] = ()
    embedding_multiplier: float = 1.0
    residual_multiplier: float = 1.0
    logit_divisor: float = 1.0
    attention_softcap: float = 0.0
    logit_softcap: float = 0.0

    def sparse(self, layer: int) -> bool:
        """Whether this layer has experts."""
        return bool(self.experts) and (not self.sparse_layers or self.sparse_layers[layer])

    def operations(self) -> list[str]:
        """Return the sorted names of the canonical operations that one step uses."""
        sparse = [self.sparse(layer) for layer in range(self.layers)]
        ropes = [self.ropes[i] for i in self.layer_ropes or range(len(self.ropes)) if i >= 0]
        present = {
            "add": True,
            "attention": not all(self.windows),
            "attention_scale": self.scale is not None,
            "attention_sliding": any(self.windows),
            "attention_soft_cap": bool(self.attention_softcap),
            "divide_logits": self.logit_divisor != 1.0,
            "embedding": True,
            "layer_norm": self.norm == "layer",
            "learned_positions": self.positions == "learned",
            "linear": True,
            "linear_bias": self.qkv_bias or self.o_bias or self.mlp_bias,
            "logit_soft_cap": bool(self.logit_softcap),
            "mixture_of_experts": any(sparse),
            "mul": self.gated,
            "multiply_embedding": self.embedding_multiplier != 1.0,
            "multiply_residual": self.residual_multiplier != 1.0,
            "qk_norm": self.qk_norm == "head",
            "qk_norm_projection": self.qk_norm == "projection",
            "rms_norm": self.norm == "rms" and not self.norm_offset,
            "rms_norm_offset": self.norm == "rms" and self.norm_offset,
            "rope_attention_factor": any(r.kind in ("yarn", "longrope") for r in ropes),
            "rope_partial": any(r.rotary_dim < self.head_dim for r in ropes),
            "sampling": True,
            "softmax": any(sparse),
            "step_digest": True,
            "tied_output": self.tied,
            self.activation: True,
        }
        return sorted(
            {name for name, used in present.items() if used} | {f"rope_{r.kind}" for r in ropes}
        )
