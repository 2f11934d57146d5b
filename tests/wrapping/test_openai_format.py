"""Chat-completions JSON and the vocabulary, in both directions."""

import json

import pytest

from isonomy.sdk import Audio, Image, InputError, Json, Message, Reasoning, Sampling, Text
from isonomy.sdk.generation import Usage
from isonomy.sdk.vocabulary import Candidate, ToolCall, ToolResult
from isonomy.sdk.wrapping.openai_answers import (
    Folded,
    candidate_of,
    choice_of,
    chunk_of,
    completion_of,
    delta_of,
    usage_of,
)
from isonomy.sdk.wrapping.openai_format import (
    ChatRequest,
    body_of,
    item_of,
    items_of,
    messages_of,
    request_of,
)

WEATHER = {"id": "c1", "type": "function", "function": {"name": "w", "arguments": '{"at":"Bern"}'}}
PIXEL = "data:image/png;base64,AA=="
ITEMS = [
    {"role": "developer", "content": "Be brief.", "name": "boss"},
    {
        "role": "user",
        "name": "ann",
        "content": [
            {"type": "text", "text": "What is this?", "cache_control": {"type": "ephemeral"}},
            {
                "type": "image_url",
                "image_url": {"url": "data:image/png;base64,AA==", "detail": "low"},
            },
            {"type": "input_audio", "input_audio": {"data": "QUJD", "format": "wav"}},
        ],
    },
    {"role": "assistant", "content": None, "tool_calls": [WEATHER], "reasoning_content": "hm"},
    {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "rain"}]},
    {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]},
]


def test_messages_say_the_same_in_our_words():
    assert messages_of(ITEMS) == (
        Message.of("system", "Be brief."),
        Message(
            "user",
            (
                Text("What is this?"),
                Image(PIXEL, "image/png"),
                Audio("data:audio/wav;base64,QUJD", "audio/wav"),
            ),
        ),
        Message("assistant", (Reasoning("hm"), ToolCall("c1", "w", {"at": "Bern"}))),
        Message("tool", (ToolResult("c1", "rain"),)),
        Message.of("assistant", "No."),
    )


def test_what_did_not_change_stays_as_it_stands():
    for item, message in zip(ITEMS, messages_of(ITEMS), strict=True):
        if item["role"] != "tool":  # its parts are one text for us
            assert item_of(message, item) == [item]


def test_our_words_can_be_said_without_an_original():
    said = items_of(messages_of(ITEMS))
    assert messages_of(said) == messages_of(ITEMS)
    assert said[0] == {"role": "system", "content": "Be brief."}


def test_a_replaced_text_keeps_everything_beside_it():
    message = messages_of(ITEMS)[1].with_text("What?")
    (written,) = item_of(message, ITEMS[1])
    assert written["name"] == "ann"
    assert written["content"][0] == {**ITEMS[1]["content"][0], "text": "What?"}
    assert written["content"][1:] == ITEMS[1]["content"][1:]
    (written,) = item_of(Message.of("system", "Hush."), ITEMS[0])
    assert written == {"role": "developer", "content": "Hush.", "name": "boss"}


def test_a_replaced_tool_call_and_a_dropped_reasoning():
    message = Message("assistant", (ToolCall("c1", "w", {"at": "Rome"}),))
    (written,) = item_of(message, ITEMS[2])
    assert "reasoning_content" not in written
    assert written["content"] is None
    assert json.loads(written["tool_calls"][0]["function"]["arguments"]) == {"at": "Rome"}


@pytest.mark.parametrize("arguments", ['{"at":', "[1]", '"text"', '{"a":"\\ud800"}', "nonsense"])
def test_arguments_that_are_no_object_are_malformed_and_come_back_as_they_were(arguments):
    item = {
        "role": "assistant",
        "tool_calls": [{"id": "c", "function": {"name": "w", "arguments": arguments}}],
    }
    (message,) = messages_of([item])
    assert message.content == (ToolCall("c", "w", {}, arguments),)
    assert items_of([message])[0]["tool_calls"][0]["function"]["arguments"] == arguments


