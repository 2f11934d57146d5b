"""A decoder of the Llama family in exact arithmetic: section 7 of NUMERICS.md, one token at a time.

Contract: weights are binary32 bit patterns under the names of a Hugging Face checkpoint. One
`Session` is one sequence; `feed` takes a token and gives its logits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from .attention import attend
from .ieee import B32, B64, to_float
from .operations import rms_norm, rotate, silu
from .reductions import Row, linear
from .rope import table_row

Matrix = Sequence[Sequence[int]]


@dataclass(frozen=True)
class Shape:
    """What the oracle must know of a model beside its weights."""

    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    eps: float
    frequencies: Sequence[float]
    windows: Sequence[int] = ()
    attention_factor: float = 1.0
    activation: Callable[[int], int] = silu


@dataclass
class _Cache:
    k: list[list[list[int]]] = field(default_factory=list)
    v: list[list[list[int]]] = field(default_factory=list)
    unpacked: dict[tuple[int, int], Row] = field(default_factory=dict)


class Session:
    """One sequence; weights are looked up by checkpoint name, optional ones used if they exist."""

    def __init__(
        self, shape: Shape, matrices: Mapping[str, Matrix], vectors: Mapping[str, Sequence[int]]
    ) -> None:
        self.shape = shape
        self.embedding = matrices["model.embed_tokens.weight"]
        self.rows = {name: [Row(r) for r in m] for name, m in matrices.items()}
        self.vectors = vectors
        self.caches = [_Cache() for _ in range(shape.layers)]
        one_over_root = B64.div(B64.one, B64.sqrt(B64.from_int(shape.head_dim)))
        self.scale = to_float(one_over_root)

    def _linear(self, x: Sequence[int], name: str) -> list[int]:
        row = Row(x)
        bias = self.vectors.get(f"{name}.bias")
        rows = self.rows[f"{name}.weight"]
        return [linear(row, w, None if bias is None else bias[n]) for n, w in enumerate(rows)]

    def _norm(self, x: Sequence[int], name: str) -> list[int]:
        return rms_norm(x, self.vectors[f"{name}.weight"], self.shape.eps)

    def _heads(self, x: Sequence[int], norm: str) -> list[list[int]]:
        d = self.shape.head_dim
        heads = [list(x[i : i + d]) for i in range(0, len(x), d)]
        if f"{norm}.weight" in self.vectors:
            heads = [self._norm(h, norm) for h in heads]
        return heads

    def feed(self, token: int, *, logits: bool = True) -> list[int]:
        """Logits (bits) after `token`; none if not asked for, which saves the last layer's work."""
        shape = self.shape
        position = len(self.caches[0].k)
        cos, sin = table_row(shape.frequencies, position, shape.attention_factor)
        h = list(self.embedding[token])
        for i, cache in enumerate(self.caches):
            at = f"model.layers.{i}"
            a = self._norm(h, f"{at}.input_layernorm")
            q = self._heads(self._linear(a, f"{at}.self_attn.q_proj"), f"{at}.self_attn.q_norm")
            k = self._heads(self._linear(a, f"{at}.self_attn.k_proj"), f"{at}.self_attn.k_norm")
            v = self._heads(self._linear(a, f"{at}.self_attn.v_proj"), "")
            cache.k.append([rotate(x, cos, sin) for x in k])
            cache.v.append(v)
            if cache is self.caches[-1] and not logits:
                return []
            mixed = attend(
                [rotate(x, cos, sin) for x in q],
                cache.k,
                cache.v,
                position,
                scale=self.scale,
                window=shape.windows[i] if shape.windows else 0,
                unpacked=cache.unpacked,
            )
            flat = [a for head in mixed for a in head]
            h = _add(h, self._linear(flat, f"{at}.self_attn.o_proj"))
            b = self._norm(h, f"{at}.post_attention_layernorm")
            gate = self._linear(b, f"{at}.mlp.gate_proj")
            up = self._linear(b, f"{at}.mlp.up_proj")
            inner = [B32.mul(shape.activation(g), u) for g, u in zip(gate, up, strict=True)]
            h = _add(h, self._linear(inner, f"{at}.mlp.down_proj"))
        output = "lm_head" if "lm_head.weight" in self.rows else "model.embed_tokens"
        return self._linear(self._norm(h, "model.norm"), output)


def _add(a: Sequence[int], b: Sequence[int]) -> list[int]:
    return [B32.add(x, y) for x, y in zip(a, b, strict=True)]
