"""generation_config.json as transformers means it, explicit values before it, ranges checked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from isonomy.backends.local import DamagedModel, NotCovered
from isonomy.backends.local.defaults import MAX_TOKENS, check, merge, read
from isonomy.sdk.errors import InputError
from isonomy.sdk.generation import Sampling


def write(folder: Path, value: Any) -> Path:
    text = value if isinstance(value, str) else json.dumps(value)
    (folder / "generation_config.json").write_text(text)
    return folder


def test_without_the_file(tmp_path: Path) -> None:
    config, data = read(tmp_path)
    assert data == b""
    assert config.eos_ids() is None
    assert config.sampling() == Sampling(
        temperature=0.0,
        top_k=50,
        top_p=1.0,
        min_p=0.0,
        repetition_penalty=1.0,
        max_tokens=MAX_TOKENS,
        seed=None,
    )


def test_values_of_the_file(tmp_path: Path) -> None:
    value = {
        "do_sample": True,
        "temperature": 0.6,
        "top_k": 20,
        "top_p": 0.95,
        "repetition_penalty": 1.05,
        "max_new_tokens": 99,
        "eos_token_id": [5, 7],
        "transformers_version": "4.51.0",
    }
    config, _ = read(write(tmp_path, value))
    sampling = config.sampling()
    assert (sampling.temperature, sampling.top_k, sampling.top_p) == (0.6, 20, 0.95)
    assert (sampling.repetition_penalty, sampling.max_tokens) == (1.05, 99)
    assert config.eos_ids() == (5, 7)
    greedy, _ = read(write(tmp_path, value | {"do_sample": False, "eos_token_id": 3}))
    assert greedy.sampling().temperature == 0.0
    assert greedy.eos_ids() == (3,)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_beams", 4),
        ("typical_p", 0.9),
        ("no_repeat_ngram_size", 3),
        ("suppress_tokens", [1]),
        ("stop_strings", ["x"]),
        ("something_new", 1),
    ],
)
def test_what_is_not_covered_is_named(tmp_path: Path, key: str, value: Any) -> None:
    with pytest.raises(NotCovered, match=key) as caught:
        read(write(tmp_path, {key: value}))
    assert caught.value.feature == key


@pytest.mark.parametrize(
    "value",
    ["", "{", "[]", {"temperature": "hot"}, {"top_p": 2.0}, {"eos_token_id": -1}],
)
def test_damaged(tmp_path: Path, value: Any) -> None:
    with pytest.raises(DamagedModel, match=r"generation_config\.json"):
        read(write(tmp_path, value))


def test_explicit_values_win() -> None:
    low = Sampling(temperature=0.5, top_k=10, stop=("a",), seed=1, max_tokens=5)
    assert merge(Sampling(), low) == low
    high = Sampling(temperature=0.0, top_k=0, stop=("b",), seed=0, max_tokens=7, candidate=3)
    assert merge(high, low) == high


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("temperature", "warm"),
        ("temperature", True),
        ("top_p", 0.0),
        ("top_p", 1.5),
        ("min_p", -1.0),
        ("min_p", 2),
        ("repetition_penalty", 0.0),
        ("top_k", -1),
        ("top_k", 1.5),
        ("max_tokens", 0),
        ("max_tokens", 10.0),
        ("seed", -1),
        ("seed", 1 << 64),
        ("candidate", -1),
        ("stop", ("",)),
        ("stop", (3,)),
    ],
)
def test_ranges(name: str, value: Any) -> None:
    with pytest.raises(InputError, match=name):
        check(Sampling(**{name: value}))


def test_edges_of_ranges_are_fine() -> None:
    check(Sampling())
    check(Sampling(temperature=0, top_p=1.0, min_p=1, top_k=0, max_tokens=1, seed=(1 << 64) - 1))
