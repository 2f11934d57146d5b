"""A backend that gives its answers in pieces, cut as told; checks that may act in mid-stream."""

from __future__ import annotations

import itertools
import re
import threading
from collections.abc import Callable, Sequence
from typing import Any

from tests.sdk.world import Memory

from isonomy.sdk import (
    Block,
    Flag,
    Generation,
    Guard,
    Identity,
    Reply,
    Request,
    Retry,
    Sampling,
    Text,
    Usage,
    check,
)
from isonomy.sdk.checks import Check
from isonomy.sdk.records import Segment

SEED = Sampling(seed=7)


class Pieces:
    """A backend that gives its answers in pieces.

    Args:
        answers: the text of each answer, in order; the last is given again and again.
        cuts: where the text is cut; `None`: the backend knows no pieces.
        elsewhere: pieces are given from a thread that is not the caller's.
        before: is called before each piece, with its number.
        error: is raised after all pieces.
    """

    def __init__(
        self,
        answers: Sequence[str],
        cuts: Sequence[int] | None = (),
        *,
        elsewhere: bool = False,
        before: Callable[[int], None] | None = None,
        error: Exception | None = None,
    ) -> None:
        self.requests: list[Request] = []
        self.ended = threading.Event()
        """Set when the backend stopped working, whatever ended it."""
        self.given: list[str] = []
        self.raised: BaseException | None = None
        self._answers = answers
        self._cuts = cuts
        self._elsewhere = elsewhere
        self._before = before
        self._error = error

    def identity(self) -> Identity:
        return Identity(provider="pieces", model="parrot", spec="pieces:parrot")

    def resolve(self, sampling: Sampling) -> Sampling:
        return sampling

    def generate(
        self, request: Request, *, on_text: Callable[[str], None] | None = None
    ) -> Generation:
        self.requests.append(request)
        text = self._answers[min(len(self.requests), len(self._answers)) - 1]
        try:
            if on_text is not None and self._cuts is not None:
                if self._elsewhere:
                    giving = threading.Thread(target=self._give, args=(text, on_text))
                    giving.start()
                    giving.join()
                    if self.raised is not None:
                        raise self.raised
                else:
                    self._give(text, on_text)
            if self._error is not None:
                raise self._error
        finally:
            self.ended.set()
        return Generation(
            content=(Text(text),), finish_reason="stop", model="parrot", usage=Usage(3, 5)
        )

    def _give(self, text: str, on_text: Callable[[str], None]) -> None:
        at = [0, *sorted({cut % (len(text) + 1) for cut in self._cuts or ()}), len(text)]
        try:
            for number, (start, end) in enumerate(itertools.pairwise(at)):
                if self._before is not None:
                    self._before(number)
                on_text(text[start:end])
                self.given.append(text[start:end])
        except BaseException as error:
            self.raised = error
            if not self._elsewhere:
                raise

    async def agenerate(
        self, request: Request, *, on_text: Callable[[str], None] | None = None
    ) -> Generation:
        import asyncio

        return await asyncio.to_thread(self.generate, request, on_text=on_text)

    def close(self) -> None:
        pass


def passing(**terms: Any) -> Check:
    return check(lambda text: True, stages=("post_validate",), lookback=0, **terms)


def replacing(old: str, new: str, **terms: Any) -> Check:
    """Replaces a text; `old` must be no part of what it makes."""

    def replace(text: str) -> Any:
        from isonomy.sdk import Replace

        return Replace(text.replace(old, new)) if old in text else True

    return check(replace, stages=("post_validate",), lookback=len(old) - 1, **terms)


def instead(answer: str, **terms: Any) -> Check:
    """Puts the same answer in the place of every other: nothing of what the model said remains."""

    def put(text: str) -> Any:
        from isonomy.sdk import Replace

        return True if text == answer else Replace(answer)

    return check(put, stages=("post_validate",), lookback=0, **terms)


def finding(pattern: str, verdict: Any, longest: int, **terms: Any) -> Check:
    """Gives a verdict on a text that holds a pattern of at most `longest` characters."""

    def find(text: str) -> Any:
        return verdict if re.search(pattern, text) else True

    return check(find, stages=("post_validate",), lookback=longest - 1, **terms)


BLOCK, FLAG, RETRY = Block("no"), Flag("look"), Retry("again")


def released(log: Memory) -> str:
    """What the log says has left."""
    import msgspec

    return "".join(
        msgspec.json.decode(entry.payloads[0].body, type=str)
        for entry in log.entries
        if isinstance(entry.record, Segment)
    )


def read(guard: Guard, log: Memory | None = None, prompt: str = "hi") -> tuple[list[str], Reply]:
    """Read a stream; each piece must be in the log when it comes."""
    stream = guard.stream(prompt, sampling=SEED)
    pieces = []
    for piece in stream:
        pieces.append(piece)
        if log is not None:
            assert released(log) == "".join(pieces)
    return pieces, stream.reply


async def aread(
    guard: Guard, log: Memory | None = None, prompt: str = "hi"
) -> tuple[list[str], Reply]:
    """Like `read`."""
    stream = guard.astream(prompt, sampling=SEED)
    pieces = []
    async for piece in stream:
        pieces.append(piece)
        if log is not None:
            assert released(log) == "".join(pieces)
    return pieces, stream.reply
