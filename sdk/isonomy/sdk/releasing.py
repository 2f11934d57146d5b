"""Releasing an answer while it comes: what may leave is recorded, and then leaves.

`Outlet` is the one place where a stream's text leaves. It suspends the coroutine that performs the
call with the piece in its hands, and whoever drives that coroutine (`isonomy.sdk.streams`) takes
the piece from there; so a call is performed by the same code whether it is streamed or not, in its
caller's own thread or task. A piece is given away only after its `Segment` is durable.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Generator
from functools import partial
from typing import Any, Protocol, TypeVar

from .asking import Blocking, OnLoop, Waiting, ask
from .canonical import own
from .checks import Check, verdict_of_callable, verdict_of_hook
from .contents import as_parts
from .generation import Generation, Request
from .running import AsTask, OnThread, Running, gone
from .streaming import Prefix, Reader
from .trail import Trail
from .vocabulary import Allow, Call, Candidate, Flag, Replace, Text, text_of
from .workers import Workers

T = TypeVar("T")


class Piece:
    """Awaited, it leaves: the coroutine suspends with it until it is asked to go on."""

    __slots__ = ("text",)

    def __init__(self, text: str) -> None:
        self.text = text

    def __await__(self) -> Generator[Piece, None, None]:
        yield self


class Outlet:
    """Where the text of one stream leaves.

    `text` is what has left, in so many `segments`; `first_ns` tells when the first of it did, since
    the call began. `closed` says that nobody takes anything any more.
    """

    def __init__(self) -> None:
        self.text = ""
        self.segments = 0
        self.first_ns: int | None = None
        self.closed = False
        self.running: Running | None = None
        self.started = time.perf_counter_ns()
        """When the call began."""

    def recorded(self, piece: str) -> None:
        """Note that a piece's record is durable (or that there is no log): it is about to leave."""
        if self.first_ns is None:
            self.first_ns = self.elapsed_ns()
        self.text += piece
        self.segments += 1

    def gate(self) -> None:
        """Raise `Cancelled` where nobody takes anything any more."""
        if self.closed:
            raise gone()

    async def let_go(self, piece: str) -> None:
        """Let a piece leave whose record is durable; goes on when the next one is asked for."""
        await Piece(piece)
        self.gate()

    def close(self) -> None:
        """Let nothing more leave, and end the generation that runs; from any thread."""
        self.closed = True
        running = self.running
        if running is not None:
            running.interrupt()

    def elapsed_ns(self) -> int:
        """Return nanoseconds since the call began."""
        return time.perf_counter_ns() - self.started


class Streaming:
    """Waits like another `Waiting`, and lets out what may leave while the model answers.

    Args:
        inner: how to wait.
        outlet: where text leaves.
    """

    def __init__(self, inner: Blocking | OnLoop, outlet: Outlet) -> None:
        self._inner = inner
        self.outlet = outlet
        self.begin: Callable[[], Prefix | None] = lambda: None
        """Gives what holds back the next answer; `None` where all of it is held."""
        self.release: Callable[[str], Awaitable[bool]] = _refuse
        """Records a piece and lets it go; false where nothing may leave yet."""

    async def until_done(self, future: Any, timeout: float | None) -> Any:
        """Wait as the other does."""
        return await self._inner.until_done(future, timeout)

    async def run(self, function: Callable[[], T], workers: Workers) -> T:
        """Run it as the other does."""
        return await self._inner.run(function, workers)

    async def generate(
        self,
        trail: Trail,
        request: Request,
        on_text: Callable[[str], None] | None = None,
        **place: Any,
    ) -> Generation:
        """Have the model answer beside its caller, and let out what may leave meanwhile."""
        if place["check"] is not None:  # a plugin's own
            return await self._inner.generate(trail, request, on_text, **place)
        running = self._start(trail, request, place)
        self.outlet.running = running
        try:
            return await self._follow(running)
        except GeneratorExit:  # nothing can be awaited any more
            running.stop()
            raise
        except BaseException:
            running.stop()
            await running.stopped()
            raise
        finally:
            self.outlet.running = None

    def _start(self, trail: Trail, request: Request, place: dict[str, Any]) -> Running:
        # What comes of it when nobody waits any more leaves no trace in the call: hence the gate.
        if isinstance(self._inner, OnLoop):
            return AsTask(lambda r: trail.agenerate(request, r.gate, on_text=r.put, **place))
        return OnThread(lambda r: trail.generate(request, r.gate, on_text=r.put, **place))

    async def _follow(self, running: Running) -> Generation:
        prefix = self.begin()
        ended = False
        while not ended:
            text, ended = await running.take()
            if prefix is not None:
                await self._let_out(prefix, text)
        generation = running.result()
        if prefix is not None:
            whole = generation.text
            if whole.startswith(prefix.taken):  # a backend need not give pieces
                await self._let_out(prefix, whole[len(prefix.taken) :])
            prefix.held = True
        return generation

    async def _let_out(self, prefix: Prefix, text: str) -> None:
        await prefix.feed(text)
        piece = prefix.text[len(self.outlet.text) :]
        if piece and not await self.release(piece):
            prefix.held = True


async def _refuse(piece: str) -> bool:
    return False


class _Closed:
    """Stands where a context would: who is asked in mid-stream has none."""

    def close(self) -> None:
        """Do nothing."""


class _World(Protocol):
    def patience(self, timeout: float) -> float: ...


async def consent(
    reader: Reader,
    text: str,
    *,
    call: Call,
    world: _World,
    waiting: Waiting,
    workers: Workers,
    stalled: Callable[[], None],
) -> str | None:
    """Ask a check about the beginning of an answer, without a trace in the call's events.

    Returns what the check makes of it, or `None` where it objects or fails. `stalled` is called
    where it misses its deadline, which a replay could not find out.
    """
    check: Any = reader
    candidate = Candidate(index=0, content=(Text(text),), finish_reason="")
    function, arguments, read = _asked(check, candidate, call)
    answer = await ask(
        check,
        function,
        arguments,
        read=read,
        context=_Closed(),  # type: ignore[arg-type]
        waiting=waiting,
        workers=workers,
        timeout=world.patience(check.timeout),
    )
    verdict = answer.value
    if answer.failure is not None:
        if answer.failure == "timeout":
            stalled()
        return None
    if verdict is None or isinstance(verdict, Allow | Flag):
        return text
    if isinstance(verdict, Replace):
        try:
            return text_of(as_parts(verdict.content, candidate.content))
        except TypeError:
            return None
    return None


def _asked(
    check: Check, candidate: Candidate, call: Call
) -> tuple[Callable[..., Any], dict[str, Any], Callable[[Any], Any]]:
    if check.is_callable:
        return partial(check.plugin, candidate.text), {}, verdict_of_callable
    function, names = check.hooks["post_validate"]
    offered = {"candidate": candidate, "call": call, "ctx": None}
    # A check that takes anything else (its context) is no function of the text: it fails here.
    return (
        function,
        {name: own(offered[name]) for name in names if name in offered},
        verdict_of_hook,
    )
