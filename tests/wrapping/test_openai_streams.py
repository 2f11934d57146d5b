"""Streams of wrapped OpenAI clients: the same chunks, held back until they are judged."""

import asyncio
import json
import threading
import time
from typing import Any

import openai
import pydantic
import pytest
from openai import AsyncOpenAI

from isonomy.sdk import (
    Allow,
    BackendError,
    Block,
    Blocked,
    Guard,
    Replace,
    Retry,
    check,
    hookimpl,
    on_input,
    on_output,
    reply_of,
)

from .openai_server import CUT, Cut, Raw
from .test_openai_chat import HELLO, TOOLS, Person
from .test_openai_responses import TOOL

LONG = "The quick brown fox jumps over the lazy dog. " * 8
CHAT: dict[str, dict[str, Any]] = {
    "plain": {"messages": HELLO},
    "long": {"messages": [{"role": "user", "content": LONG}]},
    "usage": {"messages": HELLO, "stream_options": {"include_usage": True}},
    "tools": {"messages": [{"role": "user", "content": "use tools"}], "tools": TOOLS},
    "n and logprobs": {"messages": HELLO, "n": 3, "logprobs": True},
}
RESPONSES: dict[str, dict[str, Any]] = {
    "plain": {"input": "hello"},
    "long": {"input": LONG},
    "tools": {"input": "use tools", "tools": [TOOL]},
    "thinking and searching": {"input": "think and search"},
}


class Reader:
    """A check that may act in mid-stream: it looks for a word, and hides or stops at it."""

    def __init__(self, word: str, *, instead: str | None = None) -> None:
        self.word, self.instead = word, instead
        self.lookback = len(word) - 1

    @hookimpl
    def post_validate(self, candidate: Any) -> Any:
        if self.word not in candidate.text:
            return Allow()
        if self.instead is None:
            return Block("a bad word")
        return Replace(content=candidate.text.replace(self.word, self.instead))


def reading(word: str, **options: Any) -> Any:
    return check(Reader(word, **options), id="reading")


POLICIES: dict[str, list[Any]] = {
    "nothing judges": [],
    "all is held": [lambda text: True],
    "in mid-stream": [reading("zebra")],
}


def dumped(stream: Any) -> list[dict[str, Any]]:
    return [event.model_dump(warnings=False) for event in stream]


def said(chunks: list[dict[str, Any]], index: int = 0) -> str:
    return "".join(
        choice["delta"].get("content") or ""
        for chunk in chunks
        for choice in chunk["choices"]
        if choice["index"] == index
    )


def spoken(events: list[dict[str, Any]]) -> str:
    return "".join(e["delta"] for e in events if e["type"] == "response.output_text.delta")


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("arguments", CHAT)
def test_the_same_chunks(provider, client, acall, policy, arguments):
    given = {"model": "m", "stream": True, **CHAT[arguments]}
    plain = client.chat.completions.create(**given)
    expected = dumped(plain)

    async def use(c: Any) -> Any:
        stream = await c.chat.completions.create(**given)
        assert isinstance(stream, openai.AsyncStream)
        return [chunk.model_dump() async for chunk in stream], reply_of(stream).verdict

    with Guard(policy=POLICIES[policy]) as guard:
        stream = guard.wrap(client).chat.completions.create(**given)
        assert type(stream) is type(plain)
        assert reply_of(stream) is None or given.get("n")
        assert dumped(stream) == expected
        assert reply_of(stream).verdict in ("allow", "flag")
        chunks, _ = acall(guard, use)
        assert chunks == expected
    assert stream.response.headers["x-request-id"] == plain.response.headers["x-request-id"]
    assert provider.requests == [provider.requests[0]] * 3


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("arguments", RESPONSES)
def test_the_same_events(provider, client, acall, policy, arguments):
    given = {"model": "m", "stream": True, **RESPONSES[arguments]}
    expected = dumped(client.responses.create(**given))

    async def use(c: Any) -> Any:
        return [e.model_dump() async for e in await c.responses.create(**given)]

    with Guard(policy=POLICIES[policy]) as guard:
        assert dumped(guard.wrap(client).responses.create(**given)) == expected
        assert acall(guard, use) == expected


