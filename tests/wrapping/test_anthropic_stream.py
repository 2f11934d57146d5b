"""Streams of wrapped Anthropic clients: the provider's own events, held back until judged."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import anthropic
import pydantic
import pytest
from tests.sdk.world import Memory
from tests.wrapping.anthropic_server import (
    Block,
    Server,
    asynchronously,
    encoded,
    events,
    failure,
    message,
    opened,
    said,
)
from tests.wrapping.test_anthropic import CASES, THOUGHT, TOOL, USE, comparable, request_of

from isonomy.sdk import Block as Blocks
from isonomy.sdk import Blocked, Guard, InputError, IsonomyError, Replace, check, on_input, reply_of
from isonomy.sdk.checks import Check
from isonomy.sdk.records import Result, Segment

ASK = request_of("text")
LONG = "The quick brown fox jumps over the lazy dog. " * 8


@pytest.fixture
def server() -> Iterator[Server]:
    served = Server()
    served.answer = lambda body: message(LONG)
    yield served
    served.close()


@pytest.fixture
def client(server: Server) -> Iterator[anthropic.Anthropic]:
    with opened(server) as made:
        yield made


def on_output(function: Any, **terms: Any) -> Check:
    return check(function, stages=("post_validate",), **terms)


def allow(text: str) -> bool:
    return True


POLICIES: dict[str, list[Any]] = {
    "free": [on_input(allow)],
    "held": [allow],
    "in mid-stream": [on_output(allow, lookback=3)],
}


def results_in(log: Memory) -> list[Result]:
    return [entry.record for entry in log.entries if isinstance(entry.record, Result)]


class Streamed:
    """What a stream gave: its events, and the error that it ended in, if any."""

    def __init__(self) -> None:
        self.stream: Any = None
        self.events: list[Any] = []
        self.error: Exception | None = None

    @property
    def text(self) -> str:
        return "".join(
            event.delta.text
            for event in self.events
            if event.type == "content_block_delta" and event.delta.type == "text_delta"
        )

    @property
    def stop_reason(self) -> str:
        (delta,) = [event for event in self.events if event.type == "message_delta"]
        return str(delta.delta.stop_reason)


def streamed(client: Any, request: dict[str, Any]) -> Streamed:
    result = Streamed()
    try:
        result.stream = client.messages.create(**request, stream=True)
        for event in result.stream:
            result.events.append(event)
    except Exception as error:
        result.error = error
    return result


async def astreamed(client: Any, request: dict[str, Any]) -> Streamed:
    result = Streamed()
    try:
        result.stream = await client.messages.create(**request, stream=True)
        async for event in result.stream:
            result.events.append(event)
    except Exception as error:
        result.error = error
    return result


def both(server: Server, guard: Guard, request: dict[str, Any], **options: Any) -> list[Streamed]:
    """What a stream gives, sync and async."""
    with opened(server) as client:
        results = [streamed(guard.wrap(client, **options), request)]

    async def use(client: anthropic.AsyncAnthropic) -> Streamed:
        return await astreamed(guard.wrap(client, **options), request)

    return [*results, asynchronously(server, use)]


def folded(made: Streamed) -> Any:
    """What the package's own helper makes of the events."""
    from anthropic.lib.streaming._messages import accumulate_event

    snapshot: Any = None
    for event in made.events:
        snapshot = accumulate_event(event=event, current_snapshot=snapshot, json_bufs={})
    return snapshot


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("case", CASES)
def test_what_the_policy_allows_is_as_unwrapped(
    server: Server, client: anthropic.Anthropic, case: str, policy: str
) -> None:
    server.answer = lambda body: CASES[case][1]
    request = request_of(case)
    plain = streamed(client, request)
    assert plain.error is None
    with Guard(policy=POLICIES[policy]) as guard:
        for made in both(server, guard, request):
            assert made.error is None
            assert made.events == plain.events
            assert [type(event) for event in made.events] == [type(e) for e in plain.events]
            reply = reply_of(made.stream)
            assert reply is not None
            assert not reply.blocked
            assert made.stream.response.headers["request-id"] == "req_011"
    sent = [comparable(request) for request in server.requests]
    assert sent[1] == sent[0]
    assert [body for _, _, body in sent] == [sent[0][2]] * 3


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("case", ["text", "blocks", "tool use", "thinking", "server tools"])
def test_helpers_of_the_package_read_a_guarded_stream(
    server: Server, client: anthropic.Anthropic, case: str, policy: str
) -> None:
    server.answer = lambda body: CASES[case][1]
    request = request_of(case)
    with client.messages.stream(**request) as stream:
        plain = list(stream)
        whole = stream.get_final_message()
    with Guard(policy=POLICIES[policy]) as guard:
        with guard.wrap(client).messages.stream(**request) as stream:
            assert list(stream) == plain
            assert stream.get_final_message() == whole
            assert stream.request_id == "req_011"
            assert reply_of(stream) is not None
        with guard.wrap(client).messages.stream(**request) as stream:
            text = "".join(stream.text_stream)
            assert text == "".join(b.text for b in whole.content if b.type == "text")

        async def use(client: anthropic.AsyncAnthropic) -> Any:
            async with guard.wrap(client).messages.stream(**request) as stream:
                found = [event async for event in stream]
                return found, await stream.get_final_message()

        assert asynchronously(server, use) == (plain, whole)
    assert comparable(server.requests[0]) == comparable(server.requests[1])


