"""A small world for guards: a deterministic backend, a log in memory, and events without durations.

Both are real implementations of the SDK's protocols; nothing here stands in for the pipeline.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import msgspec

from isonomy.sdk import (
    BackendError,
    Generation,
    Guard,
    Identity,
    LogError,
    Message,
    Part,
    Reply,
    Request,
    Sampling,
    Text,
    Usage,
)
from isonomy.sdk.canonical import canonical
from isonomy.sdk.events import Event
from isonomy.sdk.records import Entry, Intent, Opening, Output, RequestContent, Result

Answer = str | tuple[Part, ...] | Exception


def echo(messages: tuple[Message, ...]) -> Answer:
    """Answer with what was asked last."""
    return f"You said: {messages[-1].text}"


class Scripted:
    """A backend whose answer is a function of the messages; it remembers what it was asked."""

    def __init__(self, answer: Callable[[tuple[Message, ...]], Answer] | Sequence[Answer] = echo):
        self.requests: list[Request] = []
        self.when_asked: list[Callable[[Request], None]] = []
        self.closed = 0
        self._answer = answer

    def identity(self) -> Identity:
        return Identity(provider="scripted", model="parrot", spec="scripted:parrot")

    def resolve(self, sampling: Sampling) -> Sampling:
        return sampling

    def generate(
        self, request: Request, *, on_text: Callable[[str], None] | None = None
    ) -> Generation:
        for look in self.when_asked:
            look(request)
        self.requests.append(request)
        if callable(self._answer):
            answer = self._answer(request.messages)
        else:
            answer = self._answer[len(self.requests) - 1]
        if isinstance(answer, Exception):
            raise answer
        content = (Text(answer),) if isinstance(answer, str) else answer
        return Generation(content=content, finish_reason="stop", model="parrot", usage=Usage(3, 5))

    async def agenerate(
        self, request: Request, *, on_text: Callable[[str], None] | None = None
    ) -> Generation:
        return self.generate(request, on_text=on_text)

    def close(self) -> None:
        self.closed += 1


def broken() -> BackendError:
    return BackendError("the parrot is asleep. Wake it.", backend="scripted")


class Memory:
    """A log that keeps entries; `fail_at` numbers the appends that fail."""

    def __init__(self, *, fail_at: Sequence[int] = ()) -> None:
        self.entries: list[Entry] = []
        self.batches: list[list[Entry]] = []
        self.closed = 0
        self._fail_at = fail_at
        self._appends = 0

    @property
    def path(self) -> str:
        return "memory"

    def append(self, entries: Sequence[Entry]) -> list[int]:
        self._appends += 1
        if self._appends - 1 in self._fail_at:
            raise LogError("the disk is full. Make room.", path=self.path)
        first = len(self.entries)
        self.entries.extend(entries)
        self.batches.append(list(entries))
        return list(range(first, len(self.entries)))

    def close(self) -> None:
        self.closed += 1

    @property
    def kinds(self) -> list[str]:
        return [type(entry.record).__name__ for entry in self.entries]

    def only(self, kind: type[Opening] | type[Intent] | type[Result]) -> Entry:
        (entry,) = [entry for entry in self.entries if isinstance(entry.record, kind)]
        return entry

    def everything(self) -> bytes:
        """All bytes that a real log would store."""
        return b"\n".join(
            part
            for entry in self.entries
            for part in (canonical(entry.record), *(payload.body for payload in entry.payloads))
        )


def payloads(entry: Entry) -> dict[str, bytes]:
    """The payloads of an entry by name; names are unique."""
    bodies = {payload.name: payload.body for payload in entry.payloads}
    assert len(bodies) == len(entry.payloads)
    return bodies


def events_in(entry: Entry) -> tuple[Event, ...]:
    return msgspec.json.decode(payloads(entry)["events"], type=tuple[Event, ...])


def request_in(entry: Entry) -> RequestContent:
    return msgspec.json.decode(payloads(entry)["request"], type=RequestContent)


def output_in(entry: Entry) -> Output:
    return msgspec.json.decode(payloads(entry)["output"], type=Output)


def steady(events: Sequence[Event]) -> list[dict[str, Any]]:
    """Events as plain data without durations: what must be equal in every run."""
    plain = [msgspec.to_builtins(event) for event in events]
    for event in plain:
        event.pop("duration_ns", None)
    return plain


def told(events: Sequence[Event]) -> list[tuple[str, ...]]:
    """Events in short: type, stage, check, and the verdict or what a failure became."""
    lines = []
    for event in events:
        verdict = getattr(event, "verdict", None)
        outcome = verdict.name if verdict is not None else getattr(event, "became", "-")
        lines.append((event.type, event.stage, event.check or "-", outcome))
    return lines


def of_type(reply: Reply, kind: type[Any]) -> list[Any]:
    return [event for event in reply.events if isinstance(event, kind)]


SEED = Sampling(seed=7)


def in_three_ways(make: Callable[[], Guard], *args: Any, **options: Any) -> list[Reply]:
    """The same call on fresh guards: sync, async, and sync inside of a running loop."""

    def sync() -> Reply:
        with make() as guard:
            return guard.chat(*args, **options)

    async def in_loop() -> Reply:
        with make() as guard:
            return await guard.achat(*args, **options)

    async def sync_in_loop() -> Reply:
        return sync()

    return [sync(), run(in_loop()), run(sync_in_loop())]


def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(coroutine)
