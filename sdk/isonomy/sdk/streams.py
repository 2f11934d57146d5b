"""Streams: what a caller holds of an answer that comes piece by piece.

A streamed call is one coroutine (`isonomy.sdk.performing`) that suspends with each piece of text in
its hands. `Stream` drives it in whatever thread asks for the next piece, inside a running event
loop too; `AsyncStream` in whatever task does. Between two pieces nothing of the call runs but the
model, so a stream costs no thread or task of its own beside that.

A stream that is not read to its end is closed: by `close`, by leaving its ``with`` block, when its
guard is closed, when it is garbage, or when the process ends. Then the model is stopped, and the
call's result says ``Cancelled``. A stream belongs to the process that made it.
"""

from __future__ import annotations

import contextvars
import os
import threading
import weakref
from collections.abc import Callable, Coroutine, Generator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from .errors import Cancelled, InputError
from .performing import Reply
from .releasing import Outlet, Piece
from .running import GRACE, gone

if TYPE_CHECKING:
    import asyncio

Begin = Callable[[], Coroutine[Any, Any, Reply]]
_closing: set[Any] = set()
"""Tasks that close streams which nobody holds any more; a loop keeps no hold of its tasks."""


class Driver:
    """Drives the coroutine of one streamed call from piece to piece.

    Args:
        call_id: the call's.
        outlet: where its text leaves.
        begin: makes the coroutine.
    """

    def __init__(self, call_id: str, outlet: Outlet, begin: Begin) -> None:
        self.call_id = call_id
        self.outlet = outlet
        self.reply: Reply | None = None
        self.loop: asyncio.AbstractEventLoop | None = None
        self._begin = begin
        self._coroutine: Coroutine[Any, Any, Reply] | None = None
        # One context for all of the call, whichever threads and tasks ask for its pieces.
        self._context = contextvars.copy_context()
        self._process = os.getpid()
        self._turn = threading.RLock()
        self._stepping: asyncio.Event | None = None
        self._done = False

    def step(self) -> str | None:
        """Go on to the next piece; `None` at the end."""
        if not self._turn.acquire(blocking=False):
            raise _read_twice()
        try:
            moved = self._move(None)
            assert moved is None or isinstance(moved, Piece)
            return moved.text if moved is not None else None
        finally:
            self._turn.release()

    async def astep(self, error: BaseException | None = None) -> str | None:
        """Like `step`, awaiting; or throw an error into the call."""
        import asyncio

        if self._stepping is not None:
            raise _read_twice()
        self.loop = asyncio.get_running_loop()
        self._stepping = asyncio.Event()
        try:
            return await _Step(self, error)
        finally:
            self._stepping.set()
            self._stepping = None

    def _move(self, error: BaseException | None, value: Any = None) -> Any:
        """Resume the coroutine; return what it suspends with, `None` where it has ended."""
        if self._process != os.getpid():
            raise InputError(
                "a stream can't be read in another process than the one that asked for it. Ask in "
                "the process that reads."
            )
        if self._done:
            if self.outlet.closed and self.reply is None:
                raise gone()
            return None
        if self._coroutine is None:
            self._coroutine = self._begin()
        elif _is_running(self._coroutine):  # an observer of the call reads its stream
            raise _read_twice()
        try:
            if error is None:
                return self._context.run(self._coroutine.send, value)
            return self._context.run(self._coroutine.throw, error)
        except StopIteration as stop:
            self.reply = stop.value
            self._done = True
            return None
        except BaseException:
            self._done = True
            raise

    def close(self) -> None:
        """End the call, if it has not ended; from any thread, but its event loop's."""
        if self._finished():
            return
        self.outlet.close()
        if self.loop is not None and self.loop.is_running():
            self._close_on(self.loop)
            return
        with self._turn:  # after whoever drives it now
            if self._coroutine is not None and not _is_running(self._coroutine):
                self._done = True
                self._context.run(self._coroutine.close)

    def _close_on(self, loop: asyncio.AbstractEventLoop) -> None:
        import asyncio

        if _current_loop() is not loop:
            with suppress(TimeoutError):  # it ends as soon as its loop comes to it
                asyncio.run_coroutine_threadsafe(self.aclose(), loop).result(GRACE)
        elif self._stepping is None and self._coroutine is not None:
            self._done = True
            self._context.run(self._coroutine.close)

    async def aclose(self) -> None:
        """Like `close`, on the event loop that drives the call."""
        if self._finished():
            return
        self.outlet.close()
        if self._stepping is not None:  # another task drives it: it ends there
            await self._stepping.wait()
            return
        with suppress(Cancelled):
            await self.astep(gone())

    def _finished(self) -> bool:
        if self._coroutine is None or self._process != os.getpid():
            self._done = True
        return self._done


