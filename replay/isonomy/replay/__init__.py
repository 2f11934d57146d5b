"""Isonomy's replay log: the journal that calls are written to, and everything that reads it.

Importing this package loads neither duckdb nor anything else that is heavy; names are loaded as
they are used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .answers import Answer
    from .erasing import certify, erase
    from .errors import (
        DamagedLog,
        FormatMissing,
        LogUnwritable,
        NewerLog,
        NoSuchCall,
        NotALog,
        QueryFailed,
        QueryRefused,
    )
    from .journal import JournalLog, open_log
    from .printing import printable, safe_text
    from .reading import ReplayLog
    from .replaying import Replayed, replay_call, replay_with_guard
    from .separate import replay_separately
    from .stored import StoredCall, StoredRecord
    from .verification import Finding, Report

__all__ = [
    "Answer",
    "DamagedLog",
    "Finding",
    "FormatMissing",
    "JournalLog",
    "LogUnwritable",
    "NewerLog",
    "NoSuchCall",
    "NotALog",
    "QueryFailed",
    "QueryRefused",
    "ReplayLog",
    "Replayed",
    "Report",
    "StoredCall",
    "StoredRecord",
    "certify",
    "erase",
    "open_log",
    "printable",
    "replay_call",
    "replay_separately",
    "replay_with_guard",
    "safe_text",
]

_HOMES = {
    "Answer": "answers",
    "DamagedLog": "errors",
    "Finding": "verification",
    "FormatMissing": "errors",
    "JournalLog": "journal",
    "LogUnwritable": "errors",
    "NewerLog": "errors",
    "NoSuchCall": "errors",
    "NotALog": "errors",
    "QueryFailed": "errors",
    "QueryRefused": "errors",
    "ReplayLog": "reading",
    "Replayed": "replaying",
    "Report": "verification",
    "StoredCall": "stored",
    "StoredRecord": "stored",
    "certify": "erasing",
    "erase": "erasing",
    "open_log": "journal",
    "printable": "printing",
    "replay_call": "replaying",
    "replay_separately": "separate",
    "replay_with_guard": "replaying",
    "safe_text": "printing",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
