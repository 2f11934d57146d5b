from __future__ import annotations

import asyncio
import os
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from isonomy.sdk import Guard, Reply, asking, check, on_input
from isonomy.sdk.workers import Workers, WorkersExhausted


@pytest.fixture
def workers() -> Any:
    made = Workers(size=2, abandoned=2)
    yield made
    made.close()


def stick(workers: Workers, release: threading.Event) -> Future[Any]:
    """Occupy a worker until `release`, and give up on it."""
    running = threading.Event()

    def stuck() -> bool:
        running.set()
        return release.wait(30)

    future = workers.submit(stuck)
    assert running.wait(5)
    workers.abandon(future)
    return future


def test_work_is_done_on_at_most_size_threads(workers: Workers) -> None:
    threads: set[Any] = set()

    def work() -> None:
        threads.add(threading.current_thread())
        time.sleep(0.001)

    for future in [workers.submit(work) for _ in range(40)]:
        future.result(5)
    assert 1 <= len(threads) <= 2
    assert all(thread.daemon for thread in threads)


def test_an_idle_worker_is_used_again(workers: Workers) -> None:
    threads = set()
    for _ in range(20):
        threads.add(workers.submit(threading.get_ident).result(5))
        time.sleep(0.002)  # until it is idle
    assert len(threads) <= 2


def test_stuck_workers_are_replaced_and_then_refused(workers: Workers) -> None:
    release = threading.Event()
    stuck = [stick(workers, release)]
    assert workers.submit(lambda: 1).result(5) == 1
    stuck.append(stick(workers, release))
    with pytest.raises(WorkersExhausted, match="2 checks never returned"):
        workers.submit(lambda: 1)

    async def nothing() -> None: ...

    with pytest.raises(WorkersExhausted):
        workers.spawn(nothing())
    release.set()
    for future in stuck:
        assert future.result(5) is True
    deadline = time.monotonic() + 5
    while True:  # those that came back make room again
        try:
            assert workers.submit(lambda: 1).result(5) == 1
            break
        except WorkersExhausted:
            assert time.monotonic() < deadline
            time.sleep(0.005)


def test_more_stuck_than_size_still_leaves_a_worker() -> None:
    workers, release = Workers(size=1, abandoned=3), threading.Event()
    for _ in range(2):
        stick(workers, release)
        assert workers.submit(lambda: 1).result(5) == 1
    release.set()
    workers.close()


def test_a_job_that_never_began_is_cancelled(workers: Workers) -> None:
    release, ran = threading.Event(), []
    busy = [workers.submit(lambda: release.wait(30)) for _ in range(2)]
    queued = workers.submit(lambda: ran.append(1))
    workers.abandon(queued)
    release.set()
    for future in busy:
        future.result(5)
    assert queued.cancelled()
    assert workers.submit(lambda: 1).result(5) == 1
    assert ran == []


@pytest.mark.parametrize("error", [ValueError("x"), SystemExit(1), StopIteration(1)])
def test_a_worker_survives_what_its_job_raises(error: BaseException) -> None:
    workers = Workers(size=1)

    def raising() -> None:
        raise error

    with pytest.raises((ValueError, RuntimeError)) as caught:
        workers.submit(raising).result(5)
    assert error in (caught.value, caught.value.__cause__)
    assert workers.submit(lambda: 1).result(5) == 1
    workers.close()


def test_coroutines_share_one_loop(workers: Workers) -> None:
    async def loop() -> int:
        return id(asyncio.get_running_loop())

    assert len({workers.spawn(loop()).result(5) for _ in range(3)}) == 1


def test_an_abandoned_coroutine_is_cancelled(workers: Workers) -> None:
    started, ended = threading.Event(), threading.Event()

    async def long() -> None:
        started.set()
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()

    future = workers.spawn(long())
    assert started.wait(5)
    workers.abandon(future)
    assert ended.wait(5)
    assert future.cancelled()


def test_a_blocked_loop_is_replaced_and_closes_when_it_comes_back(workers: Workers) -> None:
    release, started = threading.Event(), threading.Event()
    loops: list[asyncio.AbstractEventLoop] = []

    async def blocking() -> None:
        loops.append(asyncio.get_running_loop())
        started.set()
        release.wait(30)

    async def fine() -> asyncio.AbstractEventLoop:
        return asyncio.get_running_loop()

    future = workers.spawn(blocking())
    assert started.wait(5)
    workers.abandon(future)
    assert workers.spawn(fine()).result(5) is not loops[0]
    release.set()
    deadline = time.monotonic() + 5
    while not loops[0].is_closed():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_others_on_a_blocked_loop_still_get_their_answers(workers: Workers) -> None:
    release, started = threading.Event(), threading.Event()

    async def patient() -> int:
        while not release.is_set():
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.01)
        return 1

    async def blocking() -> None:
        started.set()
        release.wait(30)

    other, blocked = workers.spawn(patient()), workers.spawn(blocking())
    assert started.wait(5)
    workers.abandon(blocked)
    release.set()
    assert other.result(5) == 1


