"""`OpenAI`: any endpoint that speaks the OpenAI chat-completions format.

OpenAI itself, vLLM, Ollama, LM Studio, llama.cpp's server, a gateway. What all backends behind an
HTTP endpoint share (retries, streams, secrets) is in remote/provider.py; what the format is, in
remote/completions.py and remote/completion_answers.py; where servers differ, in remote/servers.py.
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

from isonomy.sdk import BackendError
from isonomy.sdk.generation import Identity, Request, Sampling

from .remote import http
from .remote.answers import Answer, InvalidAnswer, Reader
from .remote.breaker import CircuitBreaker
from .remote.completion_answers import CompletionReader, answer_of, first_logprobs
from .remote.completions import OURS, messages_of, refuse_beside, sampling_of
from .remote.conversation import extra_of
from .remote.endpoint import endpoint_of, headers_of, key_of, model_of, within
from .remote.provider import Patience, Provider, Surroundings
from .remote.servers import BESIDE, OPENAI, SEED_BITS, server_named

_OUR_HEADERS = frozenset(
    {"authorization", "content-type", "content-length", "host", "idempotency-key",
     "accept-encoding", "connection", "transfer-encoding"}
)  # fmt: skip
_TOP = 20
"""How many tokens the format can tell log-probabilities of, at most."""


class OpenAI(Provider):
    """A model behind an OpenAI-compatible endpoint.

    Args:
        model: its name at the endpoint.
        base_url: the endpoint, with its ``/v1``; else that of `server`; else the environment's
            ``OPENAI_BASE_URL``, else OpenAI's.
        server: what kind of server it is (``vllm``, ``ollama``, ``lmstudio``, ``llamacpp``): where
            it listens, and where it differs from the format. The environment is not asked then.
        api_key: else the environment's ``OPENAI_API_KEY``. An endpoint other than OpenAI's may need
            none.
        organization: OpenAI's organization id; else the environment's ``OPENAI_ORG_ID``.
        headers: to send beside our own. Their values are treated as secrets.
        timeout: seconds for one attempt, from connecting to the last byte.
        read_timeout: seconds without a byte after which an attempt is given up; `timeout` unless
            set. A stream stalls then; an answer in one piece takes that long to begin.
        max_attempts: how often to try in all. Tried again are 408, 409, 429, 5xx, timeouts, failed
            connections and answers that were cut off.
        max_wait: longest wait between attempts, in seconds; an endpoint that asks for more ends the
            call.
        max_bytes: longest answer, as it comes over the wire.
        breaker_failures: failures in a row after which the endpoint is left alone; 0 for never.
        breaker_seconds: for how long.
        send_seed: send a seed (of its own making where the call sets none): some endpoints refuse
            it.
        send_reasoning: send back what a model said to itself, as ``reasoning_content``.
        stream_usage: have a stream tell token counts: a few endpoints refuse to be asked.
        extra_parameters: send top_k, min_p and repetition_penalty, which the format does not have,
            beside it, under these names; a `server` has its own.
        max_tokens_name: the parameter for `max_tokens`; unless given, ``max_completion_tokens`` for
            OpenAI itself and ``max_tokens``, which older servers know, for any other.
        http_client: an httpx ``AsyncClient`` to use (proxies, certificates, a transport); it is not
            closed.
        breaker: a circuit breaker that backends of one endpoint share.
        environment: where ``OPENAI_*`` are looked up.
        rng: for jitter and seeds.
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
        server: str | None = None,
        api_key: str | None = None,
        organization: str | None = None,
        headers: dict[str, str] | None = None,
        timeout: float = 60.0,
        read_timeout: float | None = None,
        max_attempts: int = 4,
        max_wait: float = 60.0,
        max_bytes: int = 32 << 20,
        breaker_failures: int = 10,
        breaker_seconds: float = 10.0,
        send_seed: bool = True,
        send_reasoning: bool = False,
        stream_usage: bool = True,
        extra_parameters: bool = False,
        max_tokens_name: str | None = None,
        http_client: Any = None,
        breaker: CircuitBreaker | None = None,
        environment: Mapping[str, str] | None = None,
        rng: random.Random | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        wall_clock: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
        entropy: Callable[[int], bytes] = os.urandom,
    ) -> None:
        http.require("openai", "openai")
        model = model_of("openai", model)
        environment = os.environ if environment is None else environment
        kind = OPENAI if server is None else server_named(server)
        if server is not None:
            environment = {}  # a key of OpenAI's is not for them
        endpoint = endpoint_of(
            base_url or environment.get("OPENAI_BASE_URL") or kind.base_url,
            variable="OPENAI_BASE_URL",
            example="http://localhost:8000/v1",
        )
        self._official = endpoint.host == urlsplit(OPENAI.base_url).hostname
        key = key_of(
            api_key or environment.get("OPENAI_API_KEY") or "",
            variable="OPENAI_API_KEY",
            needed="Set the environment variable OPENAI_API_KEY, or pass api_key; for a local "
            "endpoint without keys set OPENAI_BASE_URL or base_url."
            if self._official
            else None,
        )
        own = headers_of(headers, _OUR_HEADERS)
        sent = {**({"authorization": f"Bearer {key}"} if key else {}), **own}
        organization = organization or environment.get("OPENAI_ORG_ID")
        if organization:
            sent |= headers_of({"openai-organization": organization}, _OUR_HEADERS)
        self._server = server
        self._seed_bits = kind.seed_bits
        self._send_seed = send_seed
        self._send_reasoning = send_reasoning
        self._stream_usage = stream_usage
        self._beside = kind.beside or (BESIDE if extra_parameters else {})
        self._max_tokens_name = max_tokens_name or (
            OPENAI.max_tokens if self._official else "max_tokens"
        )
        super().__init__(
            name="openai",
            model=model,
            endpoint=endpoint,
            path="/chat/completions",
            key=key,
            headers=sent,
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
            advice=_ADVICE,
        )
        options = {} if self._official else {"base_url": endpoint.base}
        self._identity = Identity(
            provider="openai" if self._official else endpoint.host,
            model=self._model,
            spec=f"openai:{self._model}",
            deterministic=False,
            options={**options, **({"server": server} if server else {})},
            runtime=http.versions(),
        )

    def identity(self) -> Identity:
        """Return who answers: provider ``openai``, or the endpoint's host."""
        return self._identity

    def resolve(self, sampling: Sampling) -> Sampling:
        """Return `sampling` with a seed, or without any where none is sent.

        Raises:
            InputError: it holds settings that the server does not have.
        """
        refuse_beside(sampling, self._beside)
        if not self._send_seed:
            return msgspec.structs.replace(sampling, seed=None)
        if sampling.seed is None:
            return msgspec.structs.replace(sampling, seed=self._around.rng.getrandbits(SEED_BITS))
        return sampling

    def logprobs(self, request: Request, labels: tuple[str, ...]) -> tuple[float, ...]:
        """Return the natural logarithm of each label's probability as the answer's first token.

        The endpoint is asked for one token and the likeliest in its place. Labels of several tokens
        can't be told this way, nor ones that are not among the likeliest; labels such as ``A`` and
        ``B``, which the request asks for, can.

        Raises:
            BackendError: the endpoint gives no log-probabilities, or none of a label.
        """
        if not labels or "" in labels:
            raise BackendError("labels to compare must not be empty.", backend=self._name)
        asked = msgspec.structs.replace(
            request,
            sampling=Sampling(max_tokens=1),
            extra={**request.extra, "logprobs": True, "top_logprobs": _TOP},
        )
        generation = self._run(lambda tell: self._answer(asked, None))
        try:
            found = first_logprobs((generation.raw or "").encode())
        except InvalidAnswer as invalid:
            raise BackendError(
                f"{self._model} at {self._endpoint.host} gives log-probabilities in another shape: "
                f"{invalid}. Ask it for a judgement in words.",
                backend=self._name,
            ) from None
        missing = [label for label in labels if label not in found]
        if missing:
            said = f"of {missing[0]!r}" if found else "at all"
            raise BackendError(
                f"{self._model} at {self._endpoint.host} tells no log-probability {said}. Labels "
                f"must be single tokens among the {_TOP} likeliest ones, and the endpoint must "
                "know top_logprobs; else ask it for a judgement in words.",
                backend=self._name,
            )
        return tuple(found[label] for label in labels)

    def _parameters(self, request: Request, *, streamed: bool) -> dict[str, Any]:
        sampling = request.sampling
        if not self._send_seed:
            sampling = msgspec.structs.replace(sampling, seed=None)
        extra = extra_of(request.extra, OURS)
        asked_stream = extra.pop("stream_options", {})
        parameters: dict[str, Any] = {
            "model": self._model,
            "messages": messages_of(
                request.messages, reasoning=self._send_reasoning, official=self._official
            ),
            **sampling_of(
                sampling,
                max_tokens_name=self._max_tokens_name,
                beside=self._beside,
                seed_bits=self._seed_bits,
            ),
            **extra,
        }
        if request.tools:
            parameters["tools"] = list(request.tools)
        if request.response_format is not None:
            parameters["response_format"] = request.response_format
        if streamed:
            parameters["stream"] = True
            usage = {"include_usage": True} if self._stream_usage else {}
            if usage or asked_stream:
                parameters["stream_options"] = {**usage, **asked_stream}
        return parameters

    def _whole(self, body: bytes, request: Request) -> Answer:
        return answer_of(body, audio_format=_audio(request, "wav"))

    def _reader(self, request: Request) -> Reader:
        return CompletionReader(_audio(request, "pcm16"))


def _audio(request: Request, otherwise: str) -> str:
    asked = request.extra.get("audio")
    form = asked.get("format") if isinstance(asked, dict) else None
    return form if isinstance(form, str) else otherwise


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
