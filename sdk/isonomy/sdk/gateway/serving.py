"""``isonomy serve``: uvicorn with a guard of its own, alone or as one of several processes.

On SIGTERM or SIGINT the listening socket is closed, running requests may go on for `drain_seconds`,
what still runs then is cancelled and recorded as such, its streams are told, and only then is the
guard closed. `processes` has what holds several workers together.

Nothing here trusts forwarded headers, and what uvicorn itself logs names no paths.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import Any

import msgspec
import uvicorn
from uvicorn.config import STARTUP_FAILURE

from ..config import Configuration, load
from ..errors import ConfigError
from ..guard import Guard
from .application import Gateway
from .logs import configuration, logger
from .protocol import Protocol
from .settings import Settings, keys_of, require_keys, settings_of

GRACE_SECONDS = 10
"""After `drain_seconds`, for cancelled calls to write their records."""
_THREADS = 128


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be served: everything that a worker process needs to know.

    `file` is the configuration, `policy` which of its policies; `log` a directory in place of the
    file's; `given` what wins over the ``[serve]`` table; `auth` whether keys are demanded.
    """

    file: str
    policy: str | None = None
    log: str | None = None
    given: dict[str, Any] = {}
    auth: bool = True

    def read(self) -> tuple[Configuration, Settings]:
        """Read the configuration file.

        Raises:
            ConfigError: it can't be used.
        """
        loaded = load(self.file, policy=self.policy)
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
    host, port = listener.getsockname()[:2]
    where = f"[{host}]" if ":" in host else host
    told = {"url": f"http://{where}:{port}/v1", "workers": settings.workers}
    with listener:
        if settings.workers == 1:
            return work(plan, listener, ready=lambda: logger().info("listening", **told))
        from .processes import Supervisor

        return Supervisor(plan, settings, listener).run(told)


def work(plan: Plan, listener: socket.socket, *, ready: Callable[[], None]) -> int:
    """Serve in this process, and return the exit status.

    Args:
        plan: what.
        listener: where; it is closed in the end.
        ready: told when requests are answered.

    Raises:
        IsonomyError: something configured can't be opened.
    """
    loaded, settings = plan.read()
    clients, reviewers = keys_of(settings, file=plan.file)
    guard = Guard.from_configuration(loaded, log=plan.log)
    try:
        gateway = Gateway(guard, settings, clients, reviewers, only_local=plan.auth and not clients)
        server = _Server(gateway, settings, guard, ready)
        with _ended_by_signals():
            server.run(sockets=[listener])
    finally:
        guard.close()
        logger().info("stopped", process=os.getpid())
    return 0 if server.started else STARTUP_FAILURE


class _Server(uvicorn.Server):
    """uvicorn's server, which lets its gateway drain while it waits for connections to end."""

    def __init__(
        self, gateway: Gateway, settings: Settings, guard: Guard, ready: Callable[[], None]
    ) -> None:
        self._gateway = gateway
        self._settings = settings
        self._guard = guard
        self._ready = ready
        self._loop: asyncio.AbstractEventLoop | None = None
        self._draining: asyncio.Task[None] | None = None
        protocol: Any = partial(
            Protocol,
            header_seconds=settings.header_seconds,
            write_seconds=settings.write_seconds,
        )
        super().__init__(
            uvicorn.Config(
                gateway.application(self._lifespan),
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
                timeout_graceful_shutdown=int(settings.drain_seconds) + GRACE_SECONDS,
            )
        )

    @asynccontextmanager
    async def _lifespan(self, _: Any) -> AsyncIterator[None]:
        self._loop = asyncio.get_running_loop()
        # Models that block a thread must not keep records of other calls from being written.
        self._loop.set_default_executor(ThreadPoolExecutor(_THREADS, "isonomy-serve"))
        self._loop.call_soon(self._tell)
        yield
        await self._gateway.running.drain(0)
        await self._gateway.running.idle()
        self._gateway.metrics.leave()

    def _tell(self) -> None:
        model = self._guard.backend.identity().model
        logger().info("ready", process=os.getpid(), model=model)
        self._ready()

    def handle_exit(self, sig: int, frame: Any) -> None:
        """Begin to stop."""
        super().handle_exit(sig, frame)
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._drain)

    def _drain(self) -> None:
        if self._draining is None:
            logger().info("draining", seconds=self._settings.drain_seconds)
            work = self._gateway.running.drain(self._settings.drain_seconds)
            self._draining = asyncio.get_running_loop().create_task(work)


def _bound(settings: Settings) -> socket.socket:
    """Return a socket that listens.

    Raises:
        ConfigError: it can't be bound.
    """
    host = settings.host.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With the protocol by name, or asyncio leaves TCP_NODELAY off, which costs 40 ms an answer.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, settings.port))
        listener.listen(2048)
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"can't listen on {host} port {settings.port}: {error.strerror or error}. Choose "
            "another with --host and --port.",
            key="serve.port",
        ) from None
    return listener


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Let the signals that uvicorn raises again, once it has stopped, do nothing more."""
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.signal(number, lambda *_: None) for number in numbers}
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)
