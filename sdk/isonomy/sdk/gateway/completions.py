"""Chat completions: a request in OpenAI's format becomes guarded calls, their replies an answer.

``n`` choices are ``n`` guarded calls, each judged and recorded by itself, with the seeds ``seed``,
``seed + 1`` and so on. An answer that the policy refused has the refusal as its text and the finish
reason ``content_filter``. What Isonomy adds stands under the key ``isonomy`` (in a stream, of the
chunk with a choice's finish reason), which clients of OpenAI ignore: call id, verdict, and the
token by which a call that waits for a person is resumed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec

from ..calling import CallOptions
from ..canonical import canonical
from ..errors import InputError
from ..events import Generated
from ..generation import Backend, Usage
from ..performing import Reply
from ..vocabulary import SEVERITY, Audio, Candidate, Image, Json, Message, Part, Text
from ..wrapping.openai_answers import CUT, choice_of, chunk_of, completion_of, delta_of, usage_json
from ..wrapping.openai_format import ChatRequest, request_of
from .errors import Disconnected, Refused, refused
from .events import Events
from .exchange import Exchange, Receive, Send, answer
from .metrics import Metrics
from .running import Running
from .settings import DEFAULT, Settings

if TYPE_CHECKING:
    from ..guard import Guard

_METADATA_PAIRS, _METADATA_KEY, _METADATA_VALUE = 16, 64, 512
"""OpenAI's own limits of ``metadata``."""
_OURS = ("stream_options",)
"""Parameters that are about this answer, and not the provider's business."""


class Models:
    """The models that clients may ask for.

    Args:
        guard: what answers.
        settings: which names there are.

    Raises:
        InputError: a setting names a backend that the guard does not have.
    """

    def __init__(self, guard: Guard, settings: Settings) -> None:
        own = guard.backend.identity()
        others = guard.backends
        names = settings.models or {own.model: DEFAULT}
        self.own = next((name for name, behind in names.items() if behind == DEFAULT), own.model)
        """The name of the guard's own backend."""
        self._any = settings.any_model
        self._backends: dict[str, Backend | None] = {}
        self._owners: dict[str, str] = {}
        for name, behind in names.items():
            if behind != DEFAULT and behind not in others:
                raise InputError(
                    f"serve.models.{name}: this guard has no backend {behind!r}. It has "
                    f"{', '.join((DEFAULT, *others))}."
                )
            backend = None if behind == DEFAULT else others[behind]
            self._backends[name] = backend
            self._owners[name] = (backend.identity() if backend else own).provider

    def backend(self, name: str) -> Backend | None:
        """Return what answers for a model; `None` is the guard's own backend.

        Raises:
            Refused: there is no such model.
        """
        if name not in self._backends and not self._any:
            raise self._unknown(name)
        return self._backends.get(name)

    def listed(self) -> dict[str, Any]:
        """Return the list of models, as JSON data."""
        return {"object": "list", "data": [self.described(name) for name in self._backends]}

    def described(self, name: str) -> dict[str, Any]:
        """Return one model, as JSON data.

        Raises:
            Refused: there is no such model.
        """
        if name not in self._owners:
            raise self._unknown(name)
        return {"id": name, "object": "model", "created": 0, "owned_by": self._owners[name]}

    def _unknown(self, name: str) -> Refused:
        known = ", ".join(self._backends)
        return Refused(
            404,
            f"there is no model {name:.100}. There is {known}.",
            kind="not_found_error",
            param="model",
            code="model_not_found",
        )


class _Shape(msgspec.Struct, frozen=True):
    """What all pieces of one answer have in common."""

    id: str
    created: int
    model: str

    def fields(self) -> dict[str, Any]:
        return {"id": self.id, "created": self.created, "model": self.model}


