"""Asking one check one question, in sync and async callers alike.

The pipeline is written once, as coroutines. What differs between a sync and an async caller is only
how waiting is done, and that is what `Waiting` stands for: under `Blocking` no coroutine ever
really suspends, so `drive` runs the pipeline to its end in the caller's own thread without any
event loop; under `OnLoop` it waits in the caller's loop. Verdicts, events and records are the same
by construction.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import suppress
from functools import partial
from types import CoroutineType
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

import msgspec

from .checks import Check, is_async
from .context import Context
from .generation import Generation, Request
from .trail import Trail
from .workers import Workers, WorkersExhausted
from .world import ReplayedError, said_by

T = TypeVar("T")


class Waiting(Protocol):
    """How the pipeline waits."""

    async def until_done(self, future: Future[T], timeout: float | None) -> T:
        """Wait for a future; raises `TimeoutError` when the time is up."""
        ...

    async def run(self, function: Callable[[], T], workers: Workers) -> T:
        """Run what may block (a log append) and wait for it."""
        ...

    async def generate(
        self,
        trail: Trail,
        request: Request,
        on_text: Callable[[str], None] | None = None,
        **place: Any,
    ) -> Generation:
        """Ask the trail's world for a generation; `on_text` is as in `World.generate`."""
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

    async def generate(
        self,
        trail: Trail,
        request: Request,
        on_text: Callable[[str], None] | None = None,
        **place: Any,
    ) -> Generation:
        """Ask and block."""
        return trail.generate(request, on_text=on_text, **place)


class OnLoop:
    """Waits in the running event loop.

    Its caller has imported asyncio; nobody else needs to pay for that.
    """

    async def until_done(self, future: Future[T], timeout: float | None) -> T:
        """Await the future without blocking the loop."""
        import asyncio

        if not future.done():
            # Not `wrap_future`: giving up the waiter must not cancel what it waited for.
            loop = asyncio.get_running_loop()
            waiter: asyncio.Future[None] = loop.create_future()

            def settle() -> None:
                if not waiter.done():
                    waiter.set_result(None)

            def tell(_: Future[T]) -> None:
                with suppress(RuntimeError):  # the loop was closed meanwhile
                    loop.call_soon_threadsafe(settle)

            future.add_done_callback(tell)
            await asyncio.wait({waiter}, timeout=timeout)
            if not future.done():
                waiter.cancel()
                raise _DeadlineMissed
        return future.result()

    async def run(self, function: Callable[[], T], workers: Workers) -> T:
        """Run it on a thread and await it; not on a worker, which stuck checks may have used up.

        A record is durable or it is not: who is cancelled meanwhile waits for that first.
        """
        import asyncio

        running = asyncio.ensure_future(asyncio.to_thread(function))
        cancelled: asyncio.CancelledError | None = None
        while not running.done():
            try:
                await asyncio.wait({running})
            except asyncio.CancelledError as error:
                cancelled = error
        if cancelled is not None:
            running.exception()  # looked at: the cancellation says enough
            raise cancelled
        return running.result()

    async def generate(
        self,
        trail: Trail,
        request: Request,
        on_text: Callable[[str], None] | None = None,
        **place: Any,
    ) -> Generation:
        """Ask and await."""
        return await trail.agenerate(request, on_text=on_text, **place)


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


class Answer(msgspec.Struct, gc=False):
    """What came of a question.

    What was read from the check's answer, or a failure of one of three kinds with its type name and
    message, and how long it took.
    """

    value: Any = None
    failure: Literal["error", "timeout", "invalid"] | None = None
    error: str = ""
    message: str = ""
    duration_ns: int = 0


async def ask(
    check: Check,
    function: Callable[..., Any],
    arguments: dict[str, Any],
    *,
    read: Callable[[Any], Any],
    context: Context | None,
    waiting: Waiting,
    workers: Workers,
    timeout: float | None = None,
) -> Answer:
    """Call a check's function within its deadline and return what came of it.

    `read` turns what the function returned into plain values of our own, or raises. It runs where
    the function runs and within its deadline, for what was returned is foreign code too.
    `timeout` stands in for the check's own, in seconds.
    Nothing but the caller's own cancellation or interruption escapes.
    """
    asked = UnderWay(
        check, function, arguments, read=read, context=context, workers=workers, timeout=timeout
    )
    return await asked.answer(waiting)


_QUEUED = 60
"""Seconds for which a check waits for a worker, at least; then it has failed unasked."""


