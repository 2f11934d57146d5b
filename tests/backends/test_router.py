import asyncio
import random
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from tests.backends.remote.serving import (
    KEY,
    STREAM,
    Endpoint,
    chunk,
    completion,
    sse,
    streamed,
)

from isonomy.backends import Callable, OpenAI, Recorded, Router
from isonomy.sdk import (
    Backend,
    BackendError,
    ConfigError,
    ContextLength,
    Guard,
    InputError,
    RemoteError,
)
from isonomy.sdk.errors import Overloaded
from isonomy.sdk.generation import Generation, Identity, Request, Sampling
from isonomy.sdk.vocabulary import Image, Message, Text

ASK = Request(messages=(Message.of("user", "Hi"),), sampling=Sampling(seed=7))


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    served = Endpoint()
    served.answers(completion("from the endpoint"))
    yield served
    served.close()


async def no_wait(seconds: float) -> None:
    pass


def remote(endpoint: Endpoint, **options: Any) -> OpenAI:
    settings: dict[str, Any] = {"max_attempts": 2, "sleep": no_wait, "environment": {}}
    return OpenAI("small", base_url=endpoint.url, api_key=KEY, **{**settings, **options})


def says(text: str) -> Callable:
    return Callable(lambda messages: text, name=text)


class Raises:
    """A backend that can't answer."""

    def __init__(self, error: Exception, name: str = "broken") -> None:
        self.error = error
        self.name = name
        self.closed = 0

    def identity(self) -> Identity:
        return Identity(provider=self.name, model=self.name, spec=self.name)

    def resolve(self, sampling: Sampling) -> Sampling:
        return sampling

    def generate(self, request: Request, *, on_text: Any = None) -> Generation:
        raise self.error

    async def agenerate(self, request: Request, *, on_text: Any = None) -> Generation:
        raise self.error

    def close(self) -> None:
        self.closed += 1


def both(router: Router, request: Request = ASK, **options: Any) -> list[Generation]:
    return [
        router.generate(request, **options),
        asyncio.run(router.agenerate(request, **options)),
    ]


def test_the_first_answers(endpoint: Endpoint) -> None:
    router = Router([remote(endpoint), says("fallback")])
    assert isinstance(router, Backend)
    for generation in both(router):
        assert generation.text == "from the endpoint"
        assert generation.runtime["backend"] == "openai:small"
        assert generation.runtime["route"] == ["openai:small"]
        assert generation.runtime["sampling"] == {"seed": 7, "candidate": 0}
        assert [(a.backend, a.outcome) for a in generation.attempts] == [("openai:small", "ok")]
    router.close()


def test_the_next_answers_where_one_fails(endpoint: Endpoint) -> None:
    endpoint.answers((500, {}, b"down"))
    router = Router([remote(endpoint), says("fallback")])
    for generation in both(router):
        assert generation.text == "fallback"
        assert generation.model == "fallback"
        assert generation.runtime["backend"] == "callable:fallback"
        assert [(a.number, a.backend, a.outcome, a.status) for a in generation.attempts] == [
            (1, "openai:small", "failed", 500),
            (2, "openai:small", "failed", 500),
            (3, "callable:fallback", "ok", None),
        ]
    router.close()


def test_an_open_circuit_costs_nothing(endpoint: Endpoint) -> None:
    endpoint.answers((500, {}, b"down"))
    router = Router([remote(endpoint, breaker_failures=1), says("fallback")])
    both(router)
    asked = len(endpoint.requests)
    for generation in both(router):
        assert generation.text == "fallback"
        assert generation.attempts[0].outcome == "open"
    assert len(endpoint.requests) == asked
    router.close()


OUTCOMES = {
    "timeout": RemoteError("slow", backend="x"),
    "failed": BackendError("raised", backend="x"),
    "context": ContextLength("long", backend="x", tokens=9, limit=8),
    "overloaded": Overloaded("full", backend="x"),
    "nonsense": ZeroDivisionError("third party"),
}


