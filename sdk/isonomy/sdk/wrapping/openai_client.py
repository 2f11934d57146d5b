"""Wrapped OpenAI clients: `openai.OpenAI`, `AsyncOpenAI`, and those for Azure.

A wrapped client is an instance of a subclass of the client's own class, with the same settings and
the same connections. Every method of it ends in `request`, which is where the guard stands: what is
about to be sent is judged, and the client's own code makes its objects of what is released. So all
that builds on `create` (``parse``, ``stream``, raw responses) is guarded, by the same few lines.

Invariants: a request that is neither guarded nor allowed is refused there, whatever method it is
from; methods that do not use `request` (websockets) are refused by name.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import timedelta
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any, cast

import openai
from openai import _base_client

from ..errors import BackendError, InputError
from ..performing import Reply
from ..registry import nearest
from .openai_exchange import Exchange, retries_of
from .openai_responses import SECRETS, Responses
from .openai_streams import Reading, abody_of, aresponse_of, body_of, response_of
from .openai_wire import Chat, Wire
from .replies import remember
from .settings import Settings

if TYPE_CHECKING:
    from ..guard import Guard

_HttpResponse: Any = getattr(_base_client, "httpx2", None) or getattr(_base_client, "httpx")  # noqa: B009
_HttpResponse = _HttpResponse.Response
"""The class of HTTP responses that the installed openai package works with."""
_WIRES: dict[str, Wire] = {Chat.path: Chat(), Responses.path: Responses()}
"""Guarded APIs, by the path that requests are posted to."""
_GUARDED = ("chat", "responses", "with_raw_response", "with_streaming_response")
"""Resources of a client that lead to guarded methods."""
_ALLOWED = frozenset(("models", "webhooks", "chat.completions.delete", "responses.delete"))
"""Allowed unless asked otherwise: no content goes either way."""
_UNGUARDED = (
    ("get", r"/chat/completions", "chat.completions.list"),
    ("get", r"/chat/completions/[^/]+", "chat.completions.retrieve"),
    ("post", r"/chat/completions/[^/]+", "chat.completions.update"),
    ("delete", r"/chat/completions/[^/]+", "chat.completions.delete"),
    ("get", r"/chat/completions/[^/]+/messages", "chat.completions.messages.list"),
    ("get", r"/responses/[^/]+", "responses.retrieve"),
    ("delete", r"/responses/[^/]+", "responses.delete"),
    ("post", r"/responses/compact", "responses.compact"),
    ("post", r"/responses/input_tokens", "responses.input_tokens.count"),
    ("post", r"/responses/[^/]+/cancel", "responses.cancel"),
    ("get", r"/responses/[^/]+/input_items", "responses.input_items.list"),
)
"""Methods of the guarded resources that are not guarded themselves."""


def wrap(guard: Guard, client: Any, settings: Settings) -> Any:
    """Return a guarded client; `client` stays as it is, and shares its connections.

    Raises:
        InputError: it is no OpenAI client, is wrapped already, or `allow` names what it has not.
    """
    if isinstance(client, _Wrapped):
        raise InputError("this client is wrapped already. Wrap the one that it was made of.")
    if not isinstance(client, openai.OpenAI | openai.AsyncOpenAI):
        raise InputError(
            f"{type(client).__qualname__} is no client that can be wrapped. Wrap an openai.OpenAI "
            "or AsyncOpenAI (or their Azure kind)."
        )
    own: Any = type(client)
    kind = _class_for(own)
    wrapped = kind.__new__(kind)
    made = _made_by_use(own)
    wrapped.__dict__.update({k: v for k, v in client.__dict__.items() if k not in made})
    wrapped.__dict__["_isonomy"] = _Guarding(guard, settings, own)
    for name in settings.allow:
        _require_allowable(client, name)
    return wrapped


@cache
def _made_by_use(kind: Any) -> frozenset[str]:
    """Return the names of attributes that a client makes when they are first used: resources."""
    return frozenset(
        name
        for base in kind.__mro__
        for name, value in vars(base).items()
        if isinstance(value, cached_property)
    )


def _require_allowable(client: Any, name: str) -> None:
    resource, *path = name.split(".")
    kind: Any = type(client)
    known = sorted(_made_by_use(kind) - set(_GUARDED))
    guarded = resource in _GUARDED and name not in {method for _, _, method in _UNGUARDED}
    found: Any = client
    for step in () if guarded else (resource, *path):
        found = getattr(found, step, None)
    if guarded or found is None or resource not in (*known, *_GUARDED):
        names = (*known, *(method for _, _, method in _UNGUARDED))
        raise InputError(
            f"allow names {name!r}, which is no method or resource that could be allowed."
            f"{nearest(name, names)} What is guarded can't be allowed: use the client itself."
        )


class _Guarding:
    """What makes a client a wrapped one: the guard, how to behave, and the class it was of."""

    def __init__(self, guard: Guard, settings: Settings, kind: Any) -> None:
        self.guard = guard
        self.settings = settings
        self.kind = kind

    def allows(self, name: str) -> bool:
        """Return whether a method may be used though it is not guarded."""
        allowed = self.settings.allow | _ALLOWED
        parts = name.split(".")
        return any(".".join(parts[: n + 1]) in allowed for n in range(len(parts)))

    def unguarded(self, client: Any) -> Any:
        """Return a client that is not guarded, with the settings of the wrapped one."""
        made = _made_by_use(self.kind)
        plain = self.kind.__new__(self.kind)
        plain.__dict__.update(
            {k: v for k, v in client.__dict__.items() if k not in made and k != "_isonomy"}
        )
        return plain

    def resource(self, client: Any, name: str) -> Any:
        """Return a resource that is not guarded: as it is, where allowed, else one that refuses."""
        if self.allows(name):
            return getattr(self.unguarded(client), name)
        return _Refused(self, client, name)

    def exchange(
        self,
        client: Any,
        options: Any,
        stream: bool,
        send: Callable[[Any, bool], Any],
        loop: Any = None,
    ) -> Exchange | None:
        """Return the exchange that a request begins, or `None` where it is allowed as it is.

        Raises:
            InputError: the request is refused, or holds what can't be judged.
        """
        method, path = options.method.lower(), options.url.partition("?")[0]
        wire = _WIRES.get(path) if method == "post" else None
        if wire is None:
            name = next(
                (n for m, p, n in _UNGUARDED if m == method and re.fullmatch(p, path)),
                f"{options.method.upper()} {path}",
            )
            if self.allows(name):
                return None
            raise _refusal(name)
        original = options.model_copy()
        # What is judged is what is sent, whatever its caller does with his lists meanwhile.
        original.json_data, original.extra_json = _body_of(options), None
        body: dict[str, Any] = original.json_data
        asked = wire.asked(body, self.settings.carry)
        if stream != asked.stream:
            raise InputError(
                "the request's body and the method disagree about streaming. Pass stream=True to "
                "the method, not in extra_body."
            )
        if body.get("background") and not self.allows("responses.retrieve"):
            raise InputError(
                "an answer made in the background is fetched later, and nobody would judge it "
                "then. Leave background out, or allow responses.retrieve."
            )

        def sending(changed: dict[str, Any] | None) -> Any:
            again = original.model_copy()
            if changed is not None:
                again.json_data = changed
                if exchange.received:  # another request than the one that the caller's key is for
                    again.idempotency_key = None
                    again.headers = _without_idempotency(again.headers)
            return send(again, (body if changed is None else changed).get("stream") is True)

        exchange = Exchange(
            wire,
            body,
            asked,
            base_url=str(client.base_url),
            secrets=_secrets(client, body),
            send=sending,
            decoder=client._make_sse_decoder,
            loop=loop,
        )
        return exchange

    def options(self, exchange: Exchange, choice: int, first: Reply | None) -> dict[str, Any]:
        """Return the options of the guarded call about one of a request's answers."""
        exchange.choice = choice
        asked = exchange.asked
        tags = {} if first is None else {"choice": str(choice), "choice_of": first.call_id}
        call: dict[str, Any] = {**self.settings.for_call(actor=asked.user, tags=tags)}
        sampling = call.get("sampling")
        if sampling is not None:
            from ..requests import merged

            call["sampling"] = merged(asked.sampling, sampling)
        else:
            call["sampling"] = asked.sampling
        return {
            **call,
            "backend": exchange,
            "tools": asked.tools,
            "response_format": asked.response_format,
            "extra": asked.extra,
        }


