"""Wrapped Anthropic clients: `Anthropic`, `AsyncAnthropic` and the package's other clients.

`wrap` returns an object of a subclass of the client's own class. `messages.create`,
`messages.stream` and `messages.parse` are the package's own methods: what they make of their
arguments is judged where they would post it, and what comes back where they would return it, so
that arguments, warnings, helpers and types are the package's. `messages.count_tokens` and `models`
carry no answer and are left as they are; every other method is refused by name.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterable
from functools import cache
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from ..errors import InputError, IsonomyError
from .anthropic_exchange import Exchange
from .anthropic_format import Block
from .replies import remember
from .settings import Settings

if TYPE_CHECKING:
    from ..guard import Guard
    from ..performing import Reply

_PATH = "/v1/messages"
_COUNT = "/v1/messages/count_tokens"
_CLIENT = frozenset(
    (
        *("api_key", "auth_headers", "auth_token", "base_url", "credentials", "custom_auth"),
        *("default_headers", "default_query", "max_retries", "middleware", "open_telemetry"),
        *("platform_headers", "qs", "timeout", "user_agent", "webhook_key", "is_closed", "close"),
        "with_middleware",
    )
)
"""What a client has besides its resources: settings, none of which sends anything."""
_MESSAGES = frozenset(("create", "stream", "parse", "count_tokens"))
_HELPER = "x-stainless-stream-helper"


class _Guarding:
    """What a guarded client holds: the guard, how to behave, and the client that does the work."""

    def __init__(self, guard: Guard, client: Any, settings: Settings) -> None:
        self.guard = guard
        self.client = client
        self.settings = settings


def wrap(guard: Guard, client: Any, settings: Settings) -> Any:
    """Return a guarded client like `client`.

    Raises:
        InputError: it is no client of the messages API.
    """
    kind: Any = type(client)
    if not hasattr(client, "messages") or not hasattr(kind, "copy"):
        raise InputError(f"{kind.__qualname__} has no messages to guard. Wrap a client.")
    # A client of the same state, whose own methods nobody refuses: it makes the requests.
    working = object.__new__(kind)
    working.__dict__.update(client.__dict__)
    held = frozenset(name for name, value in vars(client).items() if hasattr(value, "_post"))
    for name in held:  # they hold on to the client that they were made for
        resource = working.__dict__.pop(name)
        if not hasattr(kind, name):
            working.__dict__[name] = type(resource)(working)
    guarded = object.__new__(_guarded_client(kind, held, settings.allow))
    guarded.__dict__ = working.__dict__
    guarded._isonomy = _Guarding(guard, working, settings)
    return guarded


def _refused(name: str) -> property:
    def refuse(_: Any) -> Any:
        raise InputError(
            f"{name} is not guarded: what it sends and returns would pass no check. Call it on "
            f"the client itself, or allow it: guard.wrap(client, allow=({name!r},))."
        )

    return property(refuse)


def _closed(
    names: Iterable[str], known: frozenset[str], allow: frozenset[str], within: str = ""
) -> dict[str, Any]:
    """Return members for a subclass that refuse every public one that is not known or allowed."""
    return {
        name: _refused(within + name)
        for name in names
        if not name.startswith("_") and name not in known and within + name not in allow
    }


def _passed(path: str) -> property:
    """Return a member that is the working client's own."""
    return property(lambda guarded: attrgetter(path)(guarded._isonomy.client))


@cache
def _guarded_client(kind: Any, held: frozenset[str], allow: frozenset[str]) -> Any:
    """Return the class of guarded clients like those of `kind`, which hold resources by name."""

    def copy(self: Any, **changes: Any) -> Any:
        guarding = self._isonomy
        return wrap(guarding.guard, guarding.client.copy(**changes), guarding.settings)

    def messages(self: Any) -> Any:
        return _guarded_messages(self._isonomy)

    members = {
        **_closed([*dir(kind), *held], _CLIENT, allow),
        "__module__": kind.__module__,
        "__qualname__": kind.__qualname__,
        "__doc__": kind.__doc__,
        "messages": property(messages),
        **({"models": _passed("models")} if hasattr(kind, "models") else {}),
        "copy": copy,
        "with_options": copy,
    }
    public = {*dir(kind), *held}
    allowed = {name: _passed(name) for name in allow if name in public}
    return type(kind.__name__, (kind,), {**members, **allowed})


@cache
def _guarded_resource(kind: Any, allow: frozenset[str]) -> Any:
    members = {
        **_closed(dir(kind), _MESSAGES, allow, "messages."),
        "__module__": kind.__module__,
        "__qualname__": kind.__qualname__,
        "__doc__": kind.__doc__,
    }
    for path in allow:
        name = path.removeprefix("messages.")
        if name != path and name not in _MESSAGES and hasattr(kind, name):
            members[name] = _passed(path)
    return type(kind.__name__, (kind,), members)


def _guarded_messages(guarding: _Guarding) -> Any:
    kind: Any = type(guarding.client.messages)
    resource = object.__new__(_guarded_resource(kind, guarding.settings.allow))
    resource.__dict__.update(guarding.client.messages.__dict__)
    resource._isonomy = guarding
    async_client = asyncio.iscoroutinefunction(guarding.client.post)
    resource._post = (_async_post if async_client else _sync_post)(guarding)
    return resource


