"""What the pipeline asks of a log; `isonomy.replay` implements it.

`append` returns only when the entries are durable (all of them, or none), with their sequence
numbers, and raises `LogError` otherwise: the pipeline then fails closed. Safe to use from several
threads and processes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from .records import Entry


@runtime_checkable
class Log(Protocol):
    """Where records go."""

    @property
    def path(self) -> str:
        """The log's directory."""
        ...

    def append(self, entries: Sequence[Entry]) -> list[int]:
        """Make entries durable in one transaction and return their sequence numbers."""
        ...

    def close(self) -> None:
        """Release files; calling it twice is harmless."""
        ...