@pytest.mark.parametrize("policy", POLICIES)
def test_the_helpers_of_the_package(provider, client, acall, policy):
    provider.say = lambda body, index: '{"name": "Ann", "age": 5}'
    chat = {"model": "m", "messages": HELLO, "response_format": Person}
    answers = {"model": "m", "input": "hello", "text_format": Person}

    def run(c: Any) -> Any:
        with c.chat.completions.stream(**chat) as stream:
            events = dumped(stream)
            completion = stream.get_final_completion()
        with c.responses.stream(**answers) as stream:
            events += dumped(stream)
            response = stream.get_final_response()
        assert completion.choices[0].message.parsed == response.output_parsed
        assert response.output_parsed == Person(name="Ann", age=5)
        return events, completion.model_dump(warnings=False), response.model_dump(warnings=False)

    async def arun(c: Any) -> Any:
        async with c.chat.completions.stream(**chat) as stream:
            events = [event.model_dump(warnings=False) async for event in stream]
            completion = await stream.get_final_completion()
            assert reply_of(stream).text == '{"name": "Ann", "age": 5}'
        async with c.responses.stream(**answers) as stream:
            events += [event.model_dump(warnings=False) async for event in stream]
            response = await stream.get_final_response()
        return events, completion.model_dump(warnings=False), response.model_dump(warnings=False)

    with Guard(policy=POLICIES[policy]) as guard:
        expected = run(client)
        assert run(guard.wrap(client)) == expected
        assert acall(guard, arun) == expected


def test_raw_responses_of_streams(provider, client, acall):
    given = {"model": "m", "messages": HELLO, "stream": True}
    expected = dumped(client.chat.completions.create(**given))
    with Guard(policy=[reading("zebra")]) as guard:
        wrapped = guard.wrap(client).chat.completions
        raw = wrapped.with_raw_response.create(**given)
        assert raw.request_id
        assert dumped(raw.parse()) == expected
        with wrapped.with_streaming_response.create(**given) as response:
            lines = [line for line in response.iter_lines() if line]
        assert [json.loads(line[6:])["id"] for line in lines[:-1]] == ["chatcmpl-1"] * len(expected)
        assert lines[-1] == "data: [DONE]"

        async def use(c: Any) -> Any:
            raw = await c.chat.completions.with_raw_response.create(**given)
            return [chunk.model_dump() async for chunk in raw.parse()]

        assert acall(guard, use) == expected
    with Guard(policy=[on_output(lambda text: False)]) as guard:
        raw = guard.wrap(client).chat.completions.with_raw_response.create(**given)
        assert said(dumped(raw.parse())) == guard.policy.refusal


def test_chunks_leave_while_the_model_still_speaks(provider, client):
    provider.pause = 0.02
    given = {"model": "m", "messages": [{"role": "user", "content": LONG}], "stream": True}
    with Guard(policy=[reading("zebra")]) as guard:
        with guard.wrap(client).chat.completions.create(**given) as stream:
            first = next(stream)
            sent_at_first = provider.sent
            chunks = [first, *stream]
        assert reply_of(stream).verdict == "allow"
    assert sent_at_first < provider.sent / 2
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == f"You said: {LONG}"


