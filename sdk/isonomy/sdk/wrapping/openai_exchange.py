"""One request through a wrapped OpenAI client: the backend that asks the real client.

An `Exchange` is the backend of the guarded calls that one request makes (one for each of the `n`
answers that it asks for). It sends what the caller's method was about to send, with what checks
replaced written over it, and keeps what the client received. Afterwards it says what the client is
to be given instead: the very response, where nothing was changed, or one with other answers.

Invariants: parameters are sent as the caller gave them, and no others, but for sampling settings
that the guard itself was given; the client's key is in no record, error or identity; what the
client raised is raised to its caller as it was.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import msgspec

from ..canonical import canonical, carriable
from ..errors import BackendError, IsonomyError, RemoteError
from ..generation import Generation, Identity, Request, Sampling
from ..performing import Reply
from ..vocabulary import Candidate, Message
from .openai_events import Reader
from .openai_wire import SEED_BITS, Asked, InvalidResponse, Wire, without_stale_reasoning

if TYPE_CHECKING:
    import asyncio

OFFICIAL_HOST = "api.openai.com"
_NESTED = 1 << 16
"""Plugins' own generations are numbered from here on (see trail.py)."""
_SHORTEST_SECRET = 16
"""A shorter key is none ("EMPTY", "ollama"): people send local servers what they like."""
_LONGEST_MESSAGE = 600
"""How much of an error's message is recorded, in characters."""

Send = Callable[[dict[str, Any] | None], Any]
"""Sends a body (`None`: the caller's own request as it is) and returns the HTTP response."""


class Told(msgspec.Struct, frozen=True):
    """An event of a stream: its type and data as they came, and what it says.

    `text` is what it adds to the answer; it is `plain` where it says nothing else.
    """

    name: str | None
    data: str
    event: dict[str, Any]
    text: str = ""
    plain: bool = False


class Received(msgspec.Struct):
    """A response of the provider, and what it was asked; of a stream, what has come of it.

    `body` and `answers` are there when all of it is; `text` is the first answer's so far.
    """

    http: Any
    messages: tuple[Message, ...]
    body: dict[str, Any] = {}
    answers: list[Candidate] = []
    events: list[Told] = []
    text: str = ""


class ErrorEvent(Exception):
    """The provider told of an error in mid-stream; `told` is what it said."""

    def __init__(self, told: Told) -> None:
        self.told = told
        error = told.event.get("error") or told.event
        said = error.get("message") if isinstance(error, dict) else error
        super().__init__(str(said or "An error occurred during streaming"))


