"""Calls that others recorded, as calls of a log.

Each passes the real pipeline (`isonomy.sdk.performing`) with its recorded answer in the place of a
model, so that checks judge it as they would have, and its record is one of ours: it can be queried,
replayed, and judged by another policy. The operation is ``import``; the backend is who answered
then, never deterministic, so nothing is ever asked again. Unless a policy is given, none judges.
Observers of a policy (telemetry) are not told: these calls happened before.

What was recorded answers once, whatever a check made of the messages: a check that has the model
asked again, or asks it something itself, finds no answer, and the call ends with that error, as its
record says. Times are the recorded ones; where there are none, that of the import stands there, and
the tag ``imported_time`` is ``unknown``; a duration that was not recorded is 0. Ids are made from
the file's name and the place in it, so that importing the same file again gives the same.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec

from isonomy.sdk.asking import Blocking, drive
from isonomy.sdk.canonical import canonical
from isonomy.sdk.errors import BackendError, InputError, IsonomyError, LogError
from isonomy.sdk.events import BackendFailed, Event, Generated
from isonomy.sdk.generation import Backend, Generation, Identity, Request, Sampling
from isonomy.sdk.performing import Performance, perform
from isonomy.sdk.policy import Policy
from isonomy.sdk.records import Entry, Intent, Payload, Result, header_of
from isonomy.sdk.requests import (
    as_call,
    as_extra,
    as_messages,
    as_response_format,
    as_tools,
    checked,
)
from isonomy.sdk.scribe import Scribe
from isonomy.sdk.vocabulary import Message
from isonomy.sdk.workers import Workers
from isonomy.sdk.world import Live

from .errors import UnusableFile

OPERATION = "import"
LATEST_NS = (1 << 48) * 1_000_000 - 1
"""The last time that an id of ours can hold; a log can hold more."""


class PastCall(msgspec.Struct, frozen=True, kw_only=True):
    """A call as another tool recorded it.

    Attributes:
        file: where it was found.
        place: the line, row or sample there.
        source: what recorded it: ``openai``, ``llm``, ``inspect``.
        id: its id there; the tag ``imported_id``.
        messages: what the model was told.
        answers: what it answered; several where several were asked for. Empty where it failed.
        error: why it did not answer.
        provider: who answered.
        model: which model was asked for.
        sampling: how answers were drawn, as far as that was recorded.
        tools: what the model was offered, in the chat-completions format.
        response_format: what form the answer should have.
        extra: further parameters of the request.
        started_ns: when it began, nanoseconds since 1970; `None` where that was not recorded.
        duration_ns: how long it took; `None` where that was not recorded.
        session: the conversation that it belongs to.
        actor: who asked.
        tags: further ones.
    """

    file: str
    place: str
    source: str
    id: str
    messages: tuple[Message, ...]
    answers: tuple[Generation, ...] = ()
    error: str | None = None
    provider: str
    model: str
    sampling: Sampling = Sampling()
    tools: tuple[dict[str, Any], ...] = ()
    response_format: dict[str, Any] | None = None
    extra: dict[str, Any] = {}
    started_ns: int | None = None
    duration_ns: int | None = None
    session: str | None = None
    actor: str | None = None
    tags: dict[str, str] = {}


class Judge:
    """Performs past calls under a policy; to be closed.

    Args:
        policy: judges; unless given, nothing does.
        backends: further ones that its checks may ask, by name: they do answer now.
        clock: nanoseconds since 1970, for what has no time of its own.
    """

    def __init__(
        self,
        policy: Policy | None = None,
        *,
        backends: Mapping[str, Backend] | None = None,
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        self._policy = policy if policy is not None else Policy((), name="none")
        self._backends = dict(backends or {})
        self._clock = clock
        self._workers = Workers()

    def __enter__(self) -> Judge:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the threads of checks; the backends are the caller's."""
        self._workers.close()

    def all(
        self, calls: Iterable[PastCall | UnusableFile]
    ) -> Iterator[Sequence[Entry] | UnusableFile]:
        """Yield the entries of each call, or why it can't be used."""
        known: set[str] = set()
        for past in calls:
            try:
                if isinstance(past, UnusableFile):
                    raise past
                call_id = call_id_of(past)
                if call_id in known:
                    raise UnusableFile(
                        "it was there already. Name every file once.",
                        file=past.file,
                        place=past.place,
                    )
                known.add(call_id)
                yield self.entries(past)
            except UnusableFile as error:
                yield error

    def entries(self, past: PastCall) -> list[Entry]:
        """Return the records of a past call, judged.

        Raises:
            UnusableFile: it says what a record can't hold.
        """
        try:
            performance = self._performance(past)
        except InputError as error:
            raise UnusableFile(str(error), file=past.file, place=past.place) from None
        kept = _Kept()
        began = past.started_ns if past.started_ns is not None else self._clock()
        scribe = _PastScribe(kept, performance, self._policy, self._backends, past, began)
        try:
            drive(
                perform(
                    performance,
                    policy=self._policy,
                    waiting=Blocking(),
                    workers=self._workers,
                    scribe=scribe,
                )
            )
        except LogError as error:
            raise UnusableFile(str(error), file=past.file, place=past.place) from error
        except IsonomyError:
            pass  # the call ended so, and its record says it
        return [scribe.placed(entry) for entry in kept.entries]

    def _performance(self, past: PastCall) -> Performance:
        messages = as_messages(past.messages)
        tags = {**past.tags, "imported_from": past.source, "imported_id": past.id}
        if past.started_ns is None:
            tags["imported_time"] = "unknown"
        call_id = call_id_of(past)
        session = past.session or call_id
        backend = _Past(past)
        return Performance(
            call=as_call(id=call_id, session=session, subject=session, actor=past.actor, tags=tags),
            messages=messages,
            request=Request(
                messages=messages,
                tools=as_tools(past.tools),
                response_format=as_response_format(past.response_format),
                extra=as_extra(past.extra),
            ),
            sampling=checked(past.sampling),
            world=Live(backend, None, self._backends),
        )


