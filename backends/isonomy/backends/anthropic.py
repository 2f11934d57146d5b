"""`Anthropic`: a model behind Anthropic's messages API, or an endpoint that speaks its format.

What all backends behind an HTTP endpoint share (retries, streams, secrets) is in
remote/provider.py; what the format is, in remote/messages.py.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

import msgspec

from isonomy.sdk.generation import Identity, Request, Sampling

from .remote import http
from .remote.answers import Answer, Reader
from .remote.breaker import CircuitBreaker
from .remote.endpoint import endpoint_of, headers_of, key_of, model_of, within
from .remote.messages import MAX_TOKENS, MessageReader, answer_of, parameters_of, refuse_absent
from .remote.provider import Patience, Provider, Surroundings

OFFICIAL = "https://api.anthropic.com"
VERSION = "2023-06-01"
"""The version of the API that is spoken here."""
_OUR_HEADERS = frozenset(
    {"x-api-key", "anthropic-version", "content-type", "content-length", "host",
     "idempotency-key", "accept-encoding", "connection", "transfer-encoding"}
)  # fmt: skip


class Anthropic(Provider):
    """A model behind the messages API.

    Args:
        model: its name at the endpoint.
        base_url: the endpoint, without ``/v1``; else the environment's ``ANTHROPIC_BASE_URL``, else
            Anthropic's.
        api_key: else the environment's ``ANTHROPIC_API_KEY``. An endpoint other than Anthropic's
            may need none.
        headers: to send beside our own, such as ``anthropic-beta``. Their values are treated as
            secrets.
        timeout: seconds for one attempt, from connecting to the last byte.
        read_timeout: see `isonomy.backends.OpenAI`, as for the following.
        max_attempts: how often to try in all.
        max_wait: longest wait between attempts, in seconds.
        max_bytes: longest answer, as it comes over the wire.
        breaker_failures: failures in a row after which the endpoint is left alone; 0 for never.
        breaker_seconds: for how long.
        http_client: an httpx ``AsyncClient`` to use; it is not closed.
        breaker: a circuit breaker that backends of one endpoint share.
        environment: where ``ANTHROPIC_*`` are looked up.
        rng: for jitter.
        sleep: waits between attempts.
        wall_clock: seconds since 1970, for a Retry-After that is a date.
        clock: monotonic seconds, for the circuit breaker.
        entropy: random bytes, for idempotency keys.

    Raises:
        MissingExtra: there is no HTTP client.
        ConfigError: no model, no key, a base URL that is none, or a number out of range.
    """

    def __init__(
        self,
        model: str,
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        headers: dict[str, str] | None = None,
        timeout: float = 60.0,
        read_timeout: float | None = None,
        max_attempts: int = 4,
        max_wait: float = 60.0,
        max_bytes: int = 32 << 20,
        breaker_failures: int = 10,
        breaker_seconds: float = 10.0,
        http_client: Any = None,
        breaker: CircuitBreaker | None = None,
        environment: Mapping[str, str] | None = None,
        rng: random.Random | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        wall_clock: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
        entropy: Callable[[int], bytes] = os.urandom,
    ) -> None:
        http.require("anthropic", "anthropic")
        model = model_of("anthropic", model)
        environment = os.environ if environment is None else environment
        endpoint = endpoint_of(
            base_url or environment.get("ANTHROPIC_BASE_URL") or OFFICIAL,
            variable="ANTHROPIC_BASE_URL",
            example=OFFICIAL,
        )
        official = endpoint.host == urlsplit(OFFICIAL).hostname
        own = headers_of(headers, _OUR_HEADERS)
        key = key_of(
            api_key or environment.get("ANTHROPIC_API_KEY") or "",
            variable="ANTHROPIC_API_KEY",
            needed="Set the environment variable ANTHROPIC_API_KEY, or pass api_key."
            if official and "authorization" not in own
            else None,
        )
        super().__init__(
            name="anthropic",
            model=model,
            endpoint=endpoint,
            path="/v1/messages",
            key=key,
            headers={
                "anthropic-version": VERSION,
                **({"x-api-key": key} if key else {}),
                **own,
            },
            secrets=own,
            patience=Patience.of(
                timeout=timeout,
                read_timeout=read_timeout,
                max_attempts=max_attempts,
                max_wait=max_wait,
                max_bytes=max_bytes,
            ),
            breaker=breaker
            or CircuitBreaker(
                int(within("breaker_failures", breaker_failures, 0, 1_000_000)),
                within("breaker_seconds", breaker_seconds, 0, 86_400),
                clock=clock,
            ),
            surroundings=Surroundings(
                http_client=http_client,
                rng=rng if rng is not None else random.Random(),
                sleep=sleep,
                wall_clock=wall_clock,
                entropy=entropy,
            ),
            advice={
                400: "Change the request as it says.",
                401: "Check the key: api_key, or ANTHROPIC_API_KEY.",
                403: "Check that the key may use this model.",
                404: "Check the model's name, and base_url (it ends before /v1).",
                413: "Send a shorter prompt.",
                429: "Wait, or check the limits of the account.",
                529: "The provider is overloaded. Try again later.",
            },
        )
        self._identity = Identity(
            provider="anthropic" if official else endpoint.host,
            model=self._model,
            spec=f"anthropic:{self._model}",
            deterministic=False,
            options={} if official else {"base_url": endpoint.base},
            runtime=http.versions(),
        )

    def identity(self) -> Identity:
        """Return who answers: provider ``anthropic``, or the endpoint's host."""
        return self._identity

    def resolve(self, sampling: Sampling) -> Sampling:
        """Return `sampling` with a longest answer and without a seed, which the format has not.

        Raises:
            InputError: it holds settings that the format does not have.
        """
        refuse_absent(sampling)
        return msgspec.structs.replace(
            sampling, seed=None, max_tokens=sampling.max_tokens or MAX_TOKENS
        )

    def _parameters(self, request: Request, *, streamed: bool) -> dict[str, Any]:
        parameters = parameters_of(self._model, request)
        return {**parameters, "stream": True} if streamed else parameters

    def _whole(self, body: bytes, request: Request) -> Answer:
        return answer_of(body)

    def _reader(self, request: Request) -> Reader:
        return MessageReader()
