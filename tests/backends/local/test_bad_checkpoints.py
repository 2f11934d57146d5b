"""A checkpoint that is missing, damaged, tampered with or not covered gives one clear error."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tests.backends.tiny import TINY, config

from isonomy.backends.local import (
    DamagedModel,
    Local,
    NonFinite,
    NotCovered,
    NoTemplate,
    Tampered,
)
from isonomy.sdk.errors import BackendError, InputError, ModelError
from isonomy.sdk.generation import Request, Sampling
from isonomy.sdk.vocabulary import Message

pytest.importorskip("isonomy.kernels")

HELLO = Request(messages=(Message.of("user", "Hello!"),), sampling=Sampling(max_tokens=3))


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="there is no such folder") as caught:
        Local(tmp_path / "absent")
    assert caught.value.path == str(tmp_path / "absent")
    (tmp_path / "file").write_text("x")
    with pytest.raises(ModelError, match="there is no such folder"):
        Local(tmp_path / ("x" * 5000))
    with pytest.raises(ModelError, match="there is no such folder"):
        Local(tmp_path / "file")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_missing_files(checkpoint: Path, name: str) -> None:
    (checkpoint / name).unlink()
    with pytest.raises(DamagedModel, match=name.replace(".", r"\.")):
        Local(checkpoint)


@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
)
@pytest.mark.parametrize("part", [0.0, 0.3, 0.99])
def test_truncated_files(checkpoint: Path, name: str, part: float) -> None:
    data = (checkpoint / name).read_bytes()
    (checkpoint / name).write_bytes(data[: int(len(data) * part)])
    with pytest.raises(DamagedModel, match=name.replace(".", r"\.")) as caught:
        Local(checkpoint)
    assert caught.value.path.endswith(name)


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"]
)
def test_files_that_are_something_else(checkpoint: Path, name: str) -> None:
    for data in (b"\x80\x04\x95", b"[1, 2]", b"\xff" * 100, b"null"):
        (checkpoint / name).write_bytes(data)
        with pytest.raises(DamagedModel, match=name.replace(".", r"\.")):
            Local(checkpoint)


def test_a_damaged_tokenizer_is_no_crash(checkpoint: Path) -> None:
    path = checkpoint / "tokenizer.json"
    original = path.read_text()

    def drop_model(value: dict[str, Any]) -> None:
        value["model"]["merges"] = [["no", "such"]]

    for change in (drop_model, lambda v: v.pop("model"), lambda v: v.update(added_tokens=3)):
        path.write_text(original)
        edit(path, change)
        with pytest.raises(DamagedModel, match=r"tokenizer\.json"):
            Local(checkpoint)


def test_a_tokenizer_of_another_model(checkpoint: Path, build: SimpleNamespace) -> None:
    config = build.config(vocab_size=300)
    build.checkpoint(checkpoint, config)
    with pytest.raises(DamagedModel, match="has ids up to 319, but the model has 300"):
        Local(checkpoint)


def test_tokens_that_the_tokenizer_lacks(checkpoint: Path, build: SimpleNamespace) -> None:
    build.write_tokenizer(checkpoint, eos_token="<absent>")
    with pytest.raises(DamagedModel, match="does not have the token '<absent>'"):
        Local(checkpoint)
    moved = {"5": {"content": "<|im_end|>", "special": True}}
    build.write_tokenizer(checkpoint, added_tokens_decoder=moved)
    with pytest.raises(DamagedModel, match=r"<\|im_end\|>' at id 5"):
        Local(checkpoint)
    build.write_tokenizer(checkpoint, added_tokens_decoder={"x": {"content": "<|im_end|>"}})
    with pytest.raises(DamagedModel, match="not a token id"):
        Local(checkpoint)


def test_no_chat_template(checkpoint: Path, build: SimpleNamespace) -> None:
    build.write_tokenizer(checkpoint, chat_template=None)
    with pytest.raises(NoTemplate, match=r"has no chat template.*chat_template="):
        Local(checkpoint)
    generation = Local(checkpoint, chat_template="{{ messages[0].content }}").generate(HELLO)
    assert generation.prompt == "Hello!"


@pytest.mark.parametrize("template", [3, [{"name": "default"}], ["x"], {"default": "x"}])
def test_chat_templates_of_the_wrong_shape(
    checkpoint: Path, build: SimpleNamespace, template: Any
) -> None:
    build.write_tokenizer(checkpoint, chat_template=template)
    with pytest.raises(DamagedModel, match=r"chat.template"):
        Local(checkpoint)


@pytest.mark.parametrize("source", ["{% if %}", "{{ x", "{% unknown %}", "{{ 1 | nofilter }}"])
def test_chat_templates_that_are_no_templates(checkpoint: Path, source: str) -> None:
    with pytest.raises(DamagedModel, match="the chat template is not valid"):
        Local(checkpoint, chat_template=source)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{% for i in range(1000000000) %}x{% endfor %}", "range"),
        ("{{ messages[9].content }}", "messages"),
        ("{{ 1 // 0 }}", "division"),
        ("{% set ns = namespace(__x=1) %}", "private attribute"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
        ("{% include 'x' %}", "loader"),
    ],
)
def test_chat_templates_that_fail(checkpoint: Path, source: str, said: str) -> None:
    backend = Local(checkpoint, chat_template=source)
    with pytest.raises(InputError, match=said):
        backend.generate(HELLO)


def test_a_chat_template_can_not_read_the_clock(checkpoint: Path) -> None:
    asks = Local(checkpoint, chat_template="{{ strftime_now('%Y') }}")
    with pytest.raises(NotCovered, match="asks for the date"):
        asks.generate(HELLO)
    tests = "{% if strftime_now is defined %}{{ strftime_now('%Y') }}{% else %}2024{% endif %}"
    assert Local(checkpoint, chat_template=tests).generate(HELLO).prompt == "2024"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["model.layers.1.mlp.up_proj.weight", "model.norm.weight"])
def test_non_finite_weights(
    checkpoint: Path, build: SimpleNamespace, name: str, value: float
) -> None:
    tensors = build.tensors(build.config())
    tensors[name].reshape(-1)[-1] = value
    build.write_tensors(checkpoint / "model.safetensors", tensors)
    with pytest.raises(DamagedModel, match="finite"):
        Local(checkpoint)


@pytest.mark.parametrize("family", sorted(TINY))
def test_damage_to_every_family(family: str, tmp_path: Path, build: SimpleNamespace) -> None:
    """Answers while it is whole; a tensor that is gone, cut, unknown or not finite is named."""
    given = config(family, vocab_size=320)
    folder = build.checkpoint(tmp_path / "it", given)
    assert Local(folder).generate(HELLO).tokens is not None
    path, tensors = folder / "model.safetensors", build.tensors(given)
    name = sorted(tensors)[-3]
    without = {key: values for key, values in tensors.items() if key != name}
    for damaged, said in (
        (without, f"tensor {name} missing"),
        (without | {name: tensors[name][1:]}, f"tensor {name} has shape"),
        (tensors | {f"{name}s": tensors[name]}, f"tensor {name}s in the weights"),
        (tensors | {name: tensors[name] * np.nan}, "holds NaN or infinity"),
    ):
        build.write_tensors(path, damaged)
        with pytest.raises(DamagedModel, match=said):
            Local(folder)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DamagedModel, match="cut off"):
        Local(folder)


def test_leaving_the_finite_numbers_names_the_layer(
    checkpoint: Path, build: SimpleNamespace
) -> None:
    tensors = build.tensors(build.config())
    for kind in ("gate", "up", "down"):
        tensors[f"model.layers.1.mlp.{kind}_proj.weight"] *= 1e18
    build.write_tensors(checkpoint / "model.safetensors", tensors)
    backend = Local(checkpoint)
    with pytest.raises(NonFinite, match="layer 1") as caught:
        backend.generate(HELLO)
    assert caught.value.layer == 1
    tensors = build.tensors(build.config())
    tensors["lm_head.weight"] *= 1e38
    build.write_tensors(checkpoint / "model.safetensors", tensors)
    with pytest.raises(NonFinite, match="output") as caught:
        Local(checkpoint).generate(HELLO)
    assert caught.value.layer is None


def test_the_expected_digest(checkpoint: Path, build: SimpleNamespace) -> None:
    digest = Local(checkpoint).identity().artefacts["model"]
    assert Local(checkpoint, expect=digest).identity().artefacts["model"] == digest
    path = checkpoint / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    with pytest.raises(Tampered, match="not the expected one") as caught:
        Local(checkpoint, expect=digest)
    assert caught.value.expected == digest
    assert caught.value.found == Local(checkpoint).identity().artefacts["model"] != digest
    data[-4:] = b"\xff" * 4  # a NaN: that it was tampered with is still the better answer
    path.write_bytes(data)
    with pytest.raises(Tampered, match="not the expected one"):
        Local(checkpoint, expect=digest)


@pytest.mark.parametrize(
    ("artefact", "change"),
    [
        ("config", lambda f: edit(f / "config.json", lambda v: v.update(rms_norm_eps=1e-6))),
        ("tokenizer", lambda f: edit(f / "tokenizer.json", lambda v: v.update(padding=None) or 0)),
        ("chat_template", lambda f: (f / "chat_template.jinja").write_text("other")),
        ("generation_config", lambda f: (f / "generation_config.json").write_text("{}")),
        ("rope_tables", lambda f: edit(f / "config.json", lambda v: v.update(rope_theta=9e3))),
    ],
)
def test_every_file_is_in_the_digest(
    checkpoint: Path, artefact: str, change: Callable[[Path], Any]
) -> None:
    before = Local(checkpoint).identity().artefacts
    change(checkpoint)
    after = Local(checkpoint).identity().artefacts
    assert before[artefact] != after[artefact]
    assert before["model"] != after["model"]
    others = set(before) - {artefact, "model", "config"}
    assert {name: before[name] for name in others} == {name: after[name] for name in others}


def test_a_context_too_long_for_a_table(checkpoint: Path) -> None:
    edit(checkpoint / "config.json", lambda v: v.update(max_position_embeddings=1 << 30))
    with pytest.raises(NotCovered, match="max_position_embeddings"):
        Local(checkpoint)
    assert Local(checkpoint, context=100).generate(HELLO).text is not None


def test_sizes_that_the_weights_do_not_have(checkpoint: Path) -> None:
    edit(checkpoint / "config.json", lambda v: v.update(hidden_size=1 << 20, head_dim=12))
    with pytest.raises(DamagedModel, match="has shape"):
        Local(checkpoint)
    edit(checkpoint / "config.json", lambda v: v.update(hidden_size=48, num_hidden_layers=4096))
    with pytest.raises(DamagedModel, match=r"model\.layers\.10\..* and 36843 more missing"):
        Local(checkpoint)


def test_kernels_that_can_not_be_used(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from isonomy import kernels

    def broken() -> None:
        raise kernels.LibraryError("the library is in none of /here")

    monkeypatch.setattr(kernels, "info", broken)
    with pytest.raises(BackendError, match="the kernels can't be used: the library is in none"):
        Local(checkpoint)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json"])
def test_noise_in_a_file_is_no_crash(checkpoint: Path, name: str) -> None:
    """Whatever stands in a file, the checkpoint answers, or one of our errors says why."""
    path = checkpoint / name
    original = path.read_bytes()
    rng = np.random.default_rng(5)
    refused = 0
    for _ in range(60):
        data = bytearray(original)
        for at in rng.integers(0, len(data), rng.integers(1, 4)):
            data[at] = rng.choice(list(b'0129{}[]",:.-e x\xff'))
        path.write_bytes(data)
        try:
            Local(checkpoint).generate(HELLO)
        except (ModelError, InputError):
            refused += 1
    assert refused > 5
