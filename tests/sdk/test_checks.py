"""Checks: what may be one, what it may return, what its failures count as."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import pytest
from tests.sdk.world import SEED, Scripted, in_three_ways, of_type, run, steady

from isonomy.sdk import (
    Allow,
    Block,
    ConfigError,
    Flag,
    Guard,
    PluginError,
    Policy,
    Replace,
    Span,
    check,
    hookimpl,
    on_input,
    on_output,
)
from isonomy.sdk.checks import Check
from isonomy.sdk.events import Failed, Judged


def three_ways(*checks: Any, prompt: str = "hello") -> Any:
    """The reply to a prompt; the same sync, async, and sync inside a running loop."""
    replies = in_three_ways(lambda: Guard(Scripted(), checks), prompt, sampling=SEED)
    told = [(steady(r.events), r.verdict, r.check, r.reason, r.text) for r in replies]
    assert told[0] == told[1] == told[2]
    return replies[0]


# What a plain callable returns.


def verdicts_and_bools() -> list[tuple[Any, Any]]:
    return [
        (True, Allow()),
        (False, Block("the check returned False")),
        (Flag("odd", score=0.5, spans=(Span(0, 1, "x"),)), None),
        (Block("no"), None),
        (Allow(labels=("fine",)), None),
        (Replace("other", reason="why"), None),
    ]


@pytest.mark.parametrize(("value", "verdict"), verdicts_and_bools())
def test_bools_and_verdicts(value: Any, verdict: Any) -> None:
    reply = three_ways(on_output(lambda text: value))
    (judged,) = of_type(reply, Judged)
    assert judged.verdict == (verdict or value)
    assert judged.duration_ns > 0


NONSENSE: list[tuple[Any, str]] = [
    (None, "not NoneType. It returned nothing: does every path end in a return?"),
    (re.search("h", "hello"), "A match object is truthy when the pattern was found"),
    (1, "not int."),
    ("block", "not str."),
    (Block, "not StructMeta."),
    ((True, "fine"), "not tuple."),
    (Block("no", score=float("nan")), "the block verdict is malformed: a verdict's score"),
    (Block(None), "the block verdict is malformed"),  # type: ignore[arg-type]
    (Flag("odd", spans=((0, 1),)), "the flag verdict is malformed"),  # type: ignore[arg-type]
    (Block("\ud800"), "the block verdict is malformed"),
    (Replace(5), "the replace verdict is malformed"),  # type: ignore[arg-type]
]


@pytest.mark.parametrize(("value", "said"), NONSENSE, ids=[repr(v)[:30] for v, _ in NONSENSE])
def test_nonsense_fails_closed_and_says_so(value: Any, said: str) -> None:
    reply = three_ways(on_output(lambda text: value))
    (failed,) = of_type(reply, Failed)
    assert (failed.kind, failed.error, failed.became) == ("invalid", "TypeError", "block")
    assert said in failed.message
    assert reply.verdict == "block"
    assert reply.reason == f"check 'check' broke its contract: {failed.message}"
    assert of_type(reply, Judged) == []


@pytest.mark.parametrize("value", [True, False, "x"])
def test_a_hook_returns_a_verdict_or_none_and_no_bool(value: Any) -> None:
    class Plugin:
        @hookimpl
        def pre_filter(self) -> Any:
            return value

    (failed,) = of_type(three_ways(Plugin()), Failed)
    assert failed.kind == "invalid"
    assert "a hook must return a verdict or None" in failed.message


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("not even that")


@pytest.mark.parametrize(
    ("error", "name", "message"),
    [
        (ValueError("oops"), "ValueError", "oops"),
        (KeyError(), "KeyError", "KeyError"),
        (TimeoutError("mine"), "TimeoutError", "mine"),
        (ValueError("a\ud800"), "ValueError", "a?"),
        (Unprintable(), "Unprintable", "Unprintable"),
        (SystemExit(3), "RuntimeError", "SystemExit in a check"),
        (KeyboardInterrupt(), "RuntimeError", "KeyboardInterrupt in a check"),
        (asyncio.CancelledError(), "RuntimeError", "CancelledError in a check"),
        (StopIteration("x"), "RuntimeError", None),
    ],
)
@pytest.mark.parametrize("is_async", [False, True])
def test_whatever_a_check_raises_is_a_failure_of_the_check(
    error: BaseException, name: str, message: str | None, is_async: bool
) -> None:
    def raising(text: str) -> bool:
        raise error

    async def araising(text: str) -> bool:
        raise error

    reply = three_ways(on_output(araising if is_async else raising))
    (failed,) = of_type(reply, Failed)
    assert (failed.kind, failed.became, reply.verdict) == ("error", "block", "block")
    assert failed.error == name
    assert failed.message == message or (message is None and "StopIteration" in failed.message)


def test_an_async_check_that_exits_leaves_the_others_working() -> None:
    async def leaving(text: str) -> bool:
        sys.exit(1)

    async def fine(text: str) -> bool:
        return True

    with Guard(Scripted(), [check(leaving, on_error="flag"), fine]) as guard:
        for _ in range(2):
            reply = guard.chat("hello")
            assert [e.verdict for e in of_type(reply, Judged)] == [Allow(), Allow()]


# Every shape of callable.


def plain(text: str, forbidden: str = "hello") -> bool:
    return forbidden not in text


async def coroutine(text: str) -> bool:
    await asyncio.sleep(0)
    return "hello" not in text


class Instance:
    def __call__(self, text: str) -> bool:
        return "hello" not in text

    def method(self, text: str) -> bool:
        return "hello" not in text

    async def amethod(self, text: str) -> bool:
        return "hello" not in text

    @staticmethod
    def static(text: str) -> bool:
        return "hello" not in text


class AsyncInstance:
    async def __call__(self, text: str) -> bool:
        await asyncio.sleep(0)
        return "hello" not in text


async def awaited(text: str, forbidden: str) -> bool:
    return forbidden not in text


SHAPES: list[Callable[[str], bool | Awaitable[bool]]] = [
    plain,
    coroutine,
    lambda text: "hello" not in text,
    lambda text: coroutine(text),
    partial(plain, forbidden="hello"),
    partial(awaited, forbidden="hello"),
    Instance(),
    Instance().method,
    Instance().amethod,
    Instance.static,
    AsyncInstance(),
    partial(AsyncInstance()),
]


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_of_callable_is_a_check(shape: Any) -> None:
    passed, blocked = three_ways(shape, prompt="good day"), three_ways(shape, prompt="hello")
    assert (passed.verdict, passed.text) == ("allow", "You said: good day")
    assert (blocked.verdict, blocked.reason) == ("block", "the check returned False")


def test_hooks_may_be_async_and_take_any_of_their_arguments() -> None:
    class Plugin:
        @hookimpl
        async def pre_filter(self, ctx: Any, messages: Any) -> Any:
            await asyncio.sleep(0)
            return Flag(messages[0].text)

        @hookimpl
        def post_validate(self, call: Any) -> Any:
            return Flag(call.id) if call.session != call.id else Allow()

    assert three_ways(Plugin()).reason == "hello"


# Deadlines.


def hanging(text: str) -> bool:
    threading.Event().wait(30)
    return True


async def ahanging(text: str) -> bool:
    await asyncio.sleep(30)
    return True


async def blocking_the_loop(text: str) -> bool:
    time.sleep(1.5)  # what no coroutine may do
    return True


def handing_over(text: str) -> Any:
    return ahanging(text)


@pytest.mark.parametrize("check_function", [hanging, ahanging, blocking_the_loop, handing_over])
def test_a_check_that_hangs_fails_closed(check_function: Any) -> None:
    started = time.perf_counter()
    reply = three_ways(on_output(check_function, timeout=0.05, id="slow"))
    assert time.perf_counter() - started < 15
    (failed,) = of_type(reply, Failed)
    assert (failed.kind, failed.error, failed.message, failed.became) == (
        "timeout",
        "TimeoutError",
        "no answer within 0.05 s",
        "block",
    )
    assert reply.reason == "check 'slow' timed out: no answer within 0.05 s"
    assert failed.duration_ns >= 50_000_000


def test_a_wrapper_and_its_coroutine_share_one_deadline() -> None:
    async def second(text: str) -> bool:
        await asyncio.sleep(0.15)
        return True

    def first(text: str) -> Any:
        time.sleep(0.15)
        return second(text)

    (failed,) = of_type(three_ways(on_output(first, timeout=0.25)), Failed)
    assert failed.kind == "timeout"


def test_a_hanging_check_does_not_hold_up_the_caller_s_loop() -> None:
    async def main() -> int:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                await asyncio.sleep(0.01)
                ticks += 1

        ticking = asyncio.create_task(tick())
        with Guard(Scripted(), [on_output(hanging, timeout=0.3)]) as guard:
            await guard.achat("hello")
        ticking.cancel()
        return ticks

    assert run(main()) >= 5


def test_a_coroutine_that_blocks_does_not_stall_later_ones() -> None:
    async def fine(text: str) -> bool:
        return True

    policy = [on_output(blocking_the_loop, timeout=0.05, on_error="flag"), on_output(fine)]
    with Guard(Scripted(), policy) as guard:
        reply = guard.chat("hello")
    assert [type(event).__name__ for event in reply.events[1:]] == ["Failed", "Judged"]
    assert reply.verdict == "flag"


def test_a_process_can_exit_while_checks_hang() -> None:
    program = textwrap.dedent(
        """
        import asyncio, time
        from isonomy.sdk import Guard, check
        from tests.sdk.world import Scripted

        def hanging(text): time.sleep(60)
        async def ahanging(text): await asyncio.sleep(60)
        async def blocking(text): time.sleep(60)

        checks = [check(f, timeout=0.05, on_error="flag") for f in (hanging, ahanging, blocking)]
        guard = Guard(Scripted(), checks)
        print(guard.chat("hello").verdict, asyncio.run(guard.achat("hello")).verdict)
        """
    )
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert (done.stdout, done.stderr, done.returncode) == ("flag flag\n", "", 0)
    assert time.perf_counter() - started < 20


def test_cancelling_a_call_cancels_its_check() -> None:
    started, cancelled = threading.Event(), threading.Event()

    async def waiting(text: str) -> bool:
        started.set()
        try:
            await asyncio.sleep(30)
        finally:
            cancelled.set()
        return True

    async def main() -> None:
        with Guard(Scripted(), [waiting]) as guard:
            call = asyncio.create_task(guard.achat("hello"))
            assert await asyncio.to_thread(started.wait, 10)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            assert await asyncio.to_thread(cancelled.wait, 10)

    run(main())


# on_error.


def erring(text: str) -> bool:
    raise ValueError("oops")


def nonsensical(text: str) -> Any:
    return None


@pytest.mark.parametrize("on_error", ["block", "allow", "flag"])
@pytest.mark.parametrize(
    ("function", "kind"), [(erring, "error"), (hanging, "timeout"), (nonsensical, "invalid")]
)
def test_on_error_decides_what_each_failure_counts_as(
    function: Any, kind: str, on_error: Any
) -> None:
    timeout = 0.03 if function is hanging else 10.0
    reply = three_ways(
        on_output(function, on_error=on_error, timeout=timeout), on_output(lambda text: True)
    )
    (failed,) = of_type(reply, Failed)
    assert (failed.kind, failed.became) == (kind, on_error)
    assert reply.verdict == on_error
    assert reply.blocked is (on_error == "block")
    assert len(of_type(reply, Judged)) == (0 if on_error == "block" else 1)
    assert (reply.reason is None) is (on_error == "allow")


def test_failing_open_without_another_check_is_flagged_as_unjudged() -> None:
    reply = three_ways(on_output(erring, on_error="allow"))
    assert [event.type for event in reply.events] == ["generated", "failed", "unjudged"]
    assert (reply.verdict, reply.text) == ("flag", "You said: hello")


# Terms, ids, refusals.


class Struct:
    """A plugin whose instances are equal."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Struct)

    def __hash__(self) -> int:
        return 1

    @hookimpl
    def post_validate(self) -> Any:
        return Allow()


