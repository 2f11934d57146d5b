"""Traffic that simonw/llm logged: its SQLite database (``llm logs path``), opened read-only.

Tables and columns have come over the years (https://github.com/simonw/llm, llm/migrations.py):
``responses`` with ``conversations`` (since 0.5), attachments, usage, schemas, fragments, tools,
resolved models, parts. What a database does not have yet is left out. The table ``logs`` of
versions before 0.5 is read where it is still there.

A response becomes a call: told were the earlier turns of its conversation, as llm tells them, then
its own system prompt with fragments, results of tools, prompt with fragments and attachments; the
answer is its text and calls of tools. Databases of llm do not say which provider answered: that is
``llm`` unless named.
"""

from __future__ import annotations

import base64
import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec

from isonomy.sdk.generation import Generation, Sampling, Usage
from isonomy.sdk.vocabulary import (
    Audio,
    Image,
    Json,
    Message,
    Part,
    Reasoning,
    Text,
    ToolCall,
    ToolResult,
)
from isonomy.sdk.wrapping.openai_format import tool_call_of

from .errors import UnusableFile
from .lines import data_of, opened
from .traffic import PastCall, nanoseconds

SOURCE = "llm"
_REQUIRED = frozenset(("id", "model", "prompt", "response"))
_SAMPLING = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "max_tokens": "max_tokens",
    "max_output_tokens": "max_tokens",
    "seed": "seed",
    "stop": "stop",
}

Row = sqlite3.Row


def past_calls(
    file: str | os.PathLike[str], *, provider: str = "llm"
) -> Iterator[PastCall | UnusableFile]:
    """Yield the calls of a database, oldest first; in place of one that can't be used, why.

    Raises:
        UnusableFile: the file can't be read, or is no database of llm.
    """
    name = os.fspath(file)
    try:
        with closing(_connected(name)) as database:
            yield from _Database(database, name, provider).calls()
    except (sqlite3.Error, UnicodeDecodeError) as error:
        raise UnusableFile(
            f"it can't be read as a database of llm: {error}. Check the path (llm logs path).",
            file=name,
        ) from error


def _connected(file: str) -> sqlite3.Connection:
    path = Path(file)
    try:
        if not path.is_file():
            raise UnusableFile("there is no such file. Check the path.", file=file)
        with opened(path) as stream:
            keeps_log = stream.read(20)[18:19] == b"\x02"
        # To read a database with a write-ahead log, SQLite would make that log where there is none.
        rest = "&immutable=1" if keeps_log and not Path(f"{file}-wal").exists() else ""
    except (OSError, ValueError) as error:
        raise UnusableFile(f"it can't be read: {error}. Check the path.", file=file) from None
    database = sqlite3.connect(f"file:{quote(str(path.absolute()))}?mode=ro{rest}", uri=True)
    database.row_factory = sqlite3.Row
    # What is no UTF-8 must spoil its own row only.
    database.text_factory = lambda raw: raw.decode("utf-8", "surrogateescape")
    database.execute("PRAGMA trusted_schema=OFF")
    return database


