"""Bounded worker threads with deadlines, and the guard's own event loop for async plugins.

Third-party code may hang. A thread can't be stopped, so a worker that misses its deadline is
abandoned: its late result is dropped, it dies when its function returns, and a fresh worker may
take its place, up to a bound. All threads are daemons, so that a hung check never keeps a process
from exiting. Nothing is started before it is needed, and after a fork everything starts anew in the
child.
"""

from __future__ import annotations

import asyncio
import contextvars
import os
import threading
from collections import deque
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")


class WorkersExhausted(TimeoutError):
    """Every worker is stuck in an earlier check that never returned."""


class _Job:
    def __init__(self, function: Callable[[], Any]) -> None:
        self.function = function
        self.context = contextvars.copy_context()
        self.future: Future[Any] = Future()

    def run(self) -> None:
        if not self.future.set_running_or_notify_cancel():
            return
        try:
            result = self.context.run(self.function)
        except BaseException as error:  # the caller decides what an error means
            self.future.set_exception(error)
        else:
            self.future.set_result(result)


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
            if len(self._stuck) >= self._allowed_stuck:
                raise WorkersExhausted(
                    f"{len(self._stuck)} checks never returned; no worker is left to run another"
                )
            self._jobs.append(job)
            if self._idle >= len(self._jobs):
                self._condition.notify()
            elif self._alive < self._size:
                self._alive += 1
                threading.Thread(target=self._work, name="isonomy-worker", daemon=True).start()
        return job.future

    def abandon(self, future: Future[Any]) -> None:
        """Give up on a future that missed its deadline.

        Cancel it, or let a fresh worker take its worker's place.
        """
        if future.cancel():
            return
        with self._condition:
            if not future.done():
                self._stuck.add(future)
                self._alive -= 1
                if self._jobs and self._alive < self._size:
                    self._alive += 1
                    threading.Thread(target=self._work, name="isonomy-worker", daemon=True).start()

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
        """Run a coroutine on the guard's own loop thread, started on first use."""
        if self._pid != os.getpid():
            self._reset()
        with self._condition:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                threading.Thread(
                    target=self._loop.run_forever, name="isonomy-loop", daemon=True
                ).start()
            loop = self._loop
        return asyncio.run_coroutine_threadsafe(coroutine, loop)

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
