"""A circuit breaker: an endpoint that keeps failing is left alone for a while.

Closed, it lets every attempt through and counts failures in a row. After `failures` of them it is
open: attempts are refused at once, for `seconds`. Then it is half open: one attempt may find out
whether the endpoint is back. If it is, the circuit closes; if not, it is open again for as long.

What began before the circuit last changed its state says nothing about the state it is in, and is
not counted. Safe to use from several threads; the clock is passed in.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Literal

State = Literal["closed", "open", "half_open"]


class CircuitOpen(Exception):
    """The circuit is open: `seconds` until an attempt may be made, `last` is what failed."""

    def __init__(self, failures: int, seconds: float, last: str) -> None:
        self.seconds = seconds
        self.last = last
        super().__init__(
            f"not tried: the circuit is open after {failures} failures in a row, for another "
            f"{seconds:.1f} s"
        )


class Admission:
    """An attempt that was let through, while the circuit was in `state`."""

    __slots__ = ("epoch", "state")

    def __init__(self, state: State, epoch: int) -> None:
        self.state = state
        self.epoch = epoch


class CircuitBreaker:
    """Guards one endpoint.

    Args:
        failures: how many in a row open the circuit; 0 never opens it.
        seconds: how long it stays open.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        failures: int = 10,
        seconds: float = 10.0,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limit = failures
        self._seconds = seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._state: State = "closed"
        self._epoch = 0  # counts changes of state
        self._failed = 0
        self._until = 0.0
        self._probing = False
        self._last = ""

    @property
    def state(self) -> State:
        """``closed``, ``open`` or ``half_open``, as an attempt would find it now."""
        with self._lock:
            if self._state == "open" and self._clock() >= self._until:
                return "half_open"
            return self._state

    def enter(self) -> Admission:
        """Let an attempt through. Whoever is let through says to `leave` what came of it.

        Raises:
            CircuitOpen: it must not be made.
        """
        with self._lock:
            if self._state == "open":
                left = self._until - self._clock()
                if left > 0:
                    raise CircuitOpen(self._failed, left, self._last)
                self._become("half_open")
            if self._state == "half_open":
                if self._probing:
                    raise CircuitOpen(self._failed, 0.0, self._last)
                self._probing = True
            return Admission(self._state, self._epoch)

    def leave(
        self, admission: Admission, failure: str | None = None, *, unknown: bool = False
    ) -> None:
        """Say what came of an attempt.

        Args:
            admission: what `enter` gave.
            failure: what failed; `None` where the endpoint answered.
            unknown: the attempt was given up (cancelled), which says nothing of the endpoint.
        """
        with self._lock:
            if admission.epoch != self._epoch:
                return
            self._probing = False
            if unknown:
                return
            if failure is None:
                self._failed = 0
                if self._state != "closed":
                    self._become("closed")
                return
            self._failed += 1
            self._last = failure
            if self._state == "half_open" or 0 < self._limit <= self._failed:
                self._until = self._clock() + self._seconds
                self._become("open")

    def _become(self, state: State) -> None:
        self._state = state
        self._epoch += 1
        self._probing = False
