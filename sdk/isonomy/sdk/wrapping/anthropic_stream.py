"""Streams of wrapped Anthropic clients: the provider's events, held back until judged.

The guard releases text; the caller reads events. `Gate` lets an event of the provider's pass, as
the very object that it is, once all text up to it has been released, and makes events of its own
where a check changed the answer. What is no text (thinking, citations, calls of tools) was judged
with the whole answer only, so it waits for the end, and so does all that follows it, unless no
check judges answers at all.

Opening a stream asks the model, as the client itself does: what the provider refuses is raised
there. It returns when the first text is released.
"""

from __future__ import annotations

import json
import weakref
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING, Any

import anthropic

from ..errors import Blocked, IsonomyError
from ..vocabulary import Stage
from .anthropic_exchange import Exchange, Heard
from .anthropic_format import Block
from .replies import remember
from .settings import Settings

if TYPE_CHECKING:
    from ..guard import Guard
    from ..performing import Reply
    from ..policy import Policy

_JUDGES_ANSWERS: tuple[Stage, ...] = ("critique", "revise", "rank", "tool_call", "post_validate")
_EVENTS = {
    "message_start": "RawMessageStartEvent",
    "content_block_start": "RawContentBlockStartEvent",
    "content_block_delta": "RawContentBlockDeltaEvent",
    "content_block_stop": "RawContentBlockStopEvent",
    "message_delta": "RawMessageDeltaEvent",
    "message_stop": "RawMessageStopEvent",
}


class Gate:
    """Turns what the guard released into events.

    Args:
        exchange: where the provider's events are.
        settings: how to behave.
        free: no check judges answers, so nothing but text need wait.
        parsed: a helper of the package's parses the text when its block ends.
    """

    def __init__(self, exchange: Exchange, settings: Settings, *, free: bool, parsed: bool) -> None:
        self._exchange = exchange
        self._settings = settings
        self._free = free
        self._parsed = parsed
        self._heard: Heard | None = None
        self._next = 0
        """Which of the provider's events comes next."""
        self._blocks = 0
        """How many blocks were begun."""
        self._open = False
        """Whether the last of them, one of text, is still open."""
        self._released = ""
        self._late = ""
        self._sent = 0
        """How much of the released text has left in events."""
        self._own = False
        """Whether the text has left the provider's own events."""

    def feed(self, piece: str) -> Iterator[Any]:
        """Return the events that a piece of released text lets pass."""
        if self._settings.raises:
            # The last piece may be the refusal, in whose place there will be an error.
            piece, self._late = self._late, piece
        if not piece or not self._exchange.heard:
            return
        self._released += piece
        if self._heard is None:
            self._heard = self._exchange.heard[-1]
        if not self._own:
            yield from self._provider_events(self._heard.events)
        if self._own:
            yield from self._own_text(self._released)

    def _provider_events(self, events: list[Any]) -> Iterator[Any]:
        while self._next < len(events):
            event = events[self._next]
            text = _text_in(event)
            if text is None:
                if not self._free:
                    return
            elif not self._released.startswith(text, self._sent):
                # It may only be that not all of this event's text is released yet.
                self._own = not text.startswith(self._released[self._sent :])
                return
            elif event.type == "content_block_stop" and self._sent == len(self._released):
                return  # more may be added to this text yet
            self._sent += len(text or "")
            self._note(event)
            yield event

    def _note(self, event: Any) -> None:
        self._next += 1
        if event.type == "content_block_start":
            self._blocks += 1
            self._open = event.content_block.type == "text"
        elif event.type == "content_block_stop":
            self._open = False

    def finish(self, reply: Reply) -> Iterator[Any]:
        """Return the events that are left when the call has ended.

        Raises:
            Blocked: the policy stopped the call, and calls are to raise then.
        """
        refused = self._settings.stops(reply)
        heard = self._exchange.unchanged(reply)
        if heard is not None and not self._own and self._heard in (None, heard):
            for event in heard.events[self._next :]:
                self._note(event)
                yield event
            return
        yield from self._own_events(self._exchange.body_of(reply), keep_open=refused)

    def _own_events(self, body: Block, *, keep_open: bool) -> Iterator[Any]:
        """Return what is left of an answer that a check changed, as events of our own.

        Args:
            body: the whole answer.
            keep_open: it is a refusal, which has no form that could be parsed.
        """
        if not self._next:
            yield self._start(body)
        skipped = 0
        for block in body["content"]:
            if block["type"] == "text":
                start, skipped = skipped, skipped + len(block["text"])
                if skipped > self._sent or not self._blocks:
                    begun = max(self._sent - start, 0)
                    yield from self._own_text(block["text"][begun:], whole=False)
                    self._sent = skipped
                if not (keep_open and self._parsed):
                    yield from self._close()
            else:
                yield from self._close()
                yield from self._whole(block)
        if not (keep_open and self._parsed):
            yield from self._close()
        usage = {
            name: count for name, count in (body.get("usage") or {}).items() if count is not None
        }
        delta = {name: body.get(name) for name in ("stop_reason", "stop_sequence")}
        yield _event("message_delta", delta=delta, usage={"output_tokens": 0, **usage})
        yield _event("message_stop")

    def _start(self, body: Block) -> Any:
        if self._exchange.heard and self._exchange.heard[-1].events:
            first = self._exchange.heard[-1].events[0]
            if first.type == "message_start":
                return first
        started = {**body, "content": [], "stop_reason": None}
        return _event("message_start", message=started)

    def _own_text(self, text: str, *, whole: bool = True) -> Iterator[Any]:
        """Return a delta for text that has not left yet.

        Args:
            text: all of the released text, or (not `whole`) what is left to send.
            whole: which of the two it is.
        """
        if whole:
            text, self._sent = text[self._sent :], len(text)
        if not self._open:
            self._blocks += 1
            self._open = True
            block = {"type": "text", "text": ""}
            yield _event("content_block_start", index=self._blocks - 1, content_block=block)
        if text:
            delta = {"type": "text_delta", "text": text}
            yield _event("content_block_delta", index=self._blocks - 1, delta=delta)

    def _close(self) -> Iterator[Any]:
        if self._open:
            self._open = False
            yield _event("content_block_stop", index=self._blocks - 1)

    def _whole(self, block: Block) -> Iterator[Any]:
        index = self._blocks
        self._blocks += 1
        empty, deltas = dict(block), []
        if block["type"] in ("tool_use", "server_tool_use"):
            empty["input"] = {}
            written = json.dumps(block["input"])
            deltas.append({"type": "input_json_delta", "partial_json": written})
        elif block["type"] == "thinking":
            empty.update(thinking="", signature="")
            deltas.append({"type": "thinking_delta", "thinking": block["thinking"]})
            deltas.append({"type": "signature_delta", "signature": block.get("signature", "")})
        yield _event("content_block_start", index=index, content_block=empty)
        for delta in deltas:
            yield _event("content_block_delta", index=index, delta=delta)
        yield _event("content_block_stop", index=index)


