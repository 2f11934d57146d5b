"""One request and its answer, seen from the edge of the server.

`Edge` is the outermost layer: it gives every request an id, turns whatever goes wrong into an
answer in OpenAI's error shape, writes one line to the access log, and counts. Neither lines nor
metrics hold content: not a path that nobody serves, not a header, not the text of an error.

What a client sends as ids goes into records and headers only where it is plain: an ``x-request-id``
of at most 128 letters, digits and ``._:-``, and a W3C ``traceparent``
(https://www.w3.org/TR/trace-context). Anything else is left out, and a request id is made. A
session or subject that is no such id is refused.
"""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from ..errors import LogError
from ..vocabulary import VerdictName
from .errors import Disconnected, Refused, refused
from .logs import logger, where
from .metrics import Metrics

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

CLIENT_LEFT = 499
"""The status by which nginx's log, and so everybody's, tells that the client did not wait."""

_PLAIN_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}(-.*)?")


class Exchange:
    """A request and what became of it.

    Attributes:
        request_id: the client's, or made here.
        trace_id: of a W3C trace; `parent_id` is the span that called.
        route: which of the server's routes it is, ``unknown`` if none.
        key: the id of the key that it came with.
        calls: ids of the guarded calls that it led to.
        verdict: the strongest of theirs.
        status: of the answer, once it has begun.
    """

    def __init__(self, scope: Scope, clock: Callable[[], float]) -> None:
        self.scope = scope
        self.request_id = _plain(self.header("x-request-id")) or uuid.uuid4().hex
        self.trace_id, self.parent_id = _trace(self.header("traceparent"))
        self.route = "unknown"
        self.key: str | None = None
        self.calls: list[str] = []
        self.verdict: VerdictName | None = None
        self.stream = False
        self.status: int | None = None
        self.error: str | None = None
        self._clock = clock
        self._started = clock()

    def header(self, name: str) -> str | None:
        """Return a header's value; `None` if it is missing, or there more than once."""
        wanted = name.encode("latin-1")
        found = [value for key, value in self.scope["headers"] if key == wanted]
        return found[0].decode("latin-1") if len(found) == 1 else None

    def plain_header(self, name: str) -> str | None:
        """Return a header's value, a plain id; `None` if it is missing.

        Raises:
            Refused: it is no plain id, or there more than once; a call must not be recorded as
                somebody else's because of that.
        """
        value = _plain(self.header(name))
        if value is None and any(key == name.encode("latin-1") for key, _ in self.scope["headers"]):
            raise Refused(
                400,
                f"the header {name} must be one id of at most 128 letters, digits and ._:-",
                param=name,
                code="invalid_header",
            )
        return value

    @property
    def seconds(self) -> float:
        """Since the request's headers were here."""
        return self._clock() - self._started


def _plain(value: str | None) -> str | None:
    return value if value is not None and _PLAIN_ID.fullmatch(value) else None


def _trace(header: str | None) -> tuple[str | None, str | None]:
    """Read a ``traceparent`` header: version, trace id, parent id, flags."""
    found = _TRACEPARENT.fullmatch(header.strip()) if header else None
    if found is None:
        return None, None
    version, trace_id, parent_id, rest = found.groups()
    known = version != "ff" and (version != "00" or rest is None)
    if not known or set(trace_id) == {"0"} or set(parent_id) == {"0"}:
        return None, None
    return trace_id, parent_id


def answer(
    status: int, body: bytes, headers: dict[str, str], media_type: str = "application/json"
) -> tuple[Message, Message]:
    """Return the two messages of a whole answer."""
    start = {
        "type": "http.response.start",
        "status": status,
        "headers": [
            (b"content-type", media_type.encode("latin-1")),
            (b"content-length", str(len(body)).encode()),
            *((name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()),
        ],
    }
    return start, {"type": "http.response.body", "body": body}


class Edge:
    """The outermost layer; see the module.

    Args:
        app: what answers; it finds its `Exchange` in ``scope["isonomy"]``.
        metrics: where requests are counted.
        max_header_bytes: more are refused; servers stop reading at limits of their own.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        app: App,
        *,
        metrics: Metrics,
        max_header_bytes: int,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._app = app
        self._metrics = metrics
        self._max_header_bytes = max_header_bytes
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection of ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = scope["isonomy"] = Exchange(scope, self._clock)
        finished = False

        async def forward(message: Message) -> None:
            nonlocal finished
            if message["type"] == "http.response.start":
                exchange.status = message["status"]
                message["headers"] = [
                    *message.get("headers", ()),
                    (b"x-request-id", exchange.request_id.encode()),
                    (b"cache-control", b"no-store"),
                    (b"x-content-type-options", b"nosniff"),
                ]
            await send(message)
            if message["type"] == "http.response.body" and not message.get("more_body"):
                finished = True

        import structlog

        with (
            structlog.contextvars.bound_contextvars(request_id=exchange.request_id),
            self._metrics.in_flight(),
        ):
            try:
                self._require_small_headers(scope)
                _require_one_length(scope)
                await self._app(scope, receive, forward)
            except Disconnected:
                exchange.status = CLIENT_LEFT
            except Exception as error:
                await self._fail(exchange, error, forward)
            finally:
                if not finished and exchange.status in (None, 200):
                    exchange.status = CLIENT_LEFT  # cut off from outside
                self._told(exchange)

    def _require_small_headers(self, scope: Scope) -> None:
        size = sum(len(name) + len(value) for name, value in scope["headers"])
        if size + len(scope.get("raw_path") or b"") > self._max_header_bytes:
            raise Refused(
                431,
                f"the headers are larger than {self._max_header_bytes} bytes.",
                code="headers_too_large",
                headers={"connection": "close"},
            )

    async def _fail(self, exchange: Exchange, error: Exception, send: Send) -> None:
        told = refused(error)
        headers = told.headers
        ended = getattr(error, "call_id", None)
        if ended is not None:
            if ended not in exchange.calls:
                exchange.calls.append(ended)
            headers = {**headers, "x-isonomy-call-id": ended}
        exchange.error = type(error).__name__ if not isinstance(error, Refused) else told.code
        if told.status >= 500 and not isinstance(error, Refused):
            # Only the log's own errors are told in full: any other may quote content.
            note = {"message": str(error)} if isinstance(error, LogError) else {}
            logger().error("request_failed", error=type(error).__name__, where=where(error), **note)
        if exchange.status is None:
            for message in answer(told.status, told.body, headers):
                await send(message)

    def _told(self, exchange: Exchange) -> None:
        status = exchange.status or CLIENT_LEFT
        self._metrics.request(exchange.route, status, exchange.seconds)
        told = {
            "route": exchange.route,
            "method": exchange.scope["method"],
            "status": status,
            "seconds": round(exchange.seconds, 6),
            "stream": exchange.stream,
            "calls": exchange.calls,
            "verdict": exchange.verdict,
            "key": exchange.key,
            "trace_id": exchange.trace_id,
            "error": exchange.error,
        }
        logger().info("request", **{name: value for name, value in told.items() if value})


def _require_one_length(scope: Scope) -> None:
    """Refuse a body of two lengths: a proxy in front may see another end than we do.

    Raises:
        Refused: there are both Content-Length and Transfer-Encoding (RFC 9112, 6.1).
    """
    names = {name for name, _ in scope["headers"]}
    if {b"content-length", b"transfer-encoding"} <= names:
        raise Refused(
            400,
            "the body has both a Content-Length and a Transfer-Encoding. Send one of them.",
            code="invalid_header",
            headers={"connection": "close"},
        )
