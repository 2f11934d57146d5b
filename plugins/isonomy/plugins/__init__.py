"""The built-in checks: patterns, personal data, length, constitutions.

A check is a frozen `msgspec.Struct`: its fields are its settings, so a table of a policy file
decodes straight into it, its settings have a canonical digest, and an instance can be shared by
threads and calls. It holds no state between calls.

Nothing is imported until a name is used: ``import isonomy.plugins`` loads neither RE2 nor
phonenumbers.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .constitution import Constitution, Principle
    from .length import Length
    from .patterns import Patterns
    from .pii import Pii
    from .telemetry import Telemetry

__all__ = ["Constitution", "Length", "Patterns", "Pii", "Principle", "Telemetry"]

_HOMES = {
    "Constitution": ".constitution",
    "Length": ".length",
    "Patterns": ".patterns",
    "Pii": ".pii",
    "Principle": ".constitution",
    "Telemetry": ".telemetry",
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