def _body_of(options: Any) -> dict[str, Any]:
    """Return a copy of the JSON body that a request is about to be sent with.

    Raises:
        InputError: it has none.
    """
    body = options.json_data
    if not isinstance(body, dict) or getattr(options, "content", None) is not None or options.files:
        raise InputError("a guarded request needs a JSON object as its body.")
    merged = _base_client._merge_mappings(body, options.extra_json or {})  # as the client does
    return _copied(merged)  # type: ignore[no-any-return]


def _copied(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _copied(held) for name, held in value.items()}
    return [_copied(held) for held in value] if isinstance(value, list | tuple) else value


def _without_idempotency(headers: Any) -> Any:
    if not isinstance(headers, dict):
        return headers
    return {name: headers[name] for name in headers if name.lower() != "idempotency-key"}


def _secrets(client: Any, body: dict[str, Any]) -> tuple[str, ...]:
    """Return what no record may hold: the client's keys, and those of tools on other servers."""
    found = [client.__dict__.get(name) for name in ("api_key", "admin_api_key", "_azure_ad_token")]
    for tool in body.get("tools") or ():
        for name in SECRETS if isinstance(tool, dict) else ():
            held = tool.get(name)
            found += held.values() if isinstance(held, dict) else [held]
    return tuple(secret for secret in found if isinstance(secret, str))