class UnderWay:
    """A question under way: put when this is made, answered when it is awaited, or given up.

    A check that runs inline is called when its answer is awaited, in the caller's own thread.
    """

    __slots__ = (
        "_allowed",
        "_answer",
        "_awaited",
        "_called",
        "_context",
        "_dropped",
        "_future",
        "_read",
        "_started",
        "_turn",
        "_workers",
    )

    def __init__(
        self,
        check: Check,
        function: Callable[..., Any],
        arguments: dict[str, Any],
        *,
        read: Callable[[Any], Any],
        context: Context | None,
        workers: Workers,
        timeout: float | None = None,
    ) -> None:
        self._started = time.perf_counter_ns()
        self._allowed = check.timeout if timeout is None else timeout
        self._read = read
        self._context = context
        self._workers = workers
        self._future: Future[Any] | None = None
        self._called: Callable[[], Any] | None = None
        self._answer: Answer | None = None
        self._awaited: Future[Answer] | None = None
        self._dropped = False
        self._turn = threading.Lock()
        called = partial(function, **arguments)
        try:
            if is_async(function):
                self._future = workers.spawn(_aheard(called(), read))
            elif check.inline:
                self._called = called
            else:
                self._future = workers.submit(lambda: self._heard(function, arguments))
        except WorkersExhausted as error:
            self._answer = self._finished(Answer(None, "timeout", *described(error)))
        except Exception as error:
            self._answer = self._finished(Answer(None, "error", *described(error)))

    def _finished(self, answer: Answer) -> Answer:
        if self._context is not None:
            self._context.close()
        answer.duration_ns = time.perf_counter_ns() - self._started
        self._answer = answer
        return answer

    def _left(self) -> float:
        return max(self._allowed - (time.perf_counter_ns() - self._started) / 1e9, 0.0)

    async def answer(self, waiting: Waiting) -> Answer:
        """Wait for what comes of it; the same when awaited again."""
        if self._answer is not None:
            return self._answer
        answer: Answer | Unawaited | Future[Answer]
        try:
            if self._called is not None:
                self._started = time.perf_counter_ns()
                answer = heard(self._called, {}, self._read, interruptible=True)
            else:
                assert self._future is not None
                answer = await self._worked(waiting, self._future)
            if isinstance(answer, Unawaited):
                answer = self._workers.spawn(_aheard(answer.coroutine, self._read))
            if isinstance(answer, Future):  # of a wrapper
                self._future = answer
                answer = await waiting.until_done(answer, self._left())
            assert isinstance(answer, Answer)
            return self._finished(answer)
        except _DeadlineMissed:
            self.drop()
            message = f"no answer within {self._allowed:g} s"
            return self._finished(Answer(None, "timeout", "TimeoutError", message))
        except WorkersExhausted as error:
            return self._finished(Answer(None, "timeout", *described(error)))
        except Exception as error:
            return self._finished(Answer(None, "error", *described(error)))
        except BaseException:  # the caller was cancelled or interrupted
            self.drop()
            raise

    async def _worked(self, waiting: Waiting, future: Future[Any]) -> Any:
        """Wait for a worker's answer, within a deadline that counts from when a worker took it up.

        Raises:
            WorkersExhausted: no worker was free for very long.
        """
        until = self._started + _QUEUED * 1_000_000_000
        while True:
            try:
                return await waiting.until_done(future, self._left())
            except _DeadlineMissed:
                now = time.perf_counter_ns()
                begun = getattr(future, "begun", self._started)
                if begun is None and now > until:
                    self.drop()
                    raise WorkersExhausted(f"no worker was free within {_QUEUED} s") from None
                if begun == self._started:
                    raise
                self._started = now if begun is None else begun

    def _heard(
        self, function: Callable[..., Any], arguments: dict[str, Any]
    ) -> Answer | Future[Answer]:
        """Call a check on a worker. What it returned to be awaited runs at once, awaited or not."""
        answer = heard(function, arguments, self._read)
        if not isinstance(answer, Unawaited):
            return answer
        with self._turn:
            if self._dropped:
                answer.coroutine.close()
                return Answer()
            self._awaited = self._workers.spawn(_aheard(answer.coroutine, self._read))
            return self._awaited

    def drop(self) -> None:
        """Give it up: nobody waits for it any more."""
        if self._context is not None:
            self._context.close()
        with self._turn:
            self._dropped = True
        for future in (self._future, self._awaited):
            if future is not None and not future.done():
                self._workers.abandon(future)


class Unawaited(NamedTuple):
    """What a plain function returned and somebody has yet to await."""

    coroutine: Coroutine[Any, Any, Any]


def heard(
    function: Callable[..., Any],
    arguments: dict[str, Any],
    read: Callable[[Any], Any],
    *,
    interruptible: bool = False,
) -> Answer | Unawaited:
    """Call a check and read its answer; nothing escapes, apart from the caller's Ctrl-C.

    `interruptible` says that this is the caller's own thread, where Ctrl-C is delivered.
    """
    process = os.getpid()
    try:
        returned = function(**arguments)
    except BaseException as error:
        _end_if_forked(process)
        if interruptible and isinstance(error, KeyboardInterrupt):
            raise
        return Answer(None, "error", *described(error))
    _end_if_forked(process)
    try:
        if isinstance(returned, CoroutineType):
            return Unawaited(returned)
        return Answer(read(returned))
    except BaseException as error:
        if interruptible and isinstance(error, KeyboardInterrupt):
            raise
        return Answer(None, "invalid", *described(error))


async def _aheard(coroutine: Coroutine[Any, Any, Any], read: Callable[[Any], Any]) -> Answer:
    """Await a check and read its answer. What is no `Exception` is for the loop to contain."""
    process = os.getpid()
    try:
        returned = await coroutine
    except Exception as error:
        _end_if_forked(process)
        return Answer(None, "error", *described(error))
    _end_if_forked(process)
    try:
        return Answer(read(returned))
    except BaseException as error:
        return Answer(None, "invalid", *described(error))


def _end_if_forked(process: int) -> None:
    """End a child process that a check left behind: only the parent may go on with the call."""
    if os.getpid() != process:
        os._exit(70)  # EX_SOFTWARE; no clean-up, which is the parent's


def described(error: BaseException) -> tuple[str, str]:
    """Return an error's type name and message, as text that can be recorded.

    What would end a thread, a loop or the caller (`sys.exit`) is named by what it is here: an error
    of a check.
    """
    if not isinstance(error, Exception) or isinstance(error, StopIteration):
        return "RuntimeError", f"{type(error).__name__} in a check"
    name = error.type_name if isinstance(error, ReplayedError) else type(error).__name__
    message = said_by(error)
    return name, message or name
