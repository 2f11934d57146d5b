"""The judge: one model's judgement of one candidate by one principle, within bounds.

A judgement is a score from 0 (breach) to 1 (compliance), and where asked for, a reason in words. It
comes from the first of these that the backend can give:

1. The log-probabilities of two labels: score = p(yes) / (p(yes) + p(no)). Computed as
   1 / (1 + exp(no - yes)) in decimal arithmetic of 40 digits and rounded once, so that it has the
   same bits on every platform, which the C library's exp does not promise.
2. A JSON object that the backend is made to write by its schema: score / 100.
3. The same object asked for in words, where the backend refuses the schema.

What a judge writes is validated either way, and asked for again a bounded number of times. What
stands word by word in the answer that it judges is an echo, no judgement. A judge that still gives
none raises: its nonsense is a failure of the check, never a pass.

Before each question the bounds are looked at: what the check has spent in this call so far, from
the record (`Context.spent`), and the recorded clock. So a replay meets a bound where the call met
it.
"""

from __future__ import annotations

import decimal
import json
import math
from typing import Annotated, Any, Literal, NamedTuple

import msgspec

from isonomy.sdk import BackendError, Candidate, InputError, Message, PluginError, Sampling
from isonomy.sdk.canonical import carriable
from isonomy.sdk.context import Context

from . import prompts
from .laws import Principle

Judging = Literal["auto", "logprobs", "json"]
REASON = 2000
"""Characters of a reason that are kept."""

_EXACT = decimal.Context(prec=40)


class Judgement(NamedTuple):
    """How well a candidate complies with a principle, from 0 to 1, and why."""

    score: float
    reason: str = ""


class Bound(Exception):
    """A bound of the constitution was reached; the message says which."""