@pytest.mark.parametrize(
    ("item", "named"),
    [
        ({"role": "user", "content": [{"type": "file", "file": {}}]}, "messages[0].content[0]"),
        ({"role": "user", "content": [{"type": "text"}]}, "messages[0].content[0]"),
        ({"role": "user", "content": [{"text": "x"}]}, "messages[0].content[0]"),
        ({"role": "user", "content": ["x"]}, "messages[0].content[0]"),
        ({"role": "user", "content": 7}, "messages[0].content"),
        ({"role": "wizard", "content": "x"}, "messages[0].role"),
        ({"content": "x"}, "messages[0].role"),
        ("x", "messages[0]"),
        ({"role": "tool", "content": "x"}, "messages[0].tool_call_id"),
        ({"role": "assistant", "tool_calls": [{"type": "search"}]}, "messages[0].tool_calls[0]"),
        ({"role": "assistant", "tool_calls": "x"}, "messages[0].tool_calls"),
    ],
)
def test_what_is_not_known_is_named(item, named):
    with pytest.raises(InputError) as caught:
        messages_of([item])
    assert str(caught.value).startswith(named)


def test_a_part_that_is_carried_is_json_and_comes_back():
    item = {"role": "user", "content": [{"type": "file", "file": {"file_id": "f"}}]}
    (message,) = messages_of([item], carry=("file",))
    assert message.content == (Json({"type": "file", "file": {"file_id": "f"}}),)
    assert item_of(message, item) == [item]
    assert items_of([message]) == [item]


def test_a_request_reads_back():
    body = {
        "model": "m",
        "messages": [{"role": "user", "content": "hi"}],
        "tools": [{"type": "function", "function": {"name": "w"}}],
        "response_format": {"type": "json_object"},
        "temperature": 0,
        "max_completion_tokens": 5,
        "stop": ["x"],
        "seed": 7,
        "n": 2,
        "stream": True,
        "stream_options": {"include_usage": True},
        "user": "u-1",
        "logit_bias": {"5": 1},
    }
    request = request_of(body)
    assert request.sampling == Sampling(temperature=0, max_tokens=5, stop=("x",), seed=7)
    assert (request.n, request.stream, request.include_usage, request.user) == (
        2,
        True,
        True,
        "u-1",
    )
    assert body_of(request) == body
    assert request_of(body_of(request)) == request


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("temperature", "hot"),
        ("n", 0),
        ("n", True),
        ("stream", "yes"),
        ("seed", -1),
        ("stop", 5),
        ("stop", ""),
        ("tools", "w"),
        ("response_format", "json"),
        ("messages", "hi"),
        ("messages", None),
        ("model", None),
    ],
)
def test_a_request_that_can_not_be_read_names_the_key(key, value):
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], key: value}
    with pytest.raises(InputError, match=key):
        request_of(body)


def test_settings_of_the_wrong_type_are_left_to_the_provider_unless_strict():
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "temperature": "hot"}
    request = request_of(body, strict=False)
    assert request.sampling == Sampling()
    assert request.extra == {"temperature": "hot"}


def test_answers_in_both_directions():
    message = {"role": "assistant", "content": "Hello", "refusal": None}
    candidate = candidate_of({"index": 0, "message": message, "finish_reason": "stop"})
    assert candidate == Candidate(index=0, content=(Text("Hello"),), finish_reason="stop")
    choice = choice_of(candidate)
    assert choice["message"] == message
    whole = completion_of(id="i", created=1, model="m", choices=[choice], usage=Usage(3, 4))
    assert usage_of(whole["usage"]) == Usage(3, 4)
    assert whole["usage"]["total_tokens"] == 7


