"""Scoring gives the bits that sampling recorded; perplexity is the exact sum over its windows."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from isonomy.backends.local import Local, Scored, forcing
from isonomy.sdk.errors import BackendError, ContextLength, InputError
from isonomy.sdk.generation import Generation, Request, Sampling
from isonomy.sdk.vocabulary import Message, Text

kernels = pytest.importorskip("isonomy.kernels")

MESSAGES = (Message.of("system", "Be brief."), Message.of("user", "Where is my order 12345?"))
TEXT = "The quick brown fox jumps over the lazy dog. 你好，世界 👍🏽 naïve café. " * 3


@pytest.fixture(scope="module")
def backend(shared_checkpoint: Path) -> Local:
    return Local(shared_checkpoint)


def answer(backend: Local, **sampling: Any) -> Generation:
    drawn = {"temperature": 0.9, "seed": 1, "max_tokens": 40} | sampling
    return backend.generate(Request(messages=MESSAGES, sampling=Sampling(**drawn)))


def loaded(backend: Local) -> Any:
    return backend._loaded()


@pytest.mark.parametrize("piece", [1, 7, 39, 40, 128])
@pytest.mark.parametrize(
    "sampling",
    [{}, {"temperature": 0.0}, {"repetition_penalty": 2.0, "top_k": 5, "max_tokens": 9}],
    ids=["drawn", "greedy", "penalised"],
)
def test_an_answer_scores_as_it_was_sampled(
    backend: Local, sampling: dict[str, Any], piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forcing, "PIECE", piece)
    generation = answer(backend, **sampling)
    trace = generation.tokens
    assert trace is not None
    for completion in (generation, trace.ids, list(trace.ids)):
        scored = backend.score(MESSAGES, completion)
        assert scored == Scored(
            ids=trace.ids,
            texts=trace.texts,
            logprobs=trace.logprobs,
            digests=trace.digests,
            chain=trace.chain,
        )


def test_an_answer_that_ended_by_itself(backend: Local, checkpoint: Path) -> None:
    """End tokens are scored, and stand for no text; a stop string's tokens are scored, too."""
    seed, plain = next(
        (seed, found)
        for seed in range(99)
        if (found := answer(backend, seed=seed)).usage.output_tokens == 40
    )
    assert plain.tokens is not None
    (checkpoint / "generation_config.json").write_text(
        f'{{"eos_token_id": {plain.tokens.ids[20]}}}'
    )
    with Local(checkpoint) as ending:
        for sampling in ({}, {"stop": (plain.text[2:5],)}):
            generation = answer(ending, seed=seed, **sampling)
            assert generation.finish_reason == "stop"
            assert generation.tokens is not None
            assert len(generation.tokens.ids) < len(plain.tokens.ids)
            scored = ending.score(MESSAGES, generation)
            assert scored.texts == generation.tokens.texts
            assert scored.chain == generation.tokens.chain
            assert scored.logprobs == generation.tokens.logprobs


def test_a_text_is_cut_into_tokens_by_itself(backend: Local) -> None:
    scored = backend.score("hello", "On Monday. 👍🏽")
    assert "".join(scored.texts) == "On Monday. 👍🏽"
    assert list(scored.ids) == loaded(backend).tokenizer.encode("On Monday. 👍🏽", context=1 << 20)
    remote = Generation(content=(Text("On Monday. 👍🏽"),), finish_reason="stop", model="other")
    assert backend.score([{"role": "user", "content": "hello"}], remote) == scored


def test_values_and_their_exact_sum(backend: Local) -> None:
    scored = backend.score(MESSAGES, answer(backend))
    assert np.asarray(scored.values, "<f4").tobytes() == scored.logprobs
    assert scored.total == float(sum(map(Fraction, scored.values)))
    assert scored.perplexity == pytest.approx(math.exp(-scored.total / len(scored.ids)), rel=1e-14)
    assert all(value <= 0 for value in scored.values)


