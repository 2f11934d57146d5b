"""The guard as a whole: what it takes, how it is used from threads and loops, how it ends."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from tests.sdk.world import Memory, Scripted, of_type, run

import isonomy.sdk
from isonomy.sdk import (
    ConfigError,
    Guard,
    InputError,
    Message,
    PluginError,
    Policy,
    Replace,
    Sampling,
    on_input,
)
from isonomy.sdk.events import Generated


def test_the_public_names_exist() -> None:
    assert sorted(isonomy.sdk.__all__) == list(isonomy.sdk.__all__)
    for name in isonomy.sdk.__all__:
        assert getattr(isonomy.sdk, name) is not None


def test_a_callable_backend_and_a_callable_policy() -> None:
    def answer(messages: Any) -> str:
        assert messages == [{"role": "user", "content": "hello"}]
        return "hi"

    with Guard(backend=answer, policy=[lambda text: "x" not in text]) as guard:
        reply = guard.chat("hello")
        assert (reply.text, reply.verdict, reply.blocked) == ("hi", "allow", False)
        assert guard.chat("x").blocked


def test_the_guard_s_sampling_the_call_s_sampling_and_a_drawn_seed() -> None:
    backend = Scripted()
    with Guard(backend, sampling=Sampling(temperature=0.5, top_k=3)) as guard:
        replies = [guard.chat("a"), guard.chat("a", sampling=Sampling(temperature=0.0, seed=9))]
    first, second = (request.sampling for request in backend.requests)
    assert (first.temperature, first.top_k) == (0.5, 3)
    assert first.seed is not None
    assert 0 <= first.seed < 2**63
    assert second == Sampling(temperature=0.0, top_k=3, seed=9)
    assert [of_type(reply, Generated)[0].sampling for reply in replies] == [first, second]


def test_the_backend_resolves_what_is_recorded_and_used() -> None:
    class Warm(Scripted):
        def resolve(self, sampling: Sampling) -> Sampling:
            assert sampling.temperature is None
            return Sampling(temperature=0.7, seed=sampling.seed)

    backend = Warm()
    with Guard(backend) as guard:
        reply = guard.chat("a", sampling=Sampling(seed=1))
    assert backend.requests[0].sampling == Sampling(temperature=0.7, seed=1)
    assert of_type(reply, Generated)[0].sampling == Sampling(temperature=0.7, seed=1)


def test_calls_have_ids_sessions_and_subjects_of_their_own_unless_given() -> None:
    log = Memory()
    with Guard(Scripted(), [], log) as guard:
        guard.chat("a")
        guard.chat("a", session="s")
        guard.chat("a", session="s", subject="bob")
    records = [entry.record for entry in log.entries[::2]]
    assert len({record.call_id for record in records}) == 3
    assert (records[0].session, records[0].subject) == (records[0].call_id, records[0].call_id)
    assert [(r.session, r.subject) for r in records[1:]] == [("s", "s"), ("s", "bob")]


def test_many_threads_share_a_guard() -> None:
    log, barrier = Memory(), threading.Barrier(8)

    def mark(text: str) -> Replace:
        return Replace(f"<{text}>")

    with Guard(Scripted(), [on_input(mark)], log) as guard, ThreadPoolExecutor(8) as pool:

        def ask(number: int) -> list[str]:
            barrier.wait()
            return [guard.chat(f"{number}.{i}").text for i in range(20)]

        answers = list(pool.map(ask, range(8)))
    assert answers == [[f"You said: <{n}.{i}>" for i in range(20)] for n in range(8)]
    assert len(log.entries) == 8 * 20 * 2


def test_many_tasks_and_several_loops_share_a_guard() -> None:
    async def slow(text: str) -> bool:
        await asyncio.sleep(0.01)
        return True

    with Guard(Scripted(), [slow]) as guard:

        async def main() -> list[str]:
            replies = await asyncio.gather(*(guard.achat(str(i)) for i in range(20)))
            return [reply.text for reply in replies]

        expected = [f"You said: {i}" for i in range(20)]
        assert run(main()) == expected
        assert run(main()) == expected


def test_context_variables_reach_the_checks() -> None:
    from contextvars import ContextVar

    who: ContextVar[str] = ContextVar("who", default="nobody")
    seen: list[str] = []

    def look(text: str) -> bool:
        seen.append(who.get())
        return True

    async def alook(text: str) -> bool:
        seen.append(who.get())
        return True

    with Guard(Scripted(), [on_input(look), on_input(alook)]) as guard:
        token = who.set("ada")
        guard.chat("hello")
        run(guard.achat("hello"))
        who.reset(token)
    assert seen == ["ada"] * 4


def test_closing_closes_the_backend_and_the_log_once() -> None:
    backend, log = Scripted(), Memory()
    guard = Guard(backend, [], log)
    with guard as entered:
        assert entered is guard
    guard.close()
    assert (backend.closed, log.closed) == (1, 1)
    with pytest.raises(InputError, match="this guard is closed"):
        guard.chat("hello")
    with pytest.raises(InputError, match="this guard is closed"):
        run(guard.achat("hello"))


def test_closing_ends_the_guard_s_threads() -> None:
    async def alook(text: str) -> bool:
        return True

    before = set(threading.enumerate())
    guard = Guard(Scripted(), [on_input(alook), on_input(lambda text: True)])
    guard.chat("hello")
    started = set(threading.enumerate()) - before
    assert {thread.name for thread in started} == {"isonomy-worker", "isonomy-loop"}
    assert all(thread.daemon for thread in started)
    guard.close()
    for thread in started:
        thread.join(5)
        assert not thread.is_alive()


def test_nothing_is_started_before_it_is_needed() -> None:
    before = set(threading.enumerate())
    with Guard(Scripted()) as guard:
        guard.chat("hello")
        assert set(threading.enumerate()) == before


@pytest.mark.parametrize("backend", [5, {"use": "local:demo"}])
def test_what_is_no_backend_is_refused(backend: Any) -> None:
    with pytest.raises(InputError, match="backend must be a spec such as 'local:demo'"):
        Guard(backend)


def test_a_spec_of_an_unknown_backend_is_refused_with_the_nearest() -> None:
    with pytest.raises(PluginError, match="Did you mean 'local'"):
        Guard("locl:demo")
    with pytest.raises(ConfigError, match="'local' names no model"):
        Guard("local")


def test_a_policy_may_be_shared_by_guards() -> None:
    policy = Policy([lambda text: True], refusal="No.")
    with Guard(Scripted(), policy) as one, Guard(Scripted(), policy) as two:
        assert one.policy is two.policy is policy
        assert two.chat([Message.of("user", "a")]).text == "You said: a"


def test_a_wrong_sampling_is_refused_before_anything_is_opened() -> None:
    with pytest.raises(InputError, match=r"sampling\.temperature"):
        Guard("no:such", sampling=Sampling(temperature=float("inf")))