def test_a_changed_answer_loses_what_nobody_checked():
    original = {
        "index": 0,
        "finish_reason": "stop",
        "logprobs": {"content": [{"token": "secret"}]},
        "message": {
            "role": "assistant",
            "content": "secret",
            "reasoning_content": "the secret",
            "annotations": [{"title": "secret"}],
            "tool_calls": [WEATHER],
        },
    }
    candidate = candidate_of(original)
    assert [type(part) for part in candidate.content] == [Reasoning, Text, ToolCall]
    changed = candidate.with_content((Text("[hidden]"), candidate.content[2]))
    choice = choice_of(changed, original)
    assert "secret" not in json.dumps(choice)
    assert choice["message"]["tool_calls"] == [WEATHER]


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"n": 0}, "n must be an integer, 1 or more, not 0."),
        ({"n": "2"}, "n must be an integer, 1 or more, not '2'."),
        ({"stream": "yes"}, "stream must be true or false, not 'yes'."),
    ],
)
def test_what_a_setting_must_be_is_said(wrong, says):
    with pytest.raises(InputError) as raised:
        request_of({"model": "m", "messages": [], **wrong})
    assert str(raised.value) == says


def test_reasoning_that_is_told_twice_is_judged_wherever_it_differs():
    differing = {"role": "assistant", "reasoning_content": "a", "reasoning": "b", "content": "c"}
    (message,) = messages_of([differing])
    assert message.content == (Reasoning("a"), Reasoning("b"), Text("c"))
    assert item_of(message, differing) == [differing]
    (message,) = messages_of([same := {**differing, "reasoning": "a"}])
    assert message.content == (Reasoning("a"), Text("c"))
    assert item_of(message, same) == [same]
    changed = Message("assistant", (Reasoning("[hidden]"), Text("c")))
    without = {"role": "assistant", "content": "c"}
    assert item_of(changed, same) == [{**without, "reasoning_content": "[hidden]"}]
    assert item_of(Message("assistant", (Text("c"),)), same) == [without]


def test_speech_is_text_and_sound():
    audio = {"id": "a1", "data": "QUJD", "transcript": "Hello", "expires_at": 1}
    candidate = candidate_of({"message": {"content": None, "audio": audio}})
    assert candidate.text == "Hello"
    choice = choice_of(candidate.with_content((Text("Bye"),)), {"message": {"audio": audio}})
    assert choice["message"] == {"role": "assistant", "content": "Bye", "refusal": None}


def test_chunks_come_to_what_they_were_cut_from():
    content = (Text("Hello there"), ToolCall("c1", "w", {"at": "Bern"}))
    whole = delta_of(content)
    folded = Folded()
    pieces = [{"role": "assistant", "content": "Hel"}, {"content": "lo there"}]
    call = whole["tool_calls"][0]
    pieces.append({"tool_calls": [{**call, "function": {"name": "w", "arguments": ""}}]})
    pieces += [
        {"tool_calls": [{"index": 0, "function": {"arguments": letter}}]}
        for letter in call["function"]["arguments"]
    ]
    for piece in pieces:
        folded.add(chunk_of(id="i", created=1, model="m", delta=piece))
    folded.add(chunk_of(id="i", created=1, model="m", delta={}, finish_reason="tool_calls"))
    folded.add(chunk_of(id="i", created=1, model="m", usage=Usage(1, 2)))
    candidate = candidate_of(folded.choice())
    assert candidate.content == content
    assert candidate.finish_reason == "tool_calls"
    assert usage_of(folded.usage) == Usage(1, 2)


def test_a_request_can_be_made_of_our_words():
    request = ChatRequest(model="m", messages=(Message.of("user", "hi"),))
    assert body_of(request) == {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


def test_predicted_text_passes_only_where_somebody_says_so():
    body = {
        "model": "m",
        "messages": [{"role": "user", "content": "hi"}],
        "prediction": {"type": "content", "content": "SECRET"},
    }
    with pytest.raises(InputError, match="prediction holds text that no check"):
        request_of(body)
    asked = request_of(body, carry=("prediction",))
    assert asked.extra == {"prediction": body["prediction"]}
    assert request_of({**body, "prediction": None}).extra == {"prediction": None}