def test_types_are_the_packages_own(server: Server, client: anthropic.Anthropic) -> None:
    with Guard(policy=[allow]) as guard:
        with guard.wrap(client).messages.create(**ASK, stream=True) as stream:
            assert isinstance(stream, anthropic.Stream)
            assert next(stream).type == "message_start"
        manager = guard.wrap(client).messages.stream(**ASK)
        assert isinstance(manager, anthropic.MessageStreamManager)

        async def use(client: anthropic.AsyncAnthropic) -> None:
            async with await guard.wrap(client).messages.create(**ASK, stream=True) as stream:
                assert isinstance(stream, anthropic.AsyncStream)
                assert (await anext(stream)).type == "message_start"

        asynchronously(server, use)


def test_text_leaves_before_the_answer_is_complete(server: Server) -> None:
    first, *rest = [encoded(event) for event in events(message(LONG), 40)]
    server.answer = lambda body: [first, *rest[:4], server.release, *rest[4:]]
    with (
        Guard(policy=[on_output(allow, lookback=0)], log=(log := Memory())) as guard,
        opened(server) as client,
    ):
        stream = guard.wrap(client).messages.create(**ASK, stream=True)
        begun = [next(stream) for _ in range(3)]
        assert [event.type for event in begun] == [
            "message_start",
            "content_block_start",
            "content_block_delta",
        ]
        assert not server.release.is_set()
        segments = [e for e in log.entries if isinstance(e.record, Segment)]
        assert segments  # its record was there before it left
        server.release.set()
        assert "".join(_text(event) for event in [*begun, *stream]) == LONG
    assert results_in(log)[0].first_released_ns is not None


def _text(event: Any) -> str:
    return event.delta.text if event.type == "content_block_delta" else ""


# Replacing and blocking


@pytest.mark.parametrize("lookback", [3, "all"])
def test_replaced_text_leaves_in_events_of_the_same_types(server: Server, lookback: Any) -> None:
    cat = on_output(lambda text: Replace(text.replace("fox", "cat")), lookback=lookback)
    with Guard(policy=[cat]) as guard:
        for made in both(server, guard, ASK):
            assert made.error is None
            assert made.text == LONG.replace("fox", "cat")
            assert made.stop_reason == "end_turn"
            assert folded(made).content[0].text == LONG.replace("fox", "cat")
            assert folded(made).usage.output_tokens == 7
            kinds = anthropic.types.RawMessageStreamEvent
            assert all(isinstance(event, get_args(get_args(kinds)[0])) for event in made.events)


