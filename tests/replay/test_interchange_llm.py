"""Databases of llm, of several of its versions, made by the statements of its own migrations."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from isonomy.replay import ReplayLog, replay_call
from isonomy.replay.interchange import llm
from isonomy.replay.interchange.errors import UnusableFile
from isonomy.replay.interchange.newlog import Imported, build
from isonomy.replay.interchange.traffic import Judge
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

FIRST = """
CREATE TABLE conversations (id TEXT PRIMARY KEY, name TEXT, model TEXT);
CREATE TABLE responses (id TEXT PRIMARY KEY, model TEXT, prompt TEXT, system TEXT,
  prompt_json TEXT, options_json TEXT, response TEXT, response_json TEXT,
  conversation_id TEXT REFERENCES conversations(id), duration_ms INTEGER, datetime_utc TEXT);
"""
LATER = (
    FIRST
    + """
CREATE TABLE attachments (id TEXT PRIMARY KEY, type TEXT, path TEXT, url TEXT, content BLOB);
CREATE TABLE prompt_attachments (response_id TEXT, attachment_id TEXT, "order" INTEGER,
  PRIMARY KEY (response_id, attachment_id));
ALTER TABLE responses ADD COLUMN input_tokens INTEGER;
ALTER TABLE responses ADD COLUMN output_tokens INTEGER;
ALTER TABLE responses ADD COLUMN token_details TEXT;
CREATE TABLE schemas (id TEXT PRIMARY KEY, content TEXT);
ALTER TABLE responses ADD COLUMN schema_id TEXT REFERENCES schemas(id);
CREATE TABLE fragments (id INTEGER PRIMARY KEY, hash TEXT, content TEXT, datetime_utc TEXT,
  source TEXT);
CREATE TABLE prompt_fragments (response_id TEXT, fragment_id INTEGER, "order" INTEGER,
  PRIMARY KEY (response_id, fragment_id, "order"));
CREATE TABLE system_fragments (response_id TEXT, fragment_id INTEGER, "order" INTEGER,
  PRIMARY KEY (response_id, fragment_id, "order"));
CREATE TABLE tools (id INTEGER PRIMARY KEY, hash TEXT, name TEXT, description TEXT,
  input_schema TEXT, plugin TEXT);
CREATE TABLE tool_responses (tool_id INTEGER, response_id TEXT,
  PRIMARY KEY (tool_id, response_id));
CREATE TABLE tool_calls (id INTEGER PRIMARY KEY, response_id TEXT, tool_id INTEGER, name TEXT,
  arguments TEXT, tool_call_id TEXT);
CREATE TABLE tool_results (id INTEGER PRIMARY KEY, response_id TEXT, tool_id INTEGER, name TEXT,
  output TEXT, tool_call_id TEXT, instance_id INTEGER, exception TEXT);
ALTER TABLE responses ADD COLUMN resolved_model TEXT;
CREATE TABLE parts (id INTEGER PRIMARY KEY, response_id TEXT, direction TEXT, role TEXT,
  part_type TEXT, "order" INTEGER, content TEXT, content_json TEXT, tool_call_id TEXT,
  server_executed INTEGER);
"""
)
OLD = """
CREATE TABLE logs (id INTEGER PRIMARY KEY, model TEXT, prompt TEXT, system TEXT, prompt_json TEXT,
  options_json TEXT, response TEXT, response_json TEXT, reply_to_id INTEGER, chat_id INTEGER,
  duration_ms INTEGER, datetime_utc TEXT);
