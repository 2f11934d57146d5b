"""What a check has had of models in a call so far: what its own budget is held against.

A function of the recorded events, so that a replay finds at each step what the call found there.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

import msgspec

from .canonical import canonical
from .events import BackendFailed, Effect, Event, Generated, Scored

BYTES = 4
"""Bytes of UTF-8 that count as one token where a backend does not say how many there were."""


class Spent(msgspec.Struct, frozen=True):
    """What a check has had of models in this call.

    `calls` are generations and scorings, failed ones included. `tokens` are those that went in and
    came out, as the backends counted them, or else one for every four bytes. `since` is when the
    check first asked for the time in this call; `None` if it did not.
    """

    calls: int = 0
    tokens: int = 0
    since: datetime | None = None


def spent(events: Sequence[Event], messages: Sequence[bytes], check: str) -> Spent:
    """Return what a check has had.

    Args:
        events: of the call so far.
        messages: the call's message table, as canonical bytes.
        check: its id.
    """
    calls = tokens = 0
    since: datetime | None = None
    for event in events:
        if event.check != check:
            continue
        if isinstance(event, Generated):
            calls += 1
            usage, generation = event.generation.usage, event.generation
            tokens += _counted(usage.input_tokens, [messages[n] for n in event.messages])
            tokens += _counted(usage.output_tokens, [canonical(generation.content)])
        elif isinstance(event, Scored) and event.logprobs is not None:
            calls += 1
            tokens += _counted(None, [messages[n] for n in event.messages])
        elif isinstance(event, BackendFailed):
            calls += 1
        elif isinstance(event, Effect) and event.kind == "now" and since is None:
            since = datetime.fromtimestamp(event.value / 1e9, UTC)
    return Spent(calls, tokens, since)


def _counted(tokens: int | None, bodies: Sequence[bytes]) -> int:
    return -(-sum(map(len, bodies)) // BYTES) if tokens is None else tokens
