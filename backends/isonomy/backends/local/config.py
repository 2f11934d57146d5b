"""From ``config.json`` to an `Architecture`: what the model computes, or why it is refused.

Every key of ``config.json`` is one of four things: a field of its family's struct (understood), in
the tables of `config_keys` as harmless, or as covered at one value only, or refused by name.
Defaults of absent keys are those of transformers' configuration classes; a test holds them
together. Nothing here reads a file or needs the extra `local`.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import msgspec

from .config_keys import FIXED, FOREIGN, HARMLESS
from .errors import DamagedModel, NotCovered

Size = Annotated[int, msgspec.Meta(ge=1, le=1 << 24)]
Count = Annotated[int, msgspec.Meta(ge=1, le=1 << 12)]
Id = Annotated[int, msgspec.Meta(ge=0, lt=1 << 31)]
Positive = Annotated[float, msgspec.Meta(gt=0)]

MAX_POSITIONS = 1 << 20
"""The longest table of rope angles that is built; callers must limit a longer context."""

ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu_erf",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}
"""Activations of transformers (ACT2FN) that have a canonical form, and its name in the kernels."""


class _Family(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The keys all families share. Defaults: transformers' `LlamaConfig` and its siblings."""

    NAME: ClassVar[str]
    CLASS: ClassVar[str]

    model_type: str
    architectures: tuple[str, ...] | None = None
    vocab_size: Size
    hidden_size: Size
    intermediate_size: Size
    num_hidden_layers: Count
    num_attention_heads: Size
    num_key_value_heads: Size | None = None
    head_dim: Size | None = None
    max_position_embeddings: Annotated[int, msgspec.Meta(ge=1)]
    rms_norm_eps: Positive = 1e-6
    hidden_act: str = "silu"
    tie_word_embeddings: bool = False
    rope_theta: Positive | None = None
    rope_scaling: dict[str, Any] | None = None
    rope_parameters: dict[str, Any] | None = None
    partial_rotary_factor: float | None = None
    bos_token_id: Id | None = None
    eos_token_id: Id | tuple[Id, ...] | None = None
    pad_token_id: int | None = None

    def biases(self) -> tuple[bool, bool, bool]:
        """Whether q, k and v, the output projection, and the MLP have biases."""
        return False, False, False

    def qk_norm(self) -> bool:
        """Whether queries and keys are normalised."""
        return False

    def windows(self, path: object) -> tuple[int, ...]:
        """The sliding window of every layer; 0 means that it sees everything before it."""
        return (0,) * self.num_hidden_layers


