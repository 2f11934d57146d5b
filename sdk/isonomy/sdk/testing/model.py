"""`ScriptedModel`: a backend that answers what a test tells it to."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ..errors import BackendError
from ..generation import Generation, Identity, Request, Sampling, Usage
from ..vocabulary import Message, Part, Text, text_of

Answer = str | tuple[Part, ...] | Exception
Answers = Answer | list[Answer] | Callable[[tuple[Message, ...]], Answer]
"""What a model answers: always the same, one after the other, or a function of the messages."""


class ScriptedModel:
    """A backend whose answers are told beforehand; it remembers what it was asked.

    Args:
        answers: a text or parts (always the same), a list (one after the other; asked once more, it
            fails), or a function of the messages. An exception among them is raised.
        scores: natural logarithms by label, for `ctx.logprobs`; without, it is no
            `isonomy.sdk.generation.Scorer`.
        piece: how many characters at a time a stream brings.
        pause: seconds before each piece, as a real model takes.
        finish_reason: of every answer.

    Attributes:
        requests: what it was asked, in order.

    Safe to use from several threads.
    """

    def __init__(
        self,
        answers: Answers = "I see.",
        *,
        scores: Mapping[str, float] | None = None,
        piece: int = 4,
        pause: float = 0.0,
        finish_reason: str = "stop",
    ) -> None:
        self.requests: list[Request] = []
        self._answers = answers
        self._piece = max(piece, 1)
        self._pause = pause
        self._finish_reason = finish_reason
        self._lock = threading.Lock()
        if scores is not None:
            self.logprobs = _scorer(scores)

    def identity(self) -> Identity:
        """Return a made-up identity."""
        return Identity(provider="scripted", model="scripted", spec="scripted:model")

    def resolve(self, sampling: Sampling) -> Sampling:
        """Return `sampling` as it is."""
        return sampling

    def generate(
        self, request: Request, *, on_text: Callable[[str], None] | None = None
    ) -> Generation:
        """Answer as told."""
        generation = self._generation(request)
        for piece in self._pieces(generation):
            if self._pause:
                time.sleep(self._pause)
            if on_text is not None:
                on_text(piece)
        return generation

    async def agenerate(
        self, request: Request, *, on_text: Callable[[str], None] | None = None
    ) -> Generation:
        """Answer as told."""
        import asyncio

        generation = self._generation(request)
        for piece in self._pieces(generation):
            if self._pause:
                await asyncio.sleep(self._pause)
            if on_text is not None:
                on_text(piece)
        return generation

    def _generation(self, request: Request) -> Generation:
        with self._lock:
            self.requests.append(request)
            number = len(self.requests) - 1
        answer = self._answer(request, number)
        if isinstance(answer, Exception):
            raise answer
        content: tuple[Part, ...] = (Text(answer),) if isinstance(answer, str) else tuple(answer)
        usage = Usage(sum(len(each.text) for each in request.messages), len(text_of(content)))
        return Generation(
            content=content, finish_reason=self._finish_reason, model="scripted", usage=usage
        )

    def _pieces(self, generation: Generation) -> Iterator[str]:
        text = generation.text
        for start in range(0, len(text), self._piece):
            yield text[start : start + self._piece]

    def close(self) -> None:
        """Do nothing."""

    def _answer(self, request: Request, number: int) -> Answer:
        answers: Any = self._answers
        if callable(answers) and not isinstance(answers, Exception):
            answers = answers(request.messages)
        if not isinstance(answers, list):
            return answers  # type: ignore[no-any-return]
        if number >= len(answers):
            raise BackendError(
                f"the scripted model was asked {number + 1} times, and has {len(answers)} answers. "
                "Give it more, or a function.",
                backend="scripted:model",
            )
        return answers[number]  # type: ignore[no-any-return]


def _scorer(
    scores: Mapping[str, float],
) -> Callable[[Request, Sequence[str]], tuple[float, ...]]:
    def logprobs(request: Request, labels: Sequence[str]) -> tuple[float, ...]:
        missing = [label for label in labels if label not in scores]
        if missing:
            raise BackendError(
                f"the scripted model has no score for {missing[0]!r}.", backend="scripted:model"
            )
        return tuple(scores[label] for label in labels)

    return logprobs