def test_two_equal_plugins_are_two_checks() -> None:
    reply = three_ways(Struct(), Struct())
    assert [event.check for event in of_type(reply, Judged)] == ["Struct", "Struct-2"]


def test_one_plugin_twice_is_asked_twice() -> None:
    plugin = Struct()
    assert [c.id for c in Policy([plugin, plugin]).checks] == ["Struct", "Struct-2"]


def test_observers_of_one_class_are_two_checks() -> None:
    class Witness:
        @hookimpl
        def observe(self) -> None:
            return None

    policy = Policy([Witness(), Witness()])
    assert [(c.id, c.stages) for c in policy.checks] == [("Witness", ()), ("Witness-2", ())]
    assert len(policy.observers) == 2


def test_ids_made_up_avoid_those_that_were_given() -> None:
    policy = Policy([plain, plain, check(erring, id="plain"), check(erring, id="plain-3")])
    assert [c.id for c in policy.checks] == ["plain-2", "plain-4", "plain", "plain-3"]


def test_a_renumbered_check_keeps_its_terms() -> None:
    first = check(plain, on_error="flag", timeout=3, stages=["post_validate"])
    second = Policy([plain, first]).checks[1]
    assert (second.id, second.on_error, second.timeout, second.stages) == (
        "plain-2", "flag", 3, ("post_validate",),
    )  # fmt: skip
    assert first.id == "plain"