def _event(kind: str, **fields: Any) -> Any:
    return getattr(anthropic.types, _EVENTS[kind]).construct(type=kind, **fields)


def _text_in(event: Any) -> str | None:
    """Return the text that an event brings; `None` of one that must wait for the whole answer."""
    if event.type in ("message_start", "content_block_stop"):
        return ""  # the end of any other block comes after what has to wait
    if event.type == "content_block_start" and event.content_block.type == "text":
        block = event.content_block
        return None if block.citations else block.text or ""
    if event.type == "content_block_delta" and event.delta.type == "text_delta":
        return str(event.delta.text)
    return None


def _judges_answers(policy: Policy) -> bool:
    return any(policy.at(stage) for stage in _JUDGES_ANSWERS)


def _gate(guard: Guard, exchange: Exchange, settings: Settings, helper: bool) -> Gate:
    parsed = helper and exchange.settings.response_format is not None
    free = not _judges_answers(guard.policy)
    return Gate(exchange, settings, free=free, parsed=parsed)


def _response(exchange: Exchange, call_id: str) -> Any:
    """Return the provider's response; where it was never asked, one that says so."""
    for heard in reversed(exchange.heard):
        if heard.response is not None:
            return heard.response
    url = exchange.base_url
    http: Any = import_module(type(url).__module__.partition(".")[0])
    return http.Response(200, headers={"request-id": call_id}, request=http.Request("POST", url))