class Completions:
    """Answers requests for chat completions.

    Args:
        guard: answers, judged and recorded.
        settings: limits.
        models: what may be asked for.
        running: counts and stops what runs.
        metrics: where calls are counted.
        clock: seconds since 1970, for `created`.
    """

    def __init__(
        self,
        guard: Guard,
        *,
        settings: Settings,
        models: Models,
        running: Running,
        metrics: Metrics,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._guard = guard
        self._settings = settings
        self._models = models
        self._running = running
        self._metrics = metrics
        self._clock = clock

    async def create(
        self, body: dict[str, Any], exchange: Exchange, receive: Receive, send: Send
    ) -> None:
        """Answer one request.

        Raises:
            Refused, IsonomyError: it can't be answered; nothing was sent, or the stream said so.
            Disconnected: the client left; the calls were cancelled.
        """
        request = request_of(body)
        if request.n > self._settings.max_choices:
            raise Refused(
                400,
                f"n must be at most {self._settings.max_choices} here, not {request.n}.",
                param="n",
                code="invalid_input",
            )
        exchange.stream = request.stream
        options = [self._options(request, body, exchange, index) for index in range(request.n)]
        if request.stream:
            await self._stream(request, options, exchange, receive, send)
            return
        replies = await self._running.supervise(
            self._replies(request.messages, options),
            receive,
            seconds=self._settings.call_seconds,
        )
        await self.reply(replies, request.model, exchange, send)

    def _options(
        self, request: ChatRequest, body: dict[str, Any], exchange: Exchange, index: int
    ) -> CallOptions:
        """Return the options of the call for one choice."""
        extra = {name: value for name, value in request.extra.items() if name not in _OURS}
        tags = {**_metadata(body.get("metadata")), "request_id": exchange.request_id}
        if request.n > 1:
            tags["choice"] = str(index)
        if exchange.key is not None and request.user is not None:
            tags["user"] = request.user  # what a client says; the actor is who it proved to be
        sampling = request.sampling
        if sampling.seed is not None and index:
            sampling = msgspec.structs.replace(sampling, seed=(sampling.seed + index) % (1 << 64))
        options: CallOptions = {
            "actor": exchange.key or request.user,
            "session": exchange.plain_header("x-isonomy-session"),
            "subject": exchange.plain_header("x-isonomy-subject"),
            "tags": tags,
            "trace_id": exchange.trace_id,
            "parent_id": exchange.parent_id,
            "sampling": sampling,
            "tools": request.tools,
            "response_format": request.response_format,
            "extra": extra,
        }
        backend = self._models.backend(request.model)
        if backend is not None:
            options["backend"] = backend
        return options

    async def _replies(
        self, messages: tuple[Message, ...], options: list[CallOptions]
    ) -> list[Reply]:
        async def one(given: CallOptions) -> Reply:
            try:
                return await self._guard.achat(messages, **given)
            except Exception as error:
                self._metrics.call_failed(error)
                raise

        if len(options) == 1:
            return [await one(options[0])]
        return await _together([one(given) for given in options])

    async def reply(self, replies: list[Reply], model: str, exchange: Exchange, send: Send) -> None:
        """Send whole replies as the choices of one completion."""
        for reply in replies:
            self._account(reply, exchange)
        shape = self._shape(replies[0].call_id, model)
        completion = {
            **completion_of(
                **shape.fields(),
                choices=[
                    choice_of(_candidate(reply, index), index=index)
                    for index, reply in enumerate(replies)
                ],
                usage=_total(replies),
            ),
            "system_fingerprint": _fingerprint(replies[0]),
            "isonomy": _notes(replies[0]),
        }
        for choice, reply in zip(completion["choices"], replies, strict=True):
            choice["isonomy"] = _notes(reply)
        headers = _headers(exchange)
        tokens = [token for reply in replies if (token := reply.token)]
        if tokens:
            headers["x-isonomy-token"] = ", ".join(tokens)
        for message in answer(200, msgspec.json.encode(completion), headers):
            await send(message)

    async def _stream(
        self,
        request: ChatRequest,
        options: list[CallOptions],
        exchange: Exchange,
        receive: Receive,
        send: Send,
    ) -> None:
        streams = [self._guard.astream(request.messages, **given) for given in options]
        exchange.calls = [stream.call_id for stream in streams]
        headers = _headers(exchange)
        async with Events(send, headers, alive_seconds=self._settings.keep_alive_seconds) as events:
            shape = self._shape(streams[0].call_id, request.model)
            try:
                replies = await self._running.supervise(
                    _together(
                        [
                            self._choice(stream, index, shape, request, events, exchange)
                            for index, stream in enumerate(streams)
                        ]
                    ),
                    receive,
                    seconds=self._settings.call_seconds,
                )
                if request.include_usage:
                    usage = chunk_of(**shape.fields(), usage=_total(replies))
                    await events.data({**usage, "choices": []})
                await events.done()
            except Disconnected:
                raise
            except Exception as error:
                if events.started:
                    await events.fail(refused(error))
                raise

    async def _choice(
        self,
        stream: Any,
        index: int,
        shape: _Shape,
        request: ChatRequest,
        events: Events,
        exchange: Exchange,
    ) -> Reply:
        """Send one choice as it comes, and return its reply."""
        fields = shape.fields()
        open_usage = {"usage": None} if request.include_usage else {}

        async def say(delta: dict[str, Any], finish: str | None = None, **more: Any) -> None:
            chunk = chunk_of(**fields, index=index, delta=delta, finish_reason=finish)
            await events.data({**chunk, **open_usage, **more})

        begun = False
        try:
            async with stream:
                async for piece in stream:
                    if not begun:
                        begun = True
                        self._metrics.first_chunk(exchange.seconds)
                        await say({"role": "assistant", "content": ""})
                    await say({"content": piece})
        except Exception as error:
            self._metrics.call_failed(error)
            raise
        reply: Reply = stream.reply
        self._account(reply, exchange, stream=True)
        if not begun:
            await say({"role": "assistant"})
        others = tuple(part for part in reply.output.content if not isinstance(part, Text))
        if others and (delta := delta_of(_sayable(others))):
            await say(delta)
        more = {"system_fingerprint": _fingerprint(reply), "isonomy": _notes(reply)}
        await say({}, _finish(reply), **more)
        return reply

    def _shape(self, call_id: str, model: str) -> _Shape:
        return _Shape(f"chatcmpl-{call_id}", int(self._clock()), model)

    def _account(self, reply: Reply, exchange: Exchange, *, stream: bool = False) -> None:
        """Note a reply for the access log and the metrics."""
        self._metrics.call(reply, stream=stream)
        if reply.call_id not in exchange.calls:
            exchange.calls.append(reply.call_id)
        if SEVERITY[reply.verdict] >= SEVERITY[exchange.verdict or "allow"]:
            exchange.verdict = reply.verdict


async def _together(works: list[Any]) -> list[Any]:
    """Run coroutines beside each other; the first failure ends the others, and is raised."""
    if len(works) == 1:
        return [await works[0]]
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(work) for work in works]
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return [task.result() for task in tasks]


