"""`Callable`: any Python function as a backend.

The function gets the messages as plain data and returns the answer's text (or a whole
`Generation`), or yields pieces of the text. It may be async: then it is awaited on the caller's
loop by `agenerate`, and on a loop of the backend's own by `generate`; a plain function is called in
a thread by `agenerate`, so that it does not hold up the loop. Nothing is retried: the function
knows best.

A function promises nothing about its next answer, so every replay takes the recorded one, and says
so. What `on_text` raises goes through; a generator that was still at work is closed.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Iterator
from collections.abc import Callable as Function
from typing import Any, NoReturn

import msgspec

from isonomy.sdk import BackendError
from isonomy.sdk.generation import Generation, Identity, Request, Sampling
from isonomy.sdk.vocabulary import Message, Text

from .background import BackgroundLoop

OnText = Function[[str], None]


class Callable:
    """A function ``messages -> text`` as a backend.

    Each message is ``{"role": ..., "content": ...}``, the content being its text. A message that
    holds more than text (tool calls and results, images) has a third key, ``parts``, with all of
    its parts in order, as they stand in records.

    Args:
        function: takes the list of messages, and the whole `Request` too if its second parameter is
            called ``request``; returns `str` or `Generation`, or yields `str`; may be async.
        name: what stands for the function in records; its qualified name unless given.

    Raises:
        BackendError: `function` can't be called.
    """

    def __init__(
        self,
        function: Function[..., Any],
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
        self._wants_request = _wants_request(function)
        self._loop = BackgroundLoop("isonomy-callable")
        self._identity = Identity(
            provider="callable",
            model=self._name,
            spec=f"callable:{self._name}",
            deterministic=False,
        )

    def __repr__(self) -> str:
        return f"Callable({self._name})"

    def identity(self) -> Identity:
        """Return who answers: the function's qualified name."""
        return self._identity

    def resolve(self, sampling: Sampling) -> Sampling:
        """Return `sampling` as it is: what the function does with it is its own affair."""
        return sampling

    def generate(self, request: Request, *, on_text: OnText | None = None) -> Generation:
        """Call the function.

        Raises:
            BackendError: it raised, or returned what is no answer.
        """
        started = time.perf_counter()
        answer = self._called(request)
        if type(answer) is not str:
            if isinstance(answer, AsyncIterator):
                answer = self._on_loop(answer, on_text)
            elif inspect.isawaitable(answer):
                answer = self._awaited(answer)
            elif isinstance(answer, Iterator):
                answer = self._gathered(answer, on_text)
        return self._answered(answer, started, on_text)

    async def agenerate(self, request: Request, *, on_text: OnText | None = None) -> Generation:
        """Like `generate`, without blocking the running loop.

        Pieces of a plain generator are passed to `on_text` from the thread that it runs in.
        """
        started = time.perf_counter()
        if self._is_async:
            answer = self._called(request)
        else:
            stopped = threading.Event()
            try:
                answer = await asyncio.to_thread(self._in_thread, request, on_text, stopped)
            finally:
                stopped.set()
        if isinstance(answer, AsyncIterator):
            answer = await self._agathered(answer, on_text)
        elif inspect.isawaitable(answer):
            try:
                answer = await answer
            except Exception as error:
                self._raise(error)
        return self._answered(answer, started, on_text)

    def close(self) -> None:
        """End the loop for async functions, if there is one."""
        self._loop.close()

    def _called(self, request: Request) -> Any:
        messages = plain(request.messages)
        try:
            if self._wants_request:
                return self._function(messages, request=request)
            return self._function(messages)
        except Exception as error:
            self._raise(error)

    def _in_thread(self, request: Request, on_text: OnText | None, stopped: threading.Event) -> Any:
        answer = self._called(request)
        if isinstance(answer, Iterator):
            return self._gathered(answer, on_text, stopped)
        return answer

    def _gathered(
        self,
        pieces: Iterator[Any],
        on_text: OnText | None,
        stopped: threading.Event | None = None,
    ) -> _Told:
        told = _Told()
        try:
            while stopped is None or not stopped.is_set():
                try:
                    piece = next(pieces)
                except StopIteration:
                    break
                except Exception as error:
                    self._raise(error)
                self._take(piece, told, on_text)
        finally:
            getattr(pieces, "close", _nothing)()
        return told

    async def _agathered(self, pieces: AsyncIterator[Any], on_text: OnText | None) -> _Told:
        told = _Told()
        try:
            while True:
                try:
                    piece = await anext(pieces)
                except StopAsyncIteration:
                    break
                except Exception as error:
                    self._raise(error)
                self._take(piece, told, on_text)
        finally:
            if inspect.isasyncgen(pieces):
                await pieces.aclose()
        return told

    def _take(self, piece: Any, told: _Told, on_text: OnText | None) -> None:
        if not isinstance(piece, str):
            raise BackendError(
                f"the function {self._name} yielded {type(piece).__name__}, where pieces of the "
                "answer's text (str) are expected.",
                backend="callable",
            )
        told.append(piece)
        if on_text is not None and piece:
            on_text(piece)

    def _on_loop(self, pieces: AsyncIterator[Any], on_text: OnText | None) -> _Told:
        self._require_open()
        told: _Told = self._loop.run_telling(
            lambda tell: _wait(self._agathered(pieces, tell)), on_text or _nothing
        )
        return told

    def _awaited(self, answer: Awaitable[Any]) -> Any:
        if self._loop.closed and inspect.iscoroutine(answer):
            answer.close()
        self._require_open()
        try:
            return self._loop.run(_wait(answer))
        except Exception as error:
            self._raise(error)

    def _require_open(self) -> None:
        if self._loop.closed:
            raise BackendError(
                f"the backend callable:{self._name} was closed. Open another one.",
                backend="callable",
            )

    def _raise(self, error: Exception) -> NoReturn:
        if isinstance(error, BackendError):
            raise error
        raise BackendError(
            f"the function {self._name} raised {type(error).__name__}: {error}. "
            "Its traceback is the cause of this error.",
            backend="callable",
        ) from error

    def _answered(self, answer: Any, started: float, on_text: OnText | None) -> Generation:
        if isinstance(answer, Generation):
            if on_text is not None and answer.text:
                on_text(answer.text)
            return answer
        if isinstance(answer, _Told):  # `on_text` has it already
            answer = "".join(answer)
        elif not isinstance(answer, str):
            hint = " Does every path end in a return?" if answer is None else ""
            raise BackendError(
                f"the function {self._name} returned {type(answer).__name__}, where the "
                f"answer's text (str) or a Generation is expected.{hint}",
                backend="callable",
            )
        elif on_text is not None and answer:
            on_text(answer)
        return Generation(
            content=(Text(answer),),
            finish_reason="stop",
            model=self._name,
            timings={"total": time.perf_counter() - started},
        )


