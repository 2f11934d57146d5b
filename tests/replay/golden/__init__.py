"""Logs whose bytes are checked in: the scheme of `isonomy.replay.hashing` may never change.

One of each version that ever wrote logs. The newest is written anew (while its version is not
released, and with a new version) with: python -m tests.replay.golden
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from tests.replay import making

from isonomy.replay import JournalLog
from isonomy.sdk.records import Entry

FOLDERS = {version: Path(__file__).parent / f"version-{version}" for version in (1, 2)}
NEWEST = FOLDERS[2]


def counted() -> Callable[[int], bytes]:
    """Return an entropy source that gives the same bytes every time: SHA-256 of a counter."""
    count = 0

    def entropy(size: int) -> bytes:
        nonlocal count
        count += 1
        return hashlib.sha256(count.to_bytes(8, "big")).digest()[:size]

    return entropy


def batches() -> list[list[Entry]]:
    """Return what was appended, an append each."""
    return [
        [making.opening("golden-1")],
        [making.intent("golden-1", "zażółć \x00 gęślą jaźń")],
        [making.result("golden-1", ["hé", "llo"])],
        making.call("golden-2", "zażółć \x00 gęślą jaźń", ["x"], blocked=True, session="session-2"),
        [making.intent("golden-3", "unfinished", events=making.every_event(), operation="stream")],
        *([segment] for segment in making.segments("golden-3", ["zażółć \n", "gęślą"])),
        [making.intent("golden-4", "go on", operation="resume", resumes="golden-2")],
        [
            *making.segments("golden-4", ["jaźń"]),
            making.result("golden-4", ["jaźń"], first_released_ns=5_000_000, token="sha256:00"),
        ],
        [making.gap(lost={"golden-5": {"intent": 1, "segment": 2}, "golden-6": {"result": 1}})],
    ]


def write(path: Path) -> list[int]:
    """Write the log to `path` and return the sequence numbers."""
    with JournalLog(path, entropy=counted()) as log:
        return [sequence for batch in batches() for sequence in log.append(batch)]
