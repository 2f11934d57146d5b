"""The plugin's door to the outside world."""

from __future__ import annotations

import asyncio
import json
import random
import threading
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest
from tests.sdk.world import (
    SEED,
    Memory,
    Scripted,
    broken,
    events_in,
    in_three_ways,
    of_type,
    run,
    steady,
    told,
)

from isonomy.sdk import (
    Allow,
    BackendError,
    Block,
    Candidate,
    Flag,
    Guard,
    InputError,
    LogError,
    Message,
    PluginError,
    Replace,
    Reply,
    Sampling,
    check,
    hookimpl,
)
from isonomy.sdk.events import BackendFailed, Effect, Failed, Generated, Judged
from isonomy.sdk.records import Intent, Opening


class Doing:
    """Runs a function of the context at one stage; its return is the verdict."""

    def __init__(self, act: Any, stage: str = "pre_filter") -> None:
        def hook(ctx: Any) -> Any:
            return act(ctx)

        async def ahook(ctx: Any) -> Any:
            return await act(ctx)

        setattr(self, stage, hookimpl(ahook if asyncio.iscoroutinefunction(act) else hook))


def doing(
    act: Any, *, log: Any = None, backend: Any = None, stage: str = "pre_filter", **options: Any
) -> Reply:
    secrets = options.pop("secrets", None)
    plugin = check(Doing(act, stage), id="doing", **options)
    with Guard(backend or Scripted(), [plugin], log, secrets=secrets) as guard:
        return guard.chat("hello", sampling=SEED)


def within(ctx: Any, take: Any) -> Allow:
    ctx.effect("outer", lambda: take(ctx) and None)
    return Allow()


async def awithin(ctx: Any, take: Any) -> Allow:
    async def outer() -> None:
        take(ctx)

    await ctx.aeffect("outer", outer)
    return Allow()


@pytest.mark.parametrize("how", [within, awithin])
@pytest.mark.parametrize(
    "take",
    [
        lambda ctx: ctx.secret("key"),
        lambda ctx: ctx.now(),
        lambda ctx: ctx.effect("inner", lambda: 1),
        lambda ctx: ctx.generate("what?"),
    ],
)
def test_an_effect_asks_for_nothing_of_its_own(tmp_path: Path, how: Any, take: Any) -> None:
    """A replay does not do it again, and would miss what it asked for."""
    backend, doing = Scripted(), Doing(lambda ctx: how(ctx, take))
    with Guard(backend, [doing], tmp_path, secrets=lambda _: "hunter2") as guard:
        reply = guard.chat("hello", sampling=SEED)
        assert (reply.verdict, backend.requests) == ("block", [])
        assert reply.reason is not None
        assert "inside of an effect" in reply.reason
        replayed = guard.replay(reply.call_id)
        assert replayed.status == "verified", replayed.sentence()


# Clock and randomness.


def test_now_is_the_wall_clock_in_utc_and_recorded() -> None:
    times: list[datetime] = []

    def act(ctx: Any) -> Allow:
        times.append(ctx.now())
        return Allow()

    before = datetime.now(UTC)
    (effect,) = of_type(doing(act), Effect)
    assert before <= times[0] <= datetime.now(UTC)
    assert times[0].tzinfo is UTC
    assert datetime.fromtimestamp(effect.value / 1e9, UTC) == times[0]
    assert (effect.kind, effect.name, effect.stage, effect.check) == (
        "now", "now", "pre_filter", "doing",
    )  # fmt: skip


def test_rng_is_recorded_by_its_seed_once_an_invocation() -> None:
    drawn: list[float] = []

    def act(ctx: Any) -> Allow:
        drawn.extend([ctx.rng.random(), ctx.rng.random()])
        return Allow()

    first, second = of_type(doing(act), Effect), of_type(doing(act), Effect)
    again = random.Random(first[0].value)
    assert drawn[:2] == [again.random(), again.random()]
    assert len(first) == 1
    assert first[0].value != second[0].value


# Effects.


@pytest.mark.parametrize("value", [None, True, 2**63, -0.5, "é", [1, [2]], {"a": {"b": [None]}}])
def test_an_effect_is_recorded_with_its_value(value: Any) -> None:
    got: list[Any] = []

    def act(ctx: Any) -> Allow:
        got.append(ctx.effect("look", lambda: value))
        return Allow()

    log = Memory()
    (effect,) = of_type(doing(act, log=log), Effect)
    assert (effect.kind, effect.name, effect.value, effect.error) == ("effect", "look", value, None)
    assert got == [value]
    assert events_in(log.only(Intent))[0] == effect


