"""Backends: what turns messages into candidates.

`Local` is the built-in deterministic engine, `OpenAI` any OpenAI-compatible endpoint, `Callable` a
function of the application. Nothing is imported until a name is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .callable import Callable
    from .local import Local
    from .openai import OpenAI

__all__ = ["Callable", "Local", "OpenAI"]

_HOMES = {"Callable": ".callable", "Local": ".local", "OpenAI": ".openai"}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(home, __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
