"""How fast records come from the journal into the DuckDB log, and what that holds in memory."""

from __future__ import annotations

import resource
import tempfile
from pathlib import Path
from typing import NamedTuple

_ANSWER = "It is on its way, and will be with you by the end of the week. " * 4


class Ingestion(NamedTuple):
    """One ingestion of a whole log, in a process of its own."""

    records: int
    rows: int
    seconds: float
    """From the process's start to its end."""
    peak: int
    """The largest resident set of any child so far, bytes."""


def measure(calls: int) -> Ingestion:
    """Record guarded calls with two checks each, then ingest them."""
    from isonomy.replay.ingest import Ingested, refresh
    from isonomy.sdk import Guard

    from .measuring import seconds

    def no_secrets(text: str) -> bool:
        return "secret" not in text

    def polite(text: str) -> bool:
        return "!" not in text

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "log"
        with Guard(backend=lambda text: _ANSWER, policy=[no_secrets, polite], log=folder) as guard:
            for number in range(calls):
                guard.chat(f"Where is order {number}? " + "I have waited for it. " * 20)
        done: list[Ingested] = []
        took = seconds(lambda: done.append(refresh(folder)))
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    return Ingestion(done[0].records, done[0].rows, took, peak)
