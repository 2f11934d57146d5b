"""The HTTP client: one library under two names, and what its errors mean.

httpx2 is httpx under the name that the openai and anthropic packages depend on nowadays; older
versions of them bring httpx. Whichever is there is used, and a client that is passed in may be of
either.

Invariants: redirects are not followed, so what was meant for one host goes to no other; compressed
answers are not asked for, so that the bytes on the wire bound the bytes in memory; no body is read
beyond its limit.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import AsyncGenerator
from contextlib import aclosing
from importlib.metadata import version
from typing import Any

from isonomy.sdk import MissingExtra

from .retries import Failure

NAMES = ("httpx2", "httpx")
CONNECT_SECONDS = 10.0
"""Longest wait for a connection; an endpoint that is there takes far less."""
_LONGEST_REFUSAL = 64 << 10
"""How much of an error's body is read, in bytes."""


def require(backend: str, extra: str) -> None:
    """Raise `MissingExtra` unless there is an HTTP client. Imports nothing."""
    if _installed() is None:
        raise MissingExtra(f"the backend {backend!r}", extra, NAMES[0])


def _installed() -> str | None:
    return next((name for name in NAMES if importlib.util.find_spec(name) is not None), None)


def library_of(client: Any) -> Any:
    """Return the library that a client is of, or, for `None`, the one to make a client with."""
    for kind in type(client).__mro__:
        root = kind.__module__.partition(".")[0]
        if root in NAMES:
            return importlib.import_module(root)
    return importlib.import_module(_installed() or NAMES[0])


def client(library: Any) -> Any:
    """Return an asynchronous client of our own making."""
    return library.AsyncClient(
        follow_redirects=False,
        limits=library.Limits(max_connections=1000, max_keepalive_connections=100),
    )


def timeouts(library: Any, total: float, read: float) -> Any:
    """Return the library's form of timeouts, in seconds."""
    return library.Timeout(total, connect=min(CONNECT_SECONDS, total), read=min(read, total))


async def bounded(response: Any, limit: int) -> AsyncGenerator[bytes, None]:
    """Yield a response's bytes, at most `limit` of them.

    Raises:
        Failure: there are more.
    """
    total = 0
    async with aclosing(response.aiter_bytes()) as read:
        async for data in read:
            total += len(data)
            if total > limit:
                raise Failure(
                    "invalid",
                    f"the answer is longer than {limit} bytes",
                    status=response.status_code,
                    advice="Raise max_bytes, or ask for fewer tokens.",
                )
            yield data


async def beginning(response: Any) -> str:
    """Return the beginning of an error's body."""
    read = bytearray()
    async with aclosing(response.aiter_bytes()) as pieces:
        async for data in pieces:
            read += data[: _LONGEST_REFUSAL - len(read)]
            if len(read) >= _LONGEST_REFUSAL:
                break
    return read.decode("utf-8", "replace")


def failure_of(library: Any, error: Exception, *, read: float, begun: bool) -> Failure:
    """Return what an error of the library means.

    Args:
        library: whose error it is.
        error: what was raised.
        read: seconds for which a byte was waited.
        begun: whether the answer had begun.
    """
    check = "Check base_url, and that the endpoint is up."
    if isinstance(error, library.ReadTimeout):
        return Failure(
            "timeout",
            f"nothing came for {read:g} s",
            advice="See why the endpoint stalls, or raise read_timeout.",
            retry=True,
        )
    if isinstance(error, library.ConnectTimeout | library.PoolTimeout | library.WriteTimeout):
        return Failure("timeout", "no connection in time", advice=check, retry=True)
    said = str(error) or type(error).__name__
    if isinstance(error, library.LocalProtocolError | library.UnsupportedProtocol):
        return Failure("invalid", f"it can't be asked: {said}", advice="Check base_url.")
    if isinstance(error, library.TransportError):
        if begun:
            return Failure(
                "cut",
                f"the answer was cut off: {said}",
                advice="Try again; if it stays, see the endpoint's own log.",
                retry=True,
            )
        return Failure("unreachable", f"no connection: {said}", advice=check, retry=True)
    if isinstance(error, library.DecodingError):
        return Failure(
            "invalid",
            f"the answer's compression is broken: {said}",
            advice="Check what stands between here and the endpoint.",
        )
    # Whatever else is raised below: a URL or a header that can't be used.
    return Failure(
        "invalid",
        f"{type(error).__name__}: {said}",
        advice="Check base_url and the settings of the backend.",
    )


def versions() -> dict[str, str]:
    """Return the version of the library, for identities."""
    name = _installed()
    return {} if name is None else {name: version(name)}
