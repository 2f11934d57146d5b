"""Eval logs of Inspect, in the shapes that its versions write."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from isonomy.replay import ReplayLog, replay_call
from isonomy.replay.interchange import inspect
from isonomy.replay.interchange.errors import UnusableFile
from isonomy.replay.interchange.newlog import Imported, build
from isonomy.replay.interchange.traffic import Judge
from isonomy.sdk.vocabulary import Image, Json, Message, Reasoning, Text, ToolCall, ToolResult

EVAL = {
    "run_id": "3jUsmLrZnJ",
    "eval_id": "ev-1",
    "created": "2025-05-01T10:00:00+00:00",
    "task": "security_guide",
    "task_id": "t1",
    "dataset": {"name": "d", "samples": 1},
    "model": "openai/gpt-4o",
    "model_generate_config": {"temperature": 0.5},
    "config": {},
}
HEADER = {"version": 2, "status": "success", "eval": EVAL, "plan": {}, "results": {}, "stats": {}}
CALLING = {
    "id": "m2",
    "role": "assistant",
    "source": "generate",
    "content": [
        {"type": "reasoning", "reasoning": "I need the tool.", "signature": "sig"},
        {"type": "text", "text": ""},
    ],
    "tool_calls": [
        {"id": "call_1", "function": "weather", "arguments": {"city": "Graz"}, "type": "function"}
    ],
}
USER = {
    "id": "m1",
    "role": "user",
    "source": "input",
    "content": [
        {"type": "text", "text": "attachment://abc"},
        {"type": "image", "image": "data:image/png;base64,AA==", "detail": "auto"},
        {"type": "document", "document": "x.pdf"},
    ],
}
RESULT = {"id": "m3", "role": "tool", "content": "rain", "tool_call_id": "call_1", "function": "w"}
ANSWER = {"id": "m4", "role": "assistant", "content": "It rains.", "source": "generate"}


def output(message: dict[str, Any], reason: str = "stop", **more: Any) -> dict[str, Any]:
    return {
        "model": "gpt-4o-2024-08-06",
        "choices": [{"message": message, "stop_reason": reason}],
        "usage": {"input_tokens": 30, "output_tokens": 9, "total_tokens": 39},
        "time": 1.5,
        **more,
    }


def model(asked: list[Any], answered: Any, **more: Any) -> dict[str, Any]:
    return {
        "event": "model",
        "uuid": None,
        "timestamp": "2025-05-01T10:00:05+00:00",
        "model": "openai/gpt-4o",
        "input": asked,
        "tools": [{"name": "weather", "description": "Tells.", "parameters": {"type": "object"}}],
        "tool_choice": "auto",
        "config": {"max_tokens": 100, "top_p": 0.9, "reasoning_effort": "low", "seed": None},
        "output": answered,
        **more,
    }


SAMPLE: dict[str, Any] = {
    "id": "s-1",
    "epoch": 1,
    "input": "What is the weather?",
    "target": "rain",
    "messages": [USER, CALLING, RESULT, ANSWER],
    "output": output(ANSWER),
    "scores": {"includes": {"value": "C", "answer": "It rains."}, "long": {"value": "x" * 50}},
    "metadata": {},
    "attachments": {"abc": "What is the weather? " * 3},
    "events": [
        {"event": "sample_init", "timestamp": "2025-05-01T10:00:00+00:00"},
        model([USER], output(CALLING, "tool_calls")),
        {"event": "tool", "function": "weather"},
        model([USER, CALLING, RESULT], output(ANSWER, "max_tokens")),
        model([USER], {"model": "", "choices": []}, pending=True),
    ],
}


def log_file(folder: Path, *samples: Any, **more: Any) -> Path:
    file = folder / "2025-05-01T10-00-00+00-00_security-guide_x.json"
    file.write_text(json.dumps({**HEADER, "samples": list(samples), **more}))
    return file


def imported(folder: Path, file: Path, **options: Any) -> tuple[ReplayLog, Imported]:
    with Judge() as judge:
        done = build(folder / "log", judge.all(inspect.past_calls(file)), **options)
    return ReplayLog(folder / "log"), done


def calls_of(folder: Path, file: Path) -> list[Any]:
    log, _ = imported(folder, file)
    assert log.verify().findings == ()
    calls = list(reversed(log.calls()))
    assert {replay_call(call).status for call in calls} == {"verified"}
    return calls


def said(call: Any) -> list[Message]:
    return [call.messages[number] for number in call.request.messages]


def test_every_call_of_a_model_is_a_call(tmp_path: Path) -> None:
    first, second = calls_of(tmp_path, log_file(tmp_path, SAMPLE))
    assert said(first) == [
        Message(
            "user",
            (
                Text("What is the weather? " * 3),
                Image("data:image/png;base64,AA=="),
                Json({"type": "document", "document": "x.pdf"}),
            ),
        )
    ]
    asked = (Reasoning("I need the tool.", "sig"), ToolCall("call_1", "weather", {"city": "Graz"}))
    assert first.output.content == asked
    assert said(second)[1:] == [
        Message("assistant", asked),
        Message("tool", (ToolResult("call_1", "rain"),)),
    ]
    assert (second.output.text, second.result.finish_reason) == ("It rains.", "length")
    intent = second.intent
    assert (intent.identity.provider, intent.identity.model) == ("openai", "openai/gpt-4o")
    assert second.events[0].generation.model == "gpt-4o-2024-08-06"
    assert (intent.wall_ns, second.result.duration_ns) == (1746093605_000_000_000, 1_500_000_000)
    assert (intent.sampling.max_tokens, intent.sampling.top_p) == (100, 0.9)
    assert second.request.extra == {"reasoning_effort": "low"}
    assert second.request.tools[0]["function"]["name"] == "weather"
    assert (second.result.usage.input_tokens, second.result.usage.output_tokens) == (30, 9)
    assert first.intent.session == intent.session == "inspect-ev-1-s-1-1"
    assert {name: value for name, value in intent.tags.items() if name.startswith("inspect")} == {
        "inspect_task": "security_guide",
        "inspect_sample": "s-1",
        "inspect_epoch": "1",
        "inspect_eval": "ev-1",
        "inspect_score_includes": "C",
    }


@pytest.mark.parametrize("place", ["message_pool", "events_data"])
def test_pooled_messages_are_put_back(tmp_path: Path, place: str) -> None:
    pool = [USER, CALLING, RESULT]
    sample = {
        **SAMPLE,
        "events": [
            model([], output(CALLING, "tool_calls"), input_refs=[[0, 1]]),
            model([], output(ANSWER), input_refs=[[0, 1], [1, 3]]),
        ],
        place: pool if place == "message_pool" else {"messages": pool, "calls": []},
    }
    first, second = calls_of(tmp_path, log_file(tmp_path, sample))
    assert [m.role for m in said(first)] == ["user"]
    assert [m.role for m in said(second)] == ["user", "assistant", "tool"]


def test_a_sample_without_events(tmp_path: Path) -> None:
    sample = {name: SAMPLE[name] for name in ("id", "epoch", "input", "target", "output")}
    listed = {**sample, "epoch": 2, "input": [{"role": "user", "content": "Hi"}]}
    one, two = calls_of(tmp_path, log_file(tmp_path, sample, listed))
    assert said(one) == [Message.of("user", "What is the weather?")]
    assert said(two) == [Message.of("user", "Hi")]
    assert one.output.text == "It rains."
    assert one.intent.wall_ns == 1746093600_000_000_000
    assert one.intent.sampling.temperature == 0.5


def test_nan_is_read(tmp_path: Path) -> None:
    """Inspect writes it where a metric has no value."""
    sample = {**SAMPLE, "scores": {"s": {"value": float("nan")}}}
    file = log_file(tmp_path, sample, results={"m": float("nan")})
    assert "NaN" in file.read_text()
    assert len(calls_of(tmp_path, file)) == 2


def test_a_model_that_failed(tmp_path: Path) -> None:
    events = [model([USER], {"model": "openai/gpt-4o", "choices": []}, error="Rate limit")]
    (call,) = calls_of(tmp_path, log_file(tmp_path, {**SAMPLE, "events": events}))
    assert (call.result.error, call.output.error) == ("BackendError", "Rate limit")


def packed(folder: Path, kind: int = zipfile.ZIP_DEFLATED) -> Path:
    file = folder / "log.eval"
    with zipfile.ZipFile(file, "w", kind) as archive:
        archive.writestr("header.json", json.dumps(HEADER))
        archive.writestr("samples/s-1_epoch_1.json", json.dumps(SAMPLE))
        archive.writestr("summaries.json", "[]")
    return file


def test_an_archive(tmp_path: Path) -> None:
    assert len(calls_of(tmp_path, packed(tmp_path))) == 2


def test_an_archive_that_can_not_be_unpacked_here(tmp_path: Path) -> None:
    file = packed(tmp_path, zipfile.ZIP_STORED)
    body = bytearray(file.read_bytes())
    for mark, at in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):  # method 93: zstd
        start = 0
        while (start := body.find(mark, start)) >= 0:
            body[start + at : start + at + 2] = (93).to_bytes(2, "little")
            start += 4
    file.write_bytes(body)
    with pytest.raises(UnusableFile, match="inspect log convert"):
        imported(tmp_path, file)


BAD: list[tuple[dict[str, Any], str]] = [
    ({"events": [model(["hi"], output(ANSWER))]}, "input[0] must be a message"),
    ({"events": [model([{"role": "robot", "content": ""}], output(ANSWER))]}, "role"),
    ({"events": [model([{"role": "user", "content": 5}], output(ANSWER))]}, "content must be"),
    ({"events": [model([], output(ANSWER))]}, "input must be"),
    ({"events": [model([], output(ANSWER), input_refs=[[0, 9]])]}, "input_refs"),
    ({"events": [model([USER], None)]}, "no output"),
    ({"events": [model([USER], {"choices": []})]}, "no choices"),
    ({"events": [model([USER], {"choices": [5]})]}, "choices[0].message"),
    ({"events": [], "input": None}, "input must be"),
]


@pytest.mark.parametrize(("changed", "says"), BAD)
def test_what_can_not_be_used(tmp_path: Path, changed: dict[str, Any], says: str) -> None:
    file = log_file(tmp_path, SAMPLE, {**SAMPLE, "id": "s-2", **changed})
    with pytest.raises(UnusableFile) as refused:
        imported(tmp_path, file)
    assert says in str(refused.value)
    assert (refused.value.place or "").startswith("sample 2")
    assert not (tmp_path / "log").exists()
    _, done = imported(tmp_path, file, skip_bad=True)
    assert (done.calls, len(done.skipped)) == (2, 1)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "no eval log"),
        (b"[]", "no eval log"),
        (b'{"eval": {}}', "header of an eval log"),
        (b'{"eval": 5, "samples": []}', "no eval log"),
        (b"PK\x03\x04 broken", "no eval log"),
        (b"\xff" * 10, "no eval log"),
        (b'{"samples": [' + b"[" * 50_000, "no eval log"),
    ],
)
def test_what_is_no_eval_log(tmp_path: Path, body: bytes, says: str) -> None:
    file = tmp_path / "x.json"
    file.write_bytes(body)
    with pytest.raises(UnusableFile, match=says):
        imported(tmp_path, file)
