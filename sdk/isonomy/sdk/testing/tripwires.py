"""Tripwires: what a check reached for beside its context.

While `armed`, what the running thread does is watched: an audit hook (PEP 578) sees sockets,
processes and files, a profile function sees the clock, chance and the environment. Nothing is
prevented, only noted; what happens inside of the context's own methods is not. It catches code that
strays, not code that hides: a clock that is read by a library written in C is not seen.

The audit hook stays once it was added, as Python has no way to take one away; where nothing is
armed it returns at once.
"""

from __future__ import annotations

import datetime
import os
import random
import site
import sys
import sysconfig
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .world import is_through_context

_watched = threading.local()
_added = threading.Lock()
_hooked = False

_EVENTS = {
    "socket.": "opened or used a socket",
    "subprocess.": "started a process",
    "os.exec": "started a process",
    "os.posix_spawn": "started a process",
    "os.spawn": "started a process",
    "os.system": "started a process",
    "os.fork": "forked",
    "pty.": "started a process",
    "os.remove": "deleted a file",
    "os.rename": "renamed a file",
    "os.rmdir": "deleted a folder",
    "os.mkdir": "made a folder",
    "os.listdir": "listed a folder",
    "os.scandir": "listed a folder",
    "shutil.": "changed files",
    "sqlite3.connect": "opened a database",
    "urllib.": "asked for a web page",
    "time.sleep": "slept",
    "os.putenv": "changed the environment",
    "os.unsetenv": "changed the environment",
    "webbrowser.": "opened a browser",
}
_CLOCK = "read the clock"
_CHANCE = "drew random numbers"
_FUNCTIONS: dict[Any, str] = {
    time.time: f"{_CLOCK} (time.time)",
    time.time_ns: f"{_CLOCK} (time.time_ns)",
    time.localtime: f"{_CLOCK} (time.localtime)",
    time.gmtime: f"{_CLOCK} (time.gmtime)",
    time.ctime: f"{_CLOCK} (time.ctime)",
    time.sleep: "slept (time.sleep)",
    os.urandom: f"{_CHANCE} (os.urandom)",
    os.getpid: "asked for its process id (os.getpid)",
}
_CLASS_METHODS = {
    (datetime.datetime, "now"): f"{_CLOCK} (datetime.now)",
    (datetime.datetime, "utcnow"): f"{_CLOCK} (datetime.utcnow)",
    (datetime.datetime, "today"): f"{_CLOCK} (datetime.today)",
    (datetime.date, "today"): f"{_CLOCK} (date.today)",
}
_CODES = {
    type(os.environ).__getitem__.__code__: "read the environment (os.environ)",
    type(os.environ).__setitem__.__code__: "changed the environment (os.environ)",
    uuid.uuid1.__code__: "made a UUID (uuid.uuid1)",
    uuid.uuid4.__code__: f"{_CHANCE} (uuid.uuid4)",
}
_SHARED_CHANCE = random.random.__self__  # type: ignore[attr-defined]


def _own_folders() -> tuple[str, ...]:
    """Return where Python keeps itself and what is installed: reading there is importing."""
    paths = {*sysconfig.get_paths().values(), *site.getsitepackages(), sys.prefix, sys.base_prefix}
    return tuple(sorted(path for path in paths if len(path) > 1))


_OWN = _own_folders()
_CODE = (".py", ".pyc", ".so", ".pyd", ".dylib")


def _imports(frame: Any) -> bool:
    """Return whether a frame is of an import: what a module does once is not the check's doing."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    found = getattr(_watched, "found", None)
    if found is None or is_through_context():
        return
    if event == "open":
        path, mode = arguments[0], arguments[1]
        name = os.fsdecode(path) if isinstance(path, str | bytes) else str(path)
        writes = isinstance(mode, str) and bool(set("wax+") & set(mode))
        if writes or not (name.endswith(_CODE) or name.startswith(_OWN)):
            _note(found, f"{'wrote' if writes else 'read'} a file ({name})", sys._getframe())
        return
    for begin, said in _EVENTS.items():
        if event.startswith(begin):
            if begin == "os.listdir" and str(arguments[0] or "").startswith(_OWN):
                return
            _note(found, f"{said} ({event})", sys._getframe())
            return


def _note(found: list[str], said: str, frame: Any) -> None:
    if said not in found and not _imports(frame):
        found.append(said)


def _profile(frame: Any, event: str, argument: Any) -> None:
    found = getattr(_watched, "found", None)
    if found is None or is_through_context():
        return
    if event == "call":
        said = _CODES.get(frame.f_code)
    elif event == "c_call":
        owner = getattr(argument, "__self__", None)
        name = getattr(argument, "__name__", "")
        if owner is _SHARED_CHANCE:
            said = f"{_CHANCE} (random.{name})"
        elif isinstance(owner, type):
            said = next(
                (s for (kind, method), s in _CLASS_METHODS.items()
                 if name == method and issubclass(owner, kind)),
                None,
            )  # fmt: skip
        else:
            try:
                said = _FUNCTIONS.get(argument)
            except TypeError:  # bound to what has no hash
                said = None
    else:
        return
    if said is not None:
        _note(found, said, frame)


def add_hook() -> None:
    """Add the audit hook, once in a process."""
    global _hooked
    with _added:
        if not _hooked:
            sys.addaudithook(_audit)
            _hooked = True


@contextmanager
def armed() -> Iterator[list[str]]:
    """Note what this thread reaches for: the list grows meanwhile."""
    found: list[str] = []
    before = sys.getprofile()
    _watched.found = found
    sys.setprofile(_profile)
    try:
        yield found
    finally:
        sys.setprofile(before)
        _watched.found = None
