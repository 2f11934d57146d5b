"""The gateway as an ASGI application.

| route                        |                                                               |
| ---------------------------- | ------------------------------------------------------------- |
| POST /v1/chat/completions    | a guarded call; see `completions`                             |
| POST /v1/isonomy/resume      | go on with a call that waits for a person                     |
| GET /v1/models, /v1/models/X | the names that may be asked for                               |
| GET /health                  | 200 while the process lives                                   |
| GET /ready                   | 200 while it takes requests; 503 once it stops                |
| GET /metrics                 | counters for Prometheus; see `metrics`                        |

Health and readiness are for everybody; everything else needs a key where there are keys. There is
no CORS: a page of another origin can't use the gateway from a browser.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING, Any, Literal

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ..vocabulary import Message
from ..wrapping.openai_format import messages_of
from .body import read_json
from .completions import Completions, Models
from .errors import Refused, unauthorized
from .exchange import Edge, Exchange, Receive, Scope, Send, answer
from .keys import Keys, bearer
from .metrics import Metrics
from .running import Running
from .settings import Settings, is_loopback

if TYPE_CHECKING:
    from ..guard import Guard

_FOR_EVERYBODY = ("health", "ready")
Handler = Callable[[Exchange, Receive, Send], Awaitable[None]]


class Gateway:
    """What the routes share, for one guard.

    Args:
        guard: answers; it stays open when the application ends.
        settings: limits and names; see `Settings`.
        keys: who may use it; without any, everybody who can reach it.
        reviewers: who may resume calls; without any, who may use it.
        only_local: answer only requests for a host name of this machine alone. Otherwise a page in
            a browser here could reach a gateway without keys under a name of its own.
    """

    def __init__(
        self,
        guard: Guard,
        settings: Settings,
        keys: Keys,
        reviewers: Keys,
        *,
        only_local: bool = False,
    ) -> None:
        self._guard = guard
        self._settings = settings
        self._keys = keys
        self._reviewers = reviewers
        self._only_local = only_local
        self._models = Models(guard, settings)
        self.metrics = Metrics()
        self.running = Running(settings.max_calls)
        self._completions = Completions(
            guard,
            settings=settings,
            models=self._models,
            running=self.running,
            metrics=self.metrics,
        )

    def application(
        self, lifespan: Callable[[Any], AbstractAsyncContextManager[None]] | None = None
    ) -> Starlette:
        """Return the application."""
        clients = self._keys
        scrapers = None if self._settings.open_metrics else clients
        app = Starlette(
            routes=[
                self._route("/v1/chat/completions", "POST", "chat", self._chat, clients),
                self._route(
                    "/v1/isonomy/resume", "POST", "resume", self._resume, self._reviewers or clients
                ),
                self._route("/v1/models", "GET", "models", self._list_models, clients),
                self._route("/v1/models/{model:path}", "GET", "models", self._model, clients),
                self._route("/health", "GET", "health", self._health, None),
                self._route("/ready", "GET", "ready", self._ready, None),
                self._route("/metrics", "GET", "metrics", self._metrics_text, scrapers),
            ],
            middleware=[
                Middleware(
                    Edge, metrics=self.metrics, max_header_bytes=self._settings.max_header_bytes
                )
            ],
            exception_handlers={HTTPException: _unrouted},
            lifespan=lifespan,
        )
        app.router.redirect_slashes = False
        return app

    def _route(
        self, path: str, method: str, name: str, handler: Handler, keys: Keys | None
    ) -> Route:
        return Route(
            path,
            _Endpoint(name, handler, keys, only_local=self._only_local),
            methods=[method],
            name=name,
        )

    async def _chat(self, exchange: Exchange, receive: Receive, send: Send) -> None:
        with self.running:
            body = await read_json(exchange, receive, self._settings)
            await self._completions.create(body, exchange, receive, send)

    async def _resume(self, exchange: Exchange, receive: Receive, send: Send) -> None:
        with self.running:
            body = await read_json(exchange, receive, self._settings)
            asked = _decided(body)
            model = asked.model or self._models.own
            reply = await self.running.supervise(
                self._guard.aresume(
                    asked.token,
                    asked.decision,
                    edited=asked.edited,
                    by=exchange.key or asked.by,
                    reason=asked.reason,
                    backend=self._models.backend(model),
                ),
                receive,
                seconds=self._settings.call_seconds,
            )
            await self._completions.reply([reply], model, exchange, send)

    async def _list_models(self, exchange: Exchange, receive: Receive, send: Send) -> None:
        await _send_json(send, self._models.listed())

    async def _model(self, exchange: Exchange, receive: Receive, send: Send) -> None:
        await _send_json(send, self._models.described(exchange.scope["path_params"]["model"]))

    async def _health(self, exchange: Exchange, receive: Receive, send: Send) -> None:
        await _send_json(send, {"status": "ok"})

    async def _ready(self, exchange: Exchange, receive: Receive, send: Send) -> None:
        status = "draining" if self.running.draining else "ok"
        await _send_json(send, {"status": status}, 503 if self.running.draining else 200)

    async def _metrics_text(self, exchange: Exchange, receive: Receive, send: Send) -> None:
        body, media_type = self.metrics.exposition(exchange.header("accept") or "")
        for message in answer(200, body, {}, media_type):
            await send(message)


class _Endpoint:
    """A route's end: lets in who has one of its keys (`None`: everybody)."""

    def __init__(self, name: str, handler: Handler, keys: Keys | None, *, only_local: bool) -> None:
        self._only_local = only_local
        self._name = name
        self._handler = handler
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange: Exchange = scope["isonomy"]
        exchange.route = self._name
        if self._only_local and not _names_this_machine(exchange.header("host")):
            raise Refused(
                403,
                "without keys only requests to localhost are answered.",
                kind="permission_error",
                code="host_not_allowed",
            )
        if self._keys:
            presented = bearer(scope["headers"])
            exchange.key = self._keys.owner(presented) if presented is not None else None
            if exchange.key is None:
                raise unauthorized()
        await self._handler(exchange, receive, send)


