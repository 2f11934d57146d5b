"""A generation beside its caller: on a thread of its own, or as a task of the caller's loop.

Either way `put` is what the backend is given as `on_text`: it may be called from any thread, keeps
what it is given without bound and returns at once, so that nobody who reads slowly holds up the
model. `take` waits for what has come since. After `stop` nobody waits any more: `put` raises
`Cancelled`, which ends the backend's work at its next piece of text.
"""

from __future__ import annotations

import contextvars
import os
import threading
from collections import deque
from collections.abc import Awaitable, Callable
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Protocol

from .errors import Cancelled
from .generation import Generation

if TYPE_CHECKING:
    import asyncio

GRACE = 5.0
"""Seconds within which a backend's task that was cancelled ends, if it can be cancelled at all."""


def gone() -> Cancelled:
    """Return the error of a call whose caller went away."""
    return Cancelled("the stream was closed before the answer was complete. Ask again.")


class Running(Protocol):
    """A generation under way."""

    def put(self, piece: str) -> None:
        """Take a piece of text from the backend."""
        ...

    def gate(self) -> None:
        """Raise `Cancelled` where nobody waits any more."""
        ...

    async def take(self) -> tuple[str, bool]:
        """Wait for text; return what has come, and whether that was all.

        Raises:
            Cancelled: `interrupt` was called.
        """
        ...

    def result(self) -> Generation:
        """Return what the backend gave, or raise what it raised; only after `take` said all."""
        ...

    def interrupt(self) -> None:
        """Wake up who waits; from any thread."""
        ...

    def stop(self) -> None:
        """Give the generation up, if it still runs."""
        ...

    async def stopped(self) -> None:
        """Wait, for a while, until what was given up has ended."""
        ...


class _Ended:
    """Stands in a queue after all pieces."""


class _Helper:
    """A thread that runs one generation at a time, and waits a while for the next one.

    Starting a thread costs more than all else in a short stream. They are daemons: a backend that
    hangs keeps no process from exiting.
    """

    def __init__(self) -> None:
        self._jobs: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=_BUSY, daemon=True)
        self._thread.start()

    def give(self, job: Callable[[], None]) -> None:
        self._thread.name = _BUSY
        self._jobs.put(job)

    def _work(self) -> None:
        while True:
            try:
                job = self._jobs.get(timeout=_IDLE_SECONDS)
            except Empty:
                try:
                    _idle.remove(self)
                except ValueError:  # somebody has just taken it
                    continue
                return
            job()
            del job
            if len(_idle) >= _MOST_IDLE:
                return
            self._thread.name = "isonomy-spare"
            _idle.append(self)


_BUSY = "isonomy-stream"
_IDLE_SECONDS = 10.0
_MOST_IDLE = 16
_idle: list[_Helper] = []
os.register_at_fork(after_in_child=_idle.clear)  # a child has none of its parent's threads


def _run_beside(job: Callable[[], None]) -> None:
    """Run a job on another thread."""
    try:
        helper = _idle.pop()
    except IndexError:
        helper = _Helper()
    helper.give(job)


class OnThread:
    """A generation on another thread, for callers who block."""

    def __init__(self, generate: Callable[[Running], Generation]) -> None:
        self._queue: SimpleQueue[str | type[_Ended]] = SimpleQueue()
        self._stopped = False
        self._process = os.getpid()
        self._generation: Generation | None = None
        self._error: BaseException | None = None
        context = contextvars.copy_context()
        _run_beside(lambda: context.run(self._run, generate))

    def _run(self, generate: Callable[[Running], Generation]) -> None:
        try:
            self._generation = generate(self)
        except BaseException as error:
            self._error = error
        finally:
            self._queue.put(_Ended)

    def put(self, piece: str) -> None:
        """Take a piece of text."""
        self.gate()
        self._queue.put(_text(piece))

    def gate(self) -> None:
        """Raise `Cancelled` where nobody waits any more."""
        if self._stopped:
            raise gone()

    async def take(self) -> tuple[str, bool]:
        """Block until there is text."""
        item = self._queue.get()
        pieces = []
        while True:
            if isinstance(item, str):
                pieces.append(item)
            if self._stopped:
                raise gone()
            if item is _Ended:
                return "".join(pieces), True
            if self._queue.empty():
                return "".join(pieces), False
            item = self._queue.get()

    def result(self) -> Generation:
        """Return what the backend gave, or raise what it raised."""
        if self._error is not None:
            raise self._error
        assert self._generation is not None
        return self._generation

    def interrupt(self) -> None:
        """Wake up who waits."""
        self._stopped = True
        self._queue.put(_Ended)

    def stop(self) -> None:
        """Have the backend's next piece of text end it."""
        self._stopped = True

    async def stopped(self) -> None:
        """Do not wait: a thread can't be stopped, and may hang for as long as its backend does."""


class AsTask:
    """A generation as a task of the running loop."""

    def __init__(self, generate: Callable[[Running], Awaitable[Generation]]) -> None:
        import asyncio

        self._loop = asyncio.get_running_loop()
        self._pieces: deque[str] = deque()
        self._bell = asyncio.Event()
        self._stopped = False
        self._task: asyncio.Future[Generation] = asyncio.ensure_future(_awaited(generate, self))
        self._task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Future[Generation]) -> None:
        if not task.cancelled():
            task.exception()  # looked at: it is raised by `result`, or nobody waits
        self._bell.set()

    def put(self, piece: str) -> None:
        """Take a piece of text."""
        self.gate()
        self._pieces.append(_text(piece))
        self._ring()
        self.gate()

    def _ring(self) -> None:
        try:
            self._loop.call_soon_threadsafe(self._bell.set)
        except RuntimeError:  # the loop was closed, and with it the caller
            self._stopped = True

    def gate(self) -> None:
        """Raise `Cancelled` where nobody waits any more."""
        if self._stopped:
            raise gone()

    async def take(self) -> tuple[str, bool]:
        """Await text."""
        while True:
            self._bell.clear()
            ended = self._task.done()  # asked before looking for text: none is left behind
            self.gate()
            if self._pieces or ended:
                pieces = [self._pieces.popleft() for _ in range(len(self._pieces))]
                return "".join(pieces), ended
            await self._bell.wait()

    def result(self) -> Generation:
        """Return what the backend gave, or raise what it raised."""
        return self._task.result()

    def interrupt(self) -> None:
        """Wake up who waits."""
        self._stopped = True
        self._ring()

    def stop(self) -> None:
        """Cancel the task."""
        self._stopped = True
        if not self._loop.is_closed():
            self._task.cancel()

    async def stopped(self) -> None:
        """Wait until the task has ended, at most `GRACE` seconds."""
        import asyncio

        if not self._task.done():
            await asyncio.wait({self._task}, timeout=GRACE)


async def _awaited(
    generate: Callable[[Running], Awaitable[Generation]], running: Running
) -> Generation:
    return await generate(running)


def _text(piece: str) -> str:
    if not isinstance(piece, str):
        raise TypeError(f"on_text takes text (a str), not {type(piece).__name__}")
    return piece
