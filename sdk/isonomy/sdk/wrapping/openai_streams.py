"""Streams of wrapped OpenAI clients: the provider's events, held back until judged.

The guard releases text; the client reads an HTTP response of server-sent events. `Release` lets an
event of the provider's pass, byte for byte, once the text up to it was released, and tells events
of its own from where a check changed the answer. An event that says more than text (a tool call,
reasoning, the end) waits for the whole to be judged, and so does all that follows it, unless no
check judges answers.

What comes of it is the body of an HTTP response (`body_of`, `abody_of`), of which the client makes
its stream, as it does of the provider's own. Closing that closes the guard's stream.
"""

from __future__ import annotations

import json
import sys
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from ..errors import BackendError
from ..vocabulary import Candidate, Stage
from .openai_events import Ending, Event
from .openai_exchange import ErrorEvent, Exchange, Received, Told
from .replies import remember
from .settings import Settings

if TYPE_CHECKING:
    from ..performing import Reply
    from ..policy import Policy
    from ..streams import AsyncStream, Stream

_JUDGING: tuple[Stage, ...] = ("critique", "revise", "rank", "tool_call", "post_validate")


def judges_answers(policy: Policy) -> bool:
    """Return whether a policy has checks that could stop or change an answer."""
    return any(policy.at(stage) for stage in _JUDGING)


class Release:
    """Turns what the guard released into events.

    Args:
        exchange: has the provider's events.
        free: no check judges answers, so that only text is waited for.
        late: hold each piece of text until the next: the last may be a refusal, in whose place
            there will be an error.
    """

    def __init__(self, exchange: Exchange, *, free: bool, late: bool) -> None:
        self._exchange = exchange
        self._teller = exchange.wire.teller
        self._free = free
        self._late = late
        self._held = ""
        self._source: Received | None = None
        self._next = 0
        """Which of the source's events comes next."""
        self._left: list[Event] = []
        self._released = ""
        self._at = 0
        """How much of the released text has left in events."""
        self._own = False
        """Whether the text has left the provider's own events."""

    def feed(self, piece: str) -> list[bytes]:
        """Return the events that a piece of released text lets pass."""
        if self._late:
            piece, self._held = self._held, piece
        if not piece or not self._exchange.received:
            return []
        if self._source is None:
            self._source = self._source_of(piece)
        self._released += piece
        told = [] if self._own else self._provided(self._source)
        if self._own and self._left and self._at < len(self._released):
            told += self._say(self._released[self._at :])
        return told

    def _source_of(self, piece: str) -> Received:
        for received in reversed(self._exchange.received):
            if received.text.startswith(piece):
                return received
        return self._exchange.received[-1]

    def _provided(self, source: Received) -> list[bytes]:
        told = []
        while self._next < len(source.events):
            event = source.events[self._next]
            end = self._at + len(event.text)
            waiting = self._released[self._at : end]
            if waiting != event.text:
                self._own = not event.text.startswith(waiting)
                break
            if not event.plain and not (self._free and end < len(self._released)):
                break
            told.append(_bytes(event))
            self._left.append(event.event)
            self._next += 1
            self._at = end
        return told

    def _say(self, text: str) -> list[bytes]:
        events = self._teller.saying(self._left, text)
        self._left += events
        self._at += len(text)
        return [self._made(event) for event in events]

    def finish(self, replies: list[Reply]) -> list[bytes]:
        """Return the events that are left when all is judged."""
        released = self._exchange.released(replies)
        source = released.received
        if released.body is None and not self._own and self._source in (None, source):
            assert source is not None
            return [_bytes(event) for event in source.events[self._next :]]
        kept: list[bytes] = []
        if len(replies) > 1 and source is not None:
            for event in source.events:
                rest = self._teller.without(event.event, released.changed)
                if rest is not None and event.event:
                    kept.append(self._made(rest))
        return kept + self._ending(replies, released)

    def _ending(self, replies: list[Reply], released: Any) -> list[bytes]:
        answers: dict[int, Candidate] = dict(released.changed)
        final = released.body
        if not answers:  # the text left the provider's events, and came back to it
            assert released.received is not None
            answers = {0: released.received.answers[0]}
            final = released.received.body
        stopped = frozenset(index for index, reply in enumerate(replies) if reply.blocked)
        text = answers[0].text[self._at :] if 0 in answers else ""
        ending = Ending(
            answers=answers,
            text=text,
            stopped=stopped,
            final=final,
            usage=self._exchange.asked.usage,
            form=self._exchange.asked.response_format is not None,
        )
        told = [self._made(event) for event in self._teller.ending(self._left, ending)]
        return told + [f"data: {data}\n\n".encode() for data in self._teller.done]

    def _made(self, event: Event) -> bytes:
        data = json.dumps(event)
        return _written(event.get("type") if self._teller.named else None, data)


def _bytes(told: Told) -> bytes:
    return _written(told.name, told.data)


