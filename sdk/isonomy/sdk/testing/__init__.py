"""What authors of checks test them with: a guard around a scripted model, and a conformance kit.

```python
from isonomy.sdk.testing import FakeGuard, assert_conforms


def no_shouting(text: str) -> bool:
    return not text.isupper()


with FakeGuard([no_shouting], "HELLO") as guard:
    guard.chat("hello")
    guard.assert_verdict("block", stage="post_validate", check="no_shouting")

assert_conforms(no_shouting, texts=["HELLO", "hello"])
```

With pytest, the fixtures of `isonomy.sdk.testing.fixtures` are there wherever Isonomy is installed.
Nothing is imported until a name is used: pytest loads that module at each of its starts.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .conformance import NotConformant, Outcome, Report, assert_conforms, examine
    from .guarding import FakeGuard
    from .model import ScriptedModel

__all__ = [
    "FakeGuard",
    "NotConformant",
    "Outcome",
    "Report",
    "ScriptedModel",
    "assert_conforms",
    "examine",
]

_HOMES = {
    "FakeGuard": ".guarding",
    "ScriptedModel": ".model",
    "NotConformant": ".conformance",
    "Outcome": ".conformance",
    "Report": ".conformance",
    "assert_conforms": ".conformance",
    "examine": ".conformance",
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
