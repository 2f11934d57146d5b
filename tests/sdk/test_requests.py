"""What callers pass in."""

from __future__ import annotations

import re
import time
import uuid
from typing import Any

import pytest
from tests.sdk.world import Memory, Scripted, payloads, request_in

from isonomy.sdk import (
    Document,
    Guard,
    Image,
    InputError,
    Message,
    Sampling,
    Text,
    ToolCall,
    ToolResult,
)
from isonomy.sdk.requests import (
    as_documents,
    as_messages,
    as_response_format,
    checked,
    merged,
    new_call_id,
)

ALL_PARTS = (Text("a"), ToolCall("1", "f", {"x": [1]}), ToolResult("1", "r"), Image("ref"))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("hello", (Message.of("user", "hello"),)),
        (" \x00é😀\u202e", (Message.of("user", " \x00é😀\u202e"),)),
        ([{"role": "system", "content": "s"}], (Message.of("system", "s"),)),
        ((Message("user", ALL_PARTS),), (Message("user", ALL_PARTS),)),
        (
            [
                {"role": "assistant", "content": [{"type": "text", "text": "a"},
                 {"type": "tool_call", "id": "1", "name": "f", "arguments": {"x": [1]}},
                 {"type": "tool_result", "id": "1", "content": "r"},
                 {"type": "image", "reference": "ref"}]},
                Message.of("user", "mixed"),
            ],
            (Message("assistant", ALL_PARTS), Message.of("user", "mixed")),
        ),
        ([Message("tool", (ToolResult("1", ""),))], (Message("tool", (ToolResult("1", ""),)),)),
        ([Message.of("user", ""), Message.of("user", "x")],
         (Message.of("user", ""), Message.of("user", "x"))),
    ],
)  # fmt: skip
def test_messages_in_every_shape(given: Any, expected: tuple[Message, ...]) -> None:
    assert as_messages(given) == expected


def endless() -> dict[str, Any]:
    value: dict[str, Any] = {}
    value["again"] = value
    return value


WRONG: list[tuple[Any, str]] = [
    ("", "the prompt is empty. Pass some text."),
    (" \n\t\u3000", "the prompt is empty"),
    ([], "there are no messages. Pass at least one."),
    ([Message.of("user", " ")], "every message is empty. Pass some text."),
    ([{"role": "user", "content": []}], "every message is empty"),
    ([Message("user", ())], "every message is empty"),
    (None, "messages must be a string or a list of messages, not NoneType."),
    (5, "not int."),
    (b"hello", "not bytes."),
    (bytearray(b"hello"), "not bytearray."),
    ({"role": "user", "content": "x"}, "not dict."),
    (Message.of("user", "x"), "not Message."),
    (iter(["x"]), "not list_iterator."),
    (["x"], "messages[0] must be a Message or a dictionary with exactly the keys role and content"),
    ([Message.of("user", "x"), {"role": "user"}], "messages[1] must be a Message or a dictionary"),
    ([{"role": "user", "content": "x", "name": "y"}], "messages[0] must be a Message or"),
    ([{"role": "admin", "content": "x"}], "messages[0]: Invalid enum value 'admin' - at `$.role`"),
    ([{"role": "user", "content": None}], "messages[0]: Expected `array`, got `null`"),
    ([{"role": "user", "content": [{"type": "txt"}]}], "Invalid value 'txt' - at `$.content[0]"),
    ([{"role": "user", "content": [{"type": "text", "text": 5}]}], "at `$.content[0].text`"),
    ([Message("user", "bare")], "messages[0]: this Message is malformed"),  # type: ignore[arg-type]
    ([Message("root", (Text("x"),))], "messages[0]: this Message is malformed"),  # type: ignore[arg-type]
    ([Message("user", (Text(None),))], "messages[0]: this Message is malformed"),  # type: ignore[arg-type]
    ("a\ud800", "text holds a lone surrogate (U+D800) at position 1"),
    ([{"role": "user", "content": "\udfff"}], "text holds a lone surrogate"),
    ([Message("user", (ToolCall("1", "f", {"x": object()}),))], "can't be recorded as JSON"),
    ([Message("user", (ToolCall("1", "f", endless()),))], "can't be recorded as JSON"),
    ([Message("user", (Text(b"x"),))], "messages[0]: this Message is malformed"),  # type: ignore[arg-type]
]


@pytest.mark.parametrize(("given", "said"), WRONG, ids=range(len(WRONG)))
def test_wrong_messages_are_refused_and_nothing_is_recorded(given: Any, said: str) -> None:
    log, backend = Memory(), Scripted()
    with Guard(backend, [], log) as guard, pytest.raises(InputError, match=re.escape(said)):
        guard.chat(given)
    assert (log.entries, backend.requests) == ([], [])


def test_an_error_shows_only_the_beginning_of_a_wrong_message() -> None:
    with pytest.raises(InputError) as caught:
        as_messages(["x" * 10_000])
    assert len(str(caught.value)) < 250


