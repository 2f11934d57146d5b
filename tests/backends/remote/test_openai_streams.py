"""Streams of an OpenAI-compatible endpoint: the same content as in one piece, however cut."""

import asyncio
import json
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.backends.remote.conftest import Opened
from tests.backends.remote.serving import (
    ASK,
    CUT,
    KEY,
    STREAM,
    Endpoint,
    chunk,
    completion,
    content_of,
    sse,
    streamed,
    told,
)

from isonomy.backends.remote.completion_answers import CompletionReader
from isonomy.backends.remote.events import EventReader
from isonomy.sdk import Guard, InputError, RemoteError
from isonomy.sdk.events import Generated
from isonomy.sdk.generation import Generation, Request, Usage
from isonomy.sdk.vocabulary import Audio, Message, Reasoning, Text, ToolCall


def as_stream(*events: Any, **options: Any) -> tuple[int, dict[str, str], bytes]:
    return 200, STREAM, sse(*events, **options)


def called(index: int | None, id: str | None, name: str | None, arguments: Any) -> dict[str, Any]:
    call: dict[str, Any] = {"function": {"name": name, "arguments": arguments}}
    if index is not None:
        call["index"] = index
    if id is not None:
        call |= {"id": id, "type": "function"}
    return call


def test_text_comes_as_it_is_written(endpoint: Endpoint, opened: Opened) -> None:
    endpoint.answers(as_stream(*streamed("Hel", "lo", "!")))
    generation, pieces = told(opened())
    assert pieces == ["Hel", "lo", "!"]
    assert generation.content == (Text("Hello!"),)
    assert generation.finish_reason == "stop"
    assert generation.model == "small-2026"
    assert generation.usage == Usage(12, 3)
    assert [a.outcome for a in generation.attempts] == ["ok"]
    body = endpoint.requests[0][2]
    assert body["stream"] is True
    assert body["stream_options"] == {"include_usage": True}
    # What was received, as JSON.
    assert generation.raw is not None
    assert [c["choices"] for c in json.loads(generation.raw)][-1] == []


def test_streamed_or_not_the_content_is_equal(endpoint: Endpoint, opened: Opened) -> None:
    backend = opened()
    endpoint.answers(completion("Hello!"))
    whole = backend.generate(ASK)
    endpoint.answers(as_stream(*streamed("Hel", "lo!")))
    assert content_of(told(backend)[0]) == content_of(whole)
    assert "stream" not in endpoint.requests[0][2]


def test_the_first_piece_is_there_before_the_last_is_written(
    endpoint: Endpoint, opened: Opened
) -> None:
    release = threading.Event()

    def body() -> Iterator[bytes]:
        yield sse(chunk(content="first "), done=False)
        assert release.wait(10)
        yield sse(chunk(content="last"), chunk("stop"))
        yield b""

    for ask in ("generate", "agenerate"):
        release.clear()
        endpoint.answers((200, {}, body()))
        pieces: list[str] = []

        def take(piece: str, pieces: list[str] = pieces) -> None:
            pieces.append(piece)
            release.set()

        backend = opened()
        if ask == "generate":
            backend.generate(ASK, on_text=take)
        else:
            asyncio.run(backend.agenerate(ASK, on_text=take))
        assert pieces == ["first ", "last"]


def test_on_text_is_called_where_the_caller_is(endpoint: Endpoint, opened: Opened) -> None:
    endpoint.answers(as_stream(*streamed("a", "b")))
    seen: set[Any] = set()
    opened().generate(ASK, on_text=lambda _: seen.add(threading.get_ident()))

    async def ask() -> None:
        loop = asyncio.get_running_loop()
        await opened().agenerate(
            ASK, on_text=lambda _: seen.add(asyncio.get_running_loop() is loop)
        )

    asyncio.run(ask())
    assert seen == {threading.get_ident(), True}


