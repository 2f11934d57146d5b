"""Threads, coroutines and forks that wait for answers, and leave in every possible way."""

from __future__ import annotations

import asyncio
import gc
import itertools
import os
import random
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any

import pytest

from isonomy.backends.local import drafts, engine, leading, prefix, sequence, text
from isonomy.backends.local.drafts import PromptLookup, Recorded

kernels = pytest.importorskip("isonomy.kernels")

PROMPT = [5 + i % 11 for i in range(40)]


class Interrupt(BaseException):
    """Comes in wherever the interrupt of a keyboard can: at the beginning of a function, and after
    every call."""


def interrupted(at: int, run: Any) -> bool:
    """Run, and raise `Interrupt` at the place numbered `at` of the engine; false: it was over."""
    modules = (engine, sequence, prefix, drafts, text, leading)
    files = {module.__file__ for module in modules}
    places = itertools.count()

    def place(frame: FrameType, event: str, _: Any) -> None:
        if (
            event in ("call", "return", "c_return")
            and frame.f_code.co_filename in files
            and next(places) == at
        ):
            sys.setprofile(None)
            raise Interrupt

    sys.setprofile(place)
    try:
        run()
    except Interrupt:
        return True
    finally:
        sys.setprofile(None)
    return False


@pytest.mark.parametrize("part", range(2))
def test_an_interrupted_leader_disturbs_nobody(model: Any, kit: SimpleNamespace, part: int) -> None:
    """Wherever it comes: what was half done is done again, to the same bits."""
    sampling = model.sampling(max_tokens=8, repetition_penalty=1.2, stop=("never",))
    expected = model.plain(PROMPT, sampling)
    at, hits = part, 0
    while True:
        driver = kit.Driver(model.engine(prompt_chunk=16, most_ahead=2))
        others = [
            model.running(PROMPT, sampling, listening=True),
            model.running(PROMPT[:30], sampling, draft=PromptLookup()),
            model.running(PROMPT, sampling, draft=Recorded(PROMPT, expected[0].ids)),
        ]
        driver.submit(*others)
        victim = model.running(PROMPT[:20], sampling, listening=True)
        if not interrupted(at, lambda d=driver, v=victim: d.engine.run(v, lambda _: None)):
            break
        hits += 1
        at += 307
        assert victim not in driver.engine._calls
        driver.finish()
        for other, prompt in zip(others, (PROMPT, PROMPT[:30], PROMPT), strict=True):
            assert kit.outcome(other) == model.plain(prompt, sampling)
        last = model.running(PROMPT, sampling)
        driver.engine.run(last)
        assert kit.outcome(last) == expected
    assert hits > 5


def test_the_next_in_line_takes_over(
    model: Any, kit: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A leader who is interrupted in the middle of everybody's step leaves it to a waiting one."""
    decoder = kit.Watched(model.decoder)
    shared = model.engine(decoder)
    sampling = model.sampling(max_tokens=60)
    leading_now, waiting = threading.Event(), threading.Semaphore(0)
    others = [model.running([6 + i] * 20, sampling) for i in range(4)]
    wait = leading.Follower.wait

    def waits(follower: leading.Follower) -> None:
        waiting.release()
        wait(follower)

    def interrupt(_: Any) -> None:
        leading_now.set()
        for _ in others:
            waiting.acquire()
        decoder.after = lambda _: None
        raise Interrupt

    monkeypatch.setattr(leading.Follower, "wait", waits)
    decoder.after = interrupt
    with ThreadPoolExecutor(5) as pool:
        first = pool.submit(shared.run, model.running([5] * 20, sampling))
        leading_now.wait()
        rest = [pool.submit(shared.run, other) for other in others]
        assert isinstance(first.exception(), Interrupt)
        for job in rest:
            job.result()
    for other in others:
        model.check(other, sampling)


def test_a_listener_that_raises_disturbs_nobody(model: Any) -> None:
    shared = model.engine(max_running=4)
    sampling = model.sampling(max_tokens=30)

    def one(i: int) -> None:
        pieces: list[str] = []

        def listener(piece: str) -> None:
            pieces.append(piece)
            if i % 2:
                raise ValueError(piece)

        running = model.running([5 + i] * 20, sampling, listening=True)
        if i % 2:
            with pytest.raises(ValueError, match=r"."):
                shared.run(running, listener)
            assert len(pieces) == 1
        else:
            shared.run(running, listener)
            model.check(running, sampling)
            assert "".join(pieces) == model.plain([5 + i] * 20, sampling)[1]

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(one, range(32)))
    assert not shared._calls
    assert not shared._running


