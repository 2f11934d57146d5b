"""A replay that differs says where first, with both values, and never goes live to get along."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.replay import calls

from isonomy.replay import StoredCall
from isonomy.replay.comparison import first_difference, first_step
from isonomy.replay.replaying import Replayed, replay_call
from isonomy.sdk import Allow, Flag, Guard, Retry, Sampling, TokenTrace, check, hookimpl, on_output
from isonomy.sdk.events import Judged

STEP = 5


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return calls.tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def recorded(model: Path, tmp_path_factory: pytest.TempPathFactory) -> StoredCall:
    log = tmp_path_factory.mktemp("recorded") / "log"
    with Guard(f"local:{model}", [], log) as guard:
        _, call = calls.chat(guard)
    assert replay_call(call).status == "verified"
    return call


def trace_of(call: StoredCall) -> TokenTrace:
    (event,) = call.events
    assert event.generation.tokens is not None
    return event.generation.tokens


def flipped(body: bytes, place: int) -> bytes:
    return body[:place] + bytes([body[place] ^ 1]) + body[place + 1 :]


@pytest.mark.parametrize("step", [0, STEP, 11])
def test_the_logits_of_one_step(recorded: StoredCall, step: int) -> None:
    truth = trace_of(recorded)
    altered = calls.with_tokens(
        recorded,
        lambda tokens: msgspec.structs.replace(tokens, digests=flipped(tokens.digests, 32 * step)),
    )
    result = replay_call(altered)
    assert (result.status, result.exit_status) == ("diverged", 1)
    found = result.difference
    assert found is not None
    assert (found.event, found.type, found.where, found.step) == (
        0,
        "generated",
        "logits digest",
        step,
    )
    here = truth.digests[32 * step : 32 * (step + 1)]
    assert (found.recorded, found.replayed) == (flipped(here, 0).hex(), here.hex())
    assert f"token step {step}: logits digest: recorded" in result.sentence()


def test_one_bit_of_a_log_probability(recorded: StoredCall) -> None:
    truth = trace_of(recorded)
    altered = calls.with_tokens(
        recorded,
        lambda tokens: msgspec.structs.replace(tokens, logprobs=flipped(tokens.logprobs, 4 * STEP)),
    )
    found = replay_call(altered).difference
    assert found is not None
    assert (found.where, found.step) == ("log-probability", STEP)
    (bits,) = struct.unpack_from("<I", truth.logprobs, 4 * STEP)
    assert f"0x{bits:08x}" in found.replayed
    assert f"0x{bits ^ 1:08x}" in found.recorded


def test_one_token(recorded: StoredCall) -> None:
    truth = trace_of(recorded)
    other = (*truth.ids[:STEP], truth.ids[STEP] + 1, *truth.ids[STEP + 1 :])
    altered = calls.with_tokens(recorded, lambda tokens: msgspec.structs.replace(tokens, ids=other))
    found = replay_call(altered).difference
    assert found is not None
    assert (found.where, found.step) == ("token", STEP)
    assert (found.recorded, found.replayed) == (truth.ids[STEP] + 1, truth.ids[STEP])


def test_a_record_that_ends_early(recorded: StoredCall) -> None:
    altered = calls.with_tokens(
        recorded,
        lambda tokens: msgspec.structs.replace(
            tokens,
            ids=tokens.ids[:STEP],
            texts=tokens.texts[:STEP],
            logprobs=tokens.logprobs[: 4 * STEP],
            digests=tokens.digests[: 32 * STEP],
        ),
    )
    found = replay_call(altered).difference
    assert found is not None
    assert (found.step, found.recorded) == (STEP, None)


def test_the_running_chain(recorded: StoredCall) -> None:
    altered = calls.with_tokens(
        recorded, lambda tokens: msgspec.structs.replace(tokens, chain=flipped(tokens.chain, 31))
    )
    found = replay_call(altered).difference
    assert found is not None
    assert (found.where, found.step) == ("chain", None)
    assert found.replayed == trace_of(recorded).chain.hex()


def test_the_first_of_two_steps() -> None:
    old = TokenTrace(
        ids=(1, 2), texts=("a", "b"), logprobs=bytes(8), digests=bytes(64), chain=bytes(32)
    )
    new = msgspec.structs.replace(old, ids=(1, 3), logprobs=b"\x01" + bytes(7))
    found = first_step(old, new)
    assert found is not None
    assert (found["step"], found["where"]) == (0, "log-probability")
    assert first_step(old, old) is None


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 12},
        {"temperature": 0.8999999999999999},
        {"top_k": 1},
    ],
    ids=str,
)
def test_other_sampling(recorded: StoredCall, change: dict[str, Any]) -> None:
    altered = calls.with_intent(
        recorded,
        lambda intent: msgspec.structs.replace(
            intent, sampling=msgspec.structs.replace(intent.sampling, **change)
        ),
    )
    result = replay_call(altered)
    assert result.status == "diverged"


def replayed(checks: list[Any], log: Path, backend: Any = None, *, times: int = 1) -> Replayed:
    with Guard(backend or (lambda messages: "fine"), checks, log) as guard:
        reply = guard.chat("hello", sampling=calls.SAMPLING)
        return guard.replay(reply.call_id)


COUNTER: Iterator[int] = itertools.count()
"""The world that the checks below reach behind their context's back."""


