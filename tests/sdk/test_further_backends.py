"""What plugins ask of models: the guard's further backends by name, forms, and log-probabilities.

`Counting` is deterministic: a replay asks it again, and compares bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.sdk.world import SEED, Memory, Scripted, in_three_ways, of_type, steady, told

from isonomy.replay import replay_call
from isonomy.sdk import (
    Allow,
    BackendError,
    Candidate,
    ConfigError,
    Flag,
    Guard,
    Policy,
    Sampling,
    check,
    hookimpl,
)
from isonomy.sdk.events import BackendFailed, Failed, Generated, Scored
from isonomy.sdk.generation import Generation, Identity, Request
from isonomy.sdk.records import Intent


class Counting(Scripted):
    """Counts what it is asked; scores a label by its length. Deterministic where it is told so."""

    def __init__(
        self, name: str = "counting", deterministic: bool = True, shift: float = 0
    ) -> None:
        super().__init__(lambda messages: f"{name}: {len(messages[-1].text)}")
        self.name, self.deterministic, self.shift = name, deterministic, shift
        self.scored: list[tuple[str, ...]] = []

    def identity(self) -> Identity:
        return Identity(
            provider="counting", model=self.name, spec=f"counting:{self.name}",
            deterministic=self.deterministic, artefacts={"model": f"sha256:{self.name}"},
        )  # fmt: skip

    def logprobs(self, request: Request, labels: tuple[str, ...]) -> tuple[float, ...]:
        self.scored.append(labels)
        return tuple(-len(label) / 7 - self.shift for label in labels)


class Judge:
    """Asks a judge for an answer of some form, and how likely it finds each of two labels."""

    def __init__(self, backend: str | None = "judge") -> None:
        self.backend = backend

    @hookimpl
    def post_validate(self, candidate: Candidate, ctx: Any) -> Any:
        found = ctx.generate(
            f"judge: {candidate.text}", sampling=Sampling(max_tokens=4),
            response_format={"type": "json_object"}, backend=self.backend,
        )  # fmt: skip
        scores = ctx.logprobs("yes or no?", ["yes", "no"], backend=self.backend)
        return Flag(f"{found.text} {scores}")


class AsyncJudge(Judge):
    @hookimpl
    async def post_validate(self, candidate: Candidate, ctx: Any) -> Any:
        found = await ctx.agenerate(
            f"judge: {candidate.text}", sampling=Sampling(max_tokens=4),
            response_format={"type": "json_object"}, backend=self.backend,
        )  # fmt: skip
        scores = await ctx.alogprobs("yes or no?", ["yes", "no"], backend=self.backend)
        return Flag(f"{found.text} {scores}")


@pytest.mark.parametrize("judge", [Judge, AsyncJudge])
def test_a_plugin_asks_a_further_backend(judge: type[Judge]) -> None:
    main, other = Scripted(), Counting()
    replies = in_three_ways(
        lambda: Guard(main, [check(judge(), id="judge")], backends={"judge": other}, sampling=SEED),
        "hello",
    )
    assert steady(replies[0].events) == steady(replies[1].events) == steady(replies[2].events)
    own, nested = of_type(replies[0], Generated)
    assert (own.backend, nested.backend) == (None, "judge")
    assert (own.response_format, nested.response_format) == (None, {"type": "json_object"})
    assert nested.sampling == Sampling(max_tokens=4, seed=7, candidate=nested.candidate)
    (scored,) = of_type(replies[0], Scored)
    assert (scored.labels, scored.logprobs, scored.backend) == (
        ("yes", "no"), (-3 / 7, -2 / 7), "judge",
    )  # fmt: skip
    assert replies[0].reason == f"counting: 22 {scored.logprobs}"
    assert len(main.requests) == 3
    assert other.requests[0].response_format == {"type": "json_object"}


def test_further_backends_stand_in_the_record(tmp_path: Path) -> None:
    log = Memory()
    with Guard(Scripted(), [Judge()], log, backends={"judge": Counting()}) as guard:
        guard.chat("hello")
    record = log.only(Intent).record
    assert isinstance(record, Intent)
    assert record.backends == {"judge": Counting().identity()}


@pytest.mark.parametrize("judge", [Judge, AsyncJudge])
@pytest.mark.parametrize(("deterministic", "asked"), [(True, 2), (False, 1)])
def test_a_deterministic_one_computes_again_and_others_are_handed_back(
    tmp_path: Path, judge: type[Judge], deterministic: bool, asked: int
) -> None:
    other = Counting(deterministic=deterministic)
    with Guard(Scripted(), [judge()], log=tmp_path / "l", backends={"judge": other}) as guard:
        reply = guard.chat("hello")
        replayed = guard.replay(reply.call_id)
        assert replayed.status == "verified", replayed.sentence()
        assert (len(other.requests), len(other.scored)) == (asked, asked)
        assert (replayed.reexecuted, replayed.stand_ins) == ((1, 1) if deterministic else (0, 2))
        other.shift = 1e-12  # another bit
        replayed = guard.replay(reply.call_id)
        if not deterministic:
            assert replayed.status == "verified"
            return
        assert replayed.status == "diverged"
        assert replayed.difference is not None
        assert (replayed.difference.type, replayed.difference.where) == ("scored", "logprobs[0]")


@pytest.mark.parametrize(
    ("backends", "said"),
    [({}, "no backend named 'judge'"), ({"judge": Counting("another")}, "not the recorded one")],
)
def test_a_replay_without_the_recorded_model_is_refused(
    tmp_path: Path, backends: Any, said: str
) -> None:
    policy = [Judge()]
    with Guard(Scripted(), policy, log=tmp_path / "l", backends={"judge": Counting()}) as guard:
        call_id = guard.chat("hello").call_id
    with Guard(Scripted(), policy, log=tmp_path / "l", backends=backends) as guard:
        replayed = guard.replay(call_id)
    assert replayed.status == "refused"
    assert said in str(replayed.reason)


class Silent(Counting):
    def logprobs(self, request: Request, labels: tuple[str, ...]) -> tuple[float, ...]:
        raise BackendError("can't tell. Ask for text.", backend="silent")


class Endless(Counting):
    def logprobs(self, request: Request, labels: tuple[str, ...]) -> tuple[float, ...]:
        return (float("-inf"), 0.0)


class Short(Counting):
    def logprobs(self, request: Request, labels: tuple[str, ...]) -> tuple[float, ...]:
        return (0.0,)


@pytest.mark.parametrize("backend", [Scripted, Silent, Endless, Short])
def test_a_backend_that_can_t_tell_says_nothing(tmp_path: Path, backend: Any) -> None:
    seen: list[Any] = []

    class Ask:
        @hookimpl
        def pre_filter(self, ctx: Any) -> Allow:
            seen.append(ctx.logprobs("yes or no?", ("yes", "no")))
            return Allow()

    with Guard(backend(), [Ask()], log=tmp_path / "log") as guard:
        reply = guard.chat("hello")
        assert guard.replay(reply.call_id).status == "verified"
    assert seen == [None, None]
    assert of_type(reply, Scored)[0].logprobs is None


@pytest.mark.parametrize("labels", [(), "yes", ("yes", ""), ("yes", 5), ("\ud800",)])
def test_labels_are_texts(labels: Sequence[Any]) -> None:
    class Ask:
        @hookimpl
        def pre_filter(self, ctx: Any) -> Allow:
            ctx.logprobs("yes or no?", labels)
            return Allow()

    with Guard(Counting(), [Ask()]) as guard:
        reply = guard.chat("hello")
    assert [e.error for e in of_type(reply, Failed)] == ["InputError"]
    assert of_type(reply, Scored) == []


def test_an_unknown_backend_is_named_with_those_there_are() -> None:
    with Guard(Scripted(), [Judge("jugde")], backends={"judge": Counting()}) as guard:
        reply = guard.chat("hello")
    (failed,) = of_type(reply, Failed)
    assert failed.error == "PluginError"
    assert "no further backend named 'jugde' (it has: judge)" in failed.message
    assert [(e.backend, e.purpose) for e in of_type(reply, BackendFailed)] == [("jugde", "nested")]


def test_what_a_timed_out_check_was_told_is_computed_again(tmp_path: Path) -> None:
    import time

    class Hang:
        @hookimpl
        def post_validate(self, ctx: Any) -> Allow:
            ctx.generate("first", backend="judge", response_format={"type": "json_object"})
            ctx.logprobs("yes or no?", ("yes", "no"), backend="judge")
            time.sleep(1.0)
            return Allow()

    other = Counting()
    policy = [check(Hang(), id="hang", timeout=0.1)]
    with Guard(Scripted(), policy, log=tmp_path / "log", backends={"judge": other}) as guard:
        reply = guard.chat("hello")
        assert [line[0] for line in told(reply.events)] == [
            "generated", "generated", "scored", "failed",
        ]  # fmt: skip
        replayed = guard.replay(reply.call_id)
        assert replayed.status == "verified", replayed.sentence()
        assert [r.response_format for r in other.requests] == [{"type": "json_object"}] * 2
        assert len(other.scored) == 2


def test_a_guard_opens_and_closes_its_further_backends(tmp_path: Path) -> None:
    other = Counting()
    guard = Guard(Scripted(), backends={"judge": other, "plain": lambda messages: "plain"})
    assert set(guard.backends) == {"judge", "plain"}
    guard.close()
    assert other.closed == 1
    with pytest.raises(ConfigError):
        Guard(Scripted(), backends={"judge": "openai"})


def test_a_log_alone_hands_back_what_a_model_outside_of_it_said(tmp_path: Path) -> None:
    from isonomy.replay import ReplayLog

    class Remote(Counting):
        def generate(self, request: Request, *, on_text: Any = None) -> Generation:
            return super().generate(request)

    policy = [Judge()]
    with Guard(
        Scripted(), policy, log=tmp_path / "log", backends={"judge": Remote(deterministic=False)}
    ) as guard:
        reply = guard.chat("hello")
        stored = ReplayLog(tmp_path / "log").call(reply.call_id)
        assert replay_call(stored, guard=guard).status == "verified"


def test_the_built_in_model_computes_candidates_and_judgements_again(tmp_path: Path) -> None:
    class Graded:
        read_only = True

        @hookimpl
        def post_validate(self, ctx: Any) -> Flag:
            scores = ctx.logprobs("Is it good?", (" yes", " no"), backend="judge")
            words = ctx.generate("Why?", sampling=Sampling(max_tokens=4), backend="judge").text
            return Flag(f"{words}: {scores}")

    policy = Policy(
        [check(Graded(), id="one"), check(Graded(), id="two"), check(lambda t: True, beside=True)],
        candidates=2,
    )
    sampling = Sampling(temperature=1.0, max_tokens=8)
    with Guard(
        "local:demo", policy, tmp_path / "log", backends={"judge": "local:demo"}, sampling=sampling
    ) as guard:
        reply = guard.chat("Hello")
        assert len(of_type(reply, Scored)) == 2
        assert all(e.logprobs is not None for e in of_type(reply, Scored))
        for regenerate in (False, True):
            replayed = guard.replay(reply.call_id, regenerate=regenerate)
            assert replayed.status == "verified", replayed.sentence()
            assert (replayed.reexecuted, replayed.stand_ins) == (4, 0)