def test_what_belonged_to_replaced_text_is_left_out(server: Server) -> None:
    server.answer = lambda body: message(THOUGHT, "My number is 555.", USE, stop_reason="tool_use")
    with Guard(policy=[on_output(lambda text: Replace(text.replace("555", "[x]")))]) as guard:
        for made in both(server, guard, {**ASK, "tools": [TOOL]}):
            whole = folded(made)
            assert [block.type for block in whole.content] == ["text", "tool_use"]
            assert whole.content[0].text == "My number is [x]."
            assert whole.content[1].input == {"city": "Oslo"}
            assert made.stop_reason == "tool_use"
            assert "555" not in repr(made.events)


def test_nothing_but_judged_text_leaves_before_the_end(server: Server) -> None:
    sent = [encoded(e) for e in events(message("x" * 64, THOUGHT, USE, stop_reason="tool_use"), 16)]
    server.answer = lambda body: [*sent[:-1], server.release, sent[-1]]
    with Guard(policy=[on_output(allow, lookback=0)]) as guard, opened(server) as client:
        stream = guard.wrap(client).messages.create(**ASK, stream=True)
        early: list[Any] = []
        threading.Timer(0.3, server.release.set).start()
        for event in stream:
            if server.release.is_set():
                break
            early.append(event)
        assert {event.type for event in early} <= {
            "message_start",
            "content_block_start",
            "content_block_delta",
        }
        assert "".join(map(_text, early)) == "x" * 64
        assert all(getattr(e, "index", 0) == 0 for e in early)
        stream.close()


def test_input_that_is_blocked_never_reaches_the_provider(server: Server) -> None:
    with Guard(policy=[on_input(lambda text: False)], log=(log := Memory())) as guard:
        for made in both(server, guard, ASK):
            assert [event.type for event in made.events] == [
                "message_start",
                "content_block_start",
                "content_block_delta",
                "content_block_stop",
                "message_delta",
                "message_stop",
            ]
            assert made.text == guard.policy.refusal
            assert made.stop_reason == "refusal"
            whole = folded(made)
            assert (whole.usage.input_tokens, whole.usage.output_tokens) == (0, 0)
            assert made.stream.response.status_code == 200
        for made in both(server, guard, ASK, on_block="raise"):
            assert type(made.error) is Blocked
            assert not made.events
    assert not server.requests
    assert [record.verdict for record in results_in(log)] == ["block"] * 4


def test_an_answer_blocked_in_mid_stream_ends_in_a_refusal(server: Server) -> None:
    strict = on_output(lambda text: Blocks("long") if len(text) > 100 else True, lookback=0)
    with Guard(policy=[strict]) as guard:
        for made in both(server, guard, ASK):
            head, _, tail = made.text.partition("\n\n")
            assert LONG.startswith(head)
            assert 64 <= len(head) <= 100
            assert tail == guard.policy.refusal
            assert made.stop_reason == "refusal"
            assert [b.type for b in folded(made).content] == ["text"]
            reply = reply_of(made.stream)
            assert reply is not None
            assert made.text == reply.text == guard.chat("x", backend=_Says(LONG)).text
        for made in both(server, guard, ASK, on_block="raise"):
            assert type(made.error) is Blocked
            assert LONG.startswith(made.text)
            assert len(made.text) <= 100
            assert guard.policy.refusal not in made.text


class _Says:
    """A backend that says one thing."""

    def __init__(self, text: str) -> None:
        self._text = text

    def identity(self) -> Any:
        from isonomy.sdk import Identity

        return Identity(provider="says", model="says", spec="says")

    def resolve(self, sampling: Any) -> Any:
        return sampling

    def generate(self, request: Any, *, on_text: Any = None) -> Any:
        from isonomy.sdk import Generation, Text

        return Generation(content=(Text(self._text),), finish_reason="stop", model="says")

    async def agenerate(self, request: Any, *, on_text: Any = None) -> Any:
        return self.generate(request)

    def close(self) -> None:
        pass


def test_a_blocked_tool_call_takes_the_place_of_the_answer(server: Server) -> None:
    from isonomy.sdk import hookimpl

    class NoTools:
        @hookimpl
        def tool_call(self, tool_call: Any) -> Any:
            return Blocks("no tools")

    server.answer = lambda body: message("I'll look.", USE, stop_reason="tool_use")
    with Guard(policy=[NoTools()]) as guard:
        for made in both(server, guard, {**ASK, "tools": [TOOL]}):
            assert [block.type for block in folded(made).content] == ["text"]
            assert made.text == guard.policy.refusal
            assert made.stop_reason == "refusal"


