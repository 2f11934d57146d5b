"""The trail of a call: its events in sequence, its messages, its one gate to the world.

A `World` is what lies behind the gate. `Live` is the real one: it takes effects and asks the
backend. Replay puts another in its place that hands back what was recorded (`isonomy.replay`), and
runs the same pipeline on it, so that live and replayed calls can't follow different code.
"""

from __future__ import annotations

import builtins
import copy
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any, NamedTuple, Protocol, TypeVar

import msgspec

from .canonical import canonical, carriable, require_declared
from .errors import BackendError, InputError, IsonomyError, PluginError
from .events import BackendFailed, Effect, Event, Generated
from .generation import Backend, Generation, Request, Sampling
from .vocabulary import Message

T = TypeVar("T")
_IDENTIFIERS = frozenset(
    ("stage", "check", "target", "kind", "became", "purpose", "role", "before", "after")
)
"""Fields that hold no content, and must read as they are whatever a secret looks like."""
_NESTED_CANDIDATES = 1 << 16
"""Nested generations draw their noise as candidates from here on, apart from the call's own."""


Gate = Callable[[], None]
"""Raises `PluginError` when the check that asks is no longer waited for."""


class Asker(NamedTuple):
    """Who asks the model: a check's hook in its round, or (no check) the call itself."""

    stage: str
    check: str | None
    round: int


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

    def generate(self, request: Request, asker: Asker) -> Generation:
        """Answer a request."""
        ...

    async def agenerate(self, request: Request, asker: Asker) -> Generation:
        """Like `generate`, without blocking the loop."""
        ...

    def patience(self, timeout: float) -> float:
        """Return how many seconds to wait for a check that may take `timeout`."""
        ...

    def foretold(self, *, stage: str, check: str, target: str, round: int) -> tuple[Event, ...]:
        """Return what must be handed back instead of asking the check.

        A recorded timeout (`Failed`), after what the check took from the world until then.
        """
        ...

    def said(self, event: Generated) -> tuple[Message, ...]:
        """Return the messages that a foretold generation answered."""
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
            value, error = None, (type(raised).__name__, carriable(str(raised)))
        return _timed(event, value, error, started)

    async def atake(self, event: Effect, produce: Callable[[], Awaitable[Any]]) -> Effect:
        """Do an async effect."""
        started = time.perf_counter_ns()
        try:
            value, error = await produce(), None
        except Exception as raised:
            value, error = None, (type(raised).__name__, carriable(str(raised)))
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

    def generate(self, request: Request, asker: Asker | None = None) -> Generation:
        """Ask the backend; whatever it raises becomes a `BackendError`."""
        try:
            return _usable(self._backend.generate(request), self._backend)
        except IsonomyError:
            raise
        except Exception as error:
            raise _wrapped(error, self._backend) from error

    async def agenerate(self, request: Request, asker: Asker | None = None) -> Generation:
        """Ask the backend without blocking the loop."""
        try:
            return _usable(await self._backend.agenerate(request), self._backend)
        except IsonomyError:
            raise
        except Exception as error:
            raise _wrapped(error, self._backend) from error

    def patience(self, timeout: float) -> float:
        """Return `timeout`."""
        return timeout

    def foretold(self, *, stage: str, check: str, target: str, round: int) -> tuple[Event, ...]:
        """Return nothing: the future is open."""
        return ()

    def said(self, event: Generated) -> tuple[Message, ...]:
        """Return nothing: nothing is foretold."""
        return ()


def _wrapped(error: Exception, backend: Backend) -> BackendError:
    return BackendError(
        f"the backend raised {type(error).__name__}: {error}", backend=backend.identity().spec
    )


def _usable(generation: Any, backend: Backend) -> Generation:
    """Return what a backend gave if checks can judge it and the log can hold it."""
    try:
        if not isinstance(generation, Generation):
            raise InputError(f"it returned {type(generation).__name__}, not a Generation.")
        require_declared(Message("assistant", generation.content))
        canonical(generation)
    except InputError as error:
        raise BackendError(
            f"the backend's answer can't be used: {error}", backend=backend.identity().spec
        ) from None
    return generation


def _timed(event: Effect, value: Any, error: tuple[str, str] | None, started: int) -> Effect:
    return msgspec.structs.replace(
        event, value=value, error=error, duration_ns=time.perf_counter_ns() - started
    )


