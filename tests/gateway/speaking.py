"""A model that says what it is told to, as slowly as it is told to: a real streaming backend."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable

from isonomy.sdk import Generation, Identity, Message, Part, Request, Sampling, Text, Usage
from isonomy.sdk.vocabulary import text_of

Answer = str | tuple[Part, ...] | Exception


def echo(messages: tuple[Message, ...]) -> Answer:
    """Answer with what was asked last."""
    return f"You said: {messages[-1].text}"


class Speaker:
    """A backend that answers in pieces.

    Args:
        answer: of the messages; an exception is raised.
        pieces: characters of a piece.
        pause: seconds before each piece.
    """

    def __init__(
        self,
        answer: Callable[[tuple[Message, ...]], Answer] = echo,
        *,
        pieces: int = 8,
        pause: float = 0.0,
        name: str = "speaker",
    ) -> None:
        self.requests: list[Request] = []
        self.cancelled = threading.Event()
        self._answer = answer
        self._pieces = pieces
        self._pause = pause
        self._name = name

    def identity(self) -> Identity:
        return Identity(provider="tests", model=self._name, spec=f"tests:{self._name}")

    def resolve(self, sampling: Sampling) -> Sampling:
        return sampling

    def _begin(self, request: Request) -> tuple[tuple[Part, ...], list[str]]:
        self.requests.append(request)
        answer = self._answer(request.messages)
        if isinstance(answer, Exception):
            raise answer
        content: tuple[Part, ...] = (Text(answer),) if isinstance(answer, str) else answer
        text = text_of(content)
        return content, [text[i : i + self._pieces] for i in range(0, len(text), self._pieces)]

    def _end(self, content: tuple[Part, ...]) -> Generation:
        called = any(not isinstance(part, Text) for part in content)
        return Generation(
            content=content,
            finish_reason="tool_calls" if called else "stop",
            model=self._name,
            usage=Usage(3, 5),
            runtime={"system_fingerprint": "fp_tests"},
        )

    def generate(
        self, request: Request, *, on_text: Callable[[str], None] | None = None
    ) -> Generation:
        content, pieces = self._begin(request)
        for piece in pieces:
            time.sleep(self._pause)
            if on_text is not None:
                on_text(piece)
        return self._end(content)

    async def agenerate(
        self, request: Request, *, on_text: Callable[[str], None] | None = None
    ) -> Generation:
        content, pieces = self._begin(request)
        try:
            for piece in pieces:
                await asyncio.sleep(self._pause)
                if on_text is not None:
                    on_text(piece)
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return self._end(content)

    def close(self) -> None:
        pass
