"""The engine computes everybody together, and nobody can tell: order, budgets, ends, errors."""

from __future__ import annotations

import asyncio
import gc
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest

from isonomy.backends.local import NonFinite, Overloaded, TooLarge
from isonomy.backends.local.drafts import PromptLookup, Recorded
from isonomy.backends.local.engine import UNDELIVERED
from isonomy.sdk.errors import BackendError

kernels = pytest.importorskip("isonomy.kernels")


class Stop(Exception):
    """What a listener raises that has had enough."""


@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_everybody_gets_his_own_answer(model: Any, kit: SimpleNamespace, chunk: int) -> None:
    rng = random.Random(chunk)
    shared = model.prompt(rng, 100)
    asked = [
        (
            model.prompt(rng, 50, shared),
            model.sampling(
                seed=rng.randrange(99),
                max_tokens=rng.randrange(1, 20),
                temperature=rng.choice([0.0, 0.7, 1.5]),
                repetition_penalty=rng.choice([1.0, 1.2]),
            ),
        )
        for _ in range(24)
    ]
    driver = kit.Driver(model.engine(prompt_chunk=chunk, max_running=10, most_ahead=3))
    sequences = [model.running(prompt, sampling) for prompt, sampling in asked]
    driver.submit(*sequences)
    driver.finish()
    for sequence, (_, sampling) in zip(sequences, asked, strict=True):
        model.check(sequence, sampling)
        assert driver.woken.count(sequence) == 1
    assert max(sequence.batch for sequence in sequences) > 1


