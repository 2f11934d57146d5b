"""Rope tables and attention: the two parts of a model that are replaced whole.

transformers computes rope's angles in float32 and attention as matrix products over all keys; the
numerics describe other orders of operations (sections 5 and 6). What to rotate by and what to look
at stays the model's: tables are built from the configuration that the model holds, and must be its
own frequencies up to their rounding; the mask is the one that transformers makes, and every row of
it must be a causal window.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from isonomy import kernels

from . import operators
from .errors import GraphRefused

ATTENTION = "isonomy_canonical"
"""The name of our attention among transformers' implementations."""

_IGNORED = {
    "position_ids",
    "sliding_window",  # the mask has it
    "use_cache",
    "output_router_logits",
}
_CLOSE = 1e-4
"""Relative: above what float32 does to a power, below any other formula or number. It guards
against tables for another model, and enters no result."""


def _mask(*args: Any, **named: Any) -> Any:
    """Always the boolean mask, never a hint that it would be causal."""
    return sdpa_mask(*args, **named | {"allow_is_causal_skip": False})


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    **others: Any,
) -> tuple[Any, None]:
    """Attention in transformers' interface: `[1, H, n, D]` in, `[1, n, H, D]` out."""
    where = type(module).__name__
    unknown = sorted(
        name for name, value in others.items() if not (name in _IGNORED or value is None)
    )
    if unknown or dropout or scaling is None:
        what = unknown[0] if unknown else "dropout" if dropout else "no scaling"
        raise GraphRefused(
            f"attention: {what}",
            where,
            f"asks for attention with {what}, which the numerics don't describe. Use a model "
            "without it.",
        )
    try:
        if attention_mask is None:
            raise operators.NotCausal
        y = operators.attention(
            query[0].transpose(0, 1),
            key[0].transpose(0, 1),
            value[0].transpose(0, 1),
            attention_mask[0, 0],
            scaling,
            softcap or 0.0,
        )
    except operators.NotCausal:
        raise GraphRefused(
            "attention mask",
            where,
            "its attention mask is not a causal window over one sequence, which is all that the "
            "numerics describe. Use a model without it.",
        ) from None
    return y.unsqueeze(0), None


def register() -> None:
    """Make our attention known to transformers under the name `ATTENTION`."""
    AttentionInterface.register(ATTENTION, _attention)
    AttentionMaskInterface.register(ATTENTION, _mask)


def replace_tables(model: torch.nn.Module, length: int) -> None:
    """Put canonical rope tables for positions 0 .. length-1 into a model.

    Raises:
        GraphRefused: rope of a kind that is not covered, or not where it is expected.
    """
    for name, module in model.named_modules():
        if any(buffer.endswith("inv_freq") for buffer, _ in module.named_buffers(recurse=False)):
            module.forward = _Tables(name, module, length)


class _Tables:
    """Stands for a rotary embedding's `forward`: cosines and sines at the asked-for positions."""

    def __init__(self, name: str, module: Any, length: int) -> None:
        self._name = f"{name} ({type(module).__name__})"
        parameters = module.config.rope_parameters
        kinds = parameters if isinstance(module.rope_type, dict) else {None: parameters}
        self._tables = {
            kind: self._build(module, kind, settings, length)
            for kind, settings in kinds.items()
            if kind is None or kind in module.rope_type
        }

    def _build(
        self, module: Any, kind: str | None, settings: dict[str, Any], length: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        prefix = "" if kind is None else f"{kind}_"
        theirs = getattr(module, f"{prefix}inv_freq").double().numpy()
        their_factor = float(getattr(module, f"{prefix}attention_scaling"))
        original = settings.get("original_max_position_embeddings") or 0
        if original and settings.get("factor") is None:
            settings = settings | {"factor": module.config.max_position_embeddings / original}
        try:
            if settings["rope_type"] == "longrope" and length > original:
                raise kernels.ArgumentError(
                    f"rope of kind 'longrope' is covered up to position {original}, not {length}"
                )
            ours = kernels.rope_frequencies(2 * len(theirs), settings["rope_theta"], settings)
            factor = kernels.rope_attention_factor(settings)
        except kernels.KernelError as error:
            raise self._refusal(settings, f"{error}. Use a model without it.") from error
        if not (
            np.allclose(ours, theirs, rtol=_CLOSE, atol=0)
            and math.isclose(factor, their_factor, rel_tol=_CLOSE)
        ):
            raise self._refusal(
                settings,
                "the numerics have other frequencies for this configuration than the model. It "
                "computes rope in a way of its own: use another model.",
            )
        cos, sin = (
            torch.from_numpy(np.concatenate([table, table], axis=1))
            for table in kernels.rope_tables(ours, length, factor)
        )
        return cos, sin

    def _refusal(self, settings: dict[str, Any], message: str) -> GraphRefused:
        return GraphRefused(f"rope type: {settings['rope_type']}", self._name, message)

    def __call__(
        self, x: torch.Tensor, position_ids: torch.Tensor, layer_type: str | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Two float32 tensors `[1, n, rotary]`, as transformers' modules return them."""
        cos, sin = self._tables[layer_type]
        return cos[position_ids], sin[position_ids]
