"""The matrix of invariances, on a tiny checkpoint of every family: all rows, all logits, as bits.

Sequences leave every window, a page of the cache and a block of 256.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest
from tests.backends.tiny import TINY, config

from isonomy.backends.local import layout, weights
from isonomy.backends.local.checkpoint import decoder_config
from isonomy.backends.local.config import FAMILIES, architecture

kernels = pytest.importorskip("isonomy.kernels")


LENGTH = 280
START = 250
"""Where the checks that look at single steps begin: before the end of the first block."""


class Case:
    """A decoder, tokens, and the logits of each of them from one feed."""

    def __init__(self, folder: Path, *, int8: bool) -> None:
        data = (folder / "config.json").read_bytes()
        model = architecture(data, folder)
        listing = weights.listing(folder)
        found = weights.find(folder, listing, layout.arrange(model, listing))
        self.config, self.found = decoder_config(kernels, model, LENGTH + 20), found
        if int8:
            self.config = msgspec.structs.replace(self.config, weights="int8", checksums=True)
        self.decoder = kernels.Decoder(self.config, found)
        self.ids = np.random.default_rng(3).integers(0, model.vocab, LENGTH).astype(np.int32)
        self.vocab = model.vocab
        self.logits = self.session().feed(self.ids, all_logits=True)
        assert np.isfinite(self.logits).all()
        assert len(set(self.logits.argmax(1))) > 5, "the model must have more than one opinion"

    def session(self, prompt: int = 0) -> Any:
        session = self.decoder.session(LENGTH + 20)
        if prompt:
            session.prefill(self.ids[:prompt])
        return session

    def in_chunks(self, size: int) -> np.ndarray[Any, Any]:
        session = self.session()
        return np.concatenate(
            [
                session.feed(self.ids[start : start + size], all_logits=True)
                for start in range(0, LENGTH, size)
            ]
        )


@pytest.fixture(
    scope="module",
    params=[(family, kind) for kind in ("stored", "int8") for family in TINY],
    ids="-".join,
)
def case(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    build: SimpleNamespace,
) -> Case:
    family, kind = request.param
    folder = tmp_path_factory.mktemp(family)
    return Case(build.checkpoint(folder, config(family), bf16=family > "m"), int8=kind == "int8")


def test_every_family_is_here() -> None:
    assert set(TINY) == set(FAMILIES)


NEUTRAL: dict[str, Any] = {
    "attention_softcap": 0.0,
    "embedding_multiplier": 1.0,
    "experts_per_token": 1,
    "layer_ropes": (),
    "logit_divisor": 1.0,
    "logit_softcap": 0.0,
    "norm_offset": False,
    "normalise_experts": False,
    "residual_multiplier": 1.0,
    "scale": None,
    "windows": (),
}


def test_switches_matter(case: Case) -> None:
    """Without any one of its switches a family would be seen to compute something else."""
    size = np.abs(case.logits).max()
    for name, value in NEUTRAL.items():
        given = getattr(case.config, name)
        idle = name in ("experts_per_token", "normalise_experts") and not case.config.experts
        if idle or given == value or not any(np.atleast_1d(np.array(given, float))):
            continue
        other = kernels.Decoder(msgspec.structs.replace(case.config, **{name: value}), case.found)
        logits = other.session(LENGTH).feed(case.ids, all_logits=True)
        assert np.abs(logits - case.logits).max() > 1e-3 * size, name


def test_prompt_chunks_and_decoding(case: Case) -> None:
    for size in range(1, 65):
        assert case.in_chunks(size).tobytes() == case.logits.tobytes(), size


def test_paths_and_threads(case: Case) -> None:
    before = kernels.info().threads
    try:
        for isa in kernels.info().isas:
            with kernels.using_isa(isa):
                for threads in (1, 2, 3):
                    kernels.set_threads(threads)
                    whole = case.session().feed(case.ids, all_logits=True)
                    assert whole.tobytes() == case.logits.tobytes(), (isa, threads)
                assert case.in_chunks(17).tobytes() == case.logits.tobytes(), isa
    finally:
        kernels.set_threads(before)


def test_neighbours(case: Case) -> None:
    """Other sequences in the same pass, of other lengths and with other work, change nothing."""
    rng = np.random.default_rng(4)
    subject = case.session(START)
    others = [case.session(int(rng.integers(0, 40))) for _ in range(256)]
    for size in (*range(1, 18), 32, 64, 128, 257):
        tokens = case.ids[START : START + int(rng.integers(1, 9))]
        items = [
            kernels.StepItem(
                session=other,
                tokens=rng.integers(0, case.vocab, int(rng.integers(1, 6))).astype(np.int32),
                draws=int(rng.integers(0, 2)),
                params=kernels.SamplingParams(temperature=1.0, seed=size),
            )
            for other in others[: size - 1]
        ]
        place = int(rng.integers(0, size))
        items.insert(
            place,
            kernels.StepItem(
                session=subject, tokens=tokens, draws=len(tokens), with_logits=True, forced=True
            ),
        )
        result = case.decoder.step(items)[place]
        assert isinstance(result, kernels.StepsResult)
        assert result.logits is not None
        expected = case.logits[START : START + len(tokens)]
        assert result.logits.tobytes() == expected.tobytes(), size
        assert result.digests == b"".join(kernels.step_digests(expected))
        subject.truncate(START)
        for other in others:
            other.truncate(min(other.length, 40))


def test_verifying_guesses(case: Case) -> None:
    """Guessed tokens that hold are drawn as one after the other, with the same digests."""
    params = kernels.SamplingParams(temperature=0.8, top_p=0.9, repetition_penalty=1.1, seed=11)
    session, history, plain = case.session(START), list(case.ids[:START]), []
    token = int(case.ids[START])
    for _ in range(8):
        history.append(token)
        [step] = case.decoder.step(
            [kernels.StepItem(session=session, tokens=[token], params=params, history=history)]
        )
        plain.append(step)
        token = step.tokens[0]
    tokens = [int(case.ids[START]), *(step.tokens[0] for step in plain)]
    for guesses in range(8):
        wrong = (tokens[guesses + 1] + 1) % case.vocab
        given = np.array([*tokens[: guesses + 1], wrong], np.int32)
        session = case.session(START)
        [result] = case.decoder.step(
            [
                kernels.StepItem(
                    session=session,
                    tokens=given,
                    draws=len(given),
                    params=params,
                    history=[*case.ids[:START], *given],
                )
            ]
        )
        held = plain[: guesses + 1]
        assert result.tokens == tuple(step.tokens[0] for step in held)
        assert result.digests == b"".join(step.digests for step in held)
        assert result.logprobs.tobytes() == b"".join(step.logprobs.tobytes() for step in held)
        assert session.length == START + guesses + 1


def test_shared_prefixes(case: Case) -> None:
    """A session that shares the pages of another goes on as if it had computed them."""
    first = case.session(LENGTH - 3)
    for length in (1, 31, 32, 255, 256, 257, LENGTH - 3):
        fork = first.fork(length=length)
        logits = fork.feed(case.ids[length:], all_logits=True)
        assert logits.tobytes() == case.logits[length:].tobytes(), length
    rest = first.feed(case.ids[LENGTH - 3 :], all_logits=True)
    assert rest.tobytes() == case.logits[LENGTH - 3 :].tobytes()
