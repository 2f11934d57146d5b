import asyncio
import functools
import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from isonomy.backends import Callable
from isonomy.sdk import Backend, BackendError, RemoteError
from isonomy.sdk.generation import Generation, Request, Sampling
from isonomy.sdk.vocabulary import Image, Message, Text, ToolCall, ToolResult

ASK = Request(messages=(Message.of("system", "Be brief."), Message.of("user", "Hi")))


def echo(messages: list[dict[str, Any]]) -> str:
    return " ".join(m["content"] for m in messages)


async def aecho(messages: list[dict[str, Any]]) -> str:
    await asyncio.sleep(0)
    return echo(messages)


class Model:
    async def __call__(self, messages: list[dict[str, Any]]) -> str:
        return await aecho(messages)


def hidden(messages: list[dict[str, Any]]) -> Any:
    return aecho(messages)


FUNCTIONS = [echo, aecho, Model(), functools.partial(aecho), hidden, lambda m: echo(m)]


@pytest.mark.parametrize("function", FUNCTIONS)
def test_functions_of_every_kind(function: Any) -> None:
    backend = Callable(function)
    assert isinstance(backend, Backend)
    plain = backend.generate(ASK)
    other = asyncio.run(backend.agenerate(ASK))

    async def inside_a_running_loop() -> Generation:
        return backend.generate(ASK)

    third = asyncio.run(inside_a_running_loop())
    for generation in (plain, other, third):
        assert generation.content == (Text("Be brief. Hi"),)
        assert generation.finish_reason == "stop"
        assert generation.model == backend.identity().model
    backend.close()
    backend.close()


def test_messages_are_plain_data() -> None:
    seen: list[Any] = []
    backend = Callable(lambda messages: seen.append(messages) or "ok")  # type: ignore[func-returns-value]
    request = Request(
        messages=(
            Message("user", (Text("a"), Text("b"))),
            Message("user", (Text("see"), Image("x.png"))),
            Message("assistant", (ToolCall("1", "f", {"a": 1}),)),
            Message("tool", (ToolResult("1", "r"),)),
        )
    )
    backend.generate(request)
    assert seen == [
        [
            {"role": "user", "content": "ab"},
            {
                "role": "user",
                "content": "see",
                "parts": [
                    {"type": "text", "text": "see"},
                    {"type": "image", "reference": "x.png", "media_type": "image/*"},
                ],
            },
            {
                "role": "assistant",
                "content": "",
                "parts": [{"type": "tool_call", "id": "1", "name": "f", "arguments": {"a": 1}}],
            },
            {
                "role": "tool",
                "content": "",
                "parts": [{"type": "tool_result", "id": "1", "content": "r"}],
            },
        ]
    ]


def test_a_whole_generation() -> None:
    made = Generation(content=(ToolCall("1", "f", {}),), finish_reason="tool_calls", model="mine")
    assert Callable(lambda messages: made).generate(ASK) == made


def test_pieces_of_text() -> None:
    pieces: list[str] = []
    Callable(echo).generate(ASK, on_text=pieces.append)
    asyncio.run(Callable(echo).agenerate(ASK, on_text=pieces.append))
    Callable(lambda messages: "").generate(ASK, on_text=pieces.append)
    assert pieces == ["Be brief. Hi"] * 2


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (None, "returned NoneType.*Does every path end in a return"),
        (b"x", "returned bytes, where the answer's text .str. or a Generation is expected"),
        ({"content": "x"}, "returned dict"),
        (3, "returned int"),
    ],
)
def test_anything_else_is_an_error(value: Any, said: str) -> None:
    async def later(messages: Any) -> Any:
        return value

    for function in (lambda messages: value, later):
        backend = Callable(function)
        with pytest.raises(BackendError, match=said):
            backend.generate(ASK)
        with pytest.raises(BackendError, match=said):
            asyncio.run(backend.agenerate(ASK))
        backend.close()


