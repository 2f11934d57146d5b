"""Weights: every way a checkpoint can be damaged is named, and the digest is of what was read."""

from __future__ import annotations

import struct
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from isonomy.backends.local import DamagedModel, NotCovered
from isonomy.backends.local import weights as module
from isonomy.backends.local.layout import Layout, Source

SHAPES = {"model.embed_tokens.weight": (4, 3), "b": (2,), "lm_head.weight": (4, 3)}


def find(folder: Path, shapes: dict[str, tuple[int, ...]], *, tied: bool = False) -> module.Weights:
    """What the files hold is what the model has, under the same names."""
    layout = Layout(
        {name: Source(name) for name in shapes},
        shapes,
        ("lm_head.weight", "model.embed_tokens.weight") if tied else None,
        (".rotary_emb.inv_freq",),
    )
    return module.find(folder, module.listing(folder), layout)


def arrays() -> dict[str, np.ndarray[Any, Any]]:
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}


@pytest.fixture
def folder(tmp_path: Path, build: SimpleNamespace) -> Path:
    build.write_tensors(tmp_path / "model.safetensors", arrays())
    return tmp_path


def shard(folder: Path, build: SimpleNamespace, **changes: Any) -> dict[str, str]:
    """Split the weights into two files with an index; return the index's map."""
    values = arrays()
    names = list(values)
    (folder / "model.safetensors").unlink(missing_ok=True)
    build.write_tensors(folder / "a.safetensors", {name: values[name] for name in names[:1]})
    build.write_tensors(folder / "b.safetensors", {name: values[name] for name in names[1:]})
    places = {name: "a.safetensors" if name == names[0] else "b.safetensors" for name in names}
    places |= changes
    build.write_json(folder / "model.safetensors.index.json", {"weight_map": places})
    return places


def test_values_come_back_bit_for_bit(folder: Path) -> None:
    weights = find(folder, SHAPES, tied=False)
    assert set(weights) == set(SHAPES)
    for name, values in arrays().items():
        assert weights[name].dtype == np.float32
        assert weights[name].tobytes() == values.tobytes()
        assert weights[name].shape == values.shape


def test_digest_is_of_the_tensors_not_of_the_files(folder: Path, build: SimpleNamespace) -> None:
    whole = find(folder, SHAPES, tied=False).digest()
    assert whole.startswith("blake3:")
    assert len(whole) == 71
    shard(folder, build)
    assert find(folder, SHAPES, tied=False).digest() == whole
    changed = arrays()
    changed["b"][1] = np.nextafter(changed["b"][1], np.float32(9))
    build.write_tensors(folder / "model.safetensors", changed)
    assert find(folder, SHAPES, tied=False).digest() != whole


def test_digest_does_not_depend_on_the_order_of_reading(folder: Path) -> None:
    first, second = (find(folder, SHAPES, tied=False) for _ in range(2))
    first["lm_head.weight"]
    assert first.digest() == second.digest()


def test_bf16_is_kept_as_bits(folder: Path, build: SimpleNamespace) -> None:
    values = arrays()
    bits = build.bf16(values["b"])
    build.write_tensors(folder / "model.safetensors", values | {"b": bits})
    weights = find(folder, SHAPES, tied=False)
    assert weights["b"].dtype == np.uint16
    assert weights["b"].tobytes() == bits.tobytes()
    assert weights.stored == "bf16+f32"


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.int8])
def test_other_types_are_refused(folder: Path, build: SimpleNamespace, dtype: Any) -> None:
    values = arrays()
    build.write_tensors(folder / "model.safetensors", values | {"b": values["b"].astype(dtype)})
    with pytest.raises(NotCovered, match="tensor b is stored as"):
        find(folder, SHAPES, tied=False)


@pytest.mark.parametrize("keep", [0, 4, 8, 40, -1, -30])
def test_truncated(folder: Path, keep: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DamagedModel, match=r"model\.safetensors.*cut off"):
        find(folder, SHAPES, tied=False)


def test_truncated_after_the_header_was_read(folder: Path) -> None:
    path = folder / "model.safetensors"
    weights = find(folder, SHAPES, tied=False)
    path.write_bytes(path.read_bytes()[:-60])
    with pytest.raises(DamagedModel, match="ends inside tensor"):
        weights.digest()
    path.unlink()
    with pytest.raises(DamagedModel, match="can't be read"):
        weights.digest()


