"""The demo model that ships: it loads, and it is the one that was pinned, or nothing loads."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from isonomy.backends.local import Local, Tampered, shipped
from isonomy.sdk.errors import ModelError
from isonomy.sdk.generation import Request, Sampling
from isonomy.sdk.vocabulary import Message

pytest.importorskip("isonomy.kernels")

HELLO = Request(messages=(Message.of("user", "Hello!"),), sampling=Sampling(max_tokens=20))
shipped_only = pytest.mark.skipif(
    not (shipped.FOLDER / "config.json").is_file(), reason="no demo model in this tree"
)


@shipped_only
def test_the_digest_is_in_step() -> None:
    assert Local(shipped.FOLDER).identity().artefacts["model"] == shipped.DEMO_DIGEST


@shipped_only
def test_it_answers() -> None:
    demo = Local()
    assert demo.identity().spec == "local:demo"
    assert demo.identity().model == "demo"
    generation = demo.generate(HELLO)
    assert generation.finish_reason == "stop"
    assert generation.text


@shipped_only
def test_a_damaged_installation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "demo"
    shutil.copytree(shipped.FOLDER, folder)
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    monkeypatch.setattr(shipped, "FOLDER", folder)
    with pytest.raises(Tampered):
        Local("demo")


def test_a_pinned_digest_is_held(shared_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shipped, "FOLDER", shared_checkpoint)
    monkeypatch.setattr(shipped, "DEMO_DIGEST", "blake3:" + "0" * 64)
    with pytest.raises(Tampered):
        Local()
    pinned = Local(shared_checkpoint).identity().artefacts["model"]
    monkeypatch.setattr(shipped, "DEMO_DIGEST", pinned)
    assert Local("demo").identity().artefacts["model"] == pinned


def test_an_installation_without_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shipped, "FOLDER", tmp_path / "demo")
    with pytest.raises(ModelError, match="there is no such folder"):
        Local("demo")
