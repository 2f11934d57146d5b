"""Asking one check one question, in sync and async callers alike.

The pipeline is written once, as coroutines. What differs between a sync and an async caller is only
how waiting is done, and that is what `Waiting` stands for: under `Blocking` no coroutine ever
really suspends, so `drive` runs the pipeline to its end in the caller's own thread without any
event loop; under `OnLoop` it waits in the caller's loop. Verdicts, events and records are the same
by construction.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from functools import partial
from typing import Any, Literal, Protocol, TypeVar

from .checks import Check
from .context import Context
from .generation import Generation, Request
from .trail import Trail
from .workers import Workers, WorkersExhausted

T = TypeVar("T")


class Waiting(Protocol):
    """How the pipeline waits."""

    async def until_done(self, future: Future[T], timeout: float | None) -> T:
        """Wait for a future; raises `TimeoutError` when the time is up."""
        ...

    async def run(self, function: Callable[[], T], workers: Workers) -> T:
        """Run what may block (a log append) and wait for it."""
        ...

    async def generate(self, trail: Trail, request: Request, **place: Any) -> Generation:
        """Ask the trail's world for a generation."""
        ...


class Blocking:
    """Waits by blocking the calling thread."""

    async def until_done(self, future: Future[T], timeout: float | None) -> T:
        """Block until the future is done."""
        try:
            return future.result(timeout)
        except FutureTimeout:
            if not future.done():
                raise _DeadlineMissed from None
        return future.result()  # in at the last moment, or the check itself raised a TimeoutError

    async def run(self, function: Callable[[], T], workers: Workers) -> T:
        """Run it here."""
        return function()

    async def generate(self, trail: Trail, request: Request, **place: Any) -> Generation:
        """Ask and block."""
        return trail.generate(request, **place)


class OnLoop:
    """Waits in the running event loop.

    Its caller has imported asyncio; nobody else needs to pay for that.
    """

    async def until_done(self, future: Future[T], timeout: float | None) -> T:
        """Await the future without blocking the loop."""
        import asyncio

        waiter = asyncio.wrap_future(future)
        try:
            await asyncio.wait({waiter}, timeout=timeout)
            if not waiter.done():
                raise _DeadlineMissed
            return future.result()  # not the waiter's: a check's cancellation is not the caller's
        finally:
            waiter.cancel()  # so that a late exception is not reported as never retrieved

    async def run(self, function: Callable[[], T], workers: Workers) -> T:
        """Run it on a thread and await it; not on a worker, which stuck checks may have used up."""
        import asyncio

        return await asyncio.to_thread(function)

    async def generate(self, trail: Trail, request: Request, **place: Any) -> Generation:
        """Ask and await."""
        return await trail.agenerate(request, **place)


class _DeadlineMissed(Exception):
    """The check did not answer in time."""


def drive(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that never suspends to its end."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        result: T = stop.value
        return result
    coroutine.close()
    raise RuntimeError("a blocking pipeline suspended")  # pragma: no cover


class Answer:
    """What came of a question.

    A value, or a failure of one of three kinds, and how long it took.
    """

    __slots__ = ("duration_ns", "error", "failure", "value")

    def __init__(
        self,
        value: Any,
        failure: Literal["error", "timeout"] | None,
        error: BaseException | None,
        duration_ns: int,
    ) -> None:
        self.value = value
        self.failure: Literal["error", "timeout"] | None = failure
        self.error = error
        self.duration_ns = duration_ns


async def ask(
    check: Check,
    function: Callable[..., Any],
    arguments: dict[str, Any],
    *,
    context: Context,
    waiting: Waiting,
    workers: Workers,
    timeout: float | None = None,
) -> Answer:
    """Call a check's function within its deadline and return what came of it.

    `timeout` stands in for the check's own, in seconds.
    Nothing but `BaseException`s escape.
    """
    started = time.perf_counter_ns()
    allowed = check.timeout if timeout is None else timeout

    def finish(
        value: Any = None,
        failure: Literal["error", "timeout"] | None = None,
        error: BaseException | None = None,
    ) -> Answer:
        context.close()
        return Answer(value, failure, error, time.perf_counter_ns() - started)

    try:
        is_async = _is_async(function)
        if check.inline and not is_async:
            return finish(function(**arguments))
        if is_async:
            future: Future[Any] = workers.spawn(function(**arguments))
        else:
            future = workers.submit(lambda: function(**arguments))
        try:
            value = await waiting.until_done(future, allowed)
            if inspect.iscoroutine(value):  # a wrapper that returned a coroutine
                future = workers.spawn(value)
                left = allowed - (time.perf_counter_ns() - started) / 1e9
                value = await waiting.until_done(future, max(left, 0.0))
        except _DeadlineMissed:
            context.close()
            workers.abandon(future)
            message = f"no answer within {allowed:g} s"
            return finish(failure="timeout", error=TimeoutError(message))
        except BaseException:  # the caller was cancelled or interrupted, or the check raised
            if not future.done():
                context.close()
                workers.abandon(future)
            raise
        return finish(value)
    except WorkersExhausted as error:
        return finish(failure="timeout", error=error)
    except Exception as error:
        return finish(failure="error", error=error)


def _is_async(function: Callable[..., Any]) -> bool:
    while isinstance(function, partial):
        function = function.func
    call = getattr(function, "__call__", None)  # noqa: B004
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(call)
