"""What plugins and backends return and raise is theirs: it is contained, recorded, replayable."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.sdk.world import Memory, Scripted, events_in, in_three_ways, of_type, run

from isonomy.replay import ReplayLog
from isonomy.sdk import (
    Allow,
    BackendError,
    Flag,
    Generation,
    Guard,
    Sampling,
    Text,
    check,
    hookimpl,
    on_output,
)
from isonomy.sdk.events import BackendFailed, Effect, Failed
from isonomy.sdk.records import Result


class Acting:
    """Does one thing before the model is asked, or after it answered."""

    def __init__(self, act: Callable[[Any], Any], *, late: bool = True, inline: bool = False):
        self.act = act
        self.late = late
        self.inline = inline

    @hookimpl
    def pre_filter(self, ctx: Any) -> Any:
        return Allow() if self.late else self.act(ctx)

    @hookimpl
    def post_validate(self, ctx: Any) -> Any:
        return self.act(ctx) if self.late else Allow()


# What a check returns and raises.


class Leaving:
    """Raises from wherever it is looked at."""

    def __getattribute__(self, name: str) -> Any:
        if name == "__class__":
            raise SystemExit(1)
        return object.__getattribute__(self, name)

    def __getattr__(self, name: str) -> Any:
        raise SystemExit(1)


class Sleeping:
    def __getattr__(self, name: str) -> Any:
        time.sleep(2)


class Exploding(Exception):
    def __str__(self) -> str:
        raise SystemExit(2)


class Dozing(Exception):
    def __str__(self) -> str:
        time.sleep(2)
        return "late"


def test_what_is_returned_is_looked_at_where_nothing_escapes() -> None:
    def make() -> Guard:
        return Guard(Scripted(), [check(lambda text: Leaving(), id="c")])

    for reply in in_three_ways(make, "hello"):
        (failed,) = of_type(reply, Failed)
        assert (failed.kind, failed.error) == ("invalid", "RuntimeError")
        assert (failed.message, reply.verdict) == ("SystemExit in a check", "block")


def test_what_is_returned_is_looked_at_within_the_deadline() -> None:
    with Guard(Scripted(), [check(lambda text: Sleeping(), timeout=0.1)]) as guard:
        began = time.monotonic()
        reply = guard.chat("hello")
        assert time.monotonic() - began < 1.5
    assert [event.kind for event in of_type(reply, Failed)] == ["timeout"]


@pytest.mark.parametrize(("error", "kind"), [(Exploding(), "error"), (Dozing(), "timeout")])
def test_an_error_is_described_where_nothing_escapes(error: Exception, kind: str) -> None:
    def raising(text: str) -> bool:
        raise error

    with Guard(Scripted(), [on_output(raising, timeout=0.1)]) as guard:
        (failed,) = of_type(guard.chat("hello"), Failed)
    assert failed.kind == kind


@pytest.mark.parametrize("error", [SystemExit(3), GeneratorExit(), asyncio.CancelledError()])
def test_an_inline_check_that_exits_is_a_failed_check(error: BaseException) -> None:
    def act(ctx: Any) -> Any:
        raise error

    def make() -> Guard:
        return Guard(Scripted(), [Acting(act, inline=True)])

    for reply in in_three_ways(make, "hello"):
        (failed,) = of_type(reply, Failed)
        assert failed.message == f"{type(error).__name__} in a check"
        assert reply.blocked


def test_ctrl_c_during_an_inline_check_is_the_caller_s() -> None:
    def act(ctx: Any) -> Any:
        raise KeyboardInterrupt

    with Guard(Scripted(), [Acting(act, inline=True)]) as guard, pytest.raises(KeyboardInterrupt):
        guard.chat("hello")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("inline", [False, True])
def test_a_child_that_a_check_forks_does_not_go_on_with_the_call(
    inline: bool,
) -> None:
    child: list[int] = []

    def act(ctx: Any) -> Any:
        pid = os.fork()
        if pid:
            child.append(os.waitpid(pid, 0)[1])
        return Allow()

    log = Memory()
    with Guard(Scripted(), [Acting(act, inline=inline)], log) as guard:
        assert not guard.chat("hello").blocked
    assert [os.waitstatus_to_exitcode(status) for status in child] == [70]


def test_a_check_that_may_fail_leaves_the_reason_true() -> None:
    def failing(text: str) -> bool:
        raise ValueError

    with Guard(Scripted(), [check(failing, stages=["pre_filter"], on_error="allow")]) as guard:
        reply = guard.chat("hello")
    assert (reply.verdict, reply.reason) == ("flag", "no check judged it at pre_filter")


# What a check passes to its context.


@pytest.mark.parametrize(
    "act",
    [
        lambda ctx: ctx.effect(5, lambda: 1),
        lambda ctx: ctx.effect(None, lambda: 1),
        lambda ctx: ctx.effect(b"x", lambda: 1),
        lambda ctx: ctx.effect("\ud800", lambda: 1),
        lambda ctx: ctx.secret(5),
        lambda ctx: ctx.generate("x", sampling=Sampling(stop=("\ud800",))),
        lambda ctx: ctx.generate("x", sampling="x"),
        lambda ctx: ctx.generate(5),
    ],
)
@pytest.mark.parametrize("late", [False, True])
def test_what_a_record_can_not_hold_fails_the_check_and_nothing_else(act: Any, late: bool) -> None:
    log = Memory()
    with Guard(Scripted(), [Acting(act, late=late)], log, secrets=lambda _: "s") as guard:
        reply = guard.chat("hello")
    (failed,) = of_type(reply, Failed)
    assert (failed.kind, failed.error, reply.verdict) == ("error", "InputError", "block")
    assert not of_type(reply, Effect)
    assert events_in(log.only(Result)) is not None


def test_a_secret_is_text() -> None:
    with Guard(Scripted(), [Acting(lambda ctx: ctx.secret("k"))], secrets=lambda _: 5) as guard:  # type: ignore[arg-type,return-value]
        (failed,) = of_type(guard.chat("hello"), Failed)
    assert (failed.error, "must return text" in failed.message) == ("PluginError", True)


# What a backend gives.


@pytest.mark.parametrize(
    "wrong",
    [
        {"model": 5},
        {"prompt": 5},
        {"tokens": "x"},
        {"prompt_ids": ("a",)},
        {"timings": {"t": float("nan")}},
        {"usage": "x"},
        {"usage": None},
        {"finish_reason": None},
        {"attempts": (1,)},
        {"runtime": {"x": object()}},
    ],
)
def test_a_generation_of_wrong_types_is_a_backend_error_and_recorded(wrong: dict[str, Any]) -> None:
    fields = {"content": (Text("x"),), "finish_reason": "stop", "model": "m", **wrong}
    log = Memory()
    guard = Guard(lambda _: Generation(**fields), [], log)
    with guard, pytest.raises(BackendError, match="can't be used"):
        guard.chat("hello")
    (failed,) = events_in(log.only(Result))
    assert isinstance(failed, BackendFailed)


class Leaver(Scripted):
    """A backend that raises what no backend should."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error

    def generate(self, request: Any, **_: Any) -> Generation:
        raise self.error


