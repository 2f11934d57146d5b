import asyncio

from hypothesis import given, settings
from hypothesis import strategies as st

from isonomy.backends.remote.breaker import CircuitBreaker
from isonomy.backends.remote.retries import Backoff, Failure, persist
from isonomy.sdk.generation import Attempt


@settings(deadline=None)
@given(st.integers(1, 10_000), st.floats(0, 1, exclude_max=True), st.floats(0, 100))
def test_waits_are_bounded(number: int, draw: float, longest: float) -> None:
    backoff = Backoff(first=0.5, longest=longest)
    wait = backoff.wait(number, None, draw)
    assert min(longest, 0.5) / 2 <= wait <= longest
    assert backoff.wait(number, 3.0, draw) == 3.0


def test_waits_double() -> None:
    backoff = Backoff(first=1.0, longest=10.0)
    assert [backoff.wait(n, None, 0.0) for n in range(1, 7)] == [0.5, 1, 2, 4, 5, 5]
    assert backoff.wait(1, None, 0.5) == 0.75
    assert backoff.wait(1, -3.0, 0.5) == 0.0


def test_every_attempt_is_recorded_with_its_time() -> None:
    ticks = iter(range(0, 1000, 10))
    attempts: list[Attempt] = []
    slept: list[float] = []
    failures = [
        Failure("failed", "one", advice="", status=500, retry=True),
        Failure("overloaded", "two", advice="", status=429, retry=True, after=7),
    ]

    async def call() -> str:
        if failures:
            raise failures.pop(0)
        return "done"

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    result = asyncio.run(
        persist(
            call,
            backoff=Backoff(max_attempts=5, first=2.0),
            breaker=CircuitBreaker(),
            draw=lambda: 0.0,
            sleep=sleep,
            clock_ns=lambda: next(ticks),
            attempts=attempts,
        )
    )
    assert result == "done"
    assert slept == [1.0, 7]
    expected = [
        ("failed", 500, "one", 1_000_000_000),
        ("overloaded", 429, "two", 7_000_000_000),
        ("ok", 200, None, 0),
    ]
    assert attempts == [
        Attempt(number=i, outcome=o, status=s, error=e, duration_ns=10, wait_ns=w)
        for i, (o, s, e, w) in enumerate(expected, start=1)
    ]
