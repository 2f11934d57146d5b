"""The messages format of Anthropic's API and our vocabulary, in both directions."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isonomy.sdk import (
    Audio,
    Image,
    InputError,
    Json,
    Message,
    Reasoning,
    Sampling,
    Text,
    ToolCall,
    ToolResult,
    Usage,
)
from isonomy.sdk.wrapping.anthropic_format import (
    _divided,
    answer_block,
    answer_parts,
    finish_reason_of,
    messages_of,
    rendered,
    settings_of,
    usage_of,
)

CACHED = {"cache_control": {"type": "ephemeral"}}
USE = {"type": "tool_use", "id": "t", "name": "f", "input": {"a": 1}}
CONTENT: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "a string": ("Hi", (Text("Hi"),)),
    "text": ([{"type": "text", "text": "Hi", **CACHED}], (Text("Hi"),)),
    "thinking": (
        [{"type": "thinking", "thinking": "Hm", "signature": "s"}],
        (Reasoning("Hm", "s"),),
    ),
    "redacted": (
        [{"type": "redacted_thinking", "data": "d"}],
        (Reasoning("", "redacted_thinking:d"),),
    ),
    "tool use": ([USE], (ToolCall("t", "f", {"a": 1}),)),
    "malformed tool use": ([{**USE, "input": "{"}], (ToolCall("t", "f", {}, "{"),)),
    "tool result": (
        [{"type": "tool_result", "tool_use_id": "t", "content": "r", "is_error": True}],
        (ToolResult("t", "r"),),
    ),
    "empty tool result": ([{"type": "tool_result", "tool_use_id": "t"}], (ToolResult("t", ""),)),
    "tool result of blocks": (
        [
            {
                "type": "tool_result",
                "tool_use_id": "t",
                "content": [
                    {"type": "text", "text": "a"},
                    {"type": "image", "source": {"type": "url", "url": "u"}},
                    {"type": "text", "text": "b"},
                ],
            }
        ],
        (ToolResult("t", "ab"), Image("u")),
    ),
    "images": (
        [
            {
                "type": "image",
                "source": {"type": "base64", "media_type": "image/png", "data": "AA"},
                **CACHED,
            },
            {"type": "image", "source": {"type": "url", "url": "https://x"}},
            {"type": "image", "source": {"type": "file", "file_id": "f"}},
        ],
        (
            Image("data:image/png;base64,AA", "image/png"),
            Image("https://x"),
            Image("file:f"),
        ),
    ),
    "documents": (
        [
            {
                "type": "document",
                "title": "T",
                "context": "C",
                "source": {"type": "text", "media_type": "text/plain", "data": "D"},
            },
            {"type": "document", "source": {"type": "content", "content": "E"}},
            {
                "type": "document",
                "source": {"type": "content", "content": [{"type": "text", "text": "F"}]},
            },
            {"type": "document", "source": {"type": "url", "url": "u"}},
        ],
        (
            *(Text("T"), Text("C"), Text("D"), Text("E"), Text("F")),
            Image("u", "application/pdf"),
        ),
    ),
    "search result": (
        [
            {
                "type": "search_result",
                "source": "S",
                "title": "T",
                "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
            }
        ],
        (Text("T"), Text("S"), Text("a"), Text("b")),
    ),
    "tools of the provider": (
        [{"type": "server_tool_use", "id": "s", "name": "n", "input": {}}],
        (Json({"type": "server_tool_use", "id": "s", "name": "n", "input": {}}),),
    ),
}


def body_of(content: Any, **fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content}], **fields}


@pytest.mark.parametrize("case", CONTENT)
def test_content_is_read(case: str) -> None:
    content, parts = CONTENT[case]
    assert messages_of(body_of(content)) == (Message("user", parts),)


@pytest.mark.parametrize("case", CONTENT)
def test_what_did_not_change_is_the_callers_own(case: str) -> None:
    body = body_of(CONTENT[case][0], system=[{"type": "text", "text": "S", **CACHED}])
    body["messages"].append({"role": "user", "content": "secret", "more": 1})
    asked = messages_of(body)
    kept = copy.deepcopy(body)
    assert rendered(body, asked, asked) is body
    sent = rendered(body, asked, (*asked[:-1], asked[-1].with_text("[gone]")))
    assert sent["messages"][0] is body["messages"][0]
    assert sent["system"] is body["system"]
    assert sent["messages"][1] == {"role": "user", "content": "[gone]", "more": 1}
    assert body == kept


@pytest.mark.parametrize("case", CONTENT)
def test_a_message_written_anew_is_read_as_the_same(case: str) -> None:
    parts = CONTENT[case][1]
    sent = rendered({"messages": []}, (), (Message("user", parts),))
    (read,) = messages_of(sent)
    order = sorted(parts, key=lambda part: not isinstance(part, ToolResult))
    if case == "malformed tool use":  # its arguments can't be sent: they are no JSON object
        assert read.content == (ToolCall("t", "f", {}),)
    else:
        assert list(read.content) == order


def test_each_part_is_replaced_where_it_stands() -> None:
    content = [
        {"type": "tool_result", "tool_use_id": "t", "content": "secret", "is_error": True},
        {"type": "text", "text": "a secret", **CACHED},
        {"type": "image", "source": {"type": "url", "url": "u"}, **CACHED},
        {
            "type": "document",
            "title": "The title",
            "source": {"type": "text", "media_type": "text/plain", "data": "my secret"},
            **CACHED,
        },
    ]
    body = body_of(content)
    asked = messages_of(body)
    _, _, image, title, _ = asked[0].content
    changed = Message("user", (ToolResult("t", "[x]"), Text("a [x]"), image, title, Text("my [x]")))
    (sent,) = rendered(body, asked, (changed,))["messages"]
    assert sent["content"] == [
        {**content[0], "content": "[x]"},
        {**content[1], "text": "a [x]"},
        content[2],
        {**content[3], "source": {**content[3]["source"], "data": "my [x]"}},
    ]
    # One text for all of them, in front, as a check on text gives it.
    merged = Message("user", (Text("a [x]The titlemy [x]"), ToolResult("t", "[x]"), image))
    assert rendered(body, asked, (merged,))["messages"] == [sent]
    # What can't be told apart stands in the first place of it; a block with nothing left goes.
    other = Message("user", (Text("entirely"), ToolResult("t", "secret"), image))
    (sent,) = rendered(body, asked, (other,))["messages"]
    assert sent["content"] == [content[0], {**content[1], "text": "entirely"}, content[2]]


def test_thinking_that_changed_is_left_out_and_empty_text_too() -> None:
    thought = {"type": "thinking", "thinking": "secret", "signature": "s"}
    body = {
        "messages": [{"role": "assistant", "content": [thought, {"type": "text", "text": "x"}]}]
    }
    asked = messages_of(body)
    changed = Message("assistant", (Reasoning("[x]"), Text("x")))
    (sent,) = rendered(body, asked, (changed,))["messages"]
    assert sent["content"] == [{"type": "text", "text": "x"}]
    silent = Message("assistant", (Reasoning("secret", "s"), Text("")))
    (sent,) = rendered(body, asked, (silent,))["messages"]
    assert sent["content"] == [thought]
    assert rendered(body, asked, (Message.of("assistant", ""),))["messages"] == []


def test_messages_are_dropped_added_and_moved() -> None:
    first, second = {"role": "user", "content": "1"}, {"role": "assistant", "content": "2"}
    body = {"system": "S", "messages": [first, second, {"role": "user", "content": "3"}]}
    system, one, two, three = messages_of(body)
    sent = rendered(body, (system, one, two, three), (system, three))
    assert sent == {"system": "S", "messages": [body["messages"][2]]}
    added = Message.of("system", "T")
    sent = rendered(body, (system, one, two, three), (added, system, one, two, three))
    assert sent["system"] == [{"type": "text", "text": "T"}, {"type": "text", "text": "S"}]
    assert sent["messages"] == body["messages"]
    assert "system" not in rendered(body, (system, one, two, three), (one, two, three))
    rounds = (Message("assistant", (ToolCall("t", "f", {}),)), Message.of("user", "Again."))
    tool = Message("tool", (ToolResult("t", "not run"),))
    sent = rendered(body, (system, one, two, three), (system, one, two, three, *rounds, tool))
    assert sent["messages"][3:] == [
        {
            "role": "assistant",
            "content": [{"type": "tool_use", "id": "t", "name": "f", "input": {}}],
        },
        {"role": "user", "content": "Again."},
        {
            "role": "user",
            "content": [{"type": "tool_result", "tool_use_id": "t", "content": "not run"}],
        },
    ]


def test_what_the_format_has_no_block_for_is_an_error() -> None:
    with pytest.raises(InputError, match="Audio"):
        rendered({"messages": []}, (), (Message("user", (Audio("x"),)),))
    (sent,) = rendered({"messages": []}, (), (Message("user", (Json([1]), Text("a"))),))["messages"]
    assert sent["content"][0] == {"type": "text", "text": "[1]"}


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (7, "content must be text or a list"),
        ([7], "type None"),
        ([{"type": "hologram"}], "'hologram'"),
        ([{"type": "text"}], "no valid text block"),
        ([{"type": "text", "text": 7}], "no valid text block"),
        ([{"type": "image", "source": {"type": "tape"}}], "'tape'"),
        ([{"type": "document", "source": {}}], "no valid document block"),
        ([{"type": "tool_use", "id": "x"}], "no valid tool_use block"),
        ([{"type": "tool_result", "tool_use_id": "t", "content": [{"type": "?"}]}], "'\\?'"),
    ],
)
def test_what_cannot_be_judged_is_named(content: Any, problem: str) -> None:
    with pytest.raises(InputError, match=problem) as raised:
        messages_of(body_of(content))
    assert "messages[0]" in str(raised.value)


@pytest.mark.parametrize("messages", [None, "x", [7], [{"role": "robot", "content": "x"}]])
def test_messages_must_be_messages(messages: Any) -> None:
    with pytest.raises(InputError, match="messages"):
        messages_of({"messages": messages})


def test_settings_have_our_names_and_the_rest_stays_as_it_is() -> None:
    settings = settings_of(
        {
            "model": "m",
            "messages": [],
            "stream": True,
            "max_tokens": 5,
            "temperature": 0.5,
            "top_p": "high",
            "stop_sequences": ["a"],
            "thinking": {"type": "enabled", "budget_tokens": 5},
            "tools": [
                {"name": "f", "description": "d", "input_schema": {"type": "object"}, **CACHED},
                {"type": "web_search_20250305", "name": "web_search"},
            ],
            "output_config": {
                "effort": "low",
                "format": {"type": "json_schema", "schema": {"a": 1}},
            },
            "mcp_servers": [{"url": "u", "authorization_token": "secret"}],
        }
    )
    assert settings.sampling == Sampling(max_tokens=5, temperature=0.5, stop=("a",))
    assert settings.tools == (
        {
            "type": "function",
            "function": {"name": "f", "description": "d", "parameters": {"type": "object"}},
        },
        {"type": "web_search_20250305", "name": "web_search"},
    )
    assert settings.response_format is not None
    assert settings.response_format["json_schema"]["schema"] == {"a": 1}
    assert settings.extra == {
        "top_p": "high",
        "thinking": {"type": "enabled", "budget_tokens": 5},
        "output_config": {"effort": "low"},
        "mcp_servers": [{"url": "u", "authorization_token": "[secret]"}],
    }


def test_answers_have_one_part_a_block() -> None:
    blocks = [
        {"type": "thinking", "thinking": "Hm", "signature": "s"},
        {"type": "text", "text": "Hi", "citations": [{"cited_text": "x"}]},
        USE,
        {"type": "hologram", "data": 1},
    ]
    parts = answer_parts(blocks)
    assert parts == (
        Reasoning("Hm", "s"),
        Text("Hi"),
        ToolCall("t", "f", {"a": 1}),
        Json({"type": "hologram", "data": 1}),
    )
    assert answer_parts([answer_block(part) for part in parts]) == parts


def test_finish_reasons_and_usage() -> None:
    assert finish_reason_of("end_turn") == "stop"
    assert finish_reason_of("refusal") == "content_filter"
    assert finish_reason_of("pause_turn") == "pause_turn"
    assert finish_reason_of(None) == "unknown"
    usage = {"input_tokens": 1, "cache_read_input_tokens": 2, "cache_creation_input_tokens": 4}
    assert usage_of({**usage, "output_tokens": 8}) == Usage(7, 8)
    assert usage_of({"output_tokens": None}) == Usage()
    assert usage_of(None) == Usage()


@given(
    st.lists(st.text("ab \n", max_size=12), min_size=1, max_size=5),
    st.text("ab x\n", max_size=40),
)
def test_a_divided_text_joined_is_the_text(texts: list[str], whole: str) -> None:
    divided = _divided(texts, whole)
    assert len(divided) == len(texts)
    assert "".join(divided) == whole


@given(st.lists(st.text("abc", min_size=8, max_size=12), min_size=1, max_size=5), st.data())
def test_texts_that_did_not_change_are_told_apart(texts: list[str], data: Any) -> None:
    changed = data.draw(st.integers(0, len(texts) - 1))
    new = [*texts[:changed], "[x]", *texts[changed + 1 :]]
    assert _divided(texts, "".join(new)) == new
