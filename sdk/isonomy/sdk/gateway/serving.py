"""The processes of ``isonomy serve``: uvicorn, one process or several, on one socket and one log.

Every worker process opens a guard of its own from the configuration file; they meet in the log,
which many processes may write to. On SIGTERM or SIGINT the listening socket is closed, running
requests may go on for `drain_seconds`, what still runs then is cancelled and recorded as such,
streams are told, and only then is the guard closed. With several workers SIGHUP replaces them one
after the other, which reads file and keys anew; one that died is replaced.

Nothing here trusts forwarded headers, and what uvicorn itself logs names no paths.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import Any

import msgspec
import uvicorn
from starlette.applications import Starlette
from uvicorn.config import STARTUP_FAILURE
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.supervisors import Multiprocess

from ..config import Configuration, load
from ..errors import ConfigError, IsonomyError
from ..guard import Guard
from .logs import configuration, logger
from .settings import Settings, keys_of, require_keys, settings_of

_GRACE_SECONDS = 10
"""After `drain_seconds`, for cancelled calls to write their records."""
_HEALTH_CHECK_SECONDS = 60
"""Within which a worker must answer its supervisor; a busy machine is slow to start one."""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be served: everything that a worker process needs to know.

    `file` is the configuration; `log` a directory in place of the file's; `given` what wins over
    the ``[serve]`` table; `auth` whether keys are demanded.
    """

    file: str
    log: str | None = None
    given: dict[str, Any] = {}
    auth: bool = True

    def read(self) -> tuple[Configuration, Settings]:
        """Read the configuration file.

        Raises:
            ConfigError: it can't be used.
        """
        loaded = load(self.file)
        return loaded, settings_of(loaded.serve, self.file, **self.given)


def serve(plan: Plan) -> int:
    """Serve until a signal says to stop, and return the exit status.

    Raises:
        IsonomyError: it can't be served as planned; nothing was started.
    """
    _, settings = plan.read()
    clients, _ = keys_of(settings, file=plan.file)
    if plan.auth:
        require_keys(settings, clients, file=plan.file)
    listener = _bound(settings)
    try:
        if settings.workers == 1:
            return _serve_alone(plan, settings, listener)
        return _serve_together(plan, settings, listener)
    finally:
        listener.close()


def _serve_alone(plan: Plan, settings: Settings, listener: socket.socket) -> int:
    server = uvicorn.Server(_config(settings, build(plan)))
    _tell(settings, listener)
    with _ended_by_signals():
        server.run(sockets=[listener])
    return 0 if server.started else STARTUP_FAILURE


def _serve_together(plan: Plan, settings: Settings, listener: socket.socket) -> int:
    with _shared_metrics():
        config = _config(settings, partial(_worker, plan), factory=True)
        supervisor = Multiprocess(config, sockets=[listener])
        _tell(settings, listener)
        supervisor.run()
        exits = {process.exitcode for process in supervisor.processes}
    return STARTUP_FAILURE if STARTUP_FAILURE in exits else 0


def build(plan: Plan) -> Starlette:
    """Open the guard and return the application that closes it in the end.

    Raises:
        IsonomyError: something configured can't be opened.
    """
    from .application import Gateway  # after the metrics know whether there are other processes

    loaded, settings = plan.read()
    clients, reviewers = keys_of(settings, file=plan.file)
    guard = Guard.from_configuration(loaded, log=plan.log)
    try:
        local = plan.auth and not clients
        gateway = Gateway(guard, settings, clients, reviewers, only_local=local)
    except BaseException:
        guard.close()
        raise

    @asynccontextmanager
    async def lifespan(_: Any) -> AsyncIterator[None]:
        async def drain() -> None:
            logger().info("draining", seconds=settings.drain_seconds)
            await gateway.running.drain(settings.drain_seconds)

        with _signals(asyncio.get_running_loop(), drain):
            logger().info("ready", process=os.getpid(), model=guard.backend.identity().model)
            yield
        await gateway.running.drain(0)
        await gateway.running.idle()
        guard.close()
        gateway.metrics.leave()
        logger().info("stopped", process=os.getpid())

    return gateway.application(lifespan)


