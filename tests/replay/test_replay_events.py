"""Every kind of event replays, on a model that answers anew and on one whose answers stand in."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.replay import calls

from isonomy.sdk import (
    Allow,
    Block,
    Candidate,
    Critique,
    Document,
    Flag,
    Generation,
    Guard,
    InputError,
    Message,
    Ranking,
    Replace,
    Retry,
    Sampling,
    Text,
    ToolCall,
    ToolResult,
    check,
    hookimpl,
    on_input,
    on_output,
)
from isonomy.sdk.canonical import canonical
from isonomy.sdk.events import Effect, Failed, Generated, Judged

MODELS = ("local", "callable")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return calls.tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(params=MODELS)
def backend(request: pytest.FixtureRequest, model: Path) -> Any:
    return f"local:{model}" if request.param == "local" else answering()


def answering() -> Callable[[list[dict[str, Any]]], str]:
    """A model that never says the same twice: only its recorded answers can stand in."""
    numbers = itertools.count()
    return lambda messages: f"answer {next(numbers)} to {messages[-1]['content']}"


class World:
    """The outside: counts how often it was reached, and never gives the same twice."""

    def __init__(self) -> None:
        self.reached = 0

    def __call__(self) -> dict[str, Any]:
        self.reached += 1
        return {"reading": self.reached, "more": [None, 1.5, "é"]}

    async def later(self) -> dict[str, Any]:
        await asyncio.sleep(0)
        return self()


WORLD = World()
"""Shared by the plugins below: they hold no state of their own."""


class Known(Exception):
    """An error of the application, with a constructor that a replay can't call."""

    def __init__(self, first: int, second: int) -> None:
        super().__init__(f"{first} and {second}")


class Effects:
    @hookimpl
    def pre_filter(self, ctx: Any) -> Flag:
        first, second = ctx.effect("first", WORLD), ctx.effect("second", WORLD)
        return Flag(reason=f"{first} {second}", score=0.5)


class Chance:
    @hookimpl
    def post_validate(self, ctx: Any) -> Flag:
        return Flag(reason=f"{ctx.rng.random()} {ctx.rng.getrandbits(70)}", score=ctx.rng.random())


class Clock:
    @hookimpl
    def pre_filter(self, ctx: Any) -> Flag:
        return Flag(reason=f"{ctx.now().isoformat()} {ctx.now().isoformat()}")


class Secret:
    @hookimpl
    def pre_filter(self, ctx: Any) -> Flag:
        key = ctx.secret("key")
        return Flag(reason=str(ctx.effect("ask", lambda: len(key) + WORLD()["reading"])))


class Judge:
    @hookimpl
    def post_validate(self, candidate: Candidate, ctx: Any) -> Flag:
        first = ctx.generate("is this fine?", sampling=Sampling(max_tokens=5, temperature=1.0))
        second = ctx.generate((Message.of("user", candidate.text or "?"),))
        return Flag(reason=f"{first.text} / {second.text}")


