"""A decoder in exact arithmetic: section 7 of NUMERICS.md with its switches, a token at a time.

Contract: weights are binary32 bit patterns under their canonical names; a tensor that is there is
used, so that biases, norms, routers and learned positions need no switch. One `Session` is one
sequence; `feed` takes a token and gives its logits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from .attention import attend
from .ieee import B32, B64, to_float
from .operations import layer_norm, rms_norm, rotate, silu, soft_cap, softmax
from .reductions import Row, linear, row_sum
from .rope import table_row

Matrix = Sequence[Sequence[int]]


@dataclass(frozen=True)
class RopeKind:
    frequencies: Sequence[float]
    attention_factor: float = 1.0


@dataclass(frozen=True)
class Shape:
    """What the oracle must know of a model beside its weights; scalars are binary64."""

    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    eps: float
    ropes: Sequence[RopeKind | None]  # one a layer
    windows: Sequence[int] = ()
    activation: Callable[[int], int] = silu
    norm_offset: bool = False
    qk_projection: bool = False
    experts_per_token: int = 0
    normalise_experts: bool = True
    scale: float | None = None
    attention_softcap: float = 0.0
    embedding_multiplier: float = 1.0
    residual_multiplier: float = 1.0
    logit_divisor: float = 1.0
    logit_softcap: float = 0.0


@dataclass
class _Cache:
    k: list[list[list[int]]] = field(default_factory=list)
    v: list[list[list[int]]] = field(default_factory=list)
    unpacked: dict[tuple[int, int], Row] = field(default_factory=dict)


class Session:
    """One sequence."""

    def __init__(
        self, shape: Shape, matrices: Mapping[str, Matrix], vectors: Mapping[str, Sequence[int]]
    ) -> None:
        self.shape = shape
        self.embedding = matrices["model.embed_tokens.weight"]
        self.positions = matrices.get("model.embed_positions.weight")
        self.rows = {name: [Row(r) for r in m] for name, m in matrices.items()}
        self.vectors = vectors
        self.caches = [_Cache() for _ in range(shape.layers)]
        one_over_root = B64.div(B64.one, B64.sqrt(B64.from_int(shape.head_dim)))
        self.scale = to_float(one_over_root) if shape.scale is None else shape.scale

    def _linear(self, x: Sequence[int], name: str) -> list[int]:
        row = Row(x)
        bias = self.vectors.get(f"{name}.bias")
        rows = self.rows[f"{name}.weight"]
        return [linear(row, w, None if bias is None else bias[n]) for n, w in enumerate(rows)]

    def _norm(self, x: Sequence[int], name: str) -> list[int]:
        """A norm that is there; a name without weights is no norm."""
        weight, bias = (self.vectors.get(f"{name}.{part}") for part in ("weight", "bias"))
        if weight is None:
            return list(x)
        if bias is not None:
            return layer_norm(x, weight, bias, self.shape.eps)
        return rms_norm(x, weight, self.shape.eps, unit_offset=self.shape.norm_offset)

    def _heads(self, x: Sequence[int], norm: str) -> list[list[int]]:
        d = self.shape.head_dim
        if self.shape.qk_projection:
            x = self._norm(x, norm)
        heads = [list(x[i : i + d]) for i in range(0, len(x), d)]
        return heads if self.shape.qk_projection else [self._norm(h, norm) for h in heads]

    def feed(self, token: int, *, logits: bool = True) -> list[int]:
        """Logits (bits) after `token`; none if not asked for, which saves the last layer's work."""
        shape = self.shape
        position = len(self.caches[0].k)
        h = list(self.embedding[token])
        if shape.embedding_multiplier != 1.0:
            h = [B32.mul(a, B32.from_float(shape.embedding_multiplier)) for a in h]
        if self.positions is not None:
            h = _add(h, self.positions[position])
        for i, cache in enumerate(self.caches):
            at = f"model.layers.{i}"
            a = self._norm(h, f"{at}.input_layernorm")
            q = self._heads(self._linear(a, f"{at}.self_attn.q_proj"), f"{at}.self_attn.q_norm")
            k = self._heads(self._linear(a, f"{at}.self_attn.k_proj"), f"{at}.self_attn.k_norm")
            v = self._heads(self._linear(a, f"{at}.self_attn.v_proj"), "")
            if rope := shape.ropes[i]:
                cos, sin = table_row(rope.frequencies, position, rope.attention_factor)
                q, k = ([rotate(x, cos, sin) for x in heads] for heads in (q, k))
            cache.k.append(k)
            cache.v.append(v)
            if cache is self.caches[-1] and not logits:
                return []
            mixed = attend(
                q,
                cache.k,
                cache.v,
                position,
                scale=self.scale,
                window=shape.windows[i] if shape.windows else 0,
                softcap=shape.attention_softcap,
                unpacked=cache.unpacked,
            )
            flat = [a for head in mixed for a in head]
            branch = self._linear(flat, f"{at}.self_attn.o_proj")
            h = self._residual(h, branch, f"{at}.attention_output_norm")
            b = self._norm(h, f"{at}.post_attention_layernorm")
            routed = f"{at}.mlp.router.weight" in self.rows
            branch = self._experts(b, f"{at}.mlp") if routed else self._mlp(b, f"{at}.mlp")
            h = self._residual(h, branch, f"{at}.mlp_output_norm")
        output = "lm_head" if "lm_head.weight" in self.rows else "model.embed_tokens"
        z = self._linear(self._norm(h, "model.norm"), output)
        if output != "lm_head" and (bias := self.vectors.get("lm_head.bias")) is not None:
            z = _add(z, bias)
        if shape.logit_divisor != 1.0:
            z = [B32.div(a, B32.from_float(shape.logit_divisor)) for a in z]
        if shape.logit_softcap:
            z = [soft_cap(a, shape.logit_softcap) for a in z]
        return z

    def _residual(self, h: Sequence[int], branch: Sequence[int], norm: str) -> list[int]:
        branch = self._norm(branch, norm)
        if self.shape.residual_multiplier != 1.0:
            multiplier = B32.from_float(self.shape.residual_multiplier)
            branch = [B32.mul(a, multiplier) for a in branch]
        return _add(h, branch)

    def _mlp(self, x: Sequence[int], at: str) -> list[int]:
        act = self.shape.activation
        up = self._linear(x, f"{at}.up_proj")
        if f"{at}.gate_proj.weight" in self.rows:
            gate = self._linear(x, f"{at}.gate_proj")
            inner = [B32.mul(act(g), u) for g, u in zip(gate, up, strict=True)]
        else:
            inner = [act(u) for u in up]
        return self._linear(inner, f"{at}.down_proj")

    def _experts(self, x: Sequence[int], at: str) -> list[int]:
        p = softmax(self._linear(x, f"{at}.router"))
        ranked = sorted(range(len(p)), key=lambda e: (-B32.key(p[e]), e))
        chosen = ranked[: self.shape.experts_per_token]
        share = {e: p[e] for e in chosen}
        if self.shape.normalise_experts:
            total = row_sum([p[e] for e in chosen])
            share = {e: B32.div(p[e], total) for e in chosen}
        y = [0] * len(x)
        for e in sorted(chosen):
            out = self._mlp(x, f"{at}.experts.{e}")
            y = _add(y, [B32.mul(a, share[e]) for a in out])
        return y


def _add(a: Sequence[int], b: Sequence[int]) -> list[int]:
    return [B32.add(x, y) for x, y in zip(a, b, strict=True)]
