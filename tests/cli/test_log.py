"""``isonomy log``: keys, checkpoints and proofs from the command line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from tests.cli.conftest import Run
from tests.replay import making

from isonomy.replay import open_log


@pytest.fixture
def log(tmp_path: Path) -> Path:
    with open_log(tmp_path / "log") as journal:
        for number in range(3):
            journal.append(making.call(f"call-{number}", f"question {number}", ["answer"]))
    return tmp_path / "log"


def test_without_a_command_it_lists_calls(run: Run, log: Path) -> None:
    alone = run("log", "--log", log, "-n", "2", "--json")
    named = run("log", "list", "--log", log, "-n", "2", "--json")
    assert alone == named
    assert [call["call_id"] for call in alone.json] == ["call-2", "call-1"]


def test_ingest(run: Run, log: Path) -> None:
    assert run("log", "ingest", "--log", log).out == "6 records ingested, up to record 6\n"
    assert run("log", "ingest", "--log", log, "--json").json["records"] == 0
    assert run("log", "ingest", "--rebuild", "--log", log, "--json").json["rebuilt"] is True


def test_from_key_to_proof(run: Run, log: Path, tmp_path: Path) -> None:
    private, kept = tmp_path / "private", tmp_path / "kept"
    kept.mkdir()
    made = run("log", "keygen", "example.com/log", "--out", private)
    key = made.out.strip()
    assert (made.status, key.split("+")[0]) == (0, "example.com/log")
    assert private.read_text().strip() not in made.out

    done = run("log", "checkpoint", "--log", log, "--sign-with", private, "--out", kept)
    assert (done.status, Path(done.out.strip()).parent) == (0, kept)
    verified = run("verify", "--log", log, "--checkpoint", kept, "--key", key)
    assert verified.status == 0
    assert "Up to record 6" in verified.out
    assert run("verify", "--log", log, "--checkpoint", kept, "--key", key, "--json").json[
        "proven"
    ] == 6  # fmt: skip

    bundle = tmp_path / "bundle.json"
    done = run("log", "prove", "call-1", "--log", log, "--sign-with", private, "--out", bundle)
    assert (done.status, done.err) == (0, "")
    script = tmp_path / "verify_proof.py"
    script.write_text(run("log", "proof-script").out)
    proven = subprocess.run(
        [sys.executable, "-I", script, bundle, key], capture_output=True, text=True, check=False
    )
    assert (proven.returncode, proven.stdout.splitlines()[-1]) == (0, "PROVEN: call call-1")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["log", "checkpoint"], "nobody signs"),
        (["log", "checkpoint", "--sign-command", "x"], "--sign-command and --key go together"),
        (["log", "checkpoint", "--sign-command", "", "--key", "x"], "empty"),
        (["log", "checkpoint", "--sign-with", "/no/such"], "can't be read"),
        (["log", "keygen", "two words", "--out", "/no/such/key"], "can't name a key"),
        (["log", "keygen", "name", "--out", "/no/such/key"], "can't be written"),
        (["verify", "--key", "x"], "--checkpoint and --key go together"),
        (["verify", "--checkpoint", "/no/such", "--key", "x"], "no public key"),
        (["log", "nonsense"], "No such command"),
    ],
)
def test_mistakes_are_named(run: Run, log: Path, arguments: list[str], said: str) -> None:
    where = [] if arguments[1] in ("keygen", "nonsense") else ["--log", str(log)]
    done = run(*arguments, *where)
    assert (done.status, done.out) == (2, "")
    assert said in done.err
