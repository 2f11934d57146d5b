"""int8 weights of `Local`: quantised at load and prepared; refusals; faults on record."""

from __future__ import annotations

import errno
import json
import logging
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from isonomy import kernels
from isonomy.backends.local import Local, quantised, samples
from isonomy.backends.local.errors import Corrupt, DamagedModel, NotCovered
from isonomy.kernels.faults import inject_linear
from isonomy.sdk.errors import InputError
from isonomy.sdk.generation import Generation, Request, Sampling, TokenTrace
from isonomy.sdk.vocabulary import Message

ASK = Request(
    messages=(Message.of("user", "Hello! Where is order 12345?"),),
    sampling=Sampling(temperature=0.8, seed=3, max_tokens=12),
)


def trace_of(generation: Generation) -> TokenTrace:
    assert generation.tokens is not None
    return generation.tokens


@pytest.fixture
def prepared(shared_checkpoint: Path, tmp_path: Path) -> Path:
    quantised.prepare(shared_checkpoint, tmp_path / "int8")
    return tmp_path / "int8"


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_both_ways_to_int8_give_the_same_bits(
    build: SimpleNamespace, tmp_path: Path, tied: bool, bf16: bool
) -> None:
    config = build.config(tie_word_embeddings=tied)
    folder = build.checkpoint(tmp_path / "plain", config, bf16=bf16)
    seen: list[tuple[int, int]] = []
    done = quantised.prepare(folder, tmp_path / "int8", progress=lambda a, b: seen.append((a, b)))
    assert done.folder == tmp_path / "int8"
    assert done.tensors == 2 * 7 + 1
    assert seen[-1][0] == seen[-1][1] == len(seen)
    assert (done.folder / "model.safetensors").stat().st_size >= done.bytes_after
    assert done.bytes_after < done.bytes_before * (0.75 if bf16 else 0.5)
    plain = Local(folder)
    at_load = Local(folder, weights="int8")
    before = Local(done.folder, checksums=True)
    want = at_load.generate(ASK)
    assert before.generate(ASK).tokens == want.tokens
    assert plain.generate(ASK).tokens != want.tokens
    for backend in (at_load, before):
        assert backend.identity().numerics["weights"] == "int8"
    assert plain.identity().numerics["weights"] == ("bf16" if bf16 else "f32")
    assert at_load.identity().artefacts["model"] == plain.identity().artefacts["model"]
    assert before.identity().artefacts["model"] != plain.identity().artefacts["model"]
    assert at_load.identity().options["weights"] == "int8"
    assert "checksums" not in before.identity().options
    Local(done.folder, expect=before.identity().artefacts["model"])


def test_a_prepared_folder_is_complete(shared_checkpoint: Path, prepared: Path) -> None:
    assert {p.name for p in prepared.iterdir()} == {p.name for p in shared_checkpoint.iterdir()}
    config = json.loads((prepared / "config.json").read_bytes())
    assert config.pop(quantised.KEY) == {"scheme": "int8-row", "version": 1}
    assert config == json.loads((shared_checkpoint / "config.json").read_bytes())
    assert list(prepared.parent.iterdir()) == [prepared]
    from safetensors.numpy import load_file

    tensors = load_file(prepared / "model.safetensors")
    q = tensors["model.layers.0.mlp.down_proj.weight"]
    scales = tensors["model.layers.0.mlp.down_proj.weight_scale"]
    assert (q.dtype, q.shape) == (np.int8, (48, 80))
    assert (scales.dtype, scales.shape) == (np.float32, (48,))
    assert tensors["model.norm.weight"].dtype == np.float32
    assert "model.embed_tokens.weight_scale" not in tensors