@pytest.mark.parametrize("error", [SystemExit(1), asyncio.CancelledError(), Exploding()])
@pytest.mark.parametrize("is_async", [False, True])
def test_a_backend_that_exits_is_a_backend_error(error: BaseException, is_async: bool) -> None:
    log = Memory()
    with Guard(Leaver(error), [], log) as guard:

        def ask() -> Any:
            return run(guard.achat("hello")) if is_async else guard.chat("hello")

        with pytest.raises(BackendError):
            ask()
    assert [type(event) for event in events_in(log.only(Result))] == [BackendFailed]


def test_an_async_function_that_exits_does_not_hold_up_the_next_call() -> None:
    async def leaving(messages: Any) -> str:
        sys.exit(1)

    with Guard(leaving) as guard:
        for _ in range(2):
            with pytest.raises(BackendError, match="SystemExit"):
                guard.chat("hello")
            with pytest.raises(BackendError, match="SystemExit"):
                run(guard.achat("hello"))


# Replays of what failed.


def test_a_recorded_failure_stands_in_for_the_model_and_is_counted(tmp_path: Path) -> None:
    def asleep(messages: Any) -> str:
        raise ValueError("asleep")

    def asking(ctx: Any) -> Any:
        try:
            return Flag(ctx.generate("x").text)
        except BackendError:
            return Allow()

    with Guard(asleep, [Acting(asking, late=False)], tmp_path) as guard:
        with pytest.raises(BackendError):
            guard.chat("hello")
        with ReplayLog(tmp_path) as log:
            (call,) = [row[0] for row in log.sql("select call_id from calls").fetchall()]
        replayed = guard.replay(call)
    assert (replayed.status, replayed.generations, replayed.stand_ins) == ("verified", 0, 2)
    assert replayed.sentence().endswith(
        "; 2 recorded failures stood in for the model, which can't be asked again"
    )


def again(tmp_path: Path, act: Any, **options: Any) -> Any:
    with Guard(lambda _: "fine", [Acting(act)], tmp_path, **options) as guard:
        reply = guard.chat("hello")
        replayed = guard.replay(reply.call_id)
    assert replayed.status == "verified", replayed.sentence()
    return reply


@pytest.mark.parametrize("secrets", [None, {}.get])
def test_a_missing_secret_is_missing_again(tmp_path: Path, secrets: Any) -> None:
    reply = again(tmp_path, lambda ctx: ctx.secret("key"), secrets=secrets)
    (effect,) = of_type(reply, Effect)
    assert effect.error is not None
    assert effect.error[0] == "PluginError"
    assert [event.error for event in of_type(reply, Failed)] == ["PluginError"]


def test_a_missing_secret_may_be_caught(tmp_path: Path) -> None:
    def act(ctx: Any) -> Any:
        try:
            return Flag(ctx.secret("key"))
        except Exception as error:
            return Flag(f"none: {error}")

    assert again(tmp_path, act).reason.startswith("none: no secret named 'key'")


@pytest.mark.parametrize("caught", [False, True])
def test_an_effect_that_exits_is_recorded_and_exits_again(tmp_path: Path, caught: bool) -> None:
    def act(ctx: Any) -> Any:
        try:
            ctx.effect("leave", lambda: sys.exit("gone"))
        except SystemExit as error:
            if not caught:
                raise
            return Flag(f"it left: {error}")
        except Exception:
            return Flag("not this way")

    reply = again(tmp_path, act)
    assert [event.error for event in of_type(reply, Effect)] == [("SystemExit", "gone")]
    assert reply.reason == (
        "it left: gone" if caught else "check 'Acting' failed: SystemExit in a check"
    )
