"""What the pipeline asks of a log, and what a log is not told. `isonomy.replay` implements it.

`append` returns only when the entries are durable (all of them, or none), with their sequence
numbers, and raises `LogError` otherwise: the pipeline then fails closed. Safe to use from several
threads and processes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import msgspec

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


class Mask(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a log must not hold: a table ``[[log.mask]]`` of the configuration file.

    Attributes:
        check: id of a check of the policy: what its spans mark, in whatever it is asked about.
            Alone, or:
        payload: names of payloads (see `isonomy.sdk.records`), with ``*`` for anything.
        pointer: JSON pointer into them (RFC 6901), with ``*`` for any entry; everything, unless
            given.
        pattern: regular expression (RE2): what of the text there; all of it, unless given.
    """

    check: str | None = None
    payload: str = "*"
    pointer: str | None = None
    pattern: str | None = None

    def __post_init__(self) -> None:
        if self.check is not None:
            if (self.payload, self.pointer, self.pattern) != ("*", None, None):
                raise ValueError("check stands alone: a further mask may have a pattern.")
        elif self.pointer is None and self.pattern is None:
            raise ValueError("say what to mask: check, pointer or pattern.")
        if self.pointer and not self.pointer.startswith("/"):
            raise ValueError("pointer must begin with '/', as in '/content/*/text'.")
