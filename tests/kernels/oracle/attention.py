"""Attention of one query position over the keys that it sees.

Contract: `q[h]`, `k[t][g]`, `v[t][g]` are lists of head_dim binary32 bit patterns; keys have
absolute positions 0, 1, ... Only positions max(0, p - window + 1) .. p are looked at.
"""

from __future__ import annotations

from collections.abc import Sequence

from .functions import exp32
from .ieee import B32
from .operations import soft_cap
from .reductions import STANDARD, Order, Row, blocked_lane_sum, dot

Heads = Sequence[Sequence[int]]


def attend(
    q: Heads,
    k: Sequence[Heads],
    v: Sequence[Heads],
    position: int,
    *,
    scale: float,
    window: int = 0,
    softcap: float = 0.0,
    order: Order = STANDARD,
    heads: Sequence[int] | None = None,
    unpacked: dict[tuple[int, int], Row] | None = None,
) -> list[list[int]]:
    """Outputs of the query heads named by `heads` (all by default).

    `unpacked` keeps rows of keys by (position, key-value head), for callers that attend to the same
    keys again.
    """
    first = max(0, position - window + 1) if window else 0
    visible = range(first, position + 1)
    offset = 0 if order.relative else first
    scale32 = B32.from_float(scale)
    rows = {} if unpacked is None else unpacked

    def key(t: int, g: int) -> Row:
        if (t, g) not in rows:
            rows[t, g] = Row(k[t][g])
        return rows[t, g]

    def one(h: int) -> list[int]:
        g = h * len(k[0]) // len(q)
        row = Row(q[h])
        scores = [B32.mul(dot(row, key(t, g), order), scale32) for t in visible]
        if softcap:
            scores = [soft_cap(s, softcap) for s in scores]
        m = B32.max(scores)
        e = Row([exp32(B32.sub(s, m)) for s in scores])
        denominator = blocked_lane_sum(list(enumerate(e.bits, offset)), order)
        return [
            B32.div(dot(e, Row([v[t][g][i] for t in visible]), order, offset), denominator)
            for i in range(len(v[0][g]))
        ]

    return [one(h) for h in (range(len(q)) if heads is None else heads)]
