"""What runs now: a bounded number of requests, each stopped when nobody waits for it any more.

`Running.supervise` runs a request's work as a task of its own and ends it when the client leaves,
when its time is up, or when the server has waited long enough for it to stop. It returns only when
the work is over, so that a cancelled call has written its record by then.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, Literal, TypeVar

from ..errors import Cancelled
from .errors import Disconnected, draining, overloaded, took_too_long
from .exchange import Receive

T = TypeVar("T")
Why = Literal["left", "late", "drained"]


class Running:
    """The requests that run.

    Args:
        most: how many may.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._stops: set[asyncio.Future[Why]] = set()
        self._admitted = 0
        self.draining = False

    def __enter__(self) -> None:
        """Admit a request.

        Raises:
            Refused: there are too many, or the server stops.
        """
        if self.draining:
            raise draining()
        if self._admitted >= self._most:
            raise overloaded(
                f"this server answers {self._most} requests at a time. Try again later."
            )
        self._admitted += 1

    def __exit__(self, *_: object) -> None:
        self._admitted -= 1

    async def supervise(
        self, work: Coroutine[Any, Any, T], receive: Receive, *, seconds: float
    ) -> T:
        """Run `work`, and cancel it when it has become pointless.

        Args:
            work: what is to be done.
            receive: of the request whose body has been read: what comes next is its end.
            seconds: in which it must be done.

        Raises:
            Disconnected: the client left.
            Refused: the time was up (504), or the server stops (503).
        """
        loop = asyncio.get_running_loop()
        stop: asyncio.Future[Why] = loop.create_future()
        task = loop.create_task(work)
        listener = loop.create_task(_listen(receive, stop))
        timer = loop.call_later(seconds, _resolve, stop, "late")
        self._stops.add(stop)
        try:
            waited: set[asyncio.Future[Any]] = {task, stop}
            await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                await _end(task)
                _raise(stop.result(), seconds)
            return await task
        except asyncio.CancelledError:
            await _end(task)
            here = asyncio.current_task()
            if here is not None and not here.cancelling():
                raise Cancelled("this call was cancelled from inside.") from None
            raise
        finally:
            self._stops.discard(stop)
            timer.cancel()
            await _end(listener)

    async def drain(self, seconds: float) -> None:
        """Admit nothing more, let what runs go on for some seconds, then stop it."""
        self.draining = True
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        while self._admitted and loop.time() < deadline:
            await asyncio.sleep(0.02)
        for stop in self._stops:
            _resolve(stop, "drained")

    async def idle(self) -> None:
        """Wait until nothing runs."""
        while self._admitted:
            await asyncio.sleep(0.02)


async def _listen(receive: Receive, stop: asyncio.Future[Why]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    _resolve(stop, "left")


def _resolve(stop: asyncio.Future[Why], why: Why) -> None:
    if not stop.done():
        stop.set_result(why)


async def _end(task: asyncio.Task[Any]) -> None:
    """Cancel a task and wait until it is over, whatever came of it."""
    task.cancel()
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError:
            continue  # who cancels us twice waits for the record all the same
    if not task.cancelled():
        task.exception()


def _raise(why: Why, seconds: float) -> None:
    if why == "left":
        raise Disconnected
    raise took_too_long(seconds) if why == "late" else draining()