def test_usage_is_not_asked_for_where_the_endpoint_refuses(
    endpoint: Endpoint, opened: Opened
) -> None:
    endpoint.answers(as_stream(*streamed("x")[:-1]))
    generation, _ = told(opened(stream_usage=False))
    assert "stream_options" not in endpoint.requests[0][2]
    assert generation.usage == Usage(None, None)
    asked = msgspec.structs.replace(ASK, extra={"stream_options": {"include_obfuscation": False}})
    told(opened(), asked)
    assert endpoint.requests[-1][2]["stream_options"] == {
        "include_usage": True,
        "include_obfuscation": False,
    }
    endpoint.answers(completion())
    opened().generate(asked)
    assert "stream_options" not in endpoint.requests[-1][2]


def test_reasoning_tool_calls_and_evidence(endpoint: Endpoint, opened: Opened) -> None:
    details = {"completion_tokens_details": {"reasoning_tokens": 2}}
    chunks = [
        chunk(role="assistant", content=None, reasoning_content="Let me "),
        chunk(reasoning_content="see."),
        chunk(content="So: "),
        chunk(tool_calls=[called(0, "c1", "find", "")]),
        chunk(tool_calls=[called(0, None, None, '{"a": '), called(1, "c2", "look", '{"b"')]),
        chunk(tool_calls=[called(0, None, None, "[1]}"), called(1, None, None, ": 2")]),
        chunk("tool_calls"),
        {**chunk(), "choices": [], "usage": {"prompt_tokens": 3, **details}},
    ]
    chunks = [{**c, "system_fingerprint": "fp_1"} for c in chunks]
    endpoint.answers(as_stream(*chunks))
    generation, pieces = told(opened())
    assert pieces == ["So: "]
    assert generation.content == (
        Reasoning("Let me see."),
        Text("So: "),
        ToolCall("c1", "find", {"a": [1]}),
        ToolCall("c2", "look", {}, '{"b": 2'),
    )
    assert generation.finish_reason == "tool_calls"
    assert generation.runtime["system_fingerprint"] == "fp_1"
    assert generation.runtime["usage"] == details
    calls = [
        {"id": "c1", "function": {"name": "find", "arguments": '{"a": [1]}'}},
        {"id": "c2", "function": {"name": "look", "arguments": '{"b": 2'}},
    ]
    whole = completion(
        "So: ", finish_reason="tool_calls", reasoning_content="Let me see.", tool_calls=calls
    )
    endpoint.answers({**whole, "system_fingerprint": "fp_1", "usage": {"prompt_tokens": 3}})
    other = opened().generate(ASK)
    assert content_of(other) == content_of(generation)
    assert other.runtime["system_fingerprint"] == "fp_1"


@pytest.mark.parametrize(
    "calls",
    [
        # Several calls with one index, told apart by their ids.
        [called(0, "c1", "f", '{"a": 1}'), called(0, "c2", "g", '{"b": 2}')],
        # No index at all.
        [called(None, "c1", "f", '{"a": 1}'), called(None, "c2", "g", '{"b": 2}')],
        [called(None, "c1", "f", '{"a"'), called(None, None, None, ": 1}"),
         called(None, "c2", "g", {"b": 2})],
        # Id and name repeated with every piece.
        [called(0, "c1", "f", '{"a"'), called(0, "c1", "f", ": 1}"), called(1, "c2", "g", ""),
         called(1, "c2", "g", '{"b": 2}')],
    ],
)  # fmt: skip
def test_tool_calls_as_servers_cut_them(
    endpoint: Endpoint, opened: Opened, calls: list[Any]
) -> None:
    endpoint.answers(as_stream(*(chunk(tool_calls=[c]) for c in calls), chunk("tool_calls")))
    assert told(opened())[0].content == (
        ToolCall("c1", "f", {"a": 1}),
        ToolCall("c2", "g", {"b": 2}),
    )


def test_a_refusal_and_speech(endpoint: Endpoint, opened: Opened) -> None:
    endpoint.answers(as_stream(chunk(refusal="I "), chunk(refusal="won't."), chunk("stop")))
    generation, pieces = told(opened())
    assert (generation.text, generation.finish_reason) == ("I won't.", "refusal")
    assert pieces == ["I won't."]
    spoken = [
        {"id": "a1", "transcript": "Hel"},
        {"data": "AAE="},
        {"transcript": "lo", "data": "Ag=="},
    ]
    endpoint.answers(as_stream(*(chunk(audio=audio) for audio in spoken), chunk("stop")))
    generation, pieces = told(opened())
    assert pieces == ["Hel", "lo"]
    assert generation.content == (
        Text("Hello"),
        Audio("data:audio/pcm16;base64,AAEC", media_type="audio/pcm16"),
    )
    asked = msgspec.structs.replace(ASK, extra={"audio": {"voice": "x", "format": "mp3"}})
    endpoint.answers(completion(None, audio={"data": "AAEC", "transcript": "Hello"}))
    assert opened().generate(asked).content == (
        Text("Hello"),
        Audio("data:audio/mpeg;base64,AAEC", media_type="audio/mpeg"),
    )


