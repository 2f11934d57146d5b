"""What a decoder is made of: its shape and switches, and the tensors that it needs.

One graph with switches serves all families (kernels/NUMERICS.md, section 7). A switch at its
default costs no operation and no rounding.
"""

from __future__ import annotations

import ctypes
import math
import re
from typing import Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt

from isonomy.kernels.arrays import address
from isonomy.kernels.errors import ArgumentError, UnsupportedError
from isonomy.kernels.library import Config, RopeKind

_ACTIVATIONS = {"silu": 0, "gelu_erf": 1, "gelu_tanh": 2}
_QK_NORMS = {"none": 0, "head": 1, "projection": 2}


class Rope(msgspec.Struct, frozen=True):
    """Rotary positions of some layers.

    Attributes:
        frequencies: from `rope_frequencies`; twice as many dimensions of a head are rotated.
        attention_factor: multiplies the tables.
    """

    frequencies: tuple[float, ...]
    attention_factor: float = 1.0


class DecoderConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The shape and switches of a decoder.

    Attributes:
        vocab: rows of the embedding table.
        hidden: width of the residual stream.
        layers: how many.
        heads: query heads.
        kv_heads: key-value heads; divides `heads`.
        head_dim: dimensions of a head.
        intermediate: width of the MLP.
        rms_eps: of every norm.
        max_positions: largest capacity of a session; rows of a learned position table.
        norm: "rms", or "layer" (with biases).
        norm_offset: every RMS norm of the model multiplies by 1 + its weight.
        pre_norm: norms before attention and MLP.
        post_norm: norms between them and the residual (RMS only).
        qk_norm: RMS norm of q and k before rope: "none", "head" (over each head's dimensions), or
            "projection" (over all heads together).
        gated: the MLP is `act(gate(x)) * up(x)`; otherwise `act(up(x))`.
        activation: "silu", "gelu_erf" or "gelu_tanh".
        experts: MLPs to choose from, in place of one; 0: none.
        experts_per_token: how many each token takes.
        expert_intermediate: width of an expert.
        normalise_experts: the chosen experts' weights are divided by their sum.
        sparse_layers: which layers have experts; empty: all, where there are experts.
        positions: "rope", or "learned" (a table is added to the embedding; no layer rotates).
        ropes: the kinds of rope there are.
        layer_ropes: one a layer, an index into `ropes`, or -1: no rope; empty: all 0.
        windows: one a layer, the sliding window (0: none); empty: none anywhere.
        scale: of attention scores; None is 1/sqrt(head_dim).
        attention_softcap: of attention scores after the scale; 0: none.
        embedding_multiplier: of the embedding.
        residual_multiplier: of what attention and MLP add to the residual stream.
        logit_divisor: divides the logits.
        logit_softcap: of the logits after the divisor; 0: none.
        qkv_bias: q, k and v projections have biases.
        o_bias: the output projection has one.
        mlp_bias: gate, up and down have them.
        output_bias: the output layer has one.
        tied: the output layer is the embedding table.
        weights: "stored" keeps the tensors' storage; "int8" quantises the linears.
        checksums: check int8 linears against silent data corruption.
    """

    vocab: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    rms_eps: float
    max_positions: int
    norm: Literal["rms", "layer"] = "rms"
    norm_offset: bool = False
    pre_norm: bool = True
    post_norm: bool = False
    qk_norm: Literal["none", "head", "projection"] = "none"
    gated: bool = True
    activation: str = "silu"
    experts: int = 0
    experts_per_token: int = 0
    expert_intermediate: int = 0
    normalise_experts: bool = True
    sparse_layers: tuple[bool, ...] = ()
    positions: Literal["rope", "learned"] = "rope"
    ropes: tuple[Rope, ...] = ()
    layer_ropes: tuple[int, ...] = ()
    windows: tuple[int, ...] = ()
    scale: float | None = None
    attention_softcap: float = 0.0
    embedding_multiplier: float = 1.0
    residual_multiplier: float = 1.0
    logit_divisor: float = 1.0
    logit_softcap: float = 0.0
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    output_bias: bool = False
    tied: bool = False
    weights: Literal["stored", "int8"] = "stored"
    checksums: bool = False

    def sparse(self, layer: int) -> bool:
        """Whether a layer has experts in place of its MLP."""
        return self.experts > 0 and (not self.sparse_layers or self.sparse_layers[layer])


_OF_MODEL = {  # in the order of isonomy.h
    "model.embed_tokens.weight": 0,
    "model.embed_positions.weight": 1,
    "model.norm.weight": 2,
    "model.norm.bias": 3,
    "lm_head.weight": 4,
    "lm_head.bias": 5,
}
_OF_LAYER = {
    name: number
    for number, name in enumerate(
        (
            "input_layernorm.weight",
            "input_layernorm.bias",
            "post_attention_layernorm.weight",
            "post_attention_layernorm.bias",
            "attention_output_norm.weight",
            "mlp_output_norm.weight",
            "self_attn.q_proj.weight",
            "self_attn.k_proj.weight",
            "self_attn.v_proj.weight",
            "self_attn.o_proj.weight",
            "self_attn.q_proj.bias",
            "self_attn.k_proj.bias",
            "self_attn.v_proj.bias",
            "self_attn.o_proj.bias",
            "self_attn.q_norm.weight",
            "self_attn.k_norm.weight",
            "mlp.gate_proj.weight",
            "mlp.up_proj.weight",
            "mlp.down_proj.weight",
            "mlp.gate_proj.bias",
            "mlp.up_proj.bias",
            "mlp.down_proj.bias",
            "mlp.router.weight",
        ),
        start=6,
    )
}
_OF_EXPERT = {"gate_proj.weight": 29, "up_proj.weight": 30, "down_proj.weight": 31}
_NAME = re.compile(r"model\.layers\.(\d+)\.(?:mlp\.experts\.(\d+)\.)?(.+)")
# Tensors that are packed together have one storage; where a checkpoint mixes, they become float32.
_TOGETHER = (
    ("q_proj.weight", "k_proj.weight", "v_proj.weight"),
    ("gate_proj.weight", "up_proj.weight"),
)


def slot_of(name: str) -> tuple[int, int, int]:
    """The library's number of a tensor, its layer and its expert (-1 where it has none)."""
    if (number := _OF_MODEL.get(name)) is not None:
        return number, -1, -1
    match = _NAME.fullmatch(name)
    assert match is not None, name
    if match[2] is not None:
        return _OF_EXPERT[match[3]], int(match[1]), int(match[2])
    return _OF_LAYER[match[3]], int(match[1]), -1


def packed_together(name: str) -> tuple[str, ...]:
    """The tensors that share a packed matrix with this one, itself included; often none."""
    for group in _TOGETHER:
        for member in group:
            if name.endswith(member):
                return tuple(name.removesuffix(member) + other for other in group)
    return ()


def expected_shapes(config: DecoderConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor that a decoder of this configuration needs, by its canonical name."""
    hidden = config.hidden
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config.vocab, hidden)}
    if config.positions == "learned":
        shapes["model.embed_positions.weight"] = (config.max_positions, hidden)
    for i in range(config.layers):
        layer = _attention_shapes(config) | _mlp_shapes(config, i)
        shapes |= {f"model.layers.{i}.{name}": shape for name, shape in layer.items()}
    shapes["model.norm.weight"] = (hidden,)
    if config.norm == "layer":
        shapes["model.norm.bias"] = (hidden,)
    if not config.tied:
        shapes["lm_head.weight"] = (config.vocab, hidden)
    if config.output_bias:
        shapes["lm_head.bias"] = (config.vocab,)
    return shapes


def _attention_shapes(config: DecoderConfig) -> dict[str, tuple[int, ...]]:
    """Of a layer: its norms and its attention."""
    hidden, dim = config.hidden, config.head_dim
    q, kv = config.heads * dim, config.kv_heads * dim
    shapes: dict[str, tuple[int, ...]] = {}
    if config.pre_norm:
        for name in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"{name}.weight"] = (hidden,)
            if config.norm == "layer":
                shapes[f"{name}.bias"] = (hidden,)
    if config.post_norm:
        for name in ("attention_output_norm", "mlp_output_norm"):
            shapes[f"{name}.weight"] = (hidden,)
    for name, rows, columns in (("q", q, hidden), ("k", kv, hidden), ("v", kv, hidden)):
        shapes[f"self_attn.{name}_proj.weight"] = (rows, columns)
        if config.qkv_bias:
            shapes[f"self_attn.{name}_proj.bias"] = (rows,)
    shapes["self_attn.o_proj.weight"] = (hidden, q)
    if config.o_bias:
        shapes["self_attn.o_proj.bias"] = (hidden,)
    if config.qk_norm != "none":
        whole = config.qk_norm == "projection"
        shapes["self_attn.q_norm.weight"] = (q if whole else dim,)
        shapes["self_attn.k_norm.weight"] = (kv if whole else dim,)
    return shapes


def _mlp_shapes(config: DecoderConfig, layer: int) -> dict[str, tuple[int, ...]]:
    """Of a layer: its MLP, or its router and experts."""
    hidden = config.hidden

    def matrices(inner: int) -> dict[str, tuple[int, ...]]:
        gate = {"gate_proj": (inner, hidden)} if config.gated else {}
        return {**gate, "up_proj": (inner, hidden), "down_proj": (hidden, inner)}

    shapes: dict[str, tuple[int, ...]] = {}
    if config.sparse(layer):
        shapes["mlp.router.weight"] = (config.experts, hidden)
        for e in range(config.experts):
            for name, shape in matrices(config.expert_intermediate).items():
                shapes[f"mlp.experts.{e}.{name}.weight"] = shape
        return shapes
    for name, shape in matrices(config.intermediate).items():
        shapes[f"mlp.{name}.weight"] = shape
        if config.mlp_bias:
            shapes[f"mlp.{name}.bias"] = (shape[0],)
    return shapes


_SIZES = (
    "vocab",
    "hidden",
    "layers",
    "heads",
    "kv_heads",
    "head_dim",
    "intermediate",
    "max_positions",
)


def record_of(config: DecoderConfig) -> tuple[Config, list[Any]]:
    """The library's record of a configuration, and what it points into."""
    if config.activation not in _ACTIVATIONS:
        raise UnsupportedError("activation", config.activation, tuple(_ACTIVATIONS))
    for name, value, known in (
        ("norm", config.norm, ("rms", "layer")),
        ("q/k norm", config.qk_norm, tuple(_QK_NORMS)),
        ("kind of positions", config.positions, ("rope", "learned")),
        ("storage of weights", config.weights, ("stored", "int8")),
    ):
        if value not in known:
            raise UnsupportedError(name, value, known)
    for name in _SIZES:
        if not 0 < getattr(config, name) < 2**31:
            raise ArgumentError(f"{name} must be positive, not {getattr(config, name)}")
    for name in ("experts", "experts_per_token", "expert_intermediate"):
        if not 0 <= getattr(config, name) < 2**31:
            raise ArgumentError(f"{name} must not be negative, got {getattr(config, name)}")

    frequencies = [np.array(rope.frequencies, np.float64) for rope in config.ropes]
    ropes = (RopeKind * len(config.ropes))(
        *(
            RopeKind(address(f), f.shape[0], rope.attention_factor)
            for f, rope in zip(frequencies, config.ropes, strict=True)
        )
    )
    no_rope = config.positions == "learned"
    if not no_rope and not config.ropes and -1 not in config.layer_ropes:
        raise ArgumentError("positions are rotary: ropes must hold at least one")
    # A window beyond int32 cannot be left by any position.
    windows = tuple(w if w < 2**31 else 0 for w in config.windows)
    arrays = {
        "windows": _a_layer("windows", windows, config, 0),
        "rope_of": _a_layer("layer_ropes", config.layer_ropes, config, -1 if no_rope else 0),
        "sparse": _a_layer("sparse_layers", config.sparse_layers, config, int(config.experts > 0)),
    }
    if not config.experts:
        arrays["sparse"][:] = 0
    same = (
        *("experts", "experts_per_token", "expert_intermediate", "normalise_experts"),
        *("norm_offset", "pre_norm", "post_norm", "gated", "tied"),
        *("qkv_bias", "o_bias", "mlp_bias", "output_bias", "checksums"),
        *("embedding_multiplier", "residual_multiplier", "logit_divisor"),
        *("attention_softcap", "logit_softcap"),
    )
    record = Config(
        **{name: getattr(config, name) for name in _SIZES + same},
        layer_norm=config.norm == "layer",
        qk_norm=_QK_NORMS[config.qk_norm],
        activation=_ACTIVATIONS[config.activation],
        learned_positions=no_rope,
        int8=config.weights == "int8",
        eps=config.rms_eps,
        scale=1.0 / math.sqrt(config.head_dim) if config.scale is None else config.scale,
        rope_kinds=len(config.ropes),
        ropes=ctypes.addressof(ropes) if config.ropes else None,
        **{name: address(array) for name, array in arrays.items()},
    )
    return record, [frequencies, ropes, arrays]


def _a_layer(
    name: str, values: tuple[int, ...], config: DecoderConfig, default: int
) -> npt.NDArray[np.int32]:
    if values and len(values) != config.layers:
        raise ArgumentError(f"{name}: {len(values)} given for {config.layers} layers")
    return np.array(values or (default,) * config.layers, np.int32)
