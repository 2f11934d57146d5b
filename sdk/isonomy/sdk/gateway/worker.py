"""One worker process of ``isonomy serve``: started by `processes`, never by hand.

    python -m isonomy.sdk.gateway.worker PLAN LISTENER LIFELINE READY

`PLAN` is a `Plan` as JSON; the others are file descriptors: the socket, a pipe that ends with the
supervisor, and a pipe to tell it on that requests are answered.
"""

from __future__ import annotations

import logging.config
import os
import signal
import socket
import sys
import threading
from functools import partial

import msgspec
from uvicorn.config import STARTUP_FAILURE

from ..errors import IsonomyError
from .logs import configuration, logger
from .metrics import clear_shared
from .serving import Plan, work


def main(plan: str, listener: str, lifeline: str, ready: str) -> int:
    """Serve, and return the exit status."""
    logging.config.dictConfig(configuration())
    orphaned = threading.Event()
    threading.Thread(target=_end_with, args=(int(lifeline), orphaned), daemon=True).start()
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # a terminal's goes to all; it is the supervisor's
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    try:
        with socket.socket(fileno=int(listener)) as shared:
            return work(
                msgspec.json.decode(plan, type=Plan),
                shared,
                ready=partial(_tell, int(ready)),
            )
    except IsonomyError as error:
        logger().error("worker_failed", error=type(error).__name__, message=str(error))
        return STARTUP_FAILURE
    finally:
        if orphaned.is_set():
            clear_shared()


def _tell(ready: int) -> None:
    os.write(ready, b"1")


def _end_with(lifeline: int, orphaned: threading.Event) -> None:
    """Stop this process when the supervisor has ended."""
    os.read(lifeline, 1)
    orphaned.set()
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
