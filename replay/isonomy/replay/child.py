"""The child process of a replay: no network, no subprocesses, no writes.

Reads one call from standard input as JSON, replays it, writes the result to standard output. An
audit hook (PEP 578) ends what reaches for the outside with an error that names it. It is a
tripwire, not a sandbox: it catches code that strays, not code that attacks.

Run as ``python -m isonomy.replay.child``; `isonomy.replay.separate` does so.
"""

from __future__ import annotations

import sys
from typing import Any

import msgspec

from .replaying import Replayed, replay_call
from .stored import StoredCall, StoredRecord

_DENIED = (
    "socket.",
    "subprocess.",
    "os.exec",
    "os.posix_spawn",
    "os.spawn",
    "os.system",
    "os.fork",
    "os.remove",
    "os.rename",
    "os.rmdir",
    "os.mkdir",
    "os.link",
    "os.symlink",
    "os.truncate",
    "os.chmod",
    "os.chown",
    "shutil.",
    "ftplib.",
    "smtplib.",
    "urllib.",
    "http.",
    "sqlite3.connect",
    "webbrowser.",
)
_WRITING = set("wax+")


class Denied(PermissionError):
    """The replayed code reached for the outside world."""


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """What the parent sends."""

    call_id: str
    records: tuple[StoredRecord, ...]
    plugins: tuple[str, ...] = ()


def _deny(event: str, arguments: tuple[Any, ...]) -> None:
    if event.startswith(_DENIED):
        raise Denied(
            f"a replay may not use {event}: it re-executes a record, and touches nothing else"
        )
    if event == "open":
        path, mode, flags = arguments
        # The flags are those of open(2): the two lowest bits say whether it writes.
        writes = bool(_WRITING & set(mode)) if isinstance(mode, str) else bool((flags or 0) & 3)
        if writes and path not in ("/dev/null", b"/dev/null"):
            raise Denied(f"a replay may not write to {path!r}")


def main() -> None:
    """Replay the call on standard input."""
    task = msgspec.json.decode(sys.stdin.buffer.read(), type=Task)
    sys.dont_write_bytecode = True
    sys.addaudithook(_deny)
    stored = StoredCall(call_id=task.call_id, records=task.records)
    result: Replayed = replay_call(stored, plugins=task.plugins)
    sys.stdout.buffer.write(msgspec.json.encode(result))
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
