"""The world of a `FakeGuard`: a clock that stands, chance that repeats, effects told beforehand.

It differs from the real one in nothing else: what a check takes through its context is recorded as
in any call.
"""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

from ..events import Effect
from ..generation import Generation, Request
from ..world import Asker, Live
from .model import ScriptedModel

_outside = threading.local()


@contextmanager
def through_context() -> Iterator[None]:
    """Mark what happens in here as asked for through the context."""
    depth = getattr(_outside, "depth", 0)
    _outside.depth = depth + 1
    try:
        yield
    finally:
        _outside.depth = depth


def is_through_context() -> bool:
    """Return whether the running code was asked for through the context."""
    return getattr(_outside, "depth", 0) > 0


class Script:
    """What a test says about the world.

    Attributes:
        now: what `ctx.now()` returns; it stands until it is set, or `tick` moves it on.
        effects: what effects come to, by name: a value, an exception, or a function that is called
            instead. Others are done as the check asks.
        judge: answers what checks ask of the guard's own backend; it does, unless given.
    """

    def __init__(
        self,
        *,
        now: datetime | None = None,
        effects: Mapping[str, Any] | None = None,
        judge: ScriptedModel | None = None,
    ) -> None:
        self.now = now or datetime(2026, 1, 1, tzinfo=UTC)
        self.effects = dict(effects or {})
        self.judge = judge

    def tick(self, seconds: float) -> None:
        """Move the clock on."""
        self.now += timedelta(seconds=seconds)


class ScriptedWorld(Live):
    """The real world, but for what a `Script` says."""

    def __init__(self, *given: Any, script: Script, **more: Any) -> None:
        super().__init__(*given, **more)
        self._script = script
        self._seeds = 0
        judge = script.judge
        self._judge = None if judge is None else Live(judge)

    def _instead(self, event: Effect, produce: Callable[[], Any]) -> Callable[[], Any]:
        script = self._script
        if event.kind == "now":
            return lambda: round(script.now.timestamp() * 1e6) * 1000
        if event.kind == "rng":
            self._seeds += 1
            number = self._seeds
            return lambda: number
        if event.kind == "effect" and event.name in script.effects:
            told = script.effects[event.name]
            return lambda: _come_to(told)
        return produce

    def take(self, event: Effect, produce: Callable[[], Any]) -> Effect:
        """Take what the script says, or do it."""
        chosen = self._instead(event, produce)
        with through_context():
            return super().take(event, chosen)

    async def atake(self, event: Effect, produce: Callable[[], Awaitable[Any]]) -> Effect:
        """Take what the script says, or do it."""
        if event.kind == "effect" and event.name in self._script.effects:
            told = self._script.effects[event.name]

            async def instead() -> Any:
                return _come_to(told)

            return await super().atake(event, instead)
        with through_context():
            return await super().atake(event, produce)

    def secret(self, name: str) -> str:
        """Return a secret."""
        with through_context():
            return super().secret(name)

    def _world_of(self, asker: Asker | None) -> Live | None:
        """Return the judge's world, where a check asks the guard's own backend."""
        asked = asker is not None and asker.check is not None and asker.backend is None
        return self._judge if asked else None

    def generate(
        self, request: Request, asker: Asker | None = None, *rest: Any, **more: Any
    ) -> Generation:
        """Answer from the judge, where a check asks and there is one."""
        judge = self._world_of(asker)
        with through_context():
            if judge is not None:
                return judge.generate(request, asker)
            return super().generate(request, asker, *rest, **more)

    async def agenerate(
        self, request: Request, asker: Asker | None = None, *rest: Any, **more: Any
    ) -> Generation:
        """Answer from the judge, where a check asks and there is one."""
        judge = self._world_of(asker)
        with through_context():
            if judge is not None:
                return await judge.agenerate(request, asker)
            return await super().agenerate(request, asker, *rest, **more)

    def logprobs(
        self, request: Request, labels: tuple[str, ...], asker: Asker | None = None
    ) -> tuple[float, ...] | None:
        """Score with the judge, where there is one."""
        judge = self._world_of(asker)
        with through_context():
            if judge is not None:
                return judge.logprobs(request, labels, asker)
            return super().logprobs(request, labels, asker)

    async def alogprobs(
        self, request: Request, labels: tuple[str, ...], asker: Asker | None = None
    ) -> tuple[float, ...] | None:
        """Score with the judge, where there is one."""
        judge = self._world_of(asker)
        with through_context():
            if judge is not None:
                return await judge.alogprobs(request, labels, asker)
            return await super().alogprobs(request, labels, asker)


def _come_to(told: Any) -> Any:
    if isinstance(told, BaseException) or (
        isinstance(told, type) and issubclass(told, BaseException)
    ):
        raise told
    return told() if callable(told) else told
