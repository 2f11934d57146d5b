"""What a backend is asked for and what it gives back.

The contract between the pipeline and a backend. A backend whose `Identity.deterministic` is true
promises that the same `Request` gives the same `Generation` bit for bit, tokens, log-probabilities
and digests included, apart from `attempts`, `timings` and `runtime`: replay re-executes it. Any
other backend is replayed from its recorded generation.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import msgspec

from .vocabulary import Message, Part, text_of


class Sampling(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How to draw tokens. `None` leaves a value to the backend's own default.

    `seed` is an unsigned 64-bit integer; `candidate` numbers the candidates of one call, so that
    each draws its own.
    """

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    seed: int | None = None
    candidate: int = 0


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """One request to a backend.

    `tools` and `response_format` have the chat-completions format, whatever the backend speaks.
    `extra` holds parameters of the provider's own (``tool_choice``, ``logit_bias``, ...): plain
    JSON data, recorded, and sent by backends that know what to do with them.
    """

    messages: tuple[Message, ...]
    sampling: Sampling = Sampling()
    tools: tuple[dict[str, Any], ...] = ()
    response_format: dict[str, Any] | None = None
    extra: dict[str, Any] = {}


class Usage(msgspec.Struct, frozen=True):
    """Token counts; `None` where the backend does not say."""

    input_tokens: int | None = None
    output_tokens: int | None = None


class TokenTrace(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Evidence of every step of a generation on a deterministic backend.

    `ids` has n entries. `logprobs` is n little-endian binary32 numbers, `digests` n times 32 bytes
    (BLAKE3 of each step's logits), `chain` the 32 bytes of the running chain after the last step.
    `texts` are the pieces of text the tokens stand for, and joined give the decoded text before
    stop strings were cut. `layers` is empty unless the backend was asked for it: digests of 32
    bytes, [step][layer][stage], as in `LayerTrace`. Where it is empty it is not written, so a
    record without it has the bytes that it had before this field existed.
    """

    ids: tuple[int, ...]
    texts: tuple[str, ...]
    logprobs: bytes
    digests: bytes
    chain: bytes
    layers: bytes = b""


class LayerTrace(msgspec.Struct, frozen=True, kw_only=True):
    """What every layer computed at every step, as digests: the evidence of a deep replay.

    `stages` names the operations of a layer, in order. `digests` holds 32 bytes (BLAKE3 of the
    activations, little-endian binary32) for [step][layer][stage], `logits` 32 bytes a step, as
    `TokenTrace.digests`. `runtime` says how this was computed.
    """

    layers: int
    stages: tuple[str, ...]
    digests: bytes
    logits: bytes
    runtime: dict[str, Any] = {}


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """One try at a remote endpoint.

    What came of it, how long it took, how long was waited before the next. `backend` names the
    member that was tried, where several stand behind one backend.
    """

    number: int
    outcome: str
    status: int | None = None
    error: str | None = None
    duration_ns: int = 0
    wait_ns: int = 0
    backend: str | None = None


class Generation(msgspec.Struct, frozen=True, kw_only=True):
    """One candidate as the backend gave it.

    `model` is the model that answered, as the backend resolved it. `prompt` and `prompt_ids` are
    what was really fed to the model, where known. `raw` is the provider's response as received
    (JSON text), without secrets. `runtime` holds evidence that must not matter to the result
    (threads, instruction set, cache hits), `timings` seconds by name; neither is compared on
    replay, nor are `attempts`.
    """

    content: tuple[Part, ...]
    finish_reason: str
    model: str
    usage: Usage = Usage()
    prompt: str | None = None
    prompt_ids: tuple[int, ...] | None = None
    tokens: TokenTrace | None = None
    raw: str | None = None
    attempts: tuple[Attempt, ...] = ()
    runtime: dict[str, Any] = {}
    timings: dict[str, float] = {}

    @property
    def text(self) -> str:
        """The text parts joined."""
        return text_of(self.content)


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """Who answers: written to every record, and compared before a replay re-executes anything.

    `spec` is what `open_backend` takes to open it again (``local:demo``), `options` the keywords
    that matter to its answers (never secrets). `artefacts` are digests
    (``algorithm:hex``) of weights, tokenizer, chat_template, config, rope tables and `model` as a
    whole; `numerics` the kernel configuration that can matter (numerics version, weight type,
    coverage manifest); `runtime` what must not (instruction set, threads, library digest,
    versions).
    """

    provider: str
    model: str
    spec: str
    options: dict[str, Any] = {}
    deterministic: bool = False
    artefacts: dict[str, str] = {}
    numerics: dict[str, Any] = {}
    runtime: dict[str, Any] = {}


@runtime_checkable
class Backend(Protocol):
    """What turns messages into candidates.

    `generate` and `agenerate` must give the same for the same request. `on_text`, where given,
    receives each piece of text as soon as it is final (the seam for streaming); pieces joined equal
    `Generation.text`. Raises `isonomy.sdk.BackendError` for everything that goes wrong.
    Implementations are safe to use from several threads. A deterministic backend may offer more:
    see `Verifier` and `Retracer`.
    """

    def identity(self) -> Identity:
        """Return who answers; cheap after the first call."""
        ...

    def resolve(self, sampling: Sampling) -> Sampling:
        """Return `sampling` as it will be recorded and used: with this backend's defaults."""
        ...

    def generate(
        self, request: Request, *, on_text: Callable[[str], None] | None = None
    ) -> Generation:
        """Answer one request."""
        ...

    def agenerate(
        self, request: Request, *, on_text: Callable[[str], None] | None = None
    ) -> Awaitable[Generation]:
        """Answer one request without blocking the running event loop."""
        ...

    def close(self) -> None:
        """Release what is held; calling it twice is harmless."""
        ...


class Verifier(Protocol):
    """A deterministic backend that can start from a recorded answer, at the speed of a prompt.

    `verifies` is true. `recorded` is what this request is said to have been answered, from a log
    that may have been altered: its tokens are guesses, to be computed in one pass while they hold;
    where it has none, every token is computed by itself. Nothing that was kept from earlier calls
    stands in for computing. The result is that of plain `generate`, bit for bit.
    """

    verifies: bool

    def generate(
        self,
        request: Request,
        *,
        on_text: Callable[[str], None] | None = None,
        recorded: Generation | None = None,
    ) -> Generation:
        """Answer one request, with the recorded answer's tokens as guesses."""
        ...


@runtime_checkable
class Scorer(Protocol):
    """A backend that can say how likely it finds each of several answers."""

    def logprobs(self, request: Request, labels: tuple[str, ...]) -> tuple[float, ...]:
        """Return the natural logarithm of each label's probability as the whole answer's beginning.

        Args:
            request: what is asked; its sampling is not used.
            labels: answers to compare, one token or more each; none empty.

        Raises:
            BackendError: the backend can't tell.
        """
        ...


@runtime_checkable
class Retracer(Protocol):
    """A deterministic backend that can say what each layer computed at each step of an answer."""

    def retrace(
        self, prompt: Sequence[int], ids: Sequence[int], *, runtime: Mapping[str, Any] | None = None
    ) -> LayerTrace:
        """Compute the steps of an answer once more.

        Args:
            prompt: token ids of the prompt.
            ids: token ids of the answer; step i is computed from the prompt and the i before it.
            runtime: how to compute it, from a `Generation.runtime`: what it names and this machine
                has (instruction set, threads, chunks); the rest as it comes.
        """
        ...
