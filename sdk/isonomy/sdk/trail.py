"""The trail of a call: its events in sequence, its messages, its one gate to the world.

A `World` is what lies behind the gate. `Live` is the real one: it takes effects and asks the
backend. Replay puts another in its place that hands back what was recorded (`isonomy.replay`), and
runs the same pipeline on it, so that live and replayed calls can't follow different code.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

import msgspec

from .canonical import canonical
from .errors import BackendError, IsonomyError, PluginError
from .events import BackendFailed, Effect, Event, Failed, Generated
from .generation import Backend, Generation, Request, Sampling
from .vocabulary import Message

_NESTED_CANDIDATES = 1 << 16
"""Nested generations draw their noise as candidates from here on, apart from the call's own."""


class World(Protocol):
    """What lies outside a call."""

    def take(self, event: Effect, produce: Callable[[], Any]) -> Effect:
        """Return `event` with the value or error that the world gave."""
        ...

    async def atake(self, event: Effect, produce: Callable[[], Awaitable[Any]]) -> Effect:
        """Like `take`, for an async effect."""
        ...

    def secret(self, name: str) -> str:
        """Return a secret."""
        ...

    def generate(self, request: Request) -> Generation:
        """Answer a request."""
        ...

    async def agenerate(self, request: Request) -> Generation:
        """Like `generate`, without blocking the loop."""
        ...

    def foretold(
        self, *, stage: str, check: str, target: str, round: int
    ) -> tuple[Effect | Failed, ...]:
        """Return what must be handed back instead of asking the check.

        A recorded timeout, after its effects.
        """
        ...


class Live:
    """The real world."""

    def __init__(
        self, backend: Backend, secrets: Callable[[str], str | None] | None = None
    ) -> None:
        self._backend = backend
        self._secrets = secrets

    def take(self, event: Effect, produce: Callable[[], Any]) -> Effect:
        """Do the effect, and note its value or error and how long it took."""
        started = time.perf_counter_ns()
        try:
            value, error = produce(), None
        except Exception as raised:
            value, error = None, (type(raised).__name__, str(raised))
        return _timed(event, value, error, started)

    async def atake(self, event: Effect, produce: Callable[[], Awaitable[Any]]) -> Effect:
        """Do an async effect."""
        started = time.perf_counter_ns()
        try:
            value, error = await produce(), None
            canonical(value)
        except Exception as raised:
            value, error = None, (type(raised).__name__, str(raised))
        return _timed(event, value, error, started)

    def secret(self, name: str) -> str:
        """Return a secret from the guard's source."""
        value = self._secrets(name) if self._secrets is not None else None
        if value is None:
            raise PluginError(
                f"no secret named {name!r}: give the guard a source, Guard(secrets=...).",
                plugin=name,
            )
        return value

    def generate(self, request: Request) -> Generation:
        """Ask the backend; whatever it raises becomes a `BackendError`."""
        try:
            return self._backend.generate(request)
        except IsonomyError:
            raise
        except Exception as error:
            raise _wrapped(error, self._backend) from error

    async def agenerate(self, request: Request) -> Generation:
        """Ask the backend without blocking the loop."""
        try:
            return await self._backend.agenerate(request)
        except IsonomyError:
            raise
        except Exception as error:
            raise _wrapped(error, self._backend) from error

    def foretold(
        self, *, stage: str, check: str, target: str, round: int
    ) -> tuple[Effect | Failed, ...]:
        """Return nothing: the future is open."""
        return ()


def _wrapped(error: Exception, backend: Backend) -> BackendError:
    return BackendError(
        f"the backend raised {type(error).__name__}: {error}", backend=backend.identity().spec
    )


def _timed(event: Effect, value: Any, error: tuple[str, str] | None, started: int) -> Effect:
    return msgspec.structs.replace(
        event, value=value, error=error, duration_ns=time.perf_counter_ns() - started
    )


class ReplayedError(Exception):
    """An effect that raised when it was recorded raises this.

    Same type name and message, whatever its class was.
    """

    def __init__(self, type_name: str, message: str) -> None:
        self.type_name = type_name
        super().__init__(message)


