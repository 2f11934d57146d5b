"""One guarded request of an Anthropic client: the backend that answers it with the client itself.

An `Exchange` stands between the guard, which speaks our vocabulary, and the client, which keeps its
own types. It sends what the caller asked for, as the checks left it, keeps what came back, and
makes the client's own message of what the guard released. Invariants:

- Nothing changed: the request is the caller's own and the answer the object that the client gave.
- An error of the client's is raised as it is (`error_behind`), and recorded as a `RemoteError`.
"""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from functools import cached_property
from typing import Any
from urllib.parse import urlsplit

import msgspec

from ..canonical import carriable
from ..errors import BackendError, IsonomyError, RemoteError
from ..generation import Attempt, Generation, Identity, Request, Sampling
from ..performing import Reply
from ..vocabulary import Message, Part, Reasoning, Text, ToolCall, text_of
from ..world import said_by
from .anthropic_format import (
    Block,
    Settings,
    answer_block,
    answer_parts,
    finish_reason_of,
    messages_of,
    rendered,
    settings_of,
    usage_of,
)

_PARAMETERS = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "max_tokens": "max_tokens",
    "stop": "stop_sequences",
}
"""Our names of sampling settings, and the provider's."""
_OPEN = (None, ())
_LONGEST_MESSAGE = 600
"""How much of an error's message is recorded, in characters."""
NESTED = 1 << 16
"""Requests of plugins' own are numbered as candidates from here on."""


class Heard:
    """What came back on one request: the client's message, or the events of a stream of it."""

    def __init__(self, backend: str) -> None:
        self._backend = backend
        self.generation: Generation | None = None
        self.message: Any = None
        self.response: Any = None
        self.events: list[Any] = []
        self.folded: Block = {}
        self.others: list[Block] = []
        """What events said that are not known here: carried as blocks, for checks to see."""
        self._places: dict[int, int] = {}
        self._written: dict[int, str] = {}

    def add(self, event: Any) -> str:
        """Take in an event of a stream, and return the text that it adds to the answer.

        Raises:
            BackendError: the event is malformed.
        """
        try:
            text = self._add(event)
        except (AttributeError, LookupError, TypeError) as error:
            raise BackendError(
                "the endpoint's answer can't be judged: an event of the stream is malformed "
                f"({type(error).__name__}: {error}). It was not released.",
                backend=self._backend,
            ) from None
        self.events.append(event)
        return text

    def _add(self, event: Any) -> str:
        kind = event.type
        if kind == "message_start":
            self.folded = event.message.to_dict(mode="json", warnings=False)
            self.folded["content"] = []
        elif kind == "content_block_start":
            block = event.content_block.to_dict(mode="json", warnings=False)
            self._places[event.index] = len(self._blocks())
            self._blocks().append(block)
            return block.get("text") or "" if block.get("type") == "text" else ""
        elif kind == "content_block_delta":
            return self._delta(event.index, event.delta)
        elif kind == "content_block_stop":
            place = self._places[event.index]
            if place in self._written:
                self._blocks()[place]["input"] = _arguments(self._written.pop(place))
        elif kind == "message_delta":
            self.folded.update(event.delta.to_dict(mode="json", warnings=False))
            usage = event.usage.to_dict(mode="json", warnings=False)
            self.folded["usage"] = {**self.folded.get("usage", {}), **usage}
        elif kind not in ("message_stop", "ping"):
            self.others.append(event.to_dict(mode="json", warnings=False))
        return ""

    def _blocks(self) -> list[Block]:
        blocks: list[Block] = self.folded.setdefault("content", [])
        return blocks

    def _delta(self, index: int, delta: Any) -> str:
        place = self._places[index]
        block = self._blocks()[place]
        if delta.type == "text_delta":
            block["text"] = block.get("text", "") + delta.text
            return str(delta.text)
        if delta.type == "input_json_delta":
            self._written[place] = self._written.get(place, "") + delta.partial_json
        elif delta.type == "thinking_delta":
            block["thinking"] = block.get("thinking", "") + delta.thinking
        elif delta.type == "signature_delta":
            block["signature"] = delta.signature
        elif delta.type == "citations_delta":
            block["citations"] = [*(block.get("citations") or ()), delta.citation.to_dict()]
        else:
            self.others.append(delta.to_dict(mode="json", warnings=False))
        return ""

    def _request_id(self) -> str | None:
        if self.response is not None:
            return str(self.response.headers.get("request-id") or "") or None
        with suppress(AttributeError):
            return self.message._request_id or None
        return None

    def finished(self) -> Generation:
        """Return the answer in our words; what was said of a tool call that broke off as it is."""
        body: Block = (
            self.message.to_dict(mode="json", warnings=False)
            if self.message is not None
            else self.folded
        )
        for index, written in self._written.items():
            body["content"][index]["input"] = written
        if self.others:
            body["content"] = [*(body.get("content") or ()), *self.others]
        return Generation(
            content=answer_parts(body.get("content") or []),
            finish_reason=finish_reason_of(body.get("stop_reason")),
            model=str(body.get("model") or ""),
            usage=usage_of(body.get("usage")),
            raw=json.dumps(body),
            runtime={"request_id": id} if (id := self._request_id()) else {},
        )


