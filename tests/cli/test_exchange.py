"""``isonomy log export`` and ``isonomy log import``, from file to file."""

from __future__ import annotations

import json
import re
import sqlite3
import stat
from pathlib import Path
from typing import Any

import pytest
from tests.cli.conftest import NASTY, Run, run_apart, run_on_terminal
from tests.replay import making

from isonomy.replay import open_log
from isonomy.sdk import Guard


@pytest.fixture
def filled(log: Path) -> Path:
    with open_log(log) as journal:
        for number in range(3):
            journal.append(making.call(f"call-{number}", f"question {number}", ["answer"]))
        journal.append(making.call("call-b", "x", ["y"], blocked=True, session="other"))
    return log


@pytest.fixture
def nasty(log: Path) -> Path:
    with Guard(lambda messages: NASTY, [], log) as guard:
        guard.chat(NASTY, tags={"nasty": NASTY})
    return log


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_out_and_in_again(run: Run, filled: Path, tmp_path: Path) -> None:
    out = tmp_path / "calls.jsonl"
    done = run("log", "export", "--log", filled, "--out", out)
    assert (done.status, done.out, done.err) == (0, "", "")
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    assert out.read_text() == run("log", "export", "--log", filled).out
    assert len(lines(out.read_text())) == 4
    copy = tmp_path / "copy"
    done = run("log", "import", out, "--into", copy)
    assert (done.status, done.err) == (0, "")
    assert done.out == f"4 calls, 8 records in {copy}\n"
    assert run("verify", "--log", copy).status == 0
    asked = "select call_id, input_text, output_text, verdict from calls order by call_id"
    assert run("sql", asked, "--log", copy, "--json").json == (
        run("sql", asked, "--log", filled, "--json").json
    )
    assert run("log", "import", out, "--into", tmp_path / "b", "--json").json["records"] == 8
    again = run("log", "import", out, "--into", copy)
    assert again.status == 2
    assert "is there already" in again.err
    over = run("log", "export", "--log", filled, "--out", out)
    assert over.status == 2
    assert "is there already" in over.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b", "calls.jsonl", "copy", "log"]


def test_filters(run: Run, filled: Path) -> None:
    def ids(*options: str) -> list[str]:
        done = run("log", "export", "--log", filled, "--form", "calls", *options)
        assert done.status == 0, done.err
        return [call["call_id"] for call in lines(done.out)]

    assert ids("--verdict", "block") == ["call-b"]
    assert ids("--subject", "other") == ["call-b"]
    assert ids("--call", "call-1", "--call", "call-b") == ["call-1", "call-b"]
    assert ids("--where", "input_text like 'question%'") == ["call-0", "call-1", "call-2"]
    assert len(ids("--since", "2023-11-14", "--until", "2023-11-15T00:00:00Z")) == 4
    assert ids("--until", "2023-11-14T00:00:00+00:00") == []
    for wrong in (("--since", "soon"), ("--where", "nonsense"), ("--call", "nowhere")):
        done = run("log", "export", "--log", filled, *wrong)
        assert (done.status, done.out) == (2, "")
        assert len(done.err.splitlines()) == 1


def test_an_export_that_fails_leaves_no_file(run: Run, filled: Path, tmp_path: Path) -> None:
    done = run("log", "export", "--log", filled, "--where", "x", "--out", tmp_path / "out")
    assert done.status == 2
    assert [path.name for path in tmp_path.iterdir()] == ["log"]
    done = run("log", "export", "--log", filled, "--out", tmp_path / "no" / "out")
    assert (done.status, "can't be written" in done.err) == (2, True)


def test_damaged_calls_are_named(run: Run, filled: Path) -> None:
    with sqlite3.connect(filled / "journal.sqlite") as journal:
        journal.execute("UPDATE records SET leaf = leaf || ' ' WHERE sequence = 3")
    journal.close()
    done = run("log", "export", "--log", filled)
    assert done.status == 1
    assert [call["call_id"] for call in lines(done.out)] == ["call-0", "call-2", "call-b"]
    assert re.fullmatch(r"left out: call call-1: record 3: .*\n", done.err)


def test_what_was_erased_is_in_no_export(run: Run, filled: Path, tmp_path: Path) -> None:
    erased = run("log", "erase", "--log", filled, "--call", "call-1", "--by", "x", "--reason", "y")
    assert erased.status == 0, erased.err
    for form in ("full", "calls", "otel"):
        done = run("log", "export", "--log", filled, "--form", form)
        assert (done.status, len(lines(done.out))) == (0, 4)
        assert "question 1" not in done.out
    out = tmp_path / "calls.jsonl"
    run("log", "export", "--log", filled, "--out", out)
    copy = tmp_path / "copy"
    assert run("log", "import", out, "--into", copy).status == 0
    assert run("verify", "--log", copy).status == 0
    (row,) = run(
        "sql", "select input_text from calls where call_id = 'call-1'", "--log", copy, "--json"
    ).json
    assert row == {"input_text": None}


def test_schemas(run: Run, filled: Path) -> None:
    for form, name in (("full", "CallLine"), ("calls", "CallSummary")):
        schema = run("log", "export", "--schema", "--form", form).json
        (line, *_) = lines(run("log", "export", "--log", filled, "--form", form).out)
        assert set(line) <= set(schema["$defs"][name]["properties"])
        assert set(schema["$defs"][name]["required"]) <= set(line)
    assert run("log", "export", "--schema", "--form", "otel").status == 2