class Llama(_Family, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Llama, SmolLM and SmolLM2."""

    NAME: ClassVar[str] = "llama"
    CLASS: ClassVar[str] = "LlamaForCausalLM"

    attention_bias: bool = False
    mlp_bias: bool = False
    bos_token_id: Id | None = 1
    eos_token_id: Id | tuple[Id, ...] | None = 2

    def biases(self) -> tuple[bool, bool, bool]:
        """One switch for attention, one for the MLP."""
        return self.attention_bias, self.attention_bias, self.mlp_bias


class Mistral(_Family, frozen=True, kw_only=True, forbid_unknown_fields=True):
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


class Qwen2(_Family, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Qwen2 and Qwen2.5: biases on q, k, v; windows from `max_window_layers` on, if used."""

    NAME: ClassVar[str] = "qwen2"
    CLASS: ClassVar[str] = "Qwen2ForCausalLM"

    num_key_value_heads: Size | None = 32
    use_sliding_window: bool = False
    sliding_window: Size | None = 4096
    max_window_layers: Annotated[int, msgspec.Meta(ge=0)] = 28
    layer_types: tuple[str, ...] | None = None

    def biases(self) -> tuple[bool, bool, bool]:
        """Always on q, k and v."""
        return True, False, False

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
        if len(kinds) != self.num_hidden_layers:
            raise DamagedModel(
                path,
                f"layer_types names {len(kinds)} layers, num_hidden_layers is "
                f"{self.num_hidden_layers}. Correct one of them.",
            )
        for kind in kinds:
            if kind not in ("full_attention", "sliding_attention"):
                raise NotCovered(
                    path,
                    f"layer_types: {kind}",
                    f"layer_types holds {kind!r}; covered are 'full_attention' and "
                    "'sliding_attention'. Use a checkpoint without such layers.",
                )
        if window is None and "sliding_attention" in kinds:
            raise DamagedModel(
                path,
                "layer_types asks for sliding_attention, but use_sliding_window is false or "
                "sliding_window is null. Correct one of them.",
            )
        return tuple(window or 0 if kind == "sliding_attention" else 0 for kind in kinds)


class Qwen3(Qwen2, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Qwen3 (dense): q and k are normalised, biases only where `attention_bias` says so."""

    NAME: ClassVar[str] = "qwen3"
    CLASS: ClassVar[str] = "Qwen3ForCausalLM"

    head_dim: Size | None = 128
    attention_bias: bool = False

    def biases(self) -> tuple[bool, bool, bool]:
        """On all four projections, or none."""
        return self.attention_bias, self.attention_bias, False

    def qk_norm(self) -> bool:
        """Always."""
        return True


FAMILIES: dict[str, type[_Family]] = {f.NAME: f for f in (Llama, Mistral, Qwen2, Qwen3)}
"""Covered families by `model_type`."""


class Rope(msgspec.Struct, frozen=True, kw_only=True):
    """Rotary positions: base, and the scaling as the kernels take it (`None`: plain)."""

    theta: float
    scaling: dict[str, Any] | None = None


class Architecture(msgspec.Struct, frozen=True, kw_only=True):
    """What a checkpoint computes, whichever way its configuration says it."""

    family: Literal["llama", "mistral", "qwen2", "qwen3"]
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
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    qk_norm: bool
    windows: tuple[int, ...]
    rope: Rope
    eos_ids: tuple[int, ...]

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Return the name and shape of every tensor that the checkpoint must hold."""
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        shapes: dict[str, tuple[int, ...]] = {
            "model.embed_tokens.weight": (self.vocab, self.hidden)
        }
        for i in range(self.layers):
            layer = f"model.layers.{i}"
            linears = [
                ("self_attn.q_proj", q, self.hidden, self.qkv_bias),
                ("self_attn.k_proj", kv, self.hidden, self.qkv_bias),
                ("self_attn.v_proj", kv, self.hidden, self.qkv_bias),
                ("self_attn.o_proj", self.hidden, q, self.o_bias),
                ("mlp.gate_proj", self.intermediate, self.hidden, self.mlp_bias),
                ("mlp.up_proj", self.intermediate, self.hidden, self.mlp_bias),
                ("mlp.down_proj", self.hidden, self.intermediate, self.mlp_bias),
            ]
            for name, rows, columns, bias in linears:
                shapes[f"{layer}.{name}.weight"] = (rows, columns)
                if bias:
                    shapes[f"{layer}.{name}.bias"] = (rows,)
            if self.qk_norm:
                shapes[f"{layer}.self_attn.q_norm.weight"] = (self.head_dim,)
                shapes[f"{layer}.self_attn.k_norm.weight"] = (self.head_dim,)
            shapes[f"{layer}.input_layernorm.weight"] = (self.hidden,)
            shapes[f"{layer}.post_attention_layernorm.weight"] = (self.hidden,)
        shapes["model.norm.weight"] = (self.hidden,)
        if not self.tied:
            shapes["lm_head.weight"] = (self.vocab, self.hidden)
        return shapes

    def operations(self) -> list[str]:
        """Return the sorted names of the canonical operations that one step uses."""
        kind = (self.rope.scaling or {}).get("rope_type", "default")
        used = {
            "add",
            "attention" if not all(self.windows) else "attention_sliding",
            "embedding",
            "linear",
            "mul",
            "rms_norm",
            f"rope_{kind}",
            "sampling",
            "step_digest",
            self.activation,
        }
        if any(self.windows):
            used.add("attention_sliding")
        if self.qkv_bias or self.o_bias or self.mlp_bias:
            used.add("linear_bias")
        if self.qk_norm:
            used.add("qk_norm")
        if self.tied:
            used.add("tied_output")
        return sorted(used)


def architecture(data: bytes, path: object) -> Architecture:
    """Read the bytes of a ``config.json``.

    Args:
        data: The file's bytes.
        path: Where they come from, for errors.

    Raises:
        DamagedModel: it is not JSON, a key is missing, or values contradict each other.
        NotCovered: it asks for something outside the canonical numerics, which the error names.
    """
    raw = _object(data, path)
    kind = raw.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise NotCovered(
            path,
            f"model_type: {kind}",
            f"the architecture {kind!r} is not covered; covered are {', '.join(sorted(FAMILIES))} "
            "(SmolLM is llama). Use a checkpoint of one of these.",
        )
    family = FAMILIES[kind]
    understood = _sift(raw, family, path)
    try:
        config = msgspec.convert(understood, family, strict=True)
    except msgspec.ValidationError as error:
        raise DamagedModel(path, f"{error}. Correct this key.") from None
    if config.architectures is not None and family.CLASS not in config.architectures:
        raise NotCovered(
            path,
            f"architectures: {', '.join(config.architectures)}",
            f"architectures is {list(config.architectures)}, covered is {family.CLASS!r}. Use a "
            "checkpoint of the language model itself.",
        )
    return _resolve(config, path)


def _object(data: bytes, path: object) -> dict[str, Any]:
    try:
        raw = msgspec.json.decode(data, type=dict[str, Any])
    except (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError, RecursionError) as e:
        raise DamagedModel(
            path, f"not a JSON object ({e}). Fetch the file again; it may be cut off."
        ) from None
    return raw


def _sift(raw: dict[str, Any], family: type[_Family], path: object) -> dict[str, Any]:
    """Keep the keys that the family understands; refuse what is neither fixed nor harmless."""
    fields = set(family.__struct_fields__)
    kept: dict[str, Any] = {}
    for key, value in raw.items():
        if key in fields:
            kept[key] = value
        elif key in FIXED:
            allowed, meaning = FIXED[key]
            if not _among(value, allowed):
                raise NotCovered(
                    path,
                    key,
                    f"{key} asks for {meaning}, which is not covered. Use a checkpoint without it.",
                )
        elif key in FOREIGN:
            allowed = FOREIGN[key]
            if allowed and not _among(value, (*allowed, None)):
                raise NotCovered(
                    path,
                    key,
                    f"{key} = {value!r} has no meaning for {family.NAME}. Remove the key from "
                    "config.json, if the weights agree, or use a checkpoint without it.",
                )
        elif key not in HARMLESS:
            raise NotCovered(
                path,
                key,
                f"the key {key!r} is not known for {family.NAME}, so it could change the result. "
                "If it does not, remove it from config.json; otherwise use another checkpoint.",
            )
    return kept


def _among(value: Any, allowed: tuple[Any, ...]) -> bool:
    # 0 == False in Python: types must agree too.
    return any(value == one and type(value) is type(one) for one in allowed)


def _resolve(config: _Family, path: object) -> Architecture:
    kv_heads = config.num_key_value_heads or config.num_attention_heads
    if config.num_attention_heads % kv_heads:
        raise DamagedModel(
            path,
            f"num_attention_heads ({config.num_attention_heads}) is not a multiple of "
            f"num_key_value_heads ({kv_heads}). Correct one of them.",
        )
    if config.head_dim is None and config.hidden_size % config.num_attention_heads:
        raise DamagedModel(
            path,
            f"hidden_size ({config.hidden_size}) is not a multiple of num_attention_heads "
            f"({config.num_attention_heads}), and head_dim is not given. Correct one of them.",
        )
    head_dim = config.head_dim or config.hidden_size // config.num_attention_heads
    if head_dim % 2:
        raise NotCovered(path, "head_dim", f"head_dim ({head_dim}) is odd: rope needs pairs.")
    if config.hidden_act not in ACTIVATIONS:
        raise NotCovered(
            path,
            f"hidden_act: {config.hidden_act}",
            f"hidden_act {config.hidden_act!r} is not covered; covered are "
            f"{', '.join(ACTIVATIONS)}. Use another checkpoint.",
        )
    qkv_bias, o_bias, mlp_bias = config.biases()
    eos = config.eos_token_id
    return Architecture(
        family=config.NAME,  # type: ignore[arg-type]
        vocab=config.vocab_size,
        hidden=config.hidden_size,
        intermediate=config.intermediate_size,
        layers=config.num_hidden_layers,
        heads=config.num_attention_heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        max_positions=config.max_position_embeddings,
        rms_eps=config.rms_norm_eps,
        activation=ACTIVATIONS[config.hidden_act],
        tied=config.tie_word_embeddings,
        qkv_bias=qkv_bias,
        o_bias=o_bias,
        mlp_bias=mlp_bias,
        qk_norm=config.qk_norm(),
        windows=config.windows(path),
        rope=_rope(config, path),
        eos_ids=() if eos is None else eos if isinstance(eos, tuple) else (eos,),
    )


class _Plain(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    rope_type: str = "default"
    rope_theta: Positive | None = None
    partial_rotary_factor: float | None = None


class _Linear(_Plain, frozen=True, kw_only=True, forbid_unknown_fields=True):
    factor: Positive


class _Llama3(_Linear, frozen=True, kw_only=True, forbid_unknown_fields=True):
    low_freq_factor: Positive
    high_freq_factor: Positive
    original_max_position_embeddings: Size | None = None


_ROPES: dict[str, type[_Plain]] = {"default": _Plain, "linear": _Linear, "llama3": _Llama3}


def _rope(config: _Family, path: object) -> Rope:
    """Read rope as transformers 5 (`rope_parameters`) and as earlier versions wrote it."""
    if config.rope_scaling and config.rope_parameters:
        raise NotCovered(
            path,
            "rope_scaling",
            "both rope_scaling and rope_parameters are given, and may contradict each other. "
            "Remove one of them.",
        )
    where = "rope_scaling" if config.rope_scaling else "rope_parameters"
    given = dict(config.rope_scaling or config.rope_parameters or {})
    old = given.pop("type", None)
    if old is not None:
        given.setdefault("rope_type", old)
    kind = given.setdefault("rope_type", "default")
    if not isinstance(kind, str) or kind not in _ROPES:
        total = kind in ("dynamic", "longrope")
        why = ": its angles depend on the total length" if total else ""
        raise NotCovered(
            path,
            f"rope_type: {kind}",
            f"{where} asks for rope of kind {kind!r}, which is not covered{why}; covered are "
            f"{', '.join(_ROPES)}. Use another checkpoint, or remove {where} if you stay within "
            "the length it was first trained for.",
        )
    unknown = sorted(set(given) - set(_ROPES[kind].__struct_fields__))
    if unknown:
        raise NotCovered(
            path,
            f"{where}.{unknown[0]}",
            f"{where} holds {unknown[0]!r}, which is not known for rope of kind {kind!r}. If it "
            "changes nothing, remove it; otherwise use another checkpoint.",
        )
    try:
        rope = msgspec.convert(given, _ROPES[kind], strict=True)
    except msgspec.ValidationError as error:
        raise DamagedModel(path, f"{where}: {error}. Correct this key.") from None
    for factor in (rope.partial_rotary_factor, config.partial_rotary_factor):
        if factor not in (None, 1.0):
            raise NotCovered(
                path,
                "partial_rotary_factor",
                f"partial_rotary_factor is {factor}: rope over a part of a head is not covered "
                "for this family. Use another checkpoint.",
            )
    theta = float(rope.rope_theta or config.rope_theta or 10000.0)
    scaling: dict[str, Any] | None = None
    if isinstance(rope, _Linear):
        scaling = {"rope_type": kind, "factor": float(rope.factor)}
    if isinstance(rope, _Llama3):
        if rope.high_freq_factor <= rope.low_freq_factor:
            raise DamagedModel(
                path,
                f"{where}: high_freq_factor ({rope.high_freq_factor}) must be greater than "
                f"low_freq_factor ({rope.low_freq_factor}). Correct one of them.",
            )
        original = rope.original_max_position_embeddings or config.max_position_embeddings
        scaling = {
            "rope_type": kind,
            "factor": float(rope.factor),
            "low_freq_factor": float(rope.low_freq_factor),
            "high_freq_factor": float(rope.high_freq_factor),
            "original_max_position_embeddings": int(original),
        }
    return Rope(theta=theta, scaling=scaling)
