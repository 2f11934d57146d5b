"""The trail of a call: its events in sequence, its messages, its one gate to the world.

The trail numbers events and messages, scrubs secrets from them, and asks a `World` (world.py) for
everything that comes from outside.
"""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import msgspec

from .canonical import canonical, carriable, own
from .errors import InputError, IsonomyError
from .events import BackendFailed, Effect, Event, Failed, Generated, Scored
from .generation import Generation, Request, Sampling
from .requests import checked
from .vocabulary import Message, Text
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
    return Asker(place["stage"], place["check"], place["round"], place.get("backend"))


class Asked(NamedTuple):
    """What a plugin asks a backend."""

    messages: tuple[Message, ...]
    sampling: Sampling | None = None
    response_format: dict[str, Any] | None = None
    backend: str | None = None


def _open() -> None:
    """Let everything in: the call itself is always waited for."""


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
        self.marking: Callable[[str, Any, Any], None] | None = None
        """Is told what each check was asked, and answered, where its log masks what checks mark."""
        self.shadowed = 0
        """How many of the events are of checks on trial: they must not move anybody's draws."""
        self._sampling = sampling
        self._observe = observe
        self._before_effect = before_effect
        self._numbers: dict[bytes, int] = {}
        self._known: dict[int, tuple[Message, int]] = {}
        self.lock = threading.RLock()

    def add(self, event: Event) -> None:
        """Give an event the next sequence number, append it, and show it to observers."""
        with self.lock:
            event = self._append(event)
        if self._observe is not None:
            self._observe(event)

    def put(self, build: Callable[[], Event], gate: Gate) -> None:
        """Add what a check took from the world, unless nobody waits for the check any more.

        Raises:
            PluginError: `gate` is closed.
        """
        with self.lock:
            gate()  # before messages are numbered: who is not waited for leaves no trace
            event = self._append(build())
        if self._observe is not None:
            self._observe(event)

    def _append(self, event: Event) -> Event:
        if event.sequence == -1:  # nobody else has seen it
            msgspec.structs.force_setattr(event, "sequence", len(self.events))
        else:
            event = msgspec.structs.replace(event, sequence=len(self.events))
        if self.secrets:
            event = self._scrubbed(event)
        self.events.append(event)
        return event

    def branch(self) -> Branch:
        """Return a trail of one check that runs beside others; see `Branch`."""
        return Branch(self)

    def number(self, messages: tuple[Message, ...]) -> tuple[int, ...]:
        """Return the messages' numbers in the call's message table, entering new ones."""
        with self.lock:
            return tuple([self._number(message) for message in messages])

    def _number(self, message: Message) -> int:
        known = self._known.get(id(message))  # kept, so that no other gets its id
        if known is not None:
            return known[1]
        body = canonical(message)
        number = self._numbers.get(body)
        if number is None:
            number = self._numbers[body] = len(self.messages)
            self.messages.append(body)
        self._known[id(message)] = message, number
        return number

    def retell(self, events: tuple[Event, ...]) -> Failed:
        """Add what a replay hands back, with the messages that belong to it; return the timeout.

        `events` are what a check took from the world, and the timeout that came then.
        """
        for event in events:
            if isinstance(event, Generated | Scored):
                self.number(self.world.said(event))
            self.add(event)
        last = events[-1]
        assert isinstance(last, Failed)
        return last

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
        self.put(lambda: effect, gate)
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

    def _request(self, asked: Asked, check: str, number: int) -> tuple[Request, int]:
        candidate = _NESTED_CANDIDATES + number
        if asked.sampling is not None:
            chosen = checked(asked.sampling)
        elif asked.backend is None:
            chosen = self._sampling
        else:  # another backend may not know the parameters of the call's
            chosen = Sampling()
        seed = self._sampling.seed if chosen.seed is None else chosen.seed
        chosen = msgspec.structs.replace(chosen, candidate=candidate, seed=seed)
        self._announce(check, "generate")
        request = Request(
            messages=asked.messages, sampling=chosen, response_format=asked.response_format
        )
        return request, candidate

    def nested(
        self,
        asked: Asked,
        *,
        number: int,
        gate: Gate,
        stage: str,
        check: str,
        round: int,
    ) -> Generation:
        """Answer a plugin's own request."""
        request, candidate = self._request(asked, check, number)
        return self.generate(
            request,
            gate,
            purpose="nested",
            candidate=candidate,
            stage=stage,
            check=check,
            round=round,
            backend=asked.backend,
        )

    async def anested(
        self,
        asked: Asked,
        *,
        number: int,
        gate: Gate,
        stage: str,
        check: str,
        round: int,
    ) -> Generation:
        """Answer an async plugin's own request."""
        request, candidate = self._request(asked, check, number)
        return await self.agenerate(
            request,
            gate,
            purpose="nested",
            candidate=candidate,
            stage=stage,
            check=check,
            round=round,
            backend=asked.backend,
        )

    def score(
        self, asked: Asked, labels: tuple[str, ...], *, gate: Gate, **place: Any
    ) -> tuple[float, ...] | None:
        """Answer how likely a backend finds each label, and record it."""
        started = time.perf_counter_ns()
        self._announce(place["check"], "logprobs")
        asker = Asker(**place, backend=asked.backend)
        found = self.world.logprobs(Request(messages=asked.messages), labels, asker)
        return self._scored(asked, labels, found, started, gate, place)

    async def ascore(
        self, asked: Asked, labels: tuple[str, ...], *, gate: Gate, **place: Any
    ) -> tuple[float, ...] | None:
        """Like `score`, without blocking the loop."""
        started = time.perf_counter_ns()
        self._announce(place["check"], "logprobs")
        asker = Asker(**place, backend=asked.backend)
        found = await self.world.alogprobs(Request(messages=asked.messages), labels, asker)
        return self._scored(asked, labels, found, started, gate, place)

    def _scored(
        self,
        asked: Asked,
        labels: tuple[str, ...],
        found: tuple[float, ...] | None,
        started: int,
        gate: Gate,
        place: Mapping[str, Any],
    ) -> tuple[float, ...] | None:
        took = time.perf_counter_ns() - started
        self.put(
            lambda: Scored(
                messages=self.number(asked.messages),
                labels=labels,
                logprobs=found,
                backend=asked.backend,
                duration_ns=took,
                **place,
            ),
            gate,
        )
        return found

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
        took = time.perf_counter_ns() - started
        self.put(
            lambda: BackendFailed(
                error=type(error).__name__,
                message=carriable(str(error)),
                attempts=getattr(error, "attempts", ()),
                duration_ns=took,
                **place,
            ),
            gate or _open,
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
        took = time.perf_counter_ns() - started

        def generated(response_format: dict[str, Any] | None) -> Generated:
            return Generated(
                messages=self.number(request.messages),
                sampling=request.sampling,
                generation=generation,
                response_format=response_format,
                duration_ns=took,
                **place,
            )

        # What comes of it must not reach the record; the call itself goes on with the content only.
        if gate is not None:
            nested = place["purpose"] == "nested"
            self.put(lambda: generated(request.response_format if nested else None), gate)
            return own(generation)
        self.add(generated(None))
        if all(type(part) is Text for part in generation.content):  # holds nothing to be changed
            return generation
        return msgspec.structs.replace(generation, content=own(generation.content))


class Branch(Trail):
    """The trail of a check that runs beside others.

    What the check takes from the world is kept here, and enters the call's trail when its turn has
    come (`join`): so the record tells of checks in the policy's order, however they ran.
    """

    def __init__(self, trail: Trail) -> None:
        # Not `super().__init__`: all of it is the other's.
        self._trail = trail
        self._kept: list[Callable[[], Event]] = []
        self.events = trail.events
        self.messages = trail.messages
        self.secrets = trail.secrets
        self.world = trail.world
        self.lock = trail.lock
        self._sampling = trail._sampling

    def put(self, build: Callable[[], Event], gate: Gate) -> None:
        """Keep what the check took, unless nobody waits for it any more."""
        with self.lock:
            gate()
            self._kept.append(build)

    def number(self, messages: tuple[Message, ...]) -> tuple[int, ...]:
        """Return the messages' numbers in the call's table."""
        return self._trail.number(messages)

    def join(self) -> None:
        """Add what was kept to the call's trail."""
        with self.lock:
            for build in self._kept:
                self._trail.add(build())
            self._kept.clear()

    def _announce(self, check: str, name: str) -> None:
        self._trail._announce(check, name)
