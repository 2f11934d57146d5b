"""Streams: what leaves, how it ends, and what happens when somebody leaves first."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from functools import partial
from pathlib import Path
from typing import Any

import openai
import pytest

from isonomy.sdk import BackendError, Guard, Message, Replace, ToolCall, check, on_output
from isonomy.sdk.gateway import app
from isonomy.sdk.gateway.events import Events
from isonomy.sdk.gateway.protocol import Protocol

from .conftest import Serve, Served
from .speaking import Speaker

LONG = "This is a rather long answer, said in many small pieces. " * 6


def say(text: str) -> Any:
    return lambda messages: text


def sent(served: Served, **more: Any) -> list[Any]:
    """The events of a stream, decoded; [DONE] as it stands."""
    answer = served.ask("hello", stream=True, **more)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    events = [line for line in answer.text.split("\n\n") if line]
    assert all(event.startswith("data: ") for event in events)
    return [event[6:] if event == "data: [DONE]" else json.loads(event[6:]) for event in events]


def quick() -> Any:
    """A check that may act in mid-stream."""
    return check(lambda text: True, id="quick", stages=["post_validate"], lookback=0)


def test_a_stream_for_the_client(serve: Serve) -> None:
    client = serve(Guard(Speaker(say(LONG), pause=0.001), policy=[quick()])).openai()
    with client.chat.completions.create(
        model="speaker", messages=[{"role": "user", "content": "hello"}], stream=True
    ) as stream:
        chunks = list(stream)
    deltas = [chunk.choices[0].delta for chunk in chunks]
    assert deltas[0].role == "assistant"
    texts = [delta.content for delta in deltas if delta.content]
    assert len(texts) > 3
    assert "".join(texts) == LONG
    assert [chunk.choices[0].finish_reason for chunk in chunks[-2:]] == [None, "stop"]
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[-1].model_extra is not None
    assert chunks[-1].model_extra["isonomy"]["verdict"] == "allow"
    assert chunks[-1].system_fingerprint == "fp_tests"


def test_the_events(serve: Serve) -> None:
    served = serve(Guard(Speaker(say("Hello!")), policy=[on_output(lambda text: True)]))
    events = sent(served, stream_options={"include_usage": True})
    assert events[-1] == "[DONE]"
    usage = events[-2]
    assert usage["choices"] == []
    assert usage["usage"] == {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}
    assert all(event["usage"] is None for event in events[:-2])
    assert [event["choices"][0]["delta"] for event in events[:-2]] == [
        {"role": "assistant", "content": ""},
        {"content": "Hello!"},
        {},
    ]
    assert all("usage" not in event for event in sent(served)[:-1])


def test_what_a_check_replaces_in_mid_stream(serve: Serve) -> None:
    policy = check(
        lambda text: Replace(text.replace("answer", "ANSWER")),
        id="loud",
        stages=["post_validate"],
        lookback=6,
    )
    events = sent(serve(Guard(Speaker(say(LONG), pieces=3), policy=[policy])))
    texts = [event["choices"][0]["delta"].get("content", "") for event in events[:-1]]
    assert "".join(texts) == LONG.replace("answer", "ANSWER")
    assert len(texts) > 4
    assert events[-2]["isonomy"]["verdict"] == "replace"


def test_a_stream_that_is_blocked(serve: Serve) -> None:
    guard = Guard(Speaker(say(LONG)), policy=[on_output(lambda text: False)])
    events = sent(serve(guard))
    text = "".join(event["choices"][0]["delta"].get("content", "") for event in events[:-1])
    assert text == guard.policy.refusal
    assert events[-2]["choices"][0]["finish_reason"] == "content_filter"
    assert "many small pieces" not in json.dumps(events)


def test_a_stream_that_is_blocked_after_a_part_of_it_left(serve: Serve) -> None:
    text = LONG + "a secret" + LONG
    policy = check(lambda text: "secret" not in text, id="no", stages=["post_validate"], lookback=8)
    guard = Guard(Speaker(say(text)), policy=[policy])
    events = sent(serve(guard))
    released = "".join(event["choices"][0]["delta"].get("content", "") for event in events[:-1])
    assert "secret" not in released
    assert released.startswith(LONG[:64])
    assert released.endswith(guard.policy.refusal)
    assert events[-2]["choices"][0]["finish_reason"] == "content_filter"
    assert events[-2]["isonomy"]["verdict"] == "block"


def test_tool_calls_come_whole(serve: Serve) -> None:
    def answer(messages: tuple[Message, ...]) -> Any:
        return (
            ToolCall("call_1", "weather", {"city": "Ghent"}),
            ToolCall("call_2", "weather", {"city": "Gent"}),
        )

    client = serve(Guard(Speaker(answer))).openai()
    with client.chat.completions.stream(
        model="speaker",
        messages=[{"role": "user", "content": "Rain?"}],
        tools=[{"type": "function", "function": {"name": "weather", "parameters": {}}}],
    ) as stream:
        for _ in stream:
            pass
        final = stream.get_final_completion()
    choice = final.choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.tool_calls is not None
    assert [call.id for call in choice.message.tool_calls] == ["call_1", "call_2"]
    assert json.loads(choice.message.tool_calls[1].function.arguments) == {"city": "Gent"}


def test_several_choices_beside_each_other(serve: Serve) -> None:
    count = iter(range(10))
    speaker = Speaker(lambda messages: f"Number {next(count)}. {LONG}", pause=0.002)
    events = sent(serve(Guard(speaker, policy=[quick()])), n=3)
    assert events[-1] == "[DONE]"
    texts = {0: "", 1: "", 2: ""}
    order = []
    for event in events[:-1]:
        choice = event["choices"][0]
        texts[choice["index"]] += choice["delta"].get("content", "")
        order.append(choice["index"])
    assert sorted(texts.values()) == [f"Number {i}. {LONG}" for i in range(3)]
    assert order != sorted(order)
    finished = [event for event in events[:-1] if event["choices"][0]["finish_reason"]]
    assert len({event["isonomy"]["call_id"] for event in finished}) == 3


def test_the_built_in_model_streams(serve: Serve) -> None:
    client = serve(Guard("local:demo", policy=[quick()])).openai()
    asked: list[Any] = [{"role": "user", "content": "How do I reset my password?"}]
    whole = client.chat.completions.create(model="demo", messages=asked, temperature=0)
    with client.chat.completions.create(
        model="demo", messages=asked, temperature=0, stream=True
    ) as stream:
        texts = [chunk.choices[0].delta.content or "" for chunk in stream]
    assert "".join(texts) == whole.choices[0].message.content
    assert len([text for text in texts if text]) > 1


def test_an_error_before_the_first_piece_has_a_status(serve: Serve) -> None:
    served = serve(Guard(Speaker(lambda messages: BackendError("gone", backend="x"))))
    answer = served.ask("hello", stream=True)
    assert answer.status_code == 502
    assert answer.headers["content-type"] == "application/json"
    assert served.ask("", messages=[], stream=True).status_code == 400


def test_an_error_in_mid_stream_is_an_event(serve: Serve) -> None:
    class Breaking(Speaker):
        async def agenerate(self, request: Any, *, on_text: Any = None) -> Any:
            if on_text is not None:
                on_text(LONG)
            await asyncio.sleep(0.1)
            raise BackendError("internal-host went away", backend="x")

    served = serve(Guard(Breaking(), policy=[quick()]))
    events = sent(served)
    assert events[-1] == "[DONE]"
    assert events[-2]["error"]["code"] == "backend_failed"
    assert "internal-host" not in json.dumps(events)
    with (
        pytest.raises(openai.APIError, match="backend failed"),
        served.openai().chat.completions.create(
            model="speaker", messages=[{"role": "user", "content": "hello"}], stream=True
        ) as stream,
    ):
        list(stream)


def cancelled(log: Path, calls: int = 1) -> list[Any]:
    """The results of a log, once there are so many."""
    from isonomy.replay import ReplayLog

    deadline = time.monotonic() + 10
    while True:
        with ReplayLog(log) as replay_log:
            rows = replay_log.sql("select error from calls where error is not null").fetchall()
        if len(rows) >= calls or time.monotonic() > deadline:
            return [error for (error,) in rows]
        time.sleep(0.05)


def test_a_client_that_leaves_in_mid_stream_cancels_its_call(serve: Serve, tmp_path: Path) -> None:
    speaker = Speaker(say(LONG * 10), pause=0.01)
    served = serve(Guard(speaker, policy=[quick()], log=tmp_path / "audit"))
    with served.openai().chat.completions.create(
        model="speaker", messages=[{"role": "user", "content": "hello"}], stream=True
    ) as stream:
        for chunk in stream:
            if chunk.choices[0].delta.content:
                break
    assert speaker.cancelled.wait(5)
    assert cancelled(tmp_path / "audit") == ["Cancelled"]
    assert 'route="chat",status="499"' in served.http.get("/metrics").text


def test_a_stream_that_takes_too_long_ends_with_an_error(serve: Serve, tmp_path: Path) -> None:
    guard = Guard(Speaker(say(LONG * 10), pause=0.02), policy=[quick()], log=tmp_path / "audit")
    events = sent(serve(guard, call_seconds=0.8))
    assert events[-2]["error"]["code"] == "timeout"
    assert events[-1] == "[DONE]"
    assert cancelled(tmp_path / "audit") == ["Cancelled"]


def test_a_stream_that_is_silent_for_long_shows_that_it_lives(serve: Serve) -> None:
    speaker = Speaker(say("Hello, at last."), pause=0.3, pieces=100)
    served = serve(Guard(speaker), keep_alive_seconds=0.05)
    answer = served.ask("hello", stream=True)
    assert answer.text.startswith(": keep-alive\n\n: keep-alive\n\n")
    client = served.openai()
    with client.chat.completions.create(
        model="speaker", messages=[{"role": "user", "content": "hello"}], stream=True
    ) as stream:
        texts = [chunk.choices[0].delta.content or "" for chunk in stream]
    assert "".join(texts) == "Hello, at last."


def deaf(served: Served) -> socket.socket:
    """A client that asks for a stream and reads nothing of it."""
    body = {"model": "speaker", "messages": [{"role": "user", "content": "x"}], "stream": True}
    sent = json.dumps(body).encode()
    connection = socket.create_connection(("127.0.0.1", served.port))
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.sendall(
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        + f"content-length: {len(sent)}\r\n\r\n".encode()
        + sent
    )
    return connection


def until_idle(served: Served, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while "in_flight 1.0" not in served.http.get("/metrics").text:  # the request for them
        assert time.monotonic() < deadline
        time.sleep(0.05)


HUGE = "x" * 30_000_000
"""More than the sockets of both sides hold."""


def test_a_client_that_reads_nothing_is_left_when_its_time_is_up(serve: Serve) -> None:
    served = serve(Guard(Speaker(say(HUGE), pieces=1 << 20)), call_seconds=1.5)
    with deaf(served):
        time.sleep(0.7)
        assert "in_flight 2.0" in served.http.get("/metrics").text
        until_idle(served, 10)


def test_a_client_that_reads_nothing_loses_its_connection() -> None:
    protocol: Any = partial(Protocol, header_seconds=5.0, write_seconds=0.5)
    speaker = Speaker(say(HUGE), pieces=1 << 20)
    with Guard(speaker) as guard:
        served = Served(app(guard), http=protocol)
        try:
            with deaf(served):
                until_idle(served, 10)
                assert len(served.server.server_state.connections) == 1  # that of the metrics
        finally:
            served.close()


def test_the_first_chunk_is_measured(serve: Serve) -> None:
    served = serve(Guard(Speaker(say(LONG)), policy=[quick()]))
    sent(served)
    metrics = served.http.get("/metrics").text
    assert "isonomy_first_chunk_seconds_count 1.0" in metrics


def test_events_never_stand_inside_each_other() -> None:
    written: list[bytes] = []

    async def slow(message: Any) -> None:
        await asyncio.sleep(0)
        if message["type"] == "http.response.body":
            written.append(message["body"])

    async def many() -> None:
        async with Events(slow, {}, alive_seconds=0.0001) as events:
            await asyncio.gather(*(events.data({"text": "a\n\nb"}) for _ in range(50)))
            await events.done()

    asyncio.run(many())
    data = [part for part in b"".join(written).split(b"\n\n") if part]
    assert data.count(b'data: {"text":"a\\n\\nb"}') == 50
    assert set(data) <= {b'data: {"text":"a\\n\\nb"}', b": keep-alive", b"data: [DONE]"}
    assert data[-1] == b"data: [DONE]"