def _names_this_machine(host: str | None) -> bool:
    """Return whether a ``Host`` header, with or without a port, names this machine alone."""
    found = re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[^:\[\]]+)(:\d+)?", host or "")
    return found is not None and is_loopback(found[1].lower())


async def _unrouted(request: Request, error: Exception) -> Response:
    """Answer for a path or a method that nobody serves."""
    assert isinstance(error, HTTPException)
    told = Refused(
        404, "there is nothing at this path.", kind="not_found_error", code="unknown_path"
    )
    if error.status_code == 405:
        told = Refused(405, "this path does not take that method.", code="method_not_allowed")
    return Response(told.body, told.status, dict(error.headers or {}), "application/json")


async def _send_json(send: Send, value: Any, status: int = 200) -> None:
    for message in answer(status, msgspec.json.encode(value), {}):
        await send(message)


class _Decision(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of a resumption.

    `edited` is a text, or messages in the chat-completions format. `model` is what the call asked
    for, where that was not the guard's own backend. `by` is who decided, where no key says so.
    """

    token: str
    decision: Literal["approve", "edit", "reject"]
    edited: str | list[Any] | None = None
    by: str | None = None
    reason: str = ""
    model: str | None = None


class _Decided(msgspec.Struct, frozen=True):
    """A resumption in the guard's words."""

    token: str
    decision: Literal["approve", "edit", "reject"]
    edited: str | tuple[Message, ...] | None
    by: str | None
    reason: str
    model: str | None


def _decided(body: dict[str, Any]) -> _Decided:
    """Read the body of a resumption.

    Raises:
        Refused, InputError: naming the field that can't be used.
    """
    try:
        given = msgspec.convert(body, _Decision)
    except msgspec.ValidationError as error:
        problem, _, path = str(error).partition(" - at `$")
        raise Refused(
            400,
            f"{problem}.",
            param=path.strip(".`") or None,
            code="invalid_input",
        ) from None
    edited = given.edited if not isinstance(given.edited, list) else messages_of(given.edited)
    return _Decided(given.token, given.decision, edited, given.by, given.reason, given.model)


def app(
    guard: Guard,
    settings: Settings | None = None,
    *,
    keys: Keys | None = None,
    reviewers: Keys | None = None,
) -> Starlette:
    """Return the gateway to a guard as an ASGI application, to mount or to run under any server.

    Nothing is closed when it ends: the guard is its owner's. A server that stops should wait for
    what runs; calls that it cancels are recorded as cancelled.

    Args:
        guard: answers, judged and recorded.
        settings: limits and names; host, port and workers are the server's own business here.
        keys: who may use it; without any, everybody who can reach it.
        reviewers: who may resume calls that wait for a person; without any, who may use it.
    """
    gateway = Gateway(guard, settings or Settings(), keys or Keys(), reviewers or Keys())

    @asynccontextmanager
    async def lifespan(_: Any) -> AsyncIterator[None]:
        yield
        await gateway.running.idle()

    return gateway.application(lifespan)