class _Kept:
    """A log that keeps what is appended."""

    path = ""

    def __init__(self) -> None:
        self.entries: list[Entry] = []

    def append(self, entries: Sequence[Entry]) -> list[int]:
        self.entries.extend(entries)
        return list(range(1, len(entries) + 1))

    def close(self) -> None:
        pass


class _PastScribe(Scribe):
    """Writes a past call's records, and gives them the times of then."""

    def __init__(
        self,
        log: _Kept,
        performance: Performance,
        policy: Policy,
        backends: Mapping[str, Backend],
        past: PastCall,
        began: int,
    ) -> None:
        super().__init__(
            log,
            performance.call,
            policy=policy,
            identity=_identity(past),
            backends={name: each.identity() for name, each in backends.items()},
        )
        self._took = past.duration_ns or 0
        self._began = began

    def placed(self, entry: Entry) -> Entry:
        """Return an entry as one of then."""
        record, payloads = entry.record, entry.payloads
        if not isinstance(record, Intent | Result):
            return Entry(msgspec.structs.replace(record, wall_ns=self._began), payloads)
        events = tuple(map(self._lasting, _events_in(payloads)))
        changed: dict[str, Any] = {"events": tuple(map(header_of, events))}
        if isinstance(record, Intent):
            changed |= {"wall_ns": self._began, "operation": OPERATION}
        else:
            changed |= {"wall_ns": self._began + self._took, "duration_ns": self._took}
        told = Payload("events", canonical(events))
        return Entry(
            msgspec.structs.replace(record, **changed),
            tuple(told if payload.name == "events" else payload for payload in payloads),
        )

    def _lasting(self, event: Event) -> Event:
        """Return an event with the duration of then, where the answer of then was taken."""
        if isinstance(event, Generated | BackendFailed) and event.backend is None:
            return msgspec.structs.replace(event, duration_ns=self._took)
        return event


def _events_in(payloads: tuple[Payload, ...]) -> tuple[Event, ...]:
    body = next(payload.body for payload in payloads if payload.name == "events")
    return msgspec.json.decode(body, type=tuple[Event, ...])


def _identity(past: PastCall) -> Identity:
    return Identity(provider=past.provider, model=past.model, spec=f"import:{past.source}")


class _Past:
    """Answers with what was answered then: each candidate once."""

    def __init__(self, past: PastCall) -> None:
        self._past = past
        self._asked: set[int] = set()

    def identity(self) -> Identity:
        return _identity(self._past)

    def resolve(self, sampling: Sampling) -> Sampling:
        return sampling

    def generate(
        self, request: Request, *, on_text: Callable[[str], None] | None = None
    ) -> Generation:
        spec, candidate = f"import:{self._past.source}", request.sampling.candidate
        if self._past.error is not None:
            raise BackendError(self._past.error, backend=spec)
        if candidate in self._asked or candidate >= len(self._past.answers):
            raise BackendError(
                "the imported traffic has no answer to this: a check asked the model again, or "
                "something of its own. Give such checks a backend to ask ([backends.NAME]).",
                backend=spec,
            )
        self._asked.add(candidate)
        generation = self._past.answers[candidate]
        if on_text is not None:
            on_text(generation.text)
        return generation

    async def agenerate(
        self, request: Request, *, on_text: Callable[[str], None] | None = None
    ) -> Generation:
        return self.generate(request, on_text=on_text)

    def close(self) -> None:
        pass


def call_id_of(past: PastCall) -> str:
    """Return an id of the form of a UUID of version 7: its time, and where it was found."""
    began = min(max(past.started_ns or 0, 0), LATEST_NS) // 1_000_000
    parts = (past.source, os.path.basename(past.file), past.id, past.place)  # noqa: PTH119
    named = "\0".join(parts).encode("utf-8", "surrogatepass")
    rest = hashlib.sha256(named).hexdigest()
    stamp = f"{began:012x}"
    variant = "89ab"[int(rest[3], 16) & 3]
    return f"{stamp[:8]}-{stamp[8:]}-7{rest[:3]}-{variant}{rest[4:7]}-{rest[7:19]}"


def nanoseconds(value: Any) -> int | None:
    """Return a time as nanoseconds since 1970, from what traffic has: ISO 8601 text or seconds.

    Text without a zone is UTC. What is neither is `None`.
    """
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, int | float):
        return int(value * 1_000_000_000) if 0 <= value < 1 << 33 else None
    if not isinstance(value, str):
        return None
    try:
        moment = datetime.fromisoformat(value.strip())
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    since = moment - datetime(1970, 1, 1, tzinfo=UTC)
    whole = since.days * 86_400 + since.seconds
    found = whole * 1_000_000_000 + since.microseconds * 1000
    return found if 0 <= found <= LATEST_NS else None
