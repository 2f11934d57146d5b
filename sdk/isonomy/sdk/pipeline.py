"""The pipeline: one call's way through a policy, from what goes in to what may be released.

Judging is in judging.py, the way from the admitted messages to an answer in answering.py.
"""

from __future__ import annotations

from collections.abc import Callable

from .answering import Answering, Released, nothing_released
from .asking import Waiting
from .contents import (
    about_documents,
    about_messages,
    about_results,
    new_documents,
    new_messages,
    no_replacement,
    with_documents,
)
from .generation import Request, Sampling
from .judging import Judging, Standing
from .policy import Policy
from .trail import Trail
from .vocabulary import Call, Candidate, Document, Message
from .workers import Workers


class Pipeline:
    """One call's way through a policy. Holds the call's state; checks hold none."""

    def __init__(
        self,
        policy: Policy,
        call: Call,
        trail: Trail,
        *,
        waiting: Waiting,
        workers: Workers,
        released: Released = nothing_released,
    ) -> None:
        self.judging = Judging(policy, call, trail, waiting=waiting, workers=workers)
        self._answering = Answering(self.judging, released)

    async def cleared(self) -> bool:
        """Wait for the checks beside the model; return whether they let the answer go."""
        return True

    @property
    def standing(self) -> Standing:
        """What the call has come to so far."""
        return self.judging.standing

    @property
    def rounds(self) -> int:
        """How often the model was asked again."""
        return self.judging.rounds

    async def admit(
        self, messages: tuple[Message, ...], documents: tuple[Document, ...] = ()
    ) -> tuple[Message, ...] | None:
        """Judge what goes in; returns the messages that may go to the model, or `None` if blocked.

        Documents pass `retrieved` and join what the user asked last; what tools answered passes
        `tool_result`; then the pre-filters see everything.
        """
        if documents:
            judgement = await self.judging.stage(
                "retrieved", documents, about_documents, new_documents
            )
            if judgement.blocked:
                return None
            messages = with_documents(messages, judgement.content)
        if (
            await self.judging.stage("tool_result", messages, about_results, no_replacement)
        ).blocked:
            return None
        judgement = await self.judging.stage("pre_filter", messages, about_messages, new_messages)
        return None if judgement.blocked else judgement.content

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
