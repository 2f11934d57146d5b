"""Gaps: the account of what could not be recorded while calls went on.

A journal that is told to go on (``on_full="gap"``) notes here each entry that it could not write,
and puts a record of kind ``gap`` in front of the first that it can: which calls lost which records,
from when until when, and why. So a result without its intent, or a stream with a piece missing, is
explained by a record before it, or is damage.

The note is in memory until then: a process that is killed while it can't write takes it along.
Therefore the logger ``isonomy.replay`` is told when a gap begins and when it is recorded.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Callable, Iterable
from typing import Final

from isonomy.sdk.canonical import carriable
from isonomy.sdk.records import Entry, Gap

NAMED: Final = 10_000
"""Calls that one gap names; of those beyond it is only counted how many entries were lost."""


class Gaps:
    """What is lost and not recorded yet. The caller serializes its use."""

    def __init__(self, path: str, clock: Callable[[], int] = time.time_ns) -> None:
        self._path = path
        self._clock = clock
        self._lost: dict[str, dict[str, int]] = {}
        self._since = 0
        self._entries = 0
        self._unnamed = 0
        self._reason = ""

    def __bool__(self) -> bool:
        return bool(self._entries)

    def add(self, entries: Iterable[tuple[str, str]], error: Exception) -> None:
        """Note that entries were lost, each given by its call's id and its kind."""
        if not self._entries:
            self._since, self._reason = self._clock(), carriable(str(error))
            logging.getLogger("isonomy.replay").error(
                "a gap begins in the log %s, calls go on unrecorded: %s", self._path, error
            )
        for call_id, kind in entries:
            self._entries += 1
            kinds = self._lost.get(call_id)
            if kinds is None:
                if len(self._lost) >= NAMED:
                    self._unnamed += 1
                    continue
                kinds = self._lost[call_id] = {}
            kinds[kind] = kinds.get(kind, 0) + 1

    def entry(self, number: str) -> Entry:
        """Return the record of the gap as it is now, to be known as `number`."""
        now = self._clock()
        name = f"gap-{number}"
        return Entry(
            Gap(
                call_id=name,
                session=name,
                subject=name,
                wall_ns=now,
                monotonic_ns=time.monotonic_ns(),
                host=socket.gethostname(),
                process=os.getpid(),
                since_ns=self._since,
                until_ns=now,
                entries=self._entries,
                calls=len(self._lost),
                lost=self._lost,
                unnamed=self._unnamed,
                reason=self._reason,
            )
        )

    def recorded(self) -> None:
        """Forget what is recorded now."""
        logging.getLogger("isonomy.replay").warning(
            "the gap in the log %s is recorded: %d entries of %d calls were lost",
            self._path,
            self._entries,
            len(self._lost),
        )
        self.clear()

    def clear(self) -> None:
        """Forget everything: in a forked child, whose parent records it."""
        self._lost = {}
        self._entries = self._unnamed = 0
