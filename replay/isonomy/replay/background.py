"""Ingestion that nobody asks for: who writes a log has it ingested, in a process of its own.

A journal that is open for writing tells its `Background` of every record, which costs a comparison.
A thread, started with the first record, waits until enough records or enough time lie beyond the
last ingestion, and starts ``python -m isonomy.replay.ingest DIR --background``.

Invariants
    - DuckDB is never loaded in the process that writes, and no call waits for anything.
    - One ingestion at a time, whoever writes the log: the starter takes the lock `ingesting`,
      without waiting, and hands it to the subprocess, which holds it until it ends.
    - The thread is a daemon and the subprocess has a session of its own: neither keeps the process
      from ending. After `close` neither is left: the subprocess is told to stop, publishes what it
      has taken, and is killed if that takes it longer than `PATIENCE`. Where a process ends without
      `close`, the subprocess ends by itself.
    - A forked child has none of its parent's; it begins anew with its first record.
    - It takes a tenth of the time at most: the pause after an ingestion is `PAUSE` times as long as
      it took, unless it has fallen `BEHIND` times as far behind as starts one. A log that can't be
      ingested is tried again ever more rarely; the logger ``isonomy`` is warned once of each
      reason, and `isonomy log status` shows the last.
"""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from typing import Final

from isonomy.sdk.diagnostics import logger

from .directory import LogDirectory
from .status import last_ingestion

RECORDS: Final = 1000
"""Records beyond the last ingestion that start the next one."""
SECONDS: Final = 30.0
"""How long a record waits for more of them."""
PAUSE: Final = 10.0
"""How many times as long as an ingestion took is waited until the next."""
BEHIND: Final = 10
"""How many times `records` may be waiting before there are no long pauses any more."""
REST: Final = 1.0
"""The shortest pause, seconds."""
BACK_OFF: Final = (60.0, 3600.0)
"""Shortest and longest pause after an ingestion that failed, doubled each time, seconds."""
PATIENCE: Final = 2.0
"""How long `close` lets an ingestion come to its end, seconds."""

INGESTING: Final = "ingesting"

_starting = threading.Lock()
"""Held from taking the lock `ingesting` until the subprocess has it: no fork may copy it then."""
os.register_at_fork(
    before=_starting.acquire,
    after_in_parent=_starting.release,
    after_in_child=_starting.release,
)