def test_other_candidates_are_not_mixed_in(endpoint: Endpoint, opened: Opened) -> None:
    other = chunk(content="other")
    other["choices"][0]["index"] = 1
    endpoint.answers(as_stream(chunk(content="mine"), other, chunk("stop")))
    assert told(opened())[0].text == "mine"


def test_an_endpoint_that_only_has_one_way(endpoint: Endpoint, opened: Opened) -> None:
    endpoint.answers(completion("Hello!"))
    generation, pieces = told(opened())
    assert (generation.text, pieces) == ("Hello!", ["Hello!"])
    endpoint.answers(as_stream(*streamed("Hel", "lo!")))
    assert opened().generate(ASK).text == "Hello!"


ENDS = [
    (200, STREAM, sse(chunk(content="x"), done=True)),  # says so without a reason
    (200, STREAM, sse(chunk("length", content="x"), done=False)),  # a reason without saying so
    (200, STREAM, sse(chunk(content="x"), chunk("length"), done=False).removesuffix(b"\n")),
]


@pytest.mark.parametrize("answer", ENDS)
def test_ends_that_are_ends(endpoint: Endpoint, opened: Opened, answer: Any) -> None:
    endpoint.answers(answer)
    assert told(opened())[0].text == "x"


CUTS = {
    "between events": [sse(chunk(content="a"), chunk(content="b"), done=False)],
    "in an event": [sse(chunk(content="a"), chunk(content="b"), done=False)[:-9]],
    "in the reason": [sse(chunk(content="a"), chunk("stop"), done=False)[:-20]],
    "before anything": [sse(chunk(role="assistant"), done=False)],
    "by the connection": [sse(chunk(content="a"), done=False), CUT],
    "by the connection at once": [CUT],
}


@pytest.mark.parametrize("cut", CUTS)
def test_a_cut_is_an_error_and_never_a_short_answer(
    endpoint: Endpoint, opened: Opened, cut: str, waits: list[float]
) -> None:
    endpoint.answers((200, {}, CUTS[cut]), as_stream(*streamed("whole")))
    pieces: list[str] = []
    backend = opened()
    if any(b'"content": "a"' in bit for bit in CUTS[cut] if bit):
        # A part of it was passed on, and is not taken back: nothing is tried again.
        with pytest.raises(RemoteError, match=r"cut off|ended before.*a part of the answer") as e:
            backend.generate(ASK, on_text=pieces.append)
        assert pieces[0] == "a"
        assert [a.outcome for a in e.value.attempts] == ["cut"]
        assert waits == []
    else:
        generation = backend.generate(ASK, on_text=pieces.append)
        assert pieces == ["whole"]
        assert [a.outcome for a in generation.attempts] == ["cut", "ok"]
    # Without anyone who listens it is tried again.
    endpoint.answers((200, {}, CUTS[cut]), completion("whole"))
    generation = opened().generate(ASK)
    assert [a.outcome for a in generation.attempts] == ["cut", "ok"]


def test_a_stall(endpoint: Endpoint, opened: Opened) -> None:
    endpoint.answers((200, {}, [sse(chunk(content="a"), done=False), 20.0]))
    started = time.perf_counter()
    with pytest.raises(RemoteError, match=r"nothing came for 0.3 s.*read_timeout.*passed on") as e:
        opened(read_timeout=0.3).generate(ASK, on_text=lambda _: None)
    assert time.perf_counter() - started < 10
    assert [a.outcome for a in e.value.attempts] == ["timeout"]


