"""Wrapped clients and functions: an application's own code, guarded where it stands.

Each kind of client has a module of its own here, which is imported when a client of that kind is
wrapped; `wrap` finds it by the package that the client's class comes from. Such a module has one
function, ``wrap(guard, client, settings)``, and its own conversion between the client's format and
the vocabulary. What they share: `Settings` (settings.py), the reply beside the object that is
returned (replies.py), and the rules

1. a call goes through `guard.chat`, `achat`, `stream` or `astream` with a backend of its own that
   asks the real client and keeps what it returned;
2. what no check changed is sent, and returned, as the very object that it was;
3. a method that is not guarded is refused by name, unless the caller allowed it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from .replies import replies_of, reply_of

if TYPE_CHECKING:
    from ..guard import Guard
    from .function import ProtectOptions
    from .settings import WrapOptions

__all__ = ["protect", "replies_of", "reply_of", "wrap"]

_MODULES = {
    "anthropic": "anthropic_client",
    "openai": "openai_client",
    "transformers": "pipeline",
}
"""The package that a client's class comes from, and the module here that wraps such a client."""


def wrap(guard: Guard, client: Any, options: WrapOptions) -> Any:
    """Return a guarded client like `client`; see `isonomy.sdk.Guard.wrap`."""
    kind = type(client)
    for base in kind.__mro__:
        module = _MODULES.get(base.__module__.partition(".")[0])
        if module is not None:
            from .settings import Settings

            settings = Settings.of(options)
            return import_module(f"{__name__}.{module}").wrap(guard, client, settings)
    raise InputError(
        f"{kind.__module__}.{kind.__qualname__} is nothing that can be wrapped. Wrap an OpenAI or "
        "Anthropic client, or a transformers pipeline; guard any other function with guard.protect."
    )


def protect(guard: Guard, function: Any, options: ProtectOptions) -> Any:
    """Return a guarded function like `function`; see `isonomy.sdk.wrapping.function`."""
    return import_module(f"{__name__}.function").protect(guard, function, options)