def test_a_hundred_coroutines_need_one_thread(model: Any) -> None:
    """And no worker of the loop's: those may all be waiting for these very answers."""
    shared = model.engine(max_running=8)
    sampling = model.sampling()
    threads = threading.active_count()
    most = 0

    async def one(i: int) -> None:
        nonlocal most
        running = model.running([5 + i] * 20, sampling, listening=True)
        pieces: list[str] = []
        await shared.arun(running, pieces.append)
        most = max(most, threading.active_count())
        model.check(running, sampling)
        assert "".join(pieces) == model.plain([5 + i] * 20, sampling)[1]

    async def everybody() -> None:
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(2))
        blocked = [
            asyncio.to_thread(lambda i=i: asyncio.run_coroutine_threadsafe(one(i), loop).result())
            for i in range(4)
        ]
        await asyncio.gather(*blocked, *(one(i) for i in range(100)))

    asyncio.run(everybody())
    assert most <= threads + 2 + 1
    join_pumps()


def join_pumps() -> None:
    """Wait for the threads that drove for coroutines: they end by themselves."""
    for thread in threading.enumerate():
        if thread.name == "isonomy.local":
            thread.join(20)
            assert not thread.is_alive()


def test_a_cancelled_coroutine_is_gone(model: Any) -> None:
    gc.collect()
    before = model.decoder.cache_in_use
    shared = model.engine(prefix_cache_bytes=0)
    sampling = model.sampling(max_tokens=400)
    stays = model.running([5] * 20, model.sampling(max_tokens=40))

    async def main() -> None:
        begun = asyncio.Event()
        leaves = model.running([6] * 20, sampling, listening=True)
        task = asyncio.create_task(shared.arun(leaves, lambda _: begun.set()))
        other = asyncio.create_task(shared.arun(stays))
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await other
        assert not leaves.finished

    asyncio.run(main())
    join_pumps()
    model.check(stays, model.sampling(max_tokens=40))
    assert not shared._running
    assert model.decoder.cache_in_use == before


def test_an_abandoned_coroutine_is_gone(model: Any) -> None:
    """Nobody awaits it any more: collected, or its loop closed."""
    shared = model.engine()
    sampling = model.sampling(max_tokens=900)
    loop = asyncio.new_event_loop()
    running = model.running([5] * 20, sampling, listening=True)
    coroutine = shared.arun(running, lambda _: loop.stop())
    task = loop.create_task(coroutine)
    loop.run_forever()
    assert shared._calls
    loop.close()
    join_pumps()  # its first wake-up finds the loop closed
    assert running.given_up
    assert not shared._running
    task._log_destroy_pending = False  # type: ignore[attr-defined]
    del task, coroutine
    gc.collect()
    assert not shared._calls
    again = model.running([5] * 20, model.sampling())
    shared.run(again)
    model.check(again, model.sampling())


def test_a_loop_that_stops_reading_keeps_no_thread(model: Any) -> None:
    """With nothing left to compute the thread ends, and another comes when the loop reads on."""
    shared = model.engine()
    sampling = model.sampling(max_tokens=300)
    slow = model.running([5] * 20, sampling, listening=True)
    reads, may_read = threading.Event(), threading.Event()
    pieces: list[str] = []

    def stuck(piece: str) -> None:
        pieces.append(piece)
        reads.set()
        may_read.wait()

    with ThreadPoolExecutor(1) as pool:
        job = pool.submit(lambda: asyncio.run(shared.arun(slow, stuck)))
        reads.wait()
        join_pumps()
        assert len(pieces) == 1
        assert not slow.finished
        quick = model.running([6] * 20, sampling)
        shared.run(quick)
        model.check(quick, sampling)
        may_read.set()
        job.result()
    model.check(slow, sampling)
    assert "".join(pieces) == model.plain([5] * 20, sampling)[1]


