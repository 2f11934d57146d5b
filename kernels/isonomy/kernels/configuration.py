"""What a decoder is made of: its shape and switches, and the tensors that it needs.

One graph with switches serves all families (kernels/NUMERICS.md, section 7).
"""

from __future__ import annotations

import math
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from isonomy.kernels.arrays import address
from isonomy.kernels.errors import ArgumentError, UnsupportedError
from isonomy.kernels.library import Config

_ACTIVATIONS = {"silu": 0, "gelu_erf": 1, "gelu_tanh": 2}


class DecoderConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The shape and switches of a decoder.

    Attributes:
        vocab: rows of the embedding table.
        hidden: width of the residual stream.
        layers: how many.
        heads: query heads.
        kv_heads: key-value heads; divides `heads`.
        head_dim: dimensions of a head.
        intermediate: width of the gated MLP.
        rms_eps: of every norm.
        frequencies: from `rope_frequencies`; twice as many dimensions are rotated.
        attention_factor: multiplies the rope tables.
        max_positions: largest capacity of a session.
        qkv_bias: q, k and v projections have biases.
        o_bias: the output projection has one.
        mlp_bias: gate, up and down have them.
        qk_norm: RMS norm over each head of q and k, before rope.
        windows: one a layer, the sliding window (0: none); empty: none anywhere.
        tied: the output layer is the embedding table.
        activation: "silu", "gelu_erf" or "gelu_tanh".
        scale: of attention scores; None is 1/sqrt(head_dim).
    """

    vocab: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    rms_eps: float
    frequencies: tuple[float, ...]
    max_positions: int
    attention_factor: float = 1.0
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    windows: tuple[int, ...] = ()
    tied: bool = False
    activation: str = "silu"
    scale: float | None = None


OUTSIDE_LAYERS = {
    "model.embed_tokens.weight": 0,
    "model.norm.weight": 1,
    "lm_head.weight": 2,
}
IN_LAYERS = {
    "input_layernorm.weight": 3,
    "post_attention_layernorm.weight": 4,
    "self_attn.q_proj.weight": 5,
    "self_attn.k_proj.weight": 6,
    "self_attn.v_proj.weight": 7,
    "self_attn.o_proj.weight": 8,
    "mlp.gate_proj.weight": 9,
    "mlp.up_proj.weight": 10,
    "mlp.down_proj.weight": 11,
    "self_attn.q_proj.bias": 12,
    "self_attn.k_proj.bias": 13,
    "self_attn.v_proj.bias": 14,
    "self_attn.o_proj.bias": 15,
    "mlp.gate_proj.bias": 16,
    "mlp.up_proj.bias": 17,
    "mlp.down_proj.bias": 18,
    "self_attn.q_norm.weight": 19,
    "self_attn.k_norm.weight": 20,
}
# Tensors that are packed together have one storage; where a checkpoint mixes, they become float32.
TOGETHER = (
    ("self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight"),
    ("mlp.gate_proj.weight", "mlp.up_proj.weight"),
)


def expected_shapes(config: DecoderConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor that a decoder of this configuration needs, by its name in a checkpoint."""
    hidden, inner, dim = config.hidden, config.intermediate, config.head_dim
    q, kv = config.heads * dim, config.kv_heads * dim
    layer: dict[str, tuple[int, ...]] = {
        "input_layernorm.weight": (hidden,),
        "post_attention_layernorm.weight": (hidden,),
        "self_attn.q_proj.weight": (q, hidden),
        "self_attn.k_proj.weight": (kv, hidden),
        "self_attn.v_proj.weight": (kv, hidden),
        "self_attn.o_proj.weight": (hidden, q),
        "mlp.gate_proj.weight": (inner, hidden),
        "mlp.up_proj.weight": (inner, hidden),
        "mlp.down_proj.weight": (hidden, inner),
    }
    if config.qkv_bias:
        for name, n in (("q", q), ("k", kv), ("v", kv)):
            layer[f"self_attn.{name}_proj.bias"] = (n,)
    if config.o_bias:
        layer["self_attn.o_proj.bias"] = (hidden,)
    if config.mlp_bias:
        for name, n in (("gate", inner), ("up", inner), ("down", hidden)):
            layer[f"mlp.{name}_proj.bias"] = (n,)
    if config.qk_norm:
        layer["self_attn.q_norm.weight"] = layer["self_attn.k_norm.weight"] = (dim,)
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config.vocab, hidden)}
    for i in range(config.layers):
        shapes |= {f"model.layers.{i}.{name}": shape for name, shape in layer.items()}
    shapes["model.norm.weight"] = (hidden,)
    if not config.tied:
        shapes["lm_head.weight"] = (config.vocab, hidden)
    return shapes


def record_of(config: DecoderConfig) -> tuple[Config, tuple[npt.NDArray[Any], ...]]:
    """The C record, and the arrays it points into."""
    if config.activation not in _ACTIVATIONS:
        raise UnsupportedError("activation", config.activation, tuple(_ACTIVATIONS))
    windows = config.windows or (0,) * config.layers
    if len(windows) != config.layers:
        raise ArgumentError(f"windows: {len(windows)} given for {config.layers} layers")
    sizes = {
        "vocab": config.vocab,
        "hidden": config.hidden,
        "layers": config.layers,
        "heads": config.heads,
        "kv_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "intermediate": config.intermediate,
        "max_positions": config.max_positions,
    }
    for name, value in sizes.items():
        if not 0 < value < 2**31:
            raise ArgumentError(f"{name} must be positive, not {value}")
    frequencies = np.array(config.frequencies, np.float64)
    # A window beyond int32 cannot be left by any position.
    windows_array = np.array([w if w < 2**31 else 0 for w in windows], np.int32)
    scale = config.scale if config.scale is not None else 1.0 / math.sqrt(config.head_dim)
    record = Config(
        **sizes,
        rotary_dim=2 * len(config.frequencies),
        qkv_bias=config.qkv_bias,
        o_bias=config.o_bias,
        mlp_bias=config.mlp_bias,
        qk_norm=config.qk_norm,
        tied=config.tied,
        activation=_ACTIVATIONS[config.activation],
        rms_eps=config.rms_eps,
        scale=scale,
        attention_factor=config.attention_factor,
        frequencies=address(frequencies),
        windows=address(windows_array),
    )
    return record, (frequencies, windows_array)
