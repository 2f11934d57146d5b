"""The child process of a replay: no network, no subprocesses, no writes.

Reads one call from standard input as JSON, replays it, writes the result to standard output. An
audit hook (PEP 578) ends what reaches for the outside with an error that names it. It is a
tripwire, not a sandbox: it catches code that strays, not code that attacks.

Run as ``python -m isonomy.replay.child``; `isonomy.replay.separate` does so.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import msgspec

from .replaying import Replayed, replay_call
from .stored import StoredCall, StoredRecord

_DENIED = (
    "socket.connect",
    "socket.bind",
    "socket.sendto",
    "socket.sendmsg",
    "socket.getaddrinfo",
    "socket.gethostby",
    "socket.getnameinfo",
    "socket.sethostname",
    "subprocess.",
    "os.exec",
    "os.posix_spawn",
    "os.spawn",
    "os.system",
    "os.fork",
    "os.kill",
    "pty.",
    "os.remove",
    "os.rename",
    "os.rmdir",
    "os.mkdir",
    "os.link",
    "os.symlink",
    "os.truncate",
    "os.chmod",
    "os.chown",
    "os.utime",
    "os.setxattr",
    "os.removexattr",
    "shutil.",
    "ftplib.",
    "smtplib.",
    "urllib.",
    "http.",
    "sqlite3.connect",
    "webbrowser.",
)
_WRITING = set("wax+")
_WRITE_FLAGS = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


_UNIX = 1
"""socket.AF_UNIX, without importing socket."""


class Denied(PermissionError):
    """The replayed code reached for the outside world."""


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """What the parent sends."""

    call_id: str
    records: tuple[StoredRecord, ...]
    plugins: tuple[str, ...] = ()
    regenerate: bool = False
    deep: bool = False


def _deny(event: str, arguments: tuple[Any, ...]) -> None:
    if event.startswith(_DENIED):
        raise Denied(
            f"a replay may not use {event}: it re-executes a record, and touches nothing else"
        )
    if event == "socket.__new__":
        # An event loop needs a pair of Unix sockets to wake itself; they connect to nothing else.
        family = arguments[1]
        if family not in (_UNIX, -1):
            raise Denied("a replay may not open a socket: models and services are not asked again")
    if event == "open":
        path, mode, flags = arguments
        named = isinstance(mode, str)  # otherwise os.open, whose flags are those of open(2)
        writes = bool(_WRITING & set(mode)) if named else bool((flags or 0) & _WRITE_FLAGS)
        if writes and path not in ("/dev/null", b"/dev/null"):
            raise Denied(f"a replay may not write to {path!r}")


def main() -> None:
    """Replay the call on standard input."""
    task = msgspec.json.decode(sys.stdin.buffer.read(), type=Task)
    results = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a plugin prints is not the result
    sys.addaudithook(_deny)
    stored = StoredCall(call_id=task.call_id, records=task.records)
    result: Replayed = replay_call(
        stored, plugins=task.plugins, regenerate=task.regenerate, deep=task.deep
    )
    results.write(msgspec.json.encode(result))
    results.flush()


if __name__ == "__main__":
    main()