class _Wrapped:
    """What wrapped clients of all kinds have in common."""

    _isonomy: _Guarding

    @cached_property
    def responses(self) -> Any:
        resource = super().responses  # type: ignore[misc]
        resource.connect = _Refused(self._isonomy, self, "responses.connect")
        return resource

    @property
    def beta(self) -> Any:
        if self._isonomy.allows("beta"):
            return self._isonomy.unguarded(self).beta
        return _Refused(self._isonomy, self, "beta", {"chat": cast(Any, self).chat})

    def copy(self, **changes: Any) -> Any:
        """Return a client with other settings, guarded as this one."""
        guarding = self._isonomy
        return wrap(guarding.guard, guarding.unguarded(self).copy(**changes), guarding.settings)

    with_options = copy

    def _handed(
        self, exchange: Exchange, replies: list[Reply], cast_to: Any, options: Any
    ) -> dict[str, Any]:
        """Return of what the client's own code makes its caller's object.

        Raises:
            Blocked: the policy stopped the call, and the caller wanted that to raise.
        """
        for reply in replies:
            self._isonomy.settings.stops(reply)
        released = exchange.released(replies)
        http = released.received.http if released.received is not None else None
        if released.body is not None:
            http = _response(self, http, options, json.dumps(released.body).encode())
        return _parsing(cast_to, options, http)

    def _reading(self, exchange: Exchange) -> Reading:
        guarding = self._isonomy
        return Reading(exchange, guarding.settings, guarding.guard.policy)

    def _template(self, exchange: Exchange, options: Any) -> tuple[Any, Any, Any]:
        """Return the provider's HTTP response, if there is one, or what one is made of."""
        if exchange.received:
            return exchange.received[-1].http, None, None
        return None, _HttpResponse, cast(Any, self)._build_request(options)


def _parsing(
    cast_to: Any, options: Any, http: Any, stream: bool = False, stream_cls: Any = None
) -> dict[str, Any]:
    return {
        "cast_to": cast_to,
        "options": options,
        "response": http,
        "stream": stream,
        "stream_cls": stream_cls,
        "retries_taken": retries_of(http),
    }