class _Step:
    """Awaited, it drives a call to its next piece, and hands what the call awaits to the loop."""

    def __init__(self, driver: Driver, error: BaseException | None) -> None:
        self._driver = driver
        self._error = error

    def __await__(self) -> Generator[Any, Any, str | None]:
        move, error, value = self._driver._move, self._error, None
        while True:
            moved = move(error, value)
            if moved is None and self._driver._done:
                return None
            if isinstance(moved, Piece):
                return moved.text
            try:
                value, error = (yield moved), None
            except BaseException as raised:  # the caller's task is cancelled, or closed
                error = raised


class Stream:
    """An answer, piece by piece: an iterator of text, and a context manager.

    The pieces joined are `Reply.text`. Reading raises what `Guard.chat` raises, and
    `isonomy.sdk.errors.Cancelled` where another thread closes the stream.
    """

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        weakref.finalize(self, _abandon, driver)

    @property
    def call_id(self) -> str:
        """The call's id in the log."""
        return self._driver.call_id

    @property
    def reply(self) -> Reply:
        """What `Guard.chat` would have returned, once the stream is exhausted.

        Raises:
            InputError: it is not.
        """
        return _reply(self._driver)

    @property
    def first_released_s(self) -> float | None:
        """Seconds from the call's begin to its first piece; `None` before it."""
        return _seconds(self._driver.outlet.first_ns)

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> str:
        piece = self._driver.step()
        if piece is None:
            raise StopIteration
        return piece

    def close(self) -> None:
        """Stop the model and record the call as cancelled, unless it has ended; from any thread."""
        self._driver.close()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AsyncStream:
    """An answer, piece by piece: an async iterator of text, and an async context manager.

    As `Stream`, on the event loop that reads it.
    """

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        weakref.finalize(self, _abandon, driver)

    @property
    def call_id(self) -> str:
        """The call's id in the log."""
        return self._driver.call_id

    @property
    def reply(self) -> Reply:
        """What `Guard.achat` would have returned, once the stream is exhausted.

        Raises:
            InputError: it is not.
        """
        return _reply(self._driver)

    @property
    def first_released_s(self) -> float | None:
        """Seconds from the call's begin to its first piece; `None` before it."""
        return _seconds(self._driver.outlet.first_ns)

    def __aiter__(self) -> AsyncStream:
        return self

    async def __anext__(self) -> str:
        piece = await self._driver.astep()
        if piece is None:
            raise StopAsyncIteration
        return piece

    async def aclose(self) -> None:
        """Stop the model and record the call as cancelled, unless it has ended."""
        await self._driver.aclose()

    async def __aenter__(self) -> AsyncStream:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


def _abandon(driver: Driver) -> None:
    """Close a stream that nobody holds any more.

    This may run anywhere, in the middle of an append to the log too, so it waits for nothing.
    """
    if driver._finished():
        return
    loop = driver.loop
    if loop is not None and loop.is_running():
        loop.call_soon_threadsafe(_close_soon, loop, driver)
    elif threading.main_thread().is_alive():
        threading.Thread(target=driver.close, name="isonomy-closing").start()
    else:  # the process ends, and starts no thread any more
        driver.close()


def _close_soon(loop: asyncio.AbstractEventLoop, driver: Driver) -> None:
    task = loop.create_task(driver.aclose())
    _closing.add(task)
    task.add_done_callback(_closing.discard)


def _reply(driver: Driver) -> Reply:
    if driver.reply is None:
        raise InputError("the stream has not come to its end. Read all of it first.")
    return driver.reply


def _seconds(nanoseconds: int | None) -> float | None:
    return None if nanoseconds is None else nanoseconds / 1e9


def _read_twice() -> InputError:
    return InputError("somebody else is reading this stream. Have one reader, or one stream each.")


def _is_running(coroutine: Any) -> bool:
    return bool(coroutine.cr_running)


def _current_loop() -> Any:
    import asyncio

    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