def _metadata(given: Any) -> dict[str, str]:
    """Return a request's metadata as tags.

    Raises:
        Refused: it is no small table of texts.
    """
    if given is None:
        return {}
    if not isinstance(given, dict) or len(given) > _METADATA_PAIRS:
        raise _bad_metadata("metadata", f"must be an object of at most {_METADATA_PAIRS} pairs")
    for key, value in given.items():
        if len(key) > _METADATA_KEY:
            raise _bad_metadata("metadata", f"has a key of more than {_METADATA_KEY} characters")
        if not isinstance(value, str) or len(value) > _METADATA_VALUE:
            raise _bad_metadata(
                f"metadata.{key}", f"must be a text of at most {_METADATA_VALUE} characters"
            )
    return dict(given)


def _bad_metadata(path: str, problem: str) -> Refused:
    return Refused(400, f"{path} {problem}.", param=path, code="invalid_input")


def _candidate(reply: Reply, index: int) -> Candidate:
    content = _sayable(reply.output.content)
    return Candidate(index=index, content=content, finish_reason=_finish(reply))


def _sayable(content: tuple[Part, ...]) -> tuple[Part, ...]:
    """Return an answer's parts as the format has places for them: structured data is text there.

    Raises:
        Refused: the answer holds an image or a recording.
    """
    if any(isinstance(part, Image | Audio) for part in content):
        raise Refused(
            502,
            "the answer holds an image or a recording, for which chat completions have no place.",
            kind="server_error",
            code="unsupported_answer",
        )
    return tuple(
        Text(canonical(part.value).decode()) if isinstance(part, Json) else part for part in content
    )


def _finish(reply: Reply) -> str:
    """Return the finish reason; the format knows no other for an answer that just ended."""
    return "stop" if reply.finish_reason in (None, CUT) else reply.finish_reason


def _fingerprint(reply: Reply) -> str | None:
    """Return the provider's fingerprint of the system that gave the answer, if it told."""
    for event in reversed(reply.events):
        if isinstance(event, Generated) and event.purpose == "answer":
            found = event.generation.runtime.get("system_fingerprint")
            return found if isinstance(found, str) else None
    return None


def _notes(reply: Reply) -> dict[str, Any]:
    notes = {"call_id": reply.call_id, "verdict": reply.verdict}
    return {**notes, "token": reply.token} if reply.token else notes


def _headers(exchange: Exchange) -> dict[str, str]:
    headers = {"x-isonomy-call-id": ", ".join(exchange.calls)}
    if exchange.verdict is not None:
        headers["x-isonomy-verdict"] = exchange.verdict
    return headers


def _total(replies: list[Reply]) -> Usage:
    counts = [usage_json(reply.usage) for reply in replies]
    return Usage(
        sum(count["prompt_tokens"] for count in counts),
        sum(count["completion_tokens"] for count in counts),
    )