@pytest.mark.parametrize(
    "header",
    [
        b"not json",
        b"[]",
        b'{"b": {"dtype": "F32", "shape": [2], "data_offsets": [0, 80000000000]}}',
        b'{"b": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}',
        b'{"b": {"dtype": "XX", "shape": [2], "data_offsets": [0, 8]}}',
    ],
)
def test_tampered_header(folder: Path, header: bytes) -> None:
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
    with pytest.raises(DamagedModel, match=r"model\.safetensors"):
        find(folder, SHAPES, tied=False)


def test_header_length_beyond_the_file(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", 1 << 62) + b"{}")
    with pytest.raises(DamagedModel, match=r"model\.safetensors"):
        find(folder, SHAPES, tied=False)


def test_missing_extra_and_misshaped_tensors_are_named(
    folder: Path, build: SimpleNamespace
) -> None:
    with pytest.raises(DamagedModel, match="tensor c missing"):
        find(folder, SHAPES | {"c": (1,)}, tied=False)
    with pytest.raises(DamagedModel, match="tensor b in the weights"):
        find(folder, {key: SHAPES[key] for key in SHAPES if key != "b"}, tied=False)
    with pytest.raises(DamagedModel, match=r"tensor b has shape \[2\].*asks for \[5\]"):
        find(folder, SHAPES | {"b": (5,)}, tied=False)


def test_rotary_buffers_of_old_checkpoints_are_ignored(
    folder: Path, build: SimpleNamespace
) -> None:
    old = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(2, dtype=np.float32)}
    plain = find(folder, SHAPES, tied=False).digest()
    build.write_tensors(folder / "model.safetensors", arrays() | old)
    assert find(folder, SHAPES, tied=False).digest() == plain


def test_a_copy_of_a_tied_embedding_must_be_equal(folder: Path, build: SimpleNamespace) -> None:
    shapes = {key: SHAPES[key] for key in SHAPES if key != "lm_head.weight"}
    with pytest.raises(DamagedModel, match=r"lm_head\.weight differs"):
        find(folder, shapes, tied=True)
    values = arrays()
    values["lm_head.weight"] = values["model.embed_tokens.weight"]
    build.write_tensors(folder / "model.safetensors", values)
    assert set(find(folder, shapes, tied=True)) == set(shapes)


def test_no_weights(tmp_path: Path) -> None:
    with pytest.raises(DamagedModel, match=r"neither model\.safetensors nor"):
        find(tmp_path, SHAPES, tied=False)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth"])
def test_pickle_is_never_read(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    with pytest.raises(NotCovered, match=f"{name}.*Convert them to safetensors"):
        find(tmp_path, SHAPES, tied=False)


@pytest.mark.parametrize(
    "path", ["../a.safetensors", "/etc/passwd", "x/../a.safetensors", "", ".", "..", "a.bin"]
)
def test_index_can_not_lead_out_of_the_folder(
    folder: Path, build: SimpleNamespace, path: str
) -> None:
    shard(folder, build, b=path)
    with pytest.raises(DamagedModel, match="not a safetensors file of this folder"):
        find(folder, SHAPES, tied=False)


def test_index_and_files_must_agree(folder: Path, build: SimpleNamespace) -> None:
    shard(folder, build, b="c.safetensors")
    with pytest.raises(DamagedModel, match=r"names c\.safetensors, which is not there"):
        find(folder, SHAPES, tied=False)
    shard(folder, build, b="a.safetensors")
    with pytest.raises(DamagedModel, match=r"says that a\.safetensors holds tensor b"):
        find(folder, SHAPES, tied=False)
    places = shard(folder, build)
    del places["b"]
    build.write_json(folder / "model.safetensors.index.json", {"weight_map": places})
    with pytest.raises(DamagedModel, match="does not list"):
        find(folder, SHAPES, tied=False)
    for broken in (b"", b"{}", b'{"weight_map": 3}', b"\xff"):
        (folder / "model.safetensors.index.json").write_bytes(broken)
        with pytest.raises(DamagedModel, match="not an index"):
            find(folder, SHAPES, tied=False)