class _SyncWrapped(_Wrapped):
    def request(
        self, cast_to: Any, options: Any, *, stream: bool = False, stream_cls: Any = None
    ) -> Any:
        unguarded = super().request  # type: ignore[misc]

        def send(options: Any, streamed: bool) -> Any:
            received = unguarded(_HttpResponse, options, stream=streamed)
            http = getattr(received, "http_response", received)
            if not streamed:
                http.read()
            return http

        guarding = self._isonomy
        exchange = guarding.exchange(self, options, stream, send)
        if exchange is None:
            return unguarded(cast_to, options, stream=stream, stream_cls=stream_cls)
        own = cast(Any, self)
        cast_to = own._maybe_override_cast_to(cast_to, options)
        if stream and exchange.asked.n == 1:
            return self._streamed(exchange, cast_to, options, stream_cls)
        replies: list[Reply] = []
        failure: BackendError | None = None
        try:
            for choice in range(exchange.asked.n):
                call = guarding.options(exchange, choice, replies[0] if replies else None)
                replies.append(guarding.guard.chat(exchange.asked.messages, **call))
        except BackendError as error:
            failure = error
        if failure is not None and not (stream and exchange.received):
            raise exchange.original(failure) or failure
        if stream:
            told = self._reading(exchange).told(replies, failure)
            http = response_of(*self._template(exchange, options), told, lambda: None)
            handed = _parsing(cast_to, options, http, True, stream_cls)
        else:
            handed = self._handed(exchange, replies, cast_to, options)
        try:
            made = own._process_response(**handed)
        except Exception as error:
            remember(error, replies)
            raise
        remember(made, replies)
        return made

    def _streamed(self, exchange: Exchange, cast_to: Any, options: Any, stream_cls: Any) -> Any:
        guarding = self._isonomy
        call = guarding.options(exchange, 0, None)
        stream = guarding.guard.stream(exchange.asked.messages, **call)
        first, failure = None, None
        try:
            first = next(stream, None)
        except BackendError as error:
            failure = error
        refused = exchange.refused_at_opening(failure)
        if refused is not None:
            raise refused
        if failure is None and not exchange.received:  # the provider was not asked: a refusal
            for _ in stream:
                pass
            guarding.settings.stops(stream.reply)
        reading = self._reading(exchange)
        body = body_of(reading, stream, first, failure)
        http = response_of(*self._template(exchange, options), body, stream.close)
        made = cast(Any, self)._process_response(
            **_parsing(cast_to, options, http, True, stream_cls)
        )
        reading.read_by(made)
        return made


class _AsyncWrapped(_Wrapped):
    async def request(
        self, cast_to: Any, options: Any, *, stream: bool = False, stream_cls: Any = None
    ) -> Any:
        unguarded = super().request  # type: ignore[misc]

        async def send(options: Any, streamed: bool) -> Any:
            received = await unguarded(_HttpResponse, options, stream=streamed)
            http = getattr(received, "http_response", received)
            if not streamed:
                await http.aread()
            return http

        guarding = self._isonomy
        exchange = guarding.exchange(self, options, stream, send, asyncio.get_running_loop())
        if exchange is None:
            return await unguarded(cast_to, options, stream=stream, stream_cls=stream_cls)
        own = cast(Any, self)
        cast_to = own._maybe_override_cast_to(cast_to, options)
        if stream and exchange.asked.n == 1:
            return await self._streamed(exchange, cast_to, options, stream_cls)
        replies: list[Reply] = []
        failure: BackendError | None = None
        try:
            for choice in range(exchange.asked.n):
                call = guarding.options(exchange, choice, replies[0] if replies else None)
                replies.append(await guarding.guard.achat(exchange.asked.messages, **call))
        except BackendError as error:
            failure = error
        if failure is not None and not (stream and exchange.received):
            raise exchange.original(failure) or failure
        if stream:
            told = self._reading(exchange).told(replies, failure)
            http = aresponse_of(*self._template(exchange, options), _each(told), _nothing)
            handed = _parsing(cast_to, options, http, True, stream_cls)
        else:
            handed = self._handed(exchange, replies, cast_to, options)
        try:
            made = await own._process_response(**handed)
        except Exception as error:
            remember(error, replies)
            raise
        remember(made, replies)
        return made

    async def _streamed(
        self, exchange: Exchange, cast_to: Any, options: Any, stream_cls: Any
    ) -> Any:
        guarding = self._isonomy
        call = guarding.options(exchange, 0, None)
        stream = guarding.guard.astream(exchange.asked.messages, **call)
        first, failure = None, None
        try:
            first = await anext(stream, None)
        except BackendError as error:
            failure = error
        refused = exchange.refused_at_opening(failure)
        if refused is not None:
            raise refused
        if failure is None and not exchange.received:  # the provider was not asked: a refusal
            async for _ in stream:
                pass
            guarding.settings.stops(stream.reply)
        reading = self._reading(exchange)
        body = abody_of(reading, stream, first, failure)
        http = aresponse_of(*self._template(exchange, options), body, stream.aclose)
        made = await cast(Any, self)._process_response(
            **_parsing(cast_to, options, http, True, stream_cls)
        )
        reading.read_by(made)
        return made


