"""Writing one call's records.

Which event and message goes into which record, and as which payload.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from . import provenance
from .errors import LogError
from .events import Event, Failed, Generated, Judged, Unjudged
from .generation import Identity, Sampling, Usage
from .judging import Standing
from .log import Log
from .policy import Policy
from .records import (
    Entry,
    Intent,
    Masked,
    Opening,
    Output,
    Payload,
    Pending,
    RequestContent,
    Result,
    Segment,
    header_of,
)
from .trail import Trail
from .vocabulary import Call, Message

if TYPE_CHECKING:
    from .asking import Answer
    from .contents import Question
    from .masking import Masks

_EVENTS = msgspec.json.Decoder(tuple[Event, ...])
_LOOKED_AT = frozenset((Judged, Unjudged, Failed, Generated))
"""Events whose content was read back when it came in: verdicts and answers. Most calls have no
others."""


class Scribe:
    """Writes one call's records.

    `process` is the one that performs the call: a forked child has no part in it.
    """

    def __init__(
        self,
        log: Log,
        call: Call,
        *,
        policy: Policy,
        identity: Identity,
        backends: Mapping[str, Identity] | None = None,
        masks: Masks | None = None,
    ) -> None:
        self.process = os.getpid()
        self._masking = masks.masking() if masks is not None else None
        self._log = log
        self._call = call
        self._policy = policy
        self._identity = identity
        self._backends = dict(backends or {})
        self._events = 0
        self._messages = 0

    def _stamp(self) -> dict[str, Any]:
        return {
            "call_id": self._call.id,
            "session": self._call.session,
            "subject": self._call.subject,
            "wall_ns": time.time_ns(),
            "monotonic_ns": time.monotonic_ns(),
            "host": _host(),
            "process": os.getpid(),
        }

    @property
    def marking(self) -> Callable[[str, Question, Answer], None] | None:
        """Is to be told what checks say, where that decides what is masked."""
        return self._masking.mark if self._masking is not None else None

    def opening(self, check: str, effect: str) -> None:
        """Record that a check is about to touch the outside world."""
        self._log.append([Entry(Opening(**self._stamp(), check=check, effect=effect))])

    def claim(self) -> Entry:
        """Build the record that begins a resumed call: no other may begin it again."""
        return Entry(Opening(**self._stamp(), check="", effect="resume"))

    def _fresh(self, trail: Trail) -> tuple[list[Event], list[Payload]]:
        """Return events and message payloads that are not recorded yet."""
        events = trail.events[self._events :]
        bodies = trail.messages[self._messages :]
        payloads = [
            Payload(f"message/{self._messages + index}", self._scrubbed(trail, body))
            for index, body in enumerate(bodies)
        ]
        self._events += len(events)
        self._messages += len(bodies)
        return events, payloads

    def _told(self, trail: Trail, events: list[Event]) -> Payload:
        """Return the payload of events.

        Raises:
            LogError: it would not read back: a record that nobody can read is none.
        """
        body = trail.scrub(events)
        if _LOOKED_AT.issuperset(map(type, events)):
            return Payload("events", body)
        try:
            _EVENTS.decode(body)
        except msgspec.MsgspecError as error:
            raise LogError(
                f"what happened in this call can't be recorded so that it reads back: {error}. "
                "Nothing was released; please report this.",
                path=self._log.path,
            ) from error
        return Payload("events", body)

    @staticmethod
    def _scrubbed(trail: Trail, message: bytes) -> bytes:
        if not trail.secrets:
            return message
        return trail.scrub(msgspec.json.decode(message, type=Message))

    def intent(
        self,
        sampling: Sampling,
        trail: Trail,
        content: RequestContent,
        *,
        operation: Literal["chat", "stream", "resume"] = "chat",
        resumes: str | None = None,
    ) -> Entry:
        """Build the intent record of what is known before the model is asked."""
        events, payloads = self._fresh(trail)
        kept, masked = self._masked(
            (
                Payload("policy", self._policy.written, shared=True),
                *payloads,
                Payload("request", trail.scrub(content)),
                self._told(trail, events),
            ),
            {*content.messages, *(content.admitted or ())},
        )
        return Entry(
            Intent(
                **self._stamp(),
                masked=masked,
                operation=operation,
                actor=self._call.actor,
                trace_id=self._call.trace_id,
                parent_id=self._call.parent_id,
                tags=self._call.tags,
                identity=self._identity,
                sampling=sampling,
                policy_name=self._policy.name,
                policy_digest=self._policy.digest,
                checks=self._policy.identities,
                versions=versions(),
                events=tuple(header_of(event) for event in events),
                backends=self._backends,
                resumes=resumes,
            ),
            kept,
        )

    def _masked(
        self, payloads: tuple[Payload, ...], own: Iterable[int] = ()
    ) -> tuple[tuple[Payload, ...], tuple[Masked, ...] | msgspec.UnsetType]:
        """Return what is to be recorded of payloads, and where something was taken out."""
        if self._masking is None:
            return payloads, msgspec.UNSET
        kept, masked = self._masking.masked(payloads, own)
        return kept, masked or msgspec.UNSET

    def segment(self, trail: Trail, text: str, *, number: int, start: int) -> Entry:
        """Build the record of a piece of the answer that is about to leave."""
        if self._masking is not None and self._masking.withholds:
            body, masked = self._masking.withheld()
            segment = Segment(**self._stamp(), number=number, start=start, masked=masked)
            return Entry(segment, (Payload("text", body),))
        return Entry(
            Segment(**self._stamp(), number=number, start=start),
            (Payload("text", trail.scrub(text)),),
        )

    def result(
        self,
        trail: Trail,
        standing: Standing,
        output: Output,
        *,
        usage: Usage,
        finish_reason: str | None,
        rounds: int,
        error: str | None,
        duration_ns: int,
        first_released_ns: int | None = None,
        stalled: dict[str, int] | None = None,
        token: str | None = None,
        pending: Pending | None = None,
    ) -> Entry:
        """Build the result record."""
        events, payloads = self._fresh(trail)
        kept, masked = self._masked(
            (
                *payloads,
                self._told(trail, events),
                Payload("output", trail.scrub(output)),
                *(() if pending is None else (Payload("pending", trail.scrub(pending)),)),
            )
        )
        return Entry(
            Result(
                **self._stamp(),
                masked=masked,
                verdict=standing.verdict,
                finish_reason=finish_reason,
                usage=usage,
                rounds=rounds,
                duration_ns=duration_ns,
                error=error,
                first_released_ns=first_released_ns,
                stalled=stalled or {},
                token=token,
                events=tuple(header_of(event) for event in events),
            ),
            kept,
        )

    def append(self, entries: list[Entry]) -> None:
        """Make entries durable."""
        self._log.append(entries)


def versions() -> dict[str, str]:
    """Return the versions that matter to a call, for the record."""
    names = ("isonomy", "msgspec", "pluggy")
    return {name: provenance.version_of(name) or "?" for name in names}


@cache
def _host() -> str:
    import socket  # only where there is a log

    return socket.gethostname()
