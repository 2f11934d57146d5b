"""Wrapped Anthropic clients, on the loopback: the same requests, the same objects."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import anthropic
import pydantic
import pytest
from tests.sdk.world import Memory, events_in, of_type, request_in
from tests.wrapping.anthropic_server import (
    Block,
    Server,
    asynchronously,
    failure,
    message,
    opened,
    said,
)

from isonomy.sdk import (
    BackendError,
    Blocked,
    Flag,
    Guard,
    InputError,
    Replace,
    Retry,
    Sampling,
    check,
    hookimpl,
    on_input,
    reply_of,
)
from isonomy.sdk import Block as Blocks
from isonomy.sdk.checks import Check
from isonomy.sdk.events import BackendFailed, Generated
from isonomy.sdk.records import Intent, Result

PIXEL = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJg"
)
TOOL = {
    "name": "weather",
    "description": "Tells the weather.",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}},
}
CITATION = {
    "type": "char_location",
    "cited_text": "grass",
    "document_index": 0,
    "document_title": None,
    "start_char_index": 0,
    "end_char_index": 5,
    "file_id": None,
}
USE = {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Oslo"}}
THOUGHT = {"type": "thinking", "thinking": "Let me see.", "signature": "c2ln"}
HIDDEN = {"type": "redacted_thinking", "data": "ZGF0YQ=="}
SEARCH = {
    "type": "server_tool_use",
    "id": "srvtoolu_1",
    "name": "web_search",
    "input": {"query": "x"},
}
FOUND = {
    "type": "web_search_tool_result",
    "tool_use_id": "srvtoolu_1",
    "content": [
        {
            "type": "web_search_result",
            "url": "https://example.org",
            "title": "X",
            "encrypted_content": "abc",
            "page_age": None,
        }
    ],
}


CASES: dict[str, tuple[dict[str, Any], Block]] = {
    "text": ({}, message("Hello, world. This is what I have to say.")),
    "settings": (
        {
            "system": "Be kind.",
            "stop_sequences": ["END"],
            "metadata": {"user_id": "u"},
            "extra_body": {"temperature": 0.5, "top_k": 3},
            "extra_headers": {"x-mine": "1"},
            "messages": [*said("Hi"), {"role": "assistant", "content": "Hello."}, *said("Go on")],
        },
        message("So it ", stop_reason="stop_sequence", stop_sequence="END"),
    ),
    "blocks": (
        {
            "system": [
                {"type": "text", "text": "Be kind.", "cache_control": {"type": "ephemeral"}}
            ],
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": "Look:", "cache_control": {"type": "ephemeral"}},
                        {
                            "type": "image",
                            "source": {"type": "base64", "media_type": "image/png", "data": PIXEL},
                        },
                        {"type": "image", "source": {"type": "url", "url": "https://x/y.png"}},
                        {
                            "type": "document",
                            "title": "T",
                            "context": "C",
                            "citations": {"enabled": True},
                            "source": {"type": "text", "media_type": "text/plain", "data": "grass"},
                        },
                        {
                            "type": "document",
                            "source": {
                                "type": "base64",
                                "media_type": "application/pdf",
                                "data": "JVBERi0=",
                            },
                        },
                        {
                            "type": "search_result",
                            "source": "s",
                            "title": "t",
                            "content": [{"type": "text", "text": "found"}],
                        },
                    ],
                }
            ],
        },
        message({"type": "text", "text": "It is grass.", "citations": [CITATION]}, "Green."),
    ),
    "tool use": ({"tools": [TOOL]}, message("I'll look.", USE, stop_reason="tool_use")),
    "tool result": (
        {
            "tools": [TOOL],
            "tool_choice": {"type": "auto"},
            "messages": [
                *said("How is it in Oslo?"),
                {"role": "assistant", "content": [THOUGHT, HIDDEN, USE]},
                {
                    "role": "user",
                    "content": [
                        {
                            "type": "tool_result",
                            "tool_use_id": "toolu_1",
                            "content": [
                                {"type": "text", "text": "rain"},
                                {"type": "image", "source": {"type": "file", "file_id": "f_1"}},
                            ],
                        },
                        {"type": "text", "text": "So?"},
                    ],
                },
            ],
        },
        message("It rains."),
    ),
    "thinking": (
        {"thinking": {"type": "enabled", "budget_tokens": 1024}},
        message(THOUGHT, HIDDEN, "Hello."),
    ),
    "server tools": (
        {"tools": [{"type": "web_search_20250305", "name": "web_search"}]},
        message("Let me search.", SEARCH, FOUND, "Found."),
    ),
    "structured": (
        {
            "output_config": {
                "effort": "low",
                "format": {"type": "json_schema", "schema": {"type": "object"}},
            }
        },
        message('{"a": 1}'),
    ),
    "nothing": ({}, message(stop_reason="end_turn")),
    "refusal": ({}, message("I won't.", stop_reason="refusal")),
    "cut": ({}, message("It is so long", stop_reason="max_tokens")),
}


def request_of(case: str) -> dict[str, Any]:
    return {"model": "claude-small", "max_tokens": 100, "messages": said("Hi"), **CASES[case][0]}


ASK = request_of("text")


@pytest.fixture
def server() -> Iterator[Server]:
    served = Server()
    yield served
    served.close()


@pytest.fixture
def client(server: Server) -> Iterator[anthropic.Anthropic]:
    with opened(server) as made:
        yield made


def on_output(function: Any, **terms: Any) -> Check:
    return check(function, stages=("post_validate",), **terms)


def both(server: Server, guard: Guard, request: dict[str, Any], **options: Any) -> list[Any]:
    """What `create` gives or raises, sync and async."""
    results = []
    with opened(server) as client:
        results.append(outcome(lambda: guard.wrap(client, **options).messages.create(**request)))

    async def create(client: anthropic.AsyncAnthropic) -> Any:
        try:
            return await guard.wrap(client, **options).messages.create(**request)
        except Exception as error:
            return error

    results.append(asynchronously(server, create))
    return results


def results_in(log: Memory) -> list[Result]:
    return [entry.record for entry in log.entries if isinstance(entry.record, Result)]


def outcome(function: Callable[[], Any]) -> Any:
    try:
        return function()
    except Exception as error:
        return error


def comparable(sent: tuple[str, dict[str, str], Block]) -> Any:
    path, headers, body = sent
    # What differs from one request of the package's to the next.
    return path, {k: v for k, v in headers.items() if k not in ("host", "traceparent")}, body


@pytest.mark.parametrize("case", CASES)
def test_what_the_policy_allows_is_as_unwrapped(
    server: Server, client: anthropic.Anthropic, case: str
) -> None:
    server.answer = lambda body: CASES[case][1]
    request = request_of(case)
    with Guard(policy=[lambda text: True], log=(log := Memory())) as guard:
        plain = client.messages.create(**request)
        wrapped = guard.wrap(client)
        got = wrapped.messages.create(**request)
        assert got == plain
        assert got.to_json() == plain.to_json()
        assert type(got) is anthropic.types.Message
        assert [type(block) for block in got.content] == [type(block) for block in plain.content]
        assert got._request_id == plain._request_id == "req_011"
        assert comparable(server.requests[0]) == comparable(server.requests[1])

        async def create(client: anthropic.AsyncAnthropic) -> Any:
            unwrapped = await client.messages.create(**request)
            return unwrapped, await guard.wrap(client).messages.create(**request)

        unwrapped, wrapped_too = asynchronously(server, create)
        assert unwrapped == wrapped_too == plain
        assert comparable(server.requests[2]) == comparable(server.requests[3])
    reply = reply_of(got)
    assert reply is not None
    assert not reply.blocked
    assert of_type(reply, Generated)[0].generation.model == "claude-small"
    assert log.kinds == ["Intent", "Result"] * 2


def test_a_wrapped_client_is_a_client(server: Server, client: anthropic.Anthropic) -> None:
    with Guard(policy=[on_input(lambda text: Replace("replaced"))]) as guard:
        wrapped = guard.wrap(client)
        assert isinstance(wrapped, anthropic.Anthropic)
        assert isinstance(wrapped.messages, type(client.messages))
        assert type(wrapped).__name__ == "Anthropic"
        assert wrapped.api_key == "key-123"
        assert wrapped.base_url == client.base_url
        for made in (
            wrapped.with_options(timeout=3.0),
            wrapped.copy(max_retries=7),
            wrapped.with_options(timeout=3.0).with_options(max_retries=2),
        ):
            assert isinstance(made, anthropic.Anthropic)
            made.messages.create(**ASK)
            assert server.bodies[-1]["messages"] == said("replaced")
        assert wrapped.with_options(timeout=3.0).timeout == 3.0
        wrapped.messages.create(**ASK)
        client.messages.create(**ASK)
        assert server.bodies[-2]["messages"] == said("replaced")
        assert server.bodies[-1]["messages"] == said("Hi")  # the client itself is as it was

        async def used(client: anthropic.AsyncAnthropic) -> None:
            wrapped = guard.wrap(client)
            assert isinstance(wrapped, anthropic.AsyncAnthropic)
            await wrapped.with_options(timeout=3.0).messages.create(**ASK)

        asynchronously(server, used)
        assert server.bodies[-1]["messages"] == said("replaced")


def test_a_setting_made_later_counts(server: Server, client: anthropic.Anthropic) -> None:
    with Guard(policy=[lambda text: True]) as guard:
        wrapped = guard.wrap(client)
        wrapped.api_key = "another"
        wrapped.messages.create(**ASK)
    assert server.requests[-1][1].get("authorization", "").endswith("another")
    assert client.api_key == "key-123"


def test_what_is_not_guarded_is_refused_by_name(
    server: Server, client: anthropic.Anthropic
) -> None:
    with Guard(policy=[lambda text: True]) as guard:
        wrapped = guard.wrap(client)
        for name in ("beta", "files", "post", "get", "request", "with_raw_response", "skills"):
            with pytest.raises(InputError, match=f"^{name} is not guarded"):
                getattr(wrapped, name)
        for name in ("batches", "with_raw_response", "with_streaming_response"):
            with pytest.raises(InputError, match=f"^messages.{name} is not guarded"):
                getattr(wrapped.messages, name)
        assert wrapped.messages.count_tokens(model="m", messages=said("Hi")).input_tokens == 3
        assert wrapped.models.list().data[0].id == "claude-small"
        allowing = guard.wrap(client, allow=("beta", "messages.batches"))
        assert allowing.beta is not None
        assert allowing.messages.batches is not None
        raw = guard.wrap(client, allow=("messages.with_raw_response",)).messages.with_raw_response
        assert raw.create(**ASK).parse().content[0].text == "Hello, world."
        server.requests.clear()
        with pytest.raises(InputError, match=r"^files is not guarded"):
            _ = allowing.files
    assert not [path for path, _, _ in server.requests if path == "/v1/messages"]


def test_every_public_member_is_guarded_left_or_refused(client: anthropic.Anthropic) -> None:
    """A version of the package with new resources must not open a way past the guard."""
    with Guard(policy=[lambda text: True]) as guard:
        wrapped = guard.wrap(client)
        open_: list[str] = []
        for name in dir(type(client)):
            if not name.startswith("_"):
                try:
                    getattr(wrapped, name)
                except InputError:
                    continue
                open_.append(name)
    resources = [n for n in open_ if "resources" in type(getattr(client, n)).__module__]
    assert resources == ["messages", "models"]


# Replacing


def test_replaced_text_is_of_the_same_types(server: Server) -> None:
    cited = {"type": "text", "text": "My number is 555.", "citations": [CITATION]}
    server.answer = lambda body: message(THOUGHT, cited, USE, stop_reason="tool_use")
    with Guard(policy=[on_output(lambda text: Replace("My number is [gone]."))]) as guard:
        for got in both(server, guard, {**ASK, "tools": [TOOL]}):
            assert type(got) is anthropic.types.Message
            text, use = got.content  # the thinking about the text that was is gone
            assert type(text) is anthropic.types.TextBlock
            assert text.text == "My number is [gone]."
            assert text.citations is None
            assert use == anthropic.types.ToolUseBlock(**USE)
            assert got.stop_reason == "tool_use"
            assert got.usage.output_tokens == 7
            assert got._request_id == "req_011"
            assert "555" not in got.to_json()


def test_text_replaced_by_nothing_and_tools_taken_away(server: Server) -> None:
    class NoTools:
        @hookimpl
        def post_validate(self, candidate: Any) -> Any:
            return Replace("Never mind.")

        @hookimpl
        def tool_call(self, tool_call: Any) -> Any:
            return Flag("seen")

    class Drop:
        @hookimpl
        def post_validate(self, candidate: Any) -> Any:
            from isonomy.sdk import Text

            return Replace((Text(candidate.text),))

    server.answer = lambda body: message("x", USE, stop_reason="tool_use")
    with Guard(policy=[NoTools(), Drop()]) as guard:
        for got in both(server, guard, {**ASK, "tools": [TOOL]}):
            assert [block.type for block in got.content] == ["text"]
            assert got.stop_reason == "end_turn"


def test_replaced_prompts_reach_the_provider_and_nothing_else_changes(server: Server) -> None:
    request = request_of("blocks")
    request["messages"] = [*request["messages"], {"role": "assistant", "content": "Yes?"}]
    request["messages"] += said("My name is Ada.")
    hide = on_input(lambda text: Replace(text.replace("Ada", "[name]")))
    with Guard(policy=[hide]) as guard:
        both(server, guard, request)
    sent = {**request, "messages": [*request["messages"][:-1], *said("My name is [name].")]}
    assert server.bodies == [sent, sent]


def test_a_replaced_block_keeps_its_place_and_its_fields(server: Server) -> None:
    request = request_of("blocks")
    hide = on_input(lambda text: Replace(text.replace("grass", "[plant]")))
    with Guard(policy=[hide]) as guard:
        both(server, guard, request)
    blocks = [dict(block) for block in request["messages"][0]["content"]]
    blocks[3]["source"] = {**blocks[3]["source"], "data": "[plant]"}
    assert server.bodies[0]["messages"][0]["content"] == blocks
    assert server.bodies[1] == server.bodies[0]
    assert request == request_of("blocks")  # what the caller passed is as it was


def test_a_replaced_tool_result_keeps_its_images(server: Server) -> None:
    request = request_of("tool result")
    hide = on_input(lambda text: Replace(text.replace("rain", "[weather]")))
    with Guard(policy=[hide]) as guard:
        both(server, guard, request)
    result, text = server.bodies[0]["messages"][-1]["content"]
    image = request["messages"][-1]["content"][0]["content"][1]
    assert result["content"] == [{"type": "text", "text": "[weather]"}, image]
    assert text == {"type": "text", "text": "So?"}
    assert server.bodies[0]["messages"][:-1] == request["messages"][:-1]


def test_a_system_prompt_is_replaced_by_a_plugin(server: Server) -> None:
    class Kind:
        @hookimpl
        def pre_filter(self, messages: Any) -> Any:
            return Replace(
                tuple(m.with_text("Be brief.") if m.role == "system" else m for m in messages)
            )

    with Guard(policy=[Kind()]) as guard:
        both(server, guard, request_of("settings"))
        assert server.bodies[0] == server.bodies[1]
        assert server.bodies[0]["system"] == "Be brief."
        both(server, guard, request_of("blocks"))
        assert server.bodies[2]["system"] == [
            {"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}
        ]


def test_a_system_prompt_is_added_or_taken_away(server: Server) -> None:
    from isonomy.sdk import Message

    class Add:
        @hookimpl
        def pre_filter(self, messages: Any) -> Any:
            rest = tuple(m for m in messages if m.role != "system")
            return Replace(
                rest if len(rest) < len(messages) else (Message.of("system", "Be brief."), *rest)
            )

    with Guard(policy=[check(Add(), stages=("pre_filter",))], log=None) as guard:
        server.answer = lambda body: message("ok")
        guard.policy.max_rounds = 5
        with opened(server) as client:
            guard.wrap(client).messages.create(**ASK)
            guard.wrap(client).messages.create(**request_of("settings"))
    assert server.bodies[0]["system"] == "Be brief."
    assert server.bodies[0]["messages"] == said("Hi")
    assert "system" not in server.bodies[1]


def test_objects_of_the_package_can_be_sent_back(
    server: Server, client: anthropic.Anthropic
) -> None:
    server.answer = lambda body: message(THOUGHT, "I'll look.", USE, stop_reason="tool_use")
    hide = on_input(lambda text: Replace(text.replace("rain", "[weather]")))
    with Guard(policy=[hide]) as guard:
        wrapped = guard.wrap(client)
        first = wrapped.messages.create(**ASK, tools=[TOOL])
        result = {"type": "tool_result", "tool_use_id": "toolu_1", "content": "rain"}
        again = [
            *said("Hi"),
            {"role": "assistant", "content": first.content},
            {"role": "user", "content": [result]},
        ]
        wrapped.messages.create(**{**ASK, "messages": again}, tools=[TOOL])
    sent = server.bodies[-1]["messages"]
    assert [block["type"] for block in sent[1]["content"]] == ["thinking", "text", "tool_use"]
    assert sent[2]["content"] == [{**result, "content": "[weather]"}]


def test_messages_may_be_made_as_they_are_taken(
    server: Server, client: anthropic.Anthropic
) -> None:
    with Guard(policy=[lambda text: True]) as guard:
        guard.wrap(client).messages.create(**{**ASK, "messages": (m for m in said("Hi"))})
    assert server.bodies[-1]["messages"] == said("Hi")


def test_a_body_beside_the_arguments_does_not_pass_the_guard_by(
    server: Server, client: anthropic.Anthropic
) -> None:
    with Guard(policy=[on_input(lambda text: "bomb" not in text)]) as guard:
        wrapped = guard.wrap(client)
        got = wrapped.messages.create(**ASK, extra_body={"messages": said("a bomb")})
        assert got.stop_reason == "refusal"
        wrapped.messages.create(**ASK, extra_body={"messages": said("a cake")})
    assert [body["messages"] for body in server.bodies] == [said("a cake")]


def test_a_retry_sends_the_answer_back_and_answers_its_tools(server: Server) -> None:
    rounds = iter([Retry("Use words."), True] * 2)
    answers = iter([message("No.", USE, stop_reason="tool_use"), message("Yes.")] * 2)
    server.answer = lambda body: next(answers)
    with Guard(policy=[on_output(lambda text: next(rounds))]) as guard:
        for got in both(server, guard, {**ASK, "tools": [TOOL]}):
            assert got.content[0].text == "Yes."
    assert server.bodies[1]["messages"] == [
        *said("Hi"),
        {"role": "assistant", "content": [{"type": "text", "text": "No."}, USE]},
        {
            "role": "user",
            "content": [
                {
                    "type": "tool_result",
                    "tool_use_id": "toolu_1",
                    "content": "This call was not run.",
                }
            ],
        },
        *said("Use words."),
    ]


def test_a_plugin_asks_the_same_model(server: Server) -> None:
    class Judge:
        @hookimpl
        def post_validate(self, candidate: Any, ctx: Any) -> Any:
            return Flag(ctx.generate("Is this fine?", sampling=Sampling(max_tokens=3)).text)

    with Guard(policy=[Judge()]) as guard:
        for got in both(server, guard, {**ASK, "system": "Be kind."}):
            reply = reply_of(got)
            assert reply is not None
            assert reply.reason == "Hello, world."
    asked = {"model": "claude-small", "max_tokens": 3, "messages": said("Is this fine?")}
    assert [server.bodies[1], server.bodies[3]] == [asked, asked]


def test_an_async_plugin_asks_the_same_model(server: Server) -> None:
    class Judge:
        @hookimpl
        async def post_validate(self, candidate: Any, ctx: Any) -> Any:
            return Flag((await ctx.agenerate("Is this fine?")).text)

    with Guard(policy=[Judge()]) as guard:
        for got in both(server, guard, ASK):
            reply = reply_of(got)
            assert reply is not None
            assert reply.reason == "Hello, world."


def test_a_guards_own_sampling_is_sent_where_the_caller_left_it_open(server: Server) -> None:
    own = Sampling(temperature=0.25, top_k=5, min_p=0.5, stop=("X",), seed=3)
    with Guard(policy=[lambda text: True], sampling=own) as guard:
        both(server, guard, {**ASK, "stop_sequences": ["Y"]})
    sent = {**ASK, "stop_sequences": ["Y"], "temperature": 0.25, "top_k": 5}
    assert server.bodies == [sent, sent]


# Blocking


@pytest.mark.parametrize("stage", ["pre_filter", "post_validate"])
def test_a_blocked_call_is_a_refusal(server: Server, stage: Any) -> None:
    policy = [check(lambda text: Blocks("no"), id="strict", stages=(stage,))]
    with Guard(policy=policy, log=(log := Memory())) as guard:
        for got in both(server, guard, {**ASK, "tools": [TOOL]}):
            assert type(got) is anthropic.types.Message
            assert [block.text for block in got.content] == [guard.policy.refusal]
            assert got.stop_reason == "refusal"
            assert got.stop_sequence is None
            assert got.model == "claude-small"
            assert got.role == "assistant"
            asked = stage != "pre_filter"
            assert (got.usage.input_tokens, got.usage.output_tokens) == (
                (12, 7) if asked else (0, 0)
            )
            reply = reply_of(got)
            assert reply is not None
            assert (reply.verdict, reply.check) == ("block", "strict")
        for error in both(server, guard, ASK, on_block="raise"):
            assert type(error) is Blocked
            assert error.reply.check == "strict"
    assert len(server.requests) == (0 if stage == "pre_filter" else 4)
    assert [r.verdict for r in results_in(log)] == ["block"] * 4


def test_a_blocked_tool_call_is_a_refusal(server: Server) -> None:
    class NoOslo:
        @hookimpl
        def tool_call(self, tool_call: Any) -> Any:
            return Blocks("not there") if tool_call.arguments == {"city": "Oslo"} else None

    server.answer = lambda body: message("I'll look.", USE, stop_reason="tool_use")
    with Guard(policy=[NoOslo()]) as guard:
        for got in both(server, guard, {**ASK, "tools": [TOOL]}):
            assert [block.type for block in got.content] == ["text"]
            assert got.stop_reason == "refusal"


def test_a_blocked_document_or_tool_result_is_a_refusal(server: Server) -> None:
    with Guard(policy=[on_input(lambda text: "grass" not in text and "rain" not in text)]) as guard:
        for case in ("blocks", "tool result"):
            for got in both(server, guard, request_of(case)):
                assert got.stop_reason == "refusal"
    assert not server.requests


def test_blocks_that_cannot_be_judged_are_refused_unless_carried(server: Server) -> None:
    content = [{"type": "text", "text": "Hi"}, {"type": "hologram", "data": "x"}]
    request = {**ASK, "messages": [{"role": "user", "content": content}]}
    with Guard(policy=[lambda text: True]) as guard:
        for error in both(server, guard, request):
            assert type(error) is InputError
            assert "messages[0].content[1]" in str(error)
            assert "hologram" in str(error)
        assert not server.requests
        for got in both(server, guard, request, carry=("hologram",)):
            assert got.content[0].text == "Hello, world."
    assert [body["messages"] for body in server.bodies] == [request["messages"]] * 2


# Structured output


class Animal(pydantic.BaseModel):
    name: str


def test_parse_gives_what_it_gives_unwrapped(server: Server, client: anthropic.Anthropic) -> None:
    server.answer = lambda body: message('{"name": "fox"}')
    with Guard(policy=[lambda text: True]) as guard:
        plain = client.messages.parse(**ASK, output_format=Animal)
        got = guard.wrap(client).messages.parse(**ASK, output_format=Animal)
        assert got == plain
        assert type(got) is type(plain)
        assert got.parsed_output == Animal(name="fox")
        assert got._request_id == "req_011"
        assert comparable(server.requests[0]) == comparable(server.requests[1])
        reply = reply_of(got)
        assert reply is not None

        async def parse(client: anthropic.AsyncAnthropic) -> Any:
            return await guard.wrap(client).messages.parse(**ASK, output_format=Animal)

        assert asynchronously(server, parse) == plain


def test_parse_of_what_a_check_made_of_it(server: Server, client: anthropic.Anthropic) -> None:
    server.answer = lambda body: message('{"name": "fox"}')
    cat = on_output(lambda text: Replace(text.replace("fox", "cat")))
    with Guard(policy=[cat]) as guard:
        got = guard.wrap(client).messages.parse(**ASK, output_format=Animal)
        assert got.parsed_output == Animal(name="cat")
    no_json = Guard(policy=[on_output(lambda text: Replace("no JSON"))])
    with no_json as guard, pytest.raises(pydantic.ValidationError):
        guard.wrap(client).messages.parse(**ASK, output_format=Animal)
    with Guard(policy=[on_output(lambda text: False)]) as guard:
        refused = guard.wrap(client).messages.parse(**ASK, output_format=Animal)
        assert isinstance(refused, anthropic.types.ParsedMessage)
        assert refused.stop_reason == "refusal"
        assert refused.parsed_output is None
        assert refused.content[0].text == guard.policy.refusal


# Errors

STATUSES: dict[int, str] = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "not_found_error",
    429: "rate_limit_error",
    500: "api_error",
    529: "overloaded_error",
}


@pytest.mark.parametrize("status", STATUSES)
def test_errors_of_the_provider_are_the_packages_own(
    server: Server, client: anthropic.Anthropic, status: int
) -> None:
    server.answer = lambda body: (status, failure(STATUSES[status], "no, key-123"))
    plain = outcome(lambda: client.messages.create(**ASK))
    with Guard(policy=[lambda text: True], log=(log := Memory())) as guard:
        for error in both(server, guard, ASK):
            assert type(error) is type(plain)
            assert isinstance(error, anthropic.APIStatusError)
            assert str(error) == str(plain)
            assert error.status_code == status
            assert error.body == plain.body
            assert error.request_id == "req_011"
            assert error.__cause__ is plain.__cause__ is None
    recorded = [event for entry in log.entries for event in events_in(entry)]
    failed = [event for event in recorded if isinstance(event, BackendFailed)]
    assert [event.error for event in failed] == ["RemoteError"] * 2
    assert [event.attempts[0].status for event in failed] == [status] * 2
    assert all("key-123" not in event.message for event in failed)
    assert [r.error for r in results_in(log)] == ["RemoteError"] * 2


def test_the_package_tries_again_as_ever(server: Server) -> None:
    answers = iter([(529, failure("overloaded_error")), message("At last.")])
    server.answer = lambda body: next(answers)
    server.headers = {"retry-after-ms": "1"}
    with (
        Guard(policy=[lambda text: True]) as guard,
        opened(server, max_retries=2) as client,
    ):
        assert guard.wrap(client).messages.create(**ASK).content[0].text == "At last."
    assert len(server.requests) == 2


def test_timeouts_and_dead_hosts_are_the_packages_own(server: Server) -> None:
    server.answer = lambda body: server.release.wait(5) and message("late")
    with Guard(policy=[lambda text: True], log=(log := Memory())) as guard:
        for error in both(server, guard, {**ASK, "timeout": 0.1}):
            assert type(error) is anthropic.APITimeoutError
            assert error.__cause__ is not None
        server.release.set()
        with (
            anthropic.Anthropic(
                api_key="k", base_url="http://127.0.0.1:9", max_retries=0
            ) as client,
            pytest.raises(anthropic.APIConnectionError),
        ):
            guard.wrap(client).messages.create(**ASK)
    assert [r.error for r in results_in(log)] == ["RemoteError"] * 3


def test_arguments_that_the_package_refuses(server: Server, client: anthropic.Anthropic) -> None:
    with Guard(policy=[lambda text: True]) as guard:
        with pytest.raises(TypeError) as plain:
            client.messages.create(model="m", messages=said("Hi"))  # type: ignore[call-overload]
        with pytest.raises(TypeError) as wrapped:
            guard.wrap(client).messages.create(model="m", messages=said("Hi"))  # type: ignore[call-overload]
        assert str(wrapped.value) == str(plain.value)
        with pytest.raises(ValueError, match="Streaming is required"):
            guard.wrap(client).messages.create(**{**ASK, "max_tokens": 10**6})
    assert not server.requests


@pytest.mark.parametrize(
    "body",
    [
        b"not JSON",
        b'{"type": "message", "content": [{"type": "text", "text": "\xff"}]}',
        b'{"type": "message", "content": [{"type": "text", "text": "\\ud800"}]}',
        b"[]",
    ],
)
def test_answers_that_cannot_be_judged_are_not_released(server: Server, body: bytes) -> None:
    server.answer = lambda _: body
    with Guard(policy=[lambda text: True], log=(log := Memory())) as guard:
        for error in both(server, guard, ASK):
            assert isinstance(error, BackendError | anthropic.AnthropicError | ValueError)
    results = results_in(log)
    assert len(results) == 2
    assert all(r.error for r in results)


def test_text_that_utf8_cannot_carry_is_refused_before_it_is_sent(server: Server) -> None:
    with Guard(policy=[lambda text: True]) as guard:
        for error in both(server, guard, {**ASK, "messages": said("\ud800")}):
            assert type(error) is InputError
            assert "surrogate" in str(error)
    assert not server.requests


def test_malformed_tool_arguments_are_flagged_or_blocked(server: Server) -> None:
    class Look:
        @hookimpl
        def tool_call(self, tool_call: Any) -> Any:
            return None

    broken = {**USE, "input": '{"city": '}
    server.answer = lambda body: message("x", broken, stop_reason="tool_use")
    with Guard(policy=[lambda text: True]) as guard:
        for got in both(server, guard, ASK):
            assert got.content[1].input == '{"city": '
            reply = reply_of(got)
            assert reply is not None
            assert reply.verdict == "flag"
    with Guard(policy=[Look()]) as guard:
        for got in both(server, guard, ASK):
            assert got.stop_reason == "refusal"


# Many at once


def test_64_calls_at_once_never_mix(server: Server) -> None:
    server.answer = lambda body: message(f"You said: {body['messages'][0]['content']}")
    hide = on_input(lambda text: Replace(text.replace("name", "[hidden]")))
    shout = on_output(lambda text: Replace(text.upper()))

    def expected(index: int) -> str:
        return f"YOU SAID: [HIDDEN] {index}"

    with (
        Guard(policy=[hide, shout]) as guard,
        opened(server) as client,
    ):
        wrapped = guard.wrap(client)

        def one(index: int) -> str:
            made = wrapped.messages.create(**{**ASK, "messages": said(f"name {index}")})
            return str(made.content[0].text)

        with ThreadPoolExecutor(16) as pool:
            assert list(pool.map(one, range(64))) == [expected(i) for i in range(64)]

        async def all_at_once(client: anthropic.AsyncAnthropic) -> list[str]:
            wrapped = guard.wrap(client)
            made = await asyncio.gather(
                *(
                    wrapped.messages.create(**{**ASK, "messages": said(f"name {i}")})
                    for i in range(64)
                )
            )
            return [m.content[0].text for m in made]

        assert asynchronously(server, all_at_once) == [expected(i) for i in range(64)]


def test_a_cancelled_call_is_recorded(server: Server) -> None:
    entered = threading.Event()

    def wait(body: Block) -> Any:
        entered.set()
        server.release.wait(5)
        return message("late")

    server.answer = wait
    with Guard(policy=[lambda text: True], log=(log := Memory())) as guard:

        async def cancelled(client: anthropic.AsyncAnthropic) -> None:
            task = asyncio.create_task(guard.wrap(client).messages.create(**ASK))
            await asyncio.to_thread(entered.wait)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            server.release.set()

        asynchronously(server, cancelled)
    assert [r.error for r in results_in(log)] == ["Cancelled"]


def test_options_of_every_call_are_recorded(server: Server, client: anthropic.Anthropic) -> None:
    with Guard(policy=[lambda text: True], log=(log := Memory())) as guard:
        wrapped = guard.wrap(client, session="s", actor="a", tags={"k": "v"})
        wrapped.messages.create(**request_of("settings"), tools=[TOOL])
    intent = log.only(Intent).record
    assert isinstance(intent, Intent)
    assert (intent.session, intent.actor, intent.tags) == ("s", "a", {"k": "v"})
    assert (intent.identity.provider, intent.identity.model) == ("anthropic", "claude-small")
    assert intent.sampling.temperature == 0.5
    assert intent.sampling.stop == ("END",)
    request = request_in(log.only(Intent))
    assert request.tools[0]["function"]["parameters"] == TOOL["input_schema"]
    assert request.extra == {"metadata": {"user_id": "u"}}
    assert b"key-123" not in log.everything()
    with Guard(policy=[lambda text: True], log=(log := Memory())) as guard:
        guard.wrap(client).messages.create(**request_of("settings"))
    intent = log.only(Intent).record
    assert isinstance(intent, Intent)
    assert intent.actor == "u"  # the provider's own word for it
    with Guard(policy=[lambda text: True]) as guard, pytest.raises(InputError, match="on_blok"):
        guard.wrap(client, on_blok="raise")  # type: ignore[call-arg]


@pytest.mark.parametrize("kind", ["AnthropicFoundry", "AnthropicVertex", "AnthropicAWS"])
def test_the_packages_other_clients_are_guarded_too(server: Server, kind: str) -> None:
    settings: dict[str, dict[str, Any]] = {
        "AnthropicFoundry": {"api_key": "k"},
        "AnthropicVertex": {"project_id": "p", "region": "r", "access_token": "t"},
        "AnthropicAWS": {"api_key": "k", "workspace_id": "w", "aws_region": "us-east-1"},
    }
    made = getattr(anthropic, kind)(base_url=server.url, **settings[kind])
    with made as client, Guard(policy=[on_input(lambda text: Replace("new"))]) as guard:
        wrapped = guard.wrap(client)
        assert isinstance(wrapped, getattr(anthropic, kind))
        wrapped.messages.create(**ASK)
        wrapped.with_options(timeout=3.0).messages.create(**ASK)
        assert [body["messages"] for body in server.bodies] == [said("new")] * 2
        with pytest.raises(InputError, match="beta is not guarded"):
            _ = wrapped.beta
        with pytest.raises(InputError, match=r"messages.batches is not guarded"):
            _ = wrapped.messages.batches
        client.messages.create(**ASK)
        assert server.bodies[-1]["messages"] == said("Hi")
