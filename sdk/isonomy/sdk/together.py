"""Questions that are put to several checks at the same time, and told of in order.

In a recorded world they are put one at a time, each at its turn: what a check took from the world
is numbered by its place among the others, not by who came first, so that both give the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import msgspec

from .asking import Answer, UnderWay
from .checks import Check
from .contents import Question, Read, reading
from .events import Event, Failed
from .trail import Branch
from .vocabulary import Stage

if TYPE_CHECKING:
    from .judging import Judging

_APART = 1 << 10
"""How far apart the nested generations of checks are numbered that are asked at the same time."""
Asked = tuple[Check, int, Question, str]
"""A check, the place of the question among the check's, the question, and what it is about."""


class Put(msgspec.Struct):
    """A question that is put to a check beside others."""

    check: Check
    place: int
    question: Question
    before: str
    branch: Branch
    first: int
    under_way: UnderWay | None = None
    foretold: tuple[Event, ...] | None = None


class Together:
    """Several questions of a stage, put when this is made.

    Args:
        judging: the call's.
        stage: at which they are put.
        asked: to whom, and what.
        read: turns what a check returned into values of our own; a verdict, unless given.
    """

    def __init__(
        self, judging: Judging, stage: Stage, asked: Iterable[Asked], read: Read | None = None
    ) -> None:
        self._judging = judging
        self._stage: Stage = stage
        self._read = read
        first = len(judging.trail.events) - judging.trail.shadowed
        self.puts = [
            Put(*each, judging.trail.branch(), first + number * _APART)
            for number, each in enumerate(asked)
        ]
        if judging.recorded:
            return
        try:
            for put in self.puts:
                put.under_way = self._begun(put)
        except BaseException:
            self.give_up()
            raise

    def _begun(self, put: Put) -> UnderWay:
        judging, check = self._judging, put.check
        function, arguments, context = judging.called(
            check, self._stage, put.question, put.branch, put.first
        )
        return UnderWay(
            check,
            function,
            arguments,
            read=self._read or reading(check, self._stage),
            context=context,
            workers=judging.workers,
            timeout=judging.trail.world.patience(check.timeout),
        )

    async def answer(self, put: Put) -> Answer | Failed:
        """Wait for what comes of one question; the same when awaited again. Records nothing."""
        if put.under_way is None:
            judging = self._judging
            if put.foretold is None:
                put.foretold = judging.trail.world.foretold(
                    stage=self._stage,
                    check=put.check.id,
                    target=put.question.target,
                    round=judging.rounds,
                )
            if put.foretold:
                last = put.foretold[-1]
                assert isinstance(last, Failed)
                return last
            put.under_way = self._begun(put)
        return await put.under_way.answer(self._judging.waiting)

    async def collect(self, take: Callable[[Put, Answer | Failed], None]) -> None:
        """Wait for what comes of each, and have it recorded in order, after what it took."""
        trail = self._judging.trail
        try:
            for put in self.puts:
                start = len(trail.events)
                answer = await self.answer(put)
                put.branch.join()
                if isinstance(answer, Failed):
                    trail.retell(put.foretold or ())
                take(put, answer)
                if put.check.shadow:
                    trail.shadowed += len(trail.events) - start
        except BaseException:
            self.give_up()
            raise

    def give_up(self) -> None:
        """Nobody waits any more; what the checks took from the world stays on record."""
        for put in self.puts:
            if put.under_way is not None:
                put.under_way.drop()
            put.branch.join()
