"""Log-probabilities of labels are those of scoring, bit for bit, whatever else happens."""

from __future__ import annotations

import struct
import threading
from pathlib import Path
from typing import Any

import pytest

from isonomy.backends.local import Local, forcing
from isonomy.sdk.errors import BackendError, ContextLength, InputError
from isonomy.sdk.generation import Request, Sampling, Scorer
from isonomy.sdk.vocabulary import Message

kernels = pytest.importorskip("isonomy.kernels")

LABELS = ("comply", "breach", "comply and more", "yes", "no")
REQUEST = Request(
    messages=(Message.of("system", "Be brief."), Message.of("user", "Where is my order 12345?"))
)


@pytest.fixture(scope="module")
def backend(shared_checkpoint: Path) -> Local:
    return Local(shared_checkpoint)


@pytest.fixture(scope="module")
def expected(backend: Local) -> tuple[float, ...]:
    return tuple(backend.score(REQUEST.messages, label).total for label in LABELS)


def test_it_is_a_scorer(backend: Local, expected: tuple[float, ...]) -> None:
    assert isinstance(backend, Scorer)
    assert backend.logprobs(REQUEST, LABELS) == expected
    assert all(value < 0 for value in expected)
    assert len(set(expected)) == len(expected)


@pytest.mark.parametrize("piece", [1, 7, 128])
def test_how_the_prompt_is_cut(
    backend: Local, expected: tuple[float, ...], piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forcing, "PIECE", piece)
    assert backend.logprobs(REQUEST, LABELS) == expected


def test_order_company_and_sampling_do_not_matter(
    backend: Local, expected: tuple[float, ...]
) -> None:
    assert backend.logprobs(REQUEST, LABELS[::-1]) == expected[::-1]
    for label, value in zip(LABELS, expected, strict=True):
        assert backend.logprobs(REQUEST, (label,)) == (value,)
    hot = Request(
        messages=REQUEST.messages,
        sampling=Sampling(temperature=2.0, seed=9, repetition_penalty=1.5, max_tokens=1),
        response_format={"type": "json_object"},
    )
    assert backend.logprobs(hot, LABELS) == expected


def test_threads_and_instruction_sets(backend: Local, expected: tuple[float, ...]) -> None:
    told: dict[str, Any] = {"prompt_chunk": None}
    for isa in kernels.info().isas:
        for threads in (1, 2):
            with forcing.running(told | {"isa": isa, "threads": threads}):
                assert backend.logprobs(REQUEST, LABELS) == expected


def test_among_other_calls(backend: Local, expected: tuple[float, ...]) -> None:
    """Scoring and generating at the same time, on several threads, changes no bit of either."""
    sampling = Sampling(temperature=0.9, seed=1, max_tokens=24)
    alone = backend.generate(Request(messages=REQUEST.messages, sampling=sampling))
    found: list[Any] = []

    def score() -> None:
        found.extend(backend.logprobs(REQUEST, LABELS) for _ in range(3))

    def answer() -> None:
        asked = Request(messages=REQUEST.messages, sampling=sampling)
        found.extend(backend.generate(asked).tokens == alone.tokens for _ in range(2))

    threads = [threading.Thread(target=work) for work in (score, answer, score, answer)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [value for value in found if value is not True] == [expected] * 6
    assert found.count(True) == 4


def test_a_label_is_as_likely_as_sampling_found_it(backend: Local) -> None:
    """What the model began its answer with, in the label's own tokens, has the recorded bits."""

    def begun(seed: int) -> Any:
        sampling = Sampling(temperature=2.0, seed=seed, max_tokens=1)
        return backend.generate(Request(messages=REQUEST.messages, sampling=sampling)).tokens

    tokens = next(
        found
        for found in map(begun, range(99))
        if found.texts[0] and backend.score(REQUEST.messages, found.texts[0]).ids == found.ids
    )
    assert backend.logprobs(REQUEST, tokens.texts) == struct.unpack("<f", tokens.logprobs)


@pytest.mark.parametrize(
    ("labels", "error", "said"),
    [
        ((), InputError, "labels must be a tuple"),
        ("yes", InputError, "labels must be a tuple"),
        (("yes", ""), InputError, "not empty, not ''"),
        ((5,), InputError, "not 5"),
        (("word " * 400,), ContextLength, "256 tokens"),
    ],
    ids=str,
)
def test_labels_that_can_not_be_compared(
    backend: Local, labels: Any, error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        backend.logprobs(REQUEST, labels)


def test_requests_that_can_not_be_scored(backend: Local) -> None:
    with pytest.raises(InputError, match="must be a Request"):
        backend.logprobs("hello", LABELS)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="last message has no text"):
        backend.logprobs(Request(messages=(Message.of("user", ""),)), LABELS)
    with pytest.raises(ContextLength):
        backend.logprobs(Request(messages=(Message.of("user", "word " * 400),)), LABELS)
    with Local("demo") as closed:
        closed.close()
        with pytest.raises(BackendError, match="closed"):
            closed.logprobs(REQUEST, LABELS)
