"""Names, splits and transposes of every family: what is handed over is what was stored."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tests.backends.published import PUBLISHED

from isonomy.backends.local import DamagedModel, weights
from isonomy.backends.local.architecture import Architecture
from isonomy.backends.local.config import FAMILIES, architecture
from isonomy.backends.local.layout import EMBEDDING, OUTPUT, arrange, shapes

SIZES: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 6,
    "max_position_embeddings": 32,
}
OWN_SIZES: dict[str, dict[str, Any]] = {
    "gpt2": {"vocab_size": 40, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 32},
    "mixtral": SIZES | {"num_local_experts": 3},
    "phi3": SIZES | {"attention_bias": False},
    "qwen3_moe": SIZES
    | {"num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 10}
    | {"mlp_only_layers": [0]},
}


def model(family: str, **changes: Any) -> Architecture:
    config = {"model_type": family} | OWN_SIZES.get(family, SIZES) | changes
    return architecture(json.dumps(config).encode(), "config.json")


def stored(names: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray[Any, Any]]:
    """Every number once, so that a part in the wrong place is seen."""
    start, arrays = 0, {}
    for name, shape in names.items():
        size = int(np.prod(shape))
        arrays[name] = np.arange(start, start + size, dtype=np.float32).reshape(shape)
        start += size
    return arrays


def load(folder: Path, build: SimpleNamespace, which: Architecture, **arrays: Any) -> Any:
    folder = folder / str(len(list(folder.iterdir())))  # what was loaded before stays
    folder.mkdir()
    build.write_tensors(folder / "model.safetensors", arrays)
    listing = weights.listing(folder)
    return weights.find(folder, listing, arrange(which, listing))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_number_is_handed_over_once(
    family: str, tmp_path: Path, build: SimpleNamespace
) -> None:
    which = model(family)
    arrays = stored(arrange(which).stored)
    found = load(tmp_path, build, which, **arrays)
    assert set(found) == set(shapes(which))
    numbers = []
    for name, shape in shapes(which).items():
        array = found[name]
        assert array.shape == shape, name
        assert array.flags.c_contiguous
        numbers.append(array.reshape(-1))
    total = sum(array.size for array in arrays.values())
    assert sorted(np.concatenate(numbers)) == list(range(total))


def test_our_names_are_those_of_the_kernels() -> None:
    kernels = pytest.importorskip("isonomy.kernels")
    from isonomy.backends.local.checkpoint import decoder_config

    for name in PUBLISHED:
        data = json.dumps(PUBLISHED[name]).encode()
        which = architecture(data, "config.json", 4096)
        config = decoder_config(kernels, which, 64)
        assert kernels.expected_shapes(config) == shapes(which), name


def test_our_switches_are_those_of_the_kernels() -> None:
    kernels = pytest.importorskip("isonomy.kernels")
    ours = set(Architecture.__struct_fields__)
    assert ours - set(kernels.DecoderConfig.__struct_fields__) == {"family", "eos_ids"}


def test_parts_of_a_fused_tensor(tmp_path: Path, build: SimpleNamespace) -> None:
    which = model("phi3")
    arrays = stored(arrange(which).stored)
    found = load(tmp_path, build, which, **arrays)
    qkv = arrays["model.layers.1.self_attn.qkv_proj.weight"]
    at = "model.layers.1.self_attn"
    assert (found[f"{at}.q_proj.weight"] == qkv[:24]).all()
    assert (found[f"{at}.k_proj.weight"] == qkv[24:36]).all()
    assert (found[f"{at}.v_proj.weight"] == qkv[36:]).all()
    both = arrays["model.layers.0.mlp.gate_up_proj.weight"]
    assert (found["model.layers.0.mlp.gate_proj.weight"] == both[:24]).all()
    assert (found["model.layers.0.mlp.up_proj.weight"] == both[24:]).all()


def test_linears_of_gpt2_are_stored_with_their_inputs_first(
    tmp_path: Path, build: SimpleNamespace
) -> None:
    which = model("gpt2")
    arrays = stored(arrange(which).stored)
    found = load(tmp_path, build, which, **arrays)
    assert which.intermediate == 64
    at, layer = "transformer.h.1", "model.layers.1"
    c_attn = arrays[f"{at}.attn.c_attn.weight"]
    assert c_attn.shape == (16, 48)
    assert (found[f"{layer}.self_attn.k_proj.weight"] == c_attn[:, 16:32].T).all()
    bias = arrays[f"{at}.attn.c_attn.bias"]
    assert (found[f"{layer}.self_attn.v_proj.bias"] == bias[32:]).all()
    assert (found[f"{layer}.mlp.down_proj.weight"] == arrays[f"{at}.mlp.c_proj.weight"].T).all()
    # Tables are no linears.
    assert (found["model.embed_positions.weight"] == arrays["transformer.wpe.weight"]).all()
    assert (found[EMBEDDING] == arrays["transformer.wte.weight"]).all()


def test_gpt2_with_and_without_its_prefix(tmp_path: Path, build: SimpleNamespace) -> None:
    which = model("gpt2")
    arrays = stored(arrange(which).stored)
    bare = {name.removeprefix("transformer."): array for name, array in arrays.items()}
    masks = {f"h.{i}.attn.{name}": np.ones((1, 1), np.float32) for i in (0, 1) for name in MASKS}
    first = load(tmp_path, build, which, **arrays)
    second = load(tmp_path, build, which, **bare, **masks)
    assert all((first[name] == second[name]).all() for name in shapes(which))
    del bare["h.1.ln_2.bias"]
    with pytest.raises(DamagedModel, match=r"tensor h\.1\.ln_2\.bias missing"):
        load(tmp_path, build, which, **bare)


MASKS = ("bias", "masked_bias")


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_experts_one_by_one_and_stacked(
    family: str, tmp_path: Path, build: SimpleNamespace
) -> None:
    which = model(family)
    arrays = stored(arrange(which).stored)
    single = load(tmp_path, build, which, **arrays)
    values = {name: single[name] for name in shapes(which)}
    at = "model.layers.1.mlp."
    stacked = {
        name: array
        for name, array in arrays.items()
        if not (".experts." in name or ".block_sparse_moe." in name)
    }
    for layer in (0, 1):
        if not which.sparse(layer):
            continue
        at = f"model.layers.{layer}.mlp."

        def stack(kind: str, at: str = at) -> np.ndarray[Any, Any]:
            return np.stack([values[f"{at}experts.{e}.{kind}_proj.weight"] for e in range(3)])

        stacked[f"{at}experts.gate_up_proj"] = np.concatenate([stack("gate"), stack("up")], axis=1)
        stacked[f"{at}experts.down_proj"] = stack("down")
        stacked[f"{at}gate.weight"] = values[f"{at}router.weight"]
    found = load(tmp_path, build, which, **stacked)
    assert all((found[name] == values[name]).all() for name in values)


def test_a_tensor_of_several_is_read_once(
    tmp_path: Path, build: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    which = model("phi3")
    arrays = stored(arrange(which).stored)
    found = load(tmp_path, build, which, **arrays)
    read: list[str] = []
    original = weights.Weights._read

    def counted(self: weights.Weights, name: str) -> Any:
        read.append(name)
        return original(self, name)

    monkeypatch.setattr(weights.Weights, "_read", counted)
    for name in shapes(which):
        for _ in range(3):
            found[name]
    digest = found.digest()
    assert sorted(read) == sorted(arrays)
    # The digest is of what the files hold, whatever is made of it.
    assert load(tmp_path, build, which, **arrays).digest() == digest


def test_tied_outputs_have_the_family_s_names(tmp_path: Path, build: SimpleNamespace) -> None:
    which = model("gpt2")
    arrays = stored(arrange(which).stored)
    same = arrays | {OUTPUT: arrays["transformer.wte.weight"]}
    assert OUTPUT not in load(tmp_path, build, which, **same)
    with pytest.raises(DamagedModel, match=r"lm_head\.weight differs from transformer\.wte"):
        load(tmp_path, build, which, **arrays | {OUTPUT: same[OUTPUT] + 1})


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("gemma2", "model.layers.1.pre_feedforward_layernorm.weight"),
        ("gpt2", "transformer.h.0.attn.c_attn.bias"),
        ("mixtral", "model.layers.1.block_sparse_moe.experts.2.w3.weight"),
        ("olmo2", "model.layers.0.post_feedforward_layernorm.weight"),
        ("phi3", "model.layers.0.self_attn.qkv_proj.weight"),
        ("qwen3_moe", "model.layers.1.mlp.experts.0.down_proj.weight"),
    ],
)
def test_errors_have_the_names_of_the_checkpoint(
    family: str, name: str, tmp_path: Path, build: SimpleNamespace
) -> None:
    which = model(family)
    arrays = stored(arrange(which).stored)
    rest = {key: array for key, array in arrays.items() if key != name}
    with pytest.raises(DamagedModel, match=f"tensor {name} missing"):
        load(tmp_path, build, which, **rest)
    with pytest.raises(DamagedModel, match=f"tensor {name}.more in the weights"):
        load(tmp_path, build, which, **arrays, **{f"{name}.more": arrays[name]})
    with pytest.raises(DamagedModel, match=f"tensor {name} has shape"):
        load(tmp_path, build, which, **rest, **{name: arrays[name][:1]})
