"""Streamed calls in a real log: replayed, shown, explained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.streaming.world import BLOCK, RETRY, SEED, Pieces, finding, replacing

from isonomy.replay import ReplayLog
from isonomy.sdk import AskHuman, Guard, Sampling, check
from isonomy.sdk.errors import Cancelled
from isonomy.sdk.policy import REFUSAL

TEXT = "a harmless beginning, long enough to leave, and then: cc, and so on, ab and so on."


def replayed(guard: Guard, call_id: str) -> Any:
    return guard.replay(call_id)


@pytest.mark.parametrize(
    ("checks", "verdict"),
    [
        ([], "flag"),
        ([replacing("ab", "X", id="r")], "replace"),
        ([replacing("ab", "X", id="r"), finding("cc", BLOCK, 2, id="f")], "block"),
        ([finding("cc", RETRY, 2, id="f")], "block"),
        ([finding("cc", AskHuman("hm"), 2, id="f")], "block"),
        ([check(lambda text: True, id="whole", stages=("post_validate",))], "allow"),
    ],
)
@pytest.mark.parametrize("operation", ["stream", "chat"])
def test_a_call_is_replayed_as_it_was_performed(
    tmp_path: Path, checks: list[Any], verdict: str, operation: str
) -> None:
    with Guard(Pieces([TEXT], range(0, 90, 7)), checks, tmp_path / "log") as guard:
        if operation == "stream":
            stream = guard.stream("hi", sampling=SEED)
            text = "".join(stream)
            reply = stream.reply
            assert reply.text == text
        else:
            reply = guard.chat("hi", sampling=SEED)
        assert reply.verdict == verdict or not checks
        done = guard.replay(reply.call_id)
        assert done.status == "verified", done.sentence()
        with ReplayLog(tmp_path / "log") as log:
            call = log.call(reply.call_id)
            assert call.intent is not None
            assert call.intent.operation == operation
            left = "".join(text or "" for _, text in call.segments)
            assert left == (reply.text if operation == "stream" else "")
            assert call.result is not None
            assert (call.result.first_released_ns is None) == (operation == "chat")
            assert (call.result.token, reply.token) == (None, None)
            assert log.verify().findings == ()


def test_a_check_that_breaks_its_promise_is_replayed_all_the_same(tmp_path: Path) -> None:
    """Live and replay agree even where stream and chat can't: the declared lookback is wrong."""

    def moody(text: str) -> Any:
        from isonomy.sdk import Replace

        return Replace("short") if len(text) > 60 else True

    wrong = check(moody, stages=("post_validate",), lookback=0)
    for cut in (None, range(0, 90, 3)):
        with Guard(Pieces([TEXT], cut), [wrong], tmp_path / "log") as guard:
            stream = guard.stream("hi", sampling=SEED)
            assert "".join(stream) == TEXT[:32] + "\n\n" + REFUSAL
            assert guard.replay(stream.call_id).status == "verified"


@pytest.mark.parametrize("always", [True, False])
@pytest.mark.parametrize("operation", ["stream", "chat"])
def test_a_check_that_hung_in_mid_stream_is_not_asked_again(
    tmp_path: Path, always: bool, operation: str
) -> None:
    import threading
    import time

    asked: list[int] = []
    release = threading.Event()

    def hangs(text: str) -> bool:
        asked.append(len(text))
        if len(text) > 40 and (always or asked.count(len(text)) == 1):
            release.wait(20)
        return len(text) < len(TEXT)

    slow = check(hangs, id="slow", stages=("post_validate",), lookback=0, timeout=0.1)
    with Guard(Pieces([TEXT], range(0, 90, 7)), [slow], tmp_path / "log") as guard:
        if operation == "stream":
            stream = guard.stream("hi", sampling=SEED)
            assert "".join(stream) == TEXT[:32] + "\n\n" + REFUSAL
            reply = stream.reply
        else:
            reply = guard.chat("hi", sampling=SEED)
            assert reply.text == TEXT[:32] + "\n\n" + REFUSAL
        assert reply.verdict == "block"
        begun = time.monotonic()
        done = guard.replay(reply.call_id)
        assert done.status == "verified", done.sentence()
        assert time.monotonic() - begun < 5
        with ReplayLog(tmp_path / "log") as log:
            (call,) = log.calls()
            assert call.result is not None
            assert call.result.stalled == {"0": 64}
            assert log.sql("select stalled from calls").fetchall() == [('{"0":64}',)]
    release.set()


def test_a_call_that_was_broken_off_is_refused(tmp_path: Path) -> None:
    with Guard(Pieces([TEXT], range(0, 90, 7)), [], tmp_path / "log") as guard:
        stream = guard.stream("hi", sampling=SEED)
        next(stream)
        stream.close()
        with pytest.raises(Cancelled):
            next(stream)
        done = guard.replay(stream.call_id)
        assert (done.status, "went away" in str(done.reason)) == ("refused", True)


@pytest.mark.parametrize("way", ["stream", "astream"])
def test_the_built_in_model_streams_and_is_replayed_bit_for_bit(tmp_path: Path, way: str) -> None:
    from tests.sdk.world import run
    from tests.streaming.world import aread, read

    sampling = Sampling(seed=7, temperature=0.7, max_tokens=40)
    with Guard("local:demo", [replacing("12345", "*****", id="r")], tmp_path / "log") as guard:
        guard.sampling = sampling
        prompt = "Where is order 12345?"
        pieces, reply = (
            read(guard, None, prompt) if way == "stream" else run(aread(guard, None, prompt))
        )
        assert len(pieces) > 1
        chat = guard.chat(prompt, sampling=SEED)
        assert chat.text == reply.text == "".join(pieces)
        assert "*****" in reply.text
    with ReplayLog(tmp_path / "log") as log:
        call = log.call(reply.call_id)
        assert call.status == "complete"
    with Guard("local:demo", [replacing("12345", "*****", id="r")], tmp_path / "log") as guard:
        done = guard.replay(reply.call_id)
        assert done.status == "verified", done.sentence()
        assert done.reexecuted == 1


def test_a_stream_is_replayed_in_a_child_process(tmp_path: Path) -> None:
    from isonomy.plugins import Patterns

    with Guard("local:demo", [Patterns(deny=("zebra",))], tmp_path / "log") as guard:
        stream = guard.stream("Where is order 12345?", sampling=SEED)
        "".join(stream)
    with ReplayLog(tmp_path / "log") as log:
        assert log.replay(stream.call_id).status == "verified"


def test_functions_and_generators_as_backends() -> None:
    from tests.sdk.world import run

    def words(messages: list[dict[str, Any]]) -> Any:
        yield from ("one ", "two ", "three ", "four ", "five ", "six ", "seven ")

    async def awords(messages: list[dict[str, Any]]) -> Any:
        for word in words(messages):
            yield word

    whole = "one two three four five six seven "
    for function in (words, awords, lambda messages: whole):
        with Guard(function) as guard:
            assert "".join(guard.stream("hi")) == whole

            async def joined(guard: Guard = guard) -> str:
                return "".join([piece async for piece in guard.astream("hi")])

            assert run(joined()) == whole
            assert guard.chat("hi").text == whole