def test_a_stream_that_never_ends_meets_the_deadline(endpoint: Endpoint, opened: Opened) -> None:
    def forever() -> Iterator[Any]:
        while True:
            yield b": still here\n\n"
            yield 0.02

    endpoint.answers((200, {}, forever()))
    with pytest.raises(RemoteError, match=r"no complete answer within 0.3 s"):
        opened(timeout=0.3, max_attempts=1).generate(ASK, on_text=lambda _: None)


@pytest.mark.parametrize(
    ("events", "said"),
    [
        ([chunk("stop"), chunk(content="more")], "goes on after its end"),
        ([chunk(content="x"), chunk("stop"), chunk(content="x")], "goes on after its end"),
        ([b"<html>"], "it is not JSON"),
        ([b'{"choices": {}}'], "not a chunk of a chat completion"),
        ([chunk(tool_calls=[{"index": 0, "type": "custom"}])], "of type 'custom'"),
        ([chunk(audio={"data": "%"}), chunk("stop")], "audio is not base64"),
    ],
)
def test_nonsense(endpoint: Endpoint, opened: Opened, events: list[Any], said: str) -> None:
    endpoint.answers(as_stream(*events))
    with pytest.raises(RemoteError, match=said) as caught:
        opened().generate(ASK, on_text=lambda _: None)
    assert [(a.outcome, a.status) for a in caught.value.attempts] == [("invalid", 200)]


@pytest.mark.parametrize(
    ("event", "name", "outcome", "tries"),
    [
        ({"error": {"message": "out of memory", "code": 500}}, "", "failed", 4),
        ({"error": {"message": "out of memory"}}, "", "failed", 4),
        ({"error": {"message": "out of memory", "code": 429}}, "", "overloaded", 4),
        ({"error": {"message": "out of memory", "code": 400}}, "", "refused", 1),
        ({"error": "out of memory"}, "error", "failed", 4),
        ({"message": "out of memory"}, "error", "failed", 4),
    ],
)
def test_errors_in_the_middle_of_a_stream(
    endpoint: Endpoint, opened: Opened, event: Any, name: str, outcome: str, tries: int
) -> None:
    endpoint.answers(as_stream(event, name=name))
    with pytest.raises(RemoteError, match=r"the stream told of an error: .*out of memory") as e:
        opened().generate(ASK, on_text=lambda _: None)
    assert [a.outcome for a in e.value.attempts] == [outcome] * tries


def test_broken_utf8_and_lone_surrogates(endpoint: Endpoint, opened: Opened) -> None:
    half = b'{"choices": [{"index": 0, "delta": {"content": "%s"}}]}'
    endpoint.answers(
        as_stream(
            half % rb"a\ud83d",  # one character in two events
            half % rb"\ude00b",
            half % b"\xff",
            half % rb"\ude00c\ud83d",
            half % rb"d\ud83d",
            chunk("stop"),
        )
    )
    generation, pieces = told(opened())
    assert generation.text == "a\U0001f600b\ufffd\ufffdc\ufffdd\ufffd"
    assert pieces[:2] == ["a", "\U0001f600b"]
    assert generation.runtime["repaired"] is True
    msgspec.json.encode(generation)
    body = rb'{"choices": [{"message": {"content": "a\ud83d' + b"\xff" + rb'"}}]}'
    endpoint.answers(body)
    generation = opened().generate(ASK)
    assert generation.text == "a\ufffd\ufffd"
    assert generation.runtime["repaired"] is True
    assert generation.runtime["received"].encode("latin-1") == body
    msgspec.json.encode(generation)


def test_bytes_that_are_no_utf8_are_in_the_log_as_they_were(
    endpoint: Endpoint, opened: Opened, tmp_path: Path
) -> None:
    from isonomy.replay import ReplayLog

    body = rb'{"choices": [{"message": {"content": "caf\ud83d' + b"\xe9 \xc3\xa9 KEY" + rb'"}}]}'
    endpoint.answers(body.replace(b"KEY", KEY.encode()))
    with Guard(opened(), log=tmp_path / "log") as guard:
        call_id = guard.chat("hello").call_id
    (event,) = ReplayLog(tmp_path / "log").call(call_id).events
    assert isinstance(event, Generated)
    received = event.generation.runtime["received"].encode("latin-1")
    # All but the key, which is in no record.
    before, after = body.split(b"KEY")
    assert received.startswith(before)
    assert received.endswith(after)
    assert KEY.encode() not in received
    # Text that is UTF-8, whatever it holds, stands as it came.
    body = rb'{"choices": [{"message": {"content": "\ud83d \u0000 ' + "é".encode() + rb'"}}]}'
    endpoint.answers(body)
    with Guard(opened(), log=tmp_path / "log") as guard:
        call_id = guard.chat("hello").call_id
    (event,) = ReplayLog(tmp_path / "log").call(call_id).events
    assert isinstance(event, Generated)
    assert event.generation.raw == body.decode()
    assert "received" not in event.generation.runtime