def test_a_thousand_completions_among_random_neighbours(model: Any, kit: SimpleNamespace) -> None:
    """Threads and coroutines, guesses, shared prefixes, cancellations: one unique result."""
    rng = random.Random(7)
    target = [rng.randrange(3, model.vocab) for _ in range(70)]
    sampling = model.sampling(repetition_penalty=1.1, max_tokens=10, seed=0xFEDCBA9876543210)
    expected = model.plain(target, sampling)
    engine = model.engine(
        prompt_chunk=37,
        max_running=12,
        cache_bytes=1 << 23,
        prefix_cache_bytes=1 << 20,
        most_ahead=2,
    )
    count, callers, loops = 1000, 8, 2
    results: list[Any] = []

    def sequence(rng: random.Random, *, listening: bool) -> Any:
        draft = rng.choice([None, None, PromptLookup(), Recorded(target, expected[0].ids)])
        return model.running(target, sampling, draft=draft, listening=listening)

    def neighbour(rng: random.Random, *, listening: bool) -> tuple[Any, Any]:
        drawn = model.sampling(seed=rng.randrange(5), max_tokens=rng.randrange(1, 30))
        prompt = model.prompt(rng, 80, target)
        return model.running(prompt, drawn, listening=listening), drawn

    def caller(number: int) -> None:
        rng = random.Random(number)
        for _ in range(count // 2 // callers):
            if rng.random() < 0.3:
                other, drawn = neighbour(rng, listening=True)
                left = rng.randrange(1, 6)

                def enough(_: str, seen: list[None] = [], left: int = left) -> None:  # noqa: B006
                    seen.append(None)
                    if len(seen) >= left:
                        seen.clear()
                        raise Stop

                try:
                    engine.run(other, enough)
                except Stop:
                    pass
                else:
                    model.check(other, drawn)
            pieces: list[str] = []
            listening = rng.random() < 0.5
            mine = sequence(rng, listening=listening)
            engine.run(mine, pieces.append if listening else None)
            if listening:
                assert "".join(pieces) == expected[1]
            results.append(kit.outcome(mine))

    async def one(rng: random.Random) -> None:
        if rng.random() < 0.3:
            other, _ = neighbour(rng, listening=False)
            task = asyncio.create_task(engine.arun(other))
            for _ in range(rng.randrange(4)):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        mine = sequence(rng, listening=True)
        pieces: list[str] = []
        await engine.arun(mine, pieces.append)
        assert "".join(pieces) == expected[1]
        results.append(kit.outcome(mine))

    async def all_of(number: int) -> None:
        each = count // 2 // loops
        await asyncio.gather(*(one(random.Random(f"{number}.{i}")) for i in range(each)))

    with ThreadPoolExecutor(callers + loops) as pool:
        jobs = [pool.submit(caller, number) for number in range(callers)]
        jobs += [pool.submit(lambda n=n: asyncio.run(all_of(n))) for n in range(loops)]
        for job in jobs:
            job.result()
    assert len(results) >= 2 * (count // 2 // callers * callers)
    assert all(result == expected for result in results)
    assert not engine._running
    assert not engine._waiting
    assert not engine._calls


def test_rows_of_a_pass(model: Any, kit: SimpleNamespace) -> None:
    """Prompts share a chunk in the order of arrival; who decodes gets a row in every pass."""
    decoder = kit.Watched(model.decoder)
    driver = kit.Driver(model.engine(decoder, prompt_chunk=20, prefix_cache_bytes=0))
    short = model.running([5, 6, 7], model.sampling(max_tokens=30))
    long = model.running([9] * 90, model.sampling(max_tokens=3))
    other = model.running([8, 7], model.sampling(max_tokens=30))
    driver.submit(short, long, other)
    driver.finish()
    rows = decoder.passes
    # short first; long takes what it leaves of the chunk; other comes when long is nearly read
    assert rows[:6] == [[3, 17], [1, 20], [1, 20], [1, 20], [1, 13, 2], [1, 1, 1]]
    assert all(sum(row for row in each if row > 1) <= 20 for each in rows)
    assert len(rows) == 4 + 30  # `other` drew its first token in the fifth pass


@pytest.mark.parametrize("changes", [{}, {"temperature": 0.0}])
def test_steps_ahead_while_there_is_nothing_but_decoding(
    model: Any, kit: SimpleNamespace, changes: dict[str, Any]
) -> None:
    """Several steps are one call of the library then; the answers are those of single steps."""
    decoder = kit.Watched(model.decoder)
    aheads: list[list[int]] = []
    decoder.before = lambda items: aheads.append([item.ahead for item in items])
    driver = kit.Driver(model.engine(decoder, most_ahead=7, clock=lambda: 0.0))
    sampling = model.sampling(max_tokens=22, **changes)
    whole = model.plain([5, 6, 7], sampling)[0].ids
    ends = (whole[5],)  # one answer ends by a token, within a call
    sequences = [
        model.running([5, 6, 7], sampling),
        model.running([5, 6, 7], sampling, eos_ids=ends),
        model.running([9] * 40, model.sampling(max_tokens=22)),
    ]
    driver.submit(*sequences)
    driver.finish()
    assert kit.outcome(sequences[0]) == model.plain([5, 6, 7], sampling)
    assert kit.outcome(sequences[1]) == model.plain([5, 6, 7], sampling, ends)
    assert kit.outcome(sequences[2]) == model.plain([9] * 40, model.sampling(max_tokens=22))
    assert aheads[0] == [0, 0, 0]  # prompts are read
    assert aheads[1] == [7, 7, 7]
    assert aheads[-1] == [4, 4]  # 22 tokens: 1, then 8, 8, and 5 are left; one has ended
    stopped = model.sampling(
        max_tokens=22, stop=(model.plain([5, 6, 7], sampling)[1][10:13],), **changes
    )
    one = model.running([5, 6, 7], stopped)
    driver.submit(one)
    driver.finish()
    assert one.answer.finish_reason == "stop"
    assert kit.outcome(one) == model.plain([5, 6, 7], stopped)
    late = model.running([3] * 20, sampling)
    alone = model.running([4] * 20, model.sampling(max_tokens=9, repetition_penalty=1.3))
    del aheads[:]
    driver.submit(late, alone)
    driver.finish()
    assert not any(map(any, aheads[:9]))  # a penalty wants to know what was drawn
    assert kit.outcome(late) == model.plain([3] * 20, sampling)


def test_places_are_given_in_the_order_of_arrival(model: Any, kit: SimpleNamespace) -> None:
    """Whoever needs much memory is not overtaken for ever by those who need little."""
    small, large = model.decoder.cache_bytes(40), model.decoder.cache_bytes(1000)
    assert small < large
    driver = kit.Driver(model.engine(cache_bytes=large, prefix_cache_bytes=0))
    first = model.running([5] * 10, model.sampling(max_tokens=30))
    big = model.running([6] * 970, model.sampling(max_tokens=30))
    late = [model.running([7 + i] * 10, model.sampling(max_tokens=30)) for i in range(3)]
    driver.submit(first, big, *late)
    driver.step()
    assert driver.engine._running == [first]
    assert driver.engine._waiting == [big, *late]
    while not first.finished:
        driver.step()
    driver.step()
    assert driver.engine._running == [big]
    driver.finish()
    for sequence in (first, big, *late):
        model.check(sequence, model.sampling(max_tokens=30))
    assert late[2].batch == 3


def test_memory_stays_within_its_bound(model: Any, kit: SimpleNamespace) -> None:
    decoder = kit.Watched(model.decoder)
    limit = 3 * model.decoder.cache_bytes(300)
    gc.collect()  # what other tests left behind
    others = model.decoder.cache_in_use
    engine = model.engine(decoder, cache_bytes=limit, prefix_cache_bytes=limit // 2)
    rng = random.Random(3)
    shared = model.prompt(rng, 250)
    asked = [
        (model.prompt(rng, 200, shared), model.sampling(seed=i, max_tokens=20)) for i in range(40)
    ]
    with ThreadPoolExecutor(10) as pool:
        sequences = [model.running(*one) for one in asked]
        list(pool.map(engine.run, sequences))
    for sequence, (_, sampling) in zip(sequences, asked, strict=True):
        model.check(sequence, sampling)
    assert 0 < decoder.memory - others <= limit
    assert engine._prefixes.bytes <= limit // 2
    engine.close()
    assert model.decoder.cache_in_use == others


def test_who_can_never_fit_is_told_so_at_once(model: Any) -> None:
    limit = model.decoder.cache_bytes(100)
    engine = model.engine(cache_bytes=limit)
    with pytest.raises(TooLarge, match=rf"cache_bytes is {limit}\. Raise cache_bytes") as caught:
        engine.run(model.running([5] * 100, model.sampling(max_tokens=200)))
    error = caught.value
    assert (error.tokens, error.limit) == (300, limit)
    assert error.needed == model.decoder.cache_bytes(300) > limit
    with pytest.raises(TooLarge):
        asyncio.run(engine.arun(model.running([5] * 100, model.sampling(max_tokens=200))))
    fits = model.running([5] * 50, model.sampling())
    engine.run(fits)
    model.check(fits, model.sampling())


def test_too_many_calls_are_refused(model: Any, kit: SimpleNamespace) -> None:
    driver = kit.Driver(model.engine(max_running=2, max_waiting=3))
    first = [model.running([5 + i], model.sampling()) for i in range(5)]
    driver.submit(*first)
    with pytest.raises(Overloaded, match=r"5 calls \(max_concurrent 2 and max_waiting 3\)"):
        driver.engine.run(model.running([4], model.sampling()))
    with pytest.raises(Overloaded):
        asyncio.run(driver.engine.arun(model.running([4], model.sampling())))
    driver.step()
    driver.leave(first[3])
    late = model.running([4], model.sampling())
    driver.submit(late)
    driver.finish()
    for sequence in (*first[:3], first[4], late):
        model.check(sequence, model.sampling())
    assert not first[3].steps


@pytest.mark.parametrize("when", ["waiting", "reading", "writing"])
def test_who_leaves_is_gone_at_the_next_step(model: Any, kit: SimpleNamespace, when: str) -> None:
    gc.collect()  # what other tests left behind
    before = model.decoder.cache_in_use
    driver = kit.Driver(model.engine(prefix_cache_bytes=0, max_running=2, prompt_chunk=30))
    stays = model.running([5] * 20, model.sampling(max_tokens=40))
    leaves = model.running([6] * (200 if when == "reading" else 8), model.sampling(max_tokens=40))
    driver.submit(stays)
    if when == "waiting":
        driver.submit(model.running([7], model.sampling(max_tokens=40)))
    driver.submit(leaves)
    driver.step(3)
    assert (leaves.session is None) == (when == "waiting")
    assert bool(leaves.steps) == (when == "writing")
    driver.leave(leaves)
    assert leaves.session is None
    assert leaves not in (*driver.engine._running, *driver.engine._waiting)
    driver.finish()
    model.check(stays, model.sampling(max_tokens=40))
    assert model.decoder.cache_in_use == before


def test_a_reader_who_stops_is_passed_over(model: Any, kit: SimpleNamespace) -> None:
    sampling = model.sampling(max_tokens=400)
    driver = kit.Driver(model.engine())
    slow = model.running([5] * 20, sampling, listening=True)
    quick = model.running([6] * 20, sampling)
    driver.submit(slow, quick)
    driver.finish()
    assert quick.finished
    assert not slow.finished
    assert slow.undelivered == UNDELIVERED
    assert not driver.step()  # nothing to do before he reads
    slow.delivered += 10
    assert driver.finish() >= 10
    assert slow.undelivered == UNDELIVERED
    while not slow.finished:
        slow.delivered = len(slow.answer.given)
        driver.finish()
    for sequence in (slow, quick):
        model.check(sequence, sampling)


@pytest.mark.parametrize("kept", [0, 1 << 24])
@pytest.mark.parametrize("scarce", ["memory", "places"])
def test_a_reader_who_stops_makes_room(
    model: Any, kit: SimpleNamespace, scarce: str, kept: int
) -> None:
    """His sequence is put aside when somebody else needs the room, and goes on afterwards."""
    sampling = model.sampling(max_tokens=200)
    limits = {
        "memory": {"cache_bytes": model.decoder.cache_bytes(220)},
        "places": {"max_running": 1},
    }[scarce]
    driver = kit.Driver(model.engine(prefix_cache_bytes=kept, **limits))
    slow = model.running([5] * 20, sampling, listening=True)
    quick = model.running([6] * 20, sampling)
    driver.submit(slow, quick)
    driver.finish()
    assert quick.finished
    assert slow.session is None
    while not slow.finished:
        slow.delivered = len(slow.answer.given)
        driver.finish()
    for sequence in (slow, quick):
        model.check(sequence, sampling)


def test_a_thread_that_stops_reading_stalls_nobody(model: Any) -> None:
    engine = model.engine(max_running=1, prefix_cache_bytes=0)
    sampling = model.sampling(max_tokens=300)
    reads, may_read = threading.Event(), threading.Event()
    pieces: list[str] = []

    def stuck(piece: str) -> None:
        pieces.append(piece)
        reads.set()
        may_read.wait()

    slow = model.running([5] * 20, sampling, listening=True)
    with ThreadPoolExecutor(1) as pool:
        job = pool.submit(engine.run, slow, stuck)
        reads.wait()
        for i in range(3):
            quick = model.running([6 + i] * 20, sampling)
            engine.run(quick)
            model.check(quick, sampling)
        assert len(pieces) == 1
        assert slow.undelivered <= UNDELIVERED
        may_read.set()
        job.result()
    model.check(slow, sampling)
    assert "".join(pieces) == model.plain([5] * 20, sampling)[1]


def test_an_error_is_of_the_sequence_that_it_is_about(model: Any, kit: SimpleNamespace) -> None:
    decoder = kit.Watched(model.decoder)
    errors = [
        kernels.NonFiniteError("not finite", layer=1, where="layer 1"),
        kernels.ArgumentError("the mask admits nothing"),
    ]
    good = [model.running([5 + i] * 9, model.sampling()) for i in range(3)]
    bad = [model.running([50 + i] * 9, model.sampling()) for i in range(2)]
    step = decoder.step

    def failing(items: Any) -> list[Any]:
        results = step(items)
        for at, item in enumerate(items):
            for sequence, error in zip(bad, errors, strict=True):
                if item.session is sequence.session and len(sequence.steps) == 4:
                    results[at] = error
        return results

    decoder.step = failing
    driver = kit.Driver(model.engine(decoder))
    driver.submit(*good, *bad)
    driver.finish()
    for sequence in good:
        model.check(sequence, model.sampling())
    assert isinstance(bad[0].error, NonFinite)
    assert bad[0].error.layer == 1
    assert isinstance(bad[1].error, BackendError)
    assert "mask admits nothing" in str(bad[1].error)
    assert all(len(sequence.steps) == 4 for sequence in bad)


def test_a_pass_that_fails_as_a_whole_fails_for_nobody_else(
    model: Any, kit: SimpleNamespace
) -> None:
    decoder = kit.Watched(model.decoder)
    bad = model.running([50] * 9, model.sampling())
    good = [model.running([5 + i] * 9, model.sampling()) for i in range(3)]

    def no_memory(items: Any) -> None:
        if any(item.session is bad.session for item in items):
            raise kernels.OutOfMemoryError("no memory")

    decoder.before = no_memory
    driver = kit.Driver(model.engine(decoder))
    driver.submit(*good, bad)
    driver.finish()
    for sequence in good:
        model.check(sequence, model.sampling())
    assert isinstance(bad.error, BackendError)
    with pytest.raises(BackendError, match="no memory"):
        model.engine(decoder).run(_again(model, bad, decoder))


def _again(model: Any, bad: Any, decoder: Any) -> Any:
    again = model.running([50] * 9, model.sampling())

    def no_memory(items: Any) -> None:
        raise kernels.OutOfMemoryError("no memory")

    decoder.before = no_memory
    return again


def test_where_memory_is_short_what_is_kept_goes_first(model: Any, kit: SimpleNamespace) -> None:
    decoder = kit.Watched(model.decoder)
    engine = model.engine(decoder)
    engine.run(model.running([5] * 40, model.sampling()))
    assert len(engine._prefixes) == 1

    def no_memory(items: Any) -> None:
        if len(engine._prefixes):
            raise kernels.OutOfMemoryError("no memory")

    decoder.before = no_memory
    sequence = model.running([6] * 40, model.sampling())
    engine.run(sequence)
    model.check(sequence, model.sampling())
