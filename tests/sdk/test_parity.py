"""Sync and async callers get the same, event for event, whatever the checks do."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.sdk.world import (
    SEED,
    Memory,
    Scripted,
    events_in,
    in_three_ways,
    output_in,
    payloads,
    request_in,
    steady,
)

from isonomy.sdk import (
    Allow,
    AskHuman,
    Block,
    Candidate,
    Critique,
    Flag,
    Guard,
    Message,
    Policy,
    Replace,
    Retry,
    check,
    hookimpl,
)
from isonomy.sdk.records import Intent, Result


def fails(text: str) -> Any:
    raise ValueError(f"can't read {len(text)} characters")


BEHAVIOURS: dict[str, Callable[[str], Any]] = {
    "allow": lambda text: True,
    "block_b": lambda text: "b" not in text,
    "flag": lambda text: Flag("odd", score=0.5) if "c" in text else Allow(),
    "mask_a": lambda text: Replace(text.replace("a", "b")) if "a" in text else True,
    "mask_b": lambda text: Replace(text.replace("b", "a")) if "b" in text else True,
    "human": lambda text: AskHuman("who?") if "e" in text else True,
    "retry": lambda text: Retry("again, d") if "d" not in text else True,
    "fails": fails,
    "nonsense": lambda text: None,
}


class Described(msgspec.Struct, frozen=True):
    """One check of a random policy: what it does, and in which form."""

    behaviour: str
    form: str
    on_error: Any
    stages: tuple[Any, ...]
    term: str = ""

    @property
    def terms(self) -> dict[str, Any]:
        """One of the terms that change how a check is asked."""
        possible = self.term and (self.term != "beside" or "pre_filter" in self.stages)
        return {self.term: True} if possible else {}

    def make(self) -> Any:
        act = BEHAVIOURS[self.behaviour]
        thing: Any
        if self.form == "function":
            thing = lambda text: act(text)  # noqa: E731
        elif self.form == "coroutine":

            async def thing(text: str) -> Any:
                await asyncio.sleep(0)
                return act(text)

        elif self.form == "hooks":

            class Hooks:
                @hookimpl
                def pre_filter(self, messages: tuple[Message, ...], ctx: Any) -> Any:
                    ctx.effect("length", lambda: len(messages))
                    return self._read(act(messages[-1].text))

                @hookimpl
                async def post_validate(self, candidate: Candidate, ctx: Any) -> Any:
                    await ctx.aeffect("nothing", nothing)
                    return self._read(act(candidate.text))

                @hookimpl
                def critique(self, candidate: Candidate) -> Any:
                    return (Critique("short", 1 / (1 + len(candidate.text))),)

                @staticmethod
                def _read(value: Any) -> Any:
                    return {True: Allow(), False: Block("no")}.get(value, value)

            thing = Hooks()
        else:

            class Inline:
                inline = True

                @hookimpl
                def post_validate(self, candidate: Candidate) -> Any:
                    value = act(candidate.text)
                    return None if isinstance(value, bool) else value

            thing = Inline()
            terms: dict[str, Any] = {name: True for name in self.terms if name != "beside"}
            return check(thing, on_error=self.on_error, **terms)
        return check(thing, on_error=self.on_error, stages=self.stages, **self.terms)


async def nothing() -> None:
    await asyncio.sleep(0)


STAGES = st.sampled_from([("pre_filter",), ("post_validate",), ("pre_filter", "post_validate")])
CHECKS = st.lists(
    st.builds(
        Described,
        st.sampled_from(sorted(BEHAVIOURS)),
        st.sampled_from(["function", "coroutine", "hooks", "inline"]),
        st.sampled_from(["block", "allow", "flag"]),
        STAGES,
        st.sampled_from(["", "", "shadow", "read_only", "beside"]),
    ),
    max_size=4,
)


def stored(log: Memory) -> Any:
    """What the log holds of a call, without times and ids."""
    intent, result = log.only(Intent), log.only(Result)
    records = [msgspec.to_builtins(entry.record) for entry in (intent, result)]
    for record in records:
        for name in ("call_id", "session", "subject", "wall_ns", "monotonic_ns", "duration_ns"):
            record.pop(name, None)
        if record.get("token") is not None:
            record["token"] = "drawn"
        for event in record["events"]:
            event.pop("duration_ns")
        for identity in record.get("checks", ()):
            identity.pop("code")
    messages = {
        name: body
        for entry in (intent, result)
        for name, body in payloads(entry).items()
        if name.startswith("message/")
    }
    events = [steady(events_in(entry)) for entry in (intent, result)]
    return records, messages, events, request_in(intent), output_in(result)


@settings(max_examples=60, deadline=None)
@given(CHECKS, st.text("abcde", min_size=1, max_size=3), st.integers(0, 2), st.integers(1, 2))
def test_chat_and_achat_give_the_same_events_records_and_replies(
    described: list[Described], prompt: str, max_rounds: int, candidates: int
) -> None:
    logs: list[Memory] = []

    def make() -> Guard:
        logs.append(Memory())
        policy = Policy(
            [one.make() for one in described], max_rounds=max_rounds, candidates=candidates
        )
        return Guard(Scripted(lambda messages: f"{messages[-1].text} ab"), policy, logs[-1])

    replies = in_three_ways(make, prompt, sampling=SEED)
    told = [
        (steady(reply.events), reply.verdict, reply.check, reply.reason, reply.output, reply.usage)
        for reply in replies
    ]
    assert told[0] == told[1] == told[2]
    kept = [stored(log) for log in logs]
    assert kept[0] == kept[1] == kept[2]
    # What was recorded is what happened.
    recorded = [event for kind in (Intent, Result) for event in events_in(logs[0].only(kind))]
    assert recorded == list(replies[0].events)
    assert [event.sequence for event in recorded] == list(range(len(recorded)))


@settings(max_examples=40, deadline=None)
@given(CHECKS, st.text("abcde", min_size=1, max_size=3), st.integers(1, 2))
def test_whatever_the_checks_do_a_replay_does_again(
    described: list[Described], prompt: str, candidates: int
) -> None:
    policy = Policy([one.make() for one in described], candidates=candidates)
    backend = Scripted(lambda messages: f"{messages[-1].text} ab")
    with TemporaryDirectory() as folder, Guard(backend, policy, log=f"{folder}/log") as guard:
        reply = guard.chat(prompt)
        replayed = guard.replay(reply.call_id)
        assert replayed.status == "verified", replayed.sentence()
        if reply.token is not None:
            resumed = guard.resume(reply.token, "approve")
            replayed = guard.replay(resumed.call_id)
            assert replayed.status == "verified", replayed.sentence()
