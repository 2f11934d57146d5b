import asyncio
import threading
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from tests.backends.remote.conftest import Opened
from tests.backends.remote.serving import ASK, Endpoint, completion

from isonomy.backends import CircuitBreaker
from isonomy.backends.remote.breaker import Admission, CircuitOpen
from isonomy.sdk import ConfigError, RemoteError


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_closed_open_half_open_closed() -> None:
    clock = Clock()
    breaker = CircuitBreaker(2, 30, clock=clock)
    for _ in range(2):
        assert breaker.state == "closed"
        breaker.leave(breaker.enter(), "status 500")
    assert breaker.state == "open"
    clock.now += 10
    with pytest.raises(CircuitOpen, match=r"2 failures in a row, for another 20.0 s") as caught:
        breaker.enter()
    assert (caught.value.seconds, caught.value.last) == (20, "status 500")
    clock.now += 20
    assert breaker.state == "half_open"
    probe = breaker.enter()
    assert probe.state == "half_open"
    with pytest.raises(CircuitOpen):
        breaker.enter()  # one finds out
    breaker.leave(probe, "status 502")
    assert breaker.state == "open"
    clock.now += 30
    breaker.leave(breaker.enter())
    assert breaker.state == "closed"
    breaker.leave(breaker.enter(), "x")
    assert breaker.state == "closed"  # the count began anew


def test_success_begins_the_count_anew() -> None:
    breaker = CircuitBreaker(2)
    for _ in range(5):
        breaker.leave(breaker.enter(), "x")
        breaker.leave(breaker.enter())
    assert breaker.state == "closed"


def test_an_attempt_that_was_given_up_says_nothing() -> None:
    clock = Clock()
    breaker = CircuitBreaker(1, 5, clock=clock)
    breaker.leave(breaker.enter(), unknown=True)
    assert breaker.state == "closed"
    breaker.leave(breaker.enter(), "x")
    clock.now += 5
    breaker.leave(breaker.enter(), unknown=True)
    breaker.leave(breaker.enter())  # the place of the one that finds out is free again
    assert breaker.state == "closed"


def test_what_began_before_says_nothing_about_after() -> None:
    clock = Clock()
    breaker = CircuitBreaker(1, 5, clock=clock)
    slow, slower = breaker.enter(), breaker.enter()
    breaker.leave(breaker.enter(), "x")
    breaker.leave(slow)
    assert breaker.state == "open"
    clock.now += 5
    probe = breaker.enter()
    breaker.leave(slower, "x")
    with pytest.raises(CircuitOpen):
        breaker.enter()
    breaker.leave(probe)
    assert breaker.state == "closed"


def test_never_open() -> None:
    breaker = CircuitBreaker(0)
    for _ in range(100):
        breaker.leave(breaker.enter(), "x")
    assert breaker.state == "closed"


def test_only_one_of_many_threads_finds_out() -> None:
    clock = Clock()
    breaker = CircuitBreaker(1, 5, clock=clock)
    breaker.leave(breaker.enter(), "x")
    clock.now += 5
    barrier = threading.Barrier(16)
    admitted: list[Admission] = []

    def attempt() -> None:
        barrier.wait()
        try:
            admitted.append(breaker.enter())
        except CircuitOpen:
            return

    threads = [threading.Thread(target=attempt) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(admitted) == 1


class Machine(RuleBasedStateMachine):
    """Any order of attempts and time: never more than one at a time while half open."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.breaker = CircuitBreaker(3, 10, clock=self.clock)
        self.under_way: list[Admission] = []

    @rule()
    def enter(self) -> None:
        before = self.breaker.state
        try:
            admission = self.breaker.enter()
        except CircuitOpen:
            assert before != "closed"
        else:
            assert before != "open"
            assert admission.state == before
            self.under_way.append(admission)

    @precondition(lambda self: self.under_way)
    @rule(failure=st.booleans(), unknown=st.booleans())
    def leave(self, failure: bool, unknown: bool) -> None:
        admission = self.under_way.pop(0)
        self.breaker.leave(admission, "x" if failure else None, unknown=unknown)

    @rule()
    def wait(self) -> None:
        self.clock.now += 4

    @invariant()
    def one_finds_out(self) -> None:
        current = [a for a in self.under_way if a.epoch == self.breaker._epoch]
        if self.breaker.state == "half_open":
            assert len(current) <= 1


TestMachine = Machine.TestCase


def test_attempts_and_refusals_are_recorded(endpoint: Endpoint, opened: Opened) -> None:
    clock = Clock()
    backend = opened(breaker_failures=3, breaker_seconds=60, clock=clock, max_attempts=2)
    endpoint.answers((500, {}, b"down"))
    with pytest.raises(RemoteError):
        backend.generate(ASK)
    with pytest.raises(
        RemoteError, match=r"circuit is open after 3 failures.*was: status 500"
    ) as e:
        backend.generate(ASK)
    assert [(a.outcome, a.status) for a in e.value.attempts] == [("failed", 500), ("open", None)]
    assert backend.circuit == "open"
    with pytest.raises(RemoteError) as e:
        asyncio.run(backend.agenerate(ASK))
    assert [a.outcome for a in e.value.attempts] == ["open"]
    assert e.value.status is None
    assert "another 60.0 s" in (e.value.attempts[0].error or "")
    assert len(endpoint.requests) == 3
    clock.now += 60
    endpoint.answers(completion())
    generation = backend.generate(ASK)
    assert generation.runtime["circuit"] == "half_open"
    assert backend.circuit == "closed"
    assert "circuit" not in backend.generate(ASK).runtime


@pytest.mark.parametrize("status", [400, 401, 429, 529])
def test_an_endpoint_that_answers_is_not_left_alone(
    endpoint: Endpoint, opened: Opened, status: int
) -> None:
    endpoint.answers((status, {}, b"no"))
    backend = opened(breaker_failures=1, max_attempts=3)
    for _ in range(3):
        with pytest.raises(RemoteError, match=f"status {status}"):
            backend.generate(ASK)
    assert backend.circuit == "closed"


def test_backends_of_one_endpoint_share_one(endpoint: Endpoint, opened: Opened) -> None:
    shared = CircuitBreaker(1)
    first, second = opened(breaker=shared, max_attempts=1), opened(breaker=shared)
    endpoint.answers((500, {}, b""))
    for backend in (first, second):
        with pytest.raises(RemoteError):
            backend.generate(ASK)
    assert len(endpoint.requests) == 1


@pytest.mark.parametrize("options", [{"breaker_failures": -1}, {"breaker_seconds": float("nan")}])
def test_wrong_settings(opened: Opened, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="breaker_"):
        opened(**options)