class Catching:
    """Takes another way for each error that its effects raise."""

    @hookimpl
    def pre_filter(self, ctx: Any) -> Flag:
        took = []
        for name, error in (
            ("builtin", TimeoutError("too slow")),
            ("with constructor", UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad")),
            ("operating system", ConnectionResetError(104, "reset by peer")),
            ("key", KeyError("missing")),
            ("ours", Known(1, 2)),
        ):
            try:
                ctx.effect(name, lambda error=error: raising(error))
            except TimeoutError as caught:
                took.append(f"slow: {caught}")
            except ValueError as caught:
                took.append(f"value: {caught}")
            except ConnectionError as caught:
                took.append(f"connection: {caught}")
            except LookupError as caught:
                took.append(f"lookup: {caught}")
            except Known as caught:
                took.append(f"known: {caught}")
        return Flag(reason="; ".join(took))


class Raising:
    @hookimpl
    def pre_filter(self, ctx: Any) -> None:
        ctx.effect("break", lambda: raising(Known(3, 4)))


def raising(error: Exception) -> Any:
    WORLD()
    raise error


class NotPlain:
    @hookimpl
    def pre_filter(self, ctx: Any) -> Flag:
        try:
            ctx.effect("tuple", lambda: (1, WORLD()))
        except InputError as error:
            return Flag(reason=str(error))
        raise AssertionError("a tuple was recorded")


class Again:
    """Asks for another answer twice, as the outside says."""

    @hookimpl
    def post_validate(self, ctx: Any) -> Any:
        if ctx.effect("good enough?", lambda: WORLD() and WORLD.reached % 3 == 0):
            return Allow()
        return Retry("try harder")


class NewMessages:
    @hookimpl
    def pre_filter(self, messages: tuple[Message, ...]) -> Replace:
        return Replace((Message.of("system", "be brief"), messages[-1].with_text("what else?")))

    @hookimpl
    def post_validate(self, candidate: Candidate) -> Any:
        if candidate.text.startswith("<"):
            return None
        return Replace(f"<{candidate.text}>", reason="framed")


class Reader:
    @hookimpl
    def retrieved(self, documents: tuple[Document, ...], ctx: Any) -> Replace | None:
        kept = tuple(document for document in documents if "bad" not in document.text)
        return Replace(kept, reason=str(ctx.now())) if kept != documents else None


class Constitution:
    @hookimpl
    def critique(self, candidate: Candidate, ctx: Any) -> list[Critique]:
        return [Critique("be short", 0.25, f"{len(candidate.text)} characters, {ctx.rng.random()}")]

    @hookimpl
    def revise(self, candidate: Candidate, critiques: Any, ctx: Any) -> Candidate:
        text = f"{candidate.text} ({critiques[0].reason}; {ctx.effect('look', WORLD)['reading']})"
        return candidate.with_content((Text(text),))

    @hookimpl
    def rank(self, candidates: Any) -> Ranking:
        return Ranking((0,), (0.75,))


class Silent:
    @hookimpl
    def critique(self, ctx: Any) -> None:
        ctx.now()  # an effect with no event of its own after it

    @hookimpl
    def pre_filter(self) -> None:
        return None


class Later:
    """Async all the way."""

    @hookimpl
    async def pre_filter(self, ctx: Any) -> Flag:
        seen = await ctx.aeffect("later", WORLD.later)
        judged = await ctx.agenerate("and this?", sampling=Sampling(max_tokens=3))
        return Flag(reason=f"{seen} {judged.text}")

    @hookimpl
    async def post_validate(self, ctx: Any) -> Flag:
        try:
            await ctx.aeffect("later", self.failing)
        except OSError as error:
            return Flag(reason=str(error))
        raise AssertionError("nothing was raised")

    async def failing(self) -> None:
        WORLD()
        raise OSError("gone")


class Nonsense:
    @hookimpl
    def pre_filter(self) -> Any:
        return "yes"

    @hookimpl
    def post_validate(self) -> Any:
        raise RuntimeError("broken")


CASES: dict[str, tuple[list[Any], set[str]]] = {
    "effects": ([Effects()], {"effect", "judged", "generated"}),
    "chance": ([Chance()], {"effect", "judged"}),
    "clock": ([Clock()], {"effect"}),
    "secret": ([Secret()], {"effect"}),
    "nested generation": ([Judge(), check(Judge(), id="another")], {"generated", "judged"}),
    "errors caught": ([Catching()], {"effect", "judged"}),
    "error not caught": ([check(Raising(), on_error="flag")], {"effect", "failed"}),
    "effect that is not plain": ([NotPlain()], {"effect", "judged"}),
    "retry": ([Again()], {"generated", "effect"}),
    "replaced messages and text": ([NewMessages()], {"judged"}),
    "constitution": ([Constitution()], {"critiqued", "revised", "ranked"}),
    "abstained": ([Silent()], {"unjudged", "effect"}),
    "async": ([Later()], {"effect", "generated"}),
    "broken contract": ([check(Nonsense(), on_error="flag")], {"failed"}),
    "callables": (
        [on_input(lambda text: True), on_output(lambda text: Flag(text[:3]))],
        {"judged"},
    ),
    "no checks": ([], {"generated"}),
    "everything": (
        [Effects(), Chance(), Later(), Again(), NewMessages(), Constitution(), Silent(), Judge()],
        {"effect", "judged", "critiqued", "revised", "ranked", "generated"},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_every_kind_of_event(case: str, backend: Any, tmp_path: Path) -> None:
    checks, expected = CASES[case]
    WORLD.reached = 0
    with Guard(backend, checks, tmp_path / "log", secrets={"key": "s3cret!"}.get) as guard:
        reply, _ = calls.chat(guard)
        reached = WORLD.reached
        result = guard.replay(reply.call_id)
    assert result.sentence().startswith("verified"), result.sentence()
    assert WORLD.reached == reached, "the replay reached the world"
    assert expected <= calls.kinds(reply.events)
    assert result.events == len(reply.events)
    generations = [event for event in reply.events if isinstance(event, Generated)]
    if callable(backend):
        assert (result.reexecuted, result.stand_ins, result.steps) == (0, len(generations), 0)
        assert "stood in for the model, which can't be asked again" in result.sentence()
    else:
        assert (result.reexecuted, result.stand_ins) == (len(generations), 0)
        assert result.steps == sum(len(event.generation.tokens.ids) for event in generations)


def test_async_callers(backend: Any, tmp_path: Path) -> None:
    checks, _ = CASES["everything"]
    with Guard(backend, checks, tmp_path / "log", secrets={"key": "s3cret!"}.get) as guard:
        reply = asyncio.run(guard.achat("hello there", sampling=calls.SAMPLING))
        assert guard.replay(reply.call_id).status == "verified"


HANGING = threading.Event()
"""Set when a test is over, so that no thread outlives it."""


@pytest.fixture
def hang() -> Iterator[None]:
    HANGING.clear()
    yield
    HANGING.set()


class Hangs:
    """Looks at the world, asks the model, hangs: at the stage that it is told to."""

    def _hang(self, ctx: Any) -> Any:
        ctx.effect("look", WORLD)
        ctx.generate("are you there?", sampling=Sampling(max_tokens=3))
        ctx.now()
        HANGING.wait(30)
        raise AssertionError("nobody waits for this")

    @hookimpl
    def pre_filter(self, ctx: Any) -> Any:
        return self._hang(ctx)

    @hookimpl
    def critique(self, ctx: Any) -> Any:
        return self._hang(ctx)

    @hookimpl
    def revise(self, ctx: Any) -> Any:
        return self._hang(ctx)

    @hookimpl
    def rank(self, ctx: Any) -> Any:
        return self._hang(ctx)

    @hookimpl
    def post_validate(self, ctx: Any) -> Any:
        return self._hang(ctx)


class AsyncHangs:
    @hookimpl
    async def post_validate(self, ctx: Any) -> Any:
        await ctx.aeffect("look", WORLD.later)
        await asyncio.sleep(30)


@pytest.mark.parametrize(
    "stages", [("pre_filter",), ("critique",), ("revise",), ("rank",), ("post_validate",)], ids=str
)
@pytest.mark.usefixtures("hang")
def test_timeouts_are_handed_back(backend: Any, stages: Any, tmp_path: Path) -> None:
    hanging = check(Hangs(), stages=stages, on_error="flag", timeout=0.25)
    with Guard(backend, [Silent(), hanging, Effects(), Again()], tmp_path / "log") as guard:
        WORLD.reached = 0
        reply, _ = calls.chat(guard)
        reached = WORLD.reached
        result = guard.replay(reply.call_id)
    timeouts = [event for event in reply.events if isinstance(event, Failed)]
    assert timeouts
    assert {event.kind for event in timeouts} == {"timeout"}
    assert "look" in {event.name for event in reply.events if isinstance(event, Effect)}
    assert result.sentence().startswith("verified"), result.sentence()
    assert WORLD.reached == reached, "the check was asked again"


@pytest.mark.parametrize("on_error", ["block", "allow", "flag"])
def test_a_timeout_counts_as_it_did(on_error: Any, tmp_path: Path) -> None:
    hanging = check(AsyncHangs(), on_error=on_error, timeout=0.1)
    with Guard(answering(), [hanging, on_output(lambda text: True)], tmp_path / "log") as guard:
        reply, _ = calls.chat(guard)
        assert guard.replay(reply.call_id).status == "verified"
    assert reply.verdict == on_error


def test_a_slower_machine_does_not_time_out(tmp_path: Path) -> None:
    """Times are not compared: what was in time when it was recorded has time on replay."""
    slow = threading.Event()

    def deliberate(text: str) -> bool:
        if slow.is_set():
            threading.Event().wait(0.4)
        return True

    with Guard(answering(), [check(deliberate, timeout=0.2)], tmp_path / "log") as guard:
        reply, _ = calls.chat(guard)
        assert all(isinstance(event, Judged | Generated) for event in reply.events)
        slow.set()
        assert guard.replay(reply.call_id).status == "verified"


def test_documents(backend: Any, tmp_path: Path) -> None:
    documents = (Document("a", "good things"), Document("b", "bad things"))
    with Guard(backend, [Reader()], tmp_path / "log") as guard:
        reply, stored = calls.chat(guard, documents=documents)
        assert guard.replay(reply.call_id).status == "verified"
    assert stored.request is not None
    assert stored.request.documents == documents
    (generated,) = [event for event in reply.events if isinstance(event, Generated)]
    said = canonical(tuple(stored.messages[number] for number in generated.messages)).decode()
    assert "good things" in said
    assert "bad things" not in said


def test_blocked_at_input(backend: Any, tmp_path: Path) -> None:
    def never(text: str) -> Any:
        return Block("not here")

    with Guard(backend, [on_input(never)], tmp_path / "log") as guard:
        reply, _ = calls.chat(guard)
        result = guard.replay(reply.call_id)
    assert reply.blocked
    assert (result.status, result.generations, result.stand_ins) == ("verified", 0, 0)
    assert result.sentence() == "verified: 1 event equal"


def test_a_model_that_failed(tmp_path: Path) -> None:
    asked = []

    def fails(messages: Any) -> str:
        asked.append(messages)
        raise ConnectionError("no route to the model")

    from isonomy.sdk import BackendError

    with Guard(fails, [Effects()], tmp_path / "log") as guard:
        with pytest.raises(BackendError, match="no route"):
            guard.chat("hello")
        call = calls.newest(tmp_path / "log")
        assert guard.replay(call.call_id).sentence() == (
            "verified: 4 events equal; 1 recorded failure stood in for the model, which can't be "
            "asked again"
        )
    assert len(asked) == 1


def test_a_local_model_that_refused(model: Path, tmp_path: Path) -> None:
    """The prompt did not fit; anew, it still does not."""
    from isonomy.sdk.errors import ContextLength

    with Guard(f"local:{model}", [], tmp_path / "log") as guard:
        with pytest.raises(ContextLength):
            guard.chat("x y z " * 2000)
        call = calls.newest(tmp_path / "log")
        result = guard.replay(call.call_id)
    assert (result.status, result.events, result.reexecuted) == ("verified", 1, 0)


class Tools:
    @hookimpl
    def tool_call(self, tool_call: ToolCall, ctx: Any) -> Flag:
        return Flag(f"{tool_call.name} {ctx.now()}")

    @hookimpl
    def tool_result(self, tool_call: ToolCall, result: ToolResult, ctx: Any) -> Flag:
        return Flag(f"{tool_call.name} gave {ctx.effect('look', WORLD)}")


def test_tools(tmp_path: Path) -> None:
    request = ToolCall("call-1", "weather", {"city": "Oslo"})
    history = (
        Message.of("user", "how is the weather?"),
        Message("assistant", (request,)),
        Message("tool", (ToolResult("call-1", "cold"),)),
    )

    def asks(messages: Any) -> Generation:
        return Generation(
            content=(Text("one more"), ToolCall("call-2", "weather", {"city": "Rome"})),
            finish_reason="tool_calls",
            model="tools",
        )

    with Guard(asks, [Tools()], tmp_path / "log") as guard:
        reply, _ = calls.chat(guard, history)
        assert {"tool_call", "tool_result"} <= {event.stage for event in reply.events}
        assert guard.replay(reply.call_id).status == "verified"
