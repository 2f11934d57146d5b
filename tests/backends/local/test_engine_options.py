"""Options of `Local` that change speed and memory, and never a bit."""

from __future__ import annotations

import asyncio
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from isonomy.backends.local import (
    DamagedModel,
    Local,
    Overloaded,
    TooLarge,
    UnusableFormat,
    WrongDraft,
)
from isonomy.sdk.config import load
from isonomy.sdk.errors import ConfigError, InputError
from isonomy.sdk.generation import Generation, Request, Sampling, TokenTrace, Verifier
from isonomy.sdk.vocabulary import Message

kernels = pytest.importorskip("isonomy.kernels")


def ask(text: str = "Where is my order 12345?", **changes: Any) -> Request:
    formed = changes.pop("response_format", None)
    drawn = {"temperature": 1.0, "seed": 3, "max_tokens": 40} | changes
    return Request(
        messages=(Message.of("user", text),), sampling=Sampling(**drawn), response_format=formed
    )


def bits(generation: Generation) -> Generation:
    return msgspec.structs.replace(generation, runtime={}, timings={})


def trace_of(generation: Generation) -> TokenTrace:
    assert generation.tokens is not None
    return generation.tokens


@pytest.fixture(scope="module")
def backend(shared_checkpoint: Path) -> Local:
    return Local(shared_checkpoint)