def test_the_same_id_given_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^policy\.checks: two checks have the id 'a'"):
        Policy([check(plain, id="a"), check(erring, id="a")])


def test_stages_are_put_in_the_pipeline_s_order() -> None:
    assert check(plain).stages == ("pre_filter", "post_validate")
    assert check(plain, stages=["post_validate", "pre_filter"]).stages == check(plain).stages
    assert (on_input(plain).stages, on_output(plain).stages) == (
        ("pre_filter",), ("post_validate",),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("terms", "key", "said"),
    [
        ({"stages": ["post_validat"]}, "plain.stages", "Did you mean 'post_validate'"),
        ({"stages": ["rank"]}, "plain.stages", "acts at: pre_filter, post_validate"),
        ({"stages": []}, "plain.stages", "at least one stage"),
        ({"on_error": "ignore"}, "plain.on_error", "block, allow or flag"),
        ({"timeout": 0}, "plain.timeout", "between 0 and 86400"),
        ({"timeout": float("nan")}, "plain.timeout", "between 0 and 86400"),
        ({"timeout": float("inf")}, "plain.timeout", "between 0 and 86400"),
        ({"timeout": "10"}, "plain.timeout", "between 0 and 86400"),
        ({"timeout": True}, "plain.timeout", "between 0 and 86400"),
    ],
)
def test_wrong_terms_are_refused_with_their_key(terms: dict[str, Any], key: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check(plain, **terms)
    assert caught.value.key == key
    assert said in str(caught.value)


class Misspelt:
    @hookimpl
    def post_validat(self) -> None: ...


class WrongArgument:
    @hookimpl
    def pre_filter(self, message: Any) -> None: ...


class AsyncObserver:
    @hookimpl
    async def observe(self) -> None: ...


class Mute:
    def pre_filter(self) -> None:
        """Not marked: it would never be called."""


@pytest.mark.parametrize(
    ("thing", "said"),
    [
        (5, "no method marked @hookimpl and can't be called"),
        ("pii", "no method marked @hookimpl"),
        (Mute(), "no method marked @hookimpl"),
        (Struct, "is a class; a check is an instance: Struct"),
        (Misspelt(), "Did you mean 'post_validate'"),
        (WrongArgument(), "message"),
        (AsyncObserver(), "observe is async"),
    ],
)
def test_what_is_no_check_is_refused_when_the_policy_is_made(thing: Any, said: str) -> None:
    with pytest.raises(PluginError) as caught:
        Policy([thing])
    assert said in str(caught.value)
    assert caught.value.plugin


@pytest.mark.parametrize("checks", ["pii", {"a": 1}, plain, 5, None])
def test_a_policy_is_a_list(checks: Any) -> None:
    with pytest.raises(ConfigError, match="must be a list of checks"):
        Policy(checks)


@pytest.mark.parametrize("max_rounds", [-1, 101])
def test_rounds_are_bounded(max_rounds: int) -> None:
    with pytest.raises(ConfigError, match="between 0 and 100") as caught:
        Policy([], max_rounds=max_rounds)
    assert caught.value.key == "policy.max_rounds"


def test_inline_checks_run_in_the_caller_s_thread() -> None:
    class Inline:
        inline = True
        threads: list[Any] = []  # noqa: RUF012

        @hookimpl
        def post_validate(self) -> Any:
            self.threads.append(threading.current_thread())
            return Allow()

    class Elsewhere(Inline):
        inline = False
        threads: list[Any] = []  # noqa: RUF012

    three_ways(Inline(), Elsewhere())
    assert set(Inline.threads) == {threading.current_thread()}
    assert threading.current_thread() not in Elsewhere.threads


def test_an_inline_check_may_still_be_async() -> None:
    class Both:
        inline = True

        @hookimpl
        async def post_validate(self) -> Any:
            return Flag("awaited")

    assert three_ways(Both()).reason == "awaited"


def test_a_module_of_hooks_is_a_plugin() -> None:
    import types

    module = types.ModuleType("rules")

    def post_validate(candidate: Any) -> Any:
        return Flag("from a module")

    module.post_validate = hookimpl(post_validate)  # type: ignore[attr-defined]
    assert Check(module).stages == ("post_validate",)
    assert three_ways(module).reason == "from a module"