def test_what_is_there_stays(shared_checkpoint: Path, prepared: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(InputError, match="taken exists, and nothing is overwritten"):
        quantised.prepare(shared_checkpoint, tmp_path / "taken")
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    with pytest.raises(InputError, match="gone exists"):
        quantised.prepare(shared_checkpoint, tmp_path / "gone")
    with pytest.raises(InputError, match="int8 weights already"):
        quantised.prepare(prepared, tmp_path / "again")
    with pytest.raises(DamagedModel, match="not a checkpoint"):
        quantised.prepare(tmp_path / "absent", tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_weights_that_are_not_finite_leave_nothing_behind(
    build: SimpleNamespace, tmp_path: Path
) -> None:
    tensors = build.tensors(build.config())
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = np.nan
    folder = build.checkpoint(tmp_path / "nan", tensors=tensors)
    with pytest.raises(DamagedModel, match=r"layers\.1\.mlp\.up_proj\.weight holds NaN"):
        quantised.prepare(folder, tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["nan"]


def test_a_full_disk_leaves_nothing_behind(
    shared_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(OSError, match="No space") as error:
        quantised.prepare(shared_checkpoint, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    assert "Make room" in quantised.describe(error.value)


@pytest.mark.parametrize(
    ("scheme", "error", "said"),
    [
        ({"scheme": "int4", "version": 1}, NotCovered, "int4"),
        ({"scheme": "int8-row", "version": 2}, NotCovered, "version 2"),
        ({"scheme": "int8-row"}, DamagedModel, "version"),
        ("int8", DamagedModel, quantised.KEY),
    ],
)
def test_other_schemes_are_refused(
    prepared: Path, scheme: Any, error: type[Exception], said: str
) -> None:
    config = json.loads((prepared / "config.json").read_bytes())
    (prepared / "config.json").write_text(json.dumps(config | {quantised.KEY: scheme}))
    with pytest.raises(error, match=said):
        Local(prepared)


def test_int8_tensors_without_the_key_are_refused_and_the_key_without_them(
    build: SimpleNamespace, prepared: Path, checkpoint: Path
) -> None:
    key = json.loads((prepared / "config.json").read_bytes())
    (prepared / "config.json").write_text(json.dumps(build.config()))
    with pytest.raises(DamagedModel, match="has no place for it"):
        Local(prepared)
    (checkpoint / "config.json").write_text(json.dumps(key))
    with pytest.raises(DamagedModel, match="weight_scale"):
        Local(checkpoint)


def test_a_tensor_of_the_wrong_type_is_refused(build: SimpleNamespace, prepared: Path) -> None:
    from safetensors.numpy import load_file

    tensors = load_file(prepared / "model.safetensors")
    name = "model.layers.0.self_attn.o_proj.weight"
    tensors[name] = tensors[name].astype(np.float32)
    build.write_tensors(prepared / "model.safetensors", tensors)
    with pytest.raises(DamagedModel, match="stored as F32, not I8"):
        Local(prepared)
    tensors[name] = np.full(tensors[name].shape, -128, np.int8)
    build.write_tensors(prepared / "model.safetensors", tensors)
    with pytest.raises(DamagedModel, match="holds -128"):
        Local(prepared)


def test_options_out_of_range(shared_checkpoint: Path) -> None:
    with pytest.raises(InputError, match="int8"):
        Local(shared_checkpoint, weights="int4")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="checksums are for int8"):
        Local(shared_checkpoint, checksums=True)


def test_a_fault_is_made_good_and_on_record(
    prepared: Path, caplog: pytest.LogCaptureFixture
) -> None:
    backend = Local(prepared, checksums=True)
    want = backend.generate(ASK)
    assert "faults" not in want.runtime
    with (
        caplog.at_level(logging.WARNING, "isonomy"),
        inject_linear("layer 1 down_proj", row=0, element=3, bit=7),
    ):
        got = backend.generate(ASK)
    assert got.tokens == want.tokens
    assert got.runtime["faults"] == [
        {"linear": "layer 1 down_proj", "row": 0, "recomputed": True, "damaged_panels": 0}
    ]
    assert "silent data corruption" in caplog.text
    assert "layer 1 down_proj" in caplog.text
    assert "faults" not in backend.generate(ASK).runtime


def test_what_stays_wrong_is_never_returned(prepared: Path) -> None:
    backend = Local(prepared, checksums=True)
    want = backend.generate(ASK)
    with (
        inject_linear("lm_head", element=3, bit=7, times=2),
        pytest.raises(Corrupt, match="the machine computes wrongly"),
    ):
        backend.generate(ASK)
    text = samples.text()[:200]
    with (
        inject_linear("lm_head", element=3, bit=7, times=2),
        pytest.raises(Corrupt, match="lm_head"),
    ):
        backend.perplexity(text)
    assert trace_of(backend.generate(ASK)) == trace_of(want)
    assert kernels.faults() == []


def test_the_sample_texts_are_texts() -> None:
    assert len(samples.text()) > 2000
    assert samples.text(demo=True).count("<|im_start|>") > 50