@pytest.fixture(scope="module")
def other(build: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another model with the same tokens."""
    folder: Path = build.checkpoint(tmp_path_factory.mktemp("other") / "other", seed=2)
    return folder


REGEX = {"type": "regex", "regex": "(yes|no), order [0-9]{2,30}"}
SCHEMA = {
    "type": "json_schema",
    "json_schema": {
        "schema": {
            "type": "object",
            "properties": {"ok": {"type": "boolean"}, "n": {"type": "integer"}},
            "required": ["ok", "n"],
            "additionalProperties": False,
        }
    },
}


@pytest.mark.parametrize("formed", [None, REGEX, SCHEMA], ids=["plain", "regex", "schema"])
@pytest.mark.parametrize(
    "options",
    [
        {"draft": "lookup"},
        {"draft": "other"},
        {"draft": "same"},
        {"prefix_cache_bytes": 0},
        {"cache_bytes": 1 << 20, "max_concurrent": 1, "max_waiting": 100, "prompt_chunk": 5},
    ],
    ids=["lookup", "draft", "itself", "cold", "small"],
)
def test_no_option_changes_a_bit(
    backend: Local,
    shared_checkpoint: Path,
    other: Path,
    options: dict[str, Any],
    formed: dict[str, Any] | None,
) -> None:
    drafts = {"other": other, "same": shared_checkpoint}
    if "draft" in options:
        options = options | {"draft": drafts.get(options["draft"], options["draft"])}
    requests = [
        ask(response_format=formed),
        ask(response_format=formed, temperature=0.0),
        ask(response_format=formed, repetition_penalty=1.2, seed=4),
        ask("The quick brown fox. The quick brown fox. The quick brown", response_format=formed),
    ]
    expected = [bits(backend.generate(request)) for request in requests]
    with Local(shared_checkpoint, **options) as local:
        assert local.identity().options == backend.identity().options == {}
        assert local.identity().numerics == backend.identity().numerics
        for _ in range(2):
            assert [bits(local.generate(request)) for request in requests] == expected
        with ThreadPoolExecutor(8) as pool:
            assert [bits(g) for g in pool.map(local.generate, requests * 2)] == expected * 2

        async def together() -> list[Generation]:
            return await asyncio.gather(*(local.agenerate(request) for request in requests * 2))

        assert [bits(generation) for generation in asyncio.run(together())] == expected * 2


def test_a_form_is_kept(backend: Local) -> None:
    free = backend.generate(ask())
    assert not re.fullmatch(REGEX["regex"], free.text)
    formed = backend.generate(ask(response_format=REGEX))
    assert re.fullmatch(REGEX["regex"], formed.text)
    assert formed.finish_reason == "stop"
    assert formed.runtime["grammar"] == backend.identity().numerics["grammar"]
    assert "llguidance" in formed.runtime["grammar"]
    assert "grammar" not in free.runtime
    answer = backend.generate(ask(response_format=SCHEMA, max_tokens=200))
    if answer.finish_reason == "stop":
        assert set(msgspec.json.decode(answer.text)) == {"ok", "n"}
    # The first token is drawn from the same logits, by another mask.
    assert trace_of(formed).digests[:32] == trace_of(free).digests[:32]


def test_a_form_that_can_not_be(backend: Local) -> None:
    for call in (backend.generate, lambda request: asyncio.run(backend.agenerate(request))):
        with pytest.raises(UnusableFormat):
            call(ask(response_format={"type": "regex", "regex": "(unclosed"}))
    assert backend.generate(ask()).text


@pytest.mark.parametrize("formed", [None, REGEX], ids=["plain", "regex"])
@pytest.mark.parametrize("draft", [None, "lookup"])
def test_a_recorded_answer_is_guessed_and_never_believed(
    shared_checkpoint: Path, draft: str | None, formed: dict[str, Any] | None
) -> None:
    with Local(shared_checkpoint, draft=draft) as local:
        verifier: Verifier = local
        assert verifier.verifies
        request = ask(response_format=formed)
        whole = local.generate(request)
        ids = trace_of(whole).ids
        altered = [
            ids,
            ids[:5],
            (*ids[:5], 7, *ids[6:]),
            (*ids, 5, 6),
            (1 << 40, -1),
            (),
            tuple(reversed(ids)),
        ]
        for guess in altered:
            tokens = msgspec.structs.replace(trace_of(whole), ids=guess)
            recorded = msgspec.structs.replace(whole, tokens=tokens)
            for again in (
                local.generate(request, recorded=recorded),
                asyncio.run(local.agenerate(request, recorded=recorded)),
            ):
                assert bits(again) == bits(whole)
                assert again.runtime["cached"] == 0
        told = msgspec.structs.replace(whole, tokens=None)
        assert bits(local.generate(request, recorded=told)) == bits(whole)
        checked = local.generate(request, recorded=whole).runtime
        assert checked["accepted"] == checked["guessed"] == len(ids) - 1


def test_evidence_of_how_it_was_computed(backend: Local) -> None:
    request = ask("Something nobody has asked before.")
    first, second = backend.generate(request), backend.generate(request)
    assert first.prompt_ids is not None
    assert second.runtime["cached"] == len(first.prompt_ids) - 1 > first.runtime["cached"]
    assert second.runtime["batch"] == 1
    assert second.runtime["guessed"] == second.runtime["accepted"] == 0
    timings = second.timings
    assert all(seconds >= 0 for seconds in timings.values())
    assert 0 < timings["outside"] < timings["decode"]


def test_layers_are_traced_where_that_is_asked_for(backend: Local, shared_checkpoint: Path) -> None:
    plain = backend.generate(ask())
    with Local(shared_checkpoint, trace_layers=True, draft="lookup") as local:
        traced = local.generate(ask())
        assert local.identity().options == {}
    layers = trace_of(traced).layers
    assert len(layers) == 40 * 2 * len(kernels.STAGES) * 32
    assert msgspec.structs.replace(trace_of(traced), layers=b"") == trace_of(plain)
    with Local(shared_checkpoint, trace_layers=True, prompt_chunk=3) as local:
        assert trace_of(local.generate(ask())).layers == layers
        recorded = local.generate(ask(), recorded=plain)
        assert trace_of(recorded).layers == layers


def test_a_draft_of_other_tokens(
    shared_checkpoint: Path, build: SimpleNamespace, tmp_path: Path
) -> None:
    folder = build.checkpoint(tmp_path / "foreign")
    tokenizer = build.tokenizer()
    tokenizer.add_tokens(["one token more"])
    build.write_tokenizer(folder, tokenizer)
    config = build.config(vocab_size=336)
    build.write_json(folder / "config.json", config)
    build.write_tensors(folder / "model.safetensors", build.tensors(config))
    with pytest.raises(WrongDraft, match="tokenizers differ") as caught:
        Local(shared_checkpoint, draft=folder)
    assert caught.value.expected != caught.value.found
    assert str(folder) in str(caught.value)
    with pytest.raises(DamagedModel, match="no such folder"):
        Local(shared_checkpoint, draft=tmp_path / "nowhere")


def test_what_is_refused_names_the_option(shared_checkpoint: Path) -> None:
    small = Local(shared_checkpoint, cache_bytes=1000)
    with pytest.raises(TooLarge, match="Raise cache_bytes, or lower max_tokens"):
        small.generate(ask())
    with Local(shared_checkpoint, max_concurrent=1, max_waiting=0) as local:
        refused: list[Exception] = []

        def meanwhile(_: str) -> None:
            try:
                local.generate(ask())
            except Overloaded as error:
                refused.append(error)

        local.generate(ask(max_tokens=3), on_text=meanwhile)
        assert "max_concurrent 1 and max_waiting 0" in str(refused[0])
        assert local.generate(ask()).text


@pytest.mark.parametrize(
    "options",
    [
        {"prompt_chunk": 0},
        {"prompt_chunk": 1.5},
        {"cache_bytes": 0},
        {"prefix_cache_bytes": -1},
        {"max_concurrent": 0},
        {"max_waiting": -1},
        {"max_concurrent": True},
        {"max_concurrent": None},
        {"max_waiting": None},
    ],
)
def test_options_out_of_their_range(shared_checkpoint: Path, options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"{next(iter(options))} must be a whole number"):
        Local(shared_checkpoint, **options)


@pytest.mark.parametrize(
    "options",
    [
        {"draft": 5},
        {"draft": True},
        {"chat_template": 5},
        {"expect": 5},
        {"checksums": "no"},
        {"trace_layers": "no"},
        {"stop": 5},
        {"stop": None},
    ],
)
def test_options_of_another_kind(shared_checkpoint: Path, options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"^{next(iter(options))} must be"):
        Local(shared_checkpoint, **options)
    with pytest.raises(InputError, match=r"^model must be"):
        Local(5)  # type: ignore[arg-type]


def test_an_expected_digest_says_something(shared_checkpoint: Path) -> None:
    with pytest.raises(InputError, match="expect is empty"):
        Local(shared_checkpoint, expect="")


def test_what_is_no_request_is_refused_by_name(shared_checkpoint: Path) -> None:
    local = Local(shared_checkpoint)
    with pytest.raises(InputError, match="a request must be a Request, not str"):
        local.generate("hello")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="recorded must be a Generation, not str"):
        local.generate(ask(), recorded="hello")  # type: ignore[arg-type]


def test_a_closed_backend_ends_what_is_under_way(shared_checkpoint: Path) -> None:
    local = Local(shared_checkpoint)
    expected = bits(local.generate(ask()))
    again = local.generate(ask(), on_text=lambda _: local.close())
    assert bits(again) == expected


def test_a_file_can_hold_them(tmp_path: Path) -> None:
    options = {"draft": "lookup", "weights": "int8", "checksums": True, "cache_bytes": 1 << 24}
    lines = [f"{name} = {msgspec.json.encode(value).decode()}" for name, value in options.items()]
    file = tmp_path / "isonomy.toml"
    file.write_text("\n".join(["[backend]", 'use = "local:demo"', *lines]))
    assert load(file).options == options
    file.write_text('[backend]\nuse = "local:demo"\nclock = 5')
    with pytest.raises(ConfigError, match=r"backend\.clock: unknown key"):
        load(file)