def test_a_check_that_reaches_around_its_context(tmp_path: Path) -> None:
    def moody(text: str) -> Any:
        return Flag("odd") if next(COUNTER) % 2 else Allow()

    result = replayed([on_output(lambda text: True), on_output(moody)], tmp_path / "log")
    assert (result.status, result.exit_status) == ("diverged", 1)
    found = result.difference
    assert found is not None
    assert (found.event, found.type, found.stage, found.check) == (
        2,
        "judged",
        "post_validate",
        "moody",
    )
    assert {found.recorded, found.replayed} == {"allow", "flag"}
    assert "event 2 (judged at post_validate, check moody)" in result.sentence()


def test_a_check_that_reaches_around_its_context_and_asks_again(tmp_path: Path) -> None:
    """The verdict is the finding, not the model that it made the pipeline ask."""
    first = []

    def moody(text: str) -> Any:
        first.append(text)
        return Allow() if len(first) == 1 else Retry("again")

    result = replayed([on_output(moody)], tmp_path / "log")
    assert result.status == "diverged"
    assert result.difference is not None
    assert (result.difference.event, result.difference.check) == (1, "moody")
    assert result.reason is not None
    assert "the record holds no further answer" in result.reason


class AsksMore:
    @hookimpl
    def pre_filter(self, ctx: Any) -> None:
        names = ["one", "two"] if next(COUNTER) in self.first else ["one", "two", "three"]
        for name in names:
            ctx.effect(name, lambda: 1)

    first = range(0)


class AsksOther(AsksMore):
    @hookimpl
    def pre_filter(self, ctx: Any) -> None:
        ctx.effect("one" if next(COUNTER) in self.first else "other", lambda: 1)


class AsksClock(AsksMore):
    @hookimpl
    def pre_filter(self, ctx: Any) -> None:
        ctx.effect("now", lambda: 1) if next(COUNTER) in self.first else ctx.now()


class AsksModel(AsksMore):
    @hookimpl
    def post_validate(self, ctx: Any) -> Flag:
        said = ctx.generate("?", sampling=Sampling(max_tokens=2)).text
        if next(COUNTER) not in self.first:
            ctx.generate("?", sampling=Sampling(max_tokens=2))
        return Flag(said)

    @hookimpl
    def pre_filter(self, ctx: Any) -> None: ...


class SwallowsIt(AsksMore):
    @hookimpl
    def pre_filter(self, ctx: Any) -> None:
        if next(COUNTER) not in self.first:
            try:
                ctx.effect("more", lambda: 1)
            except Exception:
                return


@pytest.mark.parametrize("local", [False, True], ids=["callable", "local"])
@pytest.mark.parametrize("kind", [AsksMore, AsksOther, AsksClock, AsksModel, SwallowsIt])
def test_a_check_that_asks_for_something_else(
    kind: type[AsksMore], local: bool, model: Path, tmp_path: Path
) -> None:
    now = next(COUNTER)
    kind.first = range(now, now + 2)
    reached = []

    def answer(messages: Any) -> str:
        reached.append(messages)
        return "fine"

    asking = check(kind(), id="asking", on_error="allow")
    backend = f"local:{model}" if local else answer
    with Guard(backend, [asking], tmp_path / "log") as guard:
        reply = guard.chat("hello", sampling=calls.SAMPLING)
        count = len(reached)
        result = guard.replay(reply.call_id)
    assert (result.status, result.exit_status) == ("diverged", 1)
    assert result.difference is None
    assert result.reason is not None
    assert "check 'asking'" in result.reason
    assert len(reached) == count


def test_a_check_that_asks_less(tmp_path: Path) -> None:
    class AsksLess:
        @hookimpl
        def pre_filter(self, ctx: Any) -> Allow:
            if next(once, None) is not None:
                ctx.effect("look", lambda: 1)
            return Allow()

    once = iter([1])
    result = replayed([check(AsksLess(), id="less")], tmp_path / "log")
    assert result.status == "diverged"
    assert result.difference is not None
    assert result.difference.where == "event"
    assert result.difference.recorded == "effect at pre_filter by less"
    assert result.difference.replayed == "judged at pre_filter by less"


def test_an_event_more_or_less() -> None:
    events = [
        Judged(
            sequence=number,
            stage="pre_filter",
            check="c",
            target="message/0",
            verdict=Allow(),
            before="sha256:00",
        )
        for number in range(2)
    ]
    for old, new, said in (
        (events, events[:1], "happened"),
        (events[:1], events, "did not happen"),
    ):
        found = first_difference(old, new)
        assert found is not None
        assert (found.event, found.recorded) == (1, said)
    other = msgspec.structs.replace(events[1], duration_ns=5)
    assert first_difference(events, [events[0], other]) is None


@pytest.mark.parametrize(
    ("field", "value"),
    [("verdict", "flag"), ("finish_reason", "length"), ("error", "BackendError")],
)
def test_a_result_that_does_not_follow(tmp_path: Path, field: str, value: str) -> None:
    with Guard(lambda messages: "fine", [], tmp_path / "log") as guard:
        _, call = calls.chat(guard)
    records = [
        msgspec.structs.replace(
            record, record=msgspec.structs.replace(record.record, **{field: value})
        )
        if record.record is call.result
        else record
        for record in call.records
    ]
    result = replay_call(msgspec.structs.replace(call, records=tuple(records)))
    assert result.status == "diverged"
    assert result.difference is not None
    assert (result.difference.type, result.difference.where) == ("result", field)
    assert result.difference.recorded == value
