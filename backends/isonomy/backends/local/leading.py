"""Who drives: of the threads that wait for answers, one at a time, and the others sleep.

There is no thread of the engine's own to start, feed, stop, or lose in a fork. A thread that waits
claims the lead, drives everybody's steps until there is something for itself, and lets go, which
wakes the next. Invariants:

- At most one follower leads. Whatever belongs to the engine is touched by the leader only.
- When nobody leads and somebody waits, a change wakes him: no wake-up is lost. Whoever was woken
  and turns to something else passes it on with `release`.
- A fork happens between two steps: the forking thread takes the lead for that moment, so that the
  child finds every session whole.
"""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from collections.abc import Callable, Iterator


class Follower:
    """A thread that waits: for something of its own, or for its turn to lead."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self.thread = threading.get_ident()

    def wake(self) -> None:
        """Let `wait` return, now or when it is called next."""
        self._event.set()

    def wait(self) -> None:
        """Sleep until woken."""
        self._event.wait()
        self._event.clear()


class Lead:
    """The right to drive, for one follower at a time.

    Attributes:
        mutex: held for a few instructions; guards what callers of several threads share.
            Reentrant, as a coroutine that is collected leaves in whichever thread collects it.
        changes: counts what may give a leader without work something to do.
    """

    def __init__(self, *, after_fork: Callable[[], None]) -> None:
        self.mutex = threading.RLock()
        self.changes = 0
        self._leader: Follower | None = None
        self._waiting: dict[Follower, None] = {}
        self._holding: list[Follower] = []
        self._after_fork = weakref.WeakMethod(after_fork)
        _LEADS.add(self)

    @property
    def wanted(self) -> bool:
        """Whether somebody wants the engine to stand still: let go after the step."""
        return bool(self._holding)

    def is_led_by(self, follower: Follower) -> bool:
        """Whether this follower has the lead."""
        return self._leader is follower

    def claim(self, follower: Follower, *, queue: bool = True) -> bool:
        """Take the lead if it is free; else, with `queue`, be woken when it is."""
        with self.mutex:
            if self._leader is None and (not self._holding or follower in self._holding):
                self._leader = follower
                self._waiting.pop(follower, None)
                return True
            if queue:
                self._waiting[follower] = None
            return False

    def rest(self, follower: Follower, seen: int) -> bool:
        """Let go of the lead because there is nothing to do, and queue up for the next change.

        False when there was a change since `changes` was `seen`: look again, still leading.
        """
        with self.mutex:
            if self.changes != seen:
                return False
            self._leader = None
            self._waiting[follower] = None
            return True

    def rests(self, follower: Follower) -> bool:
        """Whether this follower waits and was not woken."""
        return follower in self._waiting

    def release(self, follower: Follower) -> None:
        """Lead and wait no longer; if nobody leads now, whoever waits longest gets his turn."""
        with self.mutex:
            self._waiting.pop(follower, None)
            if self._leader is follower:
                self._leader = None
            self._wake_next()

    def changed(self) -> None:
        """Tell that there may be work again."""
        with self.mutex:
            self.changes += 1
            self._wake_next()

    def wake(self, follower: Follower) -> None:
        """Wake one follower: there is something for him."""
        with self.mutex:  # so that no fork meets the event's own lock taken
            follower.wake()

    def _wake_next(self) -> None:
        if self._leader is None:
            for follower in (*self._holding[:1], *self._waiting):
                self._waiting.pop(follower, None)
                follower.wake()
                break

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Let nobody drive: take the lead after the present step, unless this thread has it."""
        follower = Follower()
        leader = self._leader
        if leader is not None and leader.thread == follower.thread:
            yield
            return
        try:
            with self.mutex:
                self._holding.append(follower)
            while not self.claim(follower):
                follower.wait()
            yield
        finally:
            with self.mutex:
                if follower in self._holding:
                    self._holding.remove(follower)
                self.release(follower)

    def _forked(self) -> None:
        """In the child: nobody else is there any more."""
        self.mutex = threading.RLock()
        self._leader = None
        self._waiting.clear()
        self._holding.clear()
        reset = self._after_fork()
        if reset is not None:
            reset()


_LEADS: weakref.WeakSet[Lead] = weakref.WeakSet()
_forking = threading.local()


def _before_fork() -> None:
    stack = contextlib.ExitStack()
    _forking.stack, _forking.leads = stack, list(_LEADS)
    for lead in _forking.leads:
        stack.enter_context(lead.held())
        stack.enter_context(lead.mutex)


def _after_fork_in_parent() -> None:
    _forking.stack.close()
    del _forking.stack, _forking.leads


def _after_fork_in_child() -> None:
    _forking.stack.pop_all()
    for lead in _forking.leads:
        lead._forked()
    del _forking.stack, _forking.leads


os.register_at_fork(
    before=_before_fork,
    after_in_parent=_after_fork_in_parent,
    after_in_child=_after_fork_in_child,
)
