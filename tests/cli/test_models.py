"""Commands about models themselves: how well one predicts a text."""

from __future__ import annotations

import re
from pathlib import Path

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
    assert re.fullmatch("model blake3:[0-9a-f]{64}", lines[3])
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
