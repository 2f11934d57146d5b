"""Which tensor of a checkpoint is which of the model: names, splits, transposes.

The kernels know one set of names (the canonical ones, `shapes`), Llama's as far as Llama has them.
A family has names of its own, and may hold several linears in one tensor, or a linear transposed.
A `Layout` says for every canonical tensor where it comes from, and which tensors the files must
hold, so that missing and unknown ones are named as the checkpoint names them.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Literal

import msgspec

from .architecture import Architecture

Shape = tuple[int, ...]

EMBEDDING = "model.embed_tokens.weight"
OUTPUT = "lm_head.weight"


class Source(msgspec.Struct, frozen=True):
    """Where a canonical tensor lies in a stored one.

    Attributes:
        tensor: name of the stored one.
        entry: index on its first axis, where it is a stack of tensors.
        transposed: its last two axes are inputs and outputs, not outputs and inputs.
        rows: first and last + 1 of its outputs; `None` takes all.
    """

    tensor: str
    entry: int | None = None
    transposed: bool = False
    rows: tuple[int, int] | None = None


class Layout(msgspec.Struct, frozen=True):
    """How a checkpoint holds a model.

    Attributes:
        sources: of every canonical tensor.
        stored: shape of every tensor that the files must hold.
        copy: names of an output layer and of the embedding that it must equal, where they are tied.
        ignored: ends of names of tensors that are no weights.
    """

    sources: dict[str, Source]
    stored: dict[str, Shape]
    copy: tuple[str, str] | None = None
    ignored: tuple[str, ...] = ()


class _Naming(msgspec.Struct, frozen=True, kw_only=True):
    """A family's names.

    Attributes:
        names: canonical names of modules, and the family's; `{i}` is a layer, `{e}` an expert.
        fused: the family's name of linears whose outputs lie one after the other in one tensor.
        stacked: the same, of all experts in one tensor, experts first.
        transposed: linears are stored with their inputs first.
        ignored: as in `Layout`.
    """

    names: Mapping[str, str] = {}
    fused: Mapping[str, tuple[str, ...]] = {}
    stacked: Mapping[str, tuple[str, ...]] = {}
    transposed: bool = False
    ignored: tuple[str, ...] = (".rotary_emb.inv_freq",)


_LAYER = "model.layers.{i}."
_AROUND = {  # norms before and after each block, under the names of Gemma and OLMo
    _LAYER + "attention_output_norm": _LAYER + "post_attention_layernorm",
    _LAYER + "mlp_output_norm": _LAYER + "post_feedforward_layernorm",
    _LAYER + "post_attention_layernorm": _LAYER + "pre_feedforward_layernorm",
}
_QKV = tuple(f"{_LAYER}self_attn.{part}_proj" for part in "qkv")
_EXPERT = _LAYER + "mlp.experts.{e}."
_STACKED = {  # as transformers 5 holds experts in memory
    _LAYER + "mlp.experts.gate_up_proj": (_EXPERT + "gate_proj", _EXPERT + "up_proj"),
    _LAYER + "mlp.experts.down_proj": (_EXPERT + "down_proj",),
}
_ROUTER = {_LAYER + "mlp.router": _LAYER + "mlp.gate"}
_MIXTRAL = _LAYER + "block_sparse_moe."


def _gpt2(prefix: str) -> _Naming:
    layer = prefix + "h.{i}."
    return _Naming(
        names={
            "model.embed_tokens": prefix + "wte",
            "model.embed_positions": prefix + "wpe",
            "model.norm": prefix + "ln_f",
            _LAYER + "input_layernorm": layer + "ln_1",
            _LAYER + "post_attention_layernorm": layer + "ln_2",
            _LAYER + "self_attn.o_proj": layer + "attn.c_proj",
            _LAYER + "mlp.up_proj": layer + "mlp.c_fc",
            _LAYER + "mlp.down_proj": layer + "mlp.c_proj",
        },
        fused={layer + "attn.c_attn": _QKV},
        transposed=True,
        ignored=(".attn.bias", ".attn.masked_bias"),  # masks, which old versions stored
    )


_PLAIN = _Naming()
_NAMINGS: dict[str, tuple[_Naming, ...]] = {
    "gemma2": (_Naming(names=_AROUND),),
    "gemma3_text": (_Naming(names=_AROUND),),
    "gpt2": (_gpt2("transformer."), _gpt2("")),
    "mixtral": (
        _Naming(
            names={
                _LAYER + "mlp.router": _MIXTRAL + "gate",
                _EXPERT + "gate_proj": _MIXTRAL + "experts.{e}.w1",
                _EXPERT + "down_proj": _MIXTRAL + "experts.{e}.w2",
                _EXPERT + "up_proj": _MIXTRAL + "experts.{e}.w3",
            }
        ),
        _Naming(names=_ROUTER, stacked=_STACKED),
    ),
    "olmo2": (_Naming(names=_AROUND),),
    "phi3": (
        _Naming(
            fused={
                _LAYER + "self_attn.qkv_proj": _QKV,
                _LAYER + "mlp.gate_up_proj": (_LAYER + "mlp.gate_proj", _LAYER + "mlp.up_proj"),
            }
        ),
    ),
    "qwen3_moe": (_Naming(names=_ROUTER), _Naming(names=_ROUTER, stacked=_STACKED)),
}
"""The ways in which a family's tensors may be named, the usual one first."""


def arrange(model: Architecture, names: Collection[str] = ()) -> Layout:
    """Return the layout of a checkpoint.

    Args:
        model: what it computes.
        names: of the tensors that it holds; they decide between several ways to name them.
    """
    layouts = [_layout(model, naming) for naming in _NAMINGS.get(model.family, (_PLAIN,))]
    return max(layouts, key=lambda layout: len(layout.stored.keys() & set(names)))


