"""Checks that run beside the model, to hide how long they take: the answer waits for them."""

from __future__ import annotations

from .asking import Answer
from .contents import MESSAGES
from .events import Failed
from .judging import Course, Judgement, Judging
from .together import Put, Together
from .vocabulary import AskHuman, Block, Message, Replace


class Beside:
    """The checks that are asked about the messages while the model answers them.

    Args:
        judging: asks them.
        messages: as admitted.
        waived: as for `Judging.stage`.
    """

    def __init__(self, judging: Judging, messages: tuple[Message, ...], *, waived: bool) -> None:
        self._judging = judging
        self._course = Course(MESSAGES, messages, waived)
        self._collected = False
        asked = [
            (check, place, question, judging.digest(question.seen))
            for check in judging.policy.beside
            for place, question in enumerate(MESSAGES.questions(check, messages))
        ]
        self._together = Together(judging, "pre_filter", asked)

    async def cleared(self) -> bool:
        """Wait for the checks; return whether they let the answer go. Records nothing."""
        if not self._collected:
            for put in self._together.puts:
                if not put.check.shadow and not await self._lets_go(put):
                    return False
        return not self._course.blocked and not self._course.human

    async def _lets_go(self, put: Put) -> bool:
        answer = await self._together.answer(put)
        if isinstance(answer, Failed):
            return answer.became != "block"
        if answer.failure is not None or isinstance(answer.value, Replace):
            return put.check.on_error != "block"
        if isinstance(answer.value, AskHuman):
            return self._course.waived
        return not isinstance(answer.value, Block)

    async def collect(self) -> Judgement:
        """Wait for the checks, and record what came of them in the policy's order."""
        course, judging = self._course, self._judging

        def take(put: Put, answer: Answer | Failed) -> None:
            judging.take(course, put.check, put.place, put.question, put.before, answer)

        if not self._collected:
            await self._together.collect(take)
            self._collected = True
            if not course.blocked:
                judging.flag_unjudged(course)
        blocked = course.blocked or course.human
        return Judgement(course.content, blocked, None, course.human and not course.blocked)

    def give_up(self) -> None:
        """Nobody waits for the answer any more."""
        self._together.give_up()
