"""An event loop in a thread of its own, which serves callers with and without a loop alike.

A backend that lives on one loop keeps its connections from call to call, whoever calls: a plain
function, a coroutine of any loop, or a plain function inside a running loop. The thread starts with
the first use, ends with `close` (or when its owner is collected, or the interpreter exits), and is
started anew in a forked child, which does not inherit threads.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import os
import queue
import threading
import weakref
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")
Closer = Callable[[], Awaitable[None]]
Tell = Callable[[str], None]
"""Takes a piece of text."""


class BackgroundLoop:
    """Runs coroutines on its own loop."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()
        self._closed = False
        self._process = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._end: weakref.finalize[Any, Any] | None = None
        self._closers: list[Closer] = []

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine and wait for its result.

        An interrupt of the waiting thread cancels it.

        Raises:
            RuntimeError: the loop was closed.
        """
        future = self._submit(coroutine)
        try:
            return future.result()
        finally:
            future.cancel()

    async def arun(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Like `run`, awaited from any loop; cancelling the caller cancels the coroutine."""
        return await asyncio.wrap_future(self._submit(coroutine))

    def run_telling(self, start: Callable[[Tell], Coroutine[Any, Any, T]], on_text: Tell) -> T:
        """Like `run`, of a coroutine that tells text as it comes.

        Args:
            start: makes the coroutine from what it tells each piece to.
            on_text: gets the pieces, in the thread that calls this, so that it holds up no other
                coroutine; what it raises goes through, and the coroutine is cancelled.
        """
        pieces: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        future = self._submit(start(pieces.put))
        future.add_done_callback(lambda _: pieces.put(None))
        try:
            while (piece := pieces.get()) is not None:
                on_text(piece)
            return future.result()
        finally:
            future.cancel()

    async def arun_telling(
        self, start: Callable[[Tell], Coroutine[Any, Any, T]], on_text: Tell
    ) -> T:
        """Like `run_telling`, awaited from any loop, on which `on_text` gets the pieces."""
        caller = asyncio.get_running_loop()
        pieces: deque[str] = deque()
        arrived = asyncio.Event()
        called = False  # waking the other loop costs more than a piece: once for many is enough

        def tell(piece: str) -> None:
            nonlocal called
            pieces.append(piece)
            if not called:
                called = True
                caller.call_soon_threadsafe(arrived.set)

        future = asyncio.wrap_future(self._submit(start(tell)))
        future.add_done_callback(lambda _: arrived.set())
        try:
            while pieces or not future.done():
                await arrived.wait()
                arrived.clear()
                called = False  # before the pieces are taken: one that comes now calls again
                while pieces:
                    on_text(pieces.popleft())
            return await future
        finally:
            if not future.cancel() and not future.cancelled():
                future.exception()  # seen: `on_text` may have raised first

    def before_close(self, closer: Closer) -> None:
        """Await `closer` on the loop when the loop ends. Call it on the loop."""
        self._closers.append(closer)

    def close(self) -> None:
        """Cancel what runs, await the closers, end the thread. Calling it twice is harmless."""
        with self._lock:
            self._closed = True
            if self._end is not None and self._process == os.getpid():
                self._end()

    def _submit(self, coroutine: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        with self._lock:
            if self._closed:
                coroutine.close()
                raise RuntimeError("closed")
            if self._loop is None or self._process != os.getpid():
                self._start()
            assert self._loop is not None
            # The task copies the context of the calling thread, so tracing goes through.
            return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def _start(self) -> None:
        self._process = os.getpid()
        self._loop = asyncio.new_event_loop()
        self._closers = []
        # The thread must not hold `self`, or the owner would never be collected.
        thread = threading.Thread(
            target=_serve, args=(self._loop, self._closers), name=self._name, daemon=True
        )
        thread.start()
        self._end = weakref.finalize(self, _stop, self._loop, thread, self._process)


def _serve(loop: asyncio.AbstractEventLoop, closers: list[Closer]) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
    finally:
        loop.run_until_complete(_finish(closers))
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.run_until_complete(loop.shutdown_default_executor())
        asyncio.set_event_loop(None)
        loop.close()


async def _finish(closers: list[Closer]) -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for closer in closers:
        with contextlib.suppress(Exception):  # the connection may be gone already
            await closer()


def _stop(loop: asyncio.AbstractEventLoop, thread: threading.Thread, process: int) -> None:
    if process != os.getpid():
        return
    loop.call_soon_threadsafe(loop.stop)
    # The last reference may have gone on the loop's own thread, which then ends by itself.
    if threading.current_thread() is not thread:
        thread.join()
