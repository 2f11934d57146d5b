"""What backends behind an HTTP endpoint have in common: asking, retrying, telling, refusing.

All requests run on one loop of the backend's own, so `generate` and `agenerate` are the same code
on the same connections, whatever loop the caller has. With `on_text` the answer is asked for as a
stream, without it in one piece; the content is the same.

Invariants: every attempt is recorded, in `Generation.attempts` or `RemoteError.attempts`. Text that
was passed to `on_text` is not taken back: after the first piece nothing is tried again. An answer
that was cut off is an error, never a short answer. What `on_text` raises ends the request and goes
through. Keys and header values get into no error, record, identity or log.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import random
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import aclosing
from typing import Any

import msgspec

from isonomy.sdk import BackendError, RemoteError
from isonomy.sdk.canonical import canonical
from isonomy.sdk.generation import Attempt, Generation, Identity, Request, Sampling
from isonomy.sdk.vocabulary import text_of

from ..background import BackgroundLoop, Tell
from . import http
from .answers import Answer, CutOff, InvalidAnswer, Reader, Refused, cleaned
from .breaker import CircuitBreaker
from .endpoint import Endpoint, refusal, secrets_of, shortened, within
from .events import EventReader
from .pieces import Flow, clean
from .retries import Backoff, Failure, persist

_LONGEST_ID = 200
_DRAIN_SECONDS = 0.2
"""How long to wait for the end of a stream that has said that it is complete, so that its
connection can be used again."""


class Patience(msgspec.Struct, frozen=True, kw_only=True):
    """How long to wait, how often to try, how much to read.

    Seconds, attempts, bytes; see `isonomy.backends.OpenAI`.
    """

    timeout: float
    read_timeout: float
    max_bytes: int
    backoff: Backoff

    @classmethod
    def of(
        cls,
        *,
        timeout: float,
        read_timeout: float | None,
        max_attempts: int,
        max_wait: float,
        max_bytes: int,
    ) -> Patience:
        """Return what was configured.

        Raises:
            ConfigError: a number is out of its range.
        """
        return cls(
            timeout=within("timeout", timeout, 0.001, 86_400),
            read_timeout=timeout
            if read_timeout is None
            else within("read_timeout", read_timeout, 0.001, 86_400),
            max_bytes=int(within("max_bytes", max_bytes, 1, 1 << 40)),
            backoff=Backoff(
                max_attempts=int(within("max_attempts", max_attempts, 1, 100)),
                longest=within("max_wait", max_wait, 0, 86_400),
            ),
        )


class Surroundings(msgspec.Struct, frozen=True, kw_only=True):
    """Clock, randomness and sleep, and an HTTP client where one was passed in."""

    http_client: Any = None
    rng: random.Random = msgspec.field(default_factory=random.Random)
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    wall_clock: Callable[[], float] = time.time
    entropy: Callable[[int], bytes] = os.urandom


class _Told:
    """Passes an answer's text on as it comes: whole characters, no secrets."""

    def __init__(self, tell: Tell | None, secrets: Mapping[str, str]) -> None:
        self._tell = tell
        self._flow = Flow(secrets)
        self.text = ""

    def piece(self, text: str) -> None:
        if self._tell is not None and text:
            self._pass(self._flow.push(text))

    def rest_of(self, text: str) -> None:
        """Pass on what is left of the whole text.

        Raises:
            InvalidAnswer: something else was passed on before.
        """
        if self._tell is None:
            return
        if not text.startswith(self.text):
            raise InvalidAnswer("its pieces are no beginning of it")
        self._pass(text[len(self.text) :])

    def _pass(self, text: str) -> None:
        if text and self._tell is not None:
            self.text += text
            self._tell(text)


class _Asked(msgspec.Struct, frozen=True):
    """A request on its way."""

    body: bytes
    headers: dict[str, str]
    tell: Tell | None
    started: float
    request: Request


