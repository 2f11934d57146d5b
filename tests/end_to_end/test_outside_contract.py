"""What outside checks rely on: a callable backend, callable checks, a directory, and a view."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import duckdb

from isonomy.replay import ReplayLog
from isonomy.sdk import Allow, Block, Guard, Replace


def answer(messages: list[dict[str, Any]]) -> str:
    assert [set(message) for message in messages] == [{"role", "content"}] * len(messages)
    return f"you said {messages[-1]['content']}"


def polite(text: str) -> bool:
    return "damn" not in text


def private(text: str) -> Any:
    return Replace(text.replace("42", "**")) if "42" in text else Allow()


def test_guard_and_view(tmp_path: Path) -> None:
    guard = Guard(backend=answer, policy=[polite, private], log=tmp_path / "log")
    replies = [guard.chat(text) for text in ("hello", "my number is 42", "damn it")]
    assert [reply.verdict for reply in replies] == ["allow", "replace", "block"]
    assert replies[0].text == "you said hello"
    assert replies[1].text == "you said my number is **"
    with ReplayLog(tmp_path / "log") as log:
        rows = log.sql("select call_id, verdict from calls order by sequence").fetchall()
        assert rows == [(reply.call_id, reply.verdict) for reply in replies]
        log.refresh()
    for reply in replies:
        result = guard.replay(reply.call_id)
        assert result.status == "verified"
        assert result.stand_ins == (not reply.blocked)
    guard.close()
    # Any DuckDB client reads the published file.
    with duckdb.connect(str(tmp_path / "log" / "audit.duckdb"), read_only=True) as client:
        (count,) = client.execute("select count(distinct call_id) from calls").fetchone() or (0,)
    assert count == 3
    assert stat.S_IMODE((tmp_path / "log").stat().st_mode) == 0o700


def test_a_refusal_is_final(tmp_path: Path) -> None:
    with Guard(answer, [lambda text: Block("never")], tmp_path / "log") as guard:
        reply = guard.chat("hello")
    assert reply.blocked
    assert "hello" not in reply.text