class Background:
    """Has a log ingested while it is written to."""

    def __init__(
        self, directory: LogDirectory, *, records: int = RECORDS, seconds: float = SECONDS
    ) -> None:
        """Do nothing yet.

        Args:
            directory: the log's.
            records: how many records beyond the last ingestion start the next.
            seconds: how long a record waits for more of them.
        """
        self._directory = directory
        self._records = records
        self._seconds = seconds
        self._told: set[str] = set()
        self._running: subprocess.Popen[bytes] | None = None
        self._begin()

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        self._running = None
        self._last = self._ingested = 0
        self._pending = self._full = False
        self._failures = 0

    def note(self, last: int) -> None:
        """Take notice that the log now has a record of this number."""
        if self._pid != os.getpid():
            if self._running is not None:
                self._running.returncode = 0  # not this process's to wait for
            self._begin()
        self._last = last
        if not self._pending:
            self._pending = True
            if self._thread is None:
                self._start()
            self._wake.set()
        elif not self._full and last - self._ingested >= self._records:
            self._full = True
            self._wake.set()

    def close(self) -> None:
        """Stop, and end a running ingestion. Calling it twice is harmless."""
        if self._pid != os.getpid():
            return
        self._stopped.set()
        self._wake.set()
        running, thread = self._running, self._thread
        if running is not None:
            _end(running)
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _start(self) -> None:
        with self._lock:
            if self._thread is None and not self._stopped.is_set():
                thread = threading.Thread(target=self._run, name="isonomy-ingestion", daemon=True)
                try:
                    thread.start()
                except RuntimeError:  # no more threads, or the interpreter ends
                    self._stopped.set()
                    return
                self._thread = thread

    # All below is run by the thread.

    def _run(self) -> None:
        while not self._stopped.is_set():
            self._pending = self._full = False
            if self._last <= self._ingested:
                self._wake.wait()
            self._wake.clear()
            self._wait_for_more()
            if self._stopped.is_set():
                return
            self._rest(self._turn())

    def _wait_for_more(self) -> None:
        until = time.monotonic() + self._seconds
        while not self._stopped.is_set() and self._last - self._ingested < self._records:
            left = until - time.monotonic()
            if left <= 0:
                return
            self._wake.wait(left)
            self._wake.clear()

    def _rest(self, seconds: float) -> None:
        """Pause, but not for long where too much is waiting, unless it can't be ingested."""
        began = time.monotonic()
        while not self._stopped.is_set():
            passed = time.monotonic() - began
            far = not self._failures and self._last - self._ingested > BEHIND * self._records
            if passed >= (min(seconds, REST) if far else seconds):
                return
            self._stopped.wait(min(seconds - passed, REST))

    def _turn(self) -> float:
        """Ingest unless another process did or does; return how long to pause, seconds."""
        last = last_ingestion(self._directory)
        self._ingested = last.record
        if last.record >= self._last:
            return 0.0
        ago = (time.time_ns() - last.ended_ns) / 1e9
        far = self._last - self._ingested > BEHIND * self._records
        if not last.problem and not far and 0 <= ago < PAUSE * last.seconds:
            return PAUSE * last.seconds - ago
        asked = self._last
        problem = self._ingest()
        if problem is None:
            return REST
        if not problem:
            last = last_ingestion(self._directory)
            self._ingested = max(last.record, asked)
            self._failures = 0
            return max(PAUSE * last.seconds, REST)
        if problem not in self._told and not self._stopped.is_set():
            self._told.add(problem)
            logger().warning(
                "a log can't be ingested in the background: what it holds is safe in its journal, "
                "queries get slower",
                log=str(self._directory),
                problem=problem,
            )
        self._failures += 1
        return float(min(BACK_OFF[0] * 2 ** (self._failures - 1), BACK_OFF[1]))

    def _ingest(self) -> str | None:
        """Ingest; return what was wrong, empty if nothing; `None` if another process does it."""
        try:
            with _starting:
                lock = _taken(self._directory)
                if lock is None:
                    return None
                try:
                    with self._lock:
                        if self._stopped.is_set():
                            return ""
                        self._running = running = _started(self._directory, lock)
                finally:
                    os.close(lock)
        except OSError as error:
            return f"{sys.executable} can't be started ({error.strerror or error})"
        if self._stopped.is_set():  # `close` may have looked before there was anything to end
            _end(running)
        assert running.stderr is not None
        said = running.stderr.read().decode(errors="replace").strip().splitlines()
        running.stderr.close()
        status = running.wait()
        self._running = None
        if status == 0 or self._stopped.is_set():
            return ""
        return said[-1] if said else f"it ended with status {status}"


def _taken(directory: LogDirectory) -> int | None:
    """Return a descriptor that holds the lock `ingesting`; `None` where another process does."""
    file = directory.path / INGESTING
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _started(directory: LogDirectory, lock: int) -> subprocess.Popen[bytes]:
    search = os.pathsep.join(entry for entry in sys.path if entry)
    return subprocess.Popen(
        [sys.executable, "-m", "isonomy.replay.ingest", str(directory), "--background"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
        pass_fds=(lock,),
        env={**os.environ, "PYTHONPATH": search},
    )


def _end(running: subprocess.Popen[bytes]) -> None:
    """Tell an ingestion to stop, and kill it if it does not."""
    with suppress(OSError):
        running.send_signal(signal.SIGTERM)
    try:
        running.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        with suppress(OSError):
            running.kill()
        running.wait()
