"""Deep replay names the first layer and operation that differ, and says what it compared."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.replay import calls

from isonomy.backends.local import Local, NonFinite
from isonomy.kernels import STAGES
from isonomy.kernels.testing import inject
from isonomy.replay import ReplayLog, StoredCall
from isonomy.replay.deep import Depth
from isonomy.replay.replaying import Replayed, replay_call
from isonomy.sdk import Guard, TokenTrace
from isonomy.sdk.events import Generated
from isonomy.sdk.generation import Generation, LayerTrace, Retracer

STEP = 5
LAYERS = 2


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return calls.tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def guard(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guard]:
    with Guard(f"local:{model}", [], tmp_path_factory.mktemp("deep") / "log") as guard:
        yield guard


@pytest.fixture(scope="module")
def recorded(guard: Guard) -> StoredCall:
    return calls.chat(guard)[1]


def generation_of(call: StoredCall) -> Generation:
    (event,) = call.events
    assert isinstance(event, Generated)
    return event.generation


def trace_of(call: StoredCall) -> TokenTrace:
    trace = generation_of(call).tokens
    assert trace is not None
    return trace


def position(call: StoredCall, step: int) -> int:
    """The token whose row gives a step's logits."""
    return len(generation_of(call).prompt_ids or ()) + step - 1


def faulty(guard: Guard, clean: StoredCall, *, layer: int, stage: str, step: int) -> StoredCall:
    """The call, with one bit flipped while it was made; only calls of one length compare."""
    for element in range(20):
        place = {"layer": layer, "stage": stage, "row": position(clean, step)}
        with inject(**place, element=element, bit=23):
            _, call = calls.chat(guard)
        if trace_of(call).digests != trace_of(clean).digests:
            return call
    raise AssertionError("no flip reached the logits")


def with_layers(call: StoredCall, guard: Guard, **fault: Any) -> StoredCall:
    """The call as it would have been recorded with digests of its layers."""
    generation = generation_of(call)
    trace = trace_of(call)
    backend: Any = guard.backend
    if fault:
        with inject(**fault):
            found = backend.retrace(generation.prompt_ids, trace.ids)
    else:
        found = backend.retrace(generation.prompt_ids, trace.ids)
    return calls.with_tokens(
        call, lambda tokens: msgspec.structs.replace(tokens, layers=found.digests)
    )


def deep(call: StoredCall, guard: Guard, **options: Any) -> tuple[Replayed, Depth]:
    result = replay_call(call, guard=guard, deep=True, **options)
    assert result.deep is not None
    assert result.deep.sentence() in result.sentence()
    return result, result.deep


def test_the_local_backend_retraces(guard: Guard, recorded: StoredCall) -> None:
    backend = guard.backend
    assert isinstance(backend, Retracer)
    generation, trace = generation_of(recorded), trace_of(recorded)
    whole = backend.retrace(generation.prompt_ids or (), trace.ids)
    assert (whole.layers, whole.stages) == (LAYERS, STAGES)
    assert whole.logits == trace.digests
    assert len(whole.digests) == 32 * LAYERS * len(STAGES) * len(trace.ids)
    assert len({whole.digests[i : i + 32] for i in range(0, len(whole.digests), 32)}) > 150
    for runtime in (
        {"isa": "scalar", "threads": 1, "prompt_chunk": 1},
        {"isa": "none such", "threads": 2, "prompt_chunk": 7},
        {"isa": ["x"], "threads": -1, "prompt_chunk": "x"},
        {"threads": 10**9},
        {},
    ):
        again = backend.retrace(generation.prompt_ids or (), trace.ids, runtime=runtime)
        assert again.digests == whole.digests
        assert again.logits == whole.logits
        assert again.runtime["threads"] < 1000


@pytest.mark.parametrize("regenerate", [False, True])
@pytest.mark.parametrize("layer", range(LAYERS))
@pytest.mark.parametrize("stage", STAGES)
def test_a_fault_when_it_was_recorded_with_layers(
    guard: Guard, recorded: StoredCall, layer: int, stage: str, regenerate: bool
) -> None:
    fault = {"layer": layer, "stage": stage, "row": position(recorded, STEP)}
    call = with_layers(recorded, guard, **fault, element=3, bit=20)
    result, found = deep(call, guard, regenerate=regenerate)
    assert (result.status, result.exit_status) == ("diverged", 1)
    assert (found.conclusion, found.against) == ("layer", "record")
    assert (found.step, found.layer, found.stage) == (STEP, layer, stage)
    assert f"token step {STEP}: layer {layer}, {stage}, is the first" in found.sentence()
    assert "against the layer digests in the record" in found.sentence()
    assert result.difference is not None
    assert result.difference.where == f"digest of layer {layer}, {stage}"
    assert (result.difference.event, result.difference.step) == (0, STEP)


