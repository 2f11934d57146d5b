"""The measurements' own parts: they run, and count what they say they count."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from bench import checkpoints
from bench.contenders import Absent, Contender
from safetensors import safe_open

TINY = {
    "model_type": "qwen3",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "intermediate_size": 96,
    "vocab_size": 128,
    "max_position_embeddings": 256,
    "tie_word_embeddings": True,
    "rope_theta": 10000.0,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bench") / "tiny"
    checkpoints.write(path, dtype="bfloat16", shape=TINY)
    return path


def test_the_weights_of_a_step_are_all_matrices(folder: Path) -> None:
    with safe_open(folder / "model.safetensors", "numpy") as tensors:
        shapes = [tensors.get_slice(name).get_shape() for name in tensors.keys()]  # noqa: SIM118
    matrices = sum(shape[0] * shape[1] for shape in shapes if len(shape) == 2)
    assert checkpoints.weights(TINY) == matrices
    output = TINY["hidden_size"] * TINY["vocab_size"]
    assert checkpoints.operations(TINY, 10) == 2 * (10 * (matrices - output) + output)


def test_prompts_of_different_numbers_share_no_beginning() -> None:
    firsts = [checkpoints.prompt(4, vocab, number)[0] for vocab in (128,) for number in range(50)]
    assert len(set(firsts)) == 50


def test_our_contender_does_all_it_is_asked(folder: Path) -> None:
    with Contender("ours", folder=str(folder), weights="bf16", max_concurrent=4) as ours:
        for command, arguments in (
            ("decode", {"tokens": 8, "number": 1}),
            ("prompt", {"tokens": 20, "number": 2}),
            ("batch", {"calls": 3, "tokens": 6, "number": 3}),
        ):
            assert ours.ask(command, **arguments) > 0
        assert set(ours.ask("context", length=40, tokens=4, number=4)) == {"prompt", "decode"}
        assert set(ours.ask("verify", tokens=24, number=5)) == {"generate", "verify", "prompt"}
        # The difference of two calls: a few steps of a tiny model may drown in the noise.
        assert abs(ours.ask("outside", tokens=40, number=6)) < 1e5
        assert 0 <= ours.ask("next_token", number=7) < 128
        memory = ours.ask("memory")
        assert 0 < memory["bare"] < memory["loaded"] <= memory["most"]
        with pytest.raises(Absent, match="AttributeError"):
            ours.ask("dance")
        assert ours.ask("next_token", number=7) == ours.ask("next_token", number=7)


def test_a_contender_that_cannot_start_says_why(tmp_path: Path) -> None:
    with pytest.raises(Absent, match="no such folder"):
        Contender("ours", folder=str(tmp_path / "missing"), weights="bf16")
    with pytest.raises(Absent, match="ended"):
        Contender("nobody", python=sys.executable)