class Exchange:
    """The backend of the calls that one request makes.

    Args:
        wire: the API that is asked.
        body: the request, as the client is about to send it.
        asked: the same in our words.
        base_url: whom the client asks.
        secrets: the client's keys, which no record may hold.
        send: sends a body; for an async client it returns an awaitable.
        decoder: makes a decoder of server-sent events.
        loop: the event loop that an async client is used in.
    """

    def __init__(
        self,
        wire: Wire,
        body: dict[str, Any],
        asked: Asked,
        *,
        base_url: str,
        secrets: tuple[str, ...],
        send: Send,
        decoder: Callable[[], Any],
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self.wire = wire
        self.body = body
        self.asked = asked
        self.choice = 0
        """Which answer of the request the call that is under way is about."""
        self.received: list[Received] = []
        self._answered: list[tuple[Received, int]] = []
        self._base_url = base_url
        self._secrets = tuple(secret for secret in secrets if len(secret) >= _SHORTEST_SECRET)
        self._send = send
        self._decoder = decoder
        self._loop = loop
        self._added: dict[str, Any] = {}
        self._raised: dict[int, tuple[BackendError, BaseException]] = {}

    # The backend.

    def identity(self) -> Identity:
        """Return whom the client asks."""
        url = urlsplit(self._base_url)
        official = url.hostname == OFFICIAL_HOST
        netloc = url.netloc.rpartition("@")[2]
        return Identity(
            provider="openai" if official else url.hostname or "unknown",
            model=self.asked.model,
            spec=f"openai:{self.asked.model}",
            options={"base_url": f"{url.scheme}://{netloc}{url.path.rstrip('/')}"},
        )

    def resolve(self, sampling: Sampling) -> Sampling:
        """Note which settings are the guard's own: they are sent beside the caller's."""
        own = {
            name: value
            for name in Sampling.__struct_fields__
            if (value := getattr(sampling, name)) and not getattr(self.asked.sampling, name)
        }
        self._added = self.wire.settings(Sampling(**own))
        return sampling

    def generate(
        self, request: Request, *, on_text: Callable[[str], None] | None = None
    ) -> Generation:
        """Ask the client."""
        received = self._at_hand(request)
        if received is None:
            try:
                http = self._waited_for(self._body_for(request))
            except Exception as error:
                raise self._failed(error) from error
            if self._streams(request):
                received = self._listened(request, http, on_text)
            else:
                received = self._read(request, http)
        return self._generation(request, received, on_text)

    async def agenerate(
        self, request: Request, *, on_text: Callable[[str], None] | None = None
    ) -> Generation:
        """Ask the client."""
        received = self._at_hand(request)
        if received is None:
            try:
                http = await self._awaited(self._body_for(request))
            except Exception as error:
                raise self._failed(error) from error
            if self._streams(request):
                received = await self._alistened(request, http, on_text)
            else:
                received = self._read(request, http)
        return self._generation(request, received, on_text)

    def _waited_for(self, body: dict[str, Any] | None) -> Any:
        """Send, and block; a check may ask so of an async client, from a thread of its own."""
        if self._loop is None:
            return self._send(body)
        import asyncio

        try:
            here = asyncio.get_running_loop()
        except RuntimeError:
            here = None
        if here is self._loop:
            raise RuntimeError(
                "a check that runs inline can't wait for an async client: use ctx.agenerate"
            )
        return asyncio.run_coroutine_threadsafe(self._send(body), self._loop).result()

    async def _awaited(self, body: dict[str, Any] | None) -> Any:
        """Send, in the loop that the client is used in; a check may ask from another."""
        import asyncio

        if self._loop is None:
            return await asyncio.to_thread(self._send, body)
        if asyncio.get_running_loop() is self._loop:
            return await self._send(body)
        return await asyncio.wrap_future(
            asyncio.run_coroutine_threadsafe(self._send(body), self._loop)
        )

    def close(self) -> None:
        """Do nothing: the client is its owner's."""

    # Asking.

    def _at_hand(self, request: Request) -> Received | None:
        """Return a response that holds another answer to the same request."""
        if _is_nested(request) or request.sampling.candidate or not self.received:
            return None
        first = self.received[0]
        taken = any(of is first and index == self.choice for of, index in self._answered)
        if taken or self.choice >= len(first.answers) or first.messages != request.messages:
            return None
        return first

    def _body_for(self, request: Request) -> dict[str, Any] | None:
        """Return what is to be sent, or `None` for the caller's own request as it is."""
        if _is_nested(request):
            settings = self.wire.settings(request.sampling)
            if not {"seed"} & (self._added.keys() | self.body.keys()):
                settings.pop("seed", None)
            return {**self.wire.nested(self.body, request.messages), **settings}
        first = not self.received
        changed = request.messages != self.asked.messages
        if first and not changed and not self._added:
            return None
        body = {**self.body, **self._added}
        if changed:
            body = self.wire.asking(body, self.asked, request.messages)
        if not first and "n" in body:
            body["n"] = 1
        if request.sampling.candidate and isinstance(body.get("seed"), int):
            body["seed"] = (body["seed"] + request.sampling.candidate) % (1 << SEED_BITS)
        return body

    def _read(self, request: Request, http: Any) -> Received:
        try:
            body = json.loads(http.content)
            if not isinstance(body, dict):
                raise InvalidResponse("it is no JSON object")
            answers = self._expected(request, self.wire.answers(body))
        except json.JSONDecodeError as error:
            kind = str(http.headers.get("content-type", "")).partition(";")[0]
            said = f"it is not JSON but {kind or 'of no type'}: {error}"
            raise self._unusable(said) from None
        except (InvalidResponse, UnicodeDecodeError) as error:
            raise self._unusable(str(error)) from None
        received = Received(http, request.messages, body, answers)
        if not _is_nested(request):
            self.received.append(received)
        return received

    def _expected(self, request: Request, answers: list[Candidate]) -> list[Candidate]:
        """Return the answers of a response, if there is a guarded call for each.

        Raises:
            InvalidResponse: there are more than were asked for; nobody would judge the others.
        """
        first = not _is_nested(request) and not any(kept.answers for kept in self.received)
        most = self.asked.n if first else 1
        if len(answers) > most:
            raise InvalidResponse(f"it holds {len(answers)} answers where {most} can be judged")
        return answers

    # Streams.

    def _streams(self, request: Request) -> bool:
        return self.asked.stream and not _is_nested(request)

    def _listened(
        self, request: Request, http: Any, on_text: Callable[[str], None] | None
    ) -> Received:
        """Read a stream to its end."""
        received, reader, take = self._listening(request, http, on_text)
        try:
            for event in self._decoder().iter_bytes(http.iter_bytes()):
                if not take(event):
                    break
        except IsonomyError:
            raise
        except InvalidResponse as error:
            raise self._unusable(str(error)) from None
        except Exception as error:
            raise self._failed(error) from error
        finally:
            http.close()
        return self._complete(request, received, reader)

    async def _alistened(
        self, request: Request, http: Any, on_text: Callable[[str], None] | None
    ) -> Received:
        """Read a stream to its end, in the loop that the client is used in."""
        received, reader, take = self._listening(request, http, on_text)
        try:
            async for event in self._decoder().aiter_bytes(http.aiter_bytes()):
                if not take(event):
                    break
        except IsonomyError:
            raise
        except InvalidResponse as error:
            raise self._unusable(str(error)) from None
        except Exception as error:
            raise self._failed(error) from error
        finally:
            await http.aclose()
        return self._complete(request, received, reader)

    def _listening(
        self, request: Request, http: Any, on_text: Callable[[str], None] | None
    ) -> tuple[Received, Reader, Callable[[Any], bool]]:
        """Return what will have been received, and what takes an event of the stream into it."""
        received = Received(http, request.messages)
        self.received.append(received)
        reader = self.wire.reader()

        def take(sse: Any) -> bool:
            if sse.data.startswith("[DONE]"):  # as the client does
                received.events.append(Told(sse.event, sse.data, {}))
                return False
            event = json.loads(sse.data)
            if not isinstance(event, dict):
                raise InvalidResponse("an event of the stream is no JSON object")
            if event.get("error") or event.get("type") == "error":
                raise ErrorEvent(Told(sse.event, sse.data, event))
            try:
                text, plain = reader.take(event)
            except (AttributeError, TypeError, ValueError, KeyError) as error:
                raise InvalidResponse(f"an event of the stream is malformed: {error}") from None
            received.events.append(Told(sse.event, sse.data, event, text, plain))
            received.text += text
            if text and on_text is not None and self.asked.n == 1:
                on_text(text)
            return True

        return received, reader, take

    def _complete(self, request: Request, received: Received, reader: Reader) -> Received:
        received.body = reader.response()
        try:
            received.answers = self._expected(request, self.wire.answers(received.body))
        except InvalidResponse as error:
            raise self._unusable(str(error)) from None
        if self.asked.n == 1 and received.answers[0].text != received.text:
            raise self._unusable("its events and the response that they end with differ")
        return received

    def _generation(
        self, request: Request, received: Received, on_text: Callable[[str], None] | None
    ) -> Generation:
        nested = _is_nested(request)
        index = 0
        if not nested:
            first = received is self.received[0]
            index = self.choice if first and self.choice < len(received.answers) else 0
            self._answered.append((received, index))
        answer = received.answers[index]
        body = received.body
        runtime: dict[str, Any] = {"retries": retries_of(received.http)}
        if isinstance(body.get("system_fingerprint"), str):
            runtime["system_fingerprint"] = body["system_fingerprint"]
        if isinstance(name := received.http.headers.get("x-request-id"), str):
            runtime["request_id"] = name
        if len(received.answers) > 1:
            runtime["choice"] = index
        streamed = bool(received.events)
        if on_text is not None and answer.text and not (streamed and self.asked.n == 1):
            on_text(answer.text)
        return Generation(
            content=answer.content,
            finish_reason=answer.finish_reason,
            model=str(body.get("model") or self.asked.model),
            usage=self.wire.usage(body),
            raw=self._clean(
                "\n".join(told.data for told in received.events) if streamed else received.http.text
            ),
            runtime=runtime,
        )

    # Errors.

    def _failed(self, error: BaseException) -> BackendError:
        """Return the error to record for what the client raised, and keep that for its caller."""
        status = getattr(error, "status_code", None)
        message = self._clean(f"{type(error).__name__}: {error}")[:_LONGEST_MESSAGE]
        failure = RemoteError(
            message,
            backend=self.identity().spec,
            status=status if isinstance(status, int) else None,
        )
        self._raised[id(failure)] = (failure, error)
        return failure

    def original(self, failure: BackendError) -> BaseException | None:
        """Return what the client raised, where `failure` stands for it."""
        kept = self._raised.get(id(failure))
        return None if kept is None else kept[1]

    def refused_at_opening(self, failure: BackendError | None) -> BaseException | None:
        """Return what opening a stream is to raise: a failure before the provider answered."""
        if failure is None or self.received:
            return None
        return self.original(failure) or failure

    def _unusable(self, why: str) -> BackendError:
        return BackendError(
            f"the endpoint's answer can't be judged: {self._clean(why)[:_LONGEST_MESSAGE]}. It was "
            "not released.",
            backend=self.identity().spec,
        )

    def _clean(self, text: str) -> str:
        text = carriable(text)
        for secret in self._secrets:
            text = text.replace(secret, "[secret]")
        return text

    # Releasing.

    def released(self, replies: list[Reply]) -> Released:
        """Return what the client is to be given for the replies to a request's calls."""
        if not self.received:
            refusals = [reply.text for reply in replies]
            made = self.wire.refused(
                self.body, refusals, id=replies[0].call_id, created=int(time.time())
            )
            return Released(None, made, {i: _candidate(i, r) for i, r in enumerate(replies)})
        base = self.received[0]
        if len(replies) == 1:
            base = self._origin(replies[0]) or self.received[-1]
        changed: dict[int, Candidate] = {}
        stopped: list[int] = []
        for place, reply in enumerate(replies):
            given = base.answers[place] if place < len(base.answers) else None
            if reply.blocked:
                stopped.append(place)
            if given is None or not _same(reply, given):
                said = _candidate(place, reply)
                if given is not None and not reply.blocked:
                    said = without_stale_reasoning(said, given)
                changed[place] = said
        if not changed:
            return Released(base, None, {})
        return Released(base, self.wire.released(base.body, changed, stopped), changed)

    def _origin(self, reply: Reply) -> Received | None:
        """Return the response that holds the answer which is released as it was given."""
        for received, index in reversed(self._answered):
            if _same(reply, received.answers[index]):
                return received
        return None


class Released(msgspec.Struct, frozen=True):
    """What a client is to be given.

    The provider's response, if there was one; the body that takes the place of its own, unless that
    stays as it is; and the answers that are not the provider's, by their number.
    """

    received: Received | None
    body: dict[str, Any] | None
    changed: dict[int, Candidate]


def _candidate(index: int, reply: Reply) -> Candidate:
    return Candidate(
        index=index,
        content=reply.output.content,
        finish_reason=reply.finish_reason or "stop",
    )


def _is_nested(request: Request) -> bool:
    return request.sampling.candidate >= _NESTED


def _same(reply: Reply, given: Candidate) -> bool:
    """Return whether what is released is what was given."""
    return (
        not reply.blocked
        and reply.finish_reason == given.finish_reason
        and canonical(reply.output.content) == canonical(given.content)
    )


def retries_of(http: Any) -> int:
    """Return how often the client had tried before the request that this answers."""
    said = http.request.headers.get("x-stainless-retry-count", "0")
    return int(said) if said.isdecimal() else 0
