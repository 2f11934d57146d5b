"""An endpoint: where it is, with which key, and what its refusals mean. Pure functions.

Invariants: a base URL with a password in it is refused and never repeated; keys and headers hold
nothing that could end a header; what an endpoint says is cut to a bounded length before it gets
into an error.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

import msgspec

from isonomy.sdk import ConfigError

from .retries import Failure, Outcome

_RETRIED = frozenset({408, 409, 429})
_OVERLOADED = frozenset({429, 529})
LONGEST_MESSAGE = 600
"""How much of an endpoint's own error message is kept, in characters."""
_SHORTEST_SECRET = 8
"""Values of headers shorter than this are no secrets: masking them would eat ordinary text."""
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,100}")  # a header's name: RFC 9110, 5.6.2


class Endpoint(msgspec.Struct, frozen=True):
    """Where requests go. `base` has no trailing slash; `query` begins with ``?`` or is empty."""

    base: str
    query: str
    host: str

    def url(self, path: str) -> str:
        """Return the URL of a path (which begins with a slash) below the base."""
        return self.base + path + self.query


def endpoint_of(base_url: str, *, variable: str, example: str) -> Endpoint:
    """Read a base URL.

    Raises:
        ConfigError: it is none, or holds a password.
    """
    try:
        parts = urlsplit(base_url.strip())
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    written = base_url.strip()
    if (
        parts.scheme not in ("http", "https")
        or not parts.hostname
        or not (written.isascii() and written.isprintable() and " " not in written)
    ):
        # It may hold a password, so it is not repeated.
        raise ConfigError(
            f"the base URL must be http://HOST/... or https://HOST/..., such as {example}. "
            f"Correct base_url or {variable}.",
            key="base_url",
        )
    if parts.username or parts.password:
        raise ConfigError(
            "the base URL holds a user name or password. Pass the key as api_key, or in the "
            "environment.",
            key="base_url",
        )
    base, _, query = written.partition("#")[0].partition("?")
    return Endpoint(
        base.rstrip("/"),
        f"?{query}" if query else "",
        f"{parts.hostname}:{port}" if port else parts.hostname,
    )


def model_of(backend: str, model: str) -> str:
    """Return a model's name.

    Raises:
        ConfigError: there is none.
    """
    if not isinstance(model, str) or not model.strip():
        raise ConfigError(
            f"the backend {backend} needs a model's name: {backend}:MODEL.", key="model"
        )
    return model.strip()


def key_of(key: str, *, variable: str, needed: str | None) -> str:
    """Return a key as it is sent; empty where there is none, and `needed` does not say otherwise.

    Args:
        key: as configured.
        variable: where it comes from in the environment.
        needed: what to do where it is missing; `None` where none is needed.

    Raises:
        ConfigError: it is missing, or can't be sent in a header.
    """
    key = key.strip()
    if not key and needed is not None:
        raise ConfigError(f"there is no API key. {needed}", key="api_key")
    if not key.isascii() or not key.isprintable() or " " in key:
        raise ConfigError(
            f"the API key holds characters that can't be in one. Copy it again into {variable} or "
            "api_key.",
            key="api_key",
        )
    return key


def headers_of(headers: Mapping[str, str] | None, reserved: frozenset[str]) -> dict[str, str]:
    """Return headers to send beside our own, their names in lower case.

    Args:
        headers: as configured.
        reserved: names, in lower case, that are ours.

    Raises:
        ConfigError: a name or value can't be sent, or is ours. Values are never repeated: they may
            be keys.
    """
    own = {}
    for name, value in (headers or {}).items():
        if not isinstance(name, str) or not _TOKEN.fullmatch(name):
            raise ConfigError(f"{name!r:.120} can't be a header's name.", key="headers")
        if name.lower() in reserved:
            raise ConfigError(
                f"the header {name} is set by the backend itself. Leave it out.", key="headers"
            )
        if not isinstance(value, str) or not (value.isascii() and value.isprintable()):
            raise ConfigError(
                f"the value of the header {name} must be one line of ASCII text.", key="headers"
            )
        own[name.lower()] = value.strip()
    return own


