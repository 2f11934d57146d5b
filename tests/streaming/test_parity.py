"""However an answer is cut, streamed or not, sync or async: the same text, verdict and events."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.sdk.world import Memory, run, steady
from tests.streaming.world import (
    BLOCK,
    FLAG,
    RETRY,
    SEED,
    Pieces,
    aread,
    finding,
    instead,
    passing,
    read,
    replacing,
)

from isonomy.plugins import Patterns, Pii
from isonomy.sdk import (
    AskHuman,
    Block,
    Candidate,
    Guard,
    Policy,
    Replace,
    Reply,
    check,
    hookimpl,
)
from isonomy.sdk.policy import REFUSAL
from isonomy.sdk.records import Intent, Result, Segment


class Masks:
    """An inline plugin that replaces, asked without a worker thread."""

    inline = True
    lookback = 3

    @hookimpl
    def post_validate(self, candidate: Candidate) -> Any:
        masked = candidate.text.replace("1234", "****")
        return Replace(masked) if masked != candidate.text else None


class Awaits:
    """An async plugin that blocks."""

    lookback = 2
    read_only = True

    @hookimpl
    async def post_validate(self, candidate: Candidate) -> Any:
        return Block("three dots") if "..." in candidate.text else None


CHECKS: dict[str, Any] = {
    "passing": lambda: passing(id="passing"),
    "replaces": lambda: replacing("ab", "X", id="replaces"),
    "grows": lambda: replacing("é", "<e>", id="grows"),
    "undoes": lambda: replacing("X", "ba", id="undoes"),
    "brings": lambda: replacing("00", "cc", id="brings"),
    "constant": lambda: instead("quite another answer, whatever the model said", id="constant"),
    "deletes": lambda: instead("", id="deletes"),
    "blocks": lambda: finding("cc", BLOCK, 2, id="blocks"),
    "reads": lambda: finding("cc", BLOCK, 2, id="reads", read_only=True),
    "flags": lambda: finding("b.b", FLAG, 3, id="flags", read_only=True),
    "retries": lambda: finding("🙂🙂", RETRY, 2, id="retries"),
    "asks": lambda: finding("\n\n", AskHuman("hm"), 2, id="asks"),
    "masks": lambda: check(Masks(), id="masks"),
    "awaits": lambda: check(Awaits(), id="awaits"),
    "on trial": lambda: finding("a", BLOCK, 1, id="trial", shadow=True),
    "all of it": lambda: check(
        lambda text: not text.endswith("c"), id="whole", stages=("post_validate",)
    ),
    "patterns": lambda: check(
        Patterns(deny=("a1?c",), action="redact", replacement="[x]"), id="patterns"
    ),
    "denied": lambda: check(Patterns(deny=("b1?0",)), id="denied"),
    "pii": lambda: check(Pii(action="redact"), id="pii"),
    "no pii": lambda: check(Pii(action="block"), id="no-pii"),
}

words = st.sampled_from(
    [
        "a", "b", "c", "X", "é", "0", "1", "🙂", "\n", " ", ".", "ab", "cc", "1234", "hello there ",
        "a1c", "b10", "mail ada@example.org now ", "call +49 30 901820 ", "e\u0301", "\u200d",
        "a longer run of words that say nothing, " * 8,
    ]
)  # fmt: skip
answers = st.lists(words, max_size=60).map("".join)
policies = st.lists(st.sampled_from(sorted(CHECKS)), unique=True, max_size=4)
cuts = st.one_of(st.none(), st.lists(st.integers(0, 2000), max_size=12))


def told(reply: Reply) -> tuple[Any, ...]:
    """What must be the same in every way of calling."""
    return (
        reply.text,
        reply.verdict,
        reply.check,
        reply.reason,
        reply.output,
        reply.finish_reason,
        reply.usage,
        steady(reply.events),
    )


def guarded(given_answers: Sequence[str], names: Sequence[str], cut: Any, **how: Any) -> Any:
    log = Memory()
    policy = Policy([CHECKS[name]() for name in names])
    return Guard(Pieces(given_answers, cut, **how), policy, log), log


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    texts=st.lists(answers, min_size=1, max_size=2),
    names=policies,
    first=cuts,
    second=cuts,
    elsewhere=st.booleans(),
)
def test_every_cut_gives_the_same(
    texts: list[str], names: list[str], first: Any, second: Any, elsewhere: bool
) -> None:
    guard, _ = guarded(texts, names, None)
    with guard:
        chat = guard.chat("hi", sampling=SEED)
    guard, _ = guarded(texts, names, None)
    with guard:
        achat = run(guard.achat("hi", sampling=SEED))
    assert told(achat) == told(chat)
    for cut, elsewhere_too in ((first, elsewhere), (second, False)):
        guard, log = guarded(texts, names, cut, elsewhere=elsewhere_too)
        with guard:
            pieces, reply = read(guard, log)
        assert told(reply) == told(chat)
        assert "".join(pieces) == reply.text
        _lawful(names, pieces, reply)
        _recorded(log, pieces, reply)
        guard, log = guarded(texts, names, cut, elsewhere=elsewhere_too)
        with guard:
            pieces, reply = run(aread(guard, log))
        assert told(reply) == told(chat)
        assert "".join(pieces) == reply.text
        _recorded(log, pieces, reply)


def _lawful(names: Sequence[str], pieces: list[str], reply: Reply) -> None:
    """Nothing that a check blocks has left, not even in part."""
    left = reply.text
    if reply.output.refusal:
        left = left.removesuffix(REFUSAL)
    blocked = {
        "blocks": "cc",
        "reads": "cc",
        "awaits": r"\.\.\.",
        "denied": "b1?0",
        "no pii": "ada@example.org|30 901820",
    }
    for name, pattern in blocked.items():
        if name in names:
            assert re.search(pattern, left) is None


def _recorded(log: Memory, pieces: list[str], reply: Reply) -> None:
    intent, result = log.only(Intent).record, log.only(Result).record
    assert isinstance(intent, Intent)
    assert isinstance(result, Result)
    segments = [entry.record for entry in log.entries if isinstance(entry.record, Segment)]
    assert intent.operation == "stream"
    assert (result.verdict, result.error) == (reply.verdict, None)
    assert (result.first_released_ns is None) == (not pieces)
    assert [segment.number for segment in segments] == list(range(len(pieces)))
    assert [segment.start for segment in segments] == [
        len("".join(pieces[:number])) for number in range(len(pieces))
    ]
    assert all(pieces)
    assert log.kinds[-1] == "Result"


@pytest.mark.parametrize("way", ["stream", "astream"])
def test_an_answer_leaves_while_the_model_still_gives_it(way: str) -> None:
    import threading

    received = threading.Event()
    text = "one two three four five six seven eight nine ten eleven twelve"

    def wait(number: int) -> None:
        if number == 1:
            assert received.wait(10), "the first piece did not leave before the second came"

    backend = Pieces([text], [40], before=wait)

    def took(piece: str) -> None:
        received.set()

    with Guard(backend, [passing()]) as guard:
        if way == "stream":
            stream = guard.stream("hi")
            pieces = []
            for piece in stream:
                took(piece)
                pieces.append(piece)
        else:

            async def main() -> list[str]:
                got = []
                async for piece in guard.astream("hi"):
                    took(piece)
                    got.append(piece)
                return got

            pieces = run(main())
    assert pieces == [text[:32], text[32:]]


def test_what_was_released_is_followed_by_the_refusal() -> None:
    text = "a harmless beginning, long enough to leave, and then: cc, and so on, and so on."
    for cut in ([], [10, 50, 60], None):
        with Guard(Pieces([text], cut), [finding("cc", BLOCK, 2, id="f")]) as guard:
            _, reply = read(guard)
            assert reply == reply.__class__(
                **{
                    **{name: getattr(reply, name) for name in reply.__struct_fields__},
                    "text": text[:31] + "\n\n" + REFUSAL,
                    "verdict": "block",
                    "check": "f",
                    "finish_reason": "content_filter",
                }
            )
            assert reply.output.refusal
            assert guard.chat("hi", sampling=SEED).text == reply.text


def test_a_retry_after_a_release_is_a_refusal_and_one_before_it_is_not() -> None:
    long = "a harmless beginning, long enough to leave, and then 🙂🙂"
    checks = [finding("🙂🙂", RETRY, 2, id="f")]
    for ask in (lambda g: read(g)[1], lambda g: g.chat("hi", sampling=SEED)):
        backend = Pieces([long, "fine"], [5, 40])
        with Guard(backend, checks) as guard:
            reply = ask(guard)
        assert (reply.verdict, len(backend.requests)) == ("block", 1)
        assert reply.text.endswith(REFUSAL)
        assert "released in part: again" in (reply.reason or "")
        backend = Pieces(["🙂🙂", long.replace("🙂", "")], [5, 40])
        with Guard(backend, checks) as guard:
            reply = ask(guard)
        assert (reply.verdict, len(backend.requests)) == ("retry", 2)
        assert reply.text == "a harmless beginning, long enough to leave, and then "


def test_a_revision_of_what_was_released_is_a_refusal() -> None:
    class Revises:
        lookback = 0

        @hookimpl
        def revise(self, candidate: Candidate) -> Any:
            from isonomy.sdk import Text

            return candidate.with_content((Text("quite another answer"),))

    text = "a harmless beginning, long enough to leave"
    for ask in (lambda g: read(g)[1], lambda g: g.chat("hi", sampling=SEED)):
        with Guard(Pieces([text]), [Revises()]) as guard:
            reply = ask(guard)
        assert (reply.text, reply.verdict) == (text[:32] + "\n\n" + REFUSAL, "block")
        assert "no beginning" in (reply.reason or "")


def test_a_backend_that_answers_otherwise_than_it_streamed() -> None:
    class Liar(Pieces):
        def _give(self, text: str, on_text: Any) -> None:
            on_text("something else entirely, that is not the answer")

    with Guard(Liar(["the answer"]), []) as guard:
        pieces, reply = read(guard)
    assert reply.verdict == "block"
    assert "".join(pieces) == reply.text
    assert reply.text.endswith(REFUSAL)


def test_secrets_hold_everything_back() -> None:
    class Asks:
        @hookimpl
        def pre_filter(self, messages: Any, ctx: Any) -> None:
            ctx.secret("key")

    log = Memory()
    text = "the key is hunter2hunter2, " * 5
    backend = Pieces([text], range(0, 200, 3))
    with Guard(backend, [Asks()], log, secrets=lambda name: "hunter2hunter2") as guard:
        pieces, _ = read(guard)
    assert pieces == [text]
    assert b"hunter2" not in log.everything()


def test_input_that_is_blocked_leaves_as_the_refusal_alone() -> None:
    log = Memory()
    with Guard(Pieces(["x" * 100]), [lambda text: False], log) as guard:
        pieces, reply = read(guard, log)
    assert pieces == [REFUSAL]
    assert (reply.verdict, log.kinds) == ("block", ["Intent", "Segment", "Result"])
    assert len(log.batches) == 1


def test_tool_calls_come_with_the_reply() -> None:
    from isonomy.sdk import Generation, Text, ToolCall

    called = ToolCall("1", "look", {"a": 1})

    class Calls(Pieces):
        def generate(self, request: Any, *, on_text: Any = None) -> Generation:
            on_text("Let me see.")
            return Generation(
                content=(Text("Let me see."), called), finish_reason="tool_calls", model="parrot"
            )

    tools = [{"type": "function", "function": {"name": "look"}}]
    with Guard(Calls([]), []) as guard:
        stream = guard.stream("hi", tools=tools)
        assert list(stream) == ["Let me see."]
        assert stream.reply.output.content == (Text("Let me see."), called)
        assert stream.reply.finish_reason == "tool_calls"
