"""Threads of one process that write to one journal: one of them leads, and takes the others along.

A thread queues its request. If nobody leads, it does: it writes all that is queued, in one
transaction with one flush, lets those go whose requests are done, and has the first of those that
came meanwhile lead on. So the number of flushes follows the disk, not the number of threads, and
nobody waits who is alone.
"""

from __future__ import annotations

import threading
from collections import deque

from .prepared import Prepared


class Turns:
    """A lock that is given in turn: to who leads, to who closes the log, and to who forks.

    Python's own goes to whoever asks first after its release, mostly the thread that released it:
    busy writers would keep forks waiting. Here whoever waits next bars the door.
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

    __slots__ = ("begun", "done", "error", "leads", "only_first", "prepared", "sequences", "wake")

    def __init__(self, prepared: list[Prepared], begun: float, only_first: bool) -> None:
        self.prepared = prepared
        self.begun = begun
        self.only_first = only_first
        self.done = False
        self.leads = False
        self.wake: threading.Lock | None = None
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
    """Requests that wait to be written, and who leads."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._waiting: deque[Request] = deque()
        self._led = False

    def __len__(self) -> int:
        return len(self._waiting)

    def enter(self, request: Request) -> None:
        """Queue a request, and return when it is done, or when it leads."""
        with self._mutex:
            self._waiting.append(request)
            if not self._led:
                self._led = request.leads = True
                return
            wake = request.wake = threading.Lock()
            wake.acquire()
        try:
            wake.acquire()
        except BaseException:  # An interrupt: whoever waits here has gone.
            self.leave(request, [])
            raise

    def take(self) -> list[Request]:
        """Return all that wait, the oldest first, and leave none; for who leads."""
        with self._mutex:
            taken = [*self._waiting]
            self._waiting.clear()
        return taken

    def leave(self, request: Request, taken: list[Request]) -> None:
        """End with a request; who has led lets those go whom it has taken along.

        What it has taken and not done, because of an interrupt, waits on in front of all others.
        """
        with self._mutex:
            undone = [each for each in taken if not each.done and each is not request]
            self._waiting.extendleft(reversed(undone))
            if request in self._waiting:
                self._waiting.remove(request)
            if request.leads:
                if self._waiting:
                    following = self._waiting[0]
                    following.leads = True
                    assert following.wake is not None
                    following.wake.release()
                else:
                    self._led = False
        for each in taken:
            if each.done and each.wake is not None and each is not request:
                each.wake.release()

    def stop(self) -> None:
        """Keep everyone from the queue, over a fork; `go_on` undoes it."""
        self._mutex.acquire()

    def go_on(self, *, child: bool) -> None:
        """Undo `stop`; in a child there is nobody who waits, and nobody who leads."""
        if child:
            self._waiting.clear()
            self._led = False
        self._mutex.release()
