"""Commands about models themselves: how well one predicts a text, and whether its bits hold."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from tests.cli.conftest import Run, run_apart, run_on_terminal

TEXT = "Where is my order 12345? It should arrive on Monday. " * 4


@pytest.fixture
def text(log: Path) -> Path:
    file = log.with_name("text.txt")
    file.write_text(TEXT, encoding="utf-8")
    return file


def test_perplexity(run: Run, text: Path, tiny: str) -> None:
    said = run("perplexity", tiny, text, "--window", 16, "--stride", 8)
    assert (said.status, said.err) == (0, "")
    same = run("perplexity", tiny.removeprefix("local:"), text, "--window", 16)
    assert same.out == said.out
    found = run("perplexity", tiny, text, "--window", 16, "--json").json
    lines = said.out.splitlines()
    assert lines[0] == (
        f"{found['perplexity']:.6g} perplexity a token, {found['bits_per_byte']:.6g} bits a byte"
    )
    assert f"over {found['scored']} scored of {found['tokens']} tokens" in lines[1]
    assert lines[2] == "windows of 16 tokens every 8"
    assert re.fullmatch("model blake3:[0-9a-f]{64}, weights f32", lines[3])
    assert (found["window"], found["stride"], found["begin"]) == (16, 8, False)
    assert float(lines[1].split(": ")[1].split()[0]) == found["nats"]
    begun = run("perplexity", tiny, text, "--window", 16, "--begin")
    assert begun.out.splitlines()[2] == "windows of 16 tokens every 8, each with a begin token"


def test_perplexity_of_standard_input_and_on_a_terminal(text: Path, tiny: str) -> None:
    piped = run_apart("perplexity", tiny, "-", input=TEXT)
    assert (piped.status, piped.err) == (0, "")
    assert piped.out == run_apart("perplexity", tiny, text).out
    shown = run_on_terminal("perplexity", tiny, text)
    assert shown.status == 0
    assert piped.out.splitlines()[0] in shown.out


def test_a_model_that_has_no_chat_template(run: Run, text: Path, tiny: str, tmp_path: Path) -> None:
    """Commands about texts make no prompt of messages."""
    bare = shutil.copytree(tiny.removeprefix("local:"), tmp_path / "bare")
    settings = json.loads((bare / "tokenizer_config.json").read_text())
    del settings["chat_template"]
    (bare / "tokenizer_config.json").write_text(json.dumps(settings))
    found = run("perplexity", bare, text, "--json").json
    assert found["perplexity"] == run("perplexity", tiny, text, "--json").json["perplexity"]
    assert run("quantize", bare, tmp_path / "int8", "--text", text).status == 0
    assert run("perplexity", tmp_path / "int8", text).status == 0
    assert run("selftest", bare, "--quick", "--seconds", 1).status == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("{tiny}", "absent.txt"), "the text 'absent.txt' can't be read: No such file"),
        (("{tiny}", "."), "can't be read: Is a directory"),
        (("{tiny}", "empty.txt"), "empty.txt is empty"),
        (("{tiny}", "binary.txt"), "binary.txt is not UTF-8 text (byte 2)"),
        (("{tiny}", "short.txt"), "the text is too short"),
        (("{tiny}", "text.txt", "--window", "257"), "at most, the model's context, not 257"),
        (("{tiny}", "text.txt", "--window", "9", "--stride", "9"), "from 1 to 8 tokens"),
        (("absent", "text.txt"), "there is no such folder"),
        (("", "text.txt"), "it is empty"),
        (("{tiny}",), "Missing argument 'FILE'"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_perplexity_refuses(
    run: Run, text: Path, tiny: str, arguments: tuple[str, ...], said: str
) -> None:
    text.with_name("empty.txt").touch()
    text.with_name("binary.txt").write_bytes(b"ab\xff")
    text.with_name("short.txt").write_text("a")
    told = run("perplexity", *(argument.format(tiny=tiny) for argument in arguments))
    assert (told.status, told.out) == (2, "")
    assert said in told.err
    assert told.err.count("\n") == 1


QUICK = ("--quick", "--seconds", "1e-9")


def test_selftest(run: Run, tiny: str) -> None:
    said = run("selftest", tiny, *QUICK)
    assert (said.status, said.err) == (0, "")
    lines = said.out.splitlines()
    assert re.fullmatch(r"model tiny, blake3:[0-9a-f]{64}", lines[0])
    assert lines[1].startswith("numerics version 1 on ")
    assert lines[2] == (
        "10 rows over a prompt of 60 random tokens and an answer of 8, in about 1e-09 s at most"
    )
    assert [line.split()[0] for line in lines[3:13]] == ["held"] * 10
    assert all(" 1 of " in line or " 1 cases" in line for line in lines[3:13])
    assert re.fullmatch(
        r"held: all 10 rows, in [0-9.]+ s; \d+ cases were left out for want of time \(--seconds\) "
        r"or memory",
        lines[13],
    )
    assert len(lines) == 14


def test_int8_weights(run: Run, text: Path, tiny: str) -> None:
    plain = run("perplexity", tiny, text, "--json").json
    quantised = run("perplexity", tiny, text, "--weights", "int8", "--json").json
    assert (plain["weights"], quantised["weights"]) == ("f32", "int8")
    assert plain["nats"] != quantised["nats"]
    found = run("selftest", tiny, *QUICK, "--weights", "int8", "--json").json
    assert found["held"] is True
    assert found["plan"]["rows"][-1] == "checksums"
    refused = run("selftest", tiny, "--weights", "int4")
    assert refused.status == 2
    assert "'int4' is not 'int8'" in refused.err


def test_selftest_json(run: Run, tiny: str) -> None:
    found = run("selftest", tiny.removeprefix("local:"), *QUICK, "--json").json
    assert found["held"] is True
    assert found["left_out"] == sum(row["planned"] - row["cases"] for row in found["rows"])
    assert [row["name"] for row in found["rows"]] == found["plan"]["rows"]
    assert all(row["held"] for row in found["rows"])


def test_selftest_of_a_broken_machine(run: Run, tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from isonomy.backends.local import knowns

    monkeypatch.setitem(knowns.DIGESTS, "exp", "00")
    said = run("selftest", tiny, *QUICK)
    assert said.status == 1
    lines = said.out.splitlines()
    assert lines[3].startswith("FAILED  functions ")
    assert lines[4].startswith("        exp on scalar: the digest of its results is ")
    assert lines[-1].startswith("FAILED: 1 of 10 rows: functions; ")
    found = run("selftest", tiny, *QUICK, "--json")
    assert (found.status, found.json["held"], found.json["rows"][0]["held"]) == (1, False, False)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("absent",), "there is no such folder"),
        (("",), "it is empty"),
        ((), "Missing argument 'MODEL'"),
        (("demo", "--seconds", "0"), "--seconds"),
        (("demo", "--seconds", "nan"), "above 0 s, not nan"),
        (("demo", "--seconds", "x"), "--seconds"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_selftest_refuses(run: Run, log: Path, arguments: tuple[str, ...], said: str) -> None:
    told = run("selftest", *arguments)
    assert (told.status, told.out) == (2, "")
    assert said in told.err
    assert told.err.count("\n") == 1


def test_replay_both_ways(run: Run, log: Path, tiny: str) -> None:
    chat = ("chat", "hello", "--backend", tiny, "--seed", 5, "--max-tokens", 8)
    call_id = run(*chat, "--json").json["call_id"]
    said = run("replay", call_id)
    assert (said.status, said.err) == (0, "")
    assert said.out == (
        f"{call_id}  verified: 1 event equal; 1 generation re-executed in one pass, 8 token steps "
        "bit for bit\n"
    )
    slow = run("replay", call_id, "--regenerate")
    assert slow.out == said.out.replace("in one pass", "token by token")
    deep = run("replay", call_id, "--deep")
    assert deep.status == 0
    assert deep.out.startswith(said.out.rstrip("\n") + "; deep: nothing differs")
    plain: Any = run("replay", call_id, "--deep", "--regenerate", "--json").json
    assert (plain["status"], plain["mode"]) == ("verified", "token by token")
    assert plain["deep"]["conclusion"] == "unable"


def test_quantize(run: Run, text: Path, tiny: str, tmp_path: Path) -> None:
    out = tmp_path / "int8"
    said = run("quantize", tiny, out, "--text", text)
    assert (said.status, said.err) == (0, "")
    lines = said.out.splitlines()
    assert lines[0] == f"{out}: 15 tensors are int8 now"
    assert re.fullmatch(r"weights +[\d,]+ bytes before, [\d,]+ after \(\d\d%\)", lines[1])
    assert re.match(
        r"perplexity [\d.]+ before, [\d.]+ after \([-+].+ nats a token\) over ", lines[2]
    )
    digest = lines[3].split()[1]
    scored = run("perplexity", out, text, "--json").json
    assert scored["model"] == digest
    assert f"{scored['perplexity']:.6g} after" in lines[2]
    again = run("quantize", tiny, tmp_path / "same", "--text", text, "--json").json
    assert again["model"] == digest
    assert again["perplexity_after"] == scored["perplexity"]
    alone = run("quantize", "demo", tmp_path / "demo", "--no-perplexity")
    assert (alone.status, len(alone.out.splitlines())) == (0, 3)


def test_quantize_into_a_folder_named_demo(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = run("quantize", "demo", "demo", "--json").json
    assert found["perplexity_after"] != found["perplexity_before"]
    again = run("quantize", "demo", "other", "--no-perplexity", "--json").json
    assert again["model"] == found["model"]


def test_quantize_the_demo_model_by_its_own_text(run: Run, tmp_path: Path) -> None:
    found = run("quantize", "demo", tmp_path / "demo", "--json").json
    assert 1 < found["perplexity_before"] < 1000  # it was not trained to say what users say
    assert 0 < abs(found["perplexity_after"] / found["perplexity_before"] - 1) < 0.1
    assert found["bytes_after"] < 0.52 * found["bytes_before"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("absent", "{out}"), "not a checkpoint"),
        (("{tiny}", "."), "exists, and nothing is overwritten"),
        (("{tiny}", "{out}", "--text", "absent.txt"), "the text 'absent.txt' can't be read"),
        (("{tiny}", "{out}", "--text", "short.txt"), "the text is too short"),
        (("{tiny}", "/proc/int8", "--no-perplexity"), "/proc/int8 can't be written"),
        (("{tiny}",), "Missing argument 'OUT'"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_quantize_refuses(
    run: Run, text: Path, tiny: str, tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    text.with_name("short.txt").write_text("a")
    out = tmp_path / "out"
    told = run("quantize", *(argument.format(tiny=tiny, out=out) for argument in arguments))
    assert (told.status, told.out) == (2, "")
    assert said in told.err
    assert told.err.count("\n") == 1
    assert not out.exists()