def test_a_fault_that_reached_the_logits_with_layers(guard: Guard, recorded: StoredCall) -> None:
    call = with_layers(recorded, guard)
    trace = trace_of(call)
    wrong = bytes(32)
    layers = bytearray(trace.layers)
    at = 32 * len(STAGES) * (LAYERS * STEP + 1)
    layers[at : at + 32 * len(STAGES)] = wrong * len(STAGES)
    digests = bytearray(trace.digests)
    digests[32 * STEP : 32 * STEP + 32] = wrong
    call = calls.with_tokens(
        call,
        lambda tokens: msgspec.structs.replace(
            tokens, layers=bytes(layers), digests=bytes(digests)
        ),
    )
    result, found = deep(call, guard)
    assert result.difference is not None
    assert (result.difference.where, result.difference.step) == ("logits digest", STEP)
    assert (found.step, found.layer, found.stage) == (STEP, 1, "attention_norm")


def test_only_the_logits(guard: Guard, recorded: StoredCall) -> None:
    def changed(tokens: TokenTrace) -> TokenTrace:
        digests = tokens.digests[: 32 * STEP] + bytes(32) + tokens.digests[32 * STEP + 32 :]
        return msgspec.structs.replace(tokens, digests=digests)

    _, found = deep(calls.with_tokens(with_layers(recorded, guard), changed), guard)
    assert (found.conclusion, found.step, found.layer) == ("output", STEP, None)


def test_only_the_draw(guard: Guard, recorded: StoredCall) -> None:
    def changed(tokens: TokenTrace) -> TokenTrace:
        ids = (*tokens.ids[:STEP], tokens.ids[STEP] ^ 1, *tokens.ids[STEP + 1 :])
        return msgspec.structs.replace(tokens, ids=ids)

    for call, against in ((with_layers(recorded, guard), "record"), (recorded, "executions")):
        _, found = deep(calls.with_tokens(call, changed), guard)
        assert (found.conclusion, found.step, found.against) == ("sampling", STEP, against)


def test_a_fault_when_it_was_recorded_without_layers(guard: Guard, recorded: StoredCall) -> None:
    call = faulty(guard, recorded, layer=1, stage="mlp_inner", step=2)
    result, found = deep(call, guard)
    assert result.status == "diverged"
    assert (found.conclusion, found.against, found.step) == ("past", "executions", 2)
    assert "two fresh executions" in found.sentence()
    assert "agree with each other and not with the record" in found.sentence()
    assert "scalar, 1 thread, in pieces of 1" in found.sentence()


@pytest.mark.parametrize("bad", [1, 2], ids=["as recorded", "plainest"])
@pytest.mark.parametrize("stage", ["qkv", "attention", "mlp_residual"])
def test_executions_that_differ(
    guard: Guard, recorded: StoredCall, monkeypatch: pytest.MonkeyPatch, stage: str, bad: int
) -> None:
    """A fault of one path of this machine: it strikes one of the two executions."""
    call = calls.with_tokens(
        recorded,
        lambda tokens: msgspec.structs.replace(tokens, digests=bytes(32) + tokens.digests[32:]),
    )
    backend: Any = guard.backend
    genuine, asked = backend.retrace, []

    def retrace(*arguments: Any, **options: Any) -> LayerTrace:
        asked.append(options["runtime"])
        if len(asked) != bad:
            return genuine(*arguments, **options)
        place = {"layer": 0, "stage": stage, "row": position(recorded, 0)}
        with inject(**place, element=1, bit=22):
            return genuine(*arguments, **options)

    monkeypatch.setattr(backend, "retrace", retrace, raising=False)
    _, found = deep(call, guard)
    assert len(asked) == 2
    assert (found.conclusion, found.against) == ("layer", "executions")
    assert (found.step, found.layer, found.stage) == (0, 0, stage)
    assert "between two fresh executions" in found.sentence()
    assert "the record agrees with neither" in found.sentence()


def test_a_fault_of_the_replaying_execution(guard: Guard, recorded: StoredCall) -> None:
    """The first answer is struck, the executions that look into it are not."""
    backend: Any = guard.backend

    class Struck:
        def __getattr__(self, name: str) -> Any:
            return getattr(backend, name)

        def generate(self, request: Any, **options: Any) -> Generation:
            place = {"layer": 1, "stage": "mlp_residual", "row": position(recorded, STEP)}
            with inject(**place, element=1, bit=22):
                generation: Generation = backend.generate(request, **options)
            return generation

    class Guarding:
        policy = guard.policy
        backend = Struck()

    _, found = deep(recorded, Guarding())  # type: ignore[arg-type]
    assert (found.conclusion, found.step) == ("replay", STEP)
    assert "the replaying execution itself went wrong" in found.sentence()


