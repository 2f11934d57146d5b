"""Retries with exponential backoff and jitter, every attempt recorded.

The wait before attempt n + 1 is what the endpoint asked for (``Retry-After``), else ``first * 2 **
(n - 1)`` seconds, at most `longest`, times a random factor between 1/2 and 1, so that many clients
don't come back at once. Randomness, sleep and clock are passed in. tenacity drives the attempts, a
circuit breaker (breaker.py) lets them through or not; what it refuses is recorded as an attempt
with the outcome ``open``.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Literal, TypeVar

import msgspec
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, stop_after_attempt

from isonomy.sdk.generation import Attempt

from .breaker import CircuitBreaker, CircuitOpen

T = TypeVar("T")
Outcome = Literal[
    "timeout", "unreachable", "refused", "context", "overloaded", "failed", "invalid", "cut", "open"
]
COUNTED = frozenset({"timeout", "unreachable", "failed", "cut"})
"""Outcomes that count against an endpoint; the others come from one that is there and answers."""


class Failure(Exception):
    """An attempt failed.

    `retry` says whether another one may help, `after` how many seconds the endpoint asks to wait
    before it, `advice` what a person can do.
    """

    def __init__(
        self,
        outcome: Outcome,
        message: str,
        *,
        advice: str,
        status: int | None = None,
        retry: bool = False,
        after: float | None = None,
    ) -> None:
        self.outcome: Outcome = outcome
        self.advice = advice
        self.status = status
        self.retry = retry
        self.after = after
        super().__init__(message)


class Backoff(msgspec.Struct, frozen=True, kw_only=True):
    """How often to try, and how long to wait in between, in seconds."""

    max_attempts: int = 4
    first: float = 0.5
    longest: float = 60.0

    def wait(self, number: int, after: float | None, draw: float) -> float:
        """Return the seconds to wait after attempt `number` (from 1); `draw` is in [0, 1)."""
        if after is not None:
            return max(0.0, after)
        # The exponent is bounded: 2 ** 1024 is no float.
        return min(self.longest, self.first * 2.0 ** min(number - 1, 64)) * (0.5 + draw / 2)


async def persist(
    call: Callable[[], Awaitable[T]],
    *,
    backoff: Backoff,
    breaker: CircuitBreaker,
    draw: Callable[[], float],
    sleep: Callable[[float], Awaitable[None]],
    clock_ns: Callable[[], int],
    attempts: list[Attempt],
) -> T:
    """Call until it succeeds, can't, or was tried often enough.

    Args:
        call: one attempt; raises `Failure`.
        backoff: how often, how long.
        breaker: the endpoint's.
        draw: random numbers in [0, 1).
        sleep: waits some seconds.
        clock_ns: a monotonic clock.
        attempts: every attempt is appended, whatever comes of it.

    Raises:
        Failure: the last one.
    """

    async def once() -> T:
        number, started = len(attempts) + 1, clock_ns()

        def note(outcome: str, status: int | None, error: str | None) -> None:
            attempts.append(
                Attempt(
                    number=number,
                    outcome=outcome,
                    status=status,
                    error=error,
                    duration_ns=clock_ns() - started,
                )
            )

        try:
            admission = breaker.enter()
        except CircuitOpen as refusal:
            note("open", None, str(refusal))
            raise Failure(
                "open", str(refusal), advice=f"The last failure was: {refusal.last}"
            ) from None
        try:
            result = await call()
        except Failure as failure:
            said = str(failure)
            breaker.leave(admission, said if failure.outcome in COUNTED else None)
            note(failure.outcome, failure.status, said)
            raise
        except BaseException:
            breaker.leave(admission, unknown=True)
            raise
        breaker.leave(admission)
        note("ok", 200, None)
        return result

    def wait(state: RetryCallState) -> float:
        failure = state.outcome.exception() if state.outcome is not None else None
        after = failure.after if isinstance(failure, Failure) else None
        return backoff.wait(state.attempt_number, after, draw())

    def before_sleep(state: RetryCallState) -> None:
        attempts[-1] = msgspec.structs.replace(
            attempts[-1], wait_ns=int(state.upcoming_sleep * 1e9)
        )

    retrying = AsyncRetrying(
        sleep=sleep,
        stop=stop_after_attempt(backoff.max_attempts),
        wait=wait,
        retry=retry_if_exception(lambda error: isinstance(error, Failure) and error.retry),
        before_sleep=before_sleep,
        reraise=True,
    )
    return await retrying(once)
