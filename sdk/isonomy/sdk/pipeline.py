"""The pipeline: one call's way through a policy, from what goes in to what may be released.

Judging is in judging.py, the way from the admitted messages to an answer in answering.py. A call
that waited for a person goes on where it stood (see `isonomy.sdk.resuming`): its stage is judged
once more, what the person decided about it counts, and what a person edited is judged like
anything else.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from .answering import Answering, Released, Waits, nothing_released
from .asking import Waiting
from .contents import DOCUMENTS, MESSAGES, RESULTS, with_documents
from .events import Decided
from .generation import Request, Sampling
from .judging import Judging, Standing
from .policy import Policy
from .records import Resumption
from .trail import Trail
from .vocabulary import Call, Candidate, Document, Message
from .workers import Workers

if TYPE_CHECKING:
    from .decisions import Stood


class Pipeline:
    """One call's way through a policy. Holds the call's state; checks hold none.

    Args:
        policy: judges.
        call: who asks.
        trail: its events, and its gate to the world.
        waiting: how to wait.
        workers: for checks.
        released: what a caller has read already can't be answered anew.
        resumption: with what a call goes on that waited for a person.
    """

    def __init__(
        self,
        policy: Policy,
        call: Call,
        trail: Trail,
        *,
        waiting: Waiting,
        workers: Workers,
        released: Released = nothing_released,
        resumption: Resumption | None = None,
    ) -> None:
        self.judging = Judging(policy, call, trail, waiting=waiting, workers=workers)
        self._resumption = resumption
        self._answering = Answering(self.judging, released, resumption)
        self._waits: Waits | None = None

    @property
    def waits(self) -> Waits | None:
        """Where the call waits for a person, if it does."""
        if self.standing.verdict != "ask_human":
            return None
        return self._waits or self._answering.waits

    @property
    def standing(self) -> Standing:
        """What the call has come to so far."""
        return self.judging.standing

    @property
    def rounds(self) -> int:
        """How often the model was asked again."""
        return self.judging.rounds

    async def cleared(self) -> bool:
        """Wait for the checks beside the model; return whether they let the answer go."""
        return await self._answering.cleared()

    async def admit(
        self, messages: tuple[Message, ...], documents: tuple[Document, ...] = ()
    ) -> tuple[Message, ...] | None:
        """Judge what goes in; returns the messages that may go to the model, or `None` if blocked.

        Documents pass `retrieved` and join what the user asked last; what tools answered passes
        `tool_result`; then the pre-filters see everything. A resumed call goes on at its stage.
        """
        stage, changed = None, False
        if self._resumption is not None:
            stage, changed = self._resumption.stage, self._resumption.decision == "edit"
            stood = self._decided(self._resumption, messages, documents)
            if stood is None:
                return None
            messages, documents = stood.messages, stood.documents
            if stage in ("tool_call", "post_validate"):
                return messages
        judging = self.judging
        if documents and stage in (None, "retrieved"):
            judgement = await judging.stage(DOCUMENTS, documents, waived=stage == "retrieved")
            if judgement.blocked:
                self._waits = Waits("retrieved", judgement.content, messages)
                return None
            messages = with_documents(messages, judgement.content)
        if (stage != "pre_filter" or changed) and judging.policy.groups("tool_result"):
            judgement = await judging.stage(RESULTS, messages, waived=stage == "tool_result")
            messages = judgement.content
            if judgement.blocked:
                self._waits = Waits("tool_result", messages, messages)
                return None
        judgement = await judging.stage(MESSAGES, messages, waived=stage == "pre_filter")
        messages = judgement.content
        if judgement.blocked:
            self._waits = Waits("pre_filter", messages, messages)
            return None
        return messages

    def _decided(
        self,
        resumption: Resumption,
        messages: tuple[Message, ...],
        documents: tuple[Document, ...],
    ) -> Stood | None:
        """Record what a person decided; return what goes on, or `None` if nothing does."""
        from .decisions import Stood, edited  # few calls are resumed

        stood = Stood(messages, documents, resumption.candidate)
        goes_on = edited(resumption, stood) if resumption.decision == "edit" else stood
        before, after = stood.at(resumption.stage), goes_on.at(resumption.stage)
        self.judging.trail.add(
            Decided(
                stage=resumption.stage,
                target=stood.target(resumption.stage),
                decision=resumption.decision,
                before=self.judging.digest(before),
                after=self.judging.digest(after) if goes_on is not stood else None,
                by=resumption.by,
                reason=resumption.reason,
            )
        )
        by = resumption.by or "a person"
        if resumption.decision == "reject":
            why = f": {resumption.reason}" if resumption.reason else ""
            self.standing.note("block", None, f"rejected by {by}{why}")
            return None
        if resumption.decision == "edit":
            self.standing.note("replace", None, f"edited by {by}")
        self._answering.pending = goes_on.candidate
        return goes_on

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
        return await self._answering.answer(messages, sampling, request, on_text)
