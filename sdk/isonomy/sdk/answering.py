"""Answering: the model answers, plugins criticise, revise and rank, checks judge.

Each round: the model gives the policy's number of candidates, drawn from one seed. Each candidate
is criticised, revised, and criticised again as long as that changes it, `max_rounds` times at most.
The ranking chooses one; its tool calls and then the whole of it are judged. A `Retry` asks the
model anew, `max_rounds` times at most. Checks beside the model are waited for before anything is
made of its first answer.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from .canonical import digest_of
from .checks import Check
from .contents import (
    ANSWER,
    CALLS,
    Question,
    as_candidate,
    as_critiques,
    as_ranking,
    malformed_calls,
)
from .errors import Cancelled, IsonomyError, LogError
from .events import Critiqued, Failed, Ranked, Revised
from .generation import Request, Sampling
from .judging import Judgement, Judging
from .records import Resumption
from .vocabulary import (
    Candidate,
    Critique,
    Message,
    Part,
    Ranking,
    Stage,
    Text,
    ToolCall,
    ToolResult,
)

if TYPE_CHECKING:
    from .beside import Beside
    from .decisions import Stood

Released = Callable[[], Awaitable[str]]
"""Gives what of the model's last answer left before the whole was judged, or would have left of a
stream; mostly nothing."""


async def nothing_released() -> str:
    """Return nothing."""
    return ""


class Waits(msgspec.Struct, frozen=True):
    """Where a call stands that waits for a person: at a stage, with what the stage judged."""

    stage: Stage
    content: Any
    messages: tuple[Message, ...]
    beside: bool = False

    def stood(self) -> Stood:
        """Return what the call had come to."""
        from .decisions import Stood  # few calls wait

        if self.stage == "retrieved":
            return Stood(self.messages, self.content)
        if self.stage in ("tool_result", "pre_filter"):
            return Stood(self.content)
        return Stood(self.messages, (), self.content)


class Answering:
    """One call's way from its admitted messages to an answer.

    Args:
        judging: asks the call's checks.
        released: what a caller has read already can't be answered anew.
        resumption: with what the call goes on, where a person decided.
    """

    def __init__(
        self,
        judging: Judging,
        released: Released = nothing_released,
        resumption: Resumption | None = None,
    ) -> None:
        self.waits: Waits | None = None
        self.pending: Candidate | None = None
        """The answer that a resumed call goes on with, where the model had answered."""
        self._judging = judging
        self._released = released
        self._resumption = resumption
        self._beside: Beside | None = None
        self._messages: tuple[Message, ...] = ()

    async def cleared(self) -> bool:
        """Wait for the checks beside the model; return whether they let the answer go."""
        return self._beside is None or await self._beside.cleared()

    async def answer(
        self,
        messages: tuple[Message, ...],
        sampling: Sampling,
        request: Request,
        on_text: Callable[[str], None] | None = None,
    ) -> Candidate | None:
        """Have the model answer and the answer judged.

        `on_text` receives pieces of the first answer's text as the model gives them, from any
        thread.

        Returns the candidate to release, or `None` if blocked.
        """
        judging = self._judging
        standing, bound = judging.standing, judging.policy.max_rounds
        asked = self._messages = judging.asked = messages
        pending, self.pending = self.pending, None
        while True:
            if pending is not None:
                best, said = pending, pending.content
                judgement = await self._judged(best, self._resumption)
                pending = None
            else:
                request = msgspec.structs.replace(request, messages=asked, sampling=sampling)
                candidates = await (
                    self._generated(request, on_text)
                    if judging.rounds or not judging.policy.beside
                    else self._beside_checks(request, messages, on_text)
                )
                if candidates is None:
                    return None
                on_text = None  # what comes in later rounds is judged as a whole
                chosen: Candidate | None = candidates[0]
                if judging.policy.constitutional:
                    chosen = await self._chosen(candidates)
                if chosen is None:
                    return None
                best, said = chosen, candidates[chosen.index].content
                judgement = await self._judged(best, None)
            if judgement.blocked:
                return None
            if judgement.feedback is None:
                return judgement.content  # type: ignore[no-any-return]
            if await self._released():
                standing.note(
                    "block",
                    standing.check,
                    f"asked to retry what had been released in part: {judgement.feedback}",
                )
                return None
            if judging.rounds >= bound:
                standing.note(
                    "block",
                    standing.check,
                    f"still asked to retry after {judging.rounds} more rounds: "
                    f"{judgement.feedback}",
                )
                return None
            judging.rounds += 1
            asked = judging.asked = (*messages, *_asked_again(said, judgement.feedback))

    # What the model gives

    async def _beside_checks(
        self,
        request: Request,
        admitted: tuple[Message, ...],
        on_text: Callable[[str], None] | None,
    ) -> list[Candidate] | None:
        """Have the model answer while checks look at what it was asked; `None` if they block."""
        from .beside import Beside

        judging = self._judging
        # A person has decided about these checks only where it was they who asked.
        waived = self._resumption is not None and self._resumption.beside
        self._beside = beside = Beside(judging, admitted, waived=waived)
        try:
            candidates = await self._generated(request, on_text)
        except (LogError, Cancelled):
            beside.give_up()
            raise
        except IsonomyError:
            await beside.collect()
            raise
        except BaseException:
            beside.give_up()
            raise
        judgement = await beside.collect()
        if judgement.human:
            self.waits = Waits("pre_filter", admitted, admitted, beside=True)
        return None if judgement.blocked else candidates

    async def _generated(
        self, request: Request, on_text: Callable[[str], None] | None
    ) -> list[Candidate] | None:
        """Have the model give its candidates."""
        judging = self._judging
        candidates = []
        for index in range(judging.policy.candidates):
            if index:
                sampling = msgspec.structs.replace(request.sampling, candidate=index)
                request = msgspec.structs.replace(request, sampling=sampling)
            generation = await judging.waiting.generate(
                judging.trail,
                request,
                on_text if index == 0 else None,
                purpose="answer",
                candidate=index,
                stage="generate",
                check=None,
                round=judging.rounds,
            )
            candidates.append(
                Candidate(
                    index=index, content=generation.content, finish_reason=generation.finish_reason
                )
            )
        return candidates

    # What plugins make of it

    async def _chosen(self, candidates: list[Candidate]) -> Candidate | None:
        """Return the best candidate, revised; `None` if a plugin failed closed."""
        judging = self._judging
        if judging.policy.groups("critique") or judging.policy.groups("revise"):
            revised = []
            for candidate in candidates:
                revised.append(await self._revised(candidate))
                if judging.failed:
                    return None
            candidates = revised
        if judging.policy.groups("rank"):
            candidates = await self._ranked(candidates)
            if judging.failed:
                return None
        return candidates[0]

    async def _revised(self, candidate: Candidate) -> Candidate:
        judging = self._judging
        for left in range(judging.policy.max_rounds, -1, -1):
            critiques = await self._critiques(candidate)
            if judging.failed or not left:
                return candidate
            before = candidate.content
            candidate = await self._revision(candidate, critiques)
            if candidate.content == before or judging.failed:
                return candidate
        return candidate

    async def _critiques(self, candidate: Candidate) -> tuple[Critique, ...]:
        judging = self._judging
        target = f"candidate/{candidate.index}"
        critiques: list[Critique] = []

        def take(check: Check, found: tuple[Critique, ...], took: int) -> None:
            judging.trail.add(
                Critiqued(
                    stage="critique",
                    check=check.id,
                    round=judging.rounds,
                    target=target,
                    critiques=found,
                    shadow=check.shadow,
                    duration_ns=took,
                )
            )
            if not check.shadow:
                critiques.extend(found)

        question = Question(target, {"candidate": candidate}, candidate.content)
        for group in judging.policy.groups("critique"):
            await judging.consult("critique", group, question, as_critiques, take)
        found = tuple(critiques)
        judging.critiques[candidate.index, judging.digest(candidate.content)] = found
        return found

    async def _revision(self, candidate: Candidate, critiques: tuple[Critique, ...]) -> Candidate:
        """Let each plugin revise what those before it made of a candidate."""
        judging = self._judging
        target = f"candidate/{candidate.index}"
        standing: Candidate = candidate

        def take(check: Check, new: Candidate, took: int) -> None:
            nonlocal standing
            if new.content == standing.content:
                return
            judging.trail.add(
                Revised(
                    stage="revise",
                    check=check.id,
                    round=judging.rounds,
                    target=target,
                    before=digest_of(standing.content),
                    after=digest_of(new.content),
                    text=new.text,
                    shadow=check.shadow,
                    duration_ns=took,
                )
            )
            if not check.shadow:
                judging.standing.note("replace", check.id, "revised")
                standing = standing.with_content(new.content)

        for check in judging.policy.at("revise"):  # one after another, whatever they say they do
            arguments = {"candidate": standing, "critiques": critiques}
            question = Question(target, arguments, standing.content)
            await judging.consult("revise", (check,), question, as_candidate, take)
        return standing

    async def _ranked(self, candidates: list[Candidate]) -> list[Candidate]:
        """Return the candidates, best first; of several rankings, the last one stands."""
        judging = self._judging
        ordered = tuple(candidates)

        def take(check: Check, ranking: Ranking, took: int) -> None:
            nonlocal ordered
            judging.trail.add(
                Ranked(
                    stage="rank",
                    check=check.id,
                    round=judging.rounds,
                    ranking=ranking,
                    shadow=check.shadow,
                    duration_ns=took,
                )
            )
            if not check.shadow:
                at = {candidate.index: candidate for candidate in ordered}
                ordered = tuple(at[index] for index in ranking.order)

        for check in judging.policy.at("rank"):
            contents = tuple(candidate.content for candidate in ordered)
            seen: Any = contents[0] if len(contents) == 1 else contents
            question = Question("candidates", {"candidates": ordered}, seen)
            await judging.consult(
                "rank", (check,), question, partial(as_ranking, candidates=ordered), take
            )
        return list(ordered)

    # What checks make of it

    async def _judged(self, candidate: Candidate, resumption: Resumption | None) -> Judgement:
        """Judge the tool calls of an answer and then the whole of it.

        A resumed call goes on at the stage at which it waited; what a person edited is judged from
        the beginning.
        """
        judging = self._judging
        if resumption is None:
            stage = None
            calls = any(isinstance(part, ToolCall) for part in candidate.content)
        else:
            stage = resumption.stage
            calls = stage != "post_validate" or resumption.decision == "edit"
        if calls:
            judgement = await self._calls_judged(candidate, waived=stage == "tool_call")
            self._note_waiting("tool_call", judgement)
            if judgement.blocked or judgement.feedback is not None:
                return judgement
            candidate = judgement.content
        judgement = await judging.stage(ANSWER, candidate, waived=stage == "post_validate")
        self._note_waiting("post_validate", judgement)
        return judgement

    def _note_waiting(self, stage: Stage, judgement: Judgement) -> None:
        if judgement.human:
            self.waits = Waits(stage, judgement.content, self._messages)

    async def _calls_judged(self, candidate: Candidate, *, waived: bool) -> Judgement:
        judging = self._judging
        strict = any(not check.shadow for check in judging.policy.at("tool_call"))
        for call in malformed_calls(candidate.content):
            # No check can be asked about what is no arguments.
            became: Literal["block", "flag"] = "block" if strict else "flag"
            message = f"the arguments of the call of {call.name!r} are no JSON object"
            judging.trail.add(
                Failed(
                    stage="tool_call",
                    round=judging.rounds,
                    target=f"tool_call/{call.id}",
                    kind="invalid",
                    error="MalformedArguments",
                    message=message,
                    became=became,
                    before=digest_of(call),
                )
            )
            judging.standing.note(became, None, message)
        if judging.failed:
            return Judgement(candidate, blocked=True)
        return await judging.stage(CALLS, candidate, waived=waived)


def _asked_again(said: tuple[Part, ...], feedback: str) -> tuple[Message, ...]:
    """Return what the model is shown when it is asked again: its answer, and what to do about it.

    Every tool call gets a result, without which providers take no further message.
    """
    answer = Message("assistant", said or (Text(""),))
    results = tuple(
        ToolResult(part.id, "This call was not run.") for part in said if isinstance(part, ToolCall)
    )
    told = (Message("tool", results),) if results else ()
    return (answer, *told, Message.of("user", feedback))
