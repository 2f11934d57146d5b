"""What the gateway tells its operator: JSON lines, one an event, without content.

As `isonomy serve` everything that the process logs becomes such a line on standard error. Inside
another application the events go to the standard library's logger ``isonomy.gateway``, and are that
application's to show.
"""

from __future__ import annotations

import logging
import traceback
from datetime import UTC, datetime
from functools import cache
from pathlib import PurePath
from typing import Any

import msgspec
import structlog

_NAME = "isonomy.gateway"


@cache
def logger() -> Any:
    """Return the structlog logger of the gateway; its messages are JSON objects."""
    return structlog.wrap_logger(
        logging.getLogger(_NAME),
        wrapper_class=structlog.stdlib.BoundLogger,
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.contextvars.merge_contextvars,
            structlog.stdlib.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
            structlog.processors.JSONRenderer(serializer=_encoded),
        ],
    )


def _encoded(event: Any, **_: Any) -> str:
    return msgspec.json.encode(event, enc_hook=str).decode()


def where(error: BaseException) -> str:
    """Return where an error was raised: the last frames, without any text of its message."""
    frames = traceback.extract_tb(error.__traceback__)[-3:]
    return " < ".join(f"{PurePath(f.filename).name}:{f.lineno} {f.name}" for f in reversed(frames))


class JsonLines(logging.Formatter):
    """Formats every record as one JSON object; errors by type and place, never by their text."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        message = record.getMessage()
        if record.name == _NAME and message.startswith("{"):
            return message
        told: dict[str, Any] = {
            "event": message,
            "logger": record.name,
            "level": record.levelname.lower(),
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(),
            **structlog.contextvars.get_contextvars(),
        }
        if record.exc_info and record.exc_info[1] is not None:
            error = record.exc_info[1]
            told |= {"error": type(error).__name__, "where": where(error)}
        return _encoded(told)


def configuration() -> dict[str, Any]:
    """Return the logging configuration of a server process, for `logging.config.dictConfig`."""
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"json": {"()": JsonLines}},
        "handlers": {
            "stderr": {
                "class": "logging.StreamHandler",
                "formatter": "json",
                "stream": "ext://sys.stderr",
            }
        },
        "root": {"handlers": ["stderr"], "level": "WARNING"},
        "loggers": {
            _NAME: {"level": "INFO"},
            "uvicorn": {"level": "INFO", "handlers": [], "propagate": True},
        },
    }