def _worker(plan: Plan) -> Starlette:
    """Build the application in a worker process; one that can't work ends all."""
    signal.signal(signal.SIGTERM, _ignored)  # what uvicorn raises again when it has stopped
    try:
        return build(plan)
    except IsonomyError as error:
        logger().error("worker_failed", error=type(error).__name__, message=str(error))
        sys.exit(STARTUP_FAILURE)


class Protocol(H11Protocol):
    """uvicorn's HTTP/1.1, for clients that stall: they lose the connection, and cost no more.

    Headers must be here within `header_seconds` of the connection or of their own first byte, and a
    client may leave what is written for it unread for `write_seconds`.
    """

    def __init__(self, *, header_seconds: float, write_seconds: float, **given: Any) -> None:
        super().__init__(**given)
        self._header_seconds = header_seconds
        self._write_seconds = write_seconds
        self._headers_due: asyncio.TimerHandle | None = None
        self._reading_due: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for headers."""
        super().connection_made(transport)
        self._wait_for_headers()

    def data_received(self, data: bytes) -> None:
        """Take in data; headers that have begun must come to an end."""
        super().data_received(data)
        if self.cycle is None or self.cycle.response_complete:
            self._wait_for_headers()
        elif self._headers_due is not None:
            self._headers_due.cancel()
            self._headers_due = None

    def _wait_for_headers(self) -> None:
        if self._headers_due is None:
            self._headers_due = self.loop.call_later(self._header_seconds, self.transport.abort)

    def pause_writing(self) -> None:
        """Begin to wait for the client to read."""
        super().pause_writing()
        if self._reading_due is None:
            self._reading_due = self.loop.call_later(self._write_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        """Go on writing."""
        super().resume_writing()
        if self._reading_due is not None:
            self._reading_due.cancel()
            self._reading_due = None

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait for nothing any more."""
        for timer in (self._headers_due, self._reading_due):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)


def _config(settings: Settings, app: Any, *, factory: bool = False) -> uvicorn.Config:
    protocol: Any = partial(
        Protocol, header_seconds=settings.header_seconds, write_seconds=settings.write_seconds
    )
    return uvicorn.Config(
        app,
        factory=factory,
        workers=settings.workers,
        http=protocol,
        ws="none",
        loop="asyncio",
        lifespan="on",
        interface="asgi3",
        log_config=configuration(),
        access_log=False,
        proxy_headers=False,
        server_header=False,
        h11_max_incomplete_event_size=settings.max_header_bytes,
        timeout_graceful_shutdown=int(settings.drain_seconds) + _GRACE_SECONDS,
        timeout_worker_healthcheck=_HEALTH_CHECK_SECONDS,
    )


def _bound(settings: Settings) -> socket.socket:
    """Bind the socket.

    Raises:
        ConfigError: it can't be bound.
    """
    host = settings.host.strip("[]")
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, settings.port))
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"can't listen on {host} port {settings.port}: {error.strerror or error}. Choose "
            "another with --host and --port.",
            key="serve.port",
        ) from None
    listener.set_inheritable(True)
    return listener


def _tell(settings: Settings, listener: socket.socket) -> None:
    host, port = listener.getsockname()[:2]
    where = f"[{host}]" if ":" in host else host
    logger().info("listening", url=f"http://{where}:{port}/v1", workers=settings.workers)


@contextmanager
def _signals(loop: asyncio.AbstractEventLoop, drain: Any) -> Iterator[None]:
    """Have the signals that stop the server begin the draining, beside what they do anyway."""
    tasks: list[asyncio.Task[None]] = []

    def begin() -> None:
        if not tasks:
            tasks.append(loop.create_task(drain()))

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def handle(number: int, frame: Any) -> None:
        loop.call_soon_threadsafe(begin)
        former = before[signal.Signals(number)]
        if callable(former):
            former(number, frame)

    for number in before:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Let the signals that uvicorn raises again, once it has stopped, do nothing more."""
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.signal(number, _ignored) for number in numbers}
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)


def _ignored(number: int, frame: Any) -> None:
    """Do nothing."""


@contextmanager
def _shared_metrics() -> Iterator[None]:
    """Let the processes to come share their metrics, in a private directory."""
    folder = tempfile.mkdtemp(prefix="isonomy-metrics-")
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
    try:
        yield
    finally:
        del os.environ["PROMETHEUS_MULTIPROC_DIR"]
        shutil.rmtree(folder, ignore_errors=True)