class Animal(pydantic.BaseModel):
    name: str


def test_structured_output_is_parsed_and_a_refusal_is_not(
    server: Server, client: anthropic.Anthropic
) -> None:
    server.answer = lambda body: message('{"name": "fox"}')
    with (
        Guard(policy=[allow]) as guard,
        guard.wrap(client).messages.stream(**ASK, output_format=Animal) as stream,
    ):
        assert stream.get_final_message().parsed_output == Animal(name="fox")
    with (
        Guard(policy=[on_output(lambda text: Replace('{"name": "cat"}'))]) as guard,
        guard.wrap(client).messages.stream(**ASK, output_format=Animal) as stream,
    ):
        assert stream.get_final_message().parsed_output == Animal(name="cat")
    with Guard(policy=[on_output(lambda text: False)]) as guard:
        with guard.wrap(client).messages.stream(**ASK, output_format=Animal) as stream:
            refused = stream.get_final_message()
        assert refused.parsed_output is None
        assert refused.content[0].text == guard.policy.refusal
        assert refused.stop_reason == "refusal"


# What goes wrong


@pytest.mark.parametrize("status", [400, 401, 429, 500, 529])
def test_errors_at_the_beginning_are_raised_there(
    server: Server, client: anthropic.Anthropic, status: int
) -> None:
    server.answer = lambda body: (status, failure("some_error"))
    plain = streamed(client, ASK)
    with Guard(policy=[allow], log=(log := Memory())) as guard:
        for made in both(server, guard, ASK):
            assert made.stream is None  # `create` itself raised
            assert type(made.error) is type(plain.error)
            assert str(made.error) == str(plain.error)
    assert [record.error for record in results_in(log)] == ["RemoteError"] * 2


def _broken(kind: str) -> list[Any]:
    whole = [encoded(event) for event in events(message(LONG), 40)]
    if kind == "cut":
        return [*whole[:6], ConnectionError()]
    if kind == "ends early":
        return whole[:6]
    if kind == "error event":
        return [*whole[:6], encoded({**failure("overloaded_error"), "type": "error"})]
    if kind == "stalls":
        return [*whole[:6], 5.0]
    if kind == "no UTF-8":
        return [*whole[:6], whole[6].replace(b"fox", b"\xff\xfe").replace(b"dog", b"\xff\xfe")]
    if kind == "no JSON":
        return [*whole[:6], b"event: content_block_delta\ndata: {nope\n\n"]
    if kind == "surrogates":
        delta = {"type": "text_delta", "text": "\ud800"}
        event = {"type": "content_block_delta", "index": 0, "delta": delta}
        return [*whole[:-3], encoded(event), *whole[-3:]]
    if kind == "repeats":
        return [*whole[:6], whole[5], *whole[6:]]
    if kind == "no beginning":
        return whole[1:]
    if kind == "wrong index":
        return [*whole[:4], whole[4].replace(b'"index": 0', b'"index": 7'), *whole[5:]]
    raise AssertionError(kind)


@pytest.mark.parametrize(
    "kind", ["cut", "error event", "stalls", "no UTF-8", "no JSON", "repeats", "ends early"]
)
@pytest.mark.parametrize("policy", ["held", "in mid-stream"])
def test_what_breaks_in_mid_stream_breaks_as_unwrapped(
    server: Server, kind: str, policy: str
) -> None:
    server.answer = lambda body: _broken(kind)
    request = {**ASK, "timeout": 0.3}
    with opened(server) as client:
        unwrapped = [streamed(client, request)]
    unwrapped.append(asynchronously(server, lambda client: astreamed(client, request)))
    with Guard(policy=POLICIES[policy], log=(log := Memory())) as guard:
        for plain, made in zip(unwrapped, both(server, guard, request), strict=True):
            assert type(made.error) is type(plain.error)
            if kind in ("repeats", "ends early"):  # the package reads these like any other
                assert made.events == plain.events
            else:
                assert str(made.error) == str(plain.error)
                assert plain.text.startswith(made.text)
                if policy == "in mid-stream":
                    assert made.text
    expected = None if kind in ("repeats", "ends early") else "RemoteError"
    assert [record.error for record in results_in(log)] == [expected] * 2