"""
A, B, C, D = (f"01jy{letter}0000000000000000000" for letter in "abcd")


def database(folder: Path, schema: str, rows: Sequence[tuple[str, dict[str, Any]]]) -> Path:
    file = folder / "logs.db"
    with sqlite3.connect(file) as connection:
        connection.executescript(schema)
        for table, row in rows:
            names = ", ".join(f'"{name}"' for name in row)
            places = ", ".join("?" * len(row))
            connection.execute(f"INSERT INTO {table} ({names}) VALUES ({places})", [*row.values()])
    connection.close()
    return file


def response(id: str, **fields: Any) -> tuple[str, dict[str, Any]]:
    told = {
        "id": id,
        "model": "gpt-4o-mini",
        "prompt": "Ten names for a pet pelican",
        "response": "1. Beaky",
        "conversation_id": "conv-1",
        "duration_ms": 1500,
        "datetime_utc": "2025-06-01T12:00:00.250000+00:00",
    }
    return "responses", {**told, **fields}


def imported(folder: Path, file: Path, **options: Any) -> tuple[ReplayLog, Imported]:
    with Judge() as judge:
        done = build(folder / "log", judge.all(llm.past_calls(file)), **options)
    return ReplayLog(folder / "log"), done


def calls_of(folder: Path, file: Path) -> list[Any]:
    log, _ = imported(folder, file)
    assert log.verify().findings == ()
    calls = list(reversed(log.calls()))
    assert {replay_call(call).status for call in calls} == {"verified"}
    return calls


def said(call: Any) -> list[Message]:
    return [call.messages[number] for number in call.request.messages]


def test_a_first_database(tmp_path: Path) -> None:
    file = database(
        tmp_path,
        FIRST,
        [
            ("conversations", {"id": "conv-1", "name": "Pelicans", "model": "gpt-4o-mini"}),
            response(
                A,
                system="Be funny.",
                options_json='{"temperature": 0.7, "json_object": true}',
                response_json='{"id": "chatcmpl-1"}',
            ),
            response(B, system="Be funny.", prompt="More", response="2. Bill"),
            response(C, conversation_id="conv-2", prompt="Other", response="x"),
            response(D, system="Be brief.", prompt="Why?", response="So."),
        ],
    )
    before = file.read_bytes()
    first, second, third, fourth = calls_of(tmp_path, file)
    assert file.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log", "logs.db"]
    assert said(first) == [
        Message.of("system", "Be funny."),
        Message.of("user", "Ten names for a pet pelican"),
    ]
    assert said(second) == [
        *said(first),
        Message.of("assistant", "1. Beaky"),
        Message.of("user", "More"),
    ]
    assert said(fourth)[-2:] == [Message.of("system", "Be brief."), Message.of("user", "Why?")]
    assert said(third) == [Message.of("user", "Other")]
    assert first.output.text == "1. Beaky"
    assert (first.intent.wall_ns, first.result.duration_ns) == (
        1748779200_250_000_000,
        1_500_000_000,
    )
    assert first.intent.session == second.intent.session == "llm-conv-1"
    assert first.intent.sampling.temperature == 0.7
    assert first.request.extra == {"json_object": True}
    assert first.intent.tags["imported_id"] == A
    assert first.events[0].generation.raw == '{"id": "chatcmpl-1"}'
    assert first.intent.identity.provider == "llm"


def test_a_database_of_today(tmp_path: Path) -> None:
    schema = {"type": "object", "properties": {"name": {"type": "string"}}}
    file = database(
        tmp_path,
        LATER,
        [
            response(
                A,
                prompt="What is the weather?",
                response="",
                input_tokens=20,
                output_tokens=7,
                resolved_model="gpt-4o-mini-2024-07-18",
                schema_id="s1",
            ),
            response(B, prompt="", response="It rains."),
            ("schemas", {"id": "s1", "content": json.dumps(schema)}),
            ("fragments", {"id": 1, "hash": "h1", "content": "A fragment"}),
            ("fragments", {"id": 2, "hash": "h2", "content": "System fragment"}),
            ("prompt_fragments", {"response_id": A, "fragment_id": 1, "order": 0}),
            ("system_fragments", {"response_id": A, "fragment_id": 2, "order": 0}),
            ("attachments", {"id": "a1", "type": "image/png", "content": b"\x89PNG"}),
            ("attachments", {"id": "a2", "type": "audio/wav", "url": "https://example.com/a.wav"}),
            ("attachments", {"id": "a3", "type": "application/pdf", "path": "/tmp/x.pdf"}),
            ("prompt_attachments", {"response_id": A, "attachment_id": "a2", "order": 1}),
            ("prompt_attachments", {"response_id": A, "attachment_id": "a1", "order": 0}),
            ("prompt_attachments", {"response_id": A, "attachment_id": "a3", "order": 2}),
            (
                "tools",
                {
                    "id": 1,
                    "hash": "h",
                    "name": "weather",
                    "description": "Tells it.",
                    "input_schema": '{"type": "object"}',
                },
            ),
            ("tool_responses", {"tool_id": 1, "response_id": A}),
            (
                "tool_calls",
                {
                    "id": 1,
                    "response_id": A,
                    "tool_id": 1,
                    "name": "weather",
                    "arguments": '{"city": "Graz"}',
                    "tool_call_id": "call_1",
                },
            ),
            (
                "tool_results",
                {
                    "id": 1,
                    "response_id": B,
                    "tool_id": 1,
                    "name": "weather",
                    "output": "rain",
                    "tool_call_id": "call_1",
                },
            ),
            (
                "parts",
                {
                    "id": 1,
                    "response_id": B,
                    "direction": "output",
                    "role": "assistant",
                    "part_type": "reasoning",
                    "order": 0,
                    "content": "It must rain.",
                },
            ),
        ],
    )
    first, second = calls_of(tmp_path, file)
    system, user = said(first)
    assert system == Message.of("system", "System fragment")
    assert user.content == (
        Text("A fragment\nWhat is the weather?"),
        Image("data:image/png;base64,iVBORw==", "image/png"),
        Audio("https://example.com/a.wav", "audio/wav"),
        Json({"attachment": "application/pdf", "reference": "/tmp/x.pdf"}),
    )
    asked = ToolCall("call_1", "weather", {"city": "Graz"})
    assert first.output.content == (asked,)
    assert first.result.finish_reason == "tool_calls"
    assert (first.result.usage.input_tokens, first.result.usage.output_tokens) == (20, 7)
    assert first.events[0].generation.model == "gpt-4o-mini-2024-07-18"
    assert first.request.response_format["json_schema"]["schema"] == schema
    assert first.request.tools[0]["function"] == {
        "name": "weather",
        "description": "Tells it.",
        "parameters": {"type": "object"},
    }
    assert said(second)[2:] == [
        Message("assistant", (asked,)),
        Message("tool", (ToolResult("call_1", "rain"),)),
    ]
    assert second.output.content == (Reasoning("It must rain."), Text("It rains."))


def test_a_database_of_old(tmp_path: Path) -> None:
    row = {"model": "gpt-3.5-turbo", "datetime_utc": "2023-06-15 10:00:00.5"}
    file = database(
        tmp_path,
        OLD,
        [
            ("logs", {**row, "id": 1, "prompt": "Hi", "response": "Hello"}),
            ("logs", {**row, "id": 2, "prompt": "And?", "response": "So", "chat_id": 1}),
        ],
    )
    first, second = calls_of(tmp_path, file)
    assert first.intent.wall_ns == 1686823200_500_000_000
    assert [m.text for m in said(second)] == ["Hi", "Hello", "And?"]


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"datetime_utc": "yesterday"}, "datetime_utc 'yesterday'"),
        ({"options_json": "{"}, "options_json"),
        ({"options_json": "[]"}, "options_json must be JSON of a dict"),
        ({"options_json": '{"a": 1, "a": 2}'}, "twice"),
        ({"prompt": b"\x00"}, "prompt must be text"),
        ({"prompt": None, "response": None}, "neither a prompt nor a response"),
        ({"prompt": ""}, "no messages"),
    ],
)
def test_rows_that_can_not_be_used(tmp_path: Path, fields: dict[str, Any], says: str) -> None:
    file = database(tmp_path, FIRST, [response(A), response(B, conversation_id=None, **fields)])
    with pytest.raises(UnusableFile, match=says) as refused:
        imported(tmp_path, file)
    assert refused.value.place == "table responses, row 2"
    assert not (tmp_path / "log").exists()
    _, done = imported(tmp_path, file, skip_bad=True)
    assert (done.calls, [each.place for each in done.skipped]) == (1, ["table responses, row 2"])


def test_text_that_is_no_utf8_spoils_its_row_only(tmp_path: Path) -> None:
    file = database(tmp_path, FIRST, [response(A), response(B, conversation_id="other")])
    with sqlite3.connect(file) as connection:
        connection.execute("UPDATE responses SET prompt = CAST(x'ff61' AS TEXT) WHERE id = ?", (B,))
    connection.close()
    _, done = imported(tmp_path, file, skip_bad=True)
    assert (done.calls, [each.place for each in done.skipped]) == (1, ["table responses, row 2"])


def test_what_is_no_database_of_llm(tmp_path: Path) -> None:
    other = database(tmp_path, "CREATE TABLE t (id INTEGER);", [])
    text = tmp_path / "text"
    text.write_text("nothing " * 200)
    for file, says in (
        (other, "none of llm"),
        (text, "can't be read as a database"),
        (tmp_path / "nowhere", "no such file"),
        (tmp_path, "no such file"),
    ):
        with pytest.raises(UnusableFile, match=says):
            imported(tmp_path, file)
    assert not (tmp_path / "log").exists()


def test_a_database_in_use_is_read(tmp_path: Path) -> None:
    """With a write-ahead log that holds the newest rows."""
    file = database(tmp_path, FIRST, [response(A)])
    writer = sqlite3.connect(file)
    writer.execute("PRAGMA journal_mode=WAL")
    writer.execute(
        "INSERT INTO responses (id, model, prompt, response) VALUES ('z', 'm', 'p', 'r')"
    )
    writer.commit()
    _, done = imported(tmp_path, file)
    writer.close()
    assert done.calls == 2
