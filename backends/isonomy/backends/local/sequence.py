"""One answer on its way: what is known of it, what to compute next, and what came of that.

A sequence is its ids. The session is a cache of what was computed of them, and may be shorter, be
taken away and computed anew; `steps` is the evidence, and grows by one entry at a time, in one
instruction. All the rest follows from these two, so that an interrupt at any moment leaves nothing
that `recover` could not make whole: the canonical numerics give the same bits again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from blake3 import blake3

from isonomy import kernels
from isonomy.sdk.errors import IsonomyError
from isonomy.sdk.generation import Sampling, TokenTrace

from .drafts import Draft, Pace
from .text import Detokenizer, StopStrings

Step = tuple[int, bytes, bytes, bytes]
"""Token, log-probability (binary32), digest of the logits, digests of layers where traced."""


class Answer:
    """What follows from the tokens of an answer: its text, and whether it has ended.

    Attributes:
        texts: a piece of text for each token, before stop strings were cut.
        given: pieces of the final text, none of them empty.
        finish_reason: ``stop`` or ``length`` once it has ended, until then empty.
    """

    def __init__(
        self,
        *,
        decode: Callable[[Sequence[int]], str],
        single: dict[int, str] | None,
        stops: Sequence[str],
        eos_ids: frozenset[int],
        budget: int,
        constraint: Any,
    ) -> None:
        self._detokenizer = Detokenizer(decode, single)
        self._stops = StopStrings(stops)
        self._eos_ids = eos_ids
        self._budget = budget
        self.constraint = constraint
        self.texts: list[str] = []
        self.given: list[str] = []
        self.finish_reason = ""

    def follow(self, token: int) -> bool:
        """Take the next token; true when it was the last."""
        if token in self._eos_ids:
            piece, reason = self._detokenizer.finish(), "stop"
        else:
            piece, reason = self._detokenizer.push(token), ""
            if self.constraint is not None:
                self.constraint.accept(token)
                if self.constraint.finished:
                    reason = "stop"
            if not reason and len(self.texts) + 1 == self._budget:
                reason = "length"
            if reason:
                piece += self._detokenizer.finish()
        self.texts.append(piece)
        text = self._stops.push(piece)
        if self._stops.stopped:
            reason = "stop"
        elif reason:
            text += self._stops.finish()
        if text:
            self.given.append(text)
        self.finish_reason = reason
        return bool(reason)


class Work:
    """The next pass of a sequence: `item` for the kernels, `guesses` among its tokens."""

    __slots__ = ("after", "draws", "guesses", "item", "sequence")

    def __init__(
        self, sequence: Running, item: kernels.StepItem, after: int, draws: int, guesses: int
    ) -> None:
        self.sequence, self.item = sequence, item
        self.after, self.draws, self.guesses = after, draws, guesses


class Running:
    """One answer. Made by its caller's thread, changed by the leader's, read by both.

    Args:
        prompt: Token ids, at least one and fewer than `context`.
        sampling: Complete, as `Local.resolve` gives it.
        decode: Ids to text, special tokens left out.
        single: Texts of single tokens, as `decode` gives them; shared by all sequences.
        eos_ids: Tokens that end the answer. One is a step of the trace, with no text.
        context: The most tokens that prompt and answer may have together.
        draft: Guesses tokens ahead, or nobody.
        constraint: The grammar that the answer must follow, or `None`.
        vocab: Number of ids; guesses beyond are dropped.
        trace: Record the digests of every layer's stages.
        listening: Somebody takes pieces of text as they come.
        cold: Nothing that was computed for others is used, as it is what has to be checked.

    Attributes:
        ids: prompt and answer so far.
        fed: how many of them the session holds.
        session: the cache; `None` before admission and while it is put aside.
        capacity: most tokens that its session may need to hold.
        error: what ended it early.
        given_up: nobody waits for it any more.
        delivered: pieces of the answer's text that its caller has taken.
        cached: tokens of the prompt that were taken from another session.
        faults: silent data corruption found, and made good, in passes that it had a part in.
        batch: most sequences that shared a pass with it, itself included.
    """

    def __init__(
        self,
        prompt: Sequence[int],
        sampling: Sampling,
        *,
        decode: Callable[[Sequence[int]], str],
        eos_ids: frozenset[int],
        context: int,
        vocab: int,
        single: dict[int, str] | None = None,
        draft: Draft | None = None,
        constraint: Any = None,
        trace: bool = False,
        listening: bool = False,
        cold: bool = False,
    ) -> None:
        assert sampling.max_tokens is not None  # resolved
        self.budget = budget = min(sampling.max_tokens, context - len(prompt))
        self.capacity = len(prompt) + self.budget
        self.parameters = parameters(sampling)
        self.prompted = len(prompt)
        self.ids = list(prompt)
        self.buffer = np.empty(self.capacity, dtype=np.int32)
        self.buffer[: self.prompted] = prompt
        self.fed = 0
        self.session: kernels.Session | None = None
        self.steps: list[Step] = []

        def blank() -> Answer:
            return Answer(
                decode=decode,
                single=single,
                stops=sampling.stop,
                eos_ids=eos_ids,
                budget=budget,
                constraint=None if constraint is None else constraint.copy(),
            )

        self._blank = blank
        self.answer = self._blank()
        self._eos_ids = eos_ids
        self._ends = np.array(sorted(eos_ids), np.int32)
        self._vocab = vocab
        self.draft = draft
        self._pace = Pace()
        self._trace = trace
        self._plain = (
            draft is None and constraint is None and self.parameters.repetition_penalty == 1
        )
        self.listening = listening
        self.cold = cold
        self.error: Exception | None = None
        self.given_up = False
        self.delivered = 0
        self.number = 0
        self.reserved = 0
        self.faults: list[dict[str, Any]] = []
        self.retried = False
        self.cached = self.batch = self.accepted = self.guessed = 0
        self.submitted = self.admitted = self.began = self.ended = 0.0
        self.outside = 0.0

    @property
    def finished(self) -> bool:
        """Whether nothing is left to compute."""
        return self.error is not None or self.answer.finish_reason != ""

    @property
    def over(self) -> bool:
        """Whether it need not be driven any more: finished, or given up."""
        return self.given_up or self.finished

    @property
    def undelivered(self) -> int:
        """Pieces of text that wait for the caller."""
        return len(self.answer.given) - self.delivered if self.listening else 0

    @property
    def rest(self) -> int:
        """Tokens to feed before the next can be drawn; one while decoding."""
        return len(self.ids) - self.fed

    @property
    def plain(self) -> bool:
        """Whether it decodes, and needs nobody between two steps."""
        return self._plain and self.rest == 1

    def work(self, rows: int, guesses: int, ahead: int = 0) -> Work:
        """Say what to compute next: at most `rows` tokens that are known, then guesses.

        Where nothing is guessed and nothing but tokens decides what is drawn, so many steps
        `ahead` in the same pass of the library.
        """
        assert self.session is not None
        length = len(self.ids)
        end = min(length, self.fed + rows)
        draws = guesses_made = 0
        mask = None
        if end == length:
            guessed = self._guess(guesses)
            if self.answer.constraint is not None:
                guessed, mask = _masked(self.answer.constraint, guessed)
            guesses_made = len(guessed)
            draws = 1 + guesses_made
            if guesses_made:
                self.buffer[end : end + guesses_made] = guessed
                end += guesses_made
        item = kernels.StepItem(
            self.session,
            self.buffer[self.fed : end],
            draws,
            self.parameters,
            self.buffer[:end],
            mask,
            trace=self._trace,
            ahead=min(ahead, self.budget - len(self.steps) - 1) if self.plain else 0,
            ends=self._ends,
        )
        return Work(self, item, end - draws, draws, guesses_made)

    def _guess(self, most: int) -> list[int]:
        if self.draft is None:
            return []
        most = min(most, self.budget - len(self.steps) - 1)
        if not self.draft.certain:
            most = min(most, self._pace.most())
        if most <= 0:
            return []
        guessed: list[int] = []
        for token in self.draft.propose(self.ids, most)[:most]:
            if token in self._eos_ids or not 0 <= token < self._vocab:
                break  # an end token may well be drawn, but nothing comes after it
            guessed.append(int(token))
        return guessed

    def take(self, work: Work, result: kernels.StepsResult) -> None:
        """Take what a pass gave."""
        tokens = result.tokens
        if not work.draws:
            self.fed = work.after
            return
        if work.guesses:
            self.guessed += work.guesses
            self.accepted += len(tokens) - 1
            self._pace.saw(work.guesses, len(tokens) - 1)
        logprobs, digests = result.logprobs.tobytes(), result.digests
        traces = result.trace or b""
        size = len(traces) // len(tokens)
        self.fed = work.after + len(tokens)
        length = len(self.ids)
        for j, token in enumerate(tokens):
            self.steps.append(
                (
                    token,
                    logprobs[4 * j : 4 * j + 4],
                    digests[32 * j : 32 * j + 32],
                    traces[size * j : size * j + size],
                )
            )
            self.buffer[length + j : length + j + 1] = token
            self.ids.append(token)
            if self.answer.follow(token):
                break

    def recover(self) -> None:
        """Make whole what an interrupt may have left half done: see the module's first lines."""
        del self.ids[self.prompted :]
        answer = self._blank()
        for token, *_ in self.steps:
            self.ids.append(token)
            answer.follow(token)
        self.buffer[: len(self.ids)] = self.ids
        self.answer = answer
        self.fed = 0
        if self.session is not None:
            self.fed = min(self.session.length, len(self.ids) - 1)
            self.session.truncate(self.fed)

    def trace(self) -> TokenTrace:
        """Return the evidence of all steps."""
        chain = kernels.CHAIN_START
        for _, _, digest, _ in self.steps:
            chain = blake3(chain + digest).digest()  # the kernels' `chain`, in a fifth of the time
        return TokenTrace(
            ids=tuple(step[0] for step in self.steps),
            texts=tuple(self.answer.texts),
            logprobs=b"".join(step[1] for step in self.steps),
            digests=b"".join(step[2] for step in self.steps),
            chain=chain,
            layers=b"".join(step[3] for step in self.steps),
        )


def parameters(sampling: Sampling) -> kernels.SamplingParams:
    """Return what the kernels draw by; what is not set is off."""
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


def _masked(constraint: Any, guessed: list[int]) -> tuple[list[int], Any]:
    """Return the guesses up to the first that the grammar refuses, and a mask for each draw."""
    masks = [constraint.mask()]
    if guessed:
        ahead = constraint.copy()
        for at, token in enumerate(guessed):
            if not masks[-1][token >> 5] >> (token & 31) & 1:
                return guessed[:at], np.stack(masks)
            try:
                ahead.accept(token)
                if ahead.finished:  # drawing it ends the answer: nothing comes after it
                    return guessed[:at], np.stack(masks)
                masks.append(ahead.mask())
            except IsonomyError:  # to be raised if the answer really comes there
                return guessed[:at], np.stack(masks)
    return guessed, np.stack(masks)