def _sync_post(guarding: _Guarding) -> Callable[..., Any]:
    client, guard, settings = guarding.client, guarding.guard, guarding.settings

    def post(path: str, *, stream: bool = False, **request: Any) -> Any:
        if path == _COUNT:
            return client.post(path, stream=stream, **request)
        _require_guarded(path)
        sent = _Sent(request)
        body = sent.plain(_prepared(sent.merged()))
        exchange = _exchange(guarding, sent, body, stream=stream)
        if stream:
            from .anthropic_stream import guarded_stream

            return guarded_stream(
                guard, exchange, settings, _options(exchange, settings), helper=sent.helper
            )
        failure: BaseException
        try:
            reply = guard.chat(exchange.messages, backend=exchange, **_options(exchange, settings))
        except IsonomyError as error:
            failure = exchange.error_behind(error)
        else:
            return _message(exchange, reply, sent, settings)
        raise failure

    return post


def _async_post(guarding: _Guarding) -> Callable[..., Any]:
    client, guard, settings = guarding.client, guarding.guard, guarding.settings

    async def post(path: str, *, stream: bool = False, **request: Any) -> Any:
        if path == _COUNT:
            return await client.post(path, stream=stream, **request)
        _require_guarded(path)
        sent = _Sent(request)
        body = sent.plain(await _aprepared(sent.merged()))
        loop = asyncio.get_running_loop()
        exchange = _exchange(guarding, sent, body, stream=stream, loop=loop)
        if stream:
            from .anthropic_stream import async_guarded_stream

            return await async_guarded_stream(
                guard, exchange, settings, _options(exchange, settings), helper=sent.helper
            )
        failure: BaseException
        try:
            reply = await guard.achat(
                exchange.messages, backend=exchange, **_options(exchange, settings)
            )
        except IsonomyError as error:
            failure = exchange.error_behind(error)
        else:
            return _message(exchange, reply, sent, settings)
        raise failure

    return post


def _require_guarded(path: str) -> None:
    if path != _PATH:
        raise InputError(f"requests to {path} are not guarded. Make them on the client itself.")


class _Sent:
    """A request as the package's method would post it, taken apart."""

    def __init__(self, request: dict[str, Any]) -> None:
        self.request = dict(request)
        self.options = dict(self.request.pop("options", None) or {})
        self.body = self.request.pop("body", None) or {}
        self.more = self.options.pop("extra_json", None) or {}
        # Applied to what is released, not to what comes in: it fails on text that is no JSON.
        self.parser: Callable[[Any], Any] | None = self.options.pop("post_parser", None)

    @property
    def helper(self) -> bool:
        """Whether a helper of the package's reads the stream."""
        headers = self.options.get("headers") or {}
        return any(name.lower() == _HELPER for name in headers)

    def merged(self) -> dict[str, Any]:
        """Return the body with what its caller passed beside it, which wins."""
        return {**self.body, **self.more}

    def plain(self, body: Any) -> Block:
        """Return the body without what was left open."""
        given: Block = {name: value for name, value in body.items() if not _left_open(value)}
        return given

    def send(self, client: Any, body: Block, *, stream: bool = False) -> Any:
        """Post a body in this request's place."""
        request = self.request
        if not stream:
            request = {name: value for name, value in request.items() if name != "stream_cls"}
        return client.post(_PATH, body=body, options=self.options, stream=stream, **request)


def _left_open(value: Any) -> bool:
    return type(value).__name__ in ("Omit", "NotGiven")


def _prepared(body: dict[str, Any]) -> Any:
    """Return a body as plain data, the way the package itself makes it; files are read."""
    from anthropic import _utils

    prepare = getattr(_utils, "prepare_request_data", None)
    return _plain(body) if prepare is None else prepare(body, location="body")


async def _aprepared(body: dict[str, Any]) -> Any:
    from anthropic import _utils

    prepare = getattr(_utils, "async_prepare_request_data", None)
    return _plain(body) if prepare is None else await prepare(body, location="body")


def _plain(value: Any) -> Any:
    """Return plain data, for versions of the package that have made it by the time they post."""
    if hasattr(value, "to_dict"):
        return value.to_dict(mode="json")
    if isinstance(value, dict):
        return {key: _plain(held) for key, held in value.items() if not _left_open(held)}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _exchange(
    guarding: _Guarding,
    sent: _Sent,
    body: Block,
    *,
    stream: bool,
    loop: asyncio.AbstractEventLoop | None = None,
) -> Exchange:
    def send(body: Block, *, stream: bool = False) -> Any:
        return sent.send(guarding.client, body, stream=stream)

    return Exchange(
        send,
        body,
        base_url=guarding.client.base_url,
        secrets=(getattr(guarding.client, name, None) for name in ("api_key", "auth_token")),
        stream=stream,
        carry=guarding.settings.carry,
        loop=loop,
    )


def _options(exchange: Exchange, settings: Settings) -> Any:
    asked = exchange.settings
    metadata = asked.extra.get("metadata")
    user = metadata.get("user_id") if isinstance(metadata, dict) else None
    return {
        **settings.for_call(actor=user if isinstance(user, str) else None),
        "tools": asked.tools,
        "response_format": asked.response_format,
        "extra": asked.extra,
    }


def _message(exchange: Exchange, reply: Reply, sent: _Sent, settings: Settings) -> Any:
    """Return what the package's method would return for what the guard released."""
    types = sys.modules["anthropic.types"]
    refused = settings.stops(reply)
    message = exchange.message_of(reply, types.Message)
    if sent.parser is not None:
        if refused:  # no JSON to parse
            parsed = types.ParsedMessage.construct(**message.to_dict())
        else:
            parsed = sent.parser(message)
        if parsed is not message:
            exchange.mark(parsed, message)
        message = parsed
    remember(message, (reply,))
    return message