def test_executions_that_fail(
    guard: Guard, recorded: StoredCall, monkeypatch: pytest.MonkeyPatch
) -> None:
    def retrace(*arguments: Any, **options: Any) -> LayerTrace:
        raise NonFinite(0, "layer 0", "NaN")

    monkeypatch.setattr(guard.backend, "retrace", retrace, raising=False)
    result, found = deep(with_digest(recorded), guard)
    assert (result.status, found.conclusion) == ("diverged", "unable")
    assert "left the finite numbers at layer 0" in found.sentence()


def with_digest(call: StoredCall) -> StoredCall:
    return calls.with_tokens(
        call,
        lambda tokens: msgspec.structs.replace(tokens, digests=bytes(32) + tokens.digests[32:]),
    )


def test_nothing_differs(guard: Guard, recorded: StoredCall) -> None:
    result, found = deep(with_layers(recorded, guard), guard)
    assert (result.status, found.conclusion) == ("verified", "same")
    result, found = deep(recorded, guard)
    assert (result.status, found.conclusion) == ("verified", "unable")
    assert "recorded no digests of its layers" in found.sentence()


@pytest.mark.parametrize("length", [1, 31, 512, 32 * LAYERS * len(STAGES) * 12 + 32])
def test_layer_digests_that_can_not_be_compared(
    guard: Guard, recorded: StoredCall, length: int
) -> None:
    call = calls.with_tokens(
        recorded, lambda tokens: msgspec.structs.replace(tokens, layers=bytes(length))
    )
    result, found = deep(call, guard)
    assert (result.status, found.conclusion) == ("diverged", "malformed")
    assert replay_call(call, guard=guard).status == "verified"


def test_layers_are_not_compared_unless_asked_for(guard: Guard, recorded: StoredCall) -> None:
    call = with_layers(recorded, guard, layer=0, stage="qkv", row=position(recorded, 1), element=0,
                       bit=3)  # fmt: skip
    assert replay_call(call, guard=guard).status == "verified"


def test_what_is_no_matter_of_layers(guard: Guard, recorded: StoredCall, tmp_path: Path) -> None:
    with Guard(lambda messages: "fine", [], tmp_path / "log") as callable_guard:
        _, call = calls.chat(callable_guard)
        _, found = deep(call, callable_guard)
        assert found.conclusion == "unable"
    (record,) = (record for record in recorded.records if record.record is recorded.result)
    other = msgspec.structs.replace(
        record, record=msgspec.structs.replace(record.record, verdict="flag")
    )
    altered = msgspec.structs.replace(
        recorded, records=tuple(other if each is record else each for each in recorded.records)
    )
    result, found = deep(altered, guard)
    assert (result.status, found.conclusion) == ("diverged", "elsewhere")

    def prompted(event: Any) -> Any:
        ids = (event.generation.prompt_ids[0] ^ 1, *event.generation.prompt_ids[1:])
        generation = msgspec.structs.replace(
            event.generation,
            prompt_ids=ids,
            tokens=msgspec.structs.replace(event.generation.tokens, digests=bytes(384)),
        )
        return msgspec.structs.replace(event, generation=generation)

    _, found = deep(calls.with_events(recorded, prompted), guard)
    assert found.conclusion == "prompt"


def test_deep_in_a_process_of_its_own(guard: Guard, recorded: StoredCall) -> None:
    call = faulty(guard, recorded, layer=0, stage="attention", step=1)
    assert guard.log is not None
    with ReplayLog(guard.log.path) as log:
        result = log.replay(call.call_id, deep=True)
        slow = log.replay(call.call_id, deep=True, regenerate=True)
    assert result.deep is not None
    assert (result.status, result.deep.conclusion) == ("diverged", "past")
    assert slow.mode == "token by token"
    assert slow.deep == result.deep
    assert guard.replay(recorded.call_id, deep=True).status == "verified"


def test_traced_calls_record_their_layers(model: Path, tmp_path: Path) -> None:
    with Guard(Local(model, trace_layers=True), [], tmp_path / "log") as traced:
        _, call = calls.chat(traced)
        trace = trace_of(call)
        assert len(trace.layers) == 32 * LAYERS * len(STAGES) * len(trace.ids)
        result, found = deep(call, traced)
        assert (result.status, found.conclusion) == ("verified", "same")
        flipped = faulty(traced, call, layer=1, stage="rope", step=3)
        _, found = deep(flipped, traced)
        assert (found.layer, found.stage, found.step) == (1, "rope", 3)
    with Guard(f"local:{model}", [], tmp_path / "plain") as plain:
        assert trace_of(calls.chat(plain)[1]) == msgspec.structs.replace(trace, layers=b"")
