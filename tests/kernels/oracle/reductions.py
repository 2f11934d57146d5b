"""The two orders of summation: linear's blocks of fma chains, and the 32 lanes with their tree.

Contract: sequences of binary32 bit patterns in, bit patterns out. An `Order` holds what the
specification fixes; `STANDARD` is version 1, and any other value is a deliberately wrong variant
with which a test shows that its data can tell the orders apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from .ieee import B32

_LEAST = -B32.least  # 149: a product of two binary32 is an integer multiple of 2^-298
_PRECISION = B32.precision


@dataclass(frozen=True)
class Order:
    """How sums are taken.

    Attributes:
        block: Consecutive elements in one chain, and keys in one block of attention.
        fused: Chains use fma; otherwise a rounded product and a rounded addition.
        descending: Elements of a block run from the last to the first.
        from_zero: Totals start at +0; otherwise at the first block's sum.
        lanes: Interleaved partial sums of a row reduction.
        tree: Lane sums are folded in halves; otherwise added one after another.
        lane_blocks: Row reductions too are cut into blocks.
        relative: Attention counts blocks and lanes from the first visible key, not position 0.
        fused_squares: Squares are accumulated by fma instead of being rounded first.
    """

    block: int = 256
    fused: bool = True
    descending: bool = False
    from_zero: bool = True
    lanes: int = 32
    tree: bool = True
    lane_blocks: bool = False
    relative: bool = False
    fused_squares: bool = False


STANDARD = Order()


def chain(pairs: Sequence[tuple[int, int]], order: Order = STANDARD) -> int:
    """One fma chain from +0 over pairs of bit patterns."""
    if order.descending:
        pairs = pairs[::-1]
    c = 0
    for a, b in pairs:
        c = B32.fma(a, b, c) if order.fused else B32.add(B32.mul(a, b), c)
    return c


def chain_of_integers(xs: Sequence[int], ws: Sequence[int]) -> int | None:
    """`chain` on unpacked numbers, the same roundings sooner; None where it overflows.

    The sign of a zero is lost, which no total can notice: it starts at +0, and +0 + -0 = +0.
    """
    c = 0
    for x, w in zip(xs, ws, strict=True):
        exact = x * w + (c << _LEAST)
        cut = exact.bit_length() - _PRECISION
        if cut < _LEAST:
            cut = _LEAST
        c = ((exact + (1 << (cut - 1)) - 1 + ((exact >> cut) & 1)) >> cut) << (cut - _LEAST)
        if c.bit_length() > B32.overflow_bits:
            return None
    return c


def blocked(sums: Iterable[int], order: Order = STANDARD) -> int:
    """Block sums added in ascending order to a total from +0."""
    total: int | None = 0 if order.from_zero else None
    for block_sum in sums:
        total = block_sum if total is None else B32.add(total, block_sum)
    return 0 if total is None else total


class Row:
    """A row of binary32 numbers, unpacked once, for many dot products."""

    def __init__(self, bits: Sequence[int]) -> None:
        self.bits = bits
        self.integers = [B32.unpack(a) for a in bits] if all(map(B32.is_finite, bits)) else None


def dot(x: Row, w: Row, order: Order = STANDARD, offset: int = 0) -> int:
    """The linear rule over indices `offset`, `offset` + 1, ...; a chain a block, ascending."""
    fast = order.fused and not order.descending and order.from_zero

    def sums() -> Iterable[int]:
        start = 0
        while start < len(x.bits):
            end = start + order.block - (offset + start) % order.block
            if fast and x.integers is not None and w.integers is not None:
                result = chain_of_integers(x.integers[start:end], w.integers[start:end])
                if result is not None:
                    yield B32.pack(result)
                    start = end
                    continue
            yield chain(list(zip(x.bits[start:end], w.bits[start:end], strict=True)), order)
            start = end

    return blocked(sums(), order)


def linear(x: Row, w: Row, bias: int | None = None, order: Order = STANDARD) -> int:
    """One output of a linear layer: the dot product, then the bias, once."""
    y = dot(x, w, order)
    return y if bias is None else B32.add(y, bias)


def lane_sum(
    elements: Iterable[tuple[int, int]],
    order: Order = STANDARD,
    accumulate: Callable[[int, int], int] = B32.add,
) -> int:
    """Sum of (index, value) pairs: each goes to lane index mod 32, then the tree folds."""
    lanes = [0] * order.lanes
    for i, value in elements:
        lanes[i % order.lanes] = accumulate(lanes[i % order.lanes], value)
    if not order.tree:
        return blocked(lanes)
    half = order.lanes // 2
    while half:
        for i in range(half):
            lanes[i] = B32.add(lanes[i], lanes[i + half])
        half //= 2
    return lanes[0]


def row_sum(x: Sequence[int], order: Order = STANDARD) -> int:
    """The row reduction: 32 lanes over the whole row and one tree."""
    if order.lane_blocks:
        return blocked_lane_sum(list(enumerate(x)), order)
    return lane_sum(enumerate(x), order)


def sum_of_squares(x: Sequence[int], order: Order = STANDARD) -> int:
    """row_sum of the squares, each rounded before it is added."""
    if order.fused_squares:
        return lane_sum(enumerate(x), order, lambda c, a: B32.fma(a, a, c))
    return row_sum([B32.mul(a, a) for a in x], order)


def blocked_lane_sum(elements: Sequence[tuple[int, int]], order: Order = STANDARD) -> int:
    """The denominator of softmax and attention: the lane rule within blocks of 256 indices."""
    blocks: dict[int, list[tuple[int, int]]] = {}
    for i, value in elements:
        blocks.setdefault(i // order.block, []).append((i, value))
    return blocked(lane_sum(blocks[b], order) for b in sorted(blocks))
