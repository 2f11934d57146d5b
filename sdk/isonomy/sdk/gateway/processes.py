"""Several worker processes on one socket, and who looks after them.

The supervisor binds the socket and starts the workers (`python -m isonomy.sdk.gateway.worker`),
each of which opens a guard of its own; they meet in the log, which many processes may write to. A
worker that dies is replaced; one that can't start ends all. SIGHUP replaces the workers one after
the other, each once its successor answers, so that file and keys are read anew while calls go on;
if a successor can't start, the old ones stay. SIGTERM and SIGINT let all of them drain.

A worker holds a pipe from the supervisor, and stops when that ends: none outlives it.
"""

from __future__ import annotations

import logging.config
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable
from typing import Any

import msgspec
from uvicorn.config import STARTUP_FAILURE

from .logs import configuration, logger
from .metrics import shared
from .serving import GRACE_SECONDS, Plan
from .settings import Settings

MODULE = "isonomy.sdk.gateway.worker"
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)
_LOOK_SECONDS = 1.0
_START_SECONDS = 120.0
"""Within which a successor must answer; a large model is slow to load."""
_RESTART_SECONDS = 1.0
"""Between the starts of a worker that dies at once."""


class _Worker:
    """A worker process: `lifeline` ends with the supervisor, `ready` is told when it answers."""

    def __init__(self, plan: Plan, listener: socket.socket) -> None:
        theirs_lifeline, self.lifeline = os.pipe()
        self.ready, theirs_ready = os.pipe()
        handed = (listener.fileno(), theirs_lifeline, theirs_ready)
        self.started = time.monotonic()
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                MODULE,
                msgspec.json.encode(plan).decode(),
                *map(str, handed),
            ],
            pass_fds=handed,
            stdin=subprocess.DEVNULL,
        )
        os.close(theirs_lifeline)
        os.close(theirs_ready)

    def answers(self, seconds: float) -> bool:
        """Wait until it answers requests; false where it died, or does not in time."""
        readable, _, _ = select.select([self.ready], [], [], seconds)
        return bool(readable) and os.read(self.ready, 1) != b""

    def forget(self) -> None:
        """Let go of the pipes of a process that has ended."""
        os.close(self.lifeline)
        os.close(self.ready)


class Supervisor:
    """Starts, replaces and stops the workers.

    Args:
        plan: what they serve.
        settings: as read from it.
        listener: the socket that they share; closed when they are to stop.
    """

    def __init__(self, plan: Plan, settings: Settings, listener: socket.socket) -> None:
        self._plan = plan
        self._settings = settings
        self._listener = listener
        self._workers: list[_Worker] = []

    def run(self, told: dict[str, Any]) -> int:
        """Serve until a signal says to stop, and return the exit status.

        Args:
            told: logged when the workers have been started.
        """
        logging.config.dictConfig(configuration())
        with shared():
            # Blocked, signals wait until they are asked for; workers unblock them for themselves.
            before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
            try:
                self._workers = [self._start() for _ in range(self._settings.workers)]
                logger().info("listening", **told)
                return self._watch()
            finally:
                self._stop()
                signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def _start(self) -> _Worker:
        return _Worker(self._plan, self._listener)

    def _watch(self) -> int:
        while True:
            received = signal.sigtimedwait(_SIGNALS, _LOOK_SECONDS)
            number = received.si_signo if received is not None else None
            if number in (signal.SIGTERM, signal.SIGINT):
                return 0
            if number == signal.SIGHUP:
                self._replace_all()
            for place, worker in enumerate(self._workers):
                status = worker.process.poll()
                if status is None:
                    continue
                worker.forget()
                if status == STARTUP_FAILURE:
                    del self._workers[place]
                    return STARTUP_FAILURE
                logger().error("worker_died", process=worker.process.pid, status=status)
                lived = time.monotonic() - worker.started
                time.sleep(max(0.0, _RESTART_SECONDS - lived))
                self._workers[place] = self._start()

    def _replace_all(self) -> None:
        """Replace the workers one after the other, each once its successor answers."""
        logger().info("replacing", workers=len(self._workers))
        for place, old in enumerate(self._workers):
            new = self._start()
            if not new.answers(_START_SECONDS):
                self._end([new])
                logger().error("worker_not_replaced", process=old.process.pid)
                return
            self._workers[place] = new
            self._end([old])

    def _stop(self) -> None:
        self._listener.close()
        self._end(self._workers)
        self._workers = []

    def _end(self, workers: Iterable[_Worker]) -> None:
        """Have workers drain, wait for them, and kill what is left of them."""
        ending = list(workers)
        for worker in ending:
            worker.process.terminate()
        deadline = time.monotonic() + self._settings.drain_seconds + 2 * GRACE_SECONDS
        for worker in ending:
            try:
                worker.process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                logger().error("worker_killed", process=worker.process.pid)
                worker.process.kill()
                worker.process.wait()
            worker.forget()