@pytest.mark.parametrize(
    ("completion", "error", "said"),
    [
        ("", InputError, "completion is empty"),
        ((), InputError, "completion is empty"),
        ((5, 320), InputError, "from 0 to 319, not 320"),
        ((-1,), InputError, "not -1"),
        ((2**40,), InputError, f"not {2**40}"),
        ((True,), InputError, "not True"),
        (("5",), InputError, "not '5'"),
        (5, InputError, "not int"),
        (None, InputError, "not NoneType"),
        (b"abc", InputError, "not bytes"),
        ((5,) * 300, ContextLength, "256 tokens"),
        ("word " * 400, ContextLength, "Score a shorter completion"),
    ],
    ids=str,
)
def test_what_can_not_be_scored(
    backend: Local, completion: Any, error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        backend.score(MESSAGES, completion)


def test_messages_that_can_not_be_scored(backend: Local) -> None:
    with pytest.raises(InputError, match="prompt is empty"):
        backend.score("", "hello")
    with pytest.raises(ContextLength):
        backend.score("word " * 400, "hello")
    with Local("demo") as closed:
        closed.close()
        with pytest.raises(BackendError, match="closed"):
            closed.score("hello", "hello")


def windows(count: int, size: int, stride: int, first: int) -> list[tuple[int, int, int]]:
    """The definition, token by token: begin of its window, itself, end of its window."""
    found, end = [], min(size, count)
    for token in range(first, count):
        while token >= end:
            end = min(end + stride, count)
        found.append((max(0, end - size), token, end))
    return found


@pytest.mark.parametrize(
    ("size", "stride"), [(2, 1), (16, 1), (16, 8), (16, 15), (50, 7), (256, 128), (None, None)]
)
def test_perplexity_by_its_definition(backend: Local, size: Any, stride: Any) -> None:
    found = backend.perplexity(TEXT, window=size, stride=stride)
    model = loaded(backend)
    ids = model.tokenizer.encode(TEXT, context=1 << 20)
    size, stride = size or 256, stride or 128
    values = []
    seen: dict[tuple[int, int], Any] = {}
    for begin, token, end in windows(len(ids), size, stride, 1):
        if (begin, end) not in seen:
            session = model.decoder.session(end - begin)
            seen[begin, end] = session.feed(ids[begin:end], all_logits=True)
        row = seen[begin, end][token - 1 - begin : token - begin]
        values.append(float(kernels.logprobs(row, [ids[token]])[0]))
    assert (found.tokens, found.scored) == (len(ids), len(ids) - 1)
    assert found.nats == -float(sum(map(Fraction, values)))
    assert found.mean == found.nats / found.scored
    assert found.perplexity == pytest.approx(math.exp(found.mean), rel=1e-14)
    assert found.bytes == len(TEXT.encode()) - len(model.tokenizer.decode(ids[:1]).encode())
    assert found.bits_per_byte == found.nats / math.log(2) / found.bytes
    assert (found.window, found.stride) == (size, stride)
    assert found.model == backend.identity().artefacts["model"]


def test_a_begin_token_before_every_window(backend: Local) -> None:
    model = loaded(backend)
    ids = model.tokenizer.encode(TEXT, context=1 << 20)
    found = backend.perplexity(TEXT, window=16, stride=15, begin=True)
    (begin,) = model.tokenizer.encode(model.tokenizer.named["bos_token"], context=99)
    values = []
    for at in range(0, len(ids), 15):
        part = ids[at : at + 15]
        # The last window is as long as the others, so it begins earlier.
        early = min(at, len(ids) - 15)
        seen = [begin, *ids[early : at + len(part)]]
        logits = model.decoder.session(16).feed(seen, all_logits=True)
        start = at - early
        values += kernels.logprobs(logits[start : start + len(part)], part).tolist()
    assert (found.tokens, found.scored, found.begin) == (len(ids), len(ids), True)
    assert found.nats == -float(sum(map(Fraction, values)))
    assert found.bytes == len(TEXT.encode())


def test_perplexity_tells_how_far_it_is(backend: Local) -> None:
    told: list[tuple[int, int]] = []
    found = backend.perplexity(
        TEXT, window=16, stride=8, progress=lambda done, total: told.append((done, total))
    )
    assert told[-1] == (found.scored, found.scored)
    assert [done for done, _ in told] == sorted({done for done, _ in told})


@pytest.mark.parametrize(
    ("text", "options", "said"),
    [
        ("", {}, "too short"),
        ("a", {}, "too short"),
        (TEXT, {"window": 1}, "2 tokens at least and 256 at most"),
        (TEXT, {"window": 257}, "2 tokens at least and 256 at most"),
        (TEXT, {"window": 8, "stride": 8}, "from 1 to 7 tokens"),
        (TEXT, {"window": 8, "stride": 0}, "from 1 to 7 tokens"),
        (TEXT, {"window": 8.5}, "window must be a whole number"),
        (TEXT, {"stride": "4"}, "stride must be a whole number"),
        (5, {}, "must be a text, not int"),
    ],
    ids=str,
)
def test_perplexity_refuses(backend: Local, text: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        backend.perplexity(text, **options)


def test_a_model_without_a_begin_token(checkpoint: Path, build: Any) -> None:
    build.write_tokenizer(checkpoint, bos_token=None)
    with (
        Local(checkpoint) as backend,
        pytest.raises(InputError, match="names no begin token"),
    ):
        backend.perplexity(TEXT, begin=True)


def test_a_model_that_leaves_the_finite_numbers(checkpoint: Path, build: Any) -> None:
    tensors = build.tensors(build.config())
    tensors["model.norm.weight"] = np.full(48, 3e38, np.float32)
    build.write_tensors(checkpoint / "model.safetensors", tensors)
    with Local(checkpoint) as backend:
        for ask in (lambda: backend.score("hello", "you"), lambda: backend.perplexity(TEXT)):
            with pytest.raises(BackendError, match="left the finite numbers"):
                ask()