@pytest.mark.parametrize("outcome", ["failed", "context", "overloaded", "nonsense"])
def test_failures_that_others_may_not_have(outcome: str) -> None:
    router = Router([Raises(OUTCOMES[outcome]), says("fallback")])
    for generation in both(router):
        assert generation.text == "fallback"
        expected = "failed" if outcome == "nonsense" else outcome
        assert generation.attempts[0].outcome == expected
        assert str(OUTCOMES[outcome]) in (generation.attempts[0].error or "")
    only = Router([Raises(OUTCOMES[outcome]), says("x")], fall_back_on=["timeout"])
    with pytest.raises(type(OUTCOMES[outcome])):
        only.generate(ASK)


@pytest.mark.parametrize("is_async", [False, True])
def test_what_the_next_would_only_hide(endpoint: Endpoint, is_async: bool) -> None:
    endpoint.answers((401, {}, b"bad key"))
    router = Router([remote(endpoint), says("fallback")])

    def ask(asked: Router, request: Request = ASK) -> Generation:
        return asyncio.run(asked.agenerate(request)) if is_async else asked.generate(request)

    with pytest.raises(RemoteError, match="status 401: bad key") as caught:
        ask(router)
    assert [(a.backend, a.status) for a in caught.value.attempts] == [("openai:small", 401)]
    assert caught.value.status == 401
    for given in ([401], ["refused"]):
        assert ask(Router([remote(endpoint), says("b")], fall_back_on=given)).text == "b"
    images = Request(messages=(Message("assistant", (Image("x"),)),))
    with pytest.raises(InputError, match="'assistant' and holds Image"):
        ask(router, images)
    router.close()


def test_nobody_answers(endpoint: Endpoint) -> None:
    endpoint.answers((503, {}, b"down"))
    router = Router([Raises(BackendError("no such luck.", backend="x")), remote(endpoint)])
    with pytest.raises(
        RemoteError, match=r"none of 2 backends answered. broken: no such luck. "
    ) as e:
        router.generate(ASK)
    assert "openai:small: openai:small at" in str(e.value)
    assert [a.backend for a in e.value.attempts] == ["broken", *["openai:small"] * 2]
    assert [a.number for a in e.value.attempts] == [1, 2, 3]
    assert e.value.status == 503
    router.close()


@pytest.mark.parametrize("is_async", [False, True])
def test_nobody_else_is_asked_once_text_was_passed_on(endpoint: Endpoint, is_async: bool) -> None:
    endpoint.answers((200, STREAM, sse(chunk(content="a"), done=False)))
    router = Router([remote(endpoint), says("fallback")])
    pieces: list[str] = []

    def ask() -> Generation:
        if is_async:
            return asyncio.run(router.agenerate(ASK, on_text=pieces.append))
        return router.generate(ASK, on_text=pieces.append)

    with pytest.raises(RemoteError, match="passed on, so no other backend was asked") as caught:
        ask()
    assert pieces == ["a"]
    assert [a.outcome for a in caught.value.attempts] == ["cut"]
    # Before the first piece there is a way back.
    endpoint.answers((200, STREAM, sse(chunk(role="assistant"), done=False)))
    pieces.clear()
    assert ask().text == "fallback"
    assert pieces == ["fallback"]
    endpoint.answers((200, STREAM, sse(*streamed("a", "b"))))
    pieces.clear()
    assert ask().text == "ab"
    assert pieces == ["a", "b"]
    router.close()


class Gone(BackendError):
    """Nobody listens any more; an error of a kind that backends raise themselves."""

    def __init__(self) -> None:
        super().__init__("gone", backend="x")


@pytest.mark.parametrize("is_async", [False, True])
def test_what_on_text_raises_goes_through(endpoint: Endpoint, is_async: bool) -> None:
    def endless() -> Iterator[Any]:
        while True:
            yield sse(chunk(content="x"), done=False)
            yield 0.01

    def leave(piece: str) -> None:
        raise Gone

    endpoint.answers((200, {}, endless()))
    router = Router([remote(endpoint), says("fallback")])

    def ask() -> Generation:
        if is_async:
            return asyncio.run(router.agenerate(ASK, on_text=leave))
        return router.generate(ASK, on_text=leave)

    with pytest.raises(Gone):
        ask()
    assert endpoint.gone.wait(10)
    router.close()


