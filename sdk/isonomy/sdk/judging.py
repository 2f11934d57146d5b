"""Judging: how the checks of a policy are asked at a stage, and what comes of their verdicts.

Rules, for every stage that gives verdicts:

1. Checks are asked in the policy's order; what one replaced is what the next one sees.
2. A check has settled on a content when it judged it or made it. As long as some check has not
   settled on the content as it stands, it is asked again; if that is so after `max_rounds` extra
   passes, the stage blocks, since checks that undo each other never end.
3. `Block` ends the stage at once. A `Retry` or `AskHuman` lets the remaining checks speak, so that
   a later `Block` still wins.
4. A check that raises, hangs or returns nonsense did not pass: its `on_error` decides, and the
   event says what happened.
5. A target that no check of the stage judged (each abstained, or failed and may) is flagged.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import msgspec

from .asking import Answer, Waiting, ask
from .canonical import digest_of, own
from .checks import Check, verdict_of_callable, verdict_of_hook
from .contents import Question, judged_part
from .context import Context
from .events import Failed, Judged, Unjudged
from .policy import Policy
from .trail import Trail
from .vocabulary import (
    SEVERITY,
    AskHuman,
    Block,
    Call,
    Candidate,
    Flag,
    Replace,
    Retry,
    Verdict,
    VerdictName,
)
from .workers import Workers


class Standing(msgspec.Struct):
    """What the call has come to so far: the strongest verdict, who gave it, and why."""

    verdict: VerdictName = "allow"
    check: str | None = None
    reason: str | None = None

    def note(self, verdict: VerdictName, check: str | None, reason: str | None) -> None:
        """Take a verdict into account."""
        if SEVERITY[verdict] > SEVERITY[self.verdict]:
            self.verdict, self.check, self.reason = verdict, check, reason


class Judgement(msgspec.Struct):
    """What a stage came to: the content as it stands, and what was asked for besides."""

    content: Any
    blocked: bool = False
    feedback: str | None = None


class Judging:
    """Asks the checks of one call. Holds the call's state; checks hold none."""

    def __init__(
        self, policy: Policy, call: Call, trail: Trail, *, waiting: Waiting, workers: Workers
    ) -> None:
        self.policy = policy
        self.call = call
        self.trail = trail
        self.waiting = waiting
        self.standing = Standing()
        self.rounds = 0
        self._workers = workers

    async def stage(
        self,
        stage: Literal["retrieved", "tool_result", "pre_filter", "tool_call", "post_validate"],
        content: Any,
        questions: Callable[[Check, Any], list[Question]],
        replaced: Callable[[Any, str, Replace], Any],
    ) -> Judgement:
        """Judge a stage's content by the rules above.

        Args:
            stage: which.
            content: what is judged, as it stands.
            questions: what to ask a check about a content.
            replaced: gives the content with what a verdict on a target replaced.
        """
        checks = self.policy.at(stage)
        settled: dict[tuple[str, str], str] = {}
        judged: dict[str, bool] = {}
        feedback: str | None = None
        human = False

        def unsettled() -> bool:
            return any(
                settled.get((check.id, question.target)) != digest_of(question.seen)
                for check in checks
                for question in questions(check, content)
            )

        for _ in range(self.policy.max_rounds + 1):
            changed = False
            for check in checks:
                for question in questions(check, content):
                    before = digest_of(question.seen)
                    key = (check.id, question.target)
                    if settled.get(key) == before:
                        continue
                    apply = partial(replaced, content, question.target)
                    verdict, after = await self._judge(stage, check, question, before, apply)
                    judged[question.target] = judged.get(question.target, False) or (
                        verdict is not None
                    )
                    settled[key] = before
                    if isinstance(verdict, Replace):
                        content = after
                        changed = True
                        settled[key] = digest_of(judged_part(content, question.target))
                    elif isinstance(verdict, Block):
                        return Judgement(content, blocked=True)
                    elif isinstance(verdict, AskHuman):
                        human = True
                    elif isinstance(verdict, Retry):
                        feedback = feedback or verdict.feedback
            if not changed or not unsettled():
                break
        else:
            self.standing.note(
                "block", None, f"the checks at {stage} kept replacing each other's content"
            )
            return Judgement(content, blocked=True)
        for target, done in judged.items():
            if not done:
                self.trail.add(Unjudged(stage=stage, round=self.rounds, target=target))
                self.standing.note("flag", None, f"no check judged it at {stage}")
        return Judgement(content, blocked=human, feedback=feedback)

    async def _judge(
        self,
        stage: str,
        check: Check,
        question: Question,
        before: str,
        apply: Callable[[Replace], Any],
    ) -> tuple[Verdict | None, Any]:
        """Ask one question, record what came of it.

        Returns the verdict in force and the new content, if any.
        """
        foretold = self._foretold(check, stage, question.target)
        if foretold is not None:
            return self._consequence(check, foretold), None
        if check.is_callable:
            text = question.arguments["text"]
            answer = await self._plain(check, stage, text, _reading(verdict_of_callable, stage))
        else:
            reading = _reading(verdict_of_hook, stage)
            answer = await self._hook(check, stage, question.arguments, reading)
        verdict: Verdict | None = answer.value
        after: Any = None
        if isinstance(verdict, Replace):
            try:
                after = apply(verdict)
            except TypeError as error:  # our own: it does not fit here
                answer.failure, answer.error, answer.message = "invalid", "TypeError", str(error)
        if answer.failure is not None:
            return self._failure(check, stage, question.target, before, answer), None
        part = judged_part(after, question.target) if isinstance(verdict, Replace) else None
        changed = digest_of(part) if part is not None else None
        self.trail.add(
            Judged(
                stage=stage,
                check=check.id,
                round=self.rounds,
                target=question.target,
                verdict=verdict,
                before=before,
                after=changed,
                duration_ns=answer.duration_ns,
            )
        )
        if verdict is not None:
            self.standing.note(verdict.name, check.id, _reason(verdict))
        return verdict, after

    def _foretold(self, check: Check, stage: str, target: str) -> Failed | None:
        """Return the timeout that a replay hands back instead of asking, if there is one."""
        events = self.trail.world.foretold(
            stage=stage, check=check.id, target=target, round=self.rounds
        )
        if not events:
            return None
        self.trail.retell(events)
        last = events[-1]
        assert isinstance(last, Failed)
        return last

    async def _hook(
        self, check: Check, stage: str, arguments: dict[str, Any], read: Callable[[Any], Any]
    ) -> Answer:
        function, names = check.hooks[stage]
        context = self._context(check, stage)
        offered = {**arguments, "call": self.call}
        # Copies: what a check does with what it is shown can't reach what is judged and released.
        taken = {name: own(offered[name]) if name != "ctx" else context for name in names}
        return await self._ask(check, function, taken, context, read)

    async def _plain(
        self, check: Check, stage: str, text: str, read: Callable[[Any], Any]
    ) -> Answer:
        context = self._context(check, stage)
        function = partial(check.plugin, text)
        return await self._ask(check, function, {}, context, read)

    async def _ask(
        self,
        check: Check,
        function: Callable[..., Any],
        arguments: dict[str, Any],
        context: Context,
        read: Callable[[Any], Any],
    ) -> Answer:
        return await ask(
            check,
            function,
            arguments,
            read=read,
            context=context,
            waiting=self.waiting,
            workers=self._workers,
            timeout=self.trail.world.patience(check.timeout),
        )

    def _context(self, check: Check, stage: str) -> Context:
        return Context(self.trail, stage=stage, check=check.id, round=self.rounds)

    async def consult(
        self,
        check: Check,
        stage: str,
        target: str,
        arguments: dict[str, Any],
        candidate: Candidate,
        read: Callable[[Any], Any],
    ) -> tuple[Any, int]:
        """Ask a constitutional hook; returns what it gave, if anything, and how long it took (ns).

        A failure is recorded and its consequence noted.
        """
        foretold = self._foretold(check, stage, target)
        if foretold is not None:
            self._consequence(check, foretold)
            return None, 0
        answer = await self._hook(
            check, stage, arguments, lambda value: None if value is None else read(value)
        )
        if answer.failure is not None:
            self._failure(check, stage, target, digest_of(candidate.content), answer)
        return answer.value, answer.duration_ns

    def add(self, event: Any, stage: str, check: Check, *, took: int, **fields: Any) -> None:
        """Record an event of a check that took `took` nanoseconds."""
        self.trail.add(
            event(
                stage=stage,
                check=check.id,
                round=self.rounds,
                duration_ns=took,
                **fields,
            )
        )

    def _failure(
        self,
        check: Check,
        stage: str,
        target: str,
        before: str,
        answer: Answer,
    ) -> Verdict | None:
        assert answer.failure is not None
        event = Failed(
            stage=stage,
            check=check.id,
            round=self.rounds,
            target=target,
            kind=answer.failure,
            error=answer.error,
            message=answer.message,
            became=check.on_error,
            before=before,
            duration_ns=answer.duration_ns,
        )
        self.trail.add(event)
        return self._consequence(check, event)

    def _consequence(self, check: Check, event: Failed) -> Verdict | None:
        said = {"error": "failed", "timeout": "timed out", "invalid": "broke its contract"}
        reason = f"check {check.id!r} {said[event.kind]}: {event.message}"
        if event.became == "block":
            self.standing.note("block", check.id, reason)
            return Block(reason)
        if event.became == "flag":
            self.standing.note("flag", check.id, reason)
            return Flag(reason)
        return None


def _reading(read: Callable[[Any], Verdict | None], stage: str) -> Callable[[Any], Verdict | None]:
    """Return how to read a verdict at a stage."""

    def fitting(value: Any) -> Verdict | None:
        verdict = read(value)
        if isinstance(verdict, Retry) and stage != "post_validate":
            raise TypeError("Retry makes sense at post_validate only: there is no answer yet")
        return verdict

    return fitting


def _reason(verdict: Verdict) -> str | None:
    return getattr(verdict, "reason", None) or getattr(verdict, "feedback", None)
