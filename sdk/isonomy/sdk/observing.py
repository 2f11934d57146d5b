"""Observers: who sees a call from its begin to its end, and can't change it.

A plugin observes with any of three hooks (hooks.py): `call_begins`, `observe` and `call_ends`. They
are called in the thread that things happen in, with copies; what they raise is logged and changes
nothing. A replay has no observers. Loaded with the first call that has one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .canonical import own
from .diagnostics import logger
from .hooks import Hooks
from .world import Live, World

if TYPE_CHECKING:
    from .events import Event
    from .performing import Performance, Reply


class Observers:
    """The observers of one call, which begins when this is made."""

    def __init__(self, performance: Performance, observers: tuple[Hooks, ...]) -> None:
        self._call = performance.call
        self._observers = observers
        if any("call_begins" in hooks for hooks in observers):
            identity = _identity(performance.world)
            self._tell("call_begins", messages=performance.messages, identity=identity)

    def event(self, event: Event) -> None:
        """Tell of an event."""
        self._tell("observe", event=event)

    def end(self, reply: Reply | None, error: BaseException | None) -> None:
        """Tell that the call has ended, the last observer first."""
        self._tell("call_ends", reply=reply, error=error, backwards=True)

    def _tell(self, hook: str, *, backwards: bool = False, **seen: Any) -> None:
        for hooks in reversed(self._observers) if backwards else self._observers:
            if hook not in hooks:
                continue
            function, names = hooks[hook]
            offered = {"call": self._call, **seen}
            try:
                # An observer's own, apart from an exception, which nobody can copy.
                function(
                    **{name: _own(name, offered[name]) for name in names},
                )
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # an exporter must never change a call
                logger().warning("observer_failed", hook=hook, error=type(error).__name__)


def _own(name: str, value: Any) -> Any:
    return value if name == "error" else own(value)


def _identity(world: World) -> Any:
    return world.identity() if isinstance(world, Live) else None