def secrets_of(key: str, headers: Mapping[str, str]) -> dict[str, str]:
    """Return masks for what must get into no record, by secret, the longest first.

    Both as they are and as JSON may write them.
    """
    masks = {value: f"[header {name}]" for name, value in headers.items()}
    masks[key] = "[api key]"
    found: dict[str, str] = {}
    for secret in sorted(masks, key=len, reverse=True):
        if secret == key or len(secret) >= _SHORTEST_SECRET:
            quoted = msgspec.json.encode(secret).decode()[1:-1]
            for form in (quoted.replace("/", "\\/"), quoted, secret):
                if form:
                    found.setdefault(form, masks[secret])
    return found


def within(name: str, value: float, low: float, high: float) -> float:
    """Return a number that was configured.

    Raises:
        ConfigError: it is none, or out of its range.
    """
    if not isinstance(value, int | float) or isinstance(value, bool) or not low <= value <= high:
        raise ConfigError(
            f"it must be a number between {low:g} and {high:g}, not {value!r}.", key=name
        )
    return value


_IMPOSSIBLE = (400, 413, 422)
_TOO_LONG = (
    "context_length_exceeded",  # OpenAI's code
    "maximum context length",  # OpenAI and vLLM
    "prompt is too long",  # Anthropic
    "exceed_context_size_error",  # llama.cpp's type
    "exceeds the available context size",
)
"""How endpoints say that a prompt does not fit, in lower case."""


def refusal(
    status: int,
    reason: str,
    headers: Mapping[str, str],
    body: str,
    *,
    longest: float,
    now: float,
    advice: Mapping[int, str],
) -> Failure:
    """Read an error status: whether to try again, when, and what to tell.

    Args:
        status: of the response.
        reason: its phrase.
        headers: of the response, with names looked up in any case.
        body: of the response, or the beginning of it; without secrets.
        longest: seconds beyond which nobody waits.
        now: seconds since 1970.
        advice: what a person can do, by status.
    """
    retry = status in _RETRIED or status >= 500
    # Some say so where a retry is useless (an exhausted quota is a 429 too), or useful.
    retry = {"true": True, "false": False}.get(headers.get("x-should-retry", ""), retry)
    after = retry_after(headers, now) if retry else None
    message = said_in(body) or body.strip() or reason
    if 300 <= status < 400:
        message = "a redirect, which is not followed"
    said = f"status {status}" + (f": {shortened(message)}" if message else "")
    advised = advice.get(status, "Try again later." if status >= 500 else "Change the request.")
    if after is not None and after > longest:
        retry = False
        advised = f"It asks to wait {after:g} s, longer than max_wait ({longest:g} s)."
    outcome: Outcome = "failed" if status >= 500 else "refused"
    if status in _OVERLOADED:
        outcome = "overloaded"
    elif status in _IMPOSSIBLE and any(mark in body.lower() for mark in _TOO_LONG):
        outcome, advised = "context", "Send a shorter prompt, or ask a model with a larger context."
    return Failure(outcome, said, advice=advised, status=status, retry=retry, after=after)


def said_in(body: str) -> str:
    """Return the message of an error body, in the several shapes that servers give it; or nothing.

    ``{"error": {"message": ...}}``, ``{"error": ...}``, ``{"message": ...}``, ``{"detail": ...}``.
    """
    try:
        said: Any = msgspec.json.decode(body)
    except (msgspec.DecodeError, ValueError, RecursionError):
        return ""
    for _ in range(3):
        if not isinstance(said, dict):
            break
        said = next((said[k] for k in ("error", "message", "detail") if said.get(k)), "")
    return said if isinstance(said, str) else msgspec.json.encode(said).decode()


def shortened(message: str) -> str:
    """Return a message cut to a bounded length."""
    return message if len(message) <= LONGEST_MESSAGE else message[:LONGEST_MESSAGE] + " [...]"


def retry_after(headers: Mapping[str, str], now: float) -> float | None:
    """Return how many seconds an endpoint asks to wait.

    It says so in ``retry-after-ms``, or in ``Retry-After`` (RFC 9110, section 10.2.3).

    Args:
        headers: the response's, with names looked up in any case.
        now: seconds since 1970; the header may be a date.

    Returns:
        Seconds, not negative, or `None` where nothing usable is said.
    """
    for name, scale in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        value = headers.get(name, "").strip()
        # Digits only: float() would take "nan" and "inf" too.
        if value and value.replace(".", "", 1).isascii() and value.replace(".", "", 1).isdigit():
            return float(value) / scale
    try:
        date = parsedate_to_datetime(headers.get("retry-after", ""))
    except ValueError:
        return None
    return max(0.0, date.replace(tzinfo=date.tzinfo or UTC).timestamp() - now)
