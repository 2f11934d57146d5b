"""`OpenAI`: any endpoint that speaks the OpenAI chat-completions format.

Through the openai package (extra ``openai``), whose own retries are off: ours are recorded, each
attempt in `Generation.attempts`, on failure in `RemoteError.attempts`. All requests run on one loop
of the backend's own, so `generate` and `agenerate` are the same code on the same connections,
whatever loop the caller has.

Invariants: the key appears in no error, record, identity or log; redirects are not followed, so a
conversation goes to the host that the identity names and to no other.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime
from importlib.metadata import version
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import msgspec

from isonomy.sdk import BackendError, ConfigError, MissingExtra, RemoteError
from isonomy.sdk.canonical import canonical
from isonomy.sdk.generation import Attempt, Generation, Identity, Request, Sampling

from .background import BackgroundLoop
from .remote.completions import (
    SEED_BITS,
    InvalidAnswer,
    answer_of,
    messages_of,
    refuse_extra,
    sampling_of,
)
from .remote.retries import Backoff, Failure, Outcome, persist

if TYPE_CHECKING:
    import openai

OFFICIAL = "https://api.openai.com/v1"
_RETRIED = frozenset({408, 409, 429})
_LONGEST_MESSAGE = 600
"""How much of an endpoint's own error message is kept, in characters."""


