"""Reading a request's body: bounded in size and time, and read no further than that.

An oversized body is refused by its announced length, before any of it is read, and else as soon as
it is too long. A client that is still sending would not hear the answer if the connection were
closed under it, so what is moderately too long is read on and thrown away for a moment.
"""

from __future__ import annotations

import asyncio
import re
from typing import Any

import msgspec

from .errors import Disconnected, Refused
from .exchange import Exchange, Receive
from .settings import Settings

_LINGER_BYTES = 64 << 20
_LINGER_SECONDS = 2.0
_CLOSE = {"connection": "close"}
_HALF = re.compile(
    rb"\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])"
    rb"|(?<!\\u[dD][89abAB][0-9a-fA-F]{2})\\u[dD][c-fC-F][0-9a-fA-F]{2}"
)
"""Half of an escaped surrogate pair."""


async def read_json(exchange: Exchange, receive: Receive, settings: Settings) -> dict[str, Any]:
    """Read a body that must be a JSON object.

    Raises:
        Refused: another type (415), too large (413), too slow (408), or no JSON object (400).
        Disconnected: the client went away.
    """
    media_type = (exchange.header("content-type") or "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise Refused(
            415,
            "the body must be JSON. Send it with the header 'content-type: application/json'.",
            code="unsupported_media_type",
            headers=_CLOSE,
        )
    if (exchange.header("content-encoding") or "identity").lower() != "identity":
        raise Refused(
            415,
            "the body must not be compressed.",
            code="unsupported_encoding",
            headers=_CLOSE,
        )
    body = await _read(exchange, receive, settings)
    try:
        value = msgspec.json.decode(body)
    except RecursionError:
        raise Refused(400, "the body is nested too deeply.", code="invalid_json") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        why = f"{error}; half of a surrogate pair is no text" if _HALF.search(body) else f"{error}"
        raise Refused(400, f"the body is not valid JSON: {why}.", code="invalid_json") from None
    if not isinstance(value, dict):
        raise Refused(400, "the body must be a JSON object.", code="invalid_json")
    return value


async def _read(exchange: Exchange, receive: Receive, settings: Settings) -> bytes:
    limit = settings.max_body_bytes
    announced = exchange.header("content-length")
    length = int(announced) if announced is not None and announced.isdigit() else 0
    if length > limit:
        if length <= _LINGER_BYTES and exchange.header("expect") is None:
            await _discard(receive)
        raise _too_large(limit)
    chunks, size = [], 0
    try:
        async with asyncio.timeout(settings.body_seconds):
            while True:
                message = await receive()
                if message["type"] != "http.request":
                    raise Disconnected
                chunk = message.get("body", b"")
                size += len(chunk)
                if size > limit and message.get("more_body"):
                    await _discard(receive)
                if size > limit:
                    raise _too_large(limit)
                chunks.append(chunk)
                if not message.get("more_body"):
                    return b"".join(chunks)
    except TimeoutError:
        raise Refused(
            408,
            f"the body was not here within {settings.body_seconds:g} seconds.",
            kind="timeout_error",
            code="request_timeout",
            headers=_CLOSE,
        ) from None


async def _discard(receive: Receive) -> None:
    """Read on for a moment, keeping nothing."""
    size = 0
    try:
        async with asyncio.timeout(_LINGER_SECONDS):
            while size <= _LINGER_BYTES:
                message = await receive()
                size += len(message.get("body", b""))
                if message["type"] != "http.request" or not message.get("more_body"):
                    return
    except TimeoutError:
        return


def _too_large(limit: int) -> Refused:
    return Refused(
        413,
        f"the body is larger than {limit} bytes, which is the most that is read.",
        code="body_too_large",
        headers=_CLOSE,
    )