def test_a_slow_coroutine_that_awaits_does_not_cost_the_loop(
    workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("isonomy.sdk.workers._HEARTBEAT", 10.0)  # however busy the machine

    async def loop(seconds: float = 0) -> asyncio.AbstractEventLoop:
        await asyncio.sleep(seconds)
        return asyncio.get_running_loop()

    before = workers.spawn(loop()).result(5)
    workers.abandon(workers.spawn(loop(60)))
    assert workers.spawn(loop()).result(5) is before


def test_closing_ends_pending_coroutines_and_closes_the_loop() -> None:
    workers, ended = Workers(), threading.Event()
    loops: list[asyncio.AbstractEventLoop] = []
    started = threading.Event()

    async def long() -> None:
        loops.append(asyncio.get_running_loop())
        started.set()
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()

    workers.spawn(long())
    assert started.wait(5)
    workers.close()
    assert ended.wait(5)
    deadline = time.monotonic() + 5
    while not loops[0].is_closed():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform can't fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_everything_starts_anew_after_a_fork() -> None:
    workers, release = Workers(size=1, abandoned=1), threading.Event()

    async def one() -> int:
        return 1

    assert workers.submit(lambda: 1).result(5) == workers.spawn(one()).result(5) == 1
    stick(workers, release)  # the child has no worker left, were nothing reset
    child = os.fork()
    if child == 0:
        status = 1
        try:
            done = workers.submit(lambda: 1).result(5) + workers.spawn(one()).result(5)
            workers.close()
            status = 0 if done == 2 else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    release.set()
    workers.close()


def test_the_deadline_of_a_check_counts_from_when_a_worker_takes_it_up() -> None:
    """Many calls at a time wait for their turn; that is no fault of the check."""

    def slow(text: str) -> bool:
        time.sleep(0.1)
        return True

    async def many() -> list[Reply]:
        return list(await asyncio.gather(*[guard.achat("x") for _ in range(32)]))

    def one(_: int) -> Reply:
        return guard.chat("x")

    with Guard(lambda messages: "ok", [on_input(slow, timeout=0.25)]) as guard:
        assert [reply.reason for reply in asyncio.run(many()) if reply.blocked] == []
        with ThreadPoolExecutor(32) as threads:
            assert not any(reply.blocked for reply in threads.map(one, range(32)))


@pytest.mark.parametrize("terms", [{"read_only": True}, {"beside": True}])
def test_what_a_wrapper_returns_runs_while_others_are_waited_for(terms: Any) -> None:
    async def quick(text: str) -> bool:
        await asyncio.sleep(0.01)
        return True

    def slow(_: Any) -> Any:
        time.sleep(0.4)
        return "ok" if terms == {"beside": True} else True

    policy = [check(lambda text: quick(text), stages=("pre_filter",), timeout=0.2, **terms)]
    if terms == {"read_only": True}:
        policy.insert(0, check(slow, stages=("pre_filter",), **terms))
    with Guard(slow if "beside" in terms else lambda messages: "ok", policy) as guard:
        for reply in (guard.chat("x"), asyncio.run(guard.achat("x"))):
            assert reply.verdict == "allow", reply.reason


def test_who_waits_for_a_worker_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "_QUEUED", 0.1)
    release = threading.Event()
    with Guard(lambda messages: "ok", [on_input(lambda text: True, timeout=0.05)]) as guard:
        held = [guard._workers.submit(lambda: release.wait(30)) for _ in range(8)]
        for reply in (guard.chat("x"), asyncio.run(guard.achat("x"))):
            assert (reply.verdict, reply.check) == ("block", "check")
            assert reply.reason is not None
            assert "no worker was free" in reply.reason
        release.set()
        for future in held:
            future.result(5)
        assert guard.chat("x").verdict == "allow"


@pytest.mark.parametrize("harm", ["stop", "exit"])
def test_a_check_can_not_end_the_loop_that_it_runs_on(harm: str) -> None:
    async def leave() -> None:
        raise SystemExit(3)

    async def harming(text: str) -> bool:
        loop = asyncio.get_running_loop()
        if text == "stop":
            loop.stop()
        if text == "exit":
            loop.create_task(leave()).add_done_callback(asyncio.Task.exception)
        await asyncio.sleep(0.01)
        return True

    with Guard(lambda messages: "ok", [on_input(harming, timeout=5.0)]) as guard:
        for text in ("x", harm, "x"):
            assert guard.chat(text).verdict == "allow", text
