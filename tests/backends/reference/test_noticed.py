"""What equal bits are worth: a graph that differs anywhere is noticed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.backends.families import SMALL, random_model, torch

from isonomy.backends import reference
from isonomy.backends.reference import dispatch
from isonomy.backends.reference.running import first_difference

IDS = np.random.default_rng(12).integers(0, SMALL["vocab_size"], 60)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("noticed")
    random_model("qwen3").save_pretrained(path)
    return path


@pytest.mark.parametrize(
    ("operation", "as_torch"),
    [
        ("aten.mm.default", lambda x, w: (x.double() @ w.double()).float()),
        ("aten.mean.dim", torch.mean),
        ("aten.silu.default", torch.nn.functional.silu),
        ("aten.rsqrt.default", lambda x: torch.rsqrt(x.double()).float()),
    ],
)
def test_one_operation_left_to_torch(
    folder: Path,
    operation: str,
    as_torch: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(dispatch.KERNELS, operation, as_torch)
    difference = reference.compare(folder, IDS)
    assert difference is not None
    assert difference.engine == pytest.approx(difference.opinion, abs=1e-3)
    assert difference.layer == 0


@pytest.mark.parametrize("layer", [0, 1, 2, None])
def test_the_layer_is_named(
    folder: Path, layer: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One bit of one product, in a layer's last linear or in the output layer."""
    honest, calls = dispatch.KERNELS["aten.mm.default"], []
    products = 7  # q, k, v, o, gate, up, down
    last = 3 * products if layer is None else products * (layer + 1) - 1

    def wrong(x: Any, w: Any) -> Any:
        y = honest(x, w)
        if len(calls) == last:
            y.view(torch.int32)[17, 3] ^= 1 << 20
        calls.append(w.shape)
        return y

    monkeypatch.setitem(dispatch.KERNELS, "aten.mm.default", wrong)
    difference = reference.compare(folder, IDS)
    assert difference is not None
    assert (difference.layer, difference.position) == (layer, 17)
    assert len(calls) == 3 * products + 1
    assert ("the output layer" if layer is None else f"layer {layer}") in str(difference)


@pytest.mark.parametrize(
    ("key", "value"),
    [("rms_norm_eps", 1.001e-5), ("hidden_act", "gelu"), ("rope_theta", 10001.0)],
)
def test_another_configuration(folder: Path, key: str, value: object, tmp_path: Path) -> None:
    """The two read the same folder; here the engine reads another one."""
    config = json.loads((folder / "config.json").read_bytes())
    assert key in config or key in config["rope_parameters"]
    (config if key in config else config["rope_parameters"])[key] = value
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").symlink_to(folder / "model.safetensors")
    changed = reference.logits(tmp_path, IDS)
    assert first_difference(reference.logits(folder, IDS), changed) is not None


def test_a_single_bit() -> None:
    ours = np.random.default_rng(1).standard_normal((4, 6), np.float32)
    theirs = ours.copy()
    assert first_difference(ours, theirs) is None
    theirs.view(np.uint32)[2, 5] ^= 1
    theirs.view(np.uint32)[3, 0] ^= 1
    found = first_difference(ours, theirs)
    assert found is not None
    assert (found.position, found.token, found.logits, found.positions) == (2, 5, 2, 2)
    assert (found.engine, found.opinion) == (float(ours[2, 5]), float(theirs[2, 5]))
    assert f"token 5 at position 2 is {float(ours[2, 5]).hex()} in the engine" in str(found)


def test_zeros_of_two_signs_differ() -> None:
    zeros = np.zeros((1, 1), np.float32)
    assert first_difference(zeros, -zeros) is not None


def test_shapes_that_differ() -> None:
    with pytest.raises(reference.OpinionError, match="not the same model"):
        first_difference(np.zeros((1, 2), np.float32), np.zeros((1, 3), np.float32))