class Bounds(msgspec.Struct, frozen=True):
    """What judging, critiques and revisions may take of a call.

    Attributes:
        tokens: of prompts and answers together.
        seconds: from the check's first look at the clock in this call.
    """

    tokens: int
    seconds: float

    def require(self, ctx: Context, prompt: str) -> None:
        """Raise `Bound` unless there is room for one more question.

        Its answer may take the call over the bound by what one answer takes.
        """
        now, spent = ctx.now(), ctx.spent()
        if spent.tokens + -(-len(prompt.encode()) // 4) > self.tokens:
            raise Bound(f"the bound of {self.tokens} tokens is reached")
        if spent.since is not None and (now - spent.since).total_seconds() > self.seconds:
            raise Bound(f"the bound of {self.seconds:g} s is reached")


class _Reply(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the judge writes."""

    reason: str
    score: Annotated[int, msgspec.Meta(ge=0, le=100)]


class Judge:
    """Judges one candidate in one invocation of a hook.

    Args:
        ctx: the hook's.
        messages: what the model was asked.
        candidate: its answer as it stands.
        backend: the judge, by its name in the guard; `None`: the call's own.
        judging: which kinds of judgement may be asked for.
        sampling: how the judge draws.
        retries: how often to ask again after a reply that is no judgement.
        bounds: what may be spent.
    """

    def __init__(
        self,
        ctx: Context,
        messages: tuple[Message, ...],
        candidate: Candidate,
        *,
        backend: str | None,
        judging: Judging,
        sampling: Sampling,
        retries: int,
        bounds: Bounds,
    ) -> None:
        self._ctx = ctx
        self._document = prompts.document(messages, candidate)
        self._answer = _squeezed(prompts.shown(candidate))
        self._backend = backend
        self._judging = judging
        self._sampling = sampling
        self._retries = retries
        self._bounds = bounds
        self._scores = judging != "json"
        self._constrains = True

    async def judge(
        self, principle: Principle, *, threshold: float, reasons: bool = True
    ) -> Judgement:
        """Return the judgement by one principle.

        Args:
            principle: the law.
            threshold: a score below it is a breach, for which a reason is asked for.
            reasons: whether anybody needs the reason of a breach in words.

        Raises:
            Bound: a bound was reached before this could be asked.
            PluginError: the judge gave no judgement.
            BackendError: the judge did not answer.
        """
        if self._scores:
            score = await self._compared(principle)
            if score is not None:
                if score >= threshold or not reasons:
                    return Judgement(score)
                return Judgement(score, await self._critique(principle))
            if self._judging == "logprobs":
                raise self._useless(principle, "its backend gives no log-probabilities of labels")
            self._scores = False
        return await self._written(principle)

    async def _compared(self, principle: Principle) -> float | None:
        """Return the score from the labels' log-probabilities, if the backend gives them."""
        prompt = prompts.labelled(self._document, principle)
        self._bounds.require(self._ctx, prompt)
        found = await self._ctx.alogprobs(_asked(prompt), prompts.LABELS, backend=self._backend)
        if found is None:
            return None
        if len(found) != len(prompts.LABELS) or not all(
            math.isfinite(value) and value <= 1e-6 for value in found
        ):
            raise self._useless(principle, f"log-probabilities can't be {found!r}")
        if found[0] == found[1]:
            raise self._useless(principle, "it finds both labels equally likely, to the last bit")
        return compliance(*found)

    async def _critique(self, principle: Principle) -> str:
        prompt = prompts.critical(self._document, principle)
        try:
            return clipped(await self._generate(prompt))
        except Bound as bound:  # the score stands all the same
            return f"no critique in words: {bound}"

    async def _written(self, principle: Principle) -> Judgement:
        for again in range(self._retries + 1):
            prompt = prompts.structured(self._document, principle, again=again > 0)
            text = await self._constrained(prompt)
            judgement = judgement_of(text)
            if judgement is not None and _squeezed(text) not in self._answer:
                return judgement
        tries = "once" if self._retries == 0 else f"{self._retries + 1} times"
        raise self._useless(principle, f"asked {tries}, it wrote no valid judgement")

    async def _constrained(self, prompt: str) -> str:
        """Have the judge write by the schema; in its own way where its backend refuses that."""
        if self._constrains:
            try:
                return await self._generate(prompt, prompts.RESPONSE_FORMAT)
            except (BackendError, InputError):
                self._constrains = False
        return await self._generate(prompt)

    async def _generate(self, prompt: str, response_format: dict[str, Any] | None = None) -> str:
        self._bounds.require(self._ctx, prompt)
        generation = await self._ctx.agenerate(
            _asked(prompt),
            sampling=self._sampling,
            response_format=response_format,
            backend=self._backend,
        )
        return generation.text

    def _useless(self, principle: Principle, why: str) -> PluginError:
        who = f"the judge {self._backend!r}" if self._backend else "the judge"
        return PluginError(
            f"{who} gave no judgement by {principle.id!r}: {why}. Use a more capable judge, or "
            "another way of judging.",
            plugin="constitution",
        )


def _squeezed(text: str) -> str:
    """Return a text without white space, by which an echo is known."""
    return "".join(text.split())


def _asked(prompt: str) -> tuple[Message, ...]:
    return (Message.of("user", prompt),)


def compliance(yes: float, no: float) -> float:
    """Return p(yes) / (p(yes) + p(no)) of two log-probabilities, correctly rounded."""
    difference = min(max(no - yes, -2000.0), 2000.0)  # beyond, it is 0 or 1 anyway
    return float(_EXACT.divide(1, _EXACT.add(1, _EXACT.exp(decimal.Decimal(difference)))))


def judgement_of(text: str) -> Judgement | None:
    """Return the judgement that a judge wrote, or `None` where it is none.

    The whole reply is the object; a code fence around it is taken off. An object is not looked for
    within other text, where a quoted answer could bring its own.
    """
    text = text.strip()
    if text.startswith("```") and text.endswith("```") and "\n" in text:
        text = text[text.index("\n") : -3].strip()
    try:
        # Not msgspec's decoder: it takes the last of equal keys, and a judge that was made to quote
        # the answer without escaping could have two scores.
        reply = msgspec.convert(json.loads(text, object_pairs_hook=_single), _Reply)
    except (ValueError, msgspec.ValidationError, RecursionError):
        return None
    return Judgement(reply.score / 100, clipped(reply.reason))


def _single(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice")
    return found


def clipped(text: str) -> str:
    """Return a reason, bounded in length, as records can hold it."""
    text = carriable(text.strip())
    return text if len(text) <= REASON else text[: REASON - 1] + "…"
