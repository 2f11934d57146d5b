"""Calls to replay: a tiny model with random weights, checks of every kind, and altered records."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
from tests.backends.local.conftest import tiny_config, write_checkpoint

from isonomy.replay import ReplayLog, StoredCall
from isonomy.sdk import Guard, Reply, Sampling
from isonomy.sdk.canonical import canonical
from isonomy.sdk.events import Event, Generated
from isonomy.sdk.records import Intent

SAMPLING = Sampling(temperature=0.9, seed=11, max_tokens=12)


def tiny_model(folder: Path, *, seed: int = 1) -> Path:
    """A checkpoint of two layers with random weights: nonsense, but real bits."""
    return write_checkpoint(folder, tiny_config(), seed=seed)


def chat(guard: Guard, prompt: Any = "hello there", **options: Any) -> tuple[Reply, StoredCall]:
    """A guarded call, and what the log holds of it."""
    reply = guard.chat(prompt, **{"sampling": SAMPLING, **options})
    return reply, stored(guard, reply.call_id)


def stored(guard: Guard, call_id: str) -> StoredCall:
    assert guard.log is not None
    with ReplayLog(guard.log.path) as log:
        return log.call(call_id)


def newest(log: Path) -> StoredCall:
    with ReplayLog(log) as replay_log:
        return replay_log.calls(limit=1)[0]


def with_events(call: StoredCall, change: Callable[[Event], Event]) -> StoredCall:
    """The call with its events changed, as if that had been recorded."""
    records = []
    for record in call.records:
        if "events" in record.payloads:
            events = tuple(change(event) for event in record.events())
            payloads = {**record.payloads, "events": canonical(events)}
            record = msgspec.structs.replace(record, payloads=payloads)
        records.append(record)
    return msgspec.structs.replace(call, records=tuple(records))


def with_tokens(call: StoredCall, change: Callable[[Any], Any]) -> StoredCall:
    """The call with the token trace of its first generation changed."""

    def changed(event: Event) -> Event:
        if not isinstance(event, Generated):
            return event
        generation = msgspec.structs.replace(
            event.generation, tokens=change(event.generation.tokens)
        )
        return msgspec.structs.replace(event, generation=generation)

    return with_events(call, changed)


def with_intent(call: StoredCall, change: Callable[[Intent], Intent]) -> StoredCall:
    """The call with its intent changed, as if that had been recorded."""
    records = [
        msgspec.structs.replace(record, record=change(record.record))
        if isinstance(record.record, Intent)
        else record
        for record in call.records
    ]
    return msgspec.structs.replace(call, records=tuple(records))


def policy_file(folder: Path, model: Path, checks: str, *, log: str = "log") -> Path:
    """A configuration file for the tiny model with further lines for its policy."""
    file = folder / "isonomy.toml"
    file.write_text(
        f'[backend]\nuse = "local:{model}"\nmax_tokens = 12\ntemperature = 0.9\nseed = 11\n'
        f'[log]\npath = "{log}"\n[policy]\n{checks}\n',
        encoding="utf-8",
    )
    return file


def kinds(events: Sequence[Event]) -> set[str]:
    return {event.type for event in events}