def test_the_key_in_pieces_is_nowhere(endpoint: Endpoint, opened: Opened) -> None:
    text = f"your key is {KEY}, is it not? sk-very"
    endpoint.answers(as_stream(*streamed(*text), {"note": KEY}))
    generation, pieces = told(opened())
    assert generation.text == "your key is [api key], is it not? sk-very"
    assert KEY not in msgspec.json.encode(generation).decode().replace('"},"', "")
    assert len(pieces) > 10
    said = {"function": {"name": "f", "arguments": json.dumps({KEY: KEY})}, "id": KEY}
    endpoint.answers(completion("x", reasoning=KEY, tool_calls=[said]))
    assert KEY not in repr(opened().generate(ASK))
    endpoint.answers(as_stream({"error": {"message": f"bad key {KEY}", "code": 401}}))
    with pytest.raises(RemoteError) as caught:
        opened().generate(ASK, on_text=lambda _: None)
    shown = "".join(traceback.format_exception(caught.value)) + repr(vars(caught.value))
    assert KEY not in shown


@pytest.mark.parametrize("is_stream", [False, True])
def test_huge_answers_are_bounded(endpoint: Endpoint, opened: Opened, is_stream: bool) -> None:
    text = "x" * 10_000_000
    endpoint.answers(as_stream(*streamed(text)) if is_stream else completion(text))
    backend = opened()
    on_text = (lambda _: None) if is_stream else None
    assert backend.generate(ASK, on_text=on_text).text == text
    small = opened(max_bytes=1_000_000)
    with pytest.raises(RemoteError, match=r"longer than 1000000 bytes.*Raise max_bytes") as caught:
        small.generate(ASK, on_text=on_text)
    assert [a.outcome for a in caught.value.attempts] == ["invalid"]
    # An error of 10 MB is read in part, and told in a line.
    endpoint.answers((400, {}, text.encode()))
    with pytest.raises(RemoteError, match="status 400: xxx") as caught:
        small.generate(ASK, on_text=on_text)
    assert len(str(caught.value)) < 1000


class Gone(Exception):
    """Nobody listens any more."""


def leave(piece: str) -> None:
    raise Gone


def endless() -> Iterator[Any]:
    while True:
        yield sse(chunk(content="x"), done=False)
        yield 0.01


@pytest.mark.parametrize("is_async", [False, True])
def test_what_on_text_raises_ends_the_request(
    endpoint: Endpoint, opened: Opened, is_async: bool
) -> None:
    endpoint.answers((200, {}, endless()))
    backend = opened()

    def ask() -> Generation:
        if is_async:
            return asyncio.run(backend.agenerate(ASK, on_text=leave))
        return backend.generate(ASK, on_text=leave)

    with pytest.raises(Gone):
        ask()
    assert endpoint.gone.wait(10)
    assert len(endpoint.requests) == 1
    endpoint.answers(as_stream(*streamed("a")))
    assert backend.generate(ASK, on_text=lambda _: None).text == "a"
    assert backend.circuit == "closed"


def test_cancelling_ends_the_request(endpoint: Endpoint, opened: Opened) -> None:
    endpoint.answers((200, {}, endless()))
    backend = opened()

    async def cancelled() -> None:
        begun = asyncio.Event()
        task = asyncio.create_task(backend.agenerate(ASK, on_text=lambda _: begun.set()))
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancelled())
    assert endpoint.gone.wait(10)