class Trail:
    """Events and messages of one call. Safe to use from the threads of its checks."""

    def __init__(
        self,
        world: World,
        *,
        sampling: Sampling,
        observe: Callable[[Event], None] | None = None,
        before_effect: Callable[[str, str], None] | None = None,
    ) -> None:
        self.events: list[Event] = []
        self.messages: list[bytes] = []
        self.secrets: dict[str, str] = {}
        self.world = world
        self._sampling = sampling
        self._observe = observe
        self._before_effect = before_effect
        self._numbers: dict[bytes, int] = {}
        self._nested = 0
        self._lock = threading.RLock()

    def add(self, event: Event) -> Event:
        """Give an event the next sequence number, append it, and show it to observers."""
        with self._lock:
            event = msgspec.structs.replace(event, sequence=len(self.events))
            self.events.append(event)
        if self._observe is not None:
            self._observe(event)
        return event

    def number(self, messages: tuple[Message, ...]) -> tuple[int, ...]:
        """Return the messages' numbers in the call's message table, entering new ones."""
        with self._lock:
            numbers = []
            for message in messages:
                body = canonical(message)
                if body not in self._numbers:
                    self._numbers[body] = len(self.messages)
                    self.messages.append(body)
                numbers.append(self._numbers[body])
            return tuple(numbers)

    def settled(self) -> None:
        """From now on effects need no opening record: the intent is in the log."""
        self._before_effect = None

    def _announce(self, check: str, name: str) -> None:
        if self._before_effect is not None:
            announce, self._before_effect = self._before_effect, None
            announce(check, name)

    def take(
        self,
        kind: Any,
        name: str,
        produce: Callable[[], Any],
        *,
        stage: str,
        check: str,
        round: int,
    ) -> Any:
        """Take something from the world and record it.

        Raises what it raised as `ReplayedError`'s twin.
        """
        if kind == "effect":
            self._announce(check, name)
        raised: list[Exception] = []

        def guarded() -> Any:
            try:
                return produce()
            except Exception as error:
                raised.append(error)
                raise

        effect = self.world.take(
            Effect(stage=stage, check=check, round=round, kind=kind, name=name), guarded
        )
        return self._record(effect, raised)

    async def atake(
        self,
        name: str,
        produce: Callable[[], Awaitable[Any]],
        *,
        stage: str,
        check: str,
        round: int,
    ) -> Any:
        """Like `take`, for an async effect."""
        self._announce(check, name)
        raised: list[Exception] = []

        async def guarded() -> Any:
            try:
                return await produce()
            except Exception as error:
                raised.append(error)
                raise

        effect = await self.world.atake(
            Effect(stage=stage, check=check, round=round, kind="effect", name=name),
            guarded,
        )
        return self._record(effect, raised)

    def _record(self, effect: Effect, raised: list[Exception]) -> Any:
        self.add(effect)
        if effect.error is not None:
            raise raised[0] if raised else ReplayedError(*effect.error)
        return effect.value

    def secret(self, name: str) -> str:
        """Return a secret and remember to scrub it from everything that is recorded."""
        value = self.world.secret(name)
        self.secrets[value] = name
        return value

    def scrub(self, body: bytes) -> bytes:
        """Return canonical bytes with every secret handed out replaced by ``[secret NAME]``."""
        for value, name in self.secrets.items():
            if value:
                inside = canonical(value)[1:-1]
                body = body.replace(inside, canonical(f"[secret {name}]")[1:-1])
        return body

    def _request(
        self, messages: tuple[Message, ...], sampling: Sampling | None, check: str
    ) -> tuple[Request, int]:
        self._announce(check, "generate")
        with self._lock:
            self._nested += 1
            candidate = _NESTED_CANDIDATES + self._nested
        chosen = msgspec.structs.replace(sampling or self._sampling, candidate=candidate)
        if chosen.seed is None:
            chosen = msgspec.structs.replace(chosen, seed=self._sampling.seed)
        return Request(messages=messages, sampling=chosen), candidate

    def nested(
        self,
        messages: tuple[Message, ...],
        sampling: Sampling | None,
        *,
        stage: str,
        check: str,
        round: int,
    ) -> Generation:
        """Answer a plugin's own request."""
        request, candidate = self._request(messages, sampling, check)
        return self.generate(
            request, purpose="nested", candidate=candidate, stage=stage, check=check, round=round
        )

    async def anested(
        self,
        messages: tuple[Message, ...],
        sampling: Sampling | None,
        *,
        stage: str,
        check: str,
        round: int,
    ) -> Generation:
        """Answer an async plugin's own request."""
        request, candidate = self._request(messages, sampling, check)
        return await self.agenerate(
            request, purpose="nested", candidate=candidate, stage=stage, check=check, round=round
        )

    def generate(self, request: Request, **place: Any) -> Generation:
        """Ask the world for a generation and record it, or the error that came instead."""
        started = time.perf_counter_ns()
        try:
            generation = self.world.generate(request)
        except BackendError as error:
            raise self._failed(error, place, started) from None
        return self._generated(request, generation, place, started)

    async def agenerate(self, request: Request, **place: Any) -> Generation:
        """Like `generate`, without blocking the loop."""
        started = time.perf_counter_ns()
        try:
            generation = await self.world.agenerate(request)
        except BackendError as error:
            raise self._failed(error, place, started) from None
        return self._generated(request, generation, place, started)

    def _failed(self, error: BackendError, place: Mapping[str, Any], started: int) -> BackendError:
        self.add(
            BackendFailed(
                error=type(error).__name__,
                message=str(error),
                duration_ns=time.perf_counter_ns() - started,
                **place,
            )
        )
        return error

    def _generated(
        self, request: Request, generation: Generation, place: Mapping[str, Any], started: int
    ) -> Generation:
        self.add(
            Generated(
                messages=self.number(request.messages),
                sampling=request.sampling,
                generation=generation,
                duration_ns=time.perf_counter_ns() - started,
                **place,
            )
        )
        return generation