@pytest.mark.parametrize(
    "value",
    [
        object(), float("nan"), [float("inf")], (1, 2), {1, 2}, {1: "a"}, b"x", "\ud800",
        date(2026, 1, 1), Message.of("user", "x"),
    ],
    ids=lambda value: repr(value)[:20],
)  # fmt: skip
def test_an_effect_that_a_replay_could_not_hand_back_is_an_error(value: Any) -> None:
    def act(ctx: Any) -> Allow:
        with pytest.raises(InputError, match="the effect 'look' returned what"):
            ctx.effect("look", lambda: value)
        return Allow()

    async def give() -> Any:
        return value

    async def aact(ctx: Any) -> Allow:
        with pytest.raises(InputError, match="the effect 'look' returned what"):
            await ctx.aeffect("look", give)
        return Allow()

    for reply in (doing(act), doing(aact)):
        assert of_type(reply, Failed) == []
        (effect,) = of_type(reply, Effect)
        assert effect.value is None
        assert effect.error[0] == "InputError"


def test_an_effect_s_exception_is_recorded_and_raised() -> None:
    def act(ctx: Any) -> Any:
        try:
            ctx.effect("fetch", lambda: 1 / 0)
        except ZeroDivisionError as error:
            return Flag(str(error))

    reply = doing(act)
    (effect,) = of_type(reply, Effect)
    assert effect.error == ("ZeroDivisionError", "division by zero")
    assert reply.reason == "division by zero"


def test_an_effect_s_exception_that_nobody_catches_fails_the_check() -> None:
    reply = doing(lambda ctx: ctx.effect("fetch", lambda: 1 / 0))
    (failed,) = of_type(reply, Failed)
    assert (failed.error, failed.kind, reply.verdict) == ("ZeroDivisionError", "error", "block")


def test_events_of_a_check_come_before_its_verdict() -> None:
    def act(ctx: Any) -> Allow:
        ctx.effect("one", lambda: 1)
        ctx.now()
        ctx.generate("judge")
        return Allow()

    assert [event.type for event in doing(act).events] == [
        "effect", "effect", "generated", "judged", "generated",
    ]  # fmt: skip


# The opening record.


def test_the_opening_is_durable_before_the_first_effect_and_written_once() -> None:
    log, seen = Memory(), []

    def act(ctx: Any) -> Allow:
        for name in ("one", "two"):
            ctx.effect(name, lambda: seen.append(list(log.kinds)))
        return Allow()

    doing(act, log=log)
    assert seen == [["Opening"], ["Opening"]]
    assert log.kinds == ["Opening", "Intent", "Result"]
    opening = log.only(Opening)
    assert (opening.record.check, opening.record.effect) == ("doing", "one")  # type: ignore[union-attr]
    assert opening.payloads == ()


@pytest.mark.parametrize("way", ["generate", "aeffect", "agenerate"])
def test_every_way_to_the_world_opens(way: str) -> None:
    log, backend = Memory(), Scripted()
    backend.when_asked.append(lambda request: seen.append(list(log.kinds)))
    seen: list[list[str]] = []

    async def look() -> None:
        seen.append(list(log.kinds))

    async def act(ctx: Any) -> Allow:
        if way == "generate":
            ctx.generate("judge")
        elif way == "aeffect":
            await ctx.aeffect("look", look)
        else:
            await ctx.agenerate("judge")
        return Allow()

    doing(act, log=log, backend=backend)
    assert seen[0] == ["Opening"]
    assert log.kinds == ["Opening", "Intent", "Result"]


def test_no_opening_for_the_clock_randomness_and_secrets_nor_after_the_intent() -> None:
    def act(ctx: Any) -> Allow:
        ctx.now(), ctx.rng, ctx.secret("key")
        return Allow()

    log = Memory()
    doing(act, log=log, secrets=lambda name: "s3cret")
    assert log.kinds == ["Intent", "Result"]
    log = Memory()
    doing(lambda ctx: ctx.effect("x", lambda: None), log=log, stage="post_validate")
    assert log.kinds == ["Intent", "Result"]


def test_without_a_durable_opening_no_effect_happens() -> None:
    log, happened = Memory(fail_at=[0, 1]), []

    def act(ctx: Any) -> Allow:
        for _ in range(2):
            with pytest.raises(LogError, match="disk is full"):
                ctx.effect("touch", lambda: happened.append(1))
        ctx.effect("touch", lambda: happened.append(2))
        return Allow()

    doing(act, log=log)
    assert happened == [2]
    assert log.kinds == ["Opening", "Intent", "Result"]


# Secrets.

CANARY = 'pa"ss\\wörd'


def leaky(ctx: Any) -> Any:
    value = ctx.secret("key")
    echoed = ctx.effect("call", lambda: {"echo": f"sent {value}", value: 1})
    assert echoed["echo"] == f"sent {CANARY}"
    ctx.generate(f"is {value} fine?")
    return Flag(f"used {value}", labels=(value,))


