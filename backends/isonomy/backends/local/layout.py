"""Which tensor of a checkpoint is which of the model: names, splits, transposes.

The kernels know one set of names (the canonical ones, `shapes`), Llama's as far as Llama has them.
A family has names of its own, and may hold several linears in one tensor, or a linear transposed.
A `Layout` says for every canonical tensor where it comes from, and which tensors the files must
hold, so that missing and unknown ones are named as the checkpoint names them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

import msgspec

from .architecture import Architecture

Shape = tuple[int, ...]

EMBEDDING = "model.embed_tokens.weight"
OUTPUT = "lm_head.weight"
_TABLES = ("model.embed_tokens", "model.embed_positions")  # looked up by row: no linears


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
        int8: names of stored tensors that are int8, each beside its scales (`quantised`).
    """

    sources: dict[str, Source]
    stored: dict[str, Shape]
    copy: tuple[str, str] | None = None
    ignored: tuple[str, ...] = ()
    int8: frozenset[str] = frozenset()


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


class _Place(msgspec.Struct, frozen=True):
    """A canonical tensor: its module, with `{i}` and `{e}`, and what these are; weight or bias."""

    module: str
    kind: str
    shape: Shape
    numbers: tuple[tuple[str, int], ...] = ()

    def name(self, module: str | None = None, kind: str | None = None) -> str:
        """The tensor's name, or that of another module with the same numbers."""
        full = self.module if module is None else module
        for key, value in self.numbers:
            full = full.replace(key, str(value))
        kind = self.kind if kind is None else kind
        return f"{full}.{kind}" if kind else full


def arrange(model: Architecture, names: Collection[str] = ()) -> Layout:
    """Return the layout of a checkpoint.

    Args:
        model: what it computes.
        names: of the tensors that it holds; they decide between several ways to name them.
    """
    present = set(names)
    layouts = []
    for naming in _NAMINGS.get(model.family, (_PLAIN,)):
        layout = _layout(model, naming)
        if not present or layout.stored.keys() <= present:
            return layout
        layouts.append(layout)
    # Of an incomplete checkpoint the names that it seems to follow.
    return max(layouts, key=lambda layout: len(layout.stored.keys() & present))


def shapes(model: Architecture) -> dict[str, Shape]:
    """Return the canonical name and shape of every tensor of a model."""
    return {place.name(): place.shape for place in _places(model)}


def _places(model: Architecture) -> Iterator[_Place]:
    hidden = model.hidden
    yield _Place("model.embed_tokens", "weight", (model.vocab, hidden))
    if model.positions == "learned":
        yield _Place("model.embed_positions", "weight", (model.max_positions, hidden))
    for i in range(model.layers):
        for place in _layer(model, model.sparse(i)):
            numbers = (("{i}", i), *place.numbers)
            yield _Place(_LAYER + place.module, place.kind, place.shape, numbers)
    yield from _norm(model, "model.norm")
    if not model.tied:
        yield _Place("lm_head", "weight", (model.vocab, hidden))


def _layer(model: Architecture, sparse: bool) -> Iterator[_Place]:
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
        yield _Place("self_attn.q_norm", "weight", (q if whole else model.head_dim,))
        yield _Place("self_attn.k_norm", "weight", (kv if whole else model.head_dim,))
    if not sparse:
        yield from _mlp(model, "mlp", model.intermediate)
        return
    yield _Place("mlp.router", "weight", (model.experts, hidden))
    for e in range(model.experts):
        for place in _mlp(model, "mlp.experts.{e}", model.expert_intermediate):
            yield _Place(place.module, place.kind, place.shape, (("{e}", e),))


def _norm(model: Architecture, name: str) -> Iterator[_Place]:
    yield _Place(name, "weight", (model.hidden,))
    if model.norm == "layer":
        yield _Place(name, "bias", (model.hidden,))


def _linear(name: str, rows: int, columns: int, bias: bool) -> Iterator[_Place]:
    yield _Place(name, "weight", (rows, columns))
    if bias:
        yield _Place(name, "bias", (rows,))


def _mlp(model: Architecture, name: str, inner: int) -> Iterator[_Place]:
    if model.gated:
        yield from _linear(f"{name}.gate_proj", inner, model.hidden, model.mlp_bias)
    yield from _linear(f"{name}.up_proj", inner, model.hidden, model.mlp_bias)
    yield from _linear(f"{name}.down_proj", model.hidden, inner, model.mlp_bias)


def _layout(model: Architecture, naming: _Naming) -> Layout:
    places = list(_places(model))
    rows = {(place.module, place.kind): place.shape[0] for place in places}
    sources: dict[str, Source] = {}
    stored: dict[str, Shape] = {}
    for place in places:
        source, whole = _source(place, rows, naming, model.experts)
        sources[place.name()] = source
        stored[source.tensor] = whole
    embedding = sources[EMBEDDING].tensor
    return Layout(sources, stored, (OUTPUT, embedding) if model.tied else None, naming.ignored)


def _source(
    place: _Place, rows: Mapping[tuple[str, str], int], naming: _Naming, experts: int
) -> tuple[Source, Shape]:
    """Where a canonical tensor lies, and the shape of the stored tensor.

    Args:
        place: the tensor.
        rows: outputs of every kind of tensor.
        naming: the family's names.
        experts: how many there are.
    """
    transposed = naming.transposed and len(place.shape) == 2 and place.module not in _TABLES

    def turned(whole: Shape) -> Shape:
        return whole[::-1] if transposed else whole

    for groups in (naming.fused, naming.stacked):
        for fused, parts in groups.items():
            if place.module not in parts:
                continue
            sizes = [rows[part, place.kind] for part in parts]
            start = sum(sizes[: parts.index(place.module)])
            part = None if len(parts) == 1 else (start, start + place.shape[0])
            whole = turned((sum(sizes), *place.shape[1:]))
            if groups is naming.fused:
                return Source(place.name(fused), None, transposed, part), whole
            # A stack is a parameter of its own, not the weight of a module.
            entry = dict(place.numbers)["{e}"]
            return Source(place.name(fused, ""), entry, transposed, part), (experts, *whole)
    name = place.name(naming.names.get(place.module, place.module))
    return Source(name, None, transposed), turned(place.shape)