async def _each(told: Iterator[bytes]) -> AsyncIterator[bytes]:
    for data in told:
        yield data


async def _nothing() -> None:
    """Close nothing."""


@cache
def _class_for(kind: Any) -> Any:
    """Return the class of wrapped clients whose own class is `kind`."""
    base = _SyncWrapped if issubclass(kind, openai.OpenAI) else _AsyncWrapped

    def unguarded(name: str) -> property:
        return property(lambda self: self._isonomy.resource(self, name))

    members = {name: unguarded(name) for name in _made_by_use(kind) if name not in _GUARDED}
    members.pop("beta", None)
    # Of the same name: the client says it to the provider.
    return type(kind.__name__, (base, kind), {"__doc__": kind.__doc__, **members})


class _Refused:
    """Stands for a resource or a method that is not guarded: whoever calls it is told so."""

    __slots__ = ("_client", "_guarding", "_known", "_name")

    def __init__(
        self, guarding: _Guarding, client: Any, name: str, known: dict[str, Any] | None = None
    ) -> None:
        self._guarding = guarding
        self._client = client
        self._name = name
        self._known = known or {}

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        if name in self._known:
            return self._known[name]
        path = f"{self._name}.{name}"
        if self._guarding.allows(path):
            found = self._guarding.unguarded(self._client)
            for step in path.split("."):
                found = getattr(found, step)
            return found
        return _Refused(self._guarding, self._client, path)

    def __call__(self, *args: Any, **options: Any) -> Any:
        raise _refusal(self._name)

    def __repr__(self) -> str:
        return f"<client.{self._name}: not guarded, so refused>"


def _refusal(name: str) -> InputError:
    if " " in name:
        return InputError(f"a wrapped client sends no {name}: nobody would judge it.")
    resource = name.partition(".")[0]
    allowed = name if resource in _GUARDED else resource
    return InputError(
        f"client.{name} is not guarded, and a wrapped client lets nothing pass unjudged. Use the "
        f"client that was wrapped, or allow it: guard.wrap(client, allow=({allowed!r},))."
    )


def _response(client: Any, http: Any, options: Any, content: bytes) -> Any:
    """Return an HTTP response with other content, from which the client makes its objects."""
    if http is None:
        made = _HttpResponse(
            200,
            headers={"content-type": "application/json"},
            content=content,
            request=client._build_request(options),
        )
        made.elapsed = timedelta(0)
        return made
    dropped = ("content-length", "content-encoding", "transfer-encoding")
    headers = [pair for pair in http.headers.multi_items() if pair[0].lower() not in dropped]
    made = type(http)(http.status_code, headers=headers, content=content, request=http.request)
    made.elapsed = http.elapsed
    return made