@pytest.mark.parametrize("kind", ["surrogates", "wrong index"])
def test_what_cannot_be_judged_is_not_released(server: Server, kind: str) -> None:
    server.answer = lambda body: _broken(kind)
    with Guard(policy=[allow], log=(log := Memory())) as guard:
        for made in both(server, guard, ASK):
            assert isinstance(made.error, IsonomyError)
            assert not made.text
    assert all(record.error for record in results_in(log))
    assert len(results_in(log)) == 2


def test_events_that_are_not_known_are_shown_to_checks(
    server: Server, client: anthropic.Anthropic
) -> None:
    made = events(message("Hello, world."))
    odd: Block = {"type": "odd_delta", "odd": "a secret"}
    made.insert(4, {"type": "content_block_delta", "index": 0, "delta": odd})
    made.insert(-1, {"type": "odd_event", "odd": "another"})
    server.answer = lambda body: [encoded(event) for event in made]
    expected = [type(event) for event in client.messages.create(**ASK, stream=True)]
    seen: list[str] = []
    with Guard(policy=[lambda text: seen.append(text) is None]) as guard:
        stream = guard.wrap(client).messages.create(**ASK, stream=True)
        assert [type(event) for event in stream] == expected
    assert any("a secret" in text for text in seen)
    assert any("another" in text for text in seen)
    with Guard(policy=[on_output(lambda text: "secret" not in text, lookback=0)]) as guard:
        told = list(guard.wrap(client).messages.create(**ASK, stream=True))
    assert "secret" not in str(told)
    hiding = on_output(lambda text: Replace(text.replace("world", "you")))
    with Guard(policy=[hiding]) as guard, guard.wrap(client).messages.stream(**ASK) as helper:
        final = helper.get_final_message()
    assert [block.type for block in final.content] == ["text"]
    assert final.content[0].text == "Hello, you."


def test_a_stream_that_is_closed_hangs_up_and_is_recorded(server: Server) -> None:
    sent = [encoded(event) for event in events(message(LONG), 40)]

    def answer(body: Block) -> list[Any]:
        return [*sent[:6], *[p for _ in range(100) for p in (0.05, b": still here\n\n")]]

    server.answer = answer
    with Guard(policy=[on_output(allow, lookback=0)], log=(log := Memory())) as guard:
        with opened(server) as client:
            with guard.wrap(client).messages.create(**ASK, stream=True) as stream:
                assert [next(stream).type for _ in range(3)][-1] == "content_block_delta"
            assert server.gone.wait(3)
        server.gone.clear()

        async def use(client: anthropic.AsyncAnthropic) -> None:
            async with guard.wrap(client).messages.stream(**ASK) as stream:
                async for _ in stream.text_stream:
                    break
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            assert not tasks
            assert await asyncio.to_thread(server.gone.wait, 3)

        asynchronously(server, use)
    assert [record.error for record in results_in(log)] == ["Cancelled"] * 2
    assert not [t for t in threading.enumerate() if t.name == "isonomy-stream"]


def test_a_provider_that_stalls_does_not_keep_who_closes(server: Server) -> None:
    sent = [encoded(event) for event in events(message(LONG), 40)]
    server.answer = lambda body: [*sent[:6], server.release]
    with (
        Guard(policy=[on_output(allow, lookback=0)], log=(log := Memory())) as guard,
        opened(server) as client,
    ):
        stream = guard.wrap(client).messages.create(**ASK, stream=True)
        next(stream)
        started = time.monotonic()
        stream.close()
        _wait(lambda: not [t for t in threading.enumerate() if t.name == "isonomy-stream"])
        assert time.monotonic() - started < 2
        server.release.set()
    assert [record.error for record in results_in(log)] == ["Cancelled"]


def _wait(condition: Any) -> None:
    until = time.monotonic() + 3
    while not condition() and time.monotonic() < until:
        time.sleep(0.01)
    assert condition()


