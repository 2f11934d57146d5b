"""Replaying calls in a child process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Collection

import msgspec

from isonomy.sdk import ConfigError
from isonomy.sdk.interpolation import taken

from .child import Task
from .replaying import Replayed
from .stored import StoredCall

_KEPT = ("PATH", "HOME", "LANG", "LC_ALL", "PYTHONPATH", "VIRTUAL_ENV", "LD_LIBRARY_PATH", "TMPDIR")
"""The environment of a replay: what Python needs to start, our own switches, and what the policy
takes by name (`isonomy.sdk.interpolation`); no other secrets."""
_SWITCHES = ("-B", "-P")
"""Write no bytecode, and import nothing from the working directory because it happens to be it."""


def replay_separately(
    stored: StoredCall,
    *,
    plugins: Collection[str] = (),
    regenerate: bool = False,
    deep: bool = False,
    timeout: float = 3600.0,
) -> Replayed:
    """Replay a stored call in a child process without network, subprocesses or writes.

    Args:
        stored: the call.
        plugins: modules that the child may import, besides Isonomy's own.
        regenerate: answer token by token; see `replay_call`.
        deep: look for the first differing layer; see `replay_call`.
        timeout: seconds after which the child is ended and the replay refused.
    """
    task = Task(
        call_id=stored.call_id,
        records=stored.records,
        plugins=tuple(plugins),
        regenerate=regenerate,
        deep=deep,
    )
    environment = {
        name: value
        for name, value in os.environ.items()
        if name in _KEPT or name.startswith("ISONOMY_")
    }
    try:
        if stored.policy is not None and not stored.damage:
            environment |= taken(msgspec.json.decode(stored.policy), os.environ)
    except ConfigError as error:
        return _refused(stored, f"the recorded policy can't be built here: {error.problem}")
    except msgspec.MsgspecError:
        pass  # the child says what is wrong with the record
    try:
        child = subprocess.run(
            [sys.executable, *_SWITCHES, "-m", "isonomy.replay.child"],
            input=msgspec.json.encode(task),
            capture_output=True,
            env=environment,
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return _refused(stored, f"the replay did not end within {timeout:g} s.")
    if child.returncode != 0:
        lines = child.stderr.decode(errors="replace").strip().splitlines()
        return _refused(
            stored, f"the replaying process failed: {lines[-1] if lines else 'no message'}"
        )
    try:
        return msgspec.json.decode(child.stdout, type=Replayed)
    except msgspec.MsgspecError:
        return _refused(stored, "the replaying process ended without a result.")


def _refused(stored: StoredCall, reason: str) -> Replayed:
    return Replayed(call_id=stored.call_id, status="refused", reason=reason)