class ReplayedError(Exception):
    """What an effect that raised when it was recorded raises on replay.

    Same type name and message. Where the class of that name is known to the process (a builtin, or
    one class among those loaded), it is an instance of that class too, so that a check's
    ``except TimeoutError`` takes the same way again; nothing is imported to find it. Attributes
    beyond the message were not recorded.
    """

    type_name: str
    message: str

    @classmethod
    def of(cls, type_name: str, message: str) -> ReplayedError:
        """Return the recorded error, as its own class where that can be told."""
        kind = _class_named(type_name)
        error = cls.__new__(cls)
        if kind is not None:
            with suppress(TypeError):  # a class that can't be combined
                twin: Any = type(type_name, (cls, kind), {})
                error = twin.__new__(twin)
        error.type_name, error.message = type_name, message
        error.args = (message,)
        return error

    def __str__(self) -> str:
        return self.message


def _class_named(name: str) -> type[Exception] | None:
    known = getattr(builtins, name, None)
    if isinstance(known, type) and issubclass(known, Exception):
        return known
    found: set[type[Exception]] = set()
    left: list[type[Exception]] = [Exception]
    while left:
        for kind in left.pop().__subclasses__():
            left.append(kind)
            if kind.__name__ == name and not issubclass(kind, ReplayedError):
                found.add(kind)
    return found.pop() if len(found) == 1 else None


def _plain(name: str, value: T) -> T:
    """Return an effect's value as a replay will hand it back: with sorted keys, and nobody else's.

    Raises:
        InputError: a replay could not hand it back.
    """
    try:
        read_back: T = msgspec.json.decode(canonical(value))
    except InputError as error:
        raise InputError(f"the effect {name!r} returned what can't be recorded: {error}") from None
    if read_back != value:
        raise InputError(
            f"the effect {name!r} returned what does not read back from JSON as it is (a tuple, a "
            "date, bytes, NaN). Return plain data: text, finite numbers, lists, dictionaries."
        )
    return read_back