def test_an_exception_is_named_and_kept() -> None:
    def broken(messages: Any) -> str:
        raise KeyError("nope")

    with pytest.raises(BackendError, match=r"broken raised KeyError: 'nope'") as caught:
        Callable(broken).generate(ASK)
    assert isinstance(caught.value.__cause__, KeyError)
    assert caught.value.backend == "callable"
    with pytest.raises(BackendError, match="broken raised KeyError"):
        asyncio.run(Callable(broken).agenerate(ASK))


def test_an_interrupt_goes_through() -> None:
    def interrupted(messages: Any) -> str:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Callable(interrupted).generate(ASK)


def test_what_is_no_function() -> None:
    with pytest.raises(BackendError, match=r"needs a function.*not str: 'demo'"):
        Callable("demo")  # type: ignore[arg-type]


def test_identity() -> None:
    identity = Callable(echo).identity()
    assert identity.provider == "callable"
    assert identity.model.endswith("test_callable.echo")
    assert identity.spec == f"callable:{identity.model}"
    assert not identity.deterministic
    assert Callable(functools.partial(echo)).identity() == identity
    assert Callable(Model()).identity().model.endswith("test_callable.Model")
    assert Callable(Model().__call__).identity().model.endswith("Model.__call__")
    assert Callable(lambda m: "", name="mine").identity().spec == "callable:mine"
    assert "mine" in repr(Callable(lambda m: "", name="mine"))


def test_sampling_is_left_alone() -> None:
    sampling = Sampling(top_k=3, seed=None)
    assert Callable(echo).resolve(sampling) is sampling


def test_a_plain_function_does_not_hold_up_the_loop() -> None:
    release = threading.Event()

    def slow(messages: Any) -> str:
        assert release.wait(5)
        return "done"

    async def both() -> str:
        task = asyncio.create_task(Callable(slow).agenerate(ASK))
        await asyncio.sleep(0.05)
        release.set()
        return (await task).text

    assert asyncio.run(both()) == "done"


def test_after_close_async_functions_fail_with_a_sentence() -> None:
    backend = Callable(aecho)
    backend.close()
    with pytest.raises(BackendError, match="closed"):
        backend.generate(ASK)


def generator(messages: Any) -> Iterator[str]:
    yield from ("one ", "", "two ", "three")


async def agenerator(messages: Any) -> AsyncIterator[str]:
    for piece in generator(messages):
        await asyncio.sleep(0)
        yield piece


class Streaming:
    async def __call__(self, messages: Any) -> AsyncIterator[str]:
        async for piece in agenerator(messages):
            yield piece


PIECEWISE = [
    generator,
    agenerator,
    Streaming(),
    lambda m: iter(generator(m)),
    lambda m: agenerator(m),
]


@pytest.mark.parametrize("function", PIECEWISE)
def test_functions_that_yield(function: Any) -> None:
    backend = Callable(function)
    said: list[list[str]] = [[], []]
    first = backend.generate(ASK, on_text=said[0].append)
    second = asyncio.run(backend.agenerate(ASK, on_text=said[1].append))
    assert said == [["one ", "two ", "three"]] * 2
    for generation in (first, second, backend.generate(ASK), asyncio.run(backend.agenerate(ASK))):
        assert generation.content == (Text("one two three"),)
        assert generation.finish_reason == "stop"
    backend.close()


def test_pieces_come_while_the_function_is_at_work() -> None:
    order: list[str] = []

    def work(messages: Any) -> Iterator[str]:
        for i in range(3):
            order.append(f"made {i}")
            yield str(i)

    Callable(work).generate(ASK, on_text=lambda piece: order.append(f"told {piece}"))
    assert order == ["made 0", "told 0", "made 1", "told 1", "made 2", "told 2"]


class Gone(Exception):
    """Nobody listens any more."""


