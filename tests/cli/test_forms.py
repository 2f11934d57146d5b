"""Every form of the command line, its JSON, its exit status, and where things are looked for."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from tests.cli.conftest import NASTY, Run, Said, run_apart

from isonomy.sdk import Block, Guard, on_output

CHAT = ("--seed", 5, "--temperature", 0.9, "--max-tokens", 8)
UNJUDGED = "no policy: nothing judged this answer\n"
CONFIG = """
[backend]
use = "{spec}"
max_tokens = 3
[log]
path = "configured"
[policy]
refusal = "No."
[[policy.checks]]
use = "length"
id = "short"
stages = ["pre_filter"]
max = 20
"""


@pytest.fixture
def said(run: Run, log: Path, tiny: str) -> Said:
    return run("chat", "hello", "--backend", tiny, "--log", log, *CHAT, "--json")


def test_chat_json(said: Said, run: Run, log: Path, tiny: str) -> None:
    assert (said.status, said.err) == (0, UNJUDGED)
    reply = said.json
    assert {"call_id", "text", "verdict", "usage"} <= set(reply)
    assert reply["verdict"] == "allow"
    assert isinstance(reply["text"], str)
    assert reply["usage"]["output_tokens"] == 8
    again = run("chat", "hello", "--backend", tiny, "--log", log, *CHAT, "--json").json
    assert again["text"] == reply["text"]
    assert again["call_id"] != reply["call_id"]


def test_chat_plain(run: Run, log: Path, tiny: str) -> None:
    said = run("chat", "hello", "--backend", tiny, "--log", log, *CHAT)
    assert said.status == 0
    assert said.err.startswith(UNJUDGED + "[allow] call ")
    assert said.err.count("\n") == 2
    call = run("explain", said.err.split()[-1], "--log", log, "--json").json
    assert call["output"]["text"] == call["output"]["content"][0]["text"]


def test_chat_reads_standard_input(log: Path, tiny: str) -> None:
    said = run_apart("chat", "-", "--backend", tiny, "--log", log, *CHAT, "--json", input="hello")
    assert said.status == 0
    said = run_apart("explain", said.json["call_id"], "--log", log)
    assert "in   user: hello\n" in said.out


def test_sql_json(said: Said, run: Run, log: Path) -> None:
    call_id = said.json["call_id"]
    rows = run("sql", "select call_id, verdict from calls", "--log", log, "--json").json
    assert rows == [{"call_id": call_id, "verdict": "allow"}]
    assert run("sql", "select * from calls where false", "--log", log, "--json").json == []
    odd = "select null a, 1.5 b, [1, 2] c, {'x': 'y'} d, 'a'::blob e, timestamp '2026-01-02' f"
    (row,) = run("sql", odd, "--log", log, "--json").json
    assert (
        row
        == {
            "a": None,
            "b": 1.5,
            "c": [1, 2],
            "d": {"x": "y"},
            "e": "61",
            "f": "2026-01-02T00:00:00",
        }
        or row["b"] == "1.5"
    )  # DuckDB reads 1.5 as a decimal


def test_sql_json_is_strict_and_loses_nothing(said: Said, run: Run, log: Path) -> None:
    query = "select 1 a, 2 a, 3 a_2, 4 a, 'inf'::double i, [-('inf'::float), 'nan'::float] l"
    told = run("sql", query, "--log", log, "--json")
    assert "NaN," not in told.out.replace('"NaN"', "")
    assert told.json == [
        {"a": 1, "a_3": 2, "a_2": 3, "a_4": 4, "i": "Infinity", "l": ["-Infinity", "NaN"]}
    ]
    told = run("sql", "select now() t, map {1: 'x'} m", "--log", log, "--json")
    assert told.json[0]["m"] == {"1": "x"}
    assert run("sql", "select now()", "--log", log).status == 0


@pytest.mark.parametrize("view", ["calls", "events", "decisions", "generations", "tokens"])
def test_sql_plain(said: Said, run: Run, log: Path, view: str) -> None:
    told = run("sql", f"select * from {view}", "--log", log)
    assert told.status == 0
    header, *rows = told.out.splitlines()
    assert "call_id" in header.split("\t")
    assert len(rows) == {"calls": 1, "events": 1, "decisions": 0, "generations": 1}.get(view, 8)
    assert all(row.count("\t") == header.count("\t") for row in rows)


def test_log(said: Said, run: Run, log: Path, tiny: str) -> None:
    newer = run("chat", "second\nline", "--backend", tiny, "--log", log, "--json", *CHAT).json
    told = run("log", "--log", log)
    assert told.status == 0
    header, first, second = told.out.splitlines()
    assert header.startswith("call\t")
    assert first.startswith(newer["call_id"])
    assert "second line" in first
    assert second.startswith(said.json["call_id"])
    assert len(run("log", "-n", 1, "--log", log, "--json").json) == 1


def test_explain(said: Said, run: Run, log: Path) -> None:
    call_id = said.json["call_id"]
    told = run("explain", call_id, "--log", log)
    assert told.status == 0
    assert told.out.startswith(f"call {call_id} (complete)\n")
    assert "in   user: hello" in told.out
    assert told.out.endswith("verdict allow\n")
    data = run("explain", call_id[:20], "--log", log, "--json").json
    assert data["call_id"] == call_id
    assert data["messages"]["0"]["role"] == "user"
    assert [event["type"] for event in data["events"]] == ["generated"]
    assert data["damage"] == []


def test_explain_tells_every_event(run: Run, log: Path) -> None:
    def no(text: str) -> Any:
        return Block("because")

    with Guard(lambda messages: "fine", [on_output(no)], log) as guard:
        call_id = guard.chat("hello").call_id
    told = run("explain", call_id, "--log", log).out
    assert "post_validate no" in " ".join(told.split())
    assert "block candidate/0: because" in told
    assert "out  refusal: " in told
    assert told.endswith("verdict block by no: because\n")


def test_replay(said: Said, run: Run, log: Path) -> None:
    call_id = said.json["call_id"]
    told = run("replay", call_id, "--log", log)
    assert (told.status, told.err) == (0, "")
    assert told.out.startswith(f"{call_id}  verified: 1 event equal; 1 generation re-executed ")
    assert told.out.endswith(", 8 token steps bit for bit\n")
    told = run("replay", call_id, "--log", log, "--json")
    assert told.status == 0
    assert told.json["status"] == "verified"
    assert told.json["exit_status"] == 0


def test_replay_all(said: Said, run: Run, log: Path) -> None:
    """The worst that happened is the exit status, and every call is named."""
    with Guard(lambda messages: "fine", [], log) as guard:
        remote = guard.chat("hello").call_id
    with Guard(lambda messages: "fine", [lambda text: True], log) as guard:
        own = guard.chat("hello").call_id
    told = run("replay", "--all", "--log", log, "--json")
    assert told.status == 2
    states = {result["call_id"]: result["status"] for result in told.json}
    assert states == {said.json["call_id"]: "verified", remote: "verified", own: "refused"}
    assert [r["stand_ins"] for r in told.json if r["call_id"] == remote] == [1]


def test_replay_diverged(run: Run, log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import isonomy.replay as replay
    from isonomy.replay.replaying import Replayed

    with Guard(lambda messages: "fine", [], log) as guard:
        guard.chat("hello")
    monkeypatch.setattr(
        replay,
        "replay_separately",
        lambda call, **options: Replayed(call_id=call.call_id, status="diverged", reason="so"),
        raising=False,
    )
    told = run("replay", "--all", "--log", log)
    assert told.status == 1
    assert told.out.endswith("diverged: so\n")


def test_verify(said: Said, run: Run, log: Path) -> None:
    told = run("verify", "--log", log)
    assert (told.status, told.err) == (0, "")
    assert told.out.startswith("intact: 2 records, no audit.duckdb yet\n")
    told = run("verify", "--log", log, "--json")
    assert told.json["intact"] is True
    with sqlite3.connect(log / "journal.sqlite") as journal:
        for (name,) in journal.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'"):
            journal.execute(f'DROP TRIGGER "{name}"')
        journal.execute("UPDATE contents SET body = replace(body, 'hello', 'jello')")
    journal.close()
    told = run("verify", "--log", log)
    assert told.status == 1
    assert "DAMAGED" in told.out
    assert "1" in told.out
    told = run("verify", "--log", log, "--json")
    assert told.status == 1
    assert told.json["intact"] is False
    assert told.json["findings"]


def test_plugins(run: Run) -> None:
    told = run("plugins")
    assert told.status == 0
    for name in ("check\tpatterns\t", "check\tpii\t", "backend\tlocal\t", "backend\topenai\t"):
        assert name in told.out
    assert {row["name"] for row in run("plugins", "--json").json} >= {"length", "callable"}


def test_where_the_log_is(run: Run, log: Path, tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """--log, then the configuration, then ISONOMY_LOG, then ./isonomy-log."""
    here = log.parent
    (here / "isonomy.toml").write_text(CONFIG.format(spec=tiny))
    chat = ("chat", "hello", "--backend", tiny, "--max-tokens", 2)
    assert run(*chat).status == 0
    assert (here / "isonomy-log").is_dir()
    monkeypatch.setenv("ISONOMY_LOG", str(here / "from-environment"))
    assert run(*chat).status == 0
    assert run("chat", "hello", "--config", "isonomy.toml").status == 0
    assert run("chat", "hello", "--config", "isonomy.toml", "--log", log).status == 0
    for name in ("isonomy-log", "from-environment", "configured", "log"):
        assert len(run("sql", "select 1 from calls", "--log", here / name, "--json").json) == 1
    assert len(run("log", "--json").json) == 1
    monkeypatch.delenv("ISONOMY_LOG")
    assert len(run("log", "--json").json) == 1


def test_the_configuration(run: Run, log: Path, tiny: str) -> None:
    """Its policy judges; options win over its sampling, --backend over its backend."""
    (log.parent / "isonomy.toml").write_text(CONFIG.format(spec=tiny))
    file = ("--config", "isonomy.toml", "--json")
    assert run("chat", "hello", *file).json["usage"]["output_tokens"] == 3
    assert run("chat", "hello", "--max-tokens", 2, *file).json["usage"]["output_tokens"] == 2
    assert run("chat", "hello", *file).err == ""
    blocked = run("chat", "x" * 21, *file).json
    assert (blocked["verdict"], blocked["text"], blocked["check"]) == ("block", "No.", "short")
    gone = run("chat", "hello", "--backend", "local:/gone", *file)
    assert gone.status == 2
    assert "/gone" in gone.err


def test_nothing_in_a_log_acts_when_it_is_printed(run: Run, log: Path) -> None:
    def judged(text: str) -> Any:
        return Block(NASTY)

    with Guard(
        lambda messages: NASTY,
        [on_output(judged, id="c")],
        log,
    ) as guard:
        call_id = guard.chat(NASTY, session=NASTY, actor=NASTY, tags={NASTY: NASTY}).call_id
    for command in (
        ("log",),
        ("explain", call_id),
        ("sql", "select * from calls"),
        ("sql", f'select reason as "{NASTY}" from decisions'),
        ("verify",),
        ("replay", call_id),
    ):
        told = run(*command, "--log", log)
        assert told.status in (0, 2)
        assert not set("\x1b\x07\x9b\u202e") & set(told.out + told.err), command
    told = run("explain", call_id, "--log", log).out
    assert "\\x1b[31mred\\x1b]0;title\\x07 [bold]x[/bold] \\u202egnp.exe :smile: \\x9b2J" in told
    for command in (("log",), ("explain", call_id), ("sql", "select * from calls")):
        said = run(*command, "--log", log, "--json")
        assert said.out.isascii()
        assert json.dumps(NASTY)[1:-1] in said.out