class Provider(ABC):
    """A model behind an HTTP endpoint.

    Args:
        name: of the kind of backend, as in specs.
        model: its name at the endpoint.
        endpoint: where it is.
        path: where answers are asked for, below the endpoint's base.
        key: empty where there is none.
        headers: to send with every request, the key among them.
        secrets: values of headers that were configured, by name.
        patience: how long, how often, how much.
        breaker: the endpoint's.
        surroundings: clock, randomness, sleep, client.
        advice: what a person can do, by status.
    """

    def __init__(
        self,
        *,
        name: str,
        model: str,
        endpoint: Endpoint,
        path: str,
        key: str,
        headers: Mapping[str, str],
        secrets: Mapping[str, str],
        patience: Patience,
        breaker: CircuitBreaker,
        surroundings: Surroundings,
        advice: Mapping[int, str],
    ) -> None:
        self._name = name
        self._model = model
        self._endpoint = endpoint
        self._url = endpoint.url(path)
        self._secrets = secrets_of(key, secrets)
        self._headers = {
            "content-type": "application/json",
            "accept": "application/json, text/event-stream",
            "accept-encoding": "identity",
            "user-agent": "isonomy",
            **headers,
        }
        self._patience = patience
        self._breaker = breaker
        self._around = surroundings
        self._advice = advice
        self._loop = BackgroundLoop(f"isonomy-{name}")
        self._client: tuple[asyncio.AbstractEventLoop, Any, Any] | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._model!r}, host={self._endpoint.host!r})"

    @abstractmethod
    def identity(self) -> Identity:
        """Return who answers."""

    @abstractmethod
    def resolve(self, sampling: Sampling) -> Sampling:
        """Return `sampling` as it is used."""

    @abstractmethod
    def _parameters(self, request: Request, *, streamed: bool) -> dict[str, Any]:
        """Return what is sent. Raises `InputError` for what can't be."""

    @abstractmethod
    def _whole(self, body: bytes, request: Request) -> Answer:
        """Read an answer that came in one piece. Raises `InvalidAnswer`."""

    @abstractmethod
    def _reader(self, request: Request) -> Reader:
        """Return what reads an answer that comes as a stream."""

    def _evidence(self, headers: Mapping[str, str]) -> dict[str, Any]:
        """Return what a response's headers say for `Generation.runtime`."""
        found = headers.get("x-request-id") or headers.get("request-id")
        return {"request_id": found[:_LONGEST_ID]} if found else {}

    @property
    def circuit(self) -> str:
        """The state of the endpoint's circuit: ``closed``, ``open`` or ``half_open``."""
        return self._breaker.state

    def generate(self, request: Request, *, on_text: Tell | None = None) -> Generation:
        """Answer one request; `on_text` gets the text as it comes, in this thread.

        Raises:
            InputError: a message or a sampling setting that can't be sent.
            RemoteError: the endpoint refused, failed or answered nonsense, after `attempts`.
        """
        return self._run(lambda tell: self._answer(request, tell), on_text)

    async def agenerate(self, request: Request, *, on_text: Tell | None = None) -> Generation:
        """Like `generate`, without blocking the running loop; cancelling it ends the request."""
        self._require_open()
        if on_text is None:
            return await self._loop.arun(self._answer(request, None))
        return await self._loop.arun_telling(lambda tell: self._answer(request, tell), on_text)

    def close(self) -> None:
        """Close the connections; requests under way are cancelled."""
        self._loop.close()

    def _run(
        self,
        start: Callable[[Tell | None], Coroutine[Any, Any, Generation]],
        on_text: Tell | None = None,
    ) -> Generation:
        self._require_open()
        try:
            if on_text is None:
                return self._loop.run(start(None))
            return self._loop.run_telling(start, on_text)
        except concurrent.futures.CancelledError:
            self._require_open()
            raise

    def _require_open(self) -> None:
        if self._loop.closed:
            raise BackendError(
                f"the backend {self._name}:{self._model} was closed. Open another one.",
                backend=self._name,
            )

    async def _answer(self, request: Request, tell: Tell | None) -> Generation:
        parameters = self._parameters(request, streamed=tell is not None)
        canonical(parameters)  # refuses what is not JSON with a sentence, before anything is sent
        # The same for every attempt, so that an endpoint that knows it answers once.
        idempotency_key = str(uuid.UUID(bytes=self._around.entropy(16), version=4))
        asked = _Asked(
            # Not the canonical bytes: the order of a schema's keys can matter to an endpoint.
            msgspec.json.encode(parameters),
            {**self._headers, "idempotency-key": idempotency_key},
            tell,
            time.perf_counter(),
            request,
        )
        attempts: list[Attempt] = []
        circuit = self._breaker.state
        try:
            generation = await persist(
                lambda: self._attempt(asked),
                backoff=self._patience.backoff,
                breaker=self._breaker,
                draw=self._around.rng.random,
                sleep=self._around.sleep,
                clock_ns=time.perf_counter_ns,
                attempts=attempts,
            )
            runtime = {**generation.runtime, "idempotency_key": idempotency_key}
            if circuit != "closed":
                runtime["circuit"] = circuit
            return msgspec.structs.replace(generation, attempts=tuple(attempts), runtime=runtime)
        except Failure as failure:
            last = failure
        # Raised out here, so that no cause drags along the request with its headers.
        times = f" {len(attempts)} times" if len(attempts) > 1 else ""
        raise RemoteError(
            f"{self._name}:{self._model} at {self._endpoint.host} failed{times}, in the end: "
            f"{str(last).rstrip('. ')}. {last.advice}",
            backend=self._name,
            status=last.status,
            attempts=tuple(attempts),
        )

    async def _attempt(self, asked: _Asked) -> Generation:
        patience = self._patience
        told = _Told(asked.tell, self._secrets)
        begun = False
        # Outside the deadline: the library is imported at first use.
        library, client = self._connected()
        try:
            async with (
                asyncio.timeout(patience.timeout),
                client.stream(
                    "POST",
                    self._url,
                    content=asked.body,
                    headers=asked.headers,
                    timeout=http.timeouts(library, patience.timeout, patience.read_timeout),
                    follow_redirects=False,
                ) as response,
            ):
                begun = True
                return await self._read(response, asked, told)
        except Failure as known:
            failure = known
        except TimeoutError:
            failure = Failure(
                "timeout",
                f"no complete answer within {patience.timeout:g} s",
                advice="Raise timeout, or ask for fewer tokens.",
                retry=True,
            )
        except Exception as error:
            failure = http.failure_of(library, error, read=patience.read_timeout, begun=begun)
        if told.text and failure.retry:
            failure.retry = False
            failure.advice += " It is not tried again: a part of the answer was passed on."
        # A new one: it has no cause that holds the request with its headers.
        raise Failure(
            failure.outcome,
            shortened(clean(str(failure), self._secrets)),
            advice=failure.advice,
            status=failure.status,
            retry=failure.retry,
            after=failure.after,
        )

    async def _read(self, response: Any, asked: _Asked, told: _Told) -> Generation:
        status, headers = response.status_code, response.headers
        if not 200 <= status < 300:
            body = await http.beginning(response)
            raise self._refusal(status, response.reason_phrase, headers, body)
        try:
            async with aclosing(http.bounded(response, self._patience.max_bytes)) as data:
                # What a server sends counts, not what it was asked for: some have one way only.
                kind = headers.get("content-type", "").partition(";")[0].strip().lower()
                if kind == "text/event-stream":
                    answer, received = await self._stream(data, asked, told)
                else:
                    received = b"".join([piece async for piece in data])
                    answer = self._whole(received, asked.request)
            content = cleaned(answer.content, self._secrets)
            told.rest_of(text_of(content))
        except InvalidAnswer as invalid:
            raise Failure(
                "invalid",
                f"the answer can't be used: {invalid}",
                status=status,
                advice="Check that base_url leads to an endpoint of this kind.",
            ) from None
        except CutOff:
            raise Failure(
                "cut",
                "the stream ended before the answer did",
                status=status,
                advice="Try again; if it stays, see the endpoint's own log.",
                retry=True,
            ) from None
        raw, repaired = _as_text(received)
        runtime = {**self._evidence(headers), **answer.runtime}
        if repaired or content != answer.content:
            # Broken characters were replaced, or a secret was masked.
            runtime["repaired"] = True
        if repaired:
            runtime["received"] = _as_characters(received, self._secrets)
        return Generation(
            content=content,
            finish_reason=clean(answer.finish_reason, self._secrets),
            model=clean(answer.model or self._model, self._secrets),
            usage=answer.usage,
            raw=clean(raw, self._secrets),
            runtime=_clean_data(runtime, self._secrets),
            timings={"total": time.perf_counter() - asked.started},
        )

    def _refusal(self, status: int, reason: str, headers: Mapping[str, str], body: str) -> Failure:
        return refusal(
            status,
            reason,
            headers,
            clean(body, self._secrets),
            longest=self._patience.backoff.longest,
            now=self._around.wall_clock(),
            advice=self._advice,
        )

    async def _stream(
        self, data: AsyncIterator[bytes], asked: _Asked, told: _Told
    ) -> tuple[Answer, bytes]:
        """Return a streamed answer, and its events as one JSON list."""
        events, reader = EventReader(), self._reader(asked.request)
        received: list[bytes] = []
        try:
            async for piece in data:
                for event in events.feed(piece):
                    received.append(event.data)
                    told.piece(reader.push(event))
                if reader.ended:
                    await _drain(data)
                    break
            else:
                for event in events.finish():
                    received.append(event.data)
                    told.piece(reader.push(event))
        except Refused as refused:
            amounts_to = self._refusal(refused.status or 500, "", {}, str(refused))
            raise Failure(
                amounts_to.outcome,
                f"the stream told of an error: {refused}",
                advice=amounts_to.advice,
                status=refused.status,
                retry=amounts_to.retry,
            ) from None
        listed = [data for data in received if data.strip() != b"[DONE]"]
        return reader.answer(), b"[" + b",".join(listed) + b"]"

    def _connected(self) -> tuple[Any, Any]:
        """Return the library and its client for the running loop (a forked process has another)."""
        loop = asyncio.get_running_loop()
        if self._client is not None and self._client[0] is loop:
            return self._client[1:]
        client = self._around.http_client
        library = http.library_of(client)
        if client is None:
            client = http.client(library)
            self._loop.before_close(client.aclose)
        self._client = (loop, library, client)
        return library, client


async def _drain(data: AsyncIterator[bytes]) -> None:
    try:
        async with asyncio.timeout(_DRAIN_SECONDS):
            async for _ in data:
                pass
    except Exception:  # the answer is complete, whatever becomes of its connection
        return


def _as_text(received: bytes) -> tuple[str, bool]:
    try:
        return received.decode(), False
    except UnicodeDecodeError:
        return received.decode("utf-8", "replace"), True


def _as_characters(received: bytes, secrets: Mapping[str, str]) -> str:
    """Return bytes as characters of the same numbers (ISO 8859-1): text that any JSON can carry.

    Not base64: whoever looks for a secret or a name in a record must find it here, too.
    """
    for secret, mask in secrets.items():
        received = received.replace(secret.encode(), mask.encode())
    return received.decode("latin-1")


def _clean_data(value: Any, secrets: Mapping[str, str]) -> Any:
    if isinstance(value, str):
        return clean(value, secrets)
    if isinstance(value, dict):
        return {clean(key, secrets): _clean_data(item, secrets) for key, item in value.items()}
    if isinstance(value, list):
        return [_clean_data(item, secrets) for item in value]
    return value