def _arguments(written: str) -> Any:
    """Return a tool's input as it is read from JSON text, or the text where it is none."""
    if not written:
        return {}
    try:
        return json.loads(written)
    except ValueError:
        return written


def _parameters(sampling: Sampling) -> Block:
    """Return sampling settings as parameters of a request; those that are open are left out."""
    given = {theirs: getattr(sampling, ours) for ours, theirs in _PARAMETERS.items()}
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in given.items()
        if value not in _OPEN
    }


class Exchange:
    """Answers one guarded request with the client that it was made to.

    Args:
        send: posts a request body; with `stream`, returns a stream of events.
        body: the request as its caller made it, as plain data.
        base_url: of the client; user names and passwords in it are left out.
        secrets: the client's keys, which no record may hold.
        stream: whether the caller asked for a stream.
        carry: types of blocks to pass on as they are.
        loop: where an async client's requests must be made.

    Raises:
        InputError: the request holds what can't be judged.
    """

    def __init__(
        self,
        send: Callable[..., Any],
        body: Block,
        *,
        base_url: Any,
        secrets: Iterable[str | None] = (),
        stream: bool = False,
        carry: Collection[str] = (),
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self.body = body
        self.messages: tuple[Message, ...] = messages_of(body, carry=carry)
        self.settings: Settings = settings_of(body)
        self.heard: list[Heard] = []
        self._send = send
        self._secrets = [secret for secret in secrets if secret]
        self._added: Block = {}
        self.base_url = base_url
        self._stream = stream
        self._loop = loop
        self._errors: list[tuple[IsonomyError, BaseException]] = []

    def identity(self) -> Identity:
        """Return the model that the request asks."""
        return self._identity

    @cached_property
    def _identity(self) -> Identity:
        model = str(self.body.get("model", ""))
        url = urlsplit(str(self.base_url))
        host = url.netloc.rpartition("@")[2]
        return Identity(
            provider="anthropic",
            model=model,
            spec=f"anthropic:{model}",
            options={"base_url": f"{url.scheme}://{host}{url.path.rstrip('/')}"},
        )

    def resolve(self, sampling: Sampling) -> Sampling:
        """Return the request's own settings, with the guard's for those that it leaves open.

        The guard's are sent too; what the provider has no parameter for is left out.
        """
        asked = self.settings.sampling
        added = {
            name: value
            for name in _PARAMETERS
            if getattr(asked, name) in _OPEN and (value := getattr(sampling, name)) not in _OPEN
        }
        self._added = _parameters(Sampling(**added))
        return msgspec.structs.replace(asked, **added)

    def close(self) -> None:
        """Do nothing: the client is its owner's."""

    def generate(
        self, request: Request, *, on_text: Callable[[str], None] | None = None
    ) -> Generation:
        """Send the request; from a thread of its own where the client is async."""
        if self._loop is not None:
            return self._from_thread(request, on_text)
        body, heard, started = (
            self._body(request),
            Heard(self.identity().spec),
            time.perf_counter_ns(),
        )
        try:
            if self._streams(request):
                self.heard.append(heard)
                with self._send(body, stream=True) as events:
                    heard.response = events.response
                    for event in events:
                        _tell(on_text, heard.add(event))
            else:
                heard.message = self._send(body)
        except Exception as error:
            raise self._failed(error, started) from error
        return self._done(request, heard)

    async def agenerate(
        self, request: Request, *, on_text: Callable[[str], None] | None = None
    ) -> Generation:
        """Send the request without blocking the loop, in the loop that the client belongs to."""
        if self._loop is None:
            return await asyncio.to_thread(self.generate, request, on_text=on_text)
        if asyncio.get_running_loop() is not self._loop:
            return await asyncio.wrap_future(
                asyncio.run_coroutine_threadsafe(self._agenerate(request, on_text), self._loop)
            )
        return await self._agenerate(request, on_text)

    async def _agenerate(
        self, request: Request, on_text: Callable[[str], None] | None
    ) -> Generation:
        body, heard, started = (
            self._body(request),
            Heard(self.identity().spec),
            time.perf_counter_ns(),
        )
        try:
            if self._streams(request):
                self.heard.append(heard)
                async with await self._send(body, stream=True) as events:
                    heard.response = events.response
                    async for event in events:
                        _tell(on_text, heard.add(event))
            else:
                heard.message = await self._send(body)
        except Exception as error:
            raise self._failed(error, started) from error
        return self._done(request, heard)

    def _from_thread(self, request: Request, on_text: Callable[[str], None] | None) -> Generation:
        assert self._loop is not None
        with suppress(RuntimeError):
            if asyncio.get_running_loop() is self._loop:
                raise BackendError(
                    "a check asks an async client from within its event loop, which would wait "
                    "for itself. Make the check async, or not inline.",
                    backend=self.identity().spec,
                )
        asked = self._agenerate(request, on_text)
        return asyncio.run_coroutine_threadsafe(asked, self._loop).result()

    def _streams(self, request: Request) -> bool:
        return self._stream and request.sampling.candidate < NESTED

    def _body(self, request: Request) -> Block:
        if request.sampling.candidate < NESTED:
            body = rendered(self.body, self.messages, request.messages)
            return {**body, **self._added} if self._added else body
        own: Block = {n: self.body[n] for n in ("model", "max_tokens") if n in self.body}
        return rendered(
            {**own, **_parameters(request.sampling), "messages": []}, (), request.messages
        )

    def _done(self, request: Request, heard: Heard) -> Generation:
        if heard.message is not None and not hasattr(heard.message, "to_dict"):
            raise BackendError(
                f"the endpoint's answer can't be judged: it is no message, but "
                f"{type(heard.message).__name__}. It was not released.",
                backend=self.identity().spec,
            )
        heard.generation = heard.finished()
        if request.sampling.candidate < NESTED and heard not in self.heard:
            self.heard.append(heard)
        return heard.generation

    def _failed(self, error: Exception, started: int) -> IsonomyError:
        """Return the error to record for one of the client's own, which is kept beside it."""
        if isinstance(error, IsonomyError):
            return error
        status = getattr(error, "status_code", None)
        said = self._clean(f"{type(error).__name__}: {said_by(error)}")[:_LONGEST_MESSAGE]
        attempt = Attempt(
            number=1,
            outcome="error",
            status=status,
            error=said,
            duration_ns=time.perf_counter_ns() - started,
        )
        recorded = RemoteError(
            f"the client raised {said}",
            backend=self.identity().spec,
            status=status,
            attempts=(attempt,),
        )
        self._errors.append((recorded, error))
        return recorded

    def message_of(self, reply: Reply, kind: Any) -> Any:
        """Return the client's message of what was released: its own, if nothing changed.

        Args:
            reply: the guard's.
            kind: the class to make a message of, where a check changed something.
        """
        heard = self.unchanged(reply)
        if heard is not None and heard.message is not None:
            return heard.message
        message = kind.construct(**self.body_of(reply))
        for heard in reversed(self.heard):
            if heard.message is not None:
                self.mark(message, heard.message)
                break
        return message

    def mark(self, message: Any, original: Any) -> None:
        """Give a message the ids of the request that another one came from."""
        for name in ("_request_id", "_workspace_id"):  # the package sets them by hand too
            with suppress(AttributeError):
                setattr(message, name, getattr(original, name))

    def _clean(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "[api key]")
        return carriable(text)

    def hang_up(self) -> None:
        """End the connections of streams that are still read: nobody waits for them any more.

        A thread that waits for a provider's next byte notices nothing else.
        """
        for heard in self.heard:
            if heard.generation is None and heard.response is not None:
                _hang_up(heard.response)

    def error_behind(self, error: IsonomyError) -> BaseException:
        """Return the client's own error that an error of the guard stands for, else that error."""
        return next((raised for known, raised in self._errors if known is error), error)

    def unchanged(self, reply: Reply) -> Heard | None:
        """Return what came back of the answer that was released, if it was released as it came."""
        if reply.blocked:
            return None
        for heard in reversed(self.heard):
            if heard.generation is not None and heard.generation.content == reply.output.content:
                return heard
        return None

    def body_of(self, reply: Reply) -> Block:
        """Return a message that says what was released, as plain data.

        A refusal has the stop reason ``refusal``; where the model was not asked it cost nothing.
        """
        last = next((heard for heard in reversed(self.heard) if heard.generation), None)
        if last is None:
            body: Block = {
                "id": f"msg_{reply.call_id.replace('-', '')}",
                "type": "message",
                "role": "assistant",
                "model": self.body.get("model"),
                "stop_sequence": None,
                "usage": {"input_tokens": 0, "output_tokens": 0},
            }
        else:
            body = (
                last.message.to_dict(mode="json", warnings=False)
                if last.message
                else dict(last.folded)
            )
        blocks: list[Block] = list(body.get("content") or ())
        others = last.others if last is not None else []
        content = _blocks(reply.output.content, blocks)
        body["content"] = [block for block in content if block not in others]
        if reply.blocked:
            body["stop_reason"], body["stop_sequence"] = "refusal", None
        elif body.get("stop_reason") == "tool_use" and not any(
            isinstance(part, ToolCall) for part in reply.output.content
        ):
            body["stop_reason"] = "end_turn"
        return body


def _hang_up(response: Any) -> None:
    if response.http_version != "HTTP/1.1":  # others share their connection with other calls
        return
    stream = response.extensions.get("network_stream")
    connection = stream.get_extra_info("socket") if stream is not None else None
    if connection is not None:
        with suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)


def _tell(on_text: Callable[[str], None] | None, text: str) -> None:
    if on_text is not None and text:
        on_text(text)


def _blocks(content: tuple[Part, ...], blocks: list[Block]) -> Iterator[Block]:
    """Return the blocks of what was released, the model's own for parts that did not change.

    Where text changed, thinking about the text that was is left out, and so are its citations.
    """
    old = answer_parts(blocks)
    rewritten = text_of(content) != text_of(old)
    left = list(zip(old, blocks, strict=True))
    for part in content:
        found = next((pair for pair in left if pair[0] == part), None)
        if isinstance(part, Reasoning) and (rewritten or found is None):
            continue  # it is about other words, or its signature is
        if found is not None:
            left.remove(found)
            yield found[1]
        elif not isinstance(part, Text) or part.text:
            yield answer_block(part)
