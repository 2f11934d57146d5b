"""What torch may compute itself: the complete lists, by name.

An operation of torch stands here only where its result is the same whoever computes it: because it
moves values and computes nothing, because its operands are integers, or because it rounds once, as
IEEE-754 says. Everything that has an order of its own (sums, products of matrices) or an
approximation (functions) is computed by the kernels; `dispatch` holds that table.
"""

from __future__ import annotations

MOVES = frozenset(
    {
        "aten._unsafe_view.default",
        "aten.alias.default",
        "aten.cat.default",
        "aten.expand.default",
        "aten.index.Tensor",
        "aten.permute.default",
        "aten.select.int",
        "aten.slice.Tensor",
        "aten.split.Tensor",
        "aten.t.default",
        "aten.transpose.int",
        "aten.unbind.int",
        "aten.unsqueeze.default",
        "aten.view.default",
        "aten.zeros.default",
        "aten.zeros_like.default",
    }
)
"""Views, copies, indexing, constants: no arithmetic."""

ROUNDED = frozenset(
    {
        "aten.add.Tensor",
        "aten.div.Tensor",
        "aten.div_.Tensor",
        "aten.mul.Tensor",
        "aten.neg.default",
        "aten.sub.Tensor",
    }
)
"""One correctly rounded operation an element, without a second operand (`alpha`) folded in."""

INTEGERS = frozenset(
    {
        "aten._local_scalar_dense.default",
        "aten.all.default",
        "aten.aminmax.default",
        "aten.arange.default",
        "aten.bitwise_and.Tensor",
        "aten.cumsum.default",
        "aten.eq.Scalar",
        "aten.gt.Scalar",
        "aten.gt.Tensor",
        "aten.le.Tensor",
        "aten.ne.Scalar",
        "aten.new_ones.default",
        "aten.nonzero.default",
        "aten.scatter_.value",
    }
)
"""Exact on integers and booleans, and refused on anything else: positions, masks, expert ids."""