def test_closing_ends_the_request_with_a_sentence(endpoint: Endpoint, opened: Opened) -> None:
    endpoint.answers((200, {}, endless()))
    backend = opened()
    with pytest.raises(Exception, match="was closed"):
        backend.generate(ASK, on_text=lambda _: threading.Thread(target=backend.close).start())
    assert endpoint.gone.wait(10)


@pytest.mark.parametrize("is_stream", [False, True])
def test_many_calls_at_once_do_not_mix(endpoint: Endpoint, opened: Opened, is_stream: bool) -> None:
    def echo(asked: dict[str, Any]) -> Any:
        said = asked["messages"][0]["content"]
        if not asked.get("stream"):
            return completion(said * 9)
        return [sse(event, done=False) for event in streamed(*[said] * 9)]

    endpoint.answers(echo)
    backend = opened()

    async def ask(number: int) -> None:
        pieces: list[str] = []
        said = f"call {number}. "
        generation = await backend.agenerate(
            Request(messages=(Message.of("user", said),)),
            on_text=pieces.append if is_stream else None,
        )
        assert generation.text == said * 9
        assert "".join(pieces) == (said * 9 if is_stream else "")

    async def all_of_them() -> None:
        await asyncio.gather(*(ask(number) for number in range(64)))

    asyncio.run(all_of_them())
    assert len({headers["idempotency-key"] for _, headers, _ in endpoint.requests}) == 64


TEXTS = st.lists(st.text(max_size=8), max_size=6)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(TEXTS, TEXTS, st.booleans(), st.sampled_from([b"\n", b"\r\n", b"\r"]), st.data())
def test_every_cut_of_the_bytes_gives_the_same(
    thoughts: list[str], texts: list[str], escaped: bool, line: bytes, data: st.DataObject
) -> None:
    events = [
        *(chunk(reasoning=thought) for thought in thoughts),
        *(chunk(content=text) for text in texts),
        chunk("stop"),
    ]
    written = sse(*(json.dumps(e, ensure_ascii=escaped).encode() for e in events))
    written = b": hello\n\n" + written.replace(b"\n", line)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(written)), max_size=12)))
    events_of, reader = EventReader(), CompletionReader()
    said = ""
    for start, end in zip([0, *cuts], [*cuts, len(written)], strict=True):
        for event in events_of.feed(written[start:end]):
            said += reader.push(event)
    for event in events_of.finish():
        said += reader.push(event)
    assert reader.ended
    answer = reader.answer()
    assert said == "".join(texts)
    reasoning = (Reasoning("".join(thoughts)),) if any(thoughts) else ()
    assert answer.content == (*reasoning, Text(said))


def test_an_idempotency_key_of_a_call_is_that_of_its_attempts(
    endpoint: Endpoint, opened: Opened
) -> None:
    endpoint.answers((500, {}, b""), (503, {}, b""), completion())
    backend = opened()
    first = backend.generate(ASK)
    second = backend.generate(ASK)
    keys = [headers["idempotency-key"] for _, headers, _ in endpoint.requests]
    assert len(keys) == 4
    assert keys[0] == keys[1] == keys[2] == first.runtime["idempotency_key"]
    assert keys[3] == second.runtime["idempotency_key"] != keys[0]
    assert len(keys[0]) == 36


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ({"model": "other"}, "can't hold 'model'"),
        ({"messages": []}, "can't hold 'messages'"),
        ({"stream": True}, "can't hold 'stream'"),
        ({"temperature": 0.5}, "can't hold 'temperature'.*the sampling"),
        ({"n": 2}, "can't hold 'n': candidates are asked for one by one"),
    ],
)
def test_parameters_that_have_a_place_of_their_own(
    endpoint: Endpoint, opened: Opened, extra: dict[str, Any], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        opened().generate(msgspec.structs.replace(ASK, extra=extra))
    assert endpoint.requests == []


def test_parameters_of_the_providers_own(endpoint: Endpoint, opened: Opened) -> None:
    extra = {"tool_choice": "required", "logit_bias": {"5": -100}, "guided_regex": "a+", "n": 1}
    opened().generate(Request(messages=(Message.of("user", "Hi"),), extra=extra))
    body = endpoint.requests[0][2]
    assert {name: body[name] for name in extra} == extra
