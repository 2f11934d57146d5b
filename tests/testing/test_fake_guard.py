"""The fake guard: real but for the model, the clock and chance; and the fixtures around it."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from isonomy.sdk import (
    Allow,
    AskHuman,
    BackendError,
    Block,
    Flag,
    Guard,
    Retry,
    ToolCall,
    check,
    hookimpl,
    on_input,
    on_output,
    testing,
)
from isonomy.sdk.events import Effect, Failed, Judged
from isonomy.sdk.generation import Scorer
from isonomy.sdk.testing import FakeGuard, ScriptedModel


def quiet(text: str) -> bool:
    return not text.isupper()


def test_verdicts_of_the_call_and_of_checks() -> None:
    with FakeGuard([quiet], "HELLO") as guard:
        assert guard.chat("hello").blocked
        guard.assert_verdict("block")
        guard.assert_verdict("block", reason="returned False")
        guard.assert_verdict("block", check="quiet", stage="post_validate")
        guard.assert_verdict("allow", check="quiet", stage="pre_filter")
        guard.assert_asked(1)
        guard.chat("HELLO")
        guard.assert_verdict("block", stage="pre_filter")
        guard.assert_asked(1)
        assert [len(reply.events) for reply in guard.replies] == [3, 1]
        guard.assert_verdict("allow", stage="pre_filter", reply=guard.replies[0])


def test_assertions_tell_what_happened() -> None:
    with FakeGuard([on_output(quiet)], "hello") as guard:
        with pytest.raises(AssertionError, match="no call yet"):
            guard.assert_verdict("allow")
        guard.chat("hello")
        with pytest.raises(AssertionError, match=r"came to allow .*not block") as caught:
            guard.assert_verdict("block")
        assert "post_validate quiet: judged candidate/0: allow" in str(caught.value)
        with pytest.raises(AssertionError, match="no verdict block by quiet at any stage"):
            guard.assert_verdict("block", check="quiet")
        with pytest.raises(AssertionError, match="with 'zzz' in its reason"):
            guard.assert_verdict("allow", check="quiet", reason="zzz")
        with pytest.raises(AssertionError, match="asked 1 times, not 0"):
            guard.assert_not_asked()
        with pytest.raises(AssertionError, match="took \\[\\], not \\['x'\\]"):
            guard.assert_effects("x")
        guard.assert_no_failures()


def test_failures_are_told() -> None:
    def broken(text: str) -> bool:
        raise ValueError("no")

    with FakeGuard([on_input(broken)]) as guard:
        guard.chat("hello")
        with pytest.raises(AssertionError, match="1 checks failed") as caught:
            guard.assert_no_failures()
        assert "error, ValueError: no" in str(caught.value)
        assert [event.error for event in guard.events(Failed)] == ["ValueError"]


class World:
    """Takes one of each through its context."""

    @hookimpl
    def post_validate(self, ctx: Any) -> Any:
        said = f"{ctx.now():%Y-%m-%d %H:%M:%S} {ctx.rng.random():.3f} {ctx.secret('key')}"
        try:
            said += f" {ctx.effect('lookup', lambda: 1 / 0)}"
        except ZeroDivisionError:
            said += " divided"
        return Flag(f"{said} {ctx.generate('Is it so?').text}")


def test_the_world_is_told_beforehand() -> None:
    effects: dict[str, Any] = {"lookup": "found"}
    now = datetime(2030, 2, 3, 4, 5, 6, tzinfo=UTC)
    with FakeGuard(
        [check(World(), id="world")], "answer", judge="yes", now=now, effects=effects,
        secrets={"key": "s3cret"},
    ) as guard:  # fmt: skip
        first = guard.chat("hello")
        guard.tick(60)
        second = guard.chat("hello")
        reasons = [reply.reason or "" for reply in (first, second)]
        assert reasons[0].startswith("2030-02-03 04:05:06 0.")
        assert reasons[0].endswith("[secret key] found yes")
        assert reasons[1].split()[1:] == ["04:06:06", *reasons[0].split()[2:]]
        guard.assert_effects("now", "rng", "key", "lookup")
        guard.assert_asked(2)
        guard.script.effects["lookup"] = ZeroDivisionError("x")
        assert " divided " in (guard.chat("hello").reason or "")
        guard.script.effects["lookup"] = lambda: "called"
        assert " called " in (guard.chat("hello").reason or "")
        del guard.script.effects["lookup"]
        assert " divided " in (guard.chat("hello").reason or "")


def test_further_backends_answer_by_name() -> None:
    class Judged_:
        @hookimpl
        def post_validate(self, ctx: Any) -> Any:
            return Flag(ctx.generate("?", backend="judge").text)

    with FakeGuard([Judged_()], judge="mine", backends={"judge": "named"}) as guard:
        assert guard.chat("hello").reason == "named"


def test_async_hooks_effects_and_judges() -> None:
    class Async:
        @hookimpl
        async def post_validate(self, ctx: Any) -> Any:
            async def lookup() -> str:
                return "done"

            said = await ctx.aeffect("lookup", lookup)
            return Flag(f"{said} {await ctx.aeffect('other', lookup)} "
                        f"{(await ctx.agenerate('?')).text}")  # fmt: skip

    with FakeGuard([Async()], judge="yes", effects={"lookup": "told"}) as guard:
        assert guard.chat("hello").reason == "told done yes"
        asyncio.run(guard.achat("hello"))
        assert guard.reply.reason == "told done yes"


def test_a_call_is_recorded_and_replayed(tmp_path: Path) -> None:
    with FakeGuard(
        [World()], judge="yes", secrets={"key": "s3cret"}, log=tmp_path / "log"
    ) as guard:
        call_id = guard.chat("hello").call_id
        result = guard.replay(call_id)
        assert result.status == "verified", result.sentence()


def test_answers_one_after_the_other() -> None:
    def sure(text: str) -> Any:
        return Retry("Be sure.") if "perhaps" in text else Allow()

    with FakeGuard([on_output(sure)], ["perhaps", "yes"]) as guard:
        assert guard.chat("is it?").text == "yes"
        guard.assert_asked(2)
        assert guard.model.requests[1].messages[-1].text == "Be sure."
        with pytest.raises(BackendError, match="asked 3 times, and has 2 answers"):
            guard.chat("is it?")


def test_answers_that_are_functions_parts_and_errors() -> None:
    with FakeGuard([], lambda messages: messages[-1].text[::-1]) as guard:
        assert guard.chat("abc").text == "cba"
    call = ToolCall("1", "lookup", {"x": 1})
    with FakeGuard([], (call,)) as guard:
        assert guard.chat("abc", tools=[]).output.content == (call,)
    with FakeGuard([], BackendError("down.", backend="x")) as guard, pytest.raises(BackendError):
        guard.chat("abc")


def test_streams_come_in_pieces() -> None:
    with FakeGuard([quiet], ScriptedModel("hello there", piece=3)) as guard:
        with guard.stream("hi") as stream:
            assert "".join(stream) == "hello there"
        guard.assert_verdict("allow", stage="post_validate")

        async def read() -> str:
            async with guard.astream("hi") as pieces:
                return "".join([piece async for piece in pieces])

        assert asyncio.run(read()) == "hello there"
        assert len(guard.replies) == 2
    pieces: list[str] = []
    model = ScriptedModel("hello there", piece=4)
    with Guard(model) as plain:
        plain.chat("hi")
    model.generate(model.requests[0], on_text=pieces.append)
    assert pieces == ["hell", "o th", "ere"]


def test_calls_that_go_on_are_remembered() -> None:
    def ask(text: str) -> Any:
        return AskHuman("is it?")

    with FakeGuard([on_output(ask)], "yes") as guard:
        waiting = guard.chat("hi")
        guard.assert_verdict("ask_human")
        assert guard.resume(waiting.token, "approve").text == "yes"
        assert guard.reply.text == "yes"
        waiting = guard.chat("hi")
        asyncio.run(guard.aresume(waiting.token, "reject"))
        assert (len(guard.replies), guard.reply.blocked) == (4, True)


def test_a_model_with_scores() -> None:
    assert not isinstance(ScriptedModel(), Scorer)
    model = ScriptedModel(scores={"yes": -0.1, "no": -2.0})
    assert isinstance(model, Scorer)

    class Scored:
        @hookimpl
        def post_validate(self, ctx: Any) -> Any:
            return Flag(str(ctx.logprobs("Is it?", ("yes", "no"))))

    with FakeGuard([Scored()], judge=model) as guard:
        assert guard.chat("hi").reason == "(-0.1, -2.0)"


def test_the_fixtures(fake_guard: Any, scripted_model: Any, isonomy_log: Path) -> None:
    def no(text: str) -> Any:
        return Block("no")

    guard = fake_guard([on_output(no)], scripted_model(["one", "two"]), log=isonomy_log)
    assert guard.chat("x").blocked
    assert guard.events(Judged, stage="post_validate")[0].verdict == Block("no")
    assert guard.events(Effect) == []
    assert isonomy_log.is_dir()


def test_the_example_of_the_package_runs() -> None:
    (block,) = re.findall(r"```python\n(.*?)```", testing.__doc__ or "", re.S)
    exec(block, {"__name__": "example"})


def test_pytest_s_start_imports_little() -> None:
    program = (
        "import sys; import pytest; before = set(sys.modules); "
        "import isonomy.sdk.testing.fixtures; new = set(sys.modules) - before; "
        "print(sorted(m for m in new if m.startswith('isonomy.sdk.testing')), "
        "sorted(new & {'duckdb', 're2', 'numpy', 'structlog', 'isonomy.replay'}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout == "['isonomy.sdk.testing', 'isonomy.sdk.testing.fixtures'] []\n"
