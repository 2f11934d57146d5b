"""Protected functions: sync and async, plain and in pieces."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
from tests.sdk.world import Memory

from isonomy.sdk import (
    AskHuman,
    BackendError,
    Block,
    Blocked,
    Guard,
    InputError,
    Message,
    Replace,
    Retry,
    check,
    on_input,
)
from isonomy.sdk.checks import Check
from isonomy.sdk.records import Intent, Result, Segment

HIDE = on_input(lambda text: Replace(text.replace("secret", "[hidden]")))


def on_output(function: Any, **terms: Any) -> Check:
    return check(function, stages=("post_validate",), **terms)


def shout(text: str) -> Replace:
    return Replace(text.upper())


def plain(question: str) -> str:
    """Answer a question."""
    return f"You said {question}"


async def awaited(question: str) -> str:
    """Answer a question."""
    await asyncio.sleep(0)
    return f"You said {question}"


def pieces(question: str) -> Iterator[str]:
    """Answer a question."""
    yield "You said "
    yield question


async def apieces(question: str) -> AsyncIterator[str]:
    """Answer a question."""
    yield "You said "
    await asyncio.sleep(0)
    yield question


class Answers:
    def __call__(self, question: str) -> str:
        return f"You said {question}"


class AsyncAnswers:
    async def __call__(self, question: str) -> str:
        return f"You said {question}"


KINDS: dict[str, Callable[..., Any]] = {
    "plain": plain,
    "async": awaited,
    "generator": pieces,
    "async generator": apieces,
    "object": Answers(),
    "async object": AsyncAnswers(),
    "partial": partial(lambda prefix, question: f"{prefix} {question}", "You said"),
}


def called(function: Any, *args: Any, **kwargs: Any) -> str:
    """Call a function of any kind, and return all of its answer."""
    made = function(*args, **kwargs)
    if inspect.isgenerator(made):
        return "".join(made)
    if inspect.isasyncgen(made):

        async def joined() -> str:
            return "".join([piece async for piece in made])

        return asyncio.run(joined())
    if inspect.isawaitable(made):

        async def waited() -> Any:
            return await made

        return str(asyncio.run(waited()))
    return str(made)


@pytest.mark.parametrize("kind", KINDS)
def test_prompts_and_answers_pass_the_checks(kind: str) -> None:
    with Guard(policy=[HIDE, on_output(shout)], log=(log := Memory())) as guard:
        protected = guard.protect(KINDS[kind])
        assert called(protected, "my secret") == "YOU SAID MY [HIDDEN]"
        assert called(protected, question="x") == "YOU SAID X"
    assert len([k for k in log.kinds if k == "Intent"]) == 2
    intent = log.entries[0].record
    assert isinstance(intent, Intent)
    assert intent.identity.provider == "callable"
    assert intent.operation == ("stream" if "generator" in kind else "chat")


@pytest.mark.parametrize("kind", ["plain", "async", "generator", "async generator"])
def test_a_protected_function_is_of_the_same_kind(kind: str) -> None:
    function = KINDS[kind]
    with Guard(policy=[HIDE]) as guard:
        protected = guard.protect(function)
    for test in (
        inspect.iscoroutinefunction,
        inspect.isgeneratorfunction,
        inspect.isasyncgenfunction,
    ):
        assert test(protected) == test(function)
    assert protected.__name__ == function.__name__
    assert protected.__doc__ == function.__doc__
    assert inspect.signature(protected) == inspect.signature(function)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stage", ["pre_filter", "post_validate"])
def test_a_blocked_call_returns_the_refusal_or_raises(kind: str, stage: Any) -> None:
    strict = check(lambda text: Block("no"), id="strict", stages=(stage,))
    with Guard(policy=[strict], log=(log := Memory())) as guard:
        assert called(guard.protect(KINDS[kind]), "Hi") == guard.policy.refusal
        with pytest.raises(Blocked) as raised:
            called(guard.protect(KINDS[kind], on_block="raise"), "Hi")
        assert raised.value.reply.check == "strict"
        assert raised.value.__context__ is None
    results = [entry.record for entry in log.entries if isinstance(entry.record, Result)]
    assert [record.verdict for record in results] == ["block", "block"]


def test_what_waits_for_a_person_is_raised_with_its_token() -> None:
    ask = on_output(lambda text: AskHuman("look at it"))
    with Guard(policy=[ask]) as guard:
        with pytest.raises(Blocked) as raised:
            guard.protect(plain, on_block="raise")("Hi")
        assert raised.value.reply.verdict == "ask_human"


def test_the_decorator_with_and_without_options() -> None:
    with Guard(policy=[HIDE], log=(log := Memory())) as guard:

        @guard.protect
        def first(question: str) -> str:
            return question

        @guard.protect(session="s", actor="a", tags={"k": "v"})
        def second(question: str) -> str:
            return question

        assert first("secret") == second("secret") == "[hidden]"
    intents = [entry.record for entry in log.entries if isinstance(entry.record, Intent)]
    assert (intents[1].session, intents[1].actor, intents[1].tags) == ("s", "a", {"k": "v"})


def test_which_argument_holds_the_prompt() -> None:
    with Guard(policy=[HIDE]) as guard:

        @guard.protect
        def first(user: int, question: str, style: str = "secret") -> str:
            return f"{user} {question} {style}"

        assert first(1, "secret") == "1 [hidden] secret"
        assert first(question="secret", user=2, style="x") == "2 [hidden] x"

        @guard.protect(argument="question")
        def named(style: str, *, question: str = "a secret") -> str:
            return f"{style} {question}"

        assert named("secret") == "secret a [hidden]"

        class Bot:
            name = "bot"

            @guard.protect
            def ask(self, question: str) -> str:
                return f"{self.name}: {question}"

        assert Bot().ask("secret") == "bot: [hidden]"

        with pytest.raises(InputError, match="no argument 'quest'"):
            guard.protect(argument="quest")(first)
        with pytest.raises(InputError, match="no argument of this call"):
            guard.protect(lambda number: number)(3)
        with pytest.raises(InputError, match="the argument 'style'"):
            guard.protect(first, argument="style")(1, "x", style=3)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="question"):
            first(1)  # the function's own complaint


def test_a_list_of_messages_keeps_its_shape() -> None:
    given: list[Any] = []

    def answer(messages: list[Any]) -> str:
        given.append(messages)
        return "ok"

    asked = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "a secret", "name": "ada"},
        {"role": "user", "content": [{"type": "text", "text": "secret"}]},
    ]
    with Guard(policy=[HIDE]) as guard:
        protected = guard.protect(answer)
        assert protected(asked) == "ok"
        assert given[0][0] is asked[0]
        assert given[0][1] == {"role": "user", "content": "a [hidden]", "name": "ada"}
        assert given[0][2]["content"] == [{"type": "text", "text": "[hidden]"}]
        assert asked[1]["content"] == "a secret"
        protected([{"role": "user", "content": "fine"}])
        ours = (Message.of("user", "secret"),)
        protected(ours)
        assert given[2] == [Message.of("user", "[hidden]")]
        unchanged = [{"role": "user", "content": "fine"}]
        protected(unchanged)
    with Guard(policy=[on_input(lambda text: True)]) as guard:
        guard.protect(answer)(unchanged)
        assert given[-1] is unchanged
        with pytest.raises(InputError, match="hologram"):
            guard.protect(answer)([{"role": "user", "content": [{"type": "hologram"}]}])


@pytest.mark.parametrize("kind", KINDS)
def test_a_retry_calls_the_function_again_with_the_feedback(kind: str) -> None:
    answers = iter([Retry("Louder."), True])
    with Guard(policy=[on_output(lambda text: next(answers))]) as guard:
        assert called(guard.protect(KINDS[kind]), "Hi") == "You said Hi\n\nLouder."


@pytest.mark.parametrize("kind", ["plain", "async", "generator", "async generator"])
def test_what_a_function_raises_is_raised_as_it_was(kind: str) -> None:
    class Odd(Exception):
        pass

    error = Odd("odd")

    def raise_() -> None:
        raise error from ValueError("why")

    def plain(question: str) -> str:
        raise_()
        return ""

    async def awaited(question: str) -> str:
        raise_()
        return ""

    def generator(question: str) -> Iterator[str]:
        yield "a"
        raise_()

    async def agenerator(question: str) -> AsyncIterator[str]:
        yield "a"
        raise_()

    functions = {
        "plain": plain,
        "async": awaited,
        "generator": generator,
        "async generator": agenerator,
    }
    with Guard(policy=[HIDE], log=(log := Memory())) as guard:
        with pytest.raises(Odd) as raised:
            called(guard.protect(functions[kind]), "Hi")
        assert raised.value is error
        assert isinstance(error.__cause__, ValueError)
        results = [entry.record for entry in log.entries if isinstance(entry.record, Result)]
        assert [record.error for record in results] == ["BackendError"]


def test_a_function_must_return_text() -> None:
    with Guard(policy=[HIDE]) as guard:
        for returned in (None, 3, b"x"):
            with pytest.raises(BackendError, match=type(returned).__name__):
                guard.protect(lambda question, returned=returned: returned)("Hi")
        for nothing in (3, "text", str):
            with pytest.raises(InputError, match="needs a function"):
                guard.protect(nothing)
        with pytest.raises(InputError, match="no option 'on_blok'"):
            guard.protect(plain, on_blok="raise")  # type: ignore[call-arg]
        with pytest.raises(InputError, match="empty"):
            guard.protect(plain)("  ")


@pytest.mark.parametrize("kind", ["generator", "async generator"])
def test_pieces_leave_when_they_are_judged(kind: str) -> None:
    word = "word " * 20

    def generator(question: str) -> Iterator[str]:
        yield word
        produced.append(1)
        yield word

    async def agenerator(question: str) -> AsyncIterator[str]:
        for piece in generator(question):
            yield piece
            await asyncio.sleep(0)

    produced: list[int] = []
    log = Memory()
    with Guard(policy=[on_output(shout, lookback=0)], log=log) as guard:
        if kind == "generator":
            assert "".join(guard.protect(generator)("Hi")) == (word * 2).upper()
        else:
            assert called(guard.protect(agenerator), "Hi") == (word * 2).upper()
    assert any(isinstance(entry.record, Segment) for entry in log.entries)


@pytest.mark.parametrize("kind", ["generator", "async generator"])
def test_a_stream_that_is_left_ends_the_function_and_is_recorded(kind: str) -> None:
    ended: list[str] = []

    def generator(question: str) -> Iterator[str]:
        try:
            while True:
                yield "word " * 20
        finally:
            ended.append("generator")

    async def agenerator(question: str) -> AsyncIterator[str]:
        try:
            while True:
                yield "word " * 20
                await asyncio.sleep(0.001)
        finally:
            ended.append("async generator")

    log = Memory()
    with Guard(policy=[on_output(lambda text: True, lookback=0)], log=log) as guard:
        if kind == "generator":
            stream = guard.protect(generator)("Hi")
            next(stream)
            stream.close()
        else:

            async def leave() -> None:
                stream = guard.protect(agenerator)("Hi")
                await anext(stream)
                await stream.aclose()

            asyncio.run(leave())
    results = [entry.record for entry in log.entries if isinstance(entry.record, Result)]
    assert [record.error for record in results] == ["Cancelled"]
    _until(lambda: ended == [kind])


def _until(condition: Callable[[], bool]) -> None:
    import time

    end = time.monotonic() + 3
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    assert condition()


def test_calls_at_once_never_mix() -> None:
    with Guard(policy=[HIDE, on_output(shout)]) as guard:
        protected, aprotected = guard.protect(plain), guard.protect(awaited)
        expected = [f"YOU SAID [HIDDEN] {i}" for i in range(64)]
        with ThreadPoolExecutor(16) as pool:
            assert list(pool.map(protected, (f"secret {i}" for i in range(64)))) == expected

        async def all_at_once() -> list[str]:
            return list(await asyncio.gather(*(aprotected(f"secret {i}") for i in range(64))))

        assert asyncio.run(all_at_once()) == expected


def test_candidates_call_the_function_once_each() -> None:
    from isonomy.sdk import Policy, Ranking, hookimpl

    class Longest:
        @hookimpl
        def rank(self, candidates: Any) -> Any:
            best = sorted(candidates, key=lambda c: -len(c.text))
            return Ranking(tuple(c.index for c in best))

    answers = iter(["a", "ccc", "bb"])
    with Guard(policy=Policy([Longest()], candidates=3)) as guard:
        assert guard.protect(lambda question: next(answers))("Hi") == "ccc"
