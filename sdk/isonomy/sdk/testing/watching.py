"""What a check does while it is asked: what it reaches for, and whether it waits properly."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Generator
from typing import Any

from . import tripwires
from .asking import Panel, Question, failures, instrumented
from .conformance import Case, Held, Outcome, shrunk

_BLOCKED = 0.25
"""Seconds for which a coroutine may keep the loop from everybody else."""


class _Watch:
    """Notes what a check's functions reach for."""

    def __init__(self) -> None:
        self.found: list[str] = []

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        if inspect.iscoroutinefunction(function):

            async def watched_async(*given: Any, **named: Any) -> Any:
                return await _Steps(function(*given, **named), self._step)

            return watched_async

        def watched(*given: Any, **named: Any) -> Any:
            with tripwires.armed() as found:
                try:
                    return function(*given, **named)
                finally:
                    self.found += found

        return watched

    def _step(self, go_on: Callable[[], Any]) -> Any:
        with tripwires.armed() as found:
            try:
                return go_on()
            finally:
                self.found += found


class _Steps:
    """A coroutine whose every step, from one await to the next, is taken by `step`."""

    def __init__(self, coroutine: Any, step: Callable[[Callable[[], Any]], Any]) -> None:
        self._coroutine = coroutine
        self._step = step

    def __await__(self) -> Generator[Any, Any, Any]:
        inner = self._coroutine.__await__()
        sent: Any = None
        raised: BaseException | None = None
        while True:
            try:
                if raised is not None:
                    error, raised = raised, None
                    waited = self._step(lambda error=error: inner.throw(error))  # type: ignore[misc]
                else:
                    waited = self._step(lambda sent=sent: inner.send(sent))  # type: ignore[misc]
            except StopIteration as stop:
                return stop.value
            try:
                sent = yield waited
            except BaseException as error:
                raised = error


def effects(case: Case) -> Held:
    """Clock, chance, files, network, processes and environment come through its context."""
    tripwires.add_hook()
    watch = _Watch()
    with Panel(instrumented(case.subject.fresh(), watch.around), case.world) as panel:

        def reached(question: Question) -> list[str]:
            watch.found = []
            panel.ask(question)
            return watch.found

        for question in case.questions():
            found = reached(question)
            if found:
                small = shrunk(
                    question.text,
                    lambda text, q=question: bool(reached(q._replace(text=text))),  # type: ignore[misc]
                    tries=40,
                )
                return Outcome(
                    "effects",
                    "failed",
                    f"at {question.stage} it {found[0]}, which no record holds and no replay can "
                    "give back. Use ctx.now(), ctx.rng, ctx.secret(name) or "
                    "ctx.effect(name, function).",
                    small,
                )
    return None


def timeouts(case: Case) -> Held:
    """It answers within its timeout, and, where it is async, does not block the loop."""
    longest = 0.0

    def step(go_on: Callable[[], Any]) -> Any:
        nonlocal longest
        started = time.perf_counter()
        try:
            return go_on()
        finally:
            longest = max(longest, time.perf_counter() - started)

    def around(function: Callable[..., Any]) -> Callable[..., Any]:
        if not inspect.iscoroutinefunction(function):
            return function

        async def stepped(*given: Any, **named: Any) -> Any:
            return await _Steps(function(*given, **named), step)

        return stepped

    with Panel(instrumented(case.subject.fresh(), around), case.world) as panel:

        def kept(question: Question) -> float:
            nonlocal longest
            longest = 0.0
            panel.ask(question)
            return longest

        for question in case.questions((*case.texts, *case.hostile.values())):
            longest = 0.0
            for failed in failures(panel.reply(question)):
                if failed.kind == "timeout":
                    return Outcome(
                        "timeouts",
                        "failed",
                        f"at {question.stage} it gave {failed.message}. Make it quicker, or give "
                        "it more time: check(..., timeout=...).",
                        question.text,
                    )
            # Once more, and again: the machine may have been busy with something else.
            if longest > _BLOCKED and kept(question) > _BLOCKED and kept(question) > _BLOCKED:
                return Outcome(
                    "timeouts",
                    "failed",
                    f"at {question.stage} it kept the event loop for {longest:.2f} s without "
                    "awaiting anything; all async checks stand still meanwhile. Await, or make the "
                    "hook a plain function: it gets a thread.",
                    question.text,
                )
    return None
