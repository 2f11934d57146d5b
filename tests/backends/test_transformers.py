"""The transformers backend, on the model that ships with the package."""

import asyncio
import json
import math
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from isonomy.backends import Local, Transformers
from isonomy.backends.local import shipped
from isonomy.sdk import (
    Backend,
    BackendError,
    ConfigError,
    ContextLength,
    Guard,
    InputError,
    ModelError,
)
from isonomy.sdk.generation import Generation, Request, Sampling, Scorer
from isonomy.sdk.vocabulary import Image, Json, Message, Text

ASK = Request(
    messages=(Message.of("user", "Where is my order?"),),
    sampling=Sampling(temperature=0.0, max_tokens=30),
)


def sampled(**settings: Any) -> Request:
    return Request(messages=ASK.messages, sampling=Sampling(**{"max_tokens": 30, **settings}))


@pytest.fixture(scope="module")
def backend() -> Iterator[Transformers]:
    opened = Transformers(str(shipped.FOLDER), dtype="float32")
    yield opened
    opened.close()
    opened.close()
    with pytest.raises(BackendError, match="was closed"):
        opened.generate(ASK)


@pytest.fixture(scope="module")
def local() -> Iterator[Local]:
    with Local("demo") as opened:
        yield opened


def test_it_says_what_the_built_in_engine_says(backend: Transformers, local: Local) -> None:
    assert isinstance(backend, Backend)
    ours, theirs = backend.generate(ASK), local.generate(ASK)
    assert ours.prompt == theirs.prompt
    assert ours.prompt_ids == theirs.prompt_ids
    assert ours.content == theirs.content
    assert ours.usage == theirs.usage
    assert ours.finish_reason == theirs.finish_reason == "stop"


def test_pieces_of_text(backend: Transformers) -> None:
    pieces: list[str] = []
    generation = backend.generate(ASK, on_text=pieces.append)
    assert "".join(pieces) == generation.text
    assert len(pieces) > 3
    apieces: list[str] = []
    other = asyncio.run(backend.agenerate(ASK, on_text=apieces.append))
    assert (other.content, apieces) == (generation.content, pieces)


def test_seeds(backend: Transformers) -> None:
    import torch

    def text(**settings: Any) -> str:
        return backend.generate(sampled(temperature=3.0, top_k=0, **settings)).text

    state = torch.random.get_rng_state()
    texts = [text(seed=seed, candidate=c) for seed in (1, 2) for c in (0, 1)]
    assert len(set(texts)) == 4
    assert [text(seed=seed, candidate=c) for seed in (1, 2) for c in (0, 1)] == texts
    assert text() == text(seed=0)
    # What the application draws is not disturbed.
    assert torch.equal(torch.random.get_rng_state(), state)


def test_many_callers_get_what_they_get_alone(backend: Transformers) -> None:
    requests = [sampled(temperature=2.0, seed=seed) for seed in range(6)]
    alone = [backend.generate(request).text for request in requests]

    async def together() -> list[Generation]:
        return await asyncio.gather(*(backend.agenerate(request) for request in requests))

    assert [generation.text for generation in asyncio.run(together())] == alone


