"""Whatever an endpoint sends: an answer that can be recorded, or an error of its own kind."""

import contextlib
import json
from typing import Any

import msgspec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from isonomy.backends.remote import completion_answers, messages
from isonomy.backends.remote.answers import (
    Answer,
    CutOff,
    InvalidAnswer,
    Reader,
    Refused,
    cleaned,
)
from isonomy.backends.remote.events import EventReader
from isonomy.sdk.vocabulary import text_of

WORDS = [
    "choices", "message", "delta", "content", "role", "tool_calls", "function", "name", "arguments",
    "index", "id", "type", "finish_reason", "usage", "error", "code", "text", "reasoning_content",
    "reasoning", "refusal", "audio", "data", "transcript", "model", "system_fingerprint",
    "prompt_tokens", "completion_tokens_details", "content_block", "stop_reason", "thinking",
    "signature", "input", "partial_json", "input_tokens", "output_tokens", "stop_sequence",
]  # fmt: skip
KINDS = [
    "message_start", "content_block_start", "content_block_delta", "content_block_stop",
    "message_delta", "message_stop", "ping", "error", "text", "tool_use", "thinking",
    "redacted_thinking", "text_delta", "input_json_delta", "signature_delta", "function", "custom",
    "stop", "server_tool_use",
]  # fmt: skip
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-2, 3), st.floats(), st.text(max_size=4),
    st.sampled_from(["\ud83d", "{", "[]", "{}", "AAEC", *KINDS]),
)  # fmt: skip
JSON = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(WORDS), inner, max_size=5)
    ),
    max_leaves=12,
)
PART = st.dictionaries(st.sampled_from(WORDS), JSON, max_size=4)
EVENTS = st.one_of(
    st.builds(lambda kind, rest: {**rest, "type": kind}, st.sampled_from(KINDS), PART),
    st.builds(
        lambda kind, index, block, delta: {
            "type": kind, "index": index, "content_block": block, "delta": delta, "message": {},
        },
        st.sampled_from(KINDS), st.integers(0, 1), PART, PART,
    ),
    st.builds(lambda delta: {"choices": [{"delta": delta}]}, PART),
    st.builds(lambda choice: {"choices": [choice]}, PART),
    PART,
)  # fmt: skip
BODIES = st.one_of(
    st.builds(lambda message: {"choices": [{"message": message}]}, PART),
    st.builds(lambda blocks: {"content": blocks}, st.lists(PART, max_size=3)),
    JSON,
)
QUIET = settings(deadline=None, suppress_health_check=list(HealthCheck), max_examples=80)


def recordable(answer: Answer) -> None:
    msgspec.json.encode(cleaned(answer.content, {}))
    assert answer.content
    assert all(n is None or isinstance(n, int) for n in msgspec.structs.astuple(answer.usage))


@QUIET
@given(BODIES)
def test_in_one_piece(body: Any) -> None:
    written = json.dumps(body).encode()
    for read in (completion_answers.answer_of, messages.answer_of):
        with contextlib.suppress(InvalidAnswer):
            recordable(read(written))


@QUIET
@given(st.lists(EVENTS, max_size=6), st.binary(max_size=8), st.booleans())
def test_in_a_stream(events: list[Any], noise: bytes, whole: bool) -> None:
    written = b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events)
    written += b"data: " + noise + b"\n\n" if noise else b""
    readers: list[Reader] = [completion_answers.CompletionReader(), messages.MessageReader()]
    for reader in readers:
        said = ""
        lines = EventReader()
        try:
            for event in [*lines.feed(written), *lines.finish()]:
                said += reader.push(event)
            answer = reader.answer()
        except (InvalidAnswer, CutOff, Refused):
            continue
        recordable(answer)
        assert text_of(answer.content) == said or answer.finish_reason == "refusal"
