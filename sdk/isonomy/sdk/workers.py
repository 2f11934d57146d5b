"""Bounded worker threads with deadlines, and the guard's own event loop for async plugins.

Third-party code may hang. A thread can't be stopped, so a worker that misses its deadline is
abandoned: its late result is dropped, it dies when its function returns, and a fresh worker may
take its place, up to a bound. All threads are daemons, so that a hung check never keeps a process
from exiting. Nothing is started before it is needed, and after a fork everything starts anew in the
child.
"""

from __future__ import annotations

import contextvars
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import asyncio

T = TypeVar("T")
_HEARTBEAT = 0.1
"""Seconds within which a loop that is not blocked answers."""


class WorkersExhausted(TimeoutError):
    """Every worker is stuck in an earlier check that never returned."""


class Queued(Future[T]):
    """What a worker will have done; `begun` is when one took it up (`time.perf_counter_ns`)."""

    begun: int | None = None


class _Job:
    def __init__(self, function: Callable[[], Any]) -> None:
        self.function = function
        self.context = contextvars.copy_context()
        self.future: Queued[Any] = Queued()

    def run(self) -> None:
        if not self.future.set_running_or_notify_cancel():
            return
        self.future.begun = time.perf_counter_ns()
        try:
            result = self.context.run(self.function)
        except StopIteration as error:  # no coroutine can pass it on
            self.future.set_exception(_as_error(error))
        except Exception as error:
            self.future.set_exception(error)
        except BaseException as error:
            self.future.set_exception(_as_error(error))
        else:
            self.future.set_result(result)


def _as_error(error: BaseException) -> RuntimeError:
    """Return an ordinary error for what would end a thread, a loop or the caller (`sys.exit`)."""
    ordinary = RuntimeError(f"{type(error).__name__} in a check")
    ordinary.__cause__ = error
    return ordinary


async def _contained(coroutine: Coroutine[Any, Any, T]) -> T:
    """Let nothing but ordinary errors out, and cancellation only where it came from outside."""
    import asyncio

    try:
        return await coroutine
    except Exception:
        raise
    except BaseException as error:
        task = asyncio.current_task()
        if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
            raise
        raise _as_error(error) from error


async def _retire() -> None:
    """Stop the running loop when what other calls have on it is done."""
    import asyncio

    loop = asyncio.get_running_loop()
    others = asyncio.all_tasks(loop) - {asyncio.current_task()}
    if others:
        await asyncio.wait(others)
    loop.stop()


class Workers:
    """A pool of at most `size` live workers.

    At most `abandoned` more may be stuck before work is refused.
    """

    def __init__(self, *, size: int = 8, abandoned: int = 64) -> None:
        self._size = size
        self._allowed_stuck = abandoned
        self._reset()

    def _reset(self) -> None:
        self._pid = os.getpid()
        self._condition = threading.Condition()
        self._jobs: deque[_Job] = deque()
        self._idle = 0
        self._alive = 0
        self._stuck: set[Future[Any]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False

    def submit(self, function: Callable[[], T]) -> Future[T]:
        """Run `function` on a worker; the future is the caller's to wait for.

        Raises:
            WorkersExhausted: too many workers hang already.
        """
        if self._pid != os.getpid():
            self._reset()
        job = _Job(function)
        with self._condition:
            self._refuse_if_exhausted()
            self._jobs.append(job)
            if self._idle >= len(self._jobs):
                self._condition.notify()
            elif self._alive < self._size:
                self._alive += 1
                threading.Thread(target=self._work, name="isonomy-worker", daemon=True).start()
        return job.future

    def abandon(self, future: Future[Any]) -> None:
        """Give up on a future that missed its deadline.

        Cancel it, or let a fresh worker take its worker's place. A coroutine that blocked the loop
        instead of awaiting costs the loop: the next coroutine gets a fresh one.
        """
        if future.cancel():
            self._replace_blocked_loop(future)
            return
        with self._condition:
            if not future.done():
                self._stuck.add(future)
                self._alive -= 1
                if self._jobs and self._alive < self._size:
                    self._alive += 1
                    threading.Thread(target=self._work, name="isonomy-worker", daemon=True).start()

    def _replace_blocked_loop(self, future: Future[Any]) -> None:
        import asyncio

        with self._condition:
            loop = self._loop
            if loop is None:
                return
            beat = threading.Event()
            loop.call_soon_threadsafe(beat.set)
            if beat.wait(_HEARTBEAT):
                return
            self._loop = None
            self._stuck.add(future)
            loop.call_soon_threadsafe(self._stuck.discard, future)
            asyncio.run_coroutine_threadsafe(_retire(), loop)  # runs when it comes back

    def _work(self) -> None:
        while True:
            with self._condition:
                self._idle += 1
                while not self._jobs and not self._closed:
                    self._condition.wait()
                self._idle -= 1
                if not self._jobs:
                    self._alive -= 1
                    return
                job = self._jobs.popleft()
            job.run()
            with self._condition:
                if job.future in self._stuck:
                    self._stuck.discard(job.future)
                    return

    def spawn(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        """Run a coroutine on the guard's own loop thread, started on first use.

        Raises:
            WorkersExhausted: too many checks hang already.
        """
        import asyncio

        if self._pid != os.getpid():
            self._reset()
        with self._condition:
            try:
                self._refuse_if_exhausted()
            except WorkersExhausted:
                coroutine.close()
                raise
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                threading.Thread(
                    target=self._serve, args=(self._loop,), name="isonomy-loop", daemon=True
                ).start()
            return asyncio.run_coroutine_threadsafe(_contained(coroutine), self._loop)

    def _serve(self, loop: asyncio.AbstractEventLoop) -> None:
        """Run a loop as long as it is the guard's; then end its tasks and close it.

        What a check does to the loop that it runs on (stops it, has a task exit) does not end it.
        """
        import asyncio

        while True:
            with suppress(BaseException):
                loop.run_forever()
            if self._loop is not loop:
                break
        tasks = asyncio.all_tasks(loop)
        for task in tasks:
            task.cancel()
        if tasks:
            loop.run_until_complete(asyncio.wait(tasks, timeout=1.0))
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()

    def _refuse_if_exhausted(self) -> None:
        if len(self._stuck) >= self._allowed_stuck:
            raise WorkersExhausted(
                f"{len(self._stuck)} checks never returned; no worker is left to run another"
            )

    def close(self) -> None:
        """Let idle workers and the loop go; stuck ones are left to themselves."""
        if self._pid != os.getpid():
            return
        with self._condition:
            self._closed = True
            self._condition.notify_all()
            if self._loop is not None:
                loop, self._loop = self._loop, None
                loop.call_soon_threadsafe(loop.stop)