def test_what_on_text_raises_ends_the_function_and_goes_through() -> None:
    ended: list[str] = []
    done = threading.Event()

    def work(messages: Any) -> Iterator[str]:
        try:
            while True:
                yield "x"
        finally:
            ended.append("sync")
            done.set()

    async def awork(messages: Any) -> AsyncIterator[str]:
        try:
            while True:
                await asyncio.sleep(0)
                yield "x"
        finally:
            ended.append("async")
            done.set()

    def leave(piece: str) -> None:
        raise Gone

    for function in (work, awork):
        backend = Callable(function)
        for ask in (
            lambda b=backend: b.generate(ASK, on_text=leave),
            lambda b=backend: asyncio.run(b.agenerate(ASK, on_text=leave)),
        ):
            done.clear()
            with pytest.raises(Gone):
                ask()
            assert done.wait(5)
        backend.close()
    assert ended == ["sync", "sync", "async", "async"]
    with pytest.raises(Gone):
        Callable(echo).generate(ASK, on_text=leave)


def test_cancelling_ends_a_generator_in_its_thread() -> None:
    ended = threading.Event()

    def work(messages: Any) -> Iterator[str]:
        try:
            while True:
                time.sleep(0.005)
                yield "x"
        finally:
            ended.set()

    async def cancelled() -> None:
        task = asyncio.create_task(Callable(work).agenerate(ASK))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancelled())
    assert ended.wait(5)


@pytest.mark.parametrize("is_async", [False, True])
def test_generators_that_go_wrong(is_async: bool) -> None:
    def raises(messages: Any) -> Iterator[str]:
        yield "a"
        raise KeyError("nope")

    def numbers(messages: Any) -> Iterator[Any]:
        yield "a"
        yield 3

    def ask(function: Any) -> Generation:
        backend = Callable(function)
        try:
            if is_async:
                return asyncio.run(backend.agenerate(ASK))
            return backend.generate(ASK)
        finally:
            backend.close()

    def asynchronous(function: Any) -> Any:
        async def agen(messages: Any) -> AsyncIterator[Any]:
            for piece in function(messages):
                yield piece

        return agen

    for turned in (lambda f: f, asynchronous):
        with pytest.raises(BackendError, match="raised KeyError: 'nope'"):
            ask(turned(raises))
        with pytest.raises(BackendError, match="yielded int, where pieces of the answer"):
            ask(turned(numbers))


def test_a_backend_error_is_left_as_it_is() -> None:
    def unable(messages: Any) -> str:
        raise error

    async def later(messages: Any) -> str:
        raise error

    error = RemoteError("down", backend="mine", status=503)
    for function in (unable, later):
        backend = Callable(function)
        with pytest.raises(RemoteError) as caught:
            backend.generate(ASK)
        assert caught.value is error
        assert error.__cause__ is None
        with pytest.raises(RemoteError) as caught:
            asyncio.run(backend.agenerate(ASK))
        assert caught.value is error
        backend.close()


def test_the_request_for_functions_that_want_it() -> None:
    def wants(messages: Any, request: Request) -> str:
        return f"{len(messages)} {request.sampling.seed}"

    async def awants(messages: Any, *, request: Request) -> str:
        return wants(messages, request)

    def named_so(request: Any) -> str:
        return str(len(request))

    asked = Request(messages=ASK.messages, sampling=Sampling(seed=7))
    for function, said in ((wants, "2 7"), (awants, "2 7"), (named_so, "2"), (str, None)):
        backend = Callable(function)
        if said is not None:
            assert backend.generate(asked).text == said
            assert asyncio.run(backend.agenerate(asked)).text == said
        else:
            assert "user" in backend.generate(asked).text
        backend.close()


def test_a_plain_function_costs_next_to_nothing() -> None:
    """The share of a call that is the backend's own: identity, messages, answer."""
    backend = Callable(lambda messages: "ok")
    backend.generate(ASK)

    def took() -> float:
        started = time.perf_counter()
        for _ in range(200):
            backend.identity()
            backend.generate(ASK)
        return (time.perf_counter() - started) / 200

    assert min(took() for _ in range(20)) < 10e-6