class OpenAI:
    """A model behind an OpenAI-compatible endpoint.

    Args:
        model: its name at the endpoint.
        base_url: the endpoint, with its ``/v1``; else the environment's ``OPENAI_BASE_URL``, else
            OpenAI's.
        api_key: else the environment's ``OPENAI_API_KEY``. An endpoint other than OpenAI's may need
            none.
        organization: OpenAI's organization id; else the environment's ``OPENAI_ORG_ID``.
        timeout: seconds for one attempt, from connecting to the last byte.
        max_attempts: how often to try in all. Tried again are 408, 409, 429, 5xx, timeouts and
            failed connections.
        max_wait: longest wait between attempts, in seconds; an endpoint that asks for more ends the
            call.
        send_seed: send a seed (of its own making where the call sets none): some endpoints refuse
            it.
        extra_parameters: send top_k, min_p and repetition_penalty, which the format does not have,
            beside it.
        max_tokens_name: the parameter for `max_tokens`; unless given, ``max_completion_tokens`` for
            OpenAI itself and ``max_tokens``, which older servers know, for any other.
        http_client: an httpx ``AsyncClient`` to use (proxies, certificates, a transport); it is not
            closed.
        environment: where ``OPENAI_*`` are looked up.
        rng: for jitter and seeds.
        sleep: waits between attempts.
        wall_clock: seconds since 1970, for a Retry-After that is a date.

    Raises:
        MissingExtra: the openai package is not installed.
        ConfigError: no model, no key, a base URL that is none, or a number out of range.
    """

    def __init__(
        self,
        model: str,
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        organization: str | None = None,
        timeout: float = 60.0,
        max_attempts: int = 4,
        max_wait: float = 60.0,
        send_seed: bool = True,
        extra_parameters: bool = False,
        max_tokens_name: str | None = None,
        http_client: Any = None,
        environment: Mapping[str, str] | None = None,
        rng: random.Random | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        if importlib.util.find_spec("openai") is None:
            raise MissingExtra("the backend 'openai'", "openai", "openai")
        environment = os.environ if environment is None else environment
        self._model = _named(model)
        self._base_url, self._host = _endpoint(
            base_url or environment.get("OPENAI_BASE_URL") or OFFICIAL
        )
        self._official = self._host == urlsplit(OFFICIAL).hostname
        self._key = _key(
            api_key or environment.get("OPENAI_API_KEY") or "", official=self._official
        )
        self._organization = organization or environment.get("OPENAI_ORG_ID") or None
        self._timeout = _within("timeout", timeout, 0.001, 86_400)
        self._backoff = Backoff(
            max_attempts=int(_within("max_attempts", max_attempts, 1, 100)),
            longest=_within("max_wait", max_wait, 0, 86_400),
        )
        self._send_seed = send_seed
        self._extra_parameters = extra_parameters
        self._max_tokens_name = max_tokens_name or (
            "max_completion_tokens" if self._official else "max_tokens"
        )
        self._http_client = http_client
        self._rng = rng if rng is not None else random.Random()
        self._sleep = sleep
        self._wall_clock = wall_clock
        self._loop = BackgroundLoop("isonomy-openai")
        self._client: tuple[asyncio.AbstractEventLoop, openai.AsyncOpenAI] | None = None

    def __repr__(self) -> str:
        return f"OpenAI({self._model!r}, host={self._host!r})"

    def identity(self) -> Identity:
        """Return who answers: provider ``openai``, or the endpoint's host."""
        return Identity(
            provider="openai" if self._official else self._host,
            model=self._model,
            spec=f"openai:{self._model}",
            deterministic=False,
            options={} if self._official else {"base_url": self._base_url.partition("?")[0]},
            runtime={"openai": version("openai")},
        )

    def resolve(self, sampling: Sampling) -> Sampling:
        """Return `sampling` with a seed, or without any where none is sent.

        Raises:
            InputError: it holds settings that the format does not have, and `extra_parameters` is
            off.
        """
        refuse_extra(sampling, self._extra_parameters)
        if not self._send_seed:
            return msgspec.structs.replace(sampling, seed=None)
        if sampling.seed is None:
            return msgspec.structs.replace(sampling, seed=self._rng.getrandbits(SEED_BITS))
        return sampling

    def generate(
        self, request: Request, *, on_text: Callable[[str], None] | None = None
    ) -> Generation:
        """Answer one request. `on_text` gets the whole text when it is there.

        Raises:
            InputError: a message or a sampling setting that can't be sent.
            RemoteError: the endpoint refused, failed or answered nonsense, after `attempts`.
        """
        self._require_open()
        generation = self._loop.run(self._answer(request))
        return _told(generation, on_text)

    async def agenerate(
        self, request: Request, *, on_text: Callable[[str], None] | None = None
    ) -> Generation:
        """Like `generate`, without blocking the running loop; cancelling it ends the request."""
        self._require_open()
        generation = await self._loop.arun(self._answer(request))
        return _told(generation, on_text)

    def close(self) -> None:
        """Close the connections; requests under way are cancelled."""
        self._loop.close()

    def _require_open(self) -> None:
        if self._loop.closed:
            raise BackendError(
                f"the backend openai:{self._model} was closed. Open another one.",
                backend="openai",
            )

    async def _answer(self, request: Request) -> Generation:
        parameters = self._parameters(request)
        attempts: list[Attempt] = []
        started = time.perf_counter()
        try:
            generation = await persist(
                lambda: self._attempt(parameters, started),
                backoff=self._backoff,
                draw=self._rng.random,
                sleep=self._sleep,
                clock_ns=time.perf_counter_ns,
                attempts=attempts,
            )
            return msgspec.structs.replace(generation, attempts=tuple(attempts))
        except Failure as failure:
            last = failure
        # Raised out here, so that no cause drags along the request with its headers.
        times = f" {len(attempts)} times" if len(attempts) > 1 else ""
        raise RemoteError(
            f"openai:{self._model} at {self._host} failed{times}, in the end: {last}. "
            f"{last.advice}",
            backend="openai",
            status=last.status,
            attempts=tuple(attempts),
        )

    def _parameters(self, request: Request) -> dict[str, Any]:
        sampling = request.sampling
        if not self._send_seed:
            sampling = msgspec.structs.replace(sampling, seed=None)
        parameters: dict[str, Any] = {
            "model": self._model,
            "messages": messages_of(request.messages),
            **sampling_of(
                sampling,
                max_tokens_name=self._max_tokens_name,
                extra_parameters=self._extra_parameters,
            ),
        }
        if request.tools:
            parameters["tools"] = list(request.tools)
        if request.response_format is not None:
            parameters["response_format"] = request.response_format
        canonical(parameters)  # refuses what is not JSON with a sentence, before anything is sent
        return parameters

    async def _attempt(self, parameters: dict[str, Any], started: float) -> Generation:
        import openai

        try:
            # Outside the deadline: the package imports parts of itself at first use.
            create = self._connected().chat.completions.with_raw_response.create
            async with asyncio.timeout(self._timeout):
                response = await create(**parameters)
        except (TimeoutError, openai.APITimeoutError):
            failure = self._failure(
                "timeout",
                f"no complete answer within {self._timeout:g} s",
                advice="Raise timeout, or ask for fewer tokens.",
                retry=True,
            )
        except openai.APIStatusError as error:
            failure = self._refused(error)
        except openai.APIConnectionError as error:
            failure = self._failure(
                "unreachable",
                f"no connection: {error.__cause__ or error}",
                advice="Check base_url (or OPENAI_BASE_URL), and that the endpoint is up.",
                retry=True,
            )
        except Exception as error:
            # Whatever else the packages below raise: a URL or a header that they can't use.
            failure = self._failure(
                "failed",
                f"{type(error).__name__}: {error}",
                advice="Check base_url and the settings of the backend.",
            )
        else:
            body = self._scrubbed(response.http_response.text)
            try:
                answer = answer_of(body)
            except InvalidAnswer as invalid:
                failure = self._failure(
                    "invalid",
                    f"the answer can't be used: {invalid}",
                    status=response.http_response.status_code,
                    advice="Check that base_url leads to a chat-completions endpoint.",
                )
            else:
                request_id = response.http_response.headers.get("x-request-id")
                return Generation(
                    content=answer.content,
                    finish_reason=answer.finish_reason,
                    model=answer.model or self._model,
                    usage=answer.usage,
                    raw=body,
                    runtime={"request_id": request_id} if request_id else {},
                    timings={"total": time.perf_counter() - started},
                )
        raise failure

    def _refused(self, error: openai.APIStatusError) -> Failure:
        """Read an error status: whether to try again, when, and what to tell."""
        status = error.status_code
        headers = error.response.headers
        retry = status in _RETRIED or status >= 500
        # OpenAI says so where a retry is useless (an exhausted quota is a 429 too), or useful.
        retry = {"true": True, "false": False}.get(headers.get("x-should-retry", ""), retry)
        after = retry_after(headers, self._wall_clock()) if retry else None
        said = f"status {status}"
        message = error.body.get("message") if isinstance(error.body, dict) else None
        message = message or error.response.text.strip() or error.response.reason_phrase
        if 300 <= status < 400:
            message = "a redirect, which is not followed"
        if message:
            said += f": {message}"
        advice = _ADVICE.get(status, "Try again later." if status >= 500 else "Change the request.")
        if after is not None and after > self._backoff.longest:
            retry = False
            advice = (
                f"It asks to wait {after:g} s, longer than max_wait ({self._backoff.longest:g} s)."
            )
        outcome: Outcome = "refused"
        if status == 429:
            outcome = "overloaded"
        elif status >= 500:
            outcome = "failed"
        return self._failure(outcome, said, advice=advice, status=status, retry=retry, after=after)

    def _failure(
        self,
        outcome: Outcome,
        message: str,
        *,
        advice: str,
        status: int | None = None,
        retry: bool = False,
        after: float | None = None,
    ) -> Failure:
        message = self._scrubbed(message)
        if len(message) > _LONGEST_MESSAGE:
            message = message[:_LONGEST_MESSAGE] + " [...]"
        return Failure(outcome, message, advice=advice, status=status, retry=retry, after=after)

    def _scrubbed(self, text: str) -> str:
        """Return what an endpoint said without the key: some repeat it."""
        return text.replace(self._key, "[api key]") if self._key else text

    def _connected(self) -> openai.AsyncOpenAI:
        """Return the client of the running loop (a forked process has another one)."""
        import openai

        loop = asyncio.get_running_loop()
        if self._client is not None and self._client[0] is loop:
            return self._client[1]
        http_client = self._http_client
        if http_client is None:
            http_client = openai.DefaultAsyncHttpxClient(
                timeout=self._timeout, follow_redirects=False
            )
            self._loop.before_close(http_client.aclose)
        client = openai.AsyncOpenAI(
            # The package insists on a key, also where the endpoint does not.
            api_key=self._key or "none",
            organization=self._organization,
            base_url=self._base_url,
            timeout=self._timeout,
            max_retries=0,
            http_client=http_client,
        )
        self._client = (loop, client)
        return client


_ADVICE = {
    300: "Set base_url to where it leads.",
    301: "Set base_url to where it leads.",
    302: "Set base_url to where it leads.",
    303: "Set base_url to where it leads.",
    307: "Set base_url to where it leads.",
    308: "Set base_url to where it leads.",
    400: "Change the request as it says.",
    401: "Check the key: api_key, or OPENAI_API_KEY.",
    403: "Check that the key may use this model.",
    404: "Check the model's name, and base_url (it ends in /v1 as a rule).",
    413: "Send a shorter prompt.",
    422: "Change the request as it says.",
    429: "Wait, or check the quota.",
}


def retry_after(headers: Mapping[str, str], now: float) -> float | None:
    """Return how many seconds an endpoint asks to wait.

    It says so in ``retry-after-ms``, or in ``Retry-After`` (RFC 9110, section 10.2.3).

    Args:
        headers: the response's, with names looked up in any case.
        now: seconds since 1970; the header may be a date.

    Returns:
        Seconds, not negative, or `None` where nothing usable is said.
    """
    for name, scale in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        value = headers.get(name, "").strip()
        # Digits only: float() would take "nan" and "inf" too.
        if value and value.replace(".", "", 1).isascii() and value.replace(".", "", 1).isdigit():
            return float(value) / scale
    try:
        date = parsedate_to_datetime(headers.get("retry-after", ""))
    except ValueError:
        return None
    return max(0.0, date.replace(tzinfo=date.tzinfo or UTC).timestamp() - now)


def _told(generation: Generation, on_text: Callable[[str], None] | None) -> Generation:
    if on_text is not None and generation.text:
        on_text(generation.text)
    return generation


def _named(model: str) -> str:
    if not isinstance(model, str) or not model.strip():
        raise ConfigError("the backend openai needs a model's name: openai:MODEL.", key="model")
    return model.strip()


def _endpoint(base_url: str) -> tuple[str, str]:
    """Return the base URL and the host (with its port) that it names."""
    try:
        parts = urlsplit(base_url.strip())
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        # It may hold a password, so it is not repeated.
        raise ConfigError(
            "the base URL must be http://HOST/... or https://HOST/..., such as "
            "http://localhost:8000/v1. "
            "Correct base_url or OPENAI_BASE_URL.",
            key="base_url",
        )
    if parts.username or parts.password:
        raise ConfigError(
            "the base URL holds a user name or password. "
            "Pass the key as api_key or OPENAI_API_KEY.",
            key="base_url",
        )
    return base_url.strip(), f"{parts.hostname}:{port}" if port else parts.hostname


def _key(key: str, *, official: bool) -> str:
    key = key.strip()
    if not key and official:
        raise ConfigError(
            "there is no API key. Set the environment variable OPENAI_API_KEY, or pass api_key; "
            "for a local endpoint without keys set OPENAI_BASE_URL or base_url.",
            key="api_key",
        )
    if not key.isascii() or not key.isprintable() or " " in key:
        raise ConfigError(
            "the API key holds characters that can't be in one. "
            "Copy it again into OPENAI_API_KEY or api_key.",
            key="api_key",
        )
    return key


def _within(name: str, value: float, low: float, high: float) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not low <= value <= high:
        raise ConfigError(
            f"it must be a number between {low:g} and {high:g}, not {value!r}.", key=name
        )
    return value