def test_a_secret_is_in_nothing_that_is_recorded_shown_or_returned() -> None:
    log, events = Memory(), []

    class Exporter:
        @hookimpl
        def observe(self, event: Any) -> None:
            events.append(event)

    backend = Scripted(lambda messages: "fine")
    with Guard(backend, [check(Doing(leaky), id="doing"), Exporter()], log,
               secrets={"key": CANARY}.get) as guard:  # fmt: skip
        reply = guard.chat("hello")
    assert CANARY in backend.requests[0].messages[0].text  # it was really used
    for what in (log.everything().decode(), repr(reply), repr(events)):
        assert 'pa"ss' not in what
        assert "wörd" not in what
        assert "[secret key]" in what
    assert reply.reason == "used [secret key]"
    flag = of_type(reply, Judged)[0].verdict
    assert flag == Flag("used [secret key]", labels=("[secret key]",))
    secret, effect = of_type(reply, Effect)
    assert (secret.kind, secret.name, secret.value) == ("secret", "key", None)
    assert effect.value == {"echo": "sent [secret key]", "[secret key]": 1}
    assert list(reply.events) == events


def test_a_secret_in_an_error_is_scrubbed() -> None:
    def act(ctx: Any) -> Any:
        raise ValueError(f"bad key {ctx.secret('key')}")

    log = Memory()
    reply = doing(act, log=log, secrets=lambda name: CANARY)
    (failed,) = of_type(reply, Failed)
    assert failed.message == "bad key [secret key]"
    assert reply.reason == "check 'doing' failed: bad key [secret key]"
    assert (
        b"wa" not in log.everything().replace(b"was", b"") or b"w\xc3\xb6rd" not in log.everything()
    )


@pytest.mark.parametrize("ensure_ascii", [True, False])
def test_a_secret_in_json_inside_of_text_is_scrubbed(ensure_ascii: bool) -> None:
    def act(ctx: Any) -> Any:
        key = ctx.secret("key")
        raw = ctx.effect("post", lambda: json.dumps({"sent": key}, ensure_ascii=ensure_ascii))
        assert json.loads(raw) == {"sent": CANARY}
        return Allow()

    reply = doing(act, secrets=lambda name: CANARY)
    assert of_type(reply, Effect)[1].value == '{"sent": "[secret key]"}'


def test_a_secret_inside_of_another_does_not_uncover_it() -> None:
    values = {"short": "abcd", "long": "abcdefgh"}

    def act(ctx: Any) -> Any:
        return Flag(f"{ctx.secret('short')} {ctx.secret('long')}")

    assert doing(act, secrets=values.get).reason == "[secret short] [secret long]"


def test_a_secret_that_looks_like_the_record_leaves_it_readable() -> None:
    def act(ctx: Any) -> Any:
        return Flag(f"{ctx.secret('key')}!")

    log = Memory()
    reply = doing(act, log=log, secrets=lambda name: "reason")
    assert reply.reason == "[secret key]!"
    assert told(events_in(log.only(Intent))) == [
        ("effect", "pre_filter", "doing", "-"),
        ("judged", "pre_filter", "doing", "flag"),
    ]


@pytest.mark.parametrize("secrets", [None, {}.get])
def test_a_missing_secret_fails_the_check_and_names_it(secrets: Any) -> None:
    (failed,) = of_type(doing(lambda ctx: ctx.secret("key"), secrets=secrets), Failed)
    assert failed.error == "PluginError"
    assert "no secret named 'key'" in failed.message


# Nested generation.


def judge_sync(ctx: Any) -> Any:
    return Flag(ctx.generate("is it fine?", sampling=Sampling(temperature=0.0)).text)


async def judge_async(ctx: Any) -> Any:
    return Flag((await ctx.agenerate("is it fine?", sampling=Sampling(temperature=0.0))).text)


@pytest.mark.parametrize("act", [judge_sync, judge_async])
@pytest.mark.parametrize("stage", ["pre_filter", "post_validate"])
def test_a_nested_generation_is_recorded_in_full(act: Any, stage: str) -> None:
    replies = in_three_ways(
        lambda: Guard(Scripted(), [check(Doing(act, stage), id="judge")]), "hello", sampling=SEED
    )
    assert steady(replies[0].events) == steady(replies[1].events) == steady(replies[2].events)
    (nested,) = [e for e in of_type(replies[0], Generated) if e.purpose == "nested"]
    assert (nested.stage, nested.check, nested.generation.text) == (
        stage, "judge", "You said: is it fine?",
    )  # fmt: skip
    assert replies[0].reason == "You said: is it fine?"
    assert (nested.sampling.temperature, nested.sampling.seed) == (0.0, 7)
    assert nested.sampling.candidate == nested.candidate > 0


