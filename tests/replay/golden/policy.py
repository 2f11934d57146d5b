"""The policy and the model of the golden calls: code that may never change, for it is digested."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from isonomy.sdk import (
    BackendError,
    Block,
    Generation,
    Identity,
    Replace,
    Request,
    Retry,
    Sampling,
    Text,
    Usage,
    hookimpl,
)


class Reciter:
    """A backend that is not deterministic: its recorded answers are taken."""

    def __init__(self, *answers: str) -> None:
        self._answers = list(answers)

    def identity(self) -> Identity:
        return Identity(provider="golden", model="reciter", spec="golden:reciter")

    def resolve(self, sampling: Sampling) -> Sampling:
        return sampling

    def generate(
        self, request: Request, *, on_text: Callable[[str], None] | None = None
    ) -> Generation:
        if not self._answers:
            raise BackendError("nothing left to recite.", backend="golden")
        text = self._answers.pop(0)
        return Generation(
            content=(Text(text),), finish_reason="stop", model="reciter", usage=Usage(2, 3)
        )

    async def agenerate(
        self, request: Request, *, on_text: Callable[[str], None] | None = None
    ) -> Generation:
        return self.generate(request, on_text=on_text)

    def close(self) -> None:
        pass


class Looks:
    """Takes something from the world."""

    @hookimpl
    def pre_filter(self, messages: Any, ctx: Any) -> Any:
        ctx.effect("look", lambda: {"seen": ["é", 1, None]})
        if "nested" in messages[-1].text:
            ctx.generate("is this fine?")
        return Block("no") if ctx.rng.random() > 2 else None


def tidy(text: str) -> Any:
    if "draft" in text:
        return Retry("no drafts")
    return Replace(text.replace("12345", "*****")) if "12345" in text else True
