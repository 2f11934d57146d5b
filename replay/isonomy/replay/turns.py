"""Threads of one process that write to one journal: each has its turn, and may take others along.

A thread puts its request into the queue and waits for the lock. Whoever holds the lock writes all
that is queued, in one transaction with one flush; those it took along find theirs done when their
turn comes. So the number of flushes follows the disk, not the number of threads, and nobody waits
who is alone.
"""

from __future__ import annotations

import threading
from collections import deque

from .prepared import Prepared


class Turns:
    """A lock that is given in turn.

    Python's own goes to whoever asks first after its release, mostly the thread that released it:
    a busy writer would keep others, and forks, waiting. Here whoever waits next bars the door.
    """

    def __init__(self) -> None:
        self._door = threading.Lock()
        self._lock = threading.Lock()

    def acquire(self) -> None:
        """Wait for the lock."""
        with self._door:
            self._lock.acquire()

    def release(self) -> None:
        """Let the next one in."""
        self._lock.release()

    def stop(self) -> None:
        """Acquire the lock and bar the door, so that no other thread holds either over a fork."""
        self._door.acquire()
        self._lock.acquire()

    def go_on(self) -> None:
        """Undo `stop`."""
        self._lock.release()
        self._door.release()

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


class Request:
    """What a thread wants to have written.

    `begun` is since when, by `time.monotonic`. With `only_first` nothing is written where the call
    has records already. When it is `done`, `error` is why it failed, or `sequences` are the
    records' numbers.
    """

    __slots__ = ("begun", "done", "error", "only_first", "prepared", "sequences")

    def __init__(self, prepared: list[Prepared], begun: float, only_first: bool) -> None:
        self.prepared = prepared
        self.begun = begun
        self.only_first = only_first
        self.done = False
        self.error: Exception | None = None
        self.sequences: list[int] = []

    def succeeded(self, first: int) -> None:
        """Take note that the records stand from number `first` on."""
        self.sequences = list(range(first, first + len(self.prepared)))
        self.done = True

    def failed(self, error: Exception) -> None:
        """Take note that nothing was written."""
        self.error = error
        self.done = True


class Queue:
    """Requests that wait to be written."""

    def __init__(self) -> None:
        self._waiting: deque[Request] = deque()
        self.put = self._waiting.append
        self.clear = self._waiting.clear

    def take(self) -> list[Request]:
        """Return all that wait, the oldest first, and leave none."""
        waiting, taken = self._waiting, []
        while waiting:
            taken.append(waiting.popleft())
        return taken

    def drop(self, request: Request) -> None:
        """Let a request wait no longer: whoever made it has gone."""
        try:
            self._waiting.remove(request)
        except ValueError:
            return