def _asker(place: Mapping[str, Any]) -> Asker:
    return Asker(place["stage"], place["check"], place["round"])


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
        self.lock = threading.RLock()

    def add(self, event: Event, gate: Gate | None = None) -> Event:
        """Give an event the next sequence number, append it, and show it to observers.

        Raises:
            PluginError: `gate` is closed: the call went on without the check that this is from.
        """
        with self.lock:
            if gate is not None:
                gate()
            event = msgspec.structs.replace(event, sequence=len(self.events))
            if self.secrets:
                event = self._scrubbed(event)
            self.events.append(event)
        if self._observe is not None:
            self._observe(event)
        return event

    def number(self, messages: tuple[Message, ...]) -> tuple[int, ...]:
        """Return the messages' numbers in the call's message table, entering new ones."""
        with self.lock:
            numbers = []
            for message in messages:
                body = canonical(message)
                if body not in self._numbers:
                    self._numbers[body] = len(self.messages)
                    self.messages.append(body)
                numbers.append(self._numbers[body])
            return tuple(numbers)

    def retell(self, events: tuple[Event, ...]) -> None:
        """Add what a replay hands back, with the messages that belong to it."""
        for event in events:
            if isinstance(event, Generated):
                self.number(self.world.said(event))
            self.add(event)

    def settled(self) -> None:
        """From now on effects need no opening record: the intent is in the log."""
        self._before_effect = None

    def _announce(self, check: str, name: str) -> None:
        if self._before_effect is None:
            return
        with self.lock:  # nobody goes on before the record is durable, and nobody after it failed
            if self._before_effect is not None:
                self._before_effect(check, name)
                self._before_effect = None

    def take(
        self,
        kind: Any,
        name: str,
        produce: Callable[[], Any],
        *,
        gate: Gate,
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
                return _plain(name, produce())
            except Exception as error:
                raised.append(error)
                raise

        effect = self.world.take(
            Effect(stage=stage, check=check, round=round, kind=kind, name=name), guarded
        )
        return self._record(effect, raised, gate)

    async def atake(
        self,
        name: str,
        produce: Callable[[], Awaitable[Any]],
        *,
        gate: Gate,
        stage: str,
        check: str,
        round: int,
    ) -> Any:
        """Like `take`, for an async effect."""
        self._announce(check, name)
        raised: list[Exception] = []

        async def guarded() -> Any:
            try:
                return _plain(name, await produce())
            except Exception as error:
                raised.append(error)
                raise

        effect = await self.world.atake(
            Effect(stage=stage, check=check, round=round, kind="effect", name=name),
            guarded,
        )
        return self._record(effect, raised, gate)

    def _record(self, effect: Effect, raised: list[Exception], gate: Gate) -> Any:
        self.add(effect, gate)
        if effect.error is not None:
            raise raised[0] if raised else ReplayedError.of(*effect.error)
        # A copy: what the check does with it must not reach the record.
        return copy.deepcopy(effect.value)

    def secret(self, name: str) -> str:
        """Return a secret and remember to scrub it from everything that is recorded."""
        value = self.world.secret(name)
        with self.lock:
            if value:
                self.secrets[value] = name
        return value

    def scrub(self, value: Any) -> bytes:
        """Return canonical bytes with every secret handed out replaced by ``[secret NAME]``."""
        return canonical(self._scrubbed(value) if self.secrets else value)

    def scrub_text(self, text: str) -> str:
        """Return text with every secret handed out replaced by ``[secret NAME]``."""
        import json

        # The longest first: a secret may be part of another. JSON inside of text (a provider's raw
        # response) holds secrets in their escaped form.
        for value in sorted(self.secrets, key=len, reverse=True):
            mask = f"[secret {self.secrets[value]}]"
            quoted = [json.dumps(value, ensure_ascii=pure)[1:-1] for pure in (True, False)]
            for form in (*quoted, value):
                text = text.replace(form, mask)
        return text

    def _scrubbed(self, value: Any) -> Any:
        if isinstance(value, str):
            return self.scrub_text(value)
        if isinstance(value, msgspec.Struct):
            fields = [name for name in value.__struct_fields__ if name not in _IDENTIFIERS]
            clean = {name: self._scrubbed(getattr(value, name)) for name in fields}
            return msgspec.structs.replace(value, **clean)
        if isinstance(value, list | tuple):
            return type(value)([self._scrubbed(item) for item in value])
        if isinstance(value, dict):
            return {self._scrubbed(key): self._scrubbed(item) for key, item in value.items()}
        return value

    def _request(
        self, messages: tuple[Message, ...], sampling: Sampling | None, check: str, number: int
    ) -> tuple[Request, int]:
        self._announce(check, "generate")
        candidate = _NESTED_CANDIDATES + number
        chosen = msgspec.structs.replace(sampling or self._sampling, candidate=candidate)
        if chosen.seed is None:
            chosen = msgspec.structs.replace(chosen, seed=self._sampling.seed)
        return Request(messages=messages, sampling=chosen), candidate

    def nested(
        self,
        messages: tuple[Message, ...],
        sampling: Sampling | None,
        *,
        number: int,
        gate: Gate,
        stage: str,
        check: str,
        round: int,
    ) -> Generation:
        """Answer a plugin's own request."""
        request, candidate = self._request(messages, sampling, check, number)
        return self.generate(
            request,
            gate,
            purpose="nested",
            candidate=candidate,
            stage=stage,
            check=check,
            round=round,
        )

    async def anested(
        self,
        messages: tuple[Message, ...],
        sampling: Sampling | None,
        *,
        number: int,
        gate: Gate,
        stage: str,
        check: str,
        round: int,
    ) -> Generation:
        """Answer an async plugin's own request."""
        request, candidate = self._request(messages, sampling, check, number)
        return await self.agenerate(
            request,
            gate,
            purpose="nested",
            candidate=candidate,
            stage=stage,
            check=check,
            round=round,
        )

    def generate(self, request: Request, gate: Gate | None = None, **place: Any) -> Generation:
        """Ask the world for a generation and record it, or the error that came instead."""
        started = time.perf_counter_ns()
        try:
            generation = self.world.generate(request, _asker(place))
        except IsonomyError as error:
            raise self._failed(error, place, started, gate) from None
        return self._generated(request, generation, place, started, gate)

    async def agenerate(
        self, request: Request, gate: Gate | None = None, **place: Any
    ) -> Generation:
        """Like `generate`, without blocking the loop."""
        started = time.perf_counter_ns()
        try:
            generation = await self.world.agenerate(request, _asker(place))
        except IsonomyError as error:
            raise self._failed(error, place, started, gate) from None
        return self._generated(request, generation, place, started, gate)

    def _failed(
        self, error: IsonomyError, place: Mapping[str, Any], started: int, gate: Gate | None
    ) -> IsonomyError:
        self.add(
            BackendFailed(
                error=type(error).__name__,
                message=carriable(str(error)),
                duration_ns=time.perf_counter_ns() - started,
                **place,
            ),
            gate,
        )
        return error

    def _generated(
        self,
        request: Request,
        generation: Generation,
        place: Mapping[str, Any],
        started: int,
        gate: Gate | None,
    ) -> Generation:
        with self.lock:
            if gate is not None:
                gate()  # before the messages are numbered: who is not waited for leaves no trace
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
