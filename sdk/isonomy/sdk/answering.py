"""Answering: the model answers, plugins criticise, revise and rank, checks judge."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from .canonical import digest_of
from .contents import (
    about_answer,
    about_calls,
    as_candidate,
    as_critiques,
    as_ranking,
    new_answer,
    no_replacement,
)
from .events import Critiqued, Ranked, Revised
from .generation import Generation, Request, Sampling
from .judging import Judgement, Judging
from .vocabulary import Candidate, Critique, Message, Part, Text

Released = Callable[[], Awaitable[str]]
"""Gives what of the model's last answer left before the whole was judged, or would have left of a
stream; mostly nothing."""


async def nothing_released() -> str:
    """Return nothing."""
    return ""


class Answering:
    """One call's way from its admitted messages to an answer.

    Args:
        judging: asks the call's checks.
        released: what a caller has read already can't be answered anew.
    """

    def __init__(self, judging: Judging, released: Released = nothing_released) -> None:
        self._judging = judging
        self._released = released

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
        asked = messages
        while True:
            generation = await self._judging.waiting.generate(
                self._judging.trail,
                msgspec.structs.replace(request, messages=asked, sampling=sampling),
                purpose="answer",
                candidate=0,
                stage="generate",
                check=None,
                round=self._judging.rounds,
                on_text=on_text,
            )
            on_text = None  # what comes in later rounds is judged as a whole
            candidate = Candidate(
                index=0, content=generation.content, finish_reason=generation.finish_reason
            )
            candidate = await self._constitution(candidate)
            tools = await self._judging.stage("tool_call", candidate, about_calls, no_replacement)
            if tools.blocked:
                return None
            judgement = await self._validate(candidate)
            if judgement.blocked:
                return None
            if judgement.feedback is None:
                return judgement.content  # type: ignore[no-any-return]
            if await self._released():
                self._judging.standing.note(
                    "block",
                    self._judging.standing.check,
                    f"asked to retry what had been released in part: {judgement.feedback}",
                )
                return None
            if self._judging.rounds >= self._judging.policy.max_rounds:
                self._judging.standing.note(
                    "block",
                    self._judging.standing.check,
                    f"still asked to retry after {self._judging.rounds} more rounds: "
                    f"{judgement.feedback}",
                )
                return None
            self._judging.rounds += 1
            asked = (
                *messages,
                Message("assistant", _not_empty(generation)),
                Message.of("user", judgement.feedback),
            )

    async def _constitution(self, candidate: Candidate) -> Candidate:
        """Let plugins critique, revise and rank.

        A revision goes on to validation like any answer.
        """
        critiques: list[Critique] = []
        for check in self._judging.policy.at("critique"):
            arguments: dict[str, Any] = {"candidate": candidate}
            found, took = await self._judging.consult(
                check, "critique", "candidate/0", arguments, candidate, as_critiques
            )
            if found is not None:
                critiques.extend(found)
                self._judging.add(
                    Critiqued,
                    "critique",
                    check,
                    target="candidate/0",
                    critiques=found,
                    took=took,
                )
        for check in self._judging.policy.at("revise"):
            arguments = {"candidate": candidate, "critiques": tuple(critiques)}
            new, took = await self._judging.consult(
                check, "revise", "candidate/0", arguments, candidate, as_candidate
            )
            if new is not None and new.content != candidate.content:
                before, after = digest_of(candidate.content), digest_of(new.content)
                self._judging.add(
                    Revised,
                    "revise",
                    check,
                    target="candidate/0",
                    before=before,
                    after=after,
                    text=new.text,
                    took=took,
                )
                self._judging.standing.note("replace", check.id, "revised")
                candidate = candidate.with_content(new.content)
        for check in self._judging.policy.at("rank"):
            arguments = {"candidates": (candidate,)}
            ranking, took = await self._judging.consult(
                check, "rank", "candidates", arguments, candidate, as_ranking
            )
            if ranking is not None:
                self._judging.add(Ranked, "rank", check, ranking=ranking, took=took)
        return candidate

    async def _validate(self, candidate: Candidate) -> Judgement:
        if self._judging.standing.verdict == "block":  # a constitutional plugin failed closed
            return Judgement(candidate, blocked=True)
        return await self._judging.stage("post_validate", candidate, about_answer, new_answer)


def _not_empty(generation: Generation) -> tuple[Part, ...]:
    return generation.content or (Text(""),)