class _Database:
    """A database of llm, of whatever version."""

    def __init__(self, database: sqlite3.Connection, file: str, provider: str) -> None:
        self._database = database
        self._file = file
        self._provider = provider
        self._columns = {
            str(table): {str(row[1]) for row in database.execute(f"PRAGMA table_info({_q(table)})")}
            for (table,) in database.execute(
                "SELECT name FROM sqlite_schema WHERE type IN ('table', 'view')"
            )
        }

    def calls(self) -> Iterator[PastCall | UnusableFile]:
        tables = [
            table for table in ("logs", "responses") if self._columns.get(table, set()) >= _REQUIRED
        ]
        if not tables:
            raise UnusableFile(
                "it is a database, but none of llm: it has no table responses (or logs) with the "
                f"columns {', '.join(sorted(_REQUIRED))}. Check the path (llm logs path).",
                file=self._file,
            )
        for table in tables:
            # Ids of responses are ULIDs, and rise with time; those of logs are numbers.
            for row in self._database.execute(
                f"SELECT rowid AS row_id, * FROM {table} ORDER BY id"
            ):
                place = f"table {table}, row {row['row_id']}"
                try:
                    yield self._call(table, row, place)
                except (ValueError, TypeError, msgspec.MsgspecError) as error:
                    yield UnusableFile(f"{error}.", file=self._file, place=place)

    def _call(self, table: str, row: Row, place: str) -> PastCall:
        id = str(row["id"])
        for name in ("model", "prompt", "system", "response"):
            value = _get(row, name)
            if value is not None and not isinstance(value, str):
                raise ValueError(f"{name} must be text, not {type(value).__name__}")
        options = self._json(row, "options_json", dict) or {}
        sampling, extra = _options(options)
        conversation = (
            _get(row, "conversation_id") if table == "responses" else _get(row, "chat_id")
        )
        earlier, system = self._earlier(table, row)
        asked, answer = self._said(row, id), self._answer(row, id)
        if not asked and not answer:
            raise ValueError("it holds neither a prompt nor a response")
        model = str(row["model"] or "unknown")
        resolved = _get(row, "resolved_model")
        counts = [_get(row, name) for name in ("input_tokens", "output_tokens")]
        usage = Usage(*(count if type(count) is int else None for count in counts))
        response = _get(row, "response_json")
        took = _get(row, "duration_ms")
        schema = self._schema(row)
        tags = {"llm_conversation": str(conversation)} if conversation is not None else {}
        tools = self._tools(id)
        called = any(isinstance(part, ToolCall) for part in answer)
        return PastCall(
            file=self._file,
            place=place,
            source=SOURCE,
            id=id,
            messages=(*earlier, *_unless_told(asked, system)),
            answers=(
                Generation(
                    content=answer or (Text(""),),
                    finish_reason="tool_calls" if called else "stop",
                    model=str(resolved or model),
                    usage=usage,
                    raw=response if isinstance(response, str) else None,
                ),
            ),
            provider=self._provider,
            model=model,
            sampling=sampling,
            tools=tools,
            response_format=schema,
            extra=extra,
            started_ns=self._began(row),
            duration_ns=int(took * 1_000_000) if type(took) is int and took >= 0 else None,
            session=f"llm-{conversation}" if conversation is not None else None,
            tags=tags,
        )

    # What was said

    def _earlier(self, table: str, row: Row) -> tuple[list[Message], str | None]:
        """Return the earlier turns of a response's conversation, and its system prompt by then."""
        key = "conversation_id" if table == "responses" else "chat_id"
        conversation = _get(row, key)
        told: list[Message] = []
        system: str | None = None
        if conversation is None:
            return told, system
        turns = self._database.execute(
            f"SELECT rowid AS row_id, * FROM {table} WHERE {key} = ? AND id < ? ORDER BY id",
            (conversation, row["id"]),
        )
        if table == "logs":  # the first one of a chat has its id, and no chat_id
            turns = self._database.execute(
                "SELECT rowid AS row_id, * FROM logs WHERE (chat_id = ?1 OR id = ?1) AND id < ?2"
                " ORDER BY id",
                (conversation, row["id"]),
            )
        for turn in turns:
            asked = self._said(turn, str(turn["id"]))
            told += _unless_told(asked, system)
            if asked and asked[0].role == "system":
                system = asked[0].text
            if answer := self._answer(turn, str(turn["id"])):
                told.append(Message("assistant", answer))
        return told, system

    def _said(self, row: Row, id: str) -> tuple[Message, ...]:
        """Return what a response's own turn told the model."""
        messages: list[Message] = []
        system = "\n\n".join(
            [*self._fragments("system_fragments", id), *filter(None, [_get(row, "system")])]
        )
        if system:
            messages.append(Message.of("system", system))
        results = self._results(id)
        if results:
            messages.append(Message("tool", results))
        prompt = "\n".join(
            [*self._fragments("prompt_fragments", id), *filter(None, [_get(row, "prompt")])]
        )
        parts: tuple[Part, ...] = self._attachments(id)
        if prompt:
            parts = (Text(prompt), *parts)
        if parts:
            messages.append(Message("user", parts))
        return tuple(messages)

    def _answer(self, row: Row, id: str) -> tuple[Part, ...]:
        parts: list[Part] = [Reasoning(text) for text in self._reasoning(row, id)]
        if text := _get(row, "response"):
            parts.append(Text(str(text)))
        if "tool_calls" in self._columns:
            for call in self._of("tool_calls", id):
                parts.append(
                    tool_call_of(
                        str(_get(call, "tool_call_id") or ""),
                        str(_get(call, "name") or ""),
                        _get(call, "arguments"),
                    )
                )
        return tuple(parts)

    def _reasoning(self, row: Row, id: str) -> list[str]:
        if isinstance(said := _get(row, "reasoning"), str) and said:
            return [said]
        if not {"part_type", "content", "direction", "order"} <= self._columns.get("parts", set()):
            return []
        found = self._database.execute(
            "SELECT content FROM parts WHERE response_id = ? AND direction = 'output'"
            " AND part_type = 'reasoning' ORDER BY \"order\"",
            (id,),
        )
        return [text for (text,) in found if isinstance(text, str) and text]

    def _results(self, id: str) -> tuple[Part, ...]:
        if "tool_results" not in self._columns:
            return ()
        return tuple(
            ToolResult(str(_get(row, "tool_call_id") or ""), str(_get(row, "output") or ""))
            for row in self._of("tool_results", id)
        )

    def _fragments(self, table: str, id: str) -> list[str]:
        if not {table, "fragments"} <= self._columns.keys():
            return []
        found = self._database.execute(
            f"SELECT f.content FROM {table} p JOIN fragments f ON f.id = p.fragment_id"
            ' WHERE p.response_id = ? ORDER BY p."order"',
            (id,),
        )
        return [text for (text,) in found if isinstance(text, str)]

    def _attachments(self, id: str) -> tuple[Part, ...]:
        if not {"prompt_attachments", "attachments"} <= self._columns.keys():
            return ()
        found = self._database.execute(
            "SELECT a.type, a.path, a.url, a.content FROM prompt_attachments p"
            " JOIN attachments a ON a.id = p.attachment_id WHERE p.response_id = ?"
            ' ORDER BY p."order"',
            (id,),
        )
        return tuple(_attachment(*row) for row in found)

    def _tools(self, id: str) -> tuple[dict[str, Any], ...]:
        if not {"tool_responses", "tools"} <= self._columns.keys():
            return ()
        found = self._database.execute(
            "SELECT t.name, t.description, t.input_schema FROM tool_responses r"
            " JOIN tools t ON t.id = r.tool_id WHERE r.response_id = ? ORDER BY t.id",
            (id,),
        )
        return tuple(
            {
                "type": "function",
                "function": {
                    "name": str(name),
                    **({"description": str(told)} if told else {}),
                    **({"parameters": _parsed(schema, "input_schema", dict)} if schema else {}),
                },
            }
            for name, told, schema in found
        )

    def _schema(self, row: Row) -> dict[str, Any] | None:
        id = _get(row, "schema_id")
        if id is None or "schemas" not in self._columns:
            return None
        found = self._database.execute("SELECT content FROM schemas WHERE id = ?", (id,)).fetchone()
        if found is None:
            return None
        schema = _parsed(found[0], "schema", dict)
        return {"type": "json_schema", "json_schema": {"name": str(id), "schema": schema}}

    def _of(self, table: str, id: str) -> Sequence[Row]:
        return self._database.execute(
            f"SELECT * FROM {table} WHERE response_id = ? ORDER BY id", (id,)
        ).fetchall()

    def _json(self, row: Row, name: str, kind: type) -> Any:
        value = _get(row, name)
        return None if value in (None, "") else _parsed(value, name, kind)

    def _began(self, row: Row) -> int | None:
        written = _get(row, "datetime_utc")
        if written in (None, ""):
            return None
        found = nanoseconds(written)
        if found is None:
            raise ValueError(f"datetime_utc {written!r:.60} is no time")
        return found