def test_a_stream_that_is_dropped_is_recorded(server: Server) -> None:
    with (
        Guard(policy=[on_output(allow, lookback=0)], log=(log := Memory())) as guard,
        opened(server) as client,
    ):
        stream = guard.wrap(client).messages.create(**ASK, stream=True)
        next(stream)
        del stream
        gc.collect()
        _wait(lambda: results_in(log))
    assert [record.error for record in results_in(log)] == ["Cancelled"]


def test_a_cancelled_task_is_recorded(server: Server) -> None:
    sent = [encoded(event) for event in events(message(LONG), 40)]
    server.answer = lambda body: [*sent[:6], server.release, *sent[6:]]
    with Guard(policy=[on_output(allow, lookback=0)], log=(log := Memory())) as guard:

        async def use(client: anthropic.AsyncAnthropic) -> None:
            first = asyncio.Event()

            async def read() -> None:
                async for _ in await guard.wrap(client).messages.create(**ASK, stream=True):
                    first.set()

            task = asyncio.create_task(read())
            await first.wait()
            await asyncio.sleep(0.05)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            server.release.set()

        asynchronously(server, use)
    assert [record.error for record in results_in(log)] == ["Cancelled"]


def test_an_invalid_request_is_refused_before_it_is_sent(
    server: Server, client: anthropic.Anthropic
) -> None:
    with Guard(policy=[allow]) as guard:
        bad = {**ASK, "messages": [{"role": "user", "content": [{"type": "hologram"}]}]}
        for made in both(server, guard, bad):
            assert type(made.error) is InputError
    assert not server.requests


def test_64_streams_at_once_never_mix(server: Server) -> None:
    server.answer = lambda body: message(f"{body['messages'][0]['content']} " * 20)
    hide = on_input(lambda text: Replace(text.replace("name", "[hidden]")))
    shout = on_output(lambda text: Replace(text.upper()), lookback=0)
    with Guard(policy=[hide, shout]) as guard:

        async def use(client: anthropic.AsyncAnthropic) -> list[str]:
            wrapped = guard.wrap(client)

            async def one(index: int) -> str:
                made = await astreamed(wrapped, {**ASK, "messages": said(f"name {index}")})
                assert made.error is None, made.error
                return made.text

            return list(await asyncio.gather(*map(one, range(64))))

        made = asynchronously(server, use)
    assert made == [f"[HIDDEN] {index} " * 20 for index in range(64)]


@pytest.mark.parametrize("way", ["create", "stream"])
@pytest.mark.parametrize("case", ["text", "blocks", "tool result", "thinking", "server tools"])
def test_calls_of_a_wrapped_client_are_replayed(
    server: Server, client: anthropic.Anthropic, case: str, way: str, tmp_path: Path
) -> None:
    server.answer = lambda body: CASES[case][1]
    hide = on_input(lambda text: Replace(text.replace("rain", "[weather]")))
    shout = on_output(lambda text: Replace(text.upper()), lookback=0)
    request = {**request_of(case), "stream": way == "stream"}
    with Guard(policy=[hide, shout], log=tmp_path) as guard:
        made = guard.wrap(client).messages.create(**request)
        if way == "stream":
            list(made)
        reply = reply_of(made)
        assert reply is not None
        asked = len(server.requests)
        replayed = guard.replay(reply.call_id)
        assert (replayed.status, replayed.reason) == ("verified", None)
        assert replayed.stand_ins == 1
        assert len(server.requests) == asked


def test_ten_megabytes_pass(server: Server, client: anthropic.Anthropic) -> None:
    text = "a long story " * 800_000
    blocks = [{"type": "text", "text": text[: len(text) // 2]}, {"type": "text", "text": "secret"}]
    server.answer = lambda body: message(text)
    hide = on_input(lambda given: Replace(given.replace("secret", "[gone]")))
    with Guard(policy=[hide, on_output(allow)]) as guard:
        request = {**ASK, "messages": [{"role": "user", "content": blocks}]}
        got = guard.wrap(client).messages.create(**request)
    assert got.content[0].text == text
    assert server.bodies[0]["messages"][0]["content"][1]["text"] == "[gone]"
