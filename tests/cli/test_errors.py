"""Bad input: one line that says what is wrong and what to do, exit status 2, no traceback."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import time
from pathlib import Path

import pytest
from tests.cli.conftest import ISONOMY, Run, Said, run_apart

from isonomy.sdk import Guard

CONFIG = '[backend]\nuse = "local:demo"\n{more}'


def one_line(said: Said, *words: str) -> None:
    assert said.status == 2, said
    assert said.out == ""
    assert said.err.startswith("isonomy: ")
    assert said.err.count("\n") == 1
    assert "Traceback" not in said.err
    for word in words:
        assert word in said.err


@pytest.fixture
def filled(log: Path) -> Path:
    with Guard(lambda messages: "fine", [], log) as guard:
        guard.chat("hello")
    return log


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["chat", "hi", "--backend", "lcal:demo"], ["'lcal'", "Did you mean 'local'?"]),
        (["chat", "hi", "--backend", "local"], ["names no model", "local:demo"]),
        (["chat", "hi", "--backend", "local:/no/such/model"], ["/no/such/model"]),
        (["chat", ""], ["the prompt is empty"]),
        (["chat", " \n\t "], ["the prompt is empty"]),
        (["chat"], ["Missing argument 'TEXT'", "isonomy chat --help"]),
        (["chat", "hi", "--temperature", "warm"], ["--temperature", "'warm'"]),
        (["chat", "hi", "--temperature", "nan"], ["temperature"]),
        (["chat", "hi", "--seed", "-1"], ["--seed"]),
        (["chat", "hi", "--max-tokens", "0"], ["--max-tokens"]),
        (["chat", "hi", "--tempreature", "1"], ["No such option", "--temperature"]),
        (["chat", "hi", "--config", "missing.toml"], ["missing.toml: can't be read"]),
        (["chat", "hi", "--log", "/proc/none/log"], ["/proc/none/log can't be created"]),
        (["verify", "--log", "/proc/none"], ["There is no log at /proc/none"]),
        (["replay"], ["name one CALL, or pass --all"]),
        (["replay", "x", "--all"], ["name one CALL, or pass --all"]),
        (["vrify"], ["no command 'vrify'", "Did you mean 'verify'?"]),
        (["demo", "--keep", "."], ["exists already"]),
        (["chat", "hi", "--backend", ""], ["--backend", "it is empty", "isonomy chat --help"]),
        (["chat", "hi", "--config", ""], ["--config", "it is empty"]),
        (["chat", "hi", "--log", ""], ["--log", "it is empty"]),
        (["log", "--log", ""], ["--log", "it is empty"]),
        (["explain", ""], ["CALL", "it is empty"]),
        (["replay", ""], ["CALL", "it is empty"]),
        (["chat", "hi", "--log", "\udcff"], ["--log", "not valid UTF-8"]),
        (["plugins", "--plugins", "no.such.module"], ["'no.such.module' can't be imported"]),
    ],
    ids=lambda value: " ".join(value)[:40],
)
def test_bad_arguments(run: Run, log: Path, arguments: list[str], words: list[str]) -> None:
    one_line(run(*arguments), *words)
    assert not log.exists()


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("selct", ["syntax error", "selct"]),
        ("", ["refused"]),
        ("select nothing from calls", ["nothing"]),
        ("select * from callz", ["callz"]),
        ("select 1; select 2", ["2 statements"]),
        ("drop view calls", ["not a SELECT"]),
        ("attach '/tmp/x.db'", ["not a SELECT"]),
        ("copy calls to '/tmp/stolen.csv'", ["not a SELECT"]),
        ("set enable_external_access = true", ["not a SELECT"]),
        ("select * from read_csv('/etc/passwd')", ["read_csv"]),
        ("select * from '/etc/passwd'", ["/etc/passwd"]),
        ("select cast('x' as integer)", ["Could not convert"]),
        ("select error('\x1b[31m')", ["\\x1b[31m"]),
        ("select nothing from calls", ["QueryFailed: the query failed: "]),
        ("select " + "abs(" * 600 + "1" + ")" * 600, ["isonomy: "]),
        ("select " + "1+" * 900 + "1", ["QueryRefused", "nested too deeply"]),
        ("select \udcff", ["QueryRefused", "not valid Unicode"]),
    ],
)
def test_bad_queries(run: Run, filled: Path, query: str, words: list[str]) -> None:
    one_line(run("sql", query, "--log", filled), *words)
    assert not Path("/tmp/stolen.csv").exists()
    assert run("sql", "select 1 from calls", "--log", filled).status == 0


@pytest.mark.parametrize("command", ["explain", "replay"])
def test_an_unknown_call(run: Run, filled: Path, command: str) -> None:
    one_line(run(command, "nothing", "--log", filled), "no call 'nothing'", "isonomy log")


@pytest.mark.parametrize("command", [["chat", "hi"], ["log"], ["sql", "select 1"], ["verify"]])
def test_a_log_that_is_a_file(run: Run, log: Path, tiny: str, command: list[str]) -> None:
    log.write_text("not a log")
    more = ["--backend", tiny] if command[0] == "chat" else []
    one_line(run(*command, *more, "--log", log), str(log), "is a file; a log is a directory")
    assert log.read_text() == "not a log"


def test_a_directory_of_something_else(run: Run, log: Path, tiny: str) -> None:
    log.mkdir()
    (log / "holiday.jpg").write_text("a picture")
    one_line(run("chat", "hi", "--backend", tiny, "--log", log), str(log))
    one_line(run("log", "--log", log), str(log))
    assert [path.name for path in log.iterdir()] == ["holiday.jpg"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_log_that_is_read_only(run: Run, filled: Path, tiny: str) -> None:
    files = [filled, *filled.iterdir()]
    for path in files:
        path.chmod(path.stat().st_mode & ~0o222)
    try:
        one_line(run("chat", "hi", "--backend", tiny, "--log", filled), str(filled))
        assert run("log", "--log", filled).status == 0
    finally:
        for path in files:
            path.chmod(path.stat().st_mode | 0o200)


def test_a_log_of_a_newer_schema(run: Run, filled: Path, tiny: str) -> None:
    with sqlite3.connect(filled / "journal.sqlite") as journal:
        (version,) = journal.execute("PRAGMA user_version").fetchone()
        journal.execute(f"PRAGMA user_version = {version + 1}")
        journal.execute(f"UPDATE meta SET value = {version + 1} WHERE name = 'schema'")
    journal.close()
    said = run("chat", "hi", "--backend", tiny, "--log", filled)
    one_line(said, str(filled), "a later version of isonomy", "upgrade isonomy")
    for command in (["log"], ["replay", "--all"]):
        assert run(*command, "--log", filled).status == 0


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ("temprature = 1.0", ["backend.temprature", "Did you mean 'temperature'?"]),
        ("[polcy]", ["polcy", "Did you mean 'policy'?"]),
        ("[policy]\nrefusl = 'x'", ["policy.refusl", "Did you mean 'refusal'?"]),
        ("[[policy.checks]]\nuse = 'pi'", ["policy.checks[0].use", "Did you mean 'pii'?"]),
        (
            "[[policy.checks]]\nuse = 'length'\nmx = 3",
            ["policy.checks[0].mx", "Did you mean 'max'?"],
        ),
        ("[log]\npath = 3", ["log.path", "str"]),
        ("[", ["is not valid TOML"]),
        ("x = " + "[" * 5000 + "]" * 5000, ["isonomy.toml: "]),
    ],
    ids=["option", "table", "policy key", "check", "setting", "type", "syntax", "depth"],
)
def test_a_typo_in_the_configuration(run: Run, log: Path, more: str, words: list[str]) -> None:
    Path("isonomy.toml").write_text(CONFIG.format(more=more))
    one_line(run("chat", "hi", "--config", "isonomy.toml", "--log", log), "isonomy.toml", *words)
    assert not log.exists()


def test_a_prompt_that_does_not_fit(run: Run, log: Path, tiny: str) -> None:
    """The model can't take it; the log stays readable and tells the story."""
    said = run("chat", "far too much " * 500, "--backend", tiny, "--log", log)
    one_line(said, "ContextLength", "256")
    assert run("verify", "--log", log).status == 0
    (row,) = run("sql", "select status, output_text from calls", "--log", log, "--json").json
    assert (row["status"], row["output_text"]) == ("complete", None)
    assert run("replay", "--all", "--log", log).status == 0


