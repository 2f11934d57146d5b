"""`Callable`: any Python function as a backend.

The function gets the messages as plain data and returns the answer's text (or a whole
`Generation`). It may be async: then it is awaited on the caller's loop by `agenerate`, and on a
loop of the backend's own by `generate`; a plain function is called in a thread by `agenerate`, so
that it does not hold up the loop. Nothing is retried: the function knows best.

A function promises nothing about its next answer, so every replay takes the recorded one, and says
so.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import time
from collections.abc import Awaitable
from collections.abc import Callable as Function
from typing import Any

import msgspec

from isonomy.sdk import BackendError
from isonomy.sdk.generation import Generation, Identity, Request, Sampling
from isonomy.sdk.vocabulary import Message, Text

from .background import BackgroundLoop


class Callable:
    """A function ``messages -> text`` as a backend.

    Each message is ``{"role": ..., "content": ...}``, the content being its text. A message that
    holds more than text (tool calls and results, images) has a third key, ``parts``, with all of
    its parts in order, as they stand in records.

    Args:
        function: takes the list of messages; returns `str` or `Generation`; may be async.
        name: what stands for the function in records; its qualified name unless given.

    Raises:
        BackendError: `function` can't be called.
    """

    def __init__(
        self,
        function: Function[[list[dict[str, Any]]], Any],
        *,
        name: str | None = None,
    ) -> None:
        if not callable(function):
            raise BackendError(
                f"a callable backend needs a function that takes messages and returns text, not "
                f"{type(function).__name__}: {function!r}. Specs of other backends are NAME:MODEL.",
                backend="callable",
            )
        self._function = function
        self._name = name or _qualified_name(function)
        self._is_async = _is_async(function)
        self._loop = BackgroundLoop("isonomy-callable")

    def __repr__(self) -> str:
        return f"Callable({self._name})"

    def identity(self) -> Identity:
        """Return who answers: the function's qualified name."""
        return Identity(
            provider="callable",
            model=self._name,
            spec=f"callable:{self._name}",
            deterministic=False,
        )

    def resolve(self, sampling: Sampling) -> Sampling:
        """Return `sampling` as it is: the function is not told of it."""
        return sampling

    def generate(
        self, request: Request, *, on_text: Function[[str], None] | None = None
    ) -> Generation:
        """Call the function.

        Raises:
            BackendError: it raised, or returned what is no answer.
        """
        started = time.perf_counter()
        messages = plain(request.messages)
        try:
            answer = self._function(messages)
            if inspect.isawaitable(answer):
                answer = self._awaited(answer)
        except BackendError:
            raise
        except Exception as error:
            raise self._raised(error) from error
        return self._answered(answer, started, on_text)

    async def agenerate(
        self, request: Request, *, on_text: Function[[str], None] | None = None
    ) -> Generation:
        """Like `generate`, without blocking the running loop."""
        started = time.perf_counter()
        messages = plain(request.messages)
        try:
            if self._is_async:
                answer = self._function(messages)
            else:
                answer = await asyncio.to_thread(self._function, messages)
            if inspect.isawaitable(answer):
                answer = await answer
        except Exception as error:
            raise self._raised(error) from error
        return self._answered(answer, started, on_text)

    def close(self) -> None:
        """End the loop for async functions, if there is one."""
        self._loop.close()

    def _awaited(self, answer: Awaitable[Any]) -> Any:
        if self._loop.closed:
            if inspect.iscoroutine(answer):
                answer.close()
            raise BackendError(
                f"the backend callable:{self._name} was closed. Open another one.",
                backend="callable",
            )
        return self._loop.run(_wait(answer))

    def _raised(self, error: Exception) -> BackendError:
        return BackendError(
            f"the function {self._name} raised {type(error).__name__}: {error}. "
            "Its traceback is the cause of this error.",
            backend="callable",
        )

    def _answered(
        self, answer: Any, started: float, on_text: Function[[str], None] | None
    ) -> Generation:
        if isinstance(answer, Generation):
            generation = answer
        elif isinstance(answer, str):
            generation = Generation(
                content=(Text(answer),),
                finish_reason="stop",
                model=self._name,
                timings={"total": time.perf_counter() - started},
            )
        else:
            hint = " Does every path end in a return?" if answer is None else ""
            raise BackendError(
                f"the function {self._name} returned {type(answer).__name__}, where the "
                f"answer's text (str) or a Generation is expected.{hint}",
                backend="callable",
            )
        if on_text is not None and generation.text:
            on_text(generation.text)
        return generation


def plain(messages: tuple[Message, ...]) -> list[dict[str, Any]]:
    """Return messages as plain data, as `Callable` describes them."""
    result = []
    for message in messages:
        data: dict[str, Any] = {"role": message.role, "content": message.text}
        if not all(isinstance(part, Text) for part in message.content):
            data["parts"] = msgspec.to_builtins(list(message.content))
        result.append(data)
    return result


async def _wait(answer: Awaitable[Any]) -> Any:
    try:
        return await answer
    except (SystemExit, KeyboardInterrupt) as error:  # would end the loop, and later calls hang
        raise RuntimeError(f"{type(error).__name__}: {error}") from error


def _is_async(function: Any) -> bool:
    while isinstance(function, functools.partial):
        function = function.func
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        getattr(function, "__call__", None)  # noqa: B004 - the method of an instance
    )


def _qualified_name(function: Any) -> str:
    while isinstance(function, functools.partial):
        function = function.func
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{getattr(named, '__module__', None) or 'builtins'}.{named.__qualname__}"
