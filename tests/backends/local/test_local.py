"""Local as a backend: what it answers, how it ends, what it says about itself."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from isonomy.backends.local import Local
from isonomy.sdk.errors import BackendError, ContextLength, InputError, MissingExtra
from isonomy.sdk.generation import Backend, Generation, Request, Sampling, TokenTrace
from isonomy.sdk.vocabulary import Image, Message, Text

pytest.importorskip("isonomy.kernels")


def ask(text: str = "Hello!", **sampling: Any) -> Request:
    return Request(messages=(Message.of("user", text),), sampling=Sampling(**sampling))


def trace_of(generation: Generation) -> TokenTrace:
    assert generation.tokens is not None
    return generation.tokens


@pytest.fixture(scope="module")
def backend(shared_checkpoint: Path) -> Local:
    return Local(shared_checkpoint, max_tokens=30)


def test_it_is_a_backend(backend: Local) -> None:
    assert isinstance(backend, Backend)
    assert repr(backend).startswith("Local('/")


def test_importing_it_is_light() -> None:
    heavy = [
        "numpy",
        "tokenizers",
        "safetensors",
        "jinja2",
        "torch",
        "transformers",
        "isonomy.kernels",
    ]
    code = (
        "import sys, isonomy.backends.local\n"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("package", ["numpy", "tokenizers", "safetensors", "jinja2"])
def test_a_missing_package_is_named(
    package: str, shared_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtra, match=package) as caught:
        Local(shared_checkpoint)
    assert "pip install 'isonomy[local]'" in str(caught.value)


def test_pieces_of_text_are_the_text(backend: Local) -> None:
    pieces: list[str] = []
    generation = backend.generate(ask(temperature=1.0, seed=3), on_text=pieces.append)
    assert all(pieces)
    assert "".join(pieces) == generation.text
    trace = trace_of(generation)
    assert "".join(trace.texts) == generation.text
    assert len(trace.texts) == len(trace.ids) == generation.usage.output_tokens == 30
    assert generation.finish_reason == "length"
    assert generation.prompt is not None
    assert generation.prompt_ids is not None
    assert generation.prompt.endswith("<|im_start|>assistant\n")
    assert generation.usage.input_tokens == len(generation.prompt_ids)
    assert set(generation.timings) == {"waiting", "prompt", "decode", "outside"}


def test_without_a_temperature_the_most_probable_token_is_taken(backend: Local) -> None:
    first, second = (backend.generate(ask(seed=seed)) for seed in (1, 2))
    assert trace_of(first) == trace_of(second)


def test_max_tokens(backend: Local) -> None:
    whole = trace_of(backend.generate(ask()))
    short = backend.generate(ask(max_tokens=4))
    assert short.finish_reason == "length"
    assert trace_of(short).ids == whole.ids[:4]
    assert trace_of(short).digests == whole.digests[: 4 * 32]


def test_an_end_token_is_a_step_without_text(
    backend: Local, checkpoint: Path, build: SimpleNamespace
) -> None:
    whole = trace_of(backend.generate(ask(temperature=1.0, seed=1)))
    end = whole.ids[9]
    at = whole.ids.index(end)
    build.write_json(checkpoint / "generation_config.json", {"eos_token_id": [1, end]})
    generation = Local(checkpoint).generate(ask(temperature=1.0, seed=1))
    trace = trace_of(generation)
    assert generation.finish_reason == "stop"
    assert trace.ids == whole.ids[: at + 1]
    assert generation.text == "".join(trace.texts)
    assert trace.texts[-1] in ("", "\ufffd")  # at most a character that was not complete


def test_stop_strings(backend: Local) -> None:
    request = ask(temperature=1.0, seed=4)
    whole = backend.generate(request)
    text = whole.text
    stop = text[7:10]
    assert text.find(stop) > 0
    sampling = msgspec.structs.replace(request.sampling, stop=("never", stop))
    pieces: list[str] = []
    cut = backend.generate(
        msgspec.structs.replace(request, sampling=sampling), on_text=pieces.append
    )
    assert cut.finish_reason == "stop"
    assert cut.text == text[: text.find(stop)] == "".join(pieces)
    trace = trace_of(cut)
    assert trace.ids == trace_of(whole).ids[: len(trace.ids)]
    assert len(trace.ids) < len(trace_of(whole).ids)
    assert "".join(trace.texts).find(stop) == len(cut.text)


def test_text_held_back_for_a_stop_string_is_given_at_the_end(backend: Local) -> None:
    text = backend.generate(ask()).text
    pieces: list[str] = []
    generation = backend.generate(ask(stop=(text[-3:] + "never",)), on_text=pieces.append)
    assert generation.text == text == "".join(pieces)
    assert generation.finish_reason == "length"


def test_the_context_ends_an_answer(backend: Local, shared_checkpoint: Path) -> None:
    whole = backend.generate(ask())
    assert whole.prompt_ids is not None
    limit = len(whole.prompt_ids) + 3
    generation = Local(shared_checkpoint, context=limit).generate(ask())
    assert generation.finish_reason == "length"
    assert trace_of(generation).ids == trace_of(whole).ids[:3]


def test_a_prompt_beyond_the_context(backend: Local, shared_checkpoint: Path) -> None:
    prompt = backend.generate(ask(max_tokens=1)).prompt_ids
    assert prompt is not None
    fits = Local(shared_checkpoint, context=len(prompt) + 1)
    assert len(trace_of(fits.generate(ask())).ids) == 1
    with pytest.raises(ContextLength) as caught:
        Local(shared_checkpoint, context=len(prompt)).generate(ask())
    assert (caught.value.tokens, caught.value.limit) == (len(prompt), len(prompt))


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "text", ["a" * 10**6, " " * 10**6, "<|im_end|>" * 10**5, "你好" * 10**6, "{{x}}" * 200_000]
)
def test_a_prompt_of_a_megabyte(backend: Local, text: str) -> None:
    with pytest.raises(ContextLength, match="context is 256 tokens") as caught:
        backend.generate(ask(text))
    assert caught.value.tokens > 256
    assert caught.value.limit == 256


@pytest.mark.parametrize(
    "messages",
    [(), (Message.of("user", ""),), (Message.of("system", "x"), Message("user", ()))],
)
def test_an_empty_prompt(backend: Local, messages: tuple[Message, ...]) -> None:
    with pytest.raises(InputError, match="the prompt is empty"):
        backend.generate(Request(messages=messages))


def test_text_that_is_no_text(backend: Local) -> None:
    with pytest.raises(InputError, match="can't read this text"):
        backend.generate(ask("a lone surrogate: \ud800"))


def test_a_template_that_says_nothing(shared_checkpoint: Path) -> None:
    with pytest.raises(InputError, match="the prompt is empty"):
        Local(shared_checkpoint, chat_template="{# nothing #}").generate(ask())


def test_what_is_not_covered_in_a_request(backend: Local) -> None:
    picture = Message("user", (Text("Look:"), Image("cat.png")))
    with pytest.raises(InputError, match="type Image"):
        backend.generate(Request(messages=(picture,)))
    messages = (Message.of("user", "Hello"),)
    with pytest.raises(InputError, match="tools"):
        backend.generate(Request(messages=messages, tools=({"name": "f"},)))
    with pytest.raises(InputError, match="response_format"):
        backend.generate(Request(messages=messages, response_format={"type": "json"}))


@pytest.mark.parametrize(
    "options",
    [{"temperature": -1}, {"prompt_chunk": 0}, {"context": 1}, {"stop": ("",)}, {"seed": "x"}],
)
def test_options_out_of_range(shared_checkpoint: Path, options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(options))):
        Local(shared_checkpoint, **options)


def test_values_of_a_request_out_of_range(backend: Local) -> None:
    with pytest.raises(InputError, match="top_p"):
        backend.generate(ask(top_p=2.0))


def test_resolve(shared_checkpoint: Path) -> None:
    backend = Local(shared_checkpoint, temperature=0.3, stop="END", seed=9)
    resolved = backend.resolve(Sampling(top_p=0.5))
    assert resolved == Sampling(
        temperature=0.3,
        top_p=0.5,
        top_k=50,
        min_p=0.0,
        repetition_penalty=1.0,
        max_tokens=1024,
        stop=("END",),
        seed=9,
    )
    assert backend.resolve(resolved) == resolved
    assert backend.resolve(Sampling(stop=("X",), seed=0)).stop == ("X",)


def test_identity(backend: Local, shared_checkpoint: Path) -> None:
    identity = backend.identity()
    assert identity is backend.identity()
    assert identity.provider == "isonomy.local"
    assert identity.spec == f"local:{shared_checkpoint}"
    assert identity.deterministic
    names = {"config", "generation_config", "tokenizer", "chat_template", "rope_tables", "weights"}
    assert set(identity.artefacts) == names | {"model"}
    assert all(value.startswith("blake3:") for value in identity.artefacts.values())
    assert identity.numerics["version"] == 1
    assert identity.numerics["weights"] == "f32"
    assert identity.numerics["operations"] == sorted(identity.numerics["operations"])
    other = Local(shared_checkpoint, prompt_chunk=3, context=99, temperature=1.0).identity()
    assert other.artefacts == identity.artefacts
    msgspec.json.encode(identity)


def test_options_that_matter_open_the_same_backend_again(shared_checkpoint: Path) -> None:
    backend = Local(
        shared_checkpoint,
        temperature=0.9,
        seed=3,
        stop=["x", "y"],
        max_tokens=12,
        context=99,
        chat_template="{{ messages[0].content }}",
        prompt_chunk=5,
    )
    identity = backend.identity()
    stored = msgspec.json.decode(msgspec.json.encode(identity))
    assert "prompt_chunk" not in stored["options"]
    again = Local(identity.spec.removeprefix("local:"), **stored["options"])
    assert again.identity().options == identity.options
    assert again.identity().artefacts == identity.artefacts
    assert again.identity().numerics == identity.numerics
    assert again.resolve(Sampling()) == backend.resolve(Sampling())
    first, second = backend.generate(ask()), again.generate(ask())
    assert (first.tokens, first.content) == (second.tokens, second.content)
    assert Local(shared_checkpoint).identity().options == {}


def test_agenerate_gives_the_same(backend: Local) -> None:
    request = ask(temperature=0.8, seed=11)
    pieces: list[str] = []
    generation = asyncio.run(backend.agenerate(request, on_text=pieces.append))
    expected = backend.generate(request)
    assert "".join(pieces) == generation.text
    assert generation.tokens == expected.tokens
    assert generation.content == expected.content


def test_agenerate_can_be_cancelled(shared_checkpoint: Path) -> None:
    backend = Local(shared_checkpoint, max_tokens=200)
    begun, ended = threading.Event(), threading.Event()
    given: list[str] = []

    def slow(piece: str) -> None:
        given.append(piece)
        begun.set()
        ended.wait(0.02)

    async def main() -> None:
        task = asyncio.create_task(backend.agenerate(ask(temperature=1.0), on_text=slow))
        await asyncio.to_thread(begun.wait)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())  # waits for its threads, so the generation has ended here
    assert 0 < len(given) < 100


def test_an_error_of_the_listener_passes_through(backend: Local) -> None:
    def broken(piece: str) -> None:
        raise RuntimeError(piece)

    with pytest.raises(RuntimeError):
        backend.generate(ask(), on_text=broken)
    assert backend.generate(ask()).text


def test_closed(shared_checkpoint: Path) -> None:
    with Local(shared_checkpoint) as backend:
        identity = backend.identity()
    backend.close()
    assert backend.identity() == identity
    with pytest.raises(BackendError, match="closed"):
        backend.generate(ask())


def test_a_relative_path_and_a_home_folder(
    shared_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(shared_checkpoint.parent)
    assert Local(shared_checkpoint.name).identity().spec == f"local:{shared_checkpoint}"
    monkeypatch.setenv("HOME", str(shared_checkpoint.parent))
    assert Local("~/tiny").identity().spec == f"local:{shared_checkpoint}"
