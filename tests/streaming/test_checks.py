"""Checks in mid-stream: their timeouts, failures, threads and loops; checks beside the model."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import pytest
from tests.sdk.world import Memory, run, steady, told
from tests.streaming.world import SEED, Pieces, aread, passing, read, released

from isonomy.sdk import AskHuman, Block, Candidate, Flag, Guard, Replace, Retry, check, hookimpl
from isonomy.sdk.policy import REFUSAL

TEXT = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen " * 3
CUTS = range(0, 300, 16)


@pytest.fixture(params=["stream", "astream"])
def reading(request: pytest.FixtureRequest) -> Any:
    if request.param == "stream":
        return read
    return lambda guard, log=None: run(aread(guard, log))


def output(function: Any, **terms: Any) -> Any:
    return check(function, id="c", stages=("post_validate",), **{"lookback": 0, **terms})


def hangs_once(seconds: float, longer_than: int) -> Any:
    """Hangs once, at a text that is longer, and is quick again then."""
    hung: list[int] = []

    def function(text: str) -> bool:
        if len(text) > longer_than and not hung:
            hung.append(len(text))
            time.sleep(seconds)
        return True

    return function


def test_a_check_that_hangs_in_mid_stream_holds_the_rest_back(reading: Any) -> None:
    log = Memory()
    function = hangs_once(0.6, 70)
    with Guard(Pieces([TEXT], CUTS), [output(function, timeout=0.1)], log) as guard:
        pieces, reply = reading(guard, log)
    assert "".join(pieces) == reply.text == TEXT
    assert len(pieces[-1]) >= len(TEXT) - 64  # what was judged in time had left, the rest waited
    assert told(reply.events) == [
        ("generated", "generate", "-", "-"),
        ("judged", "post_validate", "c", "allow"),
    ]


def test_an_async_check_that_hangs_in_mid_stream_holds_the_rest_back(reading: Any) -> None:
    hung: list[int] = []

    async def function(text: str) -> bool:
        if len(text) > 70 and not hung:
            hung.append(len(text))
            await asyncio.sleep(30)
        return True

    with Guard(Pieces([TEXT], CUTS), [output(function, timeout=0.1)]) as guard:
        pieces, reply = reading(guard)
    assert ("".join(pieces), reply.verdict) == (TEXT, "allow")
    assert len(pieces[-1]) >= len(TEXT) - 64


@pytest.mark.parametrize(
    "odd",
    [
        lambda text: 1 / 0,
        lambda text: None,
        lambda text: "yes",
        lambda text: Replace(7),  # type: ignore[arg-type]
        lambda text: Replace((7,)),  # type: ignore[arg-type]
        lambda text: Block("no"),
        lambda text: Retry("again"),
        lambda text: AskHuman("hm"),
        lambda text: False,
    ],
)
def test_whatever_is_no_consent_holds_the_rest_back(reading: Any, odd: Any) -> None:
    """Even if the check says something else of the whole."""

    def function(text: str) -> Any:
        return odd(text) if 70 < len(text) < len(TEXT) else True

    log = Memory()
    with Guard(Pieces([TEXT], CUTS), [output(function, on_error="allow")], log) as guard:
        pieces, reply = reading(guard, log)
        chat = guard.chat("hi", sampling=SEED)
    assert "".join(pieces) == reply.text == chat.text == TEXT
    assert steady(reply.events) == steady(chat.events)
    assert "".join(pieces[:-1]) == TEXT[:64]


@pytest.mark.parametrize("verdict", [True, Flag("look"), None])
def test_consent(reading: Any, verdict: Any) -> None:
    class Says:
        lookback = 0

        @hookimpl
        def post_validate(self, candidate: Candidate, call: Any) -> Any:
            assert call.id
            assert all(part.text for part in candidate.content)  # type: ignore[union-attr]
            from isonomy.sdk import Allow

            return Allow() if verdict is True else verdict

    with Guard(Pieces([TEXT], CUTS), [Says()]) as guard:
        pieces, _ = reading(guard)
    assert len(pieces) > 1


def test_there_is_no_context_in_mid_stream() -> None:
    """A check that uses its context is no function of the text: it holds all back."""
    seen: list[str] = []

    class Takes:
        lookback = 0

        @hookimpl
        def post_validate(self, candidate: Candidate, ctx: Any) -> Any:
            ctx.now()
            seen.append(candidate.text)

    with Guard(Pieces([TEXT], CUTS), [Takes()]) as guard:
        pieces, _ = read(guard)
    assert (pieces, seen) == ([TEXT], [TEXT])


def test_what_a_check_does_to_what_it_is_shown_reaches_nothing() -> None:
    class Meddles:
        lookback = 0
        inline = True

        @hookimpl
        def post_validate(self, candidate: Candidate) -> Any:
            import msgspec

            msgspec.structs.force_setattr(candidate.content[0], "text", "evil")

    with Guard(Pieces([TEXT], CUTS), [Meddles()]) as guard:
        pieces, _ = read(guard)
    assert "".join(pieces) == TEXT


def test_checks_in_mid_stream_leave_no_events_and_are_not_observed() -> None:
    seen: list[str] = []

    class Watches:
        @hookimpl
        def observe(self, event: Any) -> None:
            seen.append(event.type)

    with Guard(Pieces([TEXT], CUTS), [Watches(), passing()]) as guard:
        _, reply = read(guard)
    assert seen == [event.type for event in reply.events] == ["generated", "judged"]


# Beside the model


class Beside:
    """Judges the input while the model answers."""

    def __init__(self, verdict: Any, gate: threading.Event | None = None) -> None:
        self.verdict = verdict
        self.gate = gate

    @hookimpl
    def pre_filter(self, messages: Any) -> Any:
        if self.gate is not None:
            self.gate.wait(10)
        return self.verdict


@pytest.mark.parametrize("verdict", [None, Flag("odd"), Block("no"), AskHuman("hm")])
def test_nothing_leaves_before_the_checks_beside_the_model_let_it(
    reading: Any, verdict: Any
) -> None:
    gate, log = threading.Event(), Memory()

    def before(number: int) -> None:
        if number == 12:
            time.sleep(0.1)
            assert released(log) == ""
            gate.set()

    def guarded(**how: Any) -> Guard:
        beside = check(Beside(verdict, gate), id="b", beside=True)
        return Guard(Pieces([TEXT], CUTS, **how), [beside, passing()], log)

    with guarded(before=before) as guard:
        pieces, reply = reading(guard, log)
    with guarded() as guard:
        chat = guard.chat("hi", sampling=SEED)
    assert "".join(pieces) == reply.text == chat.text
    assert steady(reply.events) == steady(chat.events)
    assert (reply.verdict, reply.finish_reason) == (chat.verdict, chat.finish_reason)
    if isinstance(verdict, Block | AskHuman):
        assert pieces == [REFUSAL]
    else:
        assert reply.text == TEXT
        assert len(pieces) > 1


def test_a_backend_in_rounds(reading: Any) -> None:
    """A first answer that is refused as a whole leaves nothing; the second one streams."""

    def function(text: str) -> Any:
        return Retry("longer") if len(text) < 32 else True

    backend = Pieces(["short", TEXT], CUTS)
    with Guard(backend, [output(function)]) as guard:
        pieces, reply = reading(guard)
    assert (reply.text, reply.verdict, len(backend.requests)) == (TEXT, "retry", 2)
    assert len(pieces) > 1


def test_several_candidates_are_held(reading: Any) -> None:
    from isonomy.sdk import Policy

    backend = Pieces(["first answer " * 5, "second answer " * 5], CUTS)
    with Guard(backend, Policy([passing()], candidates=2)) as guard:
        pieces, reply = reading(guard)
        assert pieces == [reply.text]
    assert len(backend.requests) == 2


def test_a_long_answer_in_many_pieces_keeps_up(reading: Any) -> None:
    """A hundred thousand characters, one at a time, with a check that reads all of it."""
    text = "".join(chr(97 + at % 26) for at in range(100_000))
    with Guard(Pieces([text], range(100_001)), [passing(), passing(id="b")]) as guard:
        begun = time.monotonic()
        pieces, reply = reading(guard)
        assert time.monotonic() - begun < 20
    assert "".join(pieces) == reply.text == text
