"""Judging: how the checks of a policy are asked at a stage, and what comes of their verdicts.

Rules, for every stage that gives verdicts:

1. Checks are asked in the policy's order; what one replaced is what the next one sees. Neighbours
   that only read are asked at the same time; the record tells of them in the policy's order.
2. A check has settled on a content when it judged it or made it. As long as some check has not
   settled on the content as it stands, it is asked again; if that is so after `max_rounds` extra
   passes, the stage blocks, since checks that undo each other never end.
3. `Block` ends the stage (after the checks that were asked at the same time). A `Retry` or
   `AskHuman` lets the remaining checks speak, so that a later `Block` still wins.
4. A check that raises, hangs or returns nonsense did not pass: its `on_error` decides, and the
   event says what happened.
5. A target that no check of the stage judged (each abstained, or failed and may) is flagged.
6. A check on trial (`shadow`) is asked and recorded, and nothing else: not even its failure counts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from .asking import Answer, Waiting, ask, heard
from .canonical import digest_of, own
from .checks import Check
from .contents import Question, Read, Subject, reading
from .context import Context
from .events import Failed, Judged, Unjudged
from .policy import Policy
from .trail import Trail
from .vocabulary import (
    SEVERITY,
    Allow,
    AskHuman,
    Block,
    Call,
    Candidate,
    Critique,
    Flag,
    Message,
    Replace,
    Retry,
    Stage,
    Verdict,
    VerdictName,
)
from .workers import Workers

if TYPE_CHECKING:
    from .together import Put  # loaded on use: most checks are asked alone


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
    """What a stage came to: the content as it stands, and what was asked for besides.

    `human` says that it is blocked because a person must decide.
    """

    content: Any
    blocked: bool = False
    feedback: str | None = None
    human: bool = False


class Course(msgspec.Struct):
    """How far a stage has come. `waived`: a person has decided what its checks ask about."""

    subject: Subject
    content: Any
    waived: bool = False
    settled: dict[tuple[str, int, str], str] = {}
    judged: dict[str, bool] = {}
    changed: bool = False
    blocked: bool = False
    human: bool = False
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
        self.asked: tuple[Message, ...] = ()
        """What the model was asked in this round."""
        self.critiques: dict[tuple[int, str], tuple[Critique, ...]] = {}
        """What was said of each candidate as it stood: by its index and its content's digest."""
        self.workers = workers
        self.recorded = trail.world.recorded
        self._digests: dict[int, tuple[Any, str]] = {}

    @property
    def failed(self) -> bool:
        """Whether something has blocked the call."""
        return self.standing.verdict == "block"

    def digest(self, value: Any) -> str:
        """Return the digest of a content; computed once for each object."""
        known = self._digests.get(id(value))
        if known is None:
            known = self._digests[id(value)] = (value, digest_of(value))
        return known[1]

    async def stage(self, subject: Subject, content: Any, *, waived: bool = False) -> Judgement:
        """Judge a stage's content by the rules above.

        Args:
            subject: which stage, and how it asks.
            content: what is judged, as it stands.
            waived: a person has decided what `AskHuman` asks about: it counts no more.
        """
        groups = self.policy.groups(subject.stage)
        if not groups:
            return Judgement(content)
        course = Course(subject, content, waived)
        for _ in range(self.policy.max_rounds + 1):
            course.changed = False
            for group in groups:
                if len(group) == 1:
                    check = group[0]
                    if self.recorded or not check.at_once[subject.stage]:
                        await self._alone(course, check)
                    else:
                        await self._quickly(course, check)
                else:
                    await self._together(course, group)
                if course.blocked:
                    return Judgement(course.content, blocked=True)
            if not course.changed or not self._unsettled(course, self.policy.at(subject.stage)):
                break
        else:
            real = [check for check in self.policy.at(subject.stage) if not check.shadow]
            if self._unsettled(course, real):
                reason = f"the checks at {subject.stage} kept replacing each other's content"
                self.standing.note("block", None, reason)
                return Judgement(course.content, blocked=True)
        self.flag_unjudged(course)
        return Judgement(course.content, course.human, course.feedback, course.human)

    def _unsettled(self, course: Course, checks: Iterable[Check]) -> bool:
        early = course.subject.stage == "pre_filter"
        return any(
            course.settled.get((check.id, place, question.target)) != self.digest(question.seen)
            for check in checks
            if not (early and check.beside)
            for place, question in enumerate(course.subject.questions(check, course.content))
        )

    def flag_unjudged(self, course: Course) -> None:
        """Record what nobody judged."""
        stage = course.subject.stage
        for target, done in course.judged.items():
            if not done:
                self.trail.add(Unjudged(stage=stage, round=self.rounds, target=target))
                self.standing.note("flag", None, f"no check judged it at {stage}")

    async def _alone(self, course: Course, check: Check) -> None:
        """Ask one check its questions, each about what it has made of those before."""
        stage = course.subject.stage
        for place, question in enumerate(course.subject.questions(check, course.content)):
            before = self.digest(question.seen)
            if course.settled.get((check.id, place, question.target)) == before:
                continue
            start = len(self.trail.events)
            read = reading(check, stage)
            answer = await self._answer(check, stage, question, read)
            self.take(course, check, place, question, before, answer)
            if check.shadow:
                self.trail.shadowed += len(self.trail.events) - start
            if course.blocked:
                return

    async def _quickly(self, course: Course, check: Check) -> None:
        """Do as `_alone` for a check that answers at once: the way that most checks go."""
        stage = course.subject.stage
        read, trail = reading(check, stage), self.trail
        for place, question in enumerate(course.subject.questions(check, course.content)):
            target = question.target
            before = self.digest(question.seen)
            key = (check.id, place, target)
            if course.settled.get(key) == before:
                continue
            function, arguments, context = self.called(check, stage, question, trail, None)
            started = time.perf_counter_ns()
            answer = heard(function, arguments, read, interruptible=True)
            if type(answer) is not Answer:  # a wrapper's coroutine
                coroutine = answer.coroutine  # type: ignore[union-attr]
                answer = await self._asked(check, lambda c=coroutine: c, {}, context, read)
                self.take(course, check, place, question, before, answer)
                continue
            if context is not None:
                context.close()
            if answer.failure is None and type(answer.value) is Allow:
                if trail.marking is not None:
                    trail.marking(check.id, question, answer)
                course.settled[key] = before
                course.judged[target] = True
                trail.add(
                    Judged(
                        stage=stage,
                        check=check.id,
                        round=self.rounds,
                        target=target,
                        verdict=answer.value,
                        before=before,
                        duration_ns=time.perf_counter_ns() - started,
                    )
                )
                continue
            answer.duration_ns = time.perf_counter_ns() - started
            self.take(course, check, place, question, before, answer)
            if course.blocked:
                return

    async def _answer(
        self, check: Check, stage: Stage, question: Question, read: Read
    ) -> Answer | Failed:
        """Ask one question, and wait for what comes of it."""
        if self.recorded:
            foretold = self._foretold(check, stage, question.target)
            if foretold is not None:
                return foretold
        function, arguments, context = self.called(check, stage, question, self.trail, None)
        return await self._asked(check, function, arguments, context, read)

    async def _asked(
        self,
        check: Check,
        function: Callable[..., Any],
        arguments: dict[str, Any],
        context: Context | None,
        read: Read,
    ) -> Answer:
        return await ask(
            check,
            function,
            arguments,
            read=read,
            context=context,
            waiting=self.waiting,
            workers=self.workers,
            timeout=self.trail.world.patience(check.timeout),
        )

    def called(
        self, check: Check, stage: Stage, question: Question, trail: Trail, first: int | None
    ) -> tuple[Callable[..., Any], dict[str, Any], Context | None]:
        """Return what to call with which arguments."""
        if check.is_callable:
            return partial(check.plugin, question.arguments["text"]), {}, None
        function, names = check.hooks[stage]
        arguments: dict[str, Any] = {}
        context: Context | None = None
        for name in names:
            if name == "ctx":
                context = arguments[name] = Context(
                    trail, stage=stage, check=check.id, round=self.rounds, first=first
                )
                continue
            shown = self._shown(name, question)
            # A copy: what a check does with what it is shown can't reach what is judged.
            arguments[name] = shown if check.ours else own(shown)
        return function, arguments, context

    def _shown(self, name: str, question: Question) -> Any:
        """Return what a hook is shown under the name of one of its arguments."""
        if name in question.arguments:
            return question.arguments[name]
        if name == "call":
            return self.call
        if name == "messages":
            return self.asked
        if "candidates" in question.arguments:  # critiques
            return tuple(map(self._said_of, question.arguments["candidates"]))
        return self._said_of(question.arguments["candidate"])

    def _said_of(self, candidate: Candidate) -> tuple[Critique, ...]:
        return self.critiques.get((candidate.index, self.digest(candidate.content)), ())

    # Checks that are asked at the same time

    async def _together(self, course: Course, group: Iterable[Check]) -> None:
        from .together import Together

        stage = course.subject.stage
        asked = [
            (check, place, question, before)
            for check in group
            for place, question in enumerate(course.subject.questions(check, course.content))
            if course.settled.get((check.id, place, question.target))
            != (before := self.digest(question.seen))
        ]

        def take(put: Put, answer: Answer | Failed) -> None:
            self.take(course, put.check, put.place, put.question, put.before, answer)

        await Together(self, stage, asked).collect(take)

    # What comes of an answer

    def take(
        self,
        course: Course,
        check: Check,
        place: int,
        question: Question,
        before: str,
        answer: Answer | Failed,
    ) -> None:
        """Record an answer and do what it asks for."""
        target = question.target
        verdict, after, part = self._heard(course, check, question, before, answer)
        course.settled[check.id, place, target] = before
        if check.shadow:
            return
        course.judged[target] = course.judged.get(target, False) or verdict is not None
        if isinstance(verdict, Replace):
            course.content = after
            course.changed = True
            course.settled[check.id, place, target] = self.digest(part)
        elif isinstance(verdict, Block):
            course.blocked = True
        elif isinstance(verdict, AskHuman):
            course.human = course.human or not course.waived
        elif isinstance(verdict, Retry):
            course.feedback = course.feedback or verdict.feedback

    def _heard(
        self,
        course: Course,
        check: Check,
        question: Question,
        before: str,
        answer: Answer | Failed,
    ) -> tuple[Verdict | None, Any, Any]:
        """Record an answer.

        Returns the verdict in force, and the new content with what stands there now, if any.
        """
        if isinstance(answer, Failed):
            return self._consequence(check, answer), None, None
        if self.trail.marking is not None:
            self.trail.marking(check.id, question, answer)
        stage = course.subject.stage
        verdict: Verdict | None = answer.value
        after: Any = None
        part: Any = None
        if isinstance(verdict, Replace) and answer.failure is None:
            try:
                if check.read_only or (check.beside and stage == "pre_filter"):
                    raise TypeError(_NO_REPLACE)
                after, part = course.subject.replaced(course.content, question, verdict)
            except TypeError as error:  # our own: it does not fit here
                answer.failure, answer.error, answer.message = "invalid", "TypeError", str(error)
        if answer.failure is not None:
            return self._failure(check, stage, question.target, before, answer), None, None
        self.trail.add(
            Judged(
                stage=stage,
                check=check.id,
                round=self.rounds,
                target=question.target,
                verdict=verdict,
                before=before,
                after=self.digest(part) if part is not None and not check.shadow else None,
                shadow=check.shadow,
                duration_ns=answer.duration_ns,
            )
        )
        waived = check.shadow or (course.waived and isinstance(verdict, AskHuman))
        if verdict is not None and not waived:
            self.standing.note(verdict.name, check.id, _reason(verdict))
        return verdict, after, part

    def _foretold(self, check: Check, stage: str, target: str) -> Failed | None:
        """Return the timeout that a replay hands back instead of asking, if there is one."""
        events = self.trail.world.foretold(
            stage=stage, check=check.id, target=target, round=self.rounds
        )
        if not events:
            return None
        return self.trail.retell(events)

    def _failure(
        self, check: Check, stage: str, target: str, before: str, answer: Answer
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
            shadow=check.shadow,
            duration_ns=answer.duration_ns,
        )
        self.trail.add(event)
        return self._consequence(check, event)

    def _consequence(self, check: Check, event: Failed) -> Verdict | None:
        said = {"error": "failed", "timeout": "timed out", "invalid": "broke its contract"}
        reason = f"check {check.id!r} {said[event.kind]}: {event.message}"
        if check.shadow:
            return None
        if event.became == "block":
            self.standing.note("block", check.id, reason)
            return Block(reason)
        if event.became == "flag":
            self.standing.note("flag", check.id, reason)
            return Flag(reason)
        return None

    # Hooks that give no verdict

    async def consult(
        self,
        stage: Stage,
        group: Iterable[Check],
        question: Question,
        read: Read,
        take: Callable[[Check, Any, int], None],
    ) -> None:
        """Ask constitutional hooks, at the same time where there are several.

        Args:
            stage: which.
            group: the checks.
            question: what they are asked.
            read: turns what one returned into values of our own, or raises.
            take: is given each check that gave something, what, and how long it took (ns).

        A failure is recorded and its consequence noted.
        """

        def given(value: Any) -> Any:
            return None if value is None else read(value)

        def told(check: Check, answer: Answer | Failed) -> None:
            if isinstance(answer, Failed):
                self._consequence(check, answer)
            elif answer.failure is not None:
                before = self.digest(question.seen)
                self._failure(check, stage, question.target, before, answer)
            elif answer.value is not None:
                take(check, answer.value, answer.duration_ns)

        checks = tuple(group)
        if len(checks) > 1:
            from .together import Together

            asked = [(check, 0, question, "") for check in checks]
            together = Together(self, stage, asked, given)
            await together.collect(lambda put, answer: told(put.check, answer))
            return
        for check in checks:
            start = len(self.trail.events)
            told(check, await self._answer(check, stage, question, given))
            if check.shadow:
                self.trail.shadowed += len(self.trail.events) - start


_NO_REPLACE = (
    "Replace is not possible for a check that only reads, or runs beside the model: take the term "
    "read_only or beside from it"
)


def _reason(verdict: Verdict) -> str | None:
    return getattr(verdict, "reason", None) or getattr(verdict, "feedback", None)
