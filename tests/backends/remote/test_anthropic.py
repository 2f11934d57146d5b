"""The messages API, against a server that answers as it does."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from tests.backends.remote.conftest import Opened
from tests.backends.remote.serving import (
    ASK,
    CUT,
    KEY,
    STREAM,
    Endpoint,
    content_of,
    sse,
    told,
)

from isonomy.backends import Anthropic
from isonomy.sdk import Backend, ConfigError, InputError, RemoteError
from isonomy.sdk.generation import Generation, Request, Sampling, Scorer, Usage
from isonomy.sdk.vocabulary import (
    Audio,
    Image,
    Json,
    Message,
    Reasoning,
    Text,
    ToolCall,
    ToolResult,
)

USAGE = {
    "input_tokens": 10,
    "cache_creation_input_tokens": 3,
    "cache_read_input_tokens": 2,
    "output_tokens": 7,
}


def message(*content: Any, stop_reason: str = "end_turn", **fields: Any) -> dict[str, Any]:
    """The body of a successful answer."""
    blocks = [{"type": "text", "text": c} if isinstance(c, str) else c for c in content]
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "claude-small-2026",
        "content": blocks,
        "stop_reason": stop_reason,
        "stop_sequence": None,
        "usage": USAGE,
        **fields,
    }


def events(body: dict[str, Any], size: int = 3) -> list[dict[str, Any]]:
    """The events by which the API streams an answer, its text in pieces of `size` characters."""
    start = {**body, "content": [], "stop_reason": None, "usage": {**USAGE, "output_tokens": 1}}
    result: list[dict[str, Any]] = [{"type": "message_start", "message": start}, {"type": "ping"}]
    for index, block in enumerate(body["content"]):
        grows = {
            "text": ("text", "text_delta", "text"),
            "thinking": ("thinking", "thinking_delta", "thinking"),
            "tool_use": ("input", "input_json_delta", "partial_json"),
        }.get(block["type"])
        if grows is None:
            result += [
                {"type": "content_block_start", "index": index, "content_block": block},
                {"type": "content_block_stop", "index": index},
            ]
            continue
        field, kind, name = grows
        empty: Any = {} if field == "input" else ""
        started = {**block, field: empty}
        if "signature" in block:
            started["signature"] = ""
        result.append({"type": "content_block_start", "index": index, "content_block": started})
        whole = block[field] if isinstance(block[field], str) else json.dumps(block[field])
        deltas = [{"type": kind, name: whole[i : i + size]} for i in range(0, len(whole), size)]
        if "signature" in block:
            deltas.append({"type": "signature_delta", "signature": block["signature"]})
        result += [{"type": "content_block_delta", "index": index, "delta": d} for d in deltas]
        result.append({"type": "content_block_stop", "index": index})
    ending = {"stop_reason": body["stop_reason"], "stop_sequence": body["stop_sequence"]}
    result.append({"type": "message_delta", "delta": ending, "usage": {"output_tokens": 7}})
    return [*result, {"type": "message_stop"}]


def as_bytes(listed: list[dict[str, Any]]) -> bytes:
    return b"".join(sse(event, name=event["type"], done=False) for event in listed)


def as_stream(listed: list[dict[str, Any]]) -> tuple[int, dict[str, str], bytes]:
    return 200, STREAM, as_bytes(listed)


def refusal(status: int, kind: str, text: str, **headers: str) -> tuple[int, dict[str, str], Any]:
    error = {"type": "error", "error": {"type": kind, "message": text}, "request_id": "req_9"}
    return status, headers, error


@pytest.fixture
def anthropic(opened: Opened, endpoint: Endpoint) -> Any:
    endpoint.answers(message("Hello!"))

    def make(**options: Any) -> Any:
        base_url = endpoint.url.removesuffix("/v1")
        return opened("claude-small", kind=Anthropic, base_url=base_url, **options)

    return make


def test_an_answer(endpoint: Endpoint, anthropic: Any) -> None:
    endpoint.answers((200, {"request-id": "req_1"}, message("Hello!")))
    backend = anthropic(headers={"anthropic-beta": "context-1m"})
    assert isinstance(backend, Backend)
    assert not isinstance(backend, Scorer)
    generation = backend.generate(ASK)
    assert generation.content == (Text("Hello!"),)
    assert generation.finish_reason == "stop"
    assert generation.model == "claude-small-2026"
    assert generation.usage == Usage(15, 7)  # all that was read, cached or not
    assert generation.runtime["usage"] == USAGE
    assert generation.runtime["request_id"] == "req_1"
    assert generation.runtime["stop_reason"] == "end_turn"
    assert [(a.number, a.outcome, a.status) for a in generation.attempts] == [(1, "ok", 200)]
    path, headers, body = endpoint.requests[0]
    assert path == "/v1/messages"
    assert headers["x-api-key"] == KEY
    assert headers["anthropic-version"] == "2023-06-01"
    assert headers["anthropic-beta"] == "context-1m"
    assert headers["idempotency-key"] == generation.runtime["idempotency_key"]
    assert body == {
        "model": "claude-small",
        "max_tokens": 4096,
        "messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}],
    }


def test_what_is_sent(endpoint: Endpoint, anthropic: Any) -> None:
    tool = {"name": "find", "description": "Finds.", "parameters": {"type": "object"}}
    request = Request(
        messages=(
            Message.of("system", "Be brief."),
            Message("user", (Text("See"), Image("https://example.org/a.png"))),
            Message("user", (Image("data:image/png;base64,AAEC"), Json({"a": 1}), Text(""))),
            Message.of("system", "And kind."),
            Message(
                "assistant",
                (
                    Reasoning("hm", "sig"),
                    Reasoning("", "redacted_thinking:abc"),
                    Reasoning("of another provider"),
                    Text("Let me see."),
                    ToolCall("c1", "find", {"a": [1]}),
                    ToolCall("c2", "find", {}, "{broken"),
                ),
            ),
            Message("tool", (ToolResult("c1", "one"),)),
            Message("tool", (ToolResult("c2", "two"),)),
            Message.of("user", "Well?"),
            Message("assistant", (ToolCall("c3", "find", {}),)),
            Message.of("user", "Try again."),
        ),
        sampling=Sampling(temperature=0.5, top_p=0.9, top_k=5, max_tokens=9, stop=("a",), seed=1),
        tools=(
            {"type": "function", "function": tool},
            {"type": "function", "function": {"name": "bare"}},
            {"type": "web_search_20250305", "name": "web_search"},
        ),
        response_format={"type": "json_schema", "json_schema": {"schema": {"type": "object"}}},
        extra={
            "tool_choice": "required",
            "parallel_tool_calls": False,
            "thinking": {"type": "enabled", "budget_tokens": 1024},
            "output_config": {"effort": "low"},
            "metadata": {"user_id": "u"},
        },
    )
    anthropic().generate(request)
    assert endpoint.requests[0][2] == {
        "model": "claude-small",
        "max_tokens": 9,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 5,
        "stop_sequences": ["a"],
        "system": [{"type": "text", "text": "Be brief."}, {"type": "text", "text": "And kind."}],
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "See"},
                    {
                        "type": "image",
                        "source": {"type": "url", "url": "https://example.org/a.png"},
                    },
                    {
                        "type": "image",
                        "source": {"type": "base64", "media_type": "image/png", "data": "AAEC"},
                    },
                    {"type": "text", "text": '{"a":1}'},
                ],
            },
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "hm", "signature": "sig"},
                    {"type": "redacted_thinking", "data": "abc"},
                    {"type": "text", "text": "Let me see."},
                    {"type": "tool_use", "id": "c1", "name": "find", "input": {"a": [1]}},
                    {
                        "type": "tool_use",
                        "id": "c2",
                        "name": "find",
                        "input": {"INVALID_JSON": "{broken"},
                    },
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "c1", "content": "one"},
                    {"type": "tool_result", "tool_use_id": "c2", "content": "two"},
                    {"type": "text", "text": "Well?"},
                ],
            },
            {
                "role": "assistant",
                "content": [{"type": "tool_use", "id": "c3", "name": "find", "input": {}}],
            },
            {
                "role": "user",
                "content": [
                    {
                        "type": "tool_result",
                        "tool_use_id": "c3",
                        "content": "This tool was not run.",
                    },
                    {"type": "text", "text": "Try again."},
                ],
            },
        ],
        "tools": [
            {"name": "find", "description": "Finds.", "input_schema": {"type": "object"}},
            {"name": "bare", "input_schema": {"type": "object", "properties": {}}},
            {"type": "web_search_20250305", "name": "web_search"},
        ],
        "tool_choice": {"type": "any", "disable_parallel_tool_use": True},
        "thinking": {"type": "enabled", "budget_tokens": 1024},
        "output_config": {
            "effort": "low",
            "format": {"type": "json_schema", "schema": {"type": "object"}},
        },
        "metadata": {"user_id": "u"},
    }


@pytest.mark.parametrize(
    ("asked", "sent"),
    [
        ({}, None),
        ({"tool_choice": "auto"}, {"type": "auto"}),
        ({"tool_choice": "none", "parallel_tool_calls": False}, {"type": "none"}),
        (
            {"tool_choice": {"type": "function", "function": {"name": "f"}}},
            {"type": "tool", "name": "f"},
        ),
        ({"tool_choice": {"type": "tool", "name": "f"}}, {"type": "tool", "name": "f"}),
        ({"parallel_tool_calls": False}, {"type": "auto", "disable_parallel_tool_use": True}),
        ({"parallel_tool_calls": True}, None),
    ],
)
def test_tool_choice(endpoint: Endpoint, anthropic: Any, asked: Any, sent: Any) -> None:
    anthropic().generate(msgspec.structs.replace(ASK, extra=asked))
    assert endpoint.requests[0][2].get("tool_choice") == sent
    assert "parallel_tool_calls" not in endpoint.requests[0][2]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"messages": (Message("user", (Audio("x"),)),)}, "'user' and holds Audio"),
        ({"messages": (Message("system", (Image("x"),)),)}, "'system' and holds Image"),
        ({"sampling": Sampling(min_p=0.1)}, "has no min_p"),
        ({"sampling": Sampling(temperature=float("inf"))}, "temperature must be a finite number"),
        ({"response_format": {"type": "json_object"}}, "no response format of the type 'json_obj"),
        ({"extra": {"system": "x"}}, "extra can't hold 'system'"),
        ({"extra": {"tool_choice": "sometimes"}}, "tool_choice must be 'auto'"),
    ],
)
def test_what_can_not_be_sent(endpoint: Endpoint, anthropic: Any, changes: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        anthropic().generate(msgspec.structs.replace(ASK, **changes))
    assert endpoint.requests == []


WHOLE = message(
    {"type": "thinking", "thinking": "Let me see.", "signature": "c2ln"},
    {"type": "redacted_thinking", "data": "abc"},
    "So, ",
    "this: \U0001f600",
    {"type": "tool_use", "id": "t1", "name": "find", "input": {"a": [1, "b"]}},
    {"type": "tool_use", "id": "t2", "name": "look", "input": {}},
    {"type": "server_tool_use", "id": "s1", "name": "web_search", "input": {"q": "x"}},
    stop_reason="tool_use",
)


@pytest.mark.parametrize("size", [1, 2, 1000])
def test_streamed_or_not_the_content_is_equal(
    endpoint: Endpoint, anthropic: Any, size: int
) -> None:
    backend = anthropic()
    endpoint.answers(WHOLE)
    whole = backend.generate(ASK)
    assert whole.content == (
        Reasoning("Let me see.", "c2ln"),
        Reasoning("", "redacted_thinking:abc"),
        Text("So, this: \U0001f600"),
        ToolCall("t1", "find", {"a": [1, "b"]}),
        ToolCall("t2", "look", {}),
        Json({"type": "server_tool_use", "id": "s1", "name": "web_search", "input": {"q": "x"}}),
    )
    assert whole.finish_reason == "tool_calls"
    endpoint.answers(as_stream(events(WHOLE, size)))
    streamed, pieces = told(backend)
    assert content_of(streamed) == content_of(whole)
    assert streamed.runtime["usage"] == USAGE
    assert len(pieces) > 2 or size == 1000
    assert endpoint.requests[-1][2]["stream"] is True
    # What it said comes back to it as it said it.
    backend.generate(Request(messages=(*ASK.messages, Message("assistant", whole.content))))
    again = endpoint.requests[-1][2]["messages"][1]["content"]
    joined = {"type": "text", "text": "So, this: \U0001f600"}
    assert again == [*WHOLE["content"][:2], joined, *WHOLE["content"][4:]]


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("end_turn", "stop"),
        ("stop_sequence", "stop"),
        ("max_tokens", "length"),
        ("tool_use", "tool_calls"),
        ("refusal", "content_filter"),
        ("pause_turn", "pause_turn"),
    ],
)
def test_finish_reasons(endpoint: Endpoint, anthropic: Any, said: str, meant: str) -> None:
    endpoint.answers(message("x", stop_reason=said, stop_sequence="##"))
    generation = anthropic().generate(ASK)
    assert generation.finish_reason == meant
    assert generation.runtime["stop_sequence"] == "##"


def test_malformed_arguments(endpoint: Endpoint, anthropic: Any) -> None:
    body = message({"type": "tool_use", "id": "t1", "name": "f", "input": '{"a": '})
    endpoint.answers(as_stream(events(body)))
    assert told(anthropic())[0].content == (ToolCall("t1", "f", {}, '{"a": '),)


TEXT = events(message("Hello"))
CHANGED: dict[str, tuple[list[dict[str, Any]], str]] = {
    "begins twice": ([TEXT[0], *TEXT], "begins twice"),
    "a block twice": ([*TEXT[:3], *TEXT[2:]], "the block 0 begins twice"),
    "a block goes on": ([*TEXT[:6], TEXT[3], *TEXT[6:]], "goes on, and is not open"),
    "a block ends twice": ([*TEXT[:6], TEXT[5], *TEXT[6:]], "goes on, and is not open"),
    "a block of nothing": ([*TEXT[:2], *TEXT[3:]], "goes on, and is not open"),
    "a gap": (
        [TEXT[0], {**TEXT[2], "index": 3}],
        "the block 3 follows 0 blocks",
    ),
    "no event": ([{"typ": "x"}], "missing required field `type`"),
    "no text": (
        [*TEXT[:3], {**TEXT[3], "delta": {"type": "text_delta", "text": 3}}],
        "a text_delta without its text",
    ),
    "a broken block": (
        [TEXT[0], {**TEXT[2], "content_block": {"type": "thinking"}}, *TEXT[5:]],
        "no valid thinking block",
    ),
}


@pytest.mark.parametrize("change", CHANGED)
def test_repeats_and_nonsense(endpoint: Endpoint, anthropic: Any, change: str) -> None:
    listed, said = CHANGED[change]
    endpoint.answers((200, STREAM, b"".join(sse(event, done=False) for event in listed)))
    with pytest.raises(RemoteError, match=said) as caught:
        anthropic().generate(ASK, on_text=lambda _: None)
    assert [a.outcome for a in caught.value.attempts] == ["invalid"]


@pytest.mark.parametrize("body", [b"", b"[]", {"content": 3}, {"content": [{"type": "text"}]}, {}])
def test_nonsense_in_one_piece(endpoint: Endpoint, anthropic: Any, body: Any) -> None:
    endpoint.answers(body if isinstance(body, dict) else (200, {}, body))
    with pytest.raises(RemoteError, match="the answer can't be used") as caught:
        anthropic().generate(ASK)
    assert [a.outcome for a in caught.value.attempts] == ["invalid"]


@pytest.mark.parametrize("length", range(1, len(TEXT)))
def test_a_cut_is_an_error_and_never_a_short_answer(
    endpoint: Endpoint, anthropic: Any, length: int
) -> None:
    endpoint.answers(as_stream(TEXT[:length]), as_stream(events(message("whole"))))
    pieces: list[str] = []
    backend = anthropic()
    if length > 3:  # text was passed on
        with pytest.raises(RemoteError, match="the stream ended before the answer did") as caught:
            backend.generate(ASK, on_text=pieces.append)
        assert [a.outcome for a in caught.value.attempts] == ["cut"]
        assert "Hello".startswith("".join(pieces))
    else:
        assert backend.generate(ASK, on_text=pieces.append).text == "whole"
        assert pieces == ["who", "le"]


def test_a_stall_and_a_broken_connection(endpoint: Endpoint, anthropic: Any) -> None:
    endpoint.answers((200, {}, [as_bytes(TEXT[:4]), 20.0]))
    with pytest.raises(RemoteError, match=r"nothing came for 0.3 s"):
        anthropic(read_timeout=0.3).generate(ASK, on_text=lambda _: None)
    endpoint.answers((200, {}, [as_bytes(TEXT[:4]), CUT]))
    with pytest.raises(RemoteError, match="the answer was cut off"):
        anthropic().generate(ASK, on_text=lambda _: None)


@pytest.mark.parametrize(
    ("status", "kind", "outcome", "tries"),
    [
        (400, "invalid_request_error", "refused", 1),
        (401, "authentication_error", "refused", 1),
        (403, "permission_error", "refused", 1),
        (404, "not_found_error", "refused", 1),
        (413, "request_too_large", "refused", 1),
        (429, "rate_limit_error", "overloaded", 4),
        (500, "api_error", "failed", 4),
        (529, "overloaded_error", "overloaded", 4),
    ],
)
def test_errors(
    endpoint: Endpoint, anthropic: Any, status: int, kind: str, outcome: str, tries: int
) -> None:
    endpoint.answers(refusal(status, kind, f"no, {KEY}"))
    with pytest.raises(RemoteError, match=rf"status {status}: no, \[api key\]") as caught:
        anthropic().generate(ASK)
    assert caught.value.status == status
    assert [(a.outcome, a.status) for a in caught.value.attempts] == [(outcome, status)] * tries
    assert KEY not in repr(vars(caught.value)) + str(caught.value)
    # The same in the middle of a stream.
    error = {"type": "error", "error": {"type": kind, "message": f"no, {KEY}"}}
    endpoint.answers(as_stream([TEXT[0], error]))
    with pytest.raises(
        RemoteError, match=r"the stream told of an error: no, \[api key\]"
    ) as caught:
        anthropic().generate(ASK, on_text=lambda _: None)
    assert [(a.outcome, a.status) for a in caught.value.attempts] == [(outcome, status)] * tries


def test_retry_after_and_then_an_answer(
    endpoint: Endpoint, anthropic: Any, waits: list[float]
) -> None:
    endpoint.answers(
        refusal(429, "rate_limit_error", "slow", **{"retry-after": "7"}),
        refusal(529, "overloaded_error", "busy"),
        message("Hello!"),
    )
    generation = anthropic().generate(ASK)
    assert [a.outcome for a in generation.attempts] == ["overloaded", "overloaded", "ok"]
    assert waits[0] == 7
    assert len({headers["idempotency-key"] for _, headers, _ in endpoint.requests}) == 1


class Gone(Exception):
    """Nobody listens any more."""


@pytest.mark.parametrize("is_async", [False, True])
def test_what_on_text_raises_ends_the_request(
    endpoint: Endpoint, anthropic: Any, is_async: bool
) -> None:
    def endless() -> Iterator[Any]:
        yield as_bytes(TEXT[:3])
        while True:
            yield as_bytes([TEXT[3]])
            yield 0.01

    def leave(piece: str) -> None:
        raise Gone

    endpoint.answers((200, {}, endless()))
    backend = anthropic()

    def ask() -> Generation:
        if is_async:
            return asyncio.run(backend.agenerate(ASK, on_text=leave))
        return backend.generate(ASK, on_text=leave)

    with pytest.raises(Gone):
        ask()
    assert endpoint.gone.wait(10)


def test_seeds_and_defaults(anthropic: Any) -> None:
    backend = anthropic()
    assert backend.resolve(Sampling(seed=3)) == Sampling(max_tokens=4096)
    assert backend.resolve(Sampling(max_tokens=5)).max_tokens == 5
    with pytest.raises(InputError, match="no repetition_penalty"):
        backend.resolve(Sampling(repetition_penalty=1.1))


def test_identity_and_environment(endpoint: Endpoint) -> None:
    official = Anthropic("m", api_key=KEY, environment={}).identity()
    assert (official.provider, official.spec, official.options) == ("anthropic", "anthropic:m", {})
    assert not official.deterministic
    base_url = endpoint.url.removesuffix("/v1")
    with pytest.raises(ConfigError, match="ANTHROPIC_API_KEY"):
        Anthropic("m", environment={})
    endpoint.answers(message("x"))
    backend = Anthropic("m", environment={"ANTHROPIC_BASE_URL": base_url})
    backend.generate(ASK)
    backend.close()
    assert "x-api-key" not in endpoint.requests[0][1]
    assert backend.identity().options == {"base_url": base_url}
    bearer = Anthropic("m", environment={}, headers={"Authorization": f"Bearer {KEY}"})
    assert KEY not in repr(bearer) + repr(bearer.identity())


@pytest.mark.parametrize(
    ("headers", "said"),
    [
        ({"x-a": "b\r\nx-evil: 1"}, "x-a must be one line of ASCII"),
        ({"x-a": "geheim\n"}, "x-a must be one line of ASCII"),
        ({"x a": "1"}, "'x a' can't be a header's name"),
        ({"x-a:": "1"}, "can't be a header's name"),
        ({"X-Api-Key": "geheim"}, "set by the backend itself"),
        ({"x-a": 3}, "one line of ASCII"),
    ],
)
def test_headers_that_can_not_be_sent(headers: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        Anthropic("m", api_key=KEY, environment={}, headers=headers)
    assert "geheim" not in str(caught.value)
    for key in ("k\r\nx-evil: 1", "k\x00"):
        with pytest.raises(ConfigError, match="characters that can't be in one"):
            Anthropic("m", api_key=key, environment={})


def test_the_providers_own_client_reads_the_same(endpoint: Endpoint, anthropic: Any) -> None:
    """What this server writes is what the API writes: the real client takes it."""
    import anthropic as package

    client = package.Anthropic(base_url=endpoint.url.removesuffix("/v1"), api_key=KEY)
    endpoint.answers(as_stream(events(WHOLE)))
    with client.messages.stream(
        model="m", max_tokens=9, messages=[{"role": "user", "content": "Hi"}]
    ) as stream:
        theirs = stream.get_final_message()
    client.close()
    ours, _ = told(anthropic())
    text = "".join(block.text for block in theirs.content if block.type == "text")
    calls = [b for b in theirs.content if b.type == "tool_use"]
    assert ours.text == text
    assert [p for p in ours.content if isinstance(p, ToolCall)] == [
        ToolCall(call.id, call.name, dict(call.input)) for call in calls
    ]
    assert ours.usage.output_tokens == theirs.usage.output_tokens
