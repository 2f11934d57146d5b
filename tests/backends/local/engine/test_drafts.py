"""Guesses change nothing but the number of passes."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from isonomy.backends.local.drafts import DraftModel, Pace, PromptLookup, Recorded
from isonomy.backends.local.sequence import parameters

kernels = pytest.importorskip("isonomy.kernels")

PROMPT = [5 + i % 11 for i in range(40)]


class Oracle:
    """Knows the answer, and lies now and then; proposes more than it is asked for."""

    bytes = 0

    def __init__(
        self, rng: random.Random, prompted: int, answer: Sequence[int], *, certain: bool
    ) -> None:
        self.rng, self.prompted, self.answer, self.certain = rng, prompted, answer, certain

    def propose(self, ids: Sequence[int], most: int) -> Sequence[int]:
        done = len(ids) - self.prompted
        right = list(self.answer[done : done + self.rng.randrange(most + 3)])
        lies = [self.rng.choice([-1, 0, 1, 2, 50, 319, 320, 1 << 40]) for _ in range(3)]
        cut = self.rng.randrange(len(right) + 1)
        return self.rng.choice([right, right + lies, right[:cut] + lies, lies, []])


@pytest.mark.parametrize("certain", [True, False])
@pytest.mark.parametrize("seed", range(6))
def test_random_guesses(model: Any, kit: SimpleNamespace, seed: int, certain: bool) -> None:
    rng = random.Random(seed)
    driver = kit.Driver(model.engine(prompt_chunk=rng.choice([5, 64]), max_running=4))
    asked = []
    for _ in range(12):
        sampling = model.sampling(
            temperature=rng.choice([0.0, 0.8]),
            repetition_penalty=rng.choice([1.0, 1.3]),
            seed=rng.randrange(99),
            max_tokens=rng.randrange(1, 50),
        )
        whole, text, _ = model.plain(PROMPT, sampling)
        stops = () if rng.random() < 0.5 or len(text) < 9 else (text[5:8],)
        eos = {rng.choice(whole.ids)} if rng.random() < 0.5 else set()
        if stops:
            sampling = model.sampling(
                **{n: getattr(sampling, n) for n in sampling.__struct_fields__} | {"stop": stops}
            )
        draft = Oracle(rng, len(PROMPT), whole.ids, certain=certain)
        sequence = model.running(PROMPT, sampling, eos_ids=eos, draft=draft)
        asked.append((sequence, sampling, eos))
        driver.submit(sequence)
    driver.finish()
    for sequence, sampling, eos in asked:
        model.check(sequence, sampling, eos)
    assert sum(sequence.accepted for sequence, _, _ in asked) > 0
    assert all(sequence.accepted <= sequence.guessed for sequence, _, _ in asked)


@pytest.mark.parametrize("stop", [False, True])
def test_a_recorded_answer_is_checked_in_one_pass(
    model: Any, kit: SimpleNamespace, stop: bool
) -> None:
    sampling = model.sampling(max_tokens=60, repetition_penalty=1.1)
    text = model.plain(PROMPT, sampling)[1]
    if stop:
        sampling = model.sampling(max_tokens=60, repetition_penalty=1.1, stop=(text[10:14],))
    recorded = model.plain(PROMPT, sampling)[0].ids
    decoder = kit.Watched(model.decoder)
    engine = model.engine(decoder, prompt_chunk=200)
    sequence = model.running(PROMPT, sampling, draft=Recorded(PROMPT, recorded), cold=True)
    engine.run(sequence)
    model.check(sequence, sampling)
    assert decoder.passes == [[len(PROMPT) + len(recorded) - 1]]
    assert sequence.guessed == sequence.accepted == len(recorded) - 1


@pytest.mark.parametrize("at", [0, 1, 20, 39])
def test_an_altered_record_is_found_where_it_was_altered(
    model: Any, kit: SimpleNamespace, at: int
) -> None:
    sampling = model.sampling(max_tokens=40)
    whole = model.plain(PROMPT, sampling)[0]
    altered = list(whole.ids)
    altered[at] = 3 + (altered[at] - 2) % (model.vocab - 3)
    decoder = kit.Watched(model.decoder)
    sequence = model.running(PROMPT, sampling, draft=Recorded(PROMPT, altered, PromptLookup()))
    model.engine(decoder, prompt_chunk=200).run(sequence)
    model.check(sequence, sampling)
    assert sequence.accepted >= at
    assert len(decoder.passes) <= 1 + 40 - at


@pytest.mark.parametrize("recorded", [(), (1 << 40, -5), tuple(range(300)) * 3])
def test_any_record_will_do(model: Any, recorded: tuple[int, ...]) -> None:
    sequence = model.running(PROMPT, model.sampling(), draft=Recorded(PROMPT, recorded))
    model.engine().run(sequence)
    model.check(sequence, model.sampling())


def test_prompt_lookup_finds_the_latest_place() -> None:
    lookup = PromptLookup()
    ids = [1, 2, 3, 4, 5, 1, 2, 3, 6, 7, 9, 9]
    assert list(lookup.propose(ids, 4)) == []
    assert list(lookup.propose([*ids, 1, 2, 3], 2)) == [6, 7]
    assert list(lookup.propose([*ids, 1, 2, 3, 4], 3)) == [5, 1, 2]  # 2, 3, 4 was seen once
    assert list(lookup.propose([*ids, 1, 2, 3, 4, 8], 3)) == []
    assert list(PromptLookup().propose([], 3)) == []


def test_lookup_saves_passes_where_text_repeats(model: Any, kit: SimpleNamespace) -> None:
    sampling = model.sampling(temperature=0.0, max_tokens=150)
    decoder = kit.Watched(model.decoder)
    sequence = model.running(PROMPT, sampling, draft=PromptLookup())
    model.engine(decoder).run(sequence)
    model.check(sequence, sampling)
    assert sequence.accepted > 5
    assert len(decoder.passes) == 150 - sequence.accepted


def test_useless_guesses_become_rare() -> None:
    pace = Pace()
    rows = 0
    for _ in range(1000):
        guesses = pace.most()
        rows += guesses
        if guesses:
            pace.saw(guesses, 0)
    assert rows < 40
    pace.saw(1, 1)
    assert pace.most() == 0 or pace.most() <= Pace.MOST


def test_good_guesses_become_many() -> None:
    pace = Pace()
    for _ in range(5):
        pace.saw(pace.most(), pace.most())
    assert pace.most() == Pace.MOST
    pace.saw(16, 5)
    assert pace.most() == 6


def drafted(model: Any, sampling: Any, chunk: int = 16) -> DraftModel:
    return DraftModel(model.decoder, parameters(sampling), capacity=200, chunk=chunk)


@pytest.mark.parametrize("changes", [{"temperature": 0.0}, {}, {"repetition_penalty": 1.3}])
def test_a_draft_by_the_same_model_is_always_right(
    model: Any, kit: SimpleNamespace, changes: dict[str, Any]
) -> None:
    """Same keys, same noise: a model drafts itself without a single miss, at any temperature."""
    sampling = model.sampling(max_tokens=40, **changes)
    decoder = kit.Watched(model.decoder)
    draft = drafted(model, sampling)
    sequence = model.running(PROMPT, sampling, draft=draft)
    model.engine(decoder).run(sequence)
    model.check(sequence, sampling)
    assert sequence.accepted == sequence.guessed > 25
    assert len(decoder.passes) < 10


def test_a_draft_by_another_model(
    model: Any, kit: SimpleNamespace, build: SimpleNamespace, tmp_path: Path
) -> None:
    from isonomy.backends.local.checkpoint import load

    other = load(build.checkpoint(tmp_path / "other", seed=2))
    sampling = model.sampling(max_tokens=60)
    draft = DraftModel(other.decoder, parameters(sampling), capacity=1000, chunk=512)
    sequence = model.running([7] * 240, sampling, draft=draft)  # its context ends at 256
    model.engine().run(sequence)
    model.check(sequence, sampling)
    assert sequence.guessed > 0


def test_trouble_of_a_draft_is_no_trouble_of_the_answer(model: Any) -> None:
    sampling = model.sampling(max_tokens=30)
    draft = drafted(model, sampling)

    def broken(*_: Any) -> Any:
        raise kernels.NonFiniteError("not finite", layer=0)

    draft._propose = broken  # type: ignore[method-assign]
    sequence = model.running(PROMPT, sampling, draft=draft)
    model.engine().run(sequence)
    model.check(sequence, sampling)
    assert sequence.guessed == 0


def test_guesses_that_the_model_stumbles_over(model: Any, kit: SimpleNamespace) -> None:
    """Plain decoding may never come to what a guess ran into: it is done without."""
    decoder = kit.Watched(model.decoder)
    step = decoder.step

    def stumbling(items: Any) -> list[Any]:
        lengths = [item.session.length for item in items]
        results = step(items)
        for at, item in enumerate(items):
            if item.draws > 1:
                item.session.truncate(lengths[at])
                results[at] = kernels.NonFiniteError("not finite", layer=0)
        return results

    sampling = model.sampling(max_tokens=30)
    recorded = model.plain(PROMPT, sampling)[0].ids
    decoder.step = stumbling
    sequence = model.running(PROMPT, sampling, draft=Recorded(PROMPT, recorded))
    model.engine(decoder).run(sequence)
    model.check(sequence, sampling)
    assert sequence.draft is None
