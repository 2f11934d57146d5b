"""Warm is cold: what is taken over from others has the bits of what is computed anew."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from isonomy.backends.local.prefix import LEAST, PrefixCache, common

kernels = pytest.importorskip("isonomy.kernels")


@pytest.mark.parametrize("limit", [1 << 16, 1 << 18, 1 << 22])
@pytest.mark.parametrize("seed", range(2))
def test_random_sharing(model: Any, kit: SimpleNamespace, limit: int, seed: int) -> None:
    """Trees of prompts, at lengths around a page of 256, with and without evictions."""
    rng = random.Random(seed)
    decoder = kit.Watched(model.decoder)
    driver = kit.Driver(model.engine(decoder, prefix_cache_bytes=limit, max_running=5))
    trunk = [rng.randrange(3, model.vocab) for _ in range(600)]
    cuts = [1, LEAST - 1, LEAST, 31, 32, 255, 256, 257, 300, 511, 512, 513, 599]
    asked = []
    for _ in range(24):
        prompt = trunk[: rng.choice(cuts)] + model.prompt(rng, 40)
        if rng.random() < 0.3:
            prompt = trunk[: len(prompt)]
        asked.append((prompt, model.sampling(seed=rng.randrange(3), max_tokens=6)))
    computed = 0
    for at in range(0, len(asked), 4):
        sequences = [model.running(*one) for one in asked[at : at + 4]]
        driver.submit(*sequences)
        driver.finish()
        for sequence, (prompt, sampling) in zip(sequences, asked[at : at + 4], strict=True):
            model.check(sequence, sampling)
            assert sequence.cached < len(prompt)  # the last token's logits are always computed
            computed += len(prompt) - sequence.cached
    assert driver.engine._prefixes.bytes <= limit
    fed = sum(sum(rows) for rows in decoder.passes)
    assert fed == computed + 24 * 5  # nothing that was said to be cached was computed
    if limit > 1 << 20:
        assert computed < sum(len(prompt) for prompt, _ in asked) / 2


def test_a_conversation_goes_on_where_it_was(model: Any) -> None:
    """The next round begins with the last one's prompt and answer: both are there already."""
    engine = model.engine()
    prompt = [5 + i % 90 for i in range(300)]
    for _ in range(3):
        sequence = model.running(prompt, model.sampling())
        engine.run(sequence)
        model.check(sequence, model.sampling())
        prompt = [*sequence.ids, 7, 8, 9]
    assert sequence.cached == sequence.prompted - 3 - 1  # the last token drawn was never fed


def test_candidates_read_their_prompt_once(model: Any, kit: SimpleNamespace) -> None:
    """All at once: one reads, the others wait for it and go on from there."""
    decoder = kit.Watched(model.decoder)
    driver = kit.Driver(model.engine(decoder, prompt_chunk=64))
    prompt = [5 + i % 90 for i in range(300)]
    asked = [model.sampling(seed=3, candidate=i) for i in range(6)]
    sequences = [model.running(prompt, sampling) for sampling in asked]
    driver.submit(*sequences)
    driver.finish()
    for sequence, sampling in zip(sequences, asked, strict=True):
        model.check(sequence, sampling)
    assert [sequence.cached for sequence in sequences] == [0, *[299] * 5]
    assert sum(sum(rows) for rows in decoder.passes) == 300 + 5 + 6 * 11
    assert len({sequence.trace().chain for sequence in sequences}) == 6


def test_nobody_waits_for_who_is_gone(model: Any, kit: SimpleNamespace) -> None:
    driver = kit.Driver(model.engine(prompt_chunk=40, prefix_cache_bytes=0))
    prompt = [5 + i % 90 for i in range(300)]
    first, second = (model.running(prompt, model.sampling(seed=i)) for i in range(2))
    driver.submit(first, second)
    driver.step(3)
    assert second.fed == 0
    driver.leave(first)
    driver.finish()
    model.check(second, model.sampling(seed=1))
    assert second.cached == 0


def test_what_has_to_be_checked_is_computed_anew(model: Any) -> None:
    engine = model.engine()
    prompt = [5 + i % 90 for i in range(100)]
    for cold in (False, True, False):
        sequence = model.running(prompt, model.sampling(), cold=cold)
        engine.run(sequence)
        model.check(sequence, model.sampling())
    assert sequence.cached == 99
    sequence = model.running(prompt, model.sampling(), cold=True)
    engine.run(sequence)
    assert sequence.cached == 0


class Held:
    """A session as far as the cache looks at it."""

    def __init__(self, cache_bytes: int) -> None:
        self.cache_bytes = cache_bytes


def test_the_least_recently_used_goes_first() -> None:
    cache = PrefixCache(30)
    a, b, c, d = (np.full(20, i, np.int32) for i in range(4))
    for ids in (a, b, c):
        cache.keep(ids, Held(10))  # type: ignore[arg-type]
    assert cache.bytes == 30
    assert cache.find(np.append(a, 9).astype(np.int32)) is not None
    cache.keep(d, Held(15))  # type: ignore[arg-type]
    found = [cache.find(np.append(ids, 9).astype(np.int32)) is not None for ids in (a, b, c, d)]
    assert found == [True, False, False, True]
    cache.keep(b, Held(31))  # type: ignore[arg-type]
    assert cache.bytes == 25
    cache.shrink(15)
    assert len(cache) == 1


def test_only_what_adds_something_is_kept() -> None:
    cache = PrefixCache(1000)
    long = np.arange(50, dtype=np.int32)
    cache.keep(long[:30], Held(1))  # type: ignore[arg-type]
    cache.keep(long, Held(2))  # type: ignore[arg-type]
    assert cache.bytes == 2
    cache.keep(long[:40], Held(1))  # type: ignore[arg-type]
    assert cache.bytes == 2
    cache.keep(long[: LEAST - 1] + 60, Held(1))  # type: ignore[arg-type]
    assert len(cache) == 1


def test_the_longest_common_beginning_is_found() -> None:
    rng = random.Random(5)
    for _ in range(200):
        cache = PrefixCache(1 << 20)
        kept = [
            np.array([rng.randrange(2) for _ in range(rng.randrange(LEAST, 40))], np.int32)
            for _ in range(rng.randrange(6))
        ]
        for ids in kept:
            cache.keep(ids, Held(1))  # type: ignore[arg-type]
        wanted = np.array([rng.randrange(2) for _ in range(rng.randrange(1, 50))], np.int32)
        longest = max((common(ids, wanted[:-1]) for ids in kept), default=0)
        found = cache.find(wanted, 1)
        assert (0 if found is None else found[1]) == longest