class GuardedStream(anthropic.Stream[Any]):
    """A stream of events that passed the guard."""

    @property
    def _observer(self) -> None:
        """The package's own tracing has seen the provider's events already."""
        return None

    def __init__(
        self, events: Iterator[Any], pieces: Any, exchange: Exchange, response: Any
    ) -> None:
        self.__dict__["_iterator"] = events
        self._pieces = pieces
        self._exchange = exchange
        self.response = response

    def close(self) -> None:
        """Stop: the model is cancelled, and the log says so."""
        self._pieces.close()
        self._exchange.hang_up()


class AsyncGuardedStream(anthropic.AsyncStream[Any]):
    """A stream of events that passed the guard."""

    @property
    def _observer(self) -> None:
        """As of `GuardedStream`."""
        return None

    def __init__(self, events: AsyncIterator[Any], pieces: Any, response: Any) -> None:
        self.__dict__["_iterator"] = events
        self._pieces = pieces
        self.response = response

    async def close(self) -> None:
        """Stop: the model is cancelled, and the log says so."""
        await self._pieces.aclose()


def _opened(exchange: Exchange) -> bool:
    return any(heard.response is not None for heard in exchange.heard)


def guarded_stream(
    guard: Guard, exchange: Exchange, settings: Settings, options: Any, *, helper: bool
) -> GuardedStream:
    """Ask the model and return its events as the guard lets them pass.

    Args:
        guard: judges.
        exchange: asks the client.
        settings: how to behave.
        options: of the call.
        helper: whether a helper of the package's reads the events.
    """
    gate = _gate(guard, exchange, settings, helper)
    pieces: Any = guard.stream(exchange.messages, backend=exchange, **options)
    first: list[str] = []
    failure: BaseException | None = None
    try:
        for piece in pieces:
            first.append(piece)
            if exchange.heard:
                break
        else:
            settings.stops(pieces.reply)
    except Blocked:
        raise
    except IsonomyError as error:
        failure = exchange.error_behind(error)
    if failure is not None and not _opened(exchange):
        pieces.close()
        raise failure
    owner: list[weakref.ref[Any]] = []

    def events() -> Iterator[Any]:
        failed = failure
        if failed is None:
            try:
                for piece in first:
                    yield from gate.feed(piece)
                for piece in pieces:
                    yield from gate.feed(piece)
                _remember(owner, pieces.reply)
                yield from gate.finish(pieces.reply)
            except IsonomyError as error:
                failed = exchange.error_behind(error)
            finally:
                pieces.close()
                exchange.hang_up()
        if failed is not None:
            raise failed

    response = _response(exchange, pieces.call_id)
    stream = GuardedStream(events(), pieces, exchange, response)
    owner.append(weakref.ref(stream))
    return stream


async def async_guarded_stream(
    guard: Guard, exchange: Exchange, settings: Settings, options: Any, *, helper: bool
) -> AsyncGuardedStream:
    """Like `guarded_stream`, without blocking the loop."""
    gate = _gate(guard, exchange, settings, helper)
    pieces: Any = guard.astream(exchange.messages, backend=exchange, **options)
    first: list[str] = []
    failure: BaseException | None = None
    try:
        async for piece in pieces:
            first.append(piece)
            if exchange.heard:
                break
        else:
            settings.stops(pieces.reply)
    except Blocked:
        raise
    except IsonomyError as error:
        failure = exchange.error_behind(error)
    if failure is not None and not _opened(exchange):
        await pieces.aclose()
        raise failure
    owner: list[weakref.ref[Any]] = []

    async def events() -> AsyncIterator[Any]:
        failed = failure
        if failed is None:
            try:
                for piece in first:
                    for event in gate.feed(piece):
                        yield event
                async for piece in pieces:
                    for event in gate.feed(piece):
                        yield event
                _remember(owner, pieces.reply)
                for event in gate.finish(pieces.reply):
                    yield event
            except IsonomyError as error:
                failed = exchange.error_behind(error)
            finally:
                await pieces.aclose()
        if failed is not None:
            raise failed

    response = _response(exchange, pieces.call_id)
    stream = AsyncGuardedStream(events(), pieces, response)
    owner.append(weakref.ref(stream))
    return stream


def _remember(owner: list[weakref.ref[Any]], reply: Reply) -> None:
    with suppress(IndexError):
        stream = owner[0]()
        if stream is not None:
            remember(stream, (reply,))
