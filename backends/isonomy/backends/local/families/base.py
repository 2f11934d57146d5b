"""What families share: the kinds of numbers, the keys that most have, and how layers are typed.

A family is a struct whose fields are keys of ``config.json``, with the defaults of transformers'
configuration class, and a method that turns them into an `Architecture`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar

import msgspec

from .. import rope
from ..architecture import Architecture, Rope
from ..errors import DamagedModel, NotCovered
from ..rope import Number, Positive

Size = Annotated[int, msgspec.Meta(ge=1, le=1 << 24)]
Count = Annotated[int, msgspec.Meta(ge=1, le=1 << 12)]
Id = Annotated[int, msgspec.Meta(ge=0, lt=1 << 31)]
Natural = Annotated[int, msgspec.Meta(ge=0)]

ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu_erf",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}
"""Activations of transformers (ACT2FN) that have a canonical form, and its name in the kernels."""


class Family(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The keys that all families have."""

    NAME: ClassVar[str]
    CLASS: ClassVar[str]
    IGNORED: ClassVar[frozenset[str]] = frozenset()
    """Keys that transformers' class does not read, though they mean something elsewhere."""
    ALIASES: ClassVar[Mapping[str, str]] = {}
    """Other names of keys, as transformers' class has them."""

    model_type: str
    architectures: tuple[str, ...] | None = None
    auto_map: dict[str, Any] | None = None
    vocab_size: Size
    tie_word_embeddings: bool = False
    bos_token_id: Id | None = None
    eos_token_id: Id | tuple[Id, ...] | None = None
    pad_token_id: int | None = None

    def architecture(self, path: object, context: int | None) -> Architecture:
        """Return what this configuration computes.

        Args:
            path: for errors.
            context: the longest sequence that will be asked for, if it is less than the model's.

        Raises:
            DamagedModel: values contradict each other.
            NotCovered: something is outside the canonical numerics.
        """
        raise NotImplementedError

    def eos(self) -> tuple[int, ...]:
        """The end tokens."""
        given = self.eos_token_id
        return () if given is None else given if isinstance(given, tuple) else (given,)


class Rotary(Family, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The keys of decoders with rope. Defaults: transformers' `LlamaConfig` and its siblings."""

    THETA: ClassVar[float] = 10000.0
    """rope_theta where it is absent (`default_theta` of transformers' class)."""

    hidden_size: Size
    intermediate_size: Size
    num_hidden_layers: Count
    num_attention_heads: Size
    num_key_value_heads: Size | None = None
    head_dim: Size | None = None
    max_position_embeddings: Annotated[int, msgspec.Meta(ge=1, le=1 << 53)]
    rms_norm_eps: Positive = 1e-6
    hidden_act: str = "silu"
    rope_theta: Number | None = None
    rope_scaling: dict[str, Any] | None = None
    rope_parameters: dict[str, Any] | None = None
    partial_rotary_factor: float | None = None

    def architecture(self, path: object, context: int | None) -> Architecture:
        """The plain graph: pre-norms, a gated MLP, the same rope in every layer."""
        kv_heads = self.num_key_value_heads or self.num_attention_heads
        if self.num_attention_heads % kv_heads:
            raise DamagedModel(
                path,
                f"num_attention_heads ({self.num_attention_heads}) is not a multiple of "
                f"num_key_value_heads ({kv_heads}). Correct one of them.",
            )
        return Architecture(
            family=self.NAME,
            vocab=self.vocab_size,
            hidden=self.hidden_size,
            intermediate=self.intermediate_size,
            layers=self.num_hidden_layers,
            heads=self.num_attention_heads,
            kv_heads=kv_heads,
            head_dim=self.dimensions(path),
            max_positions=self.max_position_embeddings,
            rms_eps=self.rms_norm_eps,
            activation=self.activated(path),
            tied=self.tie_word_embeddings,
            eos_ids=self.eos(),
            windows=self.windows(path),
            ropes=self.ropes(path, context),
        )

    def activated(self, path: object) -> str:
        """The activation, as the kernels name it."""
        return activation("hidden_act", self.hidden_act, path)

    def dimensions(self, path: object) -> int:
        """The dimensions of a head."""
        if self.head_dim is None and self.hidden_size % self.num_attention_heads:
            raise DamagedModel(
                path,
                f"hidden_size ({self.hidden_size}) is not a multiple of num_attention_heads "
                f"({self.num_attention_heads}), and head_dim is not given. Correct one of them.",
            )
        return self.head_dim or self.hidden_size // self.num_attention_heads

    def windows(self, path: object) -> tuple[int, ...]:
        """The sliding window of every layer; 0 means that it sees everything before it."""
        return (0,) * self.num_hidden_layers

    def ropes(self, path: object, context: int | None) -> tuple[Rope, ...]:
        """The frequency tables."""
        where, parameters = rope.given(self.rope_scaling, self.rope_parameters, path)
        return (rope.read(parameters, self.setting(path, context, where)),)

    def setting(self, path: object, context: int | None, where: str) -> rope.Setting:
        """What rope's parameters mean in this configuration."""
        return rope.Setting(
            path=path,
            head_dim=self.dimensions(path),
            positions=self.max_position_embeddings,
            theta=self.rope_theta or self.THETA,
            where=where,
            partial=self.partial_rotary_factor,
            limit=context,
        )


def activation(key: str, name: str, path: object) -> str:
    """Return the kernels' name of an activation.

    Raises:
        NotCovered: it has no canonical form.
    """
    if name not in ACTIVATIONS:
        raise NotCovered(
            path,
            f"{key}: {name}",
            f"{key} {name!r} is not covered; covered are {', '.join(ACTIVATIONS)}. Use another "
            "checkpoint.",
        )
    return ACTIVATIONS[name]


def typed_windows(
    kinds: Sequence[str], window: int | None, layers: int, path: object, source: str
) -> tuple[int, ...]:
    """Return the windows of layers that are `full_attention` or `sliding_attention`.

    Args:
        kinds: `layer_types`, given or derived.
        window: of sliding layers.
        layers: how many there are.
        path: for errors.
        source: the keys that the window comes from, for errors.

    Raises:
        DamagedModel: the number of layers differs, or sliding layers have no window.
        NotCovered: another kind of layer.
    """
    if len(kinds) != layers:
        raise DamagedModel(
            path,
            f"layer_types names {len(kinds)} layers, num_hidden_layers is {layers}. Correct one of "
            "them.",
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
            f"there are layers of sliding_attention, but {source}. Correct one of them.",
        )
    return tuple(window or 0 if kind == "sliding_attention" else 0 for kind in kinds)
