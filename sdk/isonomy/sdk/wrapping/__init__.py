"""Wrapped clients and functions: an application's own code, guarded where it stands.

Each kind of client has a module of its own here, which is imported when a client of that kind is
wrapped; `wrap` finds it by the package that the client's class comes from.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..calling import CallOptions
from ..errors import InputError

if TYPE_CHECKING:
    from ..guard import Guard


def wrap(guard: Guard, client: Any, options: CallOptions) -> Any:
    """Return a guarded client like `client`; see `isonomy.sdk.Guard.wrap`."""
    kind = type(client)
    raise InputError(
        f"{kind.__module__}.{kind.__qualname__} is nothing that can be wrapped. Wrap an OpenAI or "
        "Anthropic client, or a transformers pipeline; guard any other function with guard.protect."
    )


def protect(guard: Guard, function: Any, options: CallOptions) -> Any:
    """Return a guarded function like `function`; see `isonomy.sdk.Guard.protect`."""
    raise InputError("guard.protect needs a function.")
