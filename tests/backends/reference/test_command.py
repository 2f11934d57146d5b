"""The command: equal, different, or no opinion, by exit status and in a line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.backends.families import random_model, torch

from isonomy.backends.local.quantised import prepare
from isonomy.backends.reference import dispatch
from isonomy.backends.reference.__main__ import main


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    random_model("llama").save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("more", [[], ["--weights", "int8"]])
def test_equal(folder: Path, more: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(folder), "--tokens", "30", *more]) == 0
    assert capsys.readouterr().out == "equal: 30 positions, 9600 logits, every bit\n"


def test_different(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(dispatch.KERNELS, "aten.silu.default", torch.tanh)
    assert main([str(folder), "--tokens", "30"]) == 1
    assert capsys.readouterr().out.startswith("different: the logit of token 0 at position 0 is ")


def test_no_opinion(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "nowhere")]) == 2
    config = json.loads((folder / "config.json").read_bytes())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 4}))
    assert main([str(folder)]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("no second opinion: [Errno 2] No such file")
    assert "missing keys: model.layers.3" in second


def test_a_prepared_checkpoint(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare(folder, tmp_path / "int8")
    assert main([str(tmp_path / "int8"), "--tokens", "30"]) == 2
    assert "Give the checkpoint that it was prepared from" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--tokens", "--seed"])
@pytest.mark.parametrize("value", ["-5", "x"])
def test_no_number(
    folder: Path, option: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main([str(folder), option, value])
    assert f"argument {option}: '{value}' is not a whole number" in capsys.readouterr().err
