import asyncio
import functools
import threading
from typing import Any

import pytest

from isonomy.backends import Callable
from isonomy.sdk import Backend, BackendError
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
