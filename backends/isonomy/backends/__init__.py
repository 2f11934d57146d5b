"""Backends: what turns messages into candidates.

`Local` is the built-in deterministic engine; `OpenAI` any OpenAI-compatible endpoint, `Anthropic`
the messages API, `Transformers` a checkpoint run by torch, `Callable` a function of the
application, `Recorded` a file of answers, `Router` several of these with fallbacks. Nothing is
imported until a name is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .anthropic import Anthropic
    from .callable import Callable
    from .local import Local
    from .openai import OpenAI
    from .recorded import Recorded
    from .remote.breaker import CircuitBreaker
    from .router import Router
    from .transformers import Transformers

__all__ = [
    "Anthropic",
    "Callable",
    "CircuitBreaker",
    "Local",
    "OpenAI",
    "Recorded",
    "Router",
    "Transformers",
]

_HOMES = {
    "Anthropic": ".anthropic",
    "Callable": ".callable",
    "CircuitBreaker": ".remote.breaker",
    "Local": ".local",
    "OpenAI": ".openai",
    "Recorded": ".recorded",
    "Router": ".router",
    "Transformers": ".transformers",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(home, __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