def test_spans(run: Run, filled: Path) -> None:
    done = run("log", "export", "--log", filled, "--form", "otel", "--call", "call-0")
    (told,) = lines(done.out)
    spans = told["resourceSpans"][0]["scopeSpans"][0]["spans"]
    assert [span["name"] for span in spans][:1] == ["isonomy.call"]
    assert "question 0" not in done.out
    said = run("log", "export", "--log", filled, "--form", "otel", "--content").out
    assert "question 0" in said
    sent = run_apart(
        "log", "export", "--log", filled, "--form", "otel", "--exporter", "console",
        "--call", "call-0",
    )  # fmt: skip
    assert (sent.status, sent.err) == (0, "1 calls sent\n")
    assert '"name": "isonomy.call"' in sent.out
    for wrong in (
        ("--exporter", "console"),
        ("--content",),
        ("--form", "otel", "--exporter", "console", "--out", "x"),
        ("--form", "otel", "--exporter", "nowhere"),
    ):
        assert run("log", "export", "--log", filled, *wrong).status == 2


TRAFFIC = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Whom do I ask?"},
    {"role": "assistant", "content": "Write to ada@example.com"},
]
POLICY = """
[policy]
name = "mail"
[[policy.checks]]
use = "pii"
id = "no-mail"
stages = ["post_validate"]
action = "block"
"""


def test_old_traffic_is_judged_and_replayed(run: Run, tmp_path: Path, log: Path) -> None:
    file, policy = tmp_path / "traffic.jsonl", tmp_path / "policy.toml"
    file.write_text(json.dumps({"messages": TRAFFIC}) + "\n")
    policy.write_text(POLICY)
    plain = run("log", "import", file, "--from", "openai", "--into", log)
    assert (plain.status, plain.err) == (0, "")
    judged = tmp_path / "judged"
    done = run(
        "log", "import", file, "--from", "openai", "--into", judged, "--policy", policy,
        "--provider", "azure",
    )  # fmt: skip
    assert done.status == 0, done.err
    asked = "select operation, provider, verdict, decided_by, policy_name from calls"
    (row,) = run("sql", asked, "--log", judged, "--json").json
    assert list(row.values()) == ["import", "azure", "block", "no-mail", "mail"]
    (row,) = run("sql", asked, "--log", log, "--json").json
    assert list(row.values()) == ["import", "openai", "allow", None, "none"]
    for each in (log, judged):
        assert run("verify", "--log", each).status == 0
        replayed = run("replay", "--all", "--log", each)
        assert replayed.status == 0, replayed.out
    explained = run(
        "explain", run("log", "--json", "--log", judged).json[0]["call_id"], "--log", judged
    )
    assert "no-mail" in explained.out


def test_other_sources(run: Run, tmp_path: Path, log: Path) -> None:
    database = tmp_path / "logs.db"
    with sqlite3.connect(database) as connection:
        connection.execute(
            "CREATE TABLE responses (id TEXT PRIMARY KEY, model TEXT, prompt TEXT, response TEXT)"
        )
        connection.execute("INSERT INTO responses VALUES ('a', 'm', 'Hi', 'Hello')")
    connection.close()
    evaluated = tmp_path / "log.json"
    evaluated.write_text(
        json.dumps(
            {
                "eval": {"task": "t", "model": "openai/m"},
                "samples": [
                    {
                        "id": 1,
                        "epoch": 1,
                        "input": "Hi",
                        "output": {
                            "model": "m",
                            "choices": [{"message": {"role": "assistant", "content": "Hello"}}],
                        },
                    }
                ],
            }
        )
    )
    for source, file in (("llm", database), ("inspect", evaluated)):
        into = tmp_path / source
        done = run("log", "import", file, "--from", source, "--into", into)
        assert (done.status, done.out) == (0, f"1 calls, 2 records in {into}\n"), done.err
        (call,) = run("log", "--log", into, "--json").json
        assert (call["input_text"], call["output_text"]) == ("Hi", "Hello")
        assert run("replay", "--all", "--log", into).status == 0


def test_what_is_bad_is_told_by_line(run: Run, tmp_path: Path, log: Path) -> None:
    file = tmp_path / "bad\x1b[31m.jsonl"
    file.write_text(json.dumps({"messages": TRAFFIC}) + '\n{"\x1b[31m\u202e": 1}\n')
    refused = run("log", "import", file, "--from", "openai", "--into", log)
    assert refused.status == 2
    assert "line 2" in refused.err
    assert not log.exists()
    done = run("log", "import", file, "--from", "openai", "--into", log, "--skip-bad")
    assert (done.status, done.out) == (1, f"1 calls, 2 records in {log}, 1 left out\n")
    assert "line 2" in done.err
    assert not {"\x1b", "\u202e"} & set(refused.err + done.err)
    wrong = run("log", "import", file, "--into", tmp_path / "x", "--provider", "y")
    assert (wrong.status, "--from" in wrong.err) == (2, True)
    wrong = run("log", "import", file, "--into", tmp_path / "x")
    assert (wrong.status, "--from" in wrong.err) == (2, True)


def test_nothing_acts_on_a_terminal(nasty: Path) -> None:
    for form in ("full", "calls"):
        said = run_on_terminal("log", "export", "--log", nasty, "--form", form)
        assert said.status == 0, said
        text = said.out.replace("\r\n", "\n")
        assert all(" " <= character <= "~" or character == "\n" for character in text)
        assert len(lines(text)) == 1
    apart = run_apart("log", "export", "--log", nasty)
    assert apart.status == 0
    assert "\x1b" not in apart.out
    assert lines(apart.out) == lines(run_on_terminal("log", "export", "--log", nasty).out)