def _written(name: str | None, data: str) -> bytes:
    lines = "".join(f"data: {line}\n" for line in data.split("\n"))
    head = f"event: {name}\n" if name else ""
    return f"{head}{lines}\n".encode("utf-8", "surrogatepass")


class Reading:
    """One guarded stream that a client reads: what is shared by both kinds.

    Args:
        exchange: asks the provider.
        settings: how to behave.
        policy: the guard's.
    """

    def __init__(self, exchange: Exchange, settings: Settings, policy: Policy) -> None:
        self.exchange = exchange
        self.release = Release(exchange, free=not judges_answers(policy), late=settings.raises)
        self._settings = settings
        self._reader: weakref.ref[Any] | None = None
        self._replies: list[Reply] = []

    def read_by(self, made: Any) -> None:
        """Note who reads: it is remembered with the reply, once there is one."""
        self._reader = weakref.ref(made)
        if self._replies:
            remember(made, self._replies)

    def ended(self, replies: list[Reply]) -> list[bytes]:
        """Return the last events.

        Raises:
            Blocked: the policy stopped the call, and the caller wanted that to raise.
        """
        self._replies = replies
        reader = self._reader() if self._reader is not None else None
        if reader is not None:
            remember(reader, replies)
        for reply in replies:
            self._settings.stops(reply)
        return self.release.finish(replies)

    def told(self, replies: list[Reply], failure: BackendError | None) -> Iterator[bytes]:
        """Return the events of a stream that was judged as a whole, or what is left of it."""
        if failure is None:
            return iter(self.ended(replies))
        return self._failing(failure)

    def _failing(self, failure: BackendError) -> Iterator[bytes]:
        yield from self.failed(failure)  # raised where the stream is read, as it broke there

    def failed(self, failure: BackendError) -> list[bytes]:
        """Return what is left to be told of a failure.

        Raises:
            BaseException: what the client raised, or the failure itself, where that is ours.
        """
        original = self.exchange.original(failure)
        if isinstance(original, ErrorEvent):
            return [_bytes(original.told)]
        raise original if original is not None else failure


def body_of(
    reading: Reading, stream: Stream, first: str | None, failure: BackendError | None
) -> Iterator[bytes]:
    """Give the events that a client is to read of a guard's stream.

    Args:
        reading: makes them.
        stream: has given its first piece.
        first: that piece; `None` where it has none.
        failure: what it raised instead.
    """
    try:
        piece = first
        while piece is not None and failure is None:
            yield from reading.release.feed(piece)
            try:
                piece = next(stream, None)
            except BackendError as error:
                failure = error
        if failure is None:
            yield from reading.ended([stream.reply])
    finally:
        stream.close()
    if failure is not None:
        yield from reading.failed(failure)


async def abody_of(
    reading: Reading, stream: AsyncStream, first: str | None, failure: BackendError | None
) -> AsyncIterator[bytes]:
    """Like `body_of`, for an async client."""
    try:
        piece = first
        while piece is not None and failure is None:
            for data in reading.release.feed(piece):
                yield data
            try:
                piece = await anext(stream, None)
            except BackendError as error:
                failure = error
        if failure is None:
            for data in reading.ended([stream.reply]):
                yield data
    finally:
        await stream.aclose()
    if failure is not None:
        for data in reading.failed(failure):
            yield data


def response_of(
    template: Any, kind: Any, request: Any, body: Iterator[bytes], close: Callable[[], None]
) -> Any:
    """Return an HTTP response with a body that is told as it is read."""
    base = sys.modules[(type(template) if template is not None else kind).__module__.split(".")[0]]

    class Body(base.SyncByteStream):  # type: ignore[name-defined, misc]
        def __iter__(self) -> Iterator[bytes]:
            return body

        def close(self) -> None:
            close()

    return _response(template, kind, request, Body())


def aresponse_of(
    template: Any,
    kind: Any,
    request: Any,
    body: AsyncIterator[bytes],
    close: Callable[[], Awaitable[None]],
) -> Any:
    """Like `response_of`, for an async client."""
    base = sys.modules[(type(template) if template is not None else kind).__module__.split(".")[0]]

    class Body(base.AsyncByteStream):  # type: ignore[name-defined, misc]
        def __aiter__(self) -> AsyncIterator[bytes]:
            return body

        async def aclose(self) -> None:
            await close()

    return _response(template, kind, request, Body())


def _response(template: Any, kind: Any, request: Any, body: Any) -> Any:
    if template is None:
        headers = [("content-type", "text/event-stream; charset=utf-8")]
        made = kind(200, headers=headers, request=request, stream=body)
        made.elapsed = timedelta(0)
        return made
    dropped = ("content-length", "content-encoding", "transfer-encoding")
    headers = [pair for pair in template.headers.multi_items() if pair[0].lower() not in dropped]
    made = type(template)(
        template.status_code, headers=headers, request=template.request, stream=body
    )
    made.elapsed = getattr(template, "_elapsed", timedelta(0))
    return made
