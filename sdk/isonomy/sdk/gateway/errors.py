"""What the gateway refuses, in OpenAI's error shape and with the status that says whose turn it is.

``{"error": {"message": ..., "type": ..., "param": ..., "code": ...}}``: `param` is the path of the
field that is wrong (``messages[2].content``), `code` a name for programs.

What a client sent wrong is explained to it. What went wrong behind the gateway is named, and told
in full to the server's diagnostics only: messages of providers and of the log are not for
strangers.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from ..errors import (
    BackendError,
    Cancelled,
    ContextLength,
    InputError,
    LogError,
    Overloaded,
    RemoteError,
)

_REFUSED_BY_PROVIDER = frozenset({400, 404, 413, 422})
_PATH = re.compile(
    r"(?P<path>[a-z_]+(?:\[\d+\]|\.[A-Za-z_][A-Za-z0-9_]*)*)(?: must |: | is | has | holds )"
)


class Refused(Exception):
    """A request that is answered with an error; the gateway's own exception, never the guard's."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        self.status = status
        self.message = message
        self.kind = kind
        self.param = param
        self.code = code
        self.headers = headers or {}
        super().__init__(message)

    @property
    def shape(self) -> dict[str, Any]:
        """The error as JSON data."""
        return {
            "error": {
                "message": self.message,
                "type": self.kind,
                "param": self.param,
                "code": self.code,
            }
        }

    @property
    def body(self) -> bytes:
        """The error as JSON."""
        return msgspec.json.encode(self.shape)


class Disconnected(Exception):
    """The client went away; nobody is left to answer."""


def unauthorized() -> Refused:
    """Return the refusal of a request without a valid key."""
    return Refused(
        401,
        "there is no valid API key. Send one as 'Authorization: Bearer KEY'.",
        kind="authentication_error",
        code="invalid_api_key",
        headers={"www-authenticate": "Bearer"},
    )


def draining() -> Refused:
    """Return the refusal of a server that stops."""
    return Refused(
        503,
        "the server is stopping. Try again, elsewhere or in a moment.",
        kind="server_error",
        code="draining",
        headers={"retry-after": "1"},
    )


def overloaded(message: str, wait: float = 1.0) -> Refused:
    """Return the refusal of a server that has too much to do."""
    return Refused(
        429,
        message,
        kind="rate_limit_error",
        code="overloaded",
        headers={"retry-after": str(max(1, round(wait)))},
    )


def took_too_long(seconds: float) -> Refused:
    """Return the refusal of a call that was stopped because its time was up."""
    return Refused(
        504,
        f"there was no answer within {seconds:g} seconds. The call was cancelled.",
        kind="timeout_error",
        code="timeout",
    )


def internal() -> Refused:
    """Return the refusal for what nobody expected."""
    return Refused(
        500,
        "something went wrong here. The server's diagnostics tell more under this request id.",
        kind="server_error",
        code="internal_error",
    )


def refused(error: BaseException) -> Refused:
    """Return what a client is told of an error."""
    match error:
        case Refused():
            return error
        case InputError():
            message = str(error)
            found = _PATH.match(message)
            return Refused(
                400, message, param=found["path"] if found else None, code="invalid_input"
            )
        case ContextLength():
            return Refused(400, str(error), param="messages", code="context_length_exceeded")
        case Overloaded():
            return overloaded(
                "the backend has too much to do. Try again later.",
                getattr(error, "retry_after", None) or 1.0,
            )
        case Cancelled():
            return Refused(
                503, "this call was cancelled here.", kind="server_error", code="cancelled"
            )
        case LogError():
            return Refused(
                503,
                "this call can't be recorded, and unrecorded nothing is released.",
                kind="server_error",
                code="log_unavailable",
            )
        case RemoteError():
            return _of_remote(error)
        case BackendError():
            return _backend_failed()
        case _:
            return internal()


def _of_remote(error: RemoteError) -> Refused:
    if error.status == 429:
        return overloaded("the model's provider is overloaded. Try again later.")
    if error.status in _REFUSED_BY_PROVIDER:
        return Refused(
            400,
            f"the model's provider refused this request with status {error.status}.",
            code="refused_by_provider",
        )
    outcome = error.attempts[-1].outcome if error.attempts else ""
    if outcome == "open":
        return Refused(
            503,
            "the model's provider failed again and again, and is left alone for a moment.",
            kind="server_error",
            code="backend_unavailable",
            headers={"retry-after": "1"},
        )
    if outcome == "timeout":
        return Refused(
            504,
            "the model's provider did not answer in time.",
            kind="timeout_error",
            code="backend_timeout",
        )
    return _backend_failed()


def _backend_failed() -> Refused:
    return Refused(502, "the model's backend failed.", kind="server_error", code="backend_failed")