def test_a_prompt_of_a_megabyte_passes_whole() -> None:
    prompt = "wörd " * 200_000
    seen: list[int] = []

    def long(text: str) -> bool:
        seen.append(len(text))
        return True

    log, backend = Memory(), Scripted(lambda messages: "read it")
    with Guard(backend, [long], log) as guard:
        assert guard.chat(prompt).text == "read it"
    assert seen == [len(prompt), len("read it")]
    assert backend.requests[0].messages[0].text == prompt
    assert prompt.encode() in log.everything()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"documents": ["text"]}, "documents[0] must be a Document, not str."),
        ({"documents": [Document("a", 5)]}, "this Document is malformed"),  # type: ignore[arg-type]
        ({"documents": [Document("a", "\ud800")]}, "lone surrogate"),
        ({"tags": {"a": 1}}, "this Call is malformed"),
        ({"tags": {"a": "\ud800"}}, "lone surrogate"),
        ({"actor": 5}, "this Call is malformed"),
        ({"session": ["s"]}, "this Call is malformed"),
        ({"session": 0}, "this Call is malformed"),
        ({"subject": 5}, "this Call is malformed"),
        ({"tags": "x"}, "this Call is malformed"),
        ({"tags": 0}, "this Call is malformed"),
        ({"documents": 5}, "documents must be a list of them, not int."),
        ({"documents": "text"}, "documents must be a list of them, not str."),
        ({"sampling": "x"}, "sampling must be a Sampling, not str."),
        ({"sampling": {"seed": 1}}, "sampling must be a Sampling, not dict."),
        ({"sampling": Sampling(stop=("",))}, "sampling.stop must hold non-empty strings"),
        ({"sampling": Sampling(temperature=float("nan"))}, "sampling.temperature must be a finite"),
        ({"sampling": Sampling(top_p=float("inf"))}, "sampling.top_p must be a finite"),
        ({"sampling": Sampling(temperature="hot")}, "this Sampling is malformed"),  # type: ignore[arg-type]
        ({"sampling": Sampling(seed=-1)}, "sampling.seed must be from 0 to 2**64 - 1, not -1."),
        ({"sampling": Sampling(seed=2**64)}, "sampling.seed must be"),
        ({"sampling": Sampling(stop=("\ud800",))}, "lone surrogate"),
    ],
)
def test_wrong_options_are_refused_and_nothing_is_recorded(
    options: dict[str, Any], said: str
) -> None:
    log, backend = Memory(), Scripted()
    with Guard(backend, [], log) as guard, pytest.raises(InputError, match=re.escape(said)):
        guard.chat("hello", **options)
    assert (log.entries, backend.requests) == ([], [])


def test_documents_and_sampling_that_are_right_pass_unchanged() -> None:
    documents = [Document("a", "t"), Document("b", "t", source="s")]
    assert as_documents(documents) == tuple(documents)
    for seed in (None, 0, 2**64 - 1):
        sampling = Sampling(temperature=0, seed=seed, stop=("\n",))
        assert checked(sampling) == sampling


def test_sampling_is_filled_from_the_guard_s_own() -> None:
    own = Sampling(temperature=0.5, top_p=0.9, stop=("a",), seed=1, max_tokens=5)
    assert merged(None, own) == own
    assert merged(Sampling(temperature=0.0, max_tokens=9), own) == Sampling(
        temperature=0.0, top_p=0.9, stop=("a",), seed=1, max_tokens=9
    )
    assert merged(Sampling(stop=("b",)), own).stop == ("b",)


def test_call_ids_are_uuids_of_version_7_in_the_order_of_time() -> None:
    before = time.time_ns() // 1_000_000
    ids = [uuid.UUID(new_call_id()) for _ in range(500)]
    after = time.time_ns() // 1_000_000
    assert len(set(ids)) == 500
    assert {id.version for id in ids} == {7}
    assert {id.variant for id in ids} == {uuid.RFC_4122}
    times = [id.int >> 80 for id in ids]
    assert before <= times[0]
    assert times == sorted(times)
    assert times[-1] <= after
    bits = 0
    for id in ids:
        bits |= id.int ^ ids[0].int
    assert bits & (1 << 62) - 1 == (1 << 62) - 1  # every random bit takes both values
    assert bits >> 64 & 0xFFF == 0xFFF


def test_a_response_format_is_recorded_and_reaches_the_backend_as_the_record_has_it() -> None:
    asked: dict[str, Any] = {"type": "json_schema", "json_schema": {"schema": {"enum": (1, 2)}}}
    backend, log = Scripted(), Memory()
    with Guard(backend, [], log) as guard:
        guard.chat("a", response_format=asked)
        guard.chat("a")
    expected = {"json_schema": {"schema": {"enum": [1, 2]}}, "type": "json_schema"}
    assert [request.response_format for request in backend.requests] == [expected, None]
    assert str(backend.requests[0].response_format) == str(expected)  # the order of keys too
    recorded = [request_in(entry) for entry in log.entries if "request" in payloads(entry)]
    assert [content.response_format for content in recorded] == [expected, None]
    asked["json_schema"]["schema"]["enum"] = "changed"
    assert backend.requests[0].response_format == expected


@pytest.mark.parametrize(
    "given",
    [
        "json",
        ["json_object"],
        {"type": {1: 2}},
        {"type": [float("nan")]},
        {"type": {"set"}},
        {"type": b"bytes"},
        {"type": "\ud800"},
        endless(),
    ],
)
def test_response_formats_that_are_no_json(given: Any) -> None:
    with pytest.raises(InputError, match=r"^response_format"):
        as_response_format(given)
