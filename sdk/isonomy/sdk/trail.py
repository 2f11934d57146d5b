"""The trail of a call: its events in sequence, its messages, its one gate to the world.

The trail numbers events and messages, scrubs secrets from them, and asks a `World` (world.py) for
everything that comes from outside.
"""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

import msgspec

from .canonical import canonical, carriable, own
from .errors import InputError, IsonomyError
from .events import BackendFailed, Effect, Event, Generated
from .generation import Generation, Request, Sampling
from .requests import checked, merged
from .vocabulary import Message
from .world import Asker, ReplayedError, World, ends_the_task

T = TypeVar("T")
_IDENTIFIERS = frozenset(
    ("stage", "check", "target", "kind", "became", "purpose", "role", "before", "after")
)
"""Fields that hold no content, and must read as they are whatever a secret looks like."""
_NESTED_CANDIDATES = 1 << 16
"""Nested generations draw their noise as candidates from here on, apart from the call's own."""


Gate = Callable[[], None]
"""Raises `PluginError` when the check that asks is no longer waited for."""


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


def _require_name(kind: str, name: Any) -> None:
    """Refuse a name that a record could not hold, before anything is done under it.

    Raises:
        InputError: it is no text, or none that UTF-8 can carry.
    """
    if not isinstance(name, str):
        raise InputError(f"the {kind}'s name must be text (a str), not {type(name).__name__}.")
    canonical(name)


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
        _require_name(kind, name)
        if kind == "effect":
            self._announce(check, name)
        raised: list[BaseException] = []

        def guarded() -> Any:
            try:
                return _plain(name, produce())
            except BaseException as error:
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
        _require_name("effect", name)
        self._announce(check, name)
        raised: list[BaseException] = []

        async def guarded() -> Any:
            try:
                return _plain(name, await produce())
            except BaseException as error:
                if ends_the_task(error):
                    raise
                raised.append(error)
                raise

        effect = await self.world.atake(
            Effect(stage=stage, check=check, round=round, kind="effect", name=name),
            guarded,
        )
        return self._record(effect, raised, gate)

    def _record(self, effect: Effect, raised: list[BaseException], gate: Gate) -> Any:
        self.add(effect, gate)
        if effect.error is not None:
            raise raised[0] if raised else ReplayedError.of(*effect.error)
        # A copy: what the check does with it must not reach the record.
        return copy.deepcopy(effect.value)

    def secret(self, name: str, *, gate: Gate, stage: str, check: str, round: int) -> str:
        """Return a secret and remember to scrub it from everything that is recorded.

        That it was asked for is recorded, or the error that came instead.
        """
        found: list[str] = []
        self.take(
            "secret",
            name,
            lambda: found.append(self.world.secret(name)),
            gate=gate,
            stage=stage,
            check=check,
            round=round,
        )
        value = found[0] if found else self.world.secret(name)  # the record holds no value
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
        candidate = _NESTED_CANDIDATES + number
        if sampling is not None:
            sampling = checked(sampling)
        chosen = msgspec.structs.replace(merged(sampling, self._sampling), candidate=candidate)
        if chosen.seed is None:
            chosen = msgspec.structs.replace(chosen, seed=self._sampling.seed)
        self._announce(check, "generate")
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

    def generate(
        self,
        request: Request,
        gate: Gate | None = None,
        on_text: Callable[[str], None] | None = None,
        **place: Any,
    ) -> Generation:
        """Ask the world for a generation and record it, or the error that came instead."""
        started = time.perf_counter_ns()
        try:
            generation = self.world.generate(request, _asker(place), on_text)
        except IsonomyError as error:
            raise self._failed(error, place, started, gate) from None
        return self._generated(request, generation, place, started, gate)

    async def agenerate(
        self,
        request: Request,
        gate: Gate | None = None,
        on_text: Callable[[str], None] | None = None,
        **place: Any,
    ) -> Generation:
        """Like `generate`, without blocking the loop."""
        started = time.perf_counter_ns()
        try:
            generation = await self.world.agenerate(request, _asker(place), on_text)
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
                attempts=getattr(error, "attempts", ()),
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
        # What comes of it must not reach the record; the call itself goes on with the content only.
        if gate is not None:
            return own(generation)
        return msgspec.structs.replace(generation, content=own(generation.content))