def test_a_word_is_hidden_in_mid_stream(provider, client, acall):
    provider.say = lambda body, index: f"{LONG}the zebra says {LONG}and the zebra goes"
    hidden = provider.say({}, 0).replace("zebra", "horse!")
    chat = {"model": "m", "messages": HELLO, "stream": True, "logprobs": True}
    responses = {"model": "m", "input": "hello", "stream": True}
    with Guard(policy=[reading("zebra", instead="horse!")]) as guard:
        wrapped = guard.wrap(client)
        stream = wrapped.chat.completions.create(**chat)
        chunks = dumped(stream)
        assert said(chunks) == hidden
        assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
        assert "zebra" not in json.dumps(chunks)
        assert {chunk["id"] for chunk in chunks} == {"chatcmpl-1"}
        assert reply_of(stream).verdict == "replace"
        assert [c["choices"][0]["logprobs"] is None for c in chunks[1:5]] == [False] * 4
        events = dumped(wrapped.responses.create(**responses))
        assert spoken(events) == hidden
        assert "zebra" not in json.dumps(events)
        assert [e["sequence_number"] for e in events] == list(range(len(events)))
        assert events[-1]["type"] == "response.completed"
        assert events[-1]["response"]["output"][0]["content"][0]["text"] == hidden
        with wrapped.responses.stream(model="m", input="hello") as helper:
            assert helper.get_final_response().output_text == hidden
        with wrapped.chat.completions.stream(model="m", messages=HELLO) as helper:
            assert helper.get_final_completion().choices[0].message.content == hidden

        async def use(c: Any) -> Any:
            stream = await c.chat.completions.create(**chat)
            return said([chunk.model_dump() async for chunk in stream])

        assert acall(guard, use) == hidden