def test_stop_strings_and_length(backend: Transformers) -> None:
    whole = backend.generate(ASK).text
    stop = whole[len(whole) // 2 :][:5]
    pieces: list[str] = []
    stopped = backend.generate(
        sampled(temperature=0.0, stop=(stop, "never")), on_text=pieces.append
    )
    assert stopped.text == "".join(pieces) == whole[: whole.index(stop)]
    assert stopped.finish_reason == "stop"
    short = backend.generate(sampled(temperature=0.0, max_tokens=3))
    assert short.finish_reason == "length"
    assert short.usage.output_tokens == 3
    assert whole.startswith(short.text)


def test_log_probabilities_of_labels(backend: Transformers, local: Local) -> None:
    assert isinstance(backend, Scorer)
    labels = ("Sure", "No", "Your order number")
    ours, theirs = backend.logprobs(ASK, labels), local.logprobs(ASK, labels)
    for one, other in zip(ours, theirs, strict=True):
        assert math.isclose(one, other, rel_tol=1e-3)
    assert ours[0] > ours[1]
    with pytest.raises(InputError, match="label '' has no tokens"):
        backend.logprobs(ASK, ("a", ""))


@pytest.mark.parametrize(
    ("request_", "error", "said"),
    [
        (Request(messages=(Message("user", (Image("x"),)),)), InputError, "holds Image"),
        (Request(messages=ASK.messages, tools=({"type": "function"},)), InputError, "no tools"),
        (
            Request(messages=ASK.messages, response_format={"type": "json_object"}),
            InputError,
            "can't force a response format",
        ),
        (sampled(temperature=-1.0), InputError, "temperature must be from 0 to"),
        (sampled(temperature=float("nan")), InputError, "temperature must be from 0 to"),
        (sampled(top_p=0.0), InputError, "top_p must be from"),
        (sampled(max_tokens=0), InputError, "max_tokens must be from 1"),
        (Request(messages=(Message.of("user", "a b " * 4000),)), ContextLength, "context is"),
    ],
)
def test_what_can_not_be_answered(
    backend: Transformers, request_: Request, error: Any, said: str
) -> None:
    with pytest.raises(error, match=said):
        backend.generate(request_)


def test_structured_parts_are_text(backend: Transformers) -> None:
    parts = Request(messages=(Message("user", (Text("See "), Json({"a": 1}))),))
    assert '{"a":1}' in (backend.generate(parts).prompt or "")


class Gone(Exception):
    """Nobody listens any more."""


@pytest.mark.parametrize("is_async", [False, True])
def test_what_on_text_raises_ends_the_generation(backend: Transformers, is_async: bool) -> None:
    pieces: list[str] = []

    def leave(piece: str) -> None:
        pieces.append(piece)
        raise Gone

    def ask() -> Generation:
        if is_async:
            return asyncio.run(backend.agenerate(ASK, on_text=leave))
        return backend.generate(ASK, on_text=leave)

    with pytest.raises(Gone):
        ask()
    assert len(pieces) == 1
    assert backend.generate(ASK).text


def test_cancelling_ends_the_generation(backend: Transformers) -> None:
    pieces: list[str] = []
    begun = threading.Event()

    def take(piece: str) -> None:
        pieces.append(piece)
        begun.set()
        if len(pieces) > 1:  # the second is not passed on before the caller has gone
            gone.wait(10)

    gone = threading.Event()

    async def cancelled() -> None:
        task = asyncio.create_task(backend.agenerate(ASK, on_text=take))
        await asyncio.to_thread(begun.wait, 10)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        gone.set()

    asyncio.run(cancelled())
    whole: list[str] = []
    backend.generate(ASK, on_text=whole.append)
    assert len(pieces) < len(whole)


def test_identity(backend: Transformers) -> None:
    identity = backend.identity()
    assert (identity.provider, identity.model) == ("transformers", "demo")
    assert identity.spec == f"transformers:{shipped.FOLDER}"
    assert identity.options == {"device": "cpu", "dtype": "float32"}
    assert not identity.deterministic
    assert identity.artefacts["model.safetensors"].startswith("blake3:")
    assert {"torch", "transformers", "threads"} <= set(identity.runtime)
    resolved = backend.resolve(Sampling())
    assert resolved.max_tokens == 1024
    assert resolved.temperature == 0.0
    assert backend.resolve(Sampling(temperature=0.5)).temperature == 0.5


def test_behind_a_guard(tmp_path: Path) -> None:
    with Guard(backend=f"transformers:{shipped.FOLDER}", log=tmp_path / "log") as guard:
        reply = guard.chat("Where is my order?", sampling=ASK.sampling)
        assert reply.text
        assert guard.replay(reply.call_id).exit_status == 0


def copied(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    shutil.copytree(shipped.FOLDER, folder)
    return folder


def test_pickles_are_never_read(tmp_path: Path) -> None:
    folder = copied(tmp_path)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="Only safetensors"):
        Transformers(str(folder))


def test_code_of_a_checkpoint_is_never_run(tmp_path: Path) -> None:
    folder = copied(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config["model_type"] = "mine"
    config["auto_map"] = {
        "AutoConfig": "code.Config",
        "AutoModelForCausalLM": "code.Model",
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    with pytest.raises(ModelError):
        Transformers(str(folder))
    assert not (tmp_path / "ran").exists()


def test_missing_weights_are_not_made_up(tmp_path: Path) -> None:
    folder = copied(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config["num_hidden_layers"] += 1
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="missing keys"):
        Transformers(str(folder))


def test_nothing_is_fetched(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="nothing is fetched"):
        Transformers("gpt2")
    with pytest.raises(ModelError, match=r"no config.json"):
        Transformers(str(tmp_path))
    with pytest.raises(ConfigError, match="dtype: it must be one of"):
        Transformers(str(shipped.FOLDER), dtype="int3")
    with pytest.raises(ModelError, match="does not load"):
        Transformers(str(shipped.FOLDER), device="quantum")


def test_without_the_packages() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import isonomy.backends as b\n"
        "from isonomy.sdk import MissingExtra\n"
        "try: b.Transformers('m')\n"
        "except MissingExtra as e: print(e.extra, e)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        env=os.environ.copy(),
    )
    assert "pip install 'isonomy[torch]'" in done.stdout