def test_coroutines_of_several_loops_and_threads(model: Any) -> None:
    shared = model.engine(max_running=6)
    sampling = model.sampling()

    async def some(n: int) -> None:
        sequences = [model.running([5 + n + i] * 9, sampling) for i in range(20)]
        await asyncio.gather(*(shared.arun(one) for one in sequences))
        for one in sequences:
            model.check(one, sampling)

    def plain(n: int) -> None:
        for i in range(20):
            one = model.running([5 + n + i] * 9, sampling)
            shared.run(one)
            model.check(one, sampling)

    with ThreadPoolExecutor(6) as pool:
        jobs = [pool.submit(asyncio.run, some(n)) for n in (1, 50, 100)]
        jobs += [pool.submit(plain, n) for n in (1, 50, 150)]
        for job in jobs:
            job.result()
    join_pumps()


def test_a_plain_call_inside_a_running_loop(model: Any) -> None:
    shared = model.engine()

    async def main() -> None:
        other = asyncio.create_task(shared.arun(model.running([6] * 20, model.sampling())))
        await asyncio.sleep(0)
        one = model.running([5] * 20, model.sampling())
        shared.run(one)  # blocks the loop, as was asked for
        model.check(one, model.sampling())
        await other

    asyncio.run(main())


def test_a_listener_may_ask_the_same_engine(model: Any) -> None:
    shared = model.engine(max_running=2)
    asked: list[Any] = []

    def listener(_: str) -> None:
        if not asked:
            asked.append(model.running([6] * 20, model.sampling()))
            shared.run(asked[0])

    one = model.running([5] * 20, model.sampling(), listening=True)
    shared.run(one, listener)
    for running in (one, *asked):
        model.check(running, model.sampling())


def child(run: Any) -> int:
    """Fork; the exit status of the child, which is 0 where `run` gave true."""
    pid = os.fork()
    if not pid:
        try:
            os._exit(0 if run() else 1)
        finally:
            os._exit(2)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_forks_while_others_compute(model: Any, kit: SimpleNamespace) -> None:
    shared = model.engine(max_running=4)
    sampling = model.sampling(max_tokens=30)
    expected = model.plain([5] * 20, sampling)
    done = threading.Event()
    rng = random.Random(1)

    def busy(n: int) -> None:
        for i in itertools.count():
            if done.is_set():
                return
            shared.run(model.running([n + i % 40] * 50, sampling))

    def here() -> bool:
        again = model.running([5] * 20, sampling)
        shared.run(again)
        alone = not shared._calls and not shared._running

        async def loop() -> Any:
            one = model.running([5] * 20, sampling)
            await shared.arun(one)
            return kit.outcome(one)

        return alone and kit.outcome(again) == expected == asyncio.run(loop())

    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(busy, 5 + 40 * n) for n in range(4)]
        try:
            for _ in range(12):
                one = model.running([rng.randrange(3, 200)] * 20, sampling)
                shared.run(one)
                model.check(one, sampling)
                assert child(here) == 0
        finally:
            done.set()
        for job in jobs:
            job.result()


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_listener_forks_and_both_go_on(model: Any, kit: SimpleNamespace) -> None:
    shared = model.engine()
    sampling = model.sampling(max_tokens=30)
    expected = model.plain([5] * 20, sampling)
    other = model.running([6] * 20, sampling)
    pid = -1

    def listener(_: str) -> None:
        nonlocal pid
        if pid < 0:
            pid = os.fork()

    def waits() -> None:
        shared.run(other)

    one = model.running([5] * 20, sampling, listening=True)
    thread = threading.Thread(target=waits)
    thread.start()
    try:
        shared.run(one, listener)
        if not pid:
            os._exit(0 if kit.outcome(one) == expected and not shared._running else 1)
    finally:
        if not pid:
            os._exit(2)
    thread.join()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert kit.outcome(one) == expected
    model.check(other, sampling)


SCRIPT = """
import asyncio, sys, threading
from isonomy.backends.local import Local
from isonomy.sdk.generation import Request, Sampling
from isonomy.sdk.vocabulary import Message

backend = Local(sys.argv[1])
request = Request(messages=(Message.of("user", "Hello"),), sampling=Sampling(max_tokens=200))
begun = threading.Event()

def run():
    async def main():
        await asyncio.gather(*(backend.agenerate(request, on_text=lambda _: begun.set())
                               for _ in range(5)))
    asyncio.run(main())

threading.Thread(target=run, daemon=True).start()
threading.Thread(
    target=lambda: backend.generate(request, on_text=lambda _: begun.set()), daemon=True
).start()
begun.wait()
print("over")
"""


def test_the_interpreter_exits_while_answers_are_computed(shared_checkpoint: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(shared_checkpoint)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "over\n", "")
