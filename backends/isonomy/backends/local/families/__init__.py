"""The covered families: one struct each, whose fields are the keys of config.json that it reads."""

from __future__ import annotations

from .base import Family
from .gemma import Gemma2, Gemma3
from .gpt2 import Gpt2
from .llama import Granite, Llama, Mistral, Olmo2, SmolLM3
from .mixtral import Mixtral
from .phi import Phi3
from .qwen import Qwen2, Qwen3, Qwen3Moe

FAMILIES: dict[str, type[Family]] = {
    family.NAME: family
    for family in (
        Gemma2,
        Gemma3,
        Gpt2,
        Granite,
        Llama,
        Mistral,
        Mixtral,
        Olmo2,
        Phi3,
        Qwen2,
        Qwen3,
        Qwen3Moe,
        SmolLM3,
    )
}
"""Covered families by `model_type`."""

__all__ = ["FAMILIES", "Family"]