def test_nested_generations_draw_noise_of_their_own() -> None:
    def act(ctx: Any) -> Any:
        ctx.generate("one"), ctx.generate("one")
        return Allow()

    with Guard(Scripted(), [Doing(act), Doing(act, "post_validate")]) as guard:
        candidates = [event.candidate for event in of_type(guard.chat("hello"), Generated)]
    assert len(set(candidates)) == 5
    assert candidates.count(0) == 1


def test_what_a_hanging_check_had_begun_does_not_renumber_the_next() -> None:
    backend, release = Scripted(), threading.Event()

    def slow(request: Any) -> None:
        if request.messages[-1].text == "slow":
            release.wait(10)

    def candidates(act: Any) -> list[int]:
        with Guard(backend, [check(Doing(act), timeout=0.1, on_error="flag"), Doing(quick)]) as g:
            return [e.candidate for e in of_type(g.chat("hello"), Generated)]

    def quick(ctx: Any) -> Allow:
        ctx.generate("quick")
        return Allow()

    def failing(ctx: Any) -> Any:
        raise ValueError

    backend.when_asked.append(slow)
    assert candidates(lambda ctx: ctx.generate("slow")) == candidates(failing)
    release.set()


def test_a_nested_generation_takes_messages_in_every_shape() -> None:
    backend = Scripted()

    def act(ctx: Any) -> Any:
        ctx.generate([{"role": "system", "content": "judge"}, Message.of("user", "x")])
        with pytest.raises(InputError, match="empty"):
            ctx.generate("")
        return Allow()

    doing(act, backend=backend)
    assert backend.requests[0].messages == (Message.of("system", "judge"), Message.of("user", "x"))
    assert len(backend.requests) == 2


def test_a_nested_failure_is_recorded_and_fails_the_check_alone() -> None:
    backend = Scripted(lambda messages: broken() if messages[-1].text == "judge" else "fine")
    reply = doing(lambda ctx: ctx.generate("judge"), backend=backend, on_error="flag")
    (nested,) = of_type(reply, BackendFailed)
    assert (nested.purpose, nested.error, nested.check) == ("nested", "BackendError", "doing")
    assert of_type(reply, Failed)[0].error == "BackendError"
    assert (reply.verdict, reply.text) == ("flag", "fine")


def test_a_check_may_catch_a_nested_failure() -> None:
    def act(ctx: Any) -> Any:
        try:
            return ctx.generate("judge")
        except BackendError as error:
            return Block(str(error))

    assert doing(act, backend=Scripted([broken()])).reason == "the parrot is asleep. Wake it."


# After the hook.


def test_a_context_is_closed_when_its_hook_has_returned() -> None:
    kept: list[Any] = []

    def act(ctx: Any) -> Allow:
        kept.append(ctx)
        return Allow()

    reply = doing(act)
    count = len(reply.events)
    context = kept[0]
    for use in (
        context.now,
        lambda: context.rng,
        lambda: context.secret("key"),
        lambda: context.effect("x", lambda: kept.append("happened")),
        lambda: context.generate("x"),
        lambda: run(context.aeffect("x", None)),
        lambda: run(context.agenerate("x")),
    ):
        with pytest.raises(PluginError, match="'doing' used its context after") as caught:
            use()
        assert caught.value.plugin == "doing"
    assert len(kept) == 1
    assert len(reply.events) == count


@pytest.mark.parametrize("way", ["effect", "generate"])
def test_what_was_under_way_at_the_deadline_leaves_no_trace(way: str) -> None:
    release, done = threading.Event(), threading.Event()
    outcome: list[str] = []
    backend, log = Scripted(), Memory()

    def wait() -> int:
        assert release.wait(10)
        return 1

    def act(ctx: Any) -> Allow:
        try:
            if way == "effect":
                ctx.effect("slow", wait)
            else:
                ctx.generate("slow")
        except PluginError as error:
            outcome.append(str(error))
        finally:
            done.set()
        return Allow()

    backend.when_asked.append(lambda request: wait() if request.messages[-1].text == "slow" else 0)

    class Later:
        @hookimpl
        def post_validate(self, candidate: Candidate) -> Any:
            release.set()
            assert done.wait(10)
            return Replace("late")

    policy = [check(Doing(act), id="doing", timeout=0.05, on_error="flag"), Later()]
    with Guard(backend, policy, log) as guard:
        reply = guard.chat("hello")
    assert [event.type for event in reply.events] == ["failed", "generated", "judged"]
    assert "used its context after it had returned or timed out" in outcome[0]
    assert reply.text == "late"