def test_a_megabyte(log: Path, tiny: str) -> None:
    """No argument can hold it, but standard input can."""
    text = "0123456789abcde\n" * (1 << 16)
    assert len(text) == 1 << 20
    said = run_apart("chat", "-", "--backend", tiny, "--log", log, input=text, timeout=60)
    one_line(said, "ContextLength")
    said = run_apart("sql", "select length(input_text) n from calls", "--json", "--log", log)
    assert said.json == [{"n": 1 << 20}]


def test_input_that_is_no_text(log: Path, tiny: str) -> None:
    done = subprocess.run(
        [ISONOMY, "chat", "-", "--backend", tiny, "--log", log],
        input=b"\xff\xfe",
        capture_output=True,
        check=False,
    )
    one_line(Said(done.returncode, "", done.stderr.decode()), "not UTF-8")


def test_a_reader_that_goes_away(filled: Path) -> None:
    query = "select repeat('x', 1000) from range(10000)"
    with subprocess.Popen(
        [ISONOMY, "sql", query, "--log", filled], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(10)
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


def test_an_unexpected_error(run: Run, filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Never a traceback, never 1, which means "damaged" here; but there is a way to see it."""
    import isonomy.replay as replay

    def broken(*_: object, **__: object) -> None:
        raise KeyError("what nobody thought of\x1b")

    monkeypatch.setattr(replay.ReplayLog, "verify", broken)
    one_line(run("verify", "--log", filled), "KeyError: 'what nobody", "ISONOMY_TRACEBACK=1")
    monkeypatch.setenv("ISONOMY_TRACEBACK", "1")
    said = run("verify", "--log", filled)
    assert said.status == 2
    assert "Traceback" in said.err


def test_bytes_in_the_arguments_that_are_no_text(filled: Path) -> None:
    """As the shell hands them over."""
    for arguments in ([b"sql", b"select \xff"], [b"log", b"--log", b"\xff"], [b"explain", b"\xff"]):
        done = subprocess.run([ISONOMY, *arguments], capture_output=True, check=False)
        one_line(Said(done.returncode, "", done.stderr.decode()), "isonomy: ")
    assert [path.name for path in filled.parent.iterdir()] == [filled.name]


def test_an_interrupted_query_stops(filled: Path) -> None:
    query = (
        "select count(*) from range(1000000000) a, range(1000) b where a.range * b.range % 7 = 3"
    )
    with subprocess.Popen(
        [ISONOMY, "sql", query, "--log", filled], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        time.sleep(3)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        try:
            out, err = process.communicate(timeout=10)
        finally:
            process.kill()
    assert (process.returncode, out, err.split()) == (130, b"", [b"aborted"])


def test_a_journal_that_was_emptied(run: Run, filled: Path) -> None:
    for name in ("-wal", "-shm"):
        (filled / f"journal.sqlite{name}").unlink(missing_ok=True)
    (filled / "journal.sqlite").write_bytes(b"")
    one_line(run("sql", "select 1", "--log", filled), "is empty, or not the journal of a log")
    said = run("verify", "--log", filled)
    assert said.status == 1
    assert "empty" in said.out


@pytest.mark.parametrize("name", ["message/0", "events", "output", "request"])
def test_explain_shows_what_can_be_read(
    run: Run, filled: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import msgspec

    from isonomy.replay import ReplayLog, StoredCall

    (call,) = ReplayLog(filled).calls()
    broken = StoredCall(
        call_id=call.call_id,
        records=tuple(
            msgspec.structs.replace(
                record,
                payloads={k: b'{"x' if k == name else v for k, v in record.payloads.items()},
            )
            for record in call.records
        ),
    )
    monkeypatch.setattr(ReplayLog, "call", lambda *_: broken)
    said = run("explain", call.call_id, "--log", filled)
    assert said.status == 0
    assert f"payload {name} can't be read" in said.out
    assert said.out.endswith("verdict allow\n")
    data = run("explain", call.call_id, "--log", filled, "--json").json
    assert name in data["damage"][0]