def test_cancelling_ends_the_request_and_asks_nobody_else(endpoint: Endpoint) -> None:
    endpoint.hang = 0.5
    asked: list[str] = []
    router = Router([remote(endpoint), Callable(lambda m: asked.append("x") or "x")])  # type: ignore[func-returns-value]

    async def cancelled() -> None:
        task = asyncio.create_task(router.agenerate(ASK))
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancelled())
    assert asked == []
    router.close()


def test_weights_share_the_calls_and_the_choice_is_recorded() -> None:
    members = [
        {"use": says("a"), "weight": 3},
        {"use": says("b"), "weight": 1},
        {"use": says("last")},
    ]
    router = Router(members, rng=random.Random(5))
    answered = [router.generate(ASK) for _ in range(400)]
    counts = {name: sum(g.text == name for g in answered) for name in ("a", "b", "last")}
    assert counts["last"] == 0
    assert 260 < counts["a"] < 340
    assert all(g.runtime["backend"] == f"callable:{g.text}" for g in answered)
    same = Router(members, rng=random.Random(5))
    assert [same.generate(ASK).text for _ in range(400)] == [g.text for g in answered]
    # Where the drawn one fails, the other weighted one is next, then the fallback.
    failing = Router(
        [
            {"use": Raises(BackendError("x", backend="x"), "one"), "weight": 1},
            {"use": Raises(BackendError("x", backend="x"), "two"), "weight": 1},
            says("last"),
        ],
        rng=random.Random(1),
    )
    routes = {tuple(failing.generate(ASK).runtime["route"]) for _ in range(50)}
    assert routes == {("one", "two", "callable:last"), ("two", "one", "callable:last")}


def test_each_member_draws_by_its_own_defaults(endpoint: Endpoint) -> None:
    class Own(Raises):
        def resolve(self, sampling: Sampling) -> Sampling:
            return Sampling(temperature=0.25, seed=sampling.seed)

        def generate(self, request: Request, *, on_text: Any = None) -> Generation:
            return Generation(content=(Text("x"),), finish_reason="stop", model="own")

    own = Own(ValueError())
    router = Router([own, remote(endpoint)])
    assert router.resolve(Sampling(seed=3)) == Sampling(seed=3)
    drawn = router.generate(ASK).runtime["sampling"]
    assert drawn == {"temperature": 0.25, "seed": 7, "candidate": 0}
    with pytest.raises(InputError, match="no top_k"):
        router.resolve(Sampling(top_k=3))
    router.close()


def test_names() -> None:
    router = Router([says("a"), {"use": says("a"), "name": "spare"}, says("a")])
    identity = router.identity()
    names = [member["name"] for member in identity.options["members"]]
    assert names == ["callable:a", "spare", "callable:a#2"]
    assert identity.provider == "router"
    assert identity.spec == "router:callable:a,callable:a,callable:a"
    assert not identity.deterministic
    inner = Router([Raises(BackendError("x", backend="x")), says("b")])
    outer = Router([{"use": inner, "name": "inner"}])
    attempts = outer.generate(ASK).attempts
    assert [a.backend for a in attempts] == ["inner/broken", "inner/callable:b"]
    assert outer.generate(ASK).runtime["backend"] == "inner"


def test_closing_closes_all() -> None:
    members = [Raises(ValueError()), Raises(ValueError())]
    Router(members).close()
    assert [member.closed for member in members] == [1, 1]


