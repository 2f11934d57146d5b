"""`Constitution`: the check that judges candidates by principles, mends them, and orders them.

What it does at each stage, for every candidate:

- `critique`: one judgement a principle, the highest law first.
- `revise`: where principles are breached, asks for a new answer with their revision requests. The
  pipeline has a revision criticised and checked again, at most `max_rounds` times.
- `rank`: orders the candidates by `precedence`.
- `post_validate`: the verdict on the one that would go out: where it still breaches a principle,
  `on_breach` decides. Critiques come with the arguments; where another check changed the answer
  since, it is judged again. So nothing is released that was not judged as it stands.

A principle that could not be judged within the bounds counts as breached, and its critique says
why. A judge that fails or writes nonsense is a failure of the check, which its `on_error` decides.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import msgspec

from isonomy.sdk import (
    Allow,
    AskHuman,
    Block,
    Candidate,
    Critique,
    Flag,
    Message,
    Ranking,
    Sampling,
    Text,
    Verdict,
    hookimpl,
)
from isonomy.sdk.context import Context
from isonomy.sdk.requests import checked
from isonomy.sdk.vocabulary import Reasoning

from . import laws, precedence, prompts
from .judge import Bound, Bounds, Judge, Judging
from .laws import Principle


class _Named(msgspec.Struct, frozen=True, eq=False, forbid_unknown_fields=True):
    name: str = ""


class Constitution(_Named, frozen=True, kw_only=True, eq=False, forbid_unknown_fields=True):
    """Judge answers by principles with precedence.

    Attributes:
        name: a constitution that is shipped (``asimov``); with `file` or `principles`, what
            critiques call this one.
        file: a TOML file of principles (see `isonomy.plugins.constitution.laws`); in a policy file
            relative to that, in code to the working directory.
        principles: the principles themselves. What was named or read from a file stands here, too,
            so that the check's recorded settings hold the laws as they were.
        backend: the judge: one of `Guard(backends=...)` by name; the call's own backend unless
            given.
        reviser: who writes revisions, likewise: the call's own backend unless given.
        threshold: a score below it is a breach.
        on_breach: what becomes of an answer that still breaches a principle when the rounds are
            used up: ``block``, ``ask_human`` or ``flag``.
        judging: ``logprobs`` compares how likely the judge finds two words, ``json`` has it write a
            score; ``auto`` takes the first that its backend can do.
        sampling: how the judge draws what it writes.
        retries: how often the judge is asked again after a reply that is no judgement.
        tokens: most tokens that judgements, critiques and revisions may take of a call.
        seconds: most time that they may take of a call, from the first of them on. The check's
            `timeout`, 60 s unless set, bounds each stage besides.

    Raises:
        ValueError: the settings contradict, or one can't be used.
        ConfigError: `file` can't be used; names file and key.
    """

    timeout: ClassVar[float] = 60.0

    file: str = ""
    principles: tuple[Principle, ...] = ()
    backend: str | None = None
    reviser: str | None = None
    threshold: float = 0.5
    on_breach: Literal["block", "ask_human", "flag"] = "block"
    judging: Judging = "auto"
    sampling: Sampling = Sampling(temperature=0.0, max_tokens=400)
    retries: int = 1
    tokens: int = 50_000
    seconds: float = 45.0

    def __post_init__(self) -> None:
        self._resolve()
        if not 0.0 < self.threshold <= 1.0:
            raise ValueError(f"threshold must be above 0 and at most 1, not {self.threshold!r}.")
        for setting in ("on_breach", "judging"):
            choices = {"on_breach": _ON_BREACH, "judging": _JUDGING}[setting]
            if getattr(self, setting) not in choices:
                raise ValueError(f"{setting} must be one of {', '.join(choices)}.")
        if not 0 <= self.retries <= 10:
            raise ValueError(f"retries must be from 0 to 10, not {self.retries}.")
        if self.tokens < 1:
            raise ValueError(f"tokens must be at least 1, not {self.tokens}.")
        if not 0.0 < self.seconds < 86_400.0:
            raise ValueError(f"seconds must be between 0 and 86400, not {self.seconds!r}.")
        checked(self.sampling)

    def _resolve(self) -> None:
        """Put the principles into their field, wherever they come from, and settle the name."""
        if self.file and self.principles:
            raise ValueError("principles stand in the file or here, not both.")
        found = laws.Laws(principles=self.principles, name=self.name or "constitution")
        if self.file:
            found = laws.from_file(self.file)
        elif not self.principles:
            if not self.name:
                raise ValueError(
                    "a constitution needs principles: name one that is shipped "
                    f"({', '.join(laws.shipped())}), or give file or principles."
                )
            found = laws.named(self.name)
        laws.require_usable(found.principles)
        ordered = tuple(sorted(found.principles, key=lambda principle: principle.precedence))
        for field, value in (
            ("name", self.name or found.name),
            ("principles", ordered),
            ("file", ""),
        ):
            msgspec.structs.force_setattr(self, field, value)

    @property
    def _bounds(self) -> Bounds:
        return Bounds(self.tokens, self.seconds)

    def called(self, principle: Principle) -> str:
        """Return what critiques and verdicts call a principle: ``asimov/first``."""
        return f"{self.name}/{principle.id}"

    def in_full(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Return settings of a policy file as they are recorded: with the laws themselves."""
        read = msgspec.to_builtins(self.principles, order="deterministic")
        kept = {key: value for key, value in settings.items() if key != "file" or not value}
        return {**kept, "name": self.name, "principles": read}

    @hookimpl
    async def critique(
        self, candidate: Candidate, messages: tuple[Message, ...], ctx: Context
    ) -> list[Critique]:
        """Judge a candidate by each principle."""
        return await self._judged(candidate, messages, ctx)

    @hookimpl
    async def revise(
        self,
        candidate: Candidate,
        critiques: tuple[Critique, ...],
        messages: tuple[Message, ...],
        ctx: Context,
    ) -> Candidate | None:
        """Have a candidate mended where its text breaches principles."""
        breached = [
            (principle, said.reason)
            for principle, said in self._own(critiques).items()
            if said.score < self.threshold and not said.reason.startswith(_UNJUDGED)
        ]
        if not breached or not candidate.text:
            return None
        asked = (
            *messages,
            Message.of("assistant", candidate.text),
            Message.of("user", prompts.revision(breached)),
        )
        try:
            self._bounds.require(ctx, "".join(message.text for message in asked))
        except Bound:
            return None  # the verdict says so
        generation = await ctx.agenerate(asked, backend=self.reviser)
        text = generation.text.strip()
        if not text or text == candidate.text:
            return None
        kept = [part for part in candidate.content if not isinstance(part, Text | Reasoning)]
        return Candidate(
            index=candidate.index,
            content=(Text(text), *kept),
            finish_reason=candidate.finish_reason if kept else generation.finish_reason,
        )

    @hookimpl
    async def rank(
        self,
        candidates: tuple[Candidate, ...],
        critiques: tuple[tuple[Critique, ...], ...],
        messages: tuple[Message, ...],
        ctx: Context,
    ) -> Ranking | None:
        """Order candidates by precedence; abstains where there is but one."""
        if len(candidates) < 2:
            return None
        standings = []
        for candidate, said in zip(candidates, critiques, strict=True):
            scores = self._scores(said)
            if scores is None:
                scores = self._scores(await self._judged(candidate, messages, ctx, reasons=False))
            assert scores is not None
            standing = precedence.standing(self.principles, scores, self.threshold)
            standings.append((candidate.index, standing))
        return precedence.ranked(standings)

    @hookimpl
    async def post_validate(
        self,
        candidate: Candidate,
        critiques: tuple[Critique, ...],
        messages: tuple[Message, ...],
        ctx: Context,
    ) -> Verdict:
        """Say whether an answer may go out."""
        scores = self._scores(critiques)
        if scores is None:
            critiques = tuple(await self._judged(candidate, messages, ctx, reasons=False))
            scores = self._scores(critiques)
            assert scores is not None
        worst = 1.0 - max(0.0, min(scores.values()))
        breached = [p for p in self.principles if scores[p.id] < self.threshold]
        if not breached:
            return Allow(score=worst)
        named = tuple(self.called(principle) for principle in breached)
        told = [f"{name} ({scores[p.id]:.2f})" for name, p in zip(named, breached, strict=True)]
        reason = f"it breaches {', '.join(told)}"
        unjudged = next((c.reason for c in critiques if c.reason.startswith(_UNJUDGED)), None)
        if unjudged is not None:
            reason += f"; {unjudged}"
        if self.on_breach == "flag":
            return Flag(reason, score=worst, labels=named)
        if self.on_breach == "ask_human":
            return AskHuman(reason, score=worst, labels=named)
        return Block(reason, score=worst, labels=named)

    async def _judged(
        self,
        candidate: Candidate,
        messages: tuple[Message, ...],
        ctx: Context,
        *,
        reasons: bool = True,
    ) -> list[Critique]:
        """Return a critique for each principle, the highest law first."""
        judge = Judge(
            ctx,
            messages,
            candidate,
            backend=self.backend,
            judging=self.judging,
            sampling=self.sampling,
            retries=self.retries,
            bounds=self._bounds,
        )
        critiques: list[Critique] = []
        reached: Bound | None = None
        for principle in self.principles:
            name = self.called(principle)
            if reached is None:
                try:
                    found = await judge.judge(principle, threshold=self.threshold, reasons=reasons)
                    critiques.append(Critique(name, *found))
                    continue
                except Bound as bound:
                    reached = bound
            critiques.append(Critique(name, 0.0, f"{_UNJUDGED}{reached}"))
        return critiques

    def _scores(self, critiques: Sequence[Critique]) -> dict[str, float] | None:
        """Return the score of each principle by its id, or `None` where one has none."""
        own = self._own(critiques)
        if len(own) < len(self.principles):
            return None
        return {principle.id: critique.score for principle, critique in own.items()}

    def _own(self, critiques: Sequence[Critique]) -> dict[Principle, Critique]:
        """Return the critique of each principle that has one, the highest law first.

        Where several speak of one, the worst counts.
        """
        worst: dict[str, Critique] = {}
        for critique in critiques:
            other = worst.get(critique.principle)
            if other is None or critique.score < other.score:
                worst[critique.principle] = critique
        called = {principle: self.called(principle) for principle in self.principles}
        return {principle: worst[name] for principle, name in called.items() if name in worst}


_ON_BREACH = ("block", "ask_human", "flag")
_JUDGING = ("auto", "logprobs", "json")
_UNJUDGED = "not judged: "