def shapes(model: Architecture) -> dict[str, Shape]:
    """Return the canonical name and shape of every tensor of a model."""
    return dict(_canonical(model))


def _canonical(model: Architecture) -> Iterator[tuple[str, Shape]]:
    hidden = model.hidden
    yield EMBEDDING, (model.vocab, hidden)
    if model.positions == "learned":
        yield "model.embed_positions.weight", (model.max_positions, hidden)
    for i in range(model.layers):
        for name, shape in _layer(model, model.sparse(i)):
            yield f"model.layers.{i}.{name}", shape
    yield from _norm(model, "model.norm")
    if not model.tied:
        yield OUTPUT, (model.vocab, hidden)


def _layer(model: Architecture, sparse: bool) -> Iterator[tuple[str, Shape]]:
    hidden = model.hidden
    q, kv = model.heads * model.head_dim, model.kv_heads * model.head_dim
    if model.pre_norm:
        yield from _norm(model, "input_layernorm")
        yield from _norm(model, "post_attention_layernorm")
    if model.post_norm:
        yield from _norm(model, "attention_output_norm")
        yield from _norm(model, "mlp_output_norm")
    for part, rows in (("q", q), ("k", kv), ("v", kv)):
        yield from _linear(f"self_attn.{part}_proj", rows, hidden, model.qkv_bias)
    yield from _linear("self_attn.o_proj", hidden, q, model.o_bias)
    if model.qk_norm != "none":
        whole = model.qk_norm == "projection"
        yield "self_attn.q_norm.weight", (q if whole else model.head_dim,)
        yield "self_attn.k_norm.weight", (kv if whole else model.head_dim,)
    if sparse:
        yield "mlp.router.weight", (model.experts, hidden)
        for e in range(model.experts):
            yield from _mlp(model, f"mlp.experts.{e}", model.expert_intermediate)
    else:
        yield from _mlp(model, "mlp", model.intermediate)


def _norm(model: Architecture, name: str) -> Iterator[tuple[str, Shape]]:
    yield f"{name}.weight", (model.hidden,)
    if model.norm == "layer":
        yield f"{name}.bias", (model.hidden,)


def _linear(name: str, rows: int, columns: int, bias: bool) -> Iterator[tuple[str, Shape]]:
    yield f"{name}.weight", (rows, columns)
    if bias:
        yield f"{name}.bias", (rows,)


def _mlp(model: Architecture, name: str, inner: int) -> Iterator[tuple[str, Shape]]:
    if model.gated:
        yield from _linear(f"{name}.gate_proj", inner, model.hidden, model.mlp_bias)
    yield from _linear(f"{name}.up_proj", inner, model.hidden, model.mlp_bias)
    yield from _linear(f"{name}.down_proj", model.hidden, inner, model.mlp_bias)


def _layout(model: Architecture, naming: _Naming) -> Layout:
    canonical = shapes(model)
    sources: dict[str, Source] = {}
    stored: dict[str, Shape] = {}
    for name, shape in canonical.items():
        source, whole = _source(name, shape, canonical, naming, model)
        sources[name] = source
        stored[source.tensor] = whole
    copy = (_renamed(OUTPUT, naming), sources[EMBEDDING].tensor) if model.tied else None
    return Layout(sources, stored, copy, naming.ignored)


def _source(
    name: str, shape: Shape, canonical: Mapping[str, Shape], naming: _Naming, model: Architecture
) -> tuple[Source, Shape]:
    """Where a canonical tensor lies, and the shape of the stored tensor."""
    module, numbers, kind = _split(name)
    linear = len(shape) == 2 and module not in ("model.embed_tokens", "model.embed_positions")
    transposed = naming.transposed and linear

    def turned(whole: Shape) -> Shape:
        return (*whole[:-2], whole[-1], whole[-2]) if transposed else whole

    for groups, stacked in ((naming.fused, False), (naming.stacked, True)):
        for fused, parts in groups.items():
            if module not in parts:
                continue
            sizes = [canonical[_filled(part, numbers, kind)][0] for part in parts]
            start = sum(sizes[: parts.index(module)])
            rows = None if len(parts) == 1 else (start, start + shape[0])
            whole = (sum(sizes), *shape[1:])
            if stacked:  # experts have no biases, and the stack's name has no kind
                tensor = _filled(fused, numbers, "")
                return (
                    Source(tensor, int(numbers["e"]), transposed, rows),
                    (model.experts, *turned(whole)),
                )
            return Source(_filled(fused, numbers, kind), None, transposed, rows), turned(whole)
    return Source(_renamed(name, naming), None, transposed), turned(shape)


def _renamed(name: str, naming: _Naming) -> str:
    module, numbers, kind = _split(name)
    return _filled(naming.names.get(module, module), numbers, kind)


_NUMBERS = re.compile(r"(?<=layers\.)(?P<i>\d+)(?=\.)|(?<=experts\.)(?P<e>\d+)(?=\.)")


def _split(name: str) -> tuple[str, dict[str, str], Literal["weight", "bias"] | str]:
    """A canonical name as module with `{i}` and `{e}`, the numbers there, and weight or bias."""
    module, _, kind = name.rpartition(".")
    numbers: dict[str, str] = {}
    for match in _NUMBERS.finditer(module + "."):
        numbers |= {key: value for key, value in match.groupdict().items() if value is not None}
    pattern = _NUMBERS.sub(lambda m: "{i}" if m["i"] is not None else "{e}", module + ".")
    return pattern[:-1], numbers, kind


def _filled(module: str, numbers: Mapping[str, str], kind: str) -> str:
    for key, value in numbers.items():
        module = module.replace("{" + key + "}", value)
    return f"{module}.{kind}" if kind else module
