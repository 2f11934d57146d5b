"""Looking below a diverged token step: the first operation of the first layer that differs.

Where the call recorded digests of every layer (``Local(trace_layers=True)``), the answer's steps
are computed once more and compared with them. Where it did not, they are computed twice, the way
the record says and in the plainest way there is, and compared with each other. `Depth` says which
was done and what it means; nothing is guessed beyond it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Literal

import msgspec
from msgspec.structs import replace

from isonomy.sdk import BackendError
from isonomy.sdk.events import Event, Generated
from isonomy.sdk.generation import Generation, LayerTrace, Retracer, TokenTrace

from .comparison import DIGEST_BYTES, Difference, digest_at

PLAINEST: Final[dict[str, Any]] = {"isa": "scalar", "threads": 1, "prompt_chunk": 1}
"""One thread, no vector instructions, a token at a time: as little as can go wrong."""

Against = Literal["record", "executions"]
Conclusion = Literal[
    "layer",
    "output",
    "sampling",
    "past",
    "replay",
    "same",
    "prompt",
    "malformed",
    "elsewhere",
    "unable",
]
_SAYINGS: Final[dict[Conclusion, str]] = {
    "output": "every layer agrees, and the final norm or the output layer differs",
    "sampling": "every layer and the logits agree with the record, so the token was drawn from "
    "them otherwise, or the record of it was altered",
    "past": "two fresh executions ({}) agree with each other and not with the record: the recorded "
    "execution went wrong, or the record or the weights were different",
    "replay": "two fresh executions ({}) agree with each other and with the record: the replaying "
    "execution itself went wrong",
    "same": "every layer of every step agrees with the record",
    "prompt": "the prompts' tokens differ already, so every layer does",
    "malformed": "the record's layer digests are not of this model's layers and stages",
    "elsewhere": "the first difference is not in a step of a generation, so no layer was looked at",
}


class Depth(msgspec.Struct, frozen=True, kw_only=True):
    """What was found below a token step.

    `against` says what a fresh execution was compared with: the layer digests in the record, or
    (``executions``) another fresh one; `None` where nothing was compared. `step`, `layer` and
    `stage` name the first difference, each where there is one, `recorded` and `replayed` its two
    values. `executions` tells how the fresh ones ran, `note` adds what there is to say.
    """

    conclusion: Conclusion
    against: Against | None = None
    event: int | None = None
    step: int | None = None
    layer: int | None = None
    stage: str | None = None
    recorded: str | None = None
    replayed: str | None = None
    executions: tuple[str, ...] = ()
    note: str = ""

    def sentence(self) -> str:
        """Return the finding in one line."""
        if self.conclusion == "unable":
            return f"deep: {self.note}"
        if self.conclusion == "layer":
            found = f"layer {self.layer}, {self.stage}, is the first operation that differs"
        else:
            found = _SAYINGS[self.conclusion].format(" and ".join(self.executions))
        place = f"token step {self.step}: " if self.step is not None else ""
        how = {
            "record": " (a fresh execution against the layer digests in the record)",
            "executions": f" between two fresh executions ({' and '.join(self.executions)})",
            None: "",
        }[self.against if self.conclusion not in ("past", "replay") else None]
        return f"deep: {place}{found}{how}{self.note}"


def differing_layers(recorded: Sequence[Event], depth: Depth) -> Difference | None:
    """Return the difference in recorded layer digests as that of the event that holds them."""
    if depth.against != "record" or depth.conclusion not in ("layer", "malformed"):
        return None
    (event,) = (event for event in recorded if event.sequence == depth.event)
    named = depth.conclusion == "layer"
    return Difference(
        event=event.sequence,
        type=event.type,
        stage=event.stage,
        check=event.check,
        where=f"digest of layer {depth.layer}, {depth.stage}" if named else "layer digests",
        step=depth.step,
        recorded=depth.recorded,
        replayed=depth.replayed,
    )


def look(
    recorded: Sequence[Event],
    replayed: Sequence[Event],
    difference: Difference | None,
    backend: object,
    *,
    same: bool,
) -> Depth:
    """Look below the first difference of a replay, or, where there is none, at every layer.

    Args:
        recorded: the call's events.
        replayed: the replay's.
        difference: the first one.
        backend: who answered the replay.
        same: nothing differs.
    """
    if not isinstance(backend, Retracer):
        return Depth(
            conclusion="unable",
            note="the model was not asked anew, or does not tell what its layers compute",
        )
    pairs = [
        (old, new)
        for old, new in zip(recorded, replayed, strict=False)
        if isinstance(old, Generated) and isinstance(new, Generated)
    ]
    try:
        if same:
            return _all(pairs, backend)
        if difference is not None and difference.step is not None:
            for old, new in pairs:
                if old.sequence == difference.event:
                    return below(old, new, difference.step, backend)
    except BackendError as error:
        return Depth(conclusion="unable", note=f"a fresh execution failed: {error}")
    return Depth(conclusion="elsewhere")


def _all(pairs: Sequence[tuple[Generated, Generated]], backend: Retracer) -> Depth:
    """Compare all layers that were recorded; the answers are equal."""
    traced = False
    for old, new in pairs:
        trace = old.generation.tokens
        if trace is None or not trace.layers or not trace.ids:
            continue
        traced = True
        found = _with_record(old, new, len(trace.ids) - 1, trace, backend)
        if found.conclusion != "sampling":
            return found
    if traced:
        return Depth(conclusion="same", against="record")
    return Depth(
        conclusion="unable",
        note="nothing differs, and the call recorded no digests of its layers to be compared",
    )


def below(old: Generated, new: Generated, step: int, backend: Retracer) -> Depth:
    """Look below a step at which two generations first differ."""
    trace = old.generation.tokens
    if old.generation.prompt_ids != new.generation.prompt_ids:
        return Depth(conclusion="prompt", event=old.sequence, step=step)
    if trace is not None and trace.layers:
        return _with_record(old, new, step, trace, backend)
    return _with_each_other(old, new, step, backend)


def _ids(new: Generation, step: int) -> tuple[int, ...]:
    """Return the ids that `step` is computed from, and one in its own place, which plays no part.

    Up to the first difference the replay's are the record's; beyond it the record's may be no ids.
    """
    return (*(new.tokens.ids[:step] if new.tokens is not None else ()), 0)


def _with_record(
    old: Generated, new: Generated, step: int, trace: TokenTrace, backend: Retracer
) -> Depth:
    ids = _ids(new.generation, step)
    fresh = backend.retrace(new.generation.prompt_ids or (), ids)
    found = Depth(
        conclusion="sampling",
        against="record",
        event=old.sequence,
        step=step,
        executions=(_told(fresh),),
    )
    expected = len(trace.ids) * fresh.layers * len(fresh.stages) * DIGEST_BYTES
    if len(trace.layers) != expected:
        return replace(
            found,
            conclusion="malformed",
            step=None,
            recorded=f"{len(trace.layers)} bytes",
            replayed=f"{expected} bytes",
        )
    if (at := first_layer(trace.layers, fresh)) is not None:
        return at_layer(found, at, trace.layers, fresh)
    if digest_at(trace, step) != _logits(fresh, step):
        return replace(found, conclusion="output")
    return found


def _with_each_other(old: Generated, new: Generated, step: int, backend: Retracer) -> Depth:
    ids = _ids(new.generation, step)
    prompt = new.generation.prompt_ids or ()
    first = backend.retrace(prompt, ids, runtime=old.generation.runtime)
    second = backend.retrace(prompt, ids, runtime=PLAINEST)
    found = Depth(
        conclusion="sampling",
        against="executions",
        event=old.sequence,
        step=step,
        executions=(_told(first), _told(second)),
    )
    before, after = old.generation.tokens, new.generation.tokens
    recorded = digest_at(before, step) if before is not None else None
    agreeing = [_told(each) for each in (first, second) if _logits(each, step) == recorded]
    note = f"; the record agrees with {agreeing[0] if agreeing else 'neither'}"
    if (at := first_layer(first.digests, second)) is not None:
        return replace(at_layer(found, at, first.digests, second), note=note)
    if first.logits != second.logits:
        return replace(found, conclusion="output", note=note)
    if not agreeing:
        return replace(found, conclusion="past")
    if after is not None and digest_at(after, step) != recorded:
        return replace(found, conclusion="replay")
    return found


def first_layer(digests: bytes, other: LayerTrace) -> int | None:
    """Return where the first differing digest begins, over the steps that `other` has."""
    for at in range(0, len(other.digests), DIGEST_BYTES):
        if digests[at : at + DIGEST_BYTES] != other.digests[at : at + DIGEST_BYTES]:
            return at
    return None


def at_layer(found: Depth, at: int, digests: bytes, other: LayerTrace) -> Depth:
    """Return `found` with the step, layer and stage whose digests begin at `at`."""
    step, rest = divmod(at // DIGEST_BYTES, other.layers * len(other.stages))
    layer, stage = divmod(rest, len(other.stages))
    return replace(
        found,
        conclusion="layer",
        step=step,
        layer=layer,
        stage=other.stages[stage],
        recorded=digests[at : at + DIGEST_BYTES].hex(),
        replayed=other.digests[at : at + DIGEST_BYTES].hex(),
    )


def _logits(trace: LayerTrace, step: int) -> str:
    return trace.logits[DIGEST_BYTES * step : DIGEST_BYTES * (step + 1)].hex()


def _told(trace: LayerTrace) -> str:
    """Return how an execution ran, in a few words."""
    runtime = trace.runtime
    chunk = runtime.get("prompt_chunk")
    pieces = "whole" if chunk is None else f"in pieces of {chunk}"
    threads = runtime.get("threads")
    return f"{runtime.get('isa')}, {threads} thread{'' if threads == 1 else 's'}, {pieces}"
