"""Traffic in OpenAI's shapes, judged as if it came now: the log, its times, replay and damage."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from isonomy.replay import ReplayLog, replay_call
from isonomy.replay.interchange import openai
from isonomy.replay.interchange.errors import UnusableFile
from isonomy.replay.interchange.newlog import Imported, build
from isonomy.replay.interchange.traffic import Judge, nanoseconds
from isonomy.sdk import Block, Policy, Replace, Retry, check
from isonomy.sdk.vocabulary import Image, Json, Message, Reasoning, Text, ToolCall, ToolResult

COMPLETION = {
    "id": "chatcmpl-B9MBs8CjcvOU2jLn4n570S5qMJKcT",
    "object": "chat.completion",
    "created": 1741569952,
    "model": "gpt-4.1-2025-04-14",
    "choices": [
        {
            "index": 0,
            "message": {
                "role": "assistant",
                "content": "Hello! How can I assist you today?",
                "refusal": None,
                "annotations": [],
            },
            "logprobs": None,
            "finish_reason": "stop",
        }
    ],
    "usage": {
        "prompt_tokens": 19,
        "completion_tokens": 10,
        "total_tokens": 29,
        "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
    },
    "service_tier": "default",
}
REQUEST = {
    "model": "gpt-4.1",
    "messages": [
        {"role": "developer", "content": "You are a helpful assistant."},
        {"role": "user", "content": "Hello!"},
    ],
    "temperature": 0.5,
    "max_completion_tokens": 64,
    "user": "user-17",
    "metadata": {"team": "support"},
}
WEATHER = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}},
}
CALLING = {
    "role": "assistant",
    "content": None,
    "tool_calls": [
        {
            "id": "call_1",
            "type": "function",
            "function": {"name": "weather", "arguments": '{"city": "Graz"}'},
        }
    ],
}
BATCH_IN = {"custom_id": "r-1", "method": "POST", "url": "/v1/chat/completions", "body": REQUEST}
BATCH_OUT = {
    "id": "batch_req_123",
    "custom_id": "r-1",
    "response": {"status_code": 200, "request_id": "req_1", "body": COMPLETION},
    "error": None,
}


def file_of(folder: Path, *lines: Any, name: str = "traffic.jsonl") -> Path:
    file = folder / name
    file.write_bytes(
        b"".join(
            (line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\n"
            for line in lines
        )
    )
    return file


def imported(
    folder: Path, files: Iterable[Path], checks: Any = None, **options: Any
) -> tuple[ReplayLog, Imported]:
    policy = None if checks is None else Policy(checks, name="house rules")
    with Judge(policy, clock=lambda: 1_800_000_000_000_000_000) as judge:
        done = build(folder / "log", judge.all(openai.past_calls(files)), **options)
    return ReplayLog(folder / "log"), done


def one(folder: Path, line: Any, checks: Any = None) -> Any:
    log, done = imported(folder, [file_of(folder, line)], checks)
    assert done.calls == 1
    assert log.verify().findings == ()
    (call,) = calls_of(log)
    return call


def calls_of(log: ReplayLog) -> list[Any]:
    """The calls, oldest first."""
    return list(reversed(log.calls()))


def said(call: Any) -> list[Message]:
    return [call.messages[number] for number in call.request.messages]


def test_a_pair_is_a_call(tmp_path: Path) -> None:
    call = one(tmp_path, {"request": REQUEST, "response": COMPLETION, "duration_ms": 1250.5})
    intent, result = call.intent, call.result
    assert (intent.operation, intent.identity.provider, intent.identity.model) == (
        "import",
        "openai",
        "gpt-4.1",
    )
    assert not intent.identity.deterministic
    assert (intent.wall_ns, result.wall_ns) == (
        1741569952_000_000_000,
        1741569953_250_500_000,
    )
    assert result.duration_ns == 1_250_500_000
    assert intent.actor == "user-17"
    assert intent.tags == {
        "team": "support",
        "imported_from": "openai",
        "imported_id": COMPLETION["id"],
    }
    assert (intent.sampling.temperature, intent.sampling.max_tokens) == (0.5, 64)
    assert intent.sampling.seed is None
    assert (intent.policy_name, intent.checks) == ("none", ())
    assert said(call) == [
        Message.of("system", "You are a helpful assistant."),
        Message.of("user", "Hello!"),
    ]
    assert call.output.text == "Hello! How can I assist you today?"
    assert (result.verdict, result.finish_reason) == ("allow", "stop")
    assert (result.usage.input_tokens, result.usage.output_tokens) == (19, 10)
    (answer,) = call.events
    assert answer.duration_ns == 1_250_500_000
    assert answer.generation.model == "gpt-4.1-2025-04-14"
    assert json.loads(answer.generation.raw) == COMPLETION


def test_a_call_of_the_responses_api(tmp_path: Path) -> None:
    request = {"model": "gpt-5", "instructions": "Be kind.", "input": "Tell me a story."}
    response = {
        "id": "resp_67",
        "object": "response",
        "created_at": 1741476542.5,
        "status": "completed",
        "model": "gpt-5-2025",
        "output": [
            {"type": "reasoning", "id": "rs_1", "summary": []},
            {
                "type": "message",
                "id": "msg_1",
                "status": "completed",
                "role": "assistant",
                "content": [{"type": "output_text", "text": "Once.", "annotations": []}],
            },
        ],
        "usage": {"input_tokens": 36, "output_tokens": 87, "total_tokens": 123},
    }
    call = one(tmp_path, {"request": request, "response": response})
    assert [m.role for m in said(call)] == ["system", "user"]
    assert call.output.text == "Once."
    assert call.intent.wall_ns == 1741476542_500_000_000
    assert call.result.usage.input_tokens == 36


def test_tools_images_and_kinds_that_nobody_knows(tmp_path: Path) -> None:
    request = {
        "model": "m",
        "tools": [WEATHER],
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "Look:"},
                    {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}},
                    {"type": "hologram", "hologram": {"x": 1}},
                ],
            },
            CALLING,
            {"role": "tool", "tool_call_id": "call_1", "content": "rain"},
        ],
    }
    answer = {
        "choices": [
            {
                "index": 0,
                "message": {**CALLING, "reasoning_content": "hm"},
                "finish_reason": "tool_calls",
            }
        ]
    }
    call = one(tmp_path, {"request": request, "response": answer})
    user, asked, result = said(call)
    assert user.content == (
        Text("Look:"),
        Image("https://example.com/a.png"),
        Json({"type": "hologram", "hologram": {"x": 1}}),
    )
    assert asked.content == (ToolCall("call_1", "weather", {"city": "Graz"}),)
    assert result.content == (ToolResult("call_1", "rain"),)
    assert call.output.content == (
        Reasoning("hm"),
        ToolCall("call_1", "weather", {"city": "Graz"}),
    )
    assert call.request.tools == (WEATHER,)
    assert call.intent.tags["imported_time"] == "unknown"
    assert call.intent.wall_ns == 1_800_000_000_000_000_000
    assert call.result.duration_ns == 0


@pytest.mark.parametrize("order", [("in", "out"), ("out", "in")])
def test_a_batch_is_put_together(tmp_path: Path, order: tuple[str, str]) -> None:
    failed = {**BATCH_IN, "custom_id": "r-2"}
    files = {
        "in": file_of(tmp_path, b"  " + json.dumps(failed).encode(), BATCH_IN, name="in.jsonl"),
        "out": file_of(
            tmp_path,
            BATCH_OUT,
            {
                "id": "batch_req_124",
                "custom_id": "r-2",
                "response": {
                    "status_code": 429,
                    "body": {"error": {"message": "Too many.", "type": "requests"}},
                },
                "error": None,
            },
            name="out.jsonl",
        ),
    }
    log, done = imported(tmp_path, [files[name] for name in order])
    assert (done.calls, done.records) == (2, 4)
    good, bad = calls_of(log)
    assert good.output.text == "Hello! How can I assist you today?"
    assert good.intent.tags["imported_id"] == "r-1"
    assert good.intent.tags["batch_id"] == "batch_req_123"
    assert (bad.result.error, bad.output.error) == ("BackendError", "Too many.")


def test_a_conversation_of_a_fine_tuning_file(tmp_path: Path) -> None:
    line = {
        "messages": [
            {"role": "system", "content": "Marv is sarcastic."},
            {"role": "user", "content": "Capital of France?"},
            {"role": "assistant", "content": "Berlin.", "weight": 0},
            {"role": "user", "content": "Really?"},
            {"role": "assistant", "content": "Paris, of course.", "weight": 1},
        ]
    }
    call = one(tmp_path, line)
    assert [m.role for m in said(call)] == ["system", "user", "assistant", "user"]
    assert call.output.text == "Paris, of course."
    assert call.intent.identity.model == "unknown"


# Judged


def no_paris(text: str) -> Any:
    return Block("a city") if "Paris" in text else True


def redact(text: str) -> Any:
    return Replace(text.replace("secret", "[...]"), "redacted") if "secret" in text else True


def pair(asked: str, answered: str) -> dict[str, Any]:
    return {
        "messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
    }


def test_old_traffic_is_judged(tmp_path: Path) -> None:
    file = file_of(tmp_path, pair("a", "Paris"), pair("my secret", "a secret"), pair("b", "Rome"))
    log, _ = imported(tmp_path, [file], [no_paris, redact])
    blocked, replaced, allowed = calls_of(log)
    assert (blocked.result.verdict, blocked.output.refusal) == ("block", True)
    assert (replaced.result.verdict, replaced.output.text) == ("replace", "a [...]")
    assert allowed.result.verdict == "allow"
    assert log.sql(
        "select check_id, count(*) from decisions where verdict = 'block' group by all"
    ).fetchall() == [("no_paris", 1)]
    assert log.sql("select distinct operation from calls").fetchall() == [("import",)]
    assert log.verify().findings == ()


def test_a_check_that_asks_again_finds_no_answer(tmp_path: Path) -> None:
    def again(text: str) -> Any:
        return Retry("shorter") if len(text) > 3 else True

    call = one(tmp_path, pair("a", "Rome"), [check(again, stages=("post_validate",))])
    assert call.result.error == "BackendError"
    assert "no answer to this" in call.output.error


def test_several_candidates_are_there_for_a_policy_that_ranks(tmp_path: Path) -> None:
    choices = [
        {"index": n, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        for n, text in enumerate(["one", "two"])
    ]
    line = {
        "request": {**REQUEST, "n": 2},
        "response": {**COMPLETION, "choices": choices},
    }
    file = file_of(tmp_path, line)
    with Judge(Policy((), candidates=2)) as judge:
        build(tmp_path / "log", judge.all(openai.past_calls([file])))
    (call,) = calls_of(ReplayLog(tmp_path / "log"))
    assert [event.generation.text for event in call.events] == ["one", "two"]
    assert (call.result.usage.input_tokens, call.result.usage.output_tokens) == (19, 10)


def test_imported_calls_are_replayed(tmp_path: Path) -> None:
    rows = [{"use": "pii", "id": "mail", "action": "redact", "stages": ["post_validate"]}]
    policy = Policy.from_table({"name": "mail", "checks": rows})
    lines = [
        pair("who?", "ada@example.com"),
        {"request": REQUEST, "response": COMPLETION},
        {"request": REQUEST, "error": {"message": "overloaded"}},
    ]
    with Judge(policy) as judge:
        build(tmp_path / "log", judge.all(openai.past_calls([file_of(tmp_path, *lines)])))
    log = ReplayLog(tmp_path / "log")
    calls = log.calls()
    assert [call.result and call.result.verdict for call in reversed(calls)] == [
        "replace",
        "allow",
        "allow",
    ]
    assert [replay_call(call).status for call in calls] == ["verified"] * 3
    assert log.replay(calls[0].call_id).status == "verified"


def test_the_same_file_gives_the_same_calls(tmp_path: Path) -> None:
    file = file_of(
        tmp_path, pair("a", "b"), pair("a", "b"), {"request": REQUEST, "response": COMPLETION}
    )
    logs = []
    for name in ("one", "two"):
        with Judge() as judge:
            build(tmp_path / name, judge.all(openai.past_calls([file])))
        logs.append([call.call_id for call in ReplayLog(tmp_path / name).calls()])
    assert logs[0] == logs[1]
    assert len(set(logs[0])) == 3
    assert all(
        re.fullmatch(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", i)
        for i in logs[0]
    )
    with pytest.raises(UnusableFile, match="there already"):
        imported(tmp_path, [file, file])


# Refused

BAD: list[tuple[Any, str]] = [
    (b"{", "no JSON"),
    (b'{"messages": [], "messages": []}', "twice"),
    (b'{"messages": [{"role": "user", "content": "\\udc80"}]}', "surrogate"),
    ([1], "must be an object with request"),
    ({}, "no keys"),
    ({"prompt": "a", "completion": "b"}, "'prompt', 'completion'"),
    ({"messages": "text"}, "messages must be a list"),
    ({"messages": [{"role": "user", "content": "a"}]}, "must end with what the assistant"),
    ({"messages": [{"role": "robot", "content": "a"}, CALLING]}, "role"),
    ({"request": 1, "response": COMPLETION}, "request must be an object"),
    ({"request": REQUEST}, "response must be an object"),
    ({"request": REQUEST, "response": 5}, "response must be an object"),
    ({"request": REQUEST, "response": {}}, "no choices"),
    ({"request": {"model": "m"}, "response": COMPLETION}, "neither messages nor input"),
    ({"request": REQUEST, "response": COMPLETION, "started_at": "soon"}, "soon"),
    ({"request": REQUEST, "response": COMPLETION, "duration_ms": "1"}, "duration_ms"),
    ({"request": {**REQUEST, "messages": []}, "response": COMPLETION}, "no messages"),
    (BATCH_OUT, "input file"),
    (BATCH_IN, "output"),
    ({**BATCH_OUT, "custom_id": 7}, "custom_id must be text"),
]


@pytest.mark.parametrize(("line", "says"), BAD)
def test_what_can_not_be_used(tmp_path: Path, line: Any, says: str) -> None:
    file = file_of(tmp_path, pair("a", "b"), line)
    with pytest.raises(UnusableFile, match=re.escape(says)) as refused:
        imported(tmp_path, [file])
    assert (refused.value.file, refused.value.place) == (str(file), "line 2")
    assert not (tmp_path / "log").exists()
    log, done = imported(tmp_path, [file], skip_bad=True)
    assert (done.calls, len(done.skipped), done.skipped[0].place) == (1, 1, "line 2")
    assert log.verify().findings == ()


def test_answers_that_came_twice(tmp_path: Path) -> None:
    file = file_of(tmp_path, BATCH_IN, BATCH_OUT, BATCH_OUT, BATCH_IN)
    _, done = imported(tmp_path, [file], skip_bad=True)
    assert done.calls == 1
    assert [(each.place, "already" in each.problem) for each in done.skipped] == [
        ("line 3", True),
        ("line 4", True),
    ]


def test_hostile_names_are_data(tmp_path: Path) -> None:
    hostile = "\x1b]0;title\x07\u202e{{7*7}} 'drop table"
    request = {**REQUEST, "model": hostile, "metadata": {hostile: hostile}}
    call = one(tmp_path, {"id": hostile, "request": request, "response": COMPLETION})
    assert call.intent.identity.model == hostile
    assert call.intent.tags[hostile] == hostile


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (1741569952, 1741569952_000_000_000),
        (0.5, 500_000_000),
        ("2025-03-10T01:25:52Z", 1741569952_000_000_000),
        ("2025-03-10 01:25:52.123456", 1741569952_123_456_000),
        ("2025-03-10T02:25:52+01:00", 1741569952_000_000_000),
        ("yesterday", None),
        (-1, None),
        (True, None),
        (1e300, None),
        (float("nan"), None),
        ("0001-01-01", None),
        (None, None),
    ],
)
def test_times(written: Any, expected: int | None) -> None:
    assert nanoseconds(written) == expected