def test_scores_come_from_the_first_who_can() -> None:
    class Judge(Raises):
        def logprobs(self, request: Request, labels: tuple[str, ...]) -> tuple[float, ...]:
            raise self.error

    class Sure(Raises):
        def logprobs(self, request: Request, labels: tuple[str, ...]) -> tuple[float, ...]:
            return tuple(-1.0 for _ in labels)

    unable = BackendError("can't tell", backend="x")
    assert Router([says("a"), Judge(unable), Sure(unable)]).logprobs(ASK, ("A", "B")) == (-1, -1)
    with pytest.raises(BackendError, match="can't tell"):
        Router([says("a"), Judge(unable)]).logprobs(ASK, ("A",))
    with pytest.raises(BackendError, match="none of the router's backends"):
        Router([says("a")]).logprobs(ASK, ("A",))


@pytest.mark.parametrize(
    ("arguments", "options", "said"),
    [
        ((), {}, "members: a router needs backends"),
        (([],), {}, "members: a router needs backends"),
        (([3],), {}, r"members\[0\].use: names no backend"),
        (([{"name": "x"}],), {}, r"members\[0\].use: names no backend"),
        ((["openai"],), {}, "names no model"),
        (([{"use": "openai:m", "temprature": 1}],), {}, r"members\[0\].temprature: unknown key"),
        (([{"use": "openai:m", "timout": 1}],), {}, r"Did you mean 'timeout'"),
        (
            ([{"use": "openai:m", "base_url": "http://x/v1", "timeout": 0}],),
            {},
            r"members\[0\].timeout: it must be a number",
        ),
        (([{"use": "openai:m", "weight": -1}],), {}, r"members\[0\].weight: it must be"),
        (("callable:x",), {"fall_back_on": ["timout"]}, "fall_back_on: .*Did you mean 'timeout'"),
        (("callable:x",), {"fall_back_on": [99]}, "99 is no outcome, nor a status"),
    ],
)
def test_wrong_settings(arguments: Any, options: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Router(*arguments, **options)


def test_what_was_opened_is_closed_where_another_can_not_be() -> None:
    first = Raises(ValueError())
    with pytest.raises(ConfigError):
        Router([first, "openai"])
    assert first.closed == 1


def test_from_a_file(endpoint: Endpoint, tmp_path: Any) -> None:
    endpoint.answers((503, {"x-should-retry": "false"}, b"down"))
    (tmp_path / "answers.jsonl").write_text('{"text": "from the file"}\n')
    (tmp_path / "isonomy.toml").write_text(
        f"""
[backend]
use = "router"
fall_back_on = ["timeout", "unreachable", "failed", 401]
members = [
    {{use = "openai:small", base_url = "{endpoint.url}", api_key = "{KEY}", name = "main"}},
    {{use = "recorded:{tmp_path}/answers.jsonl", repeat = true}},
]
temperature = 0.0

[policy]
name = "none"
"""
    )
    with Guard.from_file(tmp_path / "isonomy.toml") as guard:
        reply = guard.chat("Hi")
        assert reply.text == "from the file"
        generated = next(event for event in reply.events if event.type == "generated")
        attempts = generated.generation.attempts  # type: ignore[union-attr]
        assert [a.backend for a in attempts] == ["main", f"recorded:{tmp_path}/answers.jsonl"]
        assert KEY not in repr(guard.backend.identity())


def test_by_a_spec(tmp_path: Any) -> None:
    (tmp_path / "a.jsonl").write_text('{"error": "down"}\n')
    (tmp_path / "b.jsonl").write_text('{"text": "from b"}\n')
    router = Router(f"recorded:{tmp_path}/a.jsonl, recorded:{tmp_path}/b.jsonl")
    assert router.generate(ASK).text == "from b"
    assert isinstance(router._members[1].backend, Recorded)


def test_members_from_plugin_modules(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_backends.py").write_text(
        "from isonomy.backends import Callable\n"
        "from isonomy.sdk import hookimpl\n"
        "@hookimpl\n"
        "def isonomy_backends():\n"
        "    return {'mine': lambda name: Callable(lambda messages: 'I am ' + name)}\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    with Guard("router:mine:one,mine:two", plugins=["my_backends"]) as guard:
        assert guard.chat("Hi").text == "I am one"
    monkeypatch.delitem(sys.modules, "my_backends")
