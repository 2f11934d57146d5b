"""The generation loop: one call of the kernels a token, with the evidence of every step.

A run owns its session, so several runs of one decoder go on side by side. Neither the chunks that a
prompt is fed in, nor threads, nor instruction set, nor other runs change a bit of the outcome.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from isonomy.sdk.errors import BackendError
from isonomy.sdk.generation import Sampling, TokenTrace

from . import packages
from .errors import BACKEND, NonFinite
from .text import Detokenizer, StopStrings

if TYPE_CHECKING:
    from isonomy.kernels import Decoder


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What a run gave: the text after stop strings were cut, why it ended, and its steps."""

    text: str
    finish_reason: str
    trace: TokenTrace
    timings: dict[str, float]


def run(
    decoder: Decoder,
    prompt: Sequence[int],
    sampling: Sampling,
    *,
    decode: Callable[[Sequence[int]], str],
    eos_ids: frozenset[int],
    context: int,
    chunk: int | None,
    on_text: Callable[[str], None] | None,
    cancelled: Callable[[], bool],
    clock: Callable[[], float],
) -> Outcome:
    """Generate until an end token, a stop string, `max_tokens`, or the end of the context.

    Args:
        decoder: The model.
        prompt: Token ids, at least one and fewer than `context`.
        sampling: Complete, as `Local.resolve` gives it.
        decode: Ids to text, special tokens left out.
        eos_ids: Tokens that end the answer. One is a step of the trace, with no text.
        context: The most tokens that prompt and answer may have together.
        chunk: Feed the prompt in pieces of so many tokens; `None`: in one.
        on_text: Receives each piece of text when it is final; joined they are `Outcome.text`.
        cancelled: Asked before every step; true ends the run with an error.
        clock: Seconds, for `Outcome.timings`.

    Raises:
        NonFinite: a hidden state or logit became infinite or NaN.
        BackendError: the run was cancelled, or memory ran out.
    """
    np = packages.load("numpy")
    kernels = packages.load("isonomy.kernels")
    assert sampling.max_tokens is not None  # resolved
    budget = min(sampling.max_tokens, context - len(prompt))
    parameters = _parameters(kernels, sampling)
    history = np.empty(len(prompt) + budget, dtype=np.int32)
    history[: len(prompt)] = prompt
    length = len(prompt)

    detokenizer = Detokenizer(decode)
    stops = StopStrings(sampling.stop)
    ids: list[int] = []
    texts: list[str] = []
    given: list[str] = []
    logprobs: list[Any] = []
    digests: list[bytes] = []
    chain = bytes(32)

    def give(text: str) -> None:
        if text:
            given.append(text)
            if on_text is not None:
                on_text(text)

    began = clock()
    prompted = began
    try:
        session = decoder.session(length + budget)
        fed = 0
        while chunk is not None and length - fed > chunk:
            _go_on(cancelled)
            session.prefill(history[fed : fed + chunk])
            fed += chunk
        while True:
            _go_on(cancelled)
            step = session.step(history[fed:length], parameters, history[:length])
            if not ids:
                prompted = clock()
            token = int(step.token)
            ids.append(token)
            logprobs.append(step.logprob)
            digests.append(step.digest)
            chain = kernels.chain(chain, step.digest)
            ended = token in eos_ids
            piece = "" if ended else detokenizer.push(token)
            if ended or len(ids) == budget:
                piece += detokenizer.finish()
            texts.append(piece)
            give(stops.push(piece))
            if stops.stopped or ended or len(ids) == budget:
                break
            history[length] = token
            fed, length = length, length + 1
    except kernels.NonFiniteError as error:
        raise NonFinite(error.layer, error.where, str(error)) from error
    except kernels.KernelError as error:
        raise BackendError(
            f"the kernels could not take this step: {error}. Where memory is short, lower "
            "max_tokens or set prompt_chunk.",
            backend=BACKEND,
        ) from error
    give(stops.finish())
    return Outcome(
        text="".join(given),
        finish_reason="stop" if ended or stops.stopped else "length",
        trace=TokenTrace(
            ids=tuple(ids),
            texts=tuple(texts),
            logprobs=np.asarray(logprobs, dtype="<f4").tobytes(),
            digests=b"".join(digests),
            chain=chain,
        ),
        timings={"prompt": prompted - began, "decode": clock() - prompted},
    )


def _parameters(kernels: Any, sampling: Sampling) -> Any:
    return kernels.SamplingParams(
        temperature=float(sampling.temperature or 0.0),
        top_k=sampling.top_k or 0,
        top_p=float(1.0 if sampling.top_p is None else sampling.top_p),
        min_p=float(sampling.min_p or 0.0),
        repetition_penalty=float(
            1.0 if sampling.repetition_penalty is None else sampling.repetition_penalty
        ),
        seed=sampling.seed or 0,
        candidate=sampling.candidate,
    )


def _go_on(cancelled: Callable[[], bool]) -> None:
    if cancelled():
        raise BackendError("the generation was cancelled. Nothing more to do.", backend=BACKEND)
