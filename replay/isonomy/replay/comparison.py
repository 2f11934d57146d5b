"""Comparing a recorded call with its replay: equal, or where they first differ.

Events are compared in sequence, whole, apart from durations and other evidence that must not
matter. Of two generations that differ, the first token step is named at which token,
log-probability or the digest of the logits differ, with both values. There is no tolerance
anywhere.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import msgspec

from isonomy.sdk import TokenTrace
from isonomy.sdk.events import BackendFailed, Event, Failed, Generated

from .playback import without_evidence

DIGEST_BYTES = 32


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """Where a replay first differs from its record.

    `event` is the event's sequence number (`None`: outside the events), `where` the field, `step`
    the token step within a generation, counted from 0.
    """

    event: int | None
    type: str
    stage: str
    check: str | None
    where: str
    step: int | None = None
    recorded: Any
    replayed: Any

    def sentence(self) -> str:
        """Return the difference in one line."""
        place = f"event {self.event} ({self.type} at {self.stage}" if self.event is not None else ""
        if place:
            place += f", check {self.check})" if self.check else ")"
        step = f", token step {self.step}" if self.step is not None else ""
        head = f"{place}{step}: " if place else ""
        old, new = _short(self.recorded), _short(self.replayed)
        return f"{head}{self.where}: recorded {old}, replayed {new}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 160 else text[:157] + "..."


def first_difference(recorded: Sequence[Event], replayed: Sequence[Event]) -> Difference | None:
    """Return the first difference between two sequences of events, or `None` if they are equal."""
    for old, new in zip(recorded, replayed, strict=False):
        plain_old, plain_new = without_evidence(old), without_evidence(new)
        if plain_old == plain_new:
            continue
        if (old.type, old.stage, old.check) != (new.type, new.stage, new.check):
            return _at(old, where="event", recorded=_named(old), replayed=_named(new))
        if isinstance(old, Generated) and isinstance(new, Generated):
            step = first_step(old.generation.tokens, new.generation.tokens)
            if step is not None:
                return _at(old, **step)
        where, one, other = _first_field(plain_old, plain_new)
        return _at(old, where=where, recorded=one, replayed=other)
    if len(recorded) > len(replayed):
        return _at(
            recorded[len(replayed)], where="event", recorded="happened", replayed="did not happen"
        )
    if len(replayed) > len(recorded):
        return _at(
            replayed[len(recorded)], where="event", recorded="did not happen", replayed="happened"
        )
    return None


def _named(event: Event) -> str:
    """Return which event this is, with the reason of a failure: the likeliest explanation."""
    name = f"{event.type} at {event.stage}" + (f" by {event.check}" if event.check else "")
    if isinstance(event, Failed | BackendFailed):
        return f"{name}: {event.error}: {event.message}"
    return name


def _at(event: Event, **found: Any) -> Difference:
    return Difference(
        event=event.sequence, type=event.type, stage=event.stage, check=event.check, **found
    )


def first_step(old: TokenTrace | None, new: TokenTrace | None) -> dict[str, Any] | None:
    """Return the first token step at which two traces differ, what differs, and both values."""
    if old is None or new is None or old == new:
        return None
    for step in range(max(len(old.ids), len(new.ids))):
        for where, one, other in (
            ("logits digest", digest_at(old, step), digest_at(new, step)),
            ("token", _item(old.ids, step), _item(new.ids, step)),
            ("log-probability", logprob_at(old, step), logprob_at(new, step)),
            ("text", _item(old.texts, step), _item(new.texts, step)),
        ):
            if one != other:
                return {"where": where, "step": step, "recorded": one, "replayed": other}
    if old.chain == new.chain:
        return None
    return {
        "where": "chain",
        "step": None,
        "recorded": old.chain.hex(),
        "replayed": new.chain.hex(),
    }


def digest_at(trace: TokenTrace, step: int) -> str | None:
    """Return the digest of a step's logits as hexadecimal, or `None` past the end."""
    part = trace.digests[DIGEST_BYTES * step : DIGEST_BYTES * (step + 1)]
    return part.hex() if len(part) == DIGEST_BYTES else None


def logprob_at(trace: TokenTrace, step: int) -> str | None:
    """Return a step's log-probability with its bits, or `None` past the end."""
    part = trace.logprobs[4 * step : 4 * step + 4]
    if len(part) != 4:
        return None
    (value,) = struct.unpack("<f", part)
    return f"{value:.9g} (0x{int.from_bytes(part, 'little'):08x})"


def _item(items: Sequence[Any], index: int) -> Any:
    return items[index] if index < len(items) else None


def _first_field(old: Any, new: Any, path: str = "") -> tuple[str, Any, Any]:
    """Return the path of the first differing leaf of two plain values, and both."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in (*old, *(key for key in new if key not in old)):
            if old.get(key) != new.get(key) or (key in old) != (key in new):
                return _first_field(old.get(key), new.get(key), f"{path}.{key}".lstrip("."))
    if isinstance(old, list | tuple) and isinstance(new, list | tuple):
        for index in range(max(len(old), len(new))):
            if _item(old, index) != _item(new, index):
                return _first_field(_item(old, index), _item(new, index), f"{path}[{index}]")
    return path or "value", old, new