def _unless_told(asked: tuple[Message, ...], system: str | None) -> tuple[Message, ...]:
    """Return a turn without its system prompt where that was told already, as llm does."""
    if asked and asked[0].role == "system" and asked[0].text == system:
        return asked[1:]
    return asked


def _q(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _get(row: Row, name: str) -> Any:
    return row[name] if name in row.keys() else None  # noqa: SIM118 (a row is no dictionary)


def _parsed(text: Any, what: str, kind: type) -> Any:
    if not isinstance(text, str):
        raise ValueError(f"{what} must be JSON text")
    try:
        data = data_of(text.encode())
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from None
    if not isinstance(data, kind):
        raise ValueError(f"{what} must be JSON of a {kind.__name__}")
    return data


def _options(options: dict[str, Any]) -> tuple[Sampling, dict[str, Any]]:
    """Part llm's options into sampling and others."""
    taken: dict[str, Any] = {}
    rest: dict[str, Any] = {}
    for name, value in options.items():
        field = _SAMPLING.get(name)
        given = [value] if field == "stop" and isinstance(value, str) else value
        try:
            if field is None:
                raise msgspec.ValidationError
            taken[field] = getattr(msgspec.convert({field: given}, Sampling), field)
        except msgspec.ValidationError:
            rest[name] = value
    return Sampling(**taken), rest


def _attachment(kind: Any, path: Any, url: Any, content: Any) -> Part:
    kind = str(kind or "application/octet-stream")
    reference = url or path
    if content is not None:
        body = content.encode() if isinstance(content, str) else bytes(content)
        reference = f"data:{kind};base64,{base64.b64encode(body).decode()}"
    if kind.startswith("image/"):
        return Image(str(reference), kind)
    if kind.startswith("audio/"):
        return Audio(str(reference), kind)
    return Json({"attachment": kind, "reference": reference})
