"""Scripted judges and a context that needs no call, for tests of constitutions."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from isonomy.plugins import Constitution, Principle
from isonomy.sdk import Candidate, Generation, Identity, Message, Request, Sampling, Text
from isonomy.sdk.spending import Spent

QUESTION = (Message.of("user", "How do I make tea?"),)
START = datetime(2026, 1, 1, tzinfo=UTC)


class Asked(NamedTuple):
    """One question to a model: `kind` is labels, schema, text."""

    kind: str
    messages: tuple[Message, ...]
    backend: str | None
    sampling: Sampling | None

    @property
    def prompt(self) -> str:
        return self.messages[-1].text


class Judged(NamedTuple):
    """What a judge's prompt says: the document's parts and the law that it asks about."""

    answer: Any
    conversation: list[dict[str, Any]]
    law: str


def parsed(prompt: str) -> Judged:
    """Read a judge's prompt as its form promises: one line of JSON, then the task."""
    first, rest = prompt.split("\n", 1)
    document = json.loads(first)
    law = rest.split("The law: ", 1)[1].split("\n\nWhat to look for: ", 1)[0]
    return Judged(document["answer"], document["conversation"], law)


class FakeContext:
    """The part of a context that constitutions use.

    `scores` gives the labels' log-probabilities for a prompt (`None`: the backend has none),
    `words` the answer to any other question; an exception is raised. Each look at the clock takes
    `tick` seconds.
    """

    def __init__(
        self,
        *,
        scores: Callable[[str], Any] | None = None,
        words: Callable[[Asked], Any] | None = None,
        tick: float = 0.0,
    ) -> None:
        self.asked: list[Asked] = []
        self._scores = scores
        self._words = words
        self._tick = tick
        self._looks = 0
        self._tokens = 0

    def now(self) -> datetime:
        self._looks += 1
        return START + timedelta(seconds=self._tick * (self._looks - 1))

    def spent(self) -> Spent:
        return Spent(len(self.asked), self._tokens, START if self._looks else None)

    async def alogprobs(
        self, messages: tuple[Message, ...], labels: tuple[str, ...], *, backend: str | None = None
    ) -> Any:
        if self._scores is None:
            return None
        self._took("labels", messages, backend, None)
        found = self._scores(messages[-1].text)
        if isinstance(found, Exception):
            raise found
        return found

    async def agenerate(
        self,
        messages: tuple[Message, ...],
        *,
        sampling: Sampling | None = None,
        response_format: dict[str, Any] | None = None,
        backend: str | None = None,
    ) -> Generation:
        asked = self._took(
            "schema" if response_format is not None else "text", messages, backend, sampling
        )
        assert self._words is not None
        text = self._words(asked)
        if isinstance(text, Exception):
            raise text
        self._tokens += -(-len(text.encode()) // 4)
        return Generation(content=(Text(text),), finish_reason="stop", model="fake")

    def _took(
        self,
        kind: str,
        messages: tuple[Message, ...],
        backend: str | None,
        sampling: Sampling | None,
    ) -> Asked:
        asked = Asked(kind, messages, backend, sampling)
        self.asked.append(asked)
        self._tokens += -(-sum(len(m.text.encode()) for m in messages) // 4)
        return asked

    @property
    def kinds(self) -> list[str]:
        return [asked.kind for asked in self.asked]


def reply(score: int, reason: str = "so it is") -> str:
    return json.dumps({"reason": reason, "score": score})


def candidate(text: str, index: int = 0) -> Candidate:
    return Candidate(index=index, content=(Text(text),), finish_reason="stop")


def laws(*, together: bool = False, **settings: Any) -> Constitution:
    """Two laws: an answer must not say "boom", nor be rude."""
    return Constitution(
        name="house",
        principles=(
            Principle(id="peace", precedence=0, text="Never say boom."),
            Principle(id="manners", precedence=0 if together else 1, text="Never be rude."),
        ),
        **settings,
    )


def by_law(judged: Judged) -> int:
    """Score an answer by the two laws, in percent."""
    word = {"Never say boom.": "boom", "Never be rude.": "rude"}[judged.law]
    return 10 if word in str(judged.answer) else 90


def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(coroutine)


class Model:
    """A backend whose answer is a function of the request; `scores`, where given, of a prompt.

    It promises nothing, so a replay takes its recorded answers.
    """

    def __init__(self, answer: Callable[[Request], str | Exception], name: str = "model") -> None:
        self.requests: list[Request] = []
        self._answer = answer
        self._name = name

    def identity(self) -> Identity:
        return Identity(provider="scripted", model=self._name, spec=f"scripted:{self._name}")

    def resolve(self, sampling: Sampling) -> Sampling:
        return sampling

    def generate(
        self, request: Request, *, on_text: Callable[[str], None] | None = None
    ) -> Generation:
        self.requests.append(request)
        text = self._answer(request)
        if isinstance(text, Exception):
            raise text
        if on_text is not None:
            on_text(text)
        return Generation(content=(Text(text),), finish_reason="stop", model=self._name)

    async def agenerate(
        self, request: Request, *, on_text: Callable[[str], None] | None = None
    ) -> Generation:
        return self.generate(request, on_text=on_text)

    def close(self) -> None:
        pass


class Scoring(Model):
    """A model that compares labels, too."""

    def __init__(
        self,
        scores: Callable[[str], tuple[float, ...]],
        answer: Callable[[Request], str | Exception],
        name: str = "scoring",
    ) -> None:
        super().__init__(answer, name)
        self.scored: list[Request] = []
        self._scores = scores

    def logprobs(self, request: Request, labels: tuple[str, ...]) -> tuple[float, ...]:
        self.scored.append(request)
        assert labels == ("yes", "no")
        return self._scores(request.messages[-1].text)


def judge() -> Model:
    """Judges by the words "boom" and "rude", in JSON."""
    return Model(lambda request: reply(by_law(parsed(request.messages[-1].text))), "judge")


def assistant(*answers: str, revised: str = "A nice cup of tea.") -> Model:
    """Gives its answers by the number of the candidate, and one revision."""

    def answer(request: Request) -> str:
        if "Your answer was judged" in request.messages[-1].text:
            return revised
        return answers[request.sampling.candidate]

    return Model(answer, "assistant")
