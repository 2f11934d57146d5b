"""Diagnostics: structlog events on the standard library's logger ``isonomy``.

A library must not print: events go to `logging`, which shows warnings on standard error and leaves
the rest to the application's own configuration. They name things (call ids, checks, error types)
and never carry content or secrets.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from contextvars import ContextVar, Token
from functools import cache
from typing import Any

_CALL_ID: ContextVar[str] = ContextVar("structlog_call_id")
"""By its name, structlog finds it among its own context variables: every line that is logged during
a call has the field ``call_id``, an application's too, if it merges them
(`structlog.contextvars.merge_contextvars`). Checks have it on their threads, which run in a copy of
the call's context."""


def bind(call_id: str) -> Token[str]:
    """Have every line say which call it belongs to, until `unbind`."""
    return _CALL_ID.set(call_id)


def unbind(bound: Token[str]) -> None:
    """End what `bind` began; harmless in another context, as when a generator is collected."""
    with suppress(ValueError):
        _CALL_ID.reset(bound)


@cache
def logger() -> Any:
    """Return the structlog logger of Isonomy."""
    import structlog  # only when there is something to say: it costs a fifth of the import time

    return structlog.wrap_logger(
        logging.getLogger("isonomy"),
        wrapper_class=structlog.stdlib.BoundLogger,
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.contextvars.merge_contextvars,
            structlog.stdlib.add_log_level,
            structlog.processors.KeyValueRenderer(key_order=["event"]),
        ],
    )
