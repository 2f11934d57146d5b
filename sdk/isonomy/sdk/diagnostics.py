"""Diagnostics: structlog events on the standard library's logger ``isonomy``.

A library must not print: events go to `logging`, which shows warnings on standard error and leaves
the rest to the application's own configuration. They name things (call ids, checks, error types)
and never carry content or secrets.
"""

from __future__ import annotations

import logging
from functools import cache
from typing import Any


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