def test_a_stream_that_is_stopped_in_the_middle(provider, client, acall):
    provider.say = lambda body, index: f"{LONG}the zebra says {LONG}"
    chat = {
        "model": "m",
        "messages": HELLO,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    with Guard(policy=[reading("zebra")]) as guard:
        wrapped = guard.wrap(client)
        plain = wrapped.chat.completions.create(model="m", messages=HELLO)
        stream = wrapped.chat.completions.create(**chat)
        chunks = dumped(stream)
        reply = reply_of(stream)
        assert said(chunks) == reply.text == plain.choices[0].message.content
        assert said(chunks).startswith(LONG[:64])
        assert said(chunks).endswith(guard.policy.refusal)
        assert "zebra" not in said(chunks)
        assert chunks[-2]["choices"][0]["finish_reason"] == "content_filter"
        assert chunks[-1]["usage"]["total_tokens"] == 16
        events = dumped(wrapped.responses.create(model="m", input="hello", stream=True))
        assert spoken(events) == reply.text
        final = events[-1]
        assert final["type"] == "response.incomplete"
        assert final["response"]["status"] == "incomplete"
        assert final["response"]["incomplete_details"]["reason"] == "content_filter"
        assert final["response"]["output"][0]["content"][0]["text"] == reply.text
        with wrapped.responses.stream(model="m", input="hello") as helper:
            assert list(helper)[-1].type == "response.incomplete"
        strict = guard.wrap(client, on_block="raise")
        heard: list[str] = []
        strictly = strict.chat.completions.create(**chat)
        with pytest.raises(Blocked) as caught:
            heard.extend(chunk.choices[0].delta.content or "" for chunk in strictly)
        assert LONG.startswith("".join(heard)[:300])
        assert guard.policy.refusal not in "".join(heard)
        assert caught.value.reply.verdict == "block"

        async def use(c: Any) -> Any:
            async for _ in await c.chat.completions.create(**chat):
                pass

        with pytest.raises(Blocked):
            acall(guard, use, on_block="raise")


def test_a_stream_that_is_stopped_before_it_begins(provider, client, acall):
    chat = {"model": "m", "messages": HELLO, "stream": True}
    with Guard(policy=[on_input(lambda text: False)]) as guard:
        wrapped = guard.wrap(client)
        for n in (1, 2):
            stream = wrapped.chat.completions.create(**chat, n=n)
            chunks = dumped(stream)
            for index in range(n):
                assert said(chunks, index) == guard.policy.refusal
            assert chunks[-1]["choices"][0]["finish_reason"] == "content_filter"
            assert reply_of(stream).verdict == "block"
        events = dumped(wrapped.responses.create(model="m", input="hello", stream=True))
        assert spoken(events) == guard.policy.refusal
        assert [event["type"].partition(".")[2] for event in events] == [
            "created",
            "in_progress",
            "output_item.added",
            "content_part.added",
            "output_text.delta",
            "output_text.done",
            "content_part.done",
            "output_item.done",
            "incomplete",
        ]
        with wrapped.responses.stream(model="m", input="hello") as helper:
            assert list(helper)[-1].type == "response.incomplete"
        with (
            pytest.raises(openai.ContentFilterFinishReasonError),
            wrapped.chat.completions.stream(
                model="m", messages=HELLO, response_format=Person
            ) as helper,
        ):
            list(helper)
        with pytest.raises(Blocked):
            guard.wrap(client, on_block="raise").chat.completions.create(**chat)

        async def use(c: Any) -> Any:
            stream = await c.chat.completions.create(**chat)
            return said([chunk.model_dump() async for chunk in stream])

        assert acall(guard, use) == guard.policy.refusal
    assert provider.requests == []


def test_tool_calls_of_a_stream_are_judged_before_they_leave(provider, client):
    class Careful:
        lookback = 0

        @hookimpl
        def tool_call(self, tool_call: Any) -> Any:
            return Block("no") if tool_call.name == "news" else Allow()

    class Moving:
        lookback = 0

        @hookimpl
        def tool_call(self, tool_call: Any) -> Any:
            moved = {**tool_call.arguments, "city": "Rome"}
            from isonomy.sdk import ToolCall

            return Replace(content=(ToolCall(tool_call.id, tool_call.name, moved),))

    given = {"model": "m", "messages": [{"role": "user", "content": "use tools"}], "stream": True}
    with Guard(policy=[check(Careful(), id="careful")]) as guard:
        chunks = dumped(guard.wrap(client).chat.completions.create(**given, tools=TOOLS))
        assert "tool_calls" not in json.dumps([c for c in chunks if c["choices"][0]["delta"]]) or (
            all(not choice["delta"]["tool_calls"] for c in chunks for choice in c["choices"])
        )
        assert said(chunks) == guard.policy.refusal
    with Guard(policy=[check(Moving(), id="moving")]) as guard:
        wrapped = guard.wrap(client)
        with wrapped.chat.completions.stream(
            model="m", messages=given["messages"], tools=TOOLS
        ) as helper:
            final = helper.get_final_completion().choices[0]
        arguments = [json.loads(call.function.arguments) for call in final.message.tool_calls]
        assert arguments == [{"city": "Rome", "days": 0}, {"city": "Rome", "days": 1}]
        assert final.finish_reason == "tool_calls"
        with wrapped.responses.stream(model="m", input="use tools", tools=[TOOL]) as helper:
            events = list(helper)
            (item,) = helper.get_final_response().output
        assert json.loads(item.arguments) == {"city": "Rome", "days": 0}
        assert "Bern" not in "".join(event.model_dump_json() for event in events)


def test_answers_of_a_stream_with_several_are_judged_one_by_one(provider, client):
    def judge(text: str) -> Any:
        if "(1)" in text:
            return False
        return Replace(content="changed") if "(2)" in text else True

    given = {"model": "m", "messages": HELLO, "n": 4, "stream": True, "logprobs": True}
    with Guard(policy=[on_output(judge)]) as guard:
        stream = guard.wrap(client).chat.completions.create(**given)
        chunks = dumped(stream)
        assert [said(chunks, index) for index in range(4)] == [
            "You said: hello",
            guard.policy.refusal,
            "changed",
            "You said: hello (3)",
        ]
        assert "(1)" not in json.dumps(chunks)
        assert [reply_of(stream, index).verdict for index in range(4)] == [
            "allow",
            "block",
            "replace",
            "allow",
        ]
    assert len(provider.requests) == 1


def test_another_round_in_a_stream(provider, client):
    provider.say = lambda body, index: f"round {len(body['messages'])}"

    def judge(text: str) -> Any:
        return Retry(feedback="again") if text == "round 1" else True

    with Guard(policy=[on_output(judge)]) as guard:
        stream = guard.wrap(client).chat.completions.create(model="m", messages=HELLO, stream=True)
        assert said(dumped(stream)) == "round 3"
    assert [len(body["messages"]) for body in provider.requests] == [1, 3]


@pytest.mark.parametrize("status", [400, 401, 429, 500])
def test_errors_at_the_opening_are_the_clients_own(provider, client, acall, status):
    said = json.dumps({"error": {"message": "no"}}).encode()
    provider.answer = lambda body: Raw(said, status=status)
    given = {"model": "m", "messages": HELLO, "stream": True}
    with pytest.raises(openai.APIStatusError) as plain:
        client.chat.completions.create(**given)
    with Guard() as guard:
        for use in (
            lambda: guard.wrap(client).chat.completions.create(**given),
            lambda: acall(guard, lambda c: c.chat.completions.create(**given)),
        ):
            with pytest.raises(openai.APIStatusError) as wrapped:
                use()
            assert type(wrapped.value) is type(plain.value)


CHUNK = {
    "id": "c",
    "object": "chat.completion.chunk",
    "created": 1,
    "model": "m",
    "choices": [{"index": 0, "delta": {"role": "assistant", "content": "Hello"}}],
}
BAD_STREAMS: dict[str, Any] = {
    "an error in mid-stream": Raw(
        b"data: " + json.dumps(CHUNK).encode() + b"\n\n",
        b'data: {"error": {"message": "overloaded", "code": "c"}}\n\n',
        type="text/event-stream",
    ),
    "no JSON": Raw(b"data: {\n\n", type="text/event-stream"),
    "broken UTF-8": Raw(b'data: {"choices": "\xff"}\n\n', type="text/event-stream"),
    "cut": Cut(400),
}


@pytest.mark.parametrize("bad", BAD_STREAMS)
@pytest.mark.parametrize("n", [1, 2])
def test_a_stream_that_breaks_raises_what_the_client_raises(
    provider, client, acall, bad, n, tmp_path
):
    provider.answer = lambda body: BAD_STREAMS[bad]
    given = {"model": "m", "messages": HELLO, "stream": True, "n": n}
    with pytest.raises(Exception) as plain:  # noqa: PT011
        list(client.chat.completions.create(**given))

    async def use(c: Any) -> Any:
        stream = await c.chat.completions.create(**given)
        return [chunk async for chunk in stream]

    with Guard(policy=[lambda text: True], log=tmp_path) as guard:
        stream = guard.wrap(client).chat.completions.create(**given)
        with pytest.raises(type(plain.value)) as wrapped:
            list(stream)
        with pytest.raises(type(plain.value)):
            acall(guard, use)
    assert type(wrapped.value) is type(plain.value)
    assert getattr(wrapped.value, "body", None) == getattr(plain.value, "body", None)
    from .test_openai_chat import events_of

    failed = events_of(tmp_path, "backend_failed")
    assert [event["error"] for event in failed] == ["RemoteError"] * 2


@pytest.mark.parametrize(
    "data",
    [
        {**CHUNK, "choices": [{"index": 0, "delta": {"content": "a\ud800"}}]},
        {**CHUNK, "choices": [{"index": 0, "delta": {"tool_calls": 7}}]},
        {**CHUNK, "choices": [7]},
        [],
        {},
    ],
)
def test_a_stream_that_can_not_be_judged_is_not_released(provider, client, data):
    from isonomy.sdk import BackendError

    body = f"data: {json.dumps(data)}\n\ndata: [DONE]\n\n".encode()
    provider.answer = lambda _: Raw(body, type="text/event-stream")
    with Guard(policy=[lambda text: True]) as guard:
        stream = guard.wrap(client).chat.completions.create(model="m", messages=HELLO, stream=True)
        with pytest.raises(BackendError):
            list(stream)


def test_chunks_that_come_twice_or_never_end_are_judged_as_they_are(provider, client):
    piece = f"data: {json.dumps(CHUNK)}\n\n".encode()
    provider.answer = lambda _: Raw(piece, piece, piece, type="text/event-stream")
    seen = []
    with Guard(policy=[on_output(lambda text: bool(seen.append(text)) or True)]) as guard:
        stream = guard.wrap(client).chat.completions.create(model="m", messages=HELLO, stream=True)
        assert said(dumped(stream)) == "HelloHelloHello"
        assert reply_of(stream).finish_reason == "unknown"
    assert seen == ["HelloHelloHello"]


def test_a_provider_that_stalls_times_out_as_ever(provider, client, acall):
    piece = f"data: {json.dumps(CHUNK)}\n\n".encode()
    provider.answer = lambda _: Raw(piece, 0.6, piece, type="text/event-stream")
    given = {"model": "m", "messages": HELLO, "stream": True, "timeout": 0.1}

    async def use(c: Any) -> Any:
        return [chunk async for chunk in await c.chat.completions.create(**given)]

    with Guard(policy=[lambda text: True]) as guard:
        with pytest.raises(openai.APITimeoutError):
            list(guard.wrap(client).chat.completions.create(**given))
        with pytest.raises(openai.APITimeoutError):
            acall(guard, use)


def results(folder: Any) -> list[Any]:
    from isonomy.replay import ReplayLog

    with ReplayLog(folder) as log:
        return log.sql("select operation, error, output_text from calls order by 1, 2").fetchall()


def test_a_stream_that_is_closed_early_ends_the_model_and_is_recorded(provider, client, tmp_path):
    provider.pause = 0.01
    long = [{"role": "user", "content": LONG * 3}]
    with Guard(policy=[reading("zebra")], log=tmp_path) as guard:
        wrapped = guard.wrap(client)
        with wrapped.chat.completions.create(model="m", messages=long, stream=True) as stream:
            next(stream)
        with wrapped.chat.completions.stream(model="m", messages=long) as helper:
            next(helper)
        time.sleep(0.1)
        sent = provider.sent
        time.sleep(0.1)
        assert provider.sent == sent
    assert [error for _, error, _ in results(tmp_path)] == ["Cancelled", "Cancelled"]


def test_tasks_that_are_cancelled_in_mid_stream_leave_their_record(provider, tmp_path):
    provider.pause = 0.02
    messages = [{"role": "user", "content": LONG}]

    async def run(guard: Guard) -> None:
        async with AsyncOpenAI(api_key="k", base_url=provider.url, max_retries=0) as opened:
            wrapped = guard.wrap(opened)

            async def reading_on() -> None:
                stream = await wrapped.chat.completions.create(
                    model="m", messages=messages, stream=True
                )
                async for _ in stream:
                    heard.set()

            heard = asyncio.Event()
            task = asyncio.create_task(reading_on())
            await heard.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            asking = asyncio.create_task(
                wrapped.chat.completions.create(model="m", messages=messages, stream=True)
            )
            await asyncio.sleep(0.02)
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
            await asyncio.sleep(0.05)
            assert asyncio.all_tasks() == {asyncio.current_task()}

    with Guard(policy=[reading("zebra")], log=tmp_path) as guard:
        asyncio.run(run(guard))
    assert [error for _, error, _ in results(tmp_path)] == ["Cancelled", "Cancelled"]


def test_64_streams_at_once_never_mix(provider):
    def hide(text: str) -> Replace:
        return Replace(content=text.replace("secret", "hidden"))

    async def one(c: Any, n: int) -> str:
        messages = [{"role": "user", "content": f"secret {n} {LONG}"}]
        stream = await c.chat.completions.create(model="m", messages=messages, stream=True)
        return said([chunk.model_dump() async for chunk in stream])

    async def run(guard: Guard) -> list[str]:
        async with AsyncOpenAI(api_key="k", base_url=provider.url, max_retries=0) as opened:
            wrapped = guard.wrap(opened)
            return await asyncio.gather(*(one(wrapped, n) for n in range(64)))

    with Guard(policy=[on_input(hide), reading("hidden", instead="HIDDEN!")]) as guard:
        answers = asyncio.run(run(guard))
    assert answers == [f"You said: HIDDEN! {n} {LONG}" for n in range(64)]


def test_threads_share_a_wrapped_client(provider, client):
    answers: dict[int, str] = {}

    def one(n: int) -> None:
        messages = [{"role": "user", "content": f"secret {n}"}]
        stream = wrapped.chat.completions.create(model="m", messages=messages, stream=True)
        answers[n] = said(dumped(stream))

    with Guard(policy=[reading("secret", instead="hidden")]) as guard:
        wrapped = guard.wrap(client)
        threads = [threading.Thread(target=one, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert answers == {n: f"You said: hidden {n}" for n in range(8)}


def test_a_model_that_is_parsed_at_the_end_of_a_changed_stream(provider, client):
    provider.say = lambda body, index: '{"name": "zebra", "age": 5}'
    with Guard(policy=[reading("zebra", instead="Ann")]) as guard:
        wrapped = guard.wrap(client)
        with wrapped.chat.completions.stream(
            model="m", messages=HELLO, response_format=Person
        ) as stream:
            assert stream.get_final_completion().choices[0].message.parsed.name == "Ann"
        with wrapped.responses.stream(model="m", input="x", text_format=Person) as stream:
            assert stream.get_final_response().output_parsed.name == "Ann"
    assert issubclass(Person, pydantic.BaseModel)


@pytest.mark.parametrize("cut", [1, 2, 3, 31, 32, 33, 1000])
@pytest.mark.parametrize("instead", [None, "horse!", ""])
def test_however_the_answer_is_cut_the_stream_says_what_the_answer_says(
    provider, client, cut, instead
):
    CUT[0] = cut
    provider.say = lambda body, index: f"{LONG[:70]}zebra{LONG[:99]}zebrazebra{LONG[:40]}"
    with Guard(policy=[reading("zebra", instead=instead)]) as guard:
        wrapped = guard.wrap(client)
        whole = wrapped.chat.completions.create(model="m", messages=HELLO)
        text = whole.choices[0].message.content
        stream = wrapped.chat.completions.create(model="m", messages=HELLO, stream=True)
        chunks = dumped(stream)
        assert said(chunks) == text
        assert chunks[-1]["choices"][0]["finish_reason"] == whole.choices[0].finish_reason
        assert reply_of(stream).verdict == reply_of(whole).verdict
        answer = wrapped.responses.create(model="m", input="hello")
        events = dumped(wrapped.responses.create(model="m", input="hello", stream=True))
        assert spoken(events) == answer.output_text == text
        assert events[-1]["response"]["status"] == answer.status
        assert "zebra" not in json.dumps([chunks, events])


def test_the_best_of_several_candidates_is_the_one_that_is_streamed(provider, client):
    from isonomy.sdk import Policy, Ranking

    provider.say = lambda body, index: f"answer {len(provider.requests)}"

    class Second:
        @hookimpl
        def rank(self, candidates: Any) -> Ranking:
            return Ranking((1, 0))

    with Guard(policy=Policy([check(Second(), id="second")], candidates=2)) as guard:
        wrapped = guard.wrap(client)
        answer = wrapped.chat.completions.create(model="m", messages=HELLO, seed=5)
        assert answer.choices[0].message.content == "answer 2"
        assert [body["seed"] for body in provider.requests] == [5, 6]
        provider.requests.clear()
        chunks = dumped(wrapped.chat.completions.create(model="m", messages=HELLO, stream=True))
        assert said(chunks) == "answer 2"
        assert len(provider.requests) == 2


def test_reasoning_and_parts_that_are_not_known_wait_and_are_shown_to_checks(provider, client):
    def chunk(delta: Any, finish: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        return f"data: {json.dumps({**CHUNK, 'choices': [choice]})}\n\n".encode()

    thinking = {"type": "thinking", "thinking": "they want it"}
    body = [
        chunk({"role": "assistant", "reasoning_content": "hmm, "}),
        chunk({"reasoning_content": "secret"}),
        chunk({"content": [thinking]}),
        chunk({"content": [{"type": "text", "text": "Hel"}]}),
        chunk({"content": "lo"}),
        chunk({}, "stop"),
        b"data: [DONE]\n\n",
    ]
    provider.answer = lambda _: Raw(*body, type="text/event-stream")
    seen: list[Any] = []

    class Looking:
        lookback = 0

        @hookimpl
        def post_validate(self, candidate: Any) -> Any:
            seen.append(candidate.content)
            return Allow()

    given = {"model": "m", "messages": HELLO, "stream": True}
    expected = dumped(client.chat.completions.create(**given))
    with Guard(policy=[check(Looking(), id="looking")]) as guard:
        assert dumped(guard.wrap(client).chat.completions.create(**given)) == expected
    assert [type(part).__name__ for part in seen[-1]] == ["Reasoning", "Json", "Text", "Text"]
    with Guard(policy=[on_output(lambda text: Replace(content=text.upper()))]) as guard:
        chunks = dumped(guard.wrap(client).chat.completions.create(**given))
    assert said(chunks) == "HELLO"
    assert "secret" not in json.dumps(chunks)


def test_speech_in_a_stream_is_judged_and_unchanged(provider, client):
    def chunk(delta: Any, finish: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        return f"data: {json.dumps({**CHUNK, 'choices': [choice]})}\n\n".encode()

    body = [
        chunk({"role": "assistant", "audio": {"id": "a1", "transcript": "Hel"}}),
        chunk({"audio": {"transcript": "lo"}}),
        chunk({"audio": {"data": "QUJD", "expires_at": 1}}),
        chunk({}, "stop"),
        b"data: [DONE]\n\n",
    ]
    provider.answer = lambda _: Raw(*body, type="text/event-stream")
    given = {"model": "m", "messages": HELLO, "stream": True}
    expected = dumped(client.chat.completions.create(**given))
    for lookback in (0, "all"):
        with Guard(policy=[on_output(lambda text: True, lookback=lookback)]) as guard:
            wrapped = guard.wrap(client).chat.completions.create(**given)
            assert dumped(wrapped) == expected
            assert reply_of(wrapped).text == "Hello"
    with Guard(policy=[on_output(lambda text: "Hello" not in text)]) as guard:
        told = dumped(guard.wrap(client).chat.completions.create(**given))
    assert said(told) == guard.policy.refusal
    assert "QUJD" not in json.dumps(told)


def test_an_answer_that_nobody_asked_for_ends_a_stream(provider, client):
    def chunk(index: int, delta: Any, finish: str | None = None) -> bytes:
        choice = {"index": index, "delta": delta, "finish_reason": finish}
        return f"data: {json.dumps({**CHUNK, 'choices': [choice]})}\n\n".encode()

    call = {"index": 0, "id": "c", "type": "function"}
    call["function"] = {"name": "secret", "arguments": "{}"}
    body = [
        chunk(0, {"role": "assistant", "content": "fine"}),
        chunk(1, {"role": "assistant", "tool_calls": [call]}),
        chunk(0, {}, "stop"),
        chunk(1, {}, "tool_calls"),
        b"data: [DONE]\n\n",
    ]
    provider.answer = lambda _: Raw(*body, type="text/event-stream")
    with Guard(policy=[on_output(lambda text: True)]) as guard:
        stream = guard.wrap(client).chat.completions.create(model="m", messages=HELLO, stream=True)
        with pytest.raises(BackendError, match="holds 2 answers"):
            dumped(stream)


def test_replies_are_kept_no_longer_than_what_they_belong_to(provider, client):
    import gc

    from isonomy.sdk.wrapping import replies

    with Guard() as guard:
        before = len(replies._kept)
        kept = [
            guard.wrap(client).chat.completions.create(model="m", messages=HELLO) for _ in range(5)
        ]
        assert len(replies._kept) == before + 5
        assert reply_of(kept[0].model_copy()) is None
        kept.clear()
        gc.collect()
        assert len(replies._kept) <= before
