"""The engine's graph is the model's: equal bits, for every family, and no list longer than needed.

Sequences are longer than every window of the cases and than two blocks of 256.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.backends.families import CASES, LENGTH, SMALL, random_model, torch

from isonomy.backends import reference
from isonomy.backends.reference import coverage, dispatch

IDS = np.random.default_rng(11).integers(0, SMALL["vocab_size"], LENGTH)
UNUSED_HERE = {"aten.exp.default", "aten.erf.default"}
"""Functions that no family uses by themselves; `test_operators` looks at them."""


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize("stored", ["f32", "bf16", "int8"])
@pytest.mark.parametrize("name", CASES)
def test_equal_bits(name: str, stored: str, tmp_path: Path) -> None:
    random_model(name, bf16=stored == "bf16").save_pretrained(tmp_path)
    assert reference.compare(tmp_path, IDS, weights="int8" if stored == "int8" else None) is None


def test_int8_is_something_else(tmp_path: Path) -> None:
    random_model("llama").save_pretrained(tmp_path)
    one, other = reference.logits(tmp_path, IDS), reference.logits(tmp_path, IDS, weights="int8")
    assert 0 < np.abs(one - other).max() < 0.1 * np.abs(one).max()


def test_every_family_runs_and_everything_listed_is_needed(tmp_path: Path) -> None:
    canonical, passed = set(), set()
    for name in CASES:
        model = random_model(name)
        model.save_pretrained(tmp_path / name)
        found = reference.opinion(tmp_path / name, IDS)
        with torch.no_grad():
            theirs = model(torch.from_numpy(IDS)[None]).logits[0].numpy()
        assert found.model == type(model).__name__
        assert np.abs(found.logits - theirs)[:256].max() < 1e-4 * np.abs(theirs).max(), name
        canonical |= set(found.canonical)
        passed |= set(found.passed)
    assert canonical == dispatch.KERNELS.keys() - UNUSED_HERE
    assert passed - dispatch.ON_INTEGERS_TOO == (
        coverage.MOVES | coverage.ROUNDED | coverage.INTEGERS
    )


@pytest.mark.parametrize("length", [1, 2, 255, 256, 257])
def test_lengths(length: int, tmp_path: Path) -> None:
    random_model("qwen2-windows").save_pretrained(tmp_path)
    assert reference.compare(tmp_path, IDS[:length]) is None


def test_a_later_token_changes_no_earlier_logit(tmp_path: Path) -> None:
    random_model("llama").save_pretrained(tmp_path)
    whole = reference.logits(tmp_path, IDS)
    assert reference.logits(tmp_path, IDS[:300]).tobytes() == whole[:300].tobytes()
