"""Whether a check's time grows with the length of the text, and not faster.

Measured is the processor time of the thread that the check runs in, so that neither other processes
nor the pipeline count. Lengths grow slowly at first: matching by trial (``(a+)+$``) takes seconds
for thirty letters, and Python can't interrupt it.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable
from typing import Any

from . import samples
from .asking import Panel, Question, instrumented
from .conformance import Case, Held, Outcome

_FIRST = (8, *range(16, 34, 2), 40, 64, 200, 1000)
_MOST_SHORT = 0.25
"""Seconds that a text of a thousand characters may take."""
_LENGTHS = (4_000, 16_000, 64_000, 256_000)
_ENOUGH = 0.02
"""Seconds from which on two times can be compared."""
_MOST = 2.0
"""Seconds that any text may take: 256,000 characters, about a hundred pages."""
_FASTEST = 9.0
"""How many times longer four times the text may take: linear time gives 4, quadratic 16."""


class _Stopwatch:
    """Sums the processor time of a check's functions."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        if inspect.iscoroutinefunction(function):

            async def timed_async(*given: Any, **named: Any) -> Any:
                started = time.thread_time()
                try:
                    return await function(*given, **named)
                finally:
                    self.seconds += time.thread_time() - started

            return timed_async

        def timed(*given: Any, **named: Any) -> Any:
            started = time.thread_time()
            try:
                return function(*given, **named)
            finally:
                self.seconds += time.thread_time() - started

        return timed


def linear(case: Case) -> Held:
    """Its time grows with the length of the text, and no short text takes long."""
    watch = _Stopwatch()
    shapes = dict(samples.GROWING)
    for number, text in enumerate(case.texts[:4]):
        if len(text) > 1:
            shapes[f"a text of the caller's ({number}) repeated"] = _repeated(text)
    watched = instrumented(case.subject.fresh(), watch.around)
    watched.lookback = "all"  # asked about the whole alone, not about every beginning too
    with Panel(watched, case.world) as panel:
        for stage in case.subject.stages:

            def took(text: str, stage: Any = stage) -> float:
                watch.seconds = 0.0
                panel.ask(Question(stage, text))
                return watch.seconds

            for name, shape in shapes.items():
                found = _short(shape, took) or _long(shape, took)
                if found is not None:
                    said = f"at {stage}, {name}: {found} Use patterns of RE2 (isonomy.plugins), "
                    return Outcome("linear", "failed", f"{said}or bound what is searched.")
    return None


def _repeated(text: str) -> Callable[[int], str]:
    return lambda length: (text * (length // len(text) + 1))[:length]


def _short(shape: Callable[[int], str], took: Callable[[str], float]) -> str | None:
    for length in _FIRST:
        seconds = took(shape(length))
        if seconds > _MOST_SHORT:
            seconds = min(seconds, took(shape(length)))
        if seconds > _MOST_SHORT:
            return f"{length} characters took {seconds:.2f} s of processor time."
    return None


def _long(shape: Callable[[int], str], took: Callable[[str], float]) -> str | None:
    before = 0.0
    for length in _LENGTHS:
        text = shape(length)
        seconds = took(text)
        if seconds > _MOST:
            return f"{length:,} characters took {seconds:.1f} s of processor time."
        if seconds > _ENOUGH and before > 0 and seconds > _FASTEST * before:
            seconds = min(seconds, took(text))  # once more: something else may have been in the way
            before = max(before, took(shape(length // 4)))
            if seconds > _ENOUGH and seconds > _FASTEST * before:
                return (
                    f"{length:,} characters took {seconds / before:.0f} times as long as "
                    f"{length // 4:,} ({seconds:.2f} s of processor time)."
                )
        before = seconds
        if length == _LENGTHS[-2] and seconds < _ENOUGH / 10:
            return None  # even squared, four times this length takes little
        if seconds > _ENOUGH * 16:
            return None  # linear so far, and four times this length would only take long
    return None