class _Told(list[str]):
    """The pieces that a function yielded."""


def plain(messages: tuple[Message, ...]) -> list[dict[str, Any]]:
    """Return messages as plain data, as `Callable` describes them."""
    result = []
    for message in messages:
        content = message.content
        if len(content) == 1 and type(content[0]) is Text:  # nearly always
            result.append({"role": message.role, "content": content[0].text})
            continue
        data: dict[str, Any] = {"role": message.role, "content": message.text}
        if not all(isinstance(part, Text) for part in content):
            data["parts"] = msgspec.to_builtins(list(content))
        result.append(data)
    return result


async def _wait(answer: Awaitable[Any]) -> Any:
    try:
        return await answer
    except (SystemExit, KeyboardInterrupt) as error:  # would end the loop, and later calls hang
        raise RuntimeError(f"{type(error).__name__}: {error}") from error


def _nothing(*_: Any) -> None:
    pass


def _inner(function: Any) -> Any:
    while isinstance(function, functools.partial):
        function = function.func
    return function


def _is_async(function: Any) -> bool:
    function = _inner(function)
    # The second is the method of an instance.
    called = (function, getattr(function, "__call__", None))  # noqa: B004
    return any(inspect.iscoroutinefunction(f) or inspect.isasyncgenfunction(f) for f in called)


def _wants_request(function: Any) -> bool:
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # a builtin that does not tell
        return False
    named = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
    return any(p.name == "request" and p.kind in named for p in parameters[1:])


def _qualified_name(function: Any) -> str:
    function = _inner(function)
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{getattr(named, '__module__', None) or 'builtins'}.{named.__qualname__}"
