"""Callers who go away: no lost record, no leaked task, no stuck thread, and nothing more leaves."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.sdk.world import Memory, Scripted, broken, events_in, output_in, run
from tests.streaming.world import BLOCK, Pieces, finding, passing, read, released

from isonomy.replay import ReplayLog
from isonomy.sdk import BackendError, Generation, Guard, InputError, LogError, hookimpl
from isonomy.sdk.errors import Cancelled
from isonomy.sdk.records import Result, Segment

TEXT = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen " * 4
CUTS = range(0, 400, 16)


def result(log: Memory) -> Result:
    found = log.only(Result).record
    assert isinstance(found, Result)
    return found


def until(true: Callable[[], bool], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.005)


def streams_running() -> list[str]:
    names = ("isonomy-stream", "isonomy-closing")
    return [thread.name for thread in threading.enumerate() if thread.name in names]


class Endless(Pieces):
    """Gives pieces until it is stopped; agenerate is a coroutine of its own."""

    def __init__(self) -> None:
        super().__init__([TEXT])
        self.cancelled = False

    def generate(self, request: Any, *, on_text: Any = None) -> Generation:
        try:
            while True:
                on_text("twelve letter ")
                time.sleep(0.001)
        finally:
            self.ended.set()

    async def agenerate(self, request: Any, *, on_text: Any = None) -> Generation:
        try:
            while True:
                on_text("twelve letter ")
                await asyncio.sleep(0.001)
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        finally:
            self.ended.set()


def assert_cancelled(log: Memory, pieces: list[str]) -> None:
    assert log.kinds[0] == "Intent"
    assert log.kinds[-1] == "Result"
    record = result(log)
    assert (record.error, record.finish_reason, record.verdict) == ("Cancelled", None, "allow")
    assert released(log) == "".join(pieces)
    output = output_in(log.only(Result))
    assert (output.text or "") == "".join(pieces)
    assert output.error == "the caller went away before the call ended"
    assert events_in(log.only(Result)) == ()


@pytest.mark.parametrize("how", ["close", "with", "forget", "guard", "cycle", "other thread"])
def test_a_stream_that_is_not_read_to_its_end(how: str) -> None:
    log, backend = Memory(), Endless()
    guard = Guard(backend, [passing()], log)
    stream: Any = guard.stream("hi")
    pieces = [next(stream), next(stream)]
    if how == "close":
        stream.close()
        stream.close()
    elif how == "with":
        with stream:
            pass
    elif how == "guard":
        guard.close()
    elif how == "other thread":
        closing = threading.Thread(target=stream.close)
        closing.start()
        closing.join()
    elif how == "cycle":
        cycle: Any = [stream]
        cycle.append(cycle)
        del stream, cycle
        gc.collect()
    else:
        del stream
    until(lambda: log.kinds[-1] == "Result")
    assert_cancelled(log, pieces)
    assert backend.ended.wait(10)
    until(lambda: not streams_running())
    if how in ("close", "with", "other thread"):
        with pytest.raises(Cancelled):
            next(stream)
    guard.close()
    assert log.kinds.count("Result") == 1


def test_a_stream_that_was_never_read_did_nothing() -> None:
    log, backend = Memory(), Pieces([TEXT])
    with Guard(backend, [], log) as guard:
        guard.stream("hi").close()
        del guard
        with pytest.raises(InputError, match="has not come to its end"):
            Guard(backend).stream("hi").reply  # noqa: B018

        async def never() -> None:
            async with Guard(backend).astream("hi"):
                pass

        run(never())
    gc.collect()
    assert (log.kinds, backend.requests) == ([], [])


def test_closing_from_another_thread_wakes_the_reader() -> None:
    log, started = Memory(), threading.Event()

    class Stalls(Pieces):
        def generate(self, request: Any, *, on_text: Any = None) -> Generation:
            on_text("x" * 40)
            started.set()
            while True:
                time.sleep(0.01)
                on_text("")

    with Guard(Stalls([]), [], log) as guard:
        stream = guard.stream("hi")
        assert next(stream) == "x" * 32
        started.wait(10)
        threading.Timer(0.05, stream.close).start()
        with pytest.raises(Cancelled, match="closed before the answer was complete"):
            next(stream)
        assert_cancelled(log, ["x" * 32])
        until(lambda: not streams_running())


def test_a_backend_that_hangs_holds_nobody_up() -> None:
    log, release = Memory(), threading.Event()

    class Hangs(Pieces):
        def generate(self, request: Any, *, on_text: Any = None) -> Generation:
            on_text("x" * 40)
            release.wait(30)
            raise AssertionError

    with Guard(Hangs([]), [], log) as guard:
        stream = guard.stream("hi")
        assert next(stream) == "x" * 32
        begun = time.monotonic()
        stream.close()
        assert time.monotonic() - begun < 1
        assert_cancelled(log, ["x" * 32])
    release.set()
    until(lambda: not streams_running())
    assert log.kinds.count("Result") == 1


@pytest.mark.parametrize("where", ["waiting", "reading", "checking"])
def test_an_interrupt_of_the_reading_thread(where: str) -> None:
    log, backend = Memory(), Endless()
    slow = threading.Event()

    def check(text: str) -> bool:
        if where == "checking" and len(text) > 40:
            slow.set()
            time.sleep(0.5)
        return True

    from isonomy.sdk import check as checked

    policy = [checked(check, stages=("post_validate",), lookback=0)]
    if where == "waiting":
        backend.generate = lambda request, on_text=None: time.sleep(1)  # type: ignore[method-assign,return-value]

    def interrupt() -> None:
        if where == "checking":
            slow.wait(10)
        else:
            time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGINT)

    pieces: list[str] = []
    with Guard(backend, policy, log) as guard:
        threading.Thread(target=interrupt).start()
        with pytest.raises(KeyboardInterrupt), guard.stream("hi") as stream:  # noqa: PT012
            for piece in stream:
                pieces.append(piece)
                if where == "reading":
                    time.sleep(1)
    assert_cancelled(log, pieces)
    until(lambda: not streams_running())


# async


@pytest.mark.parametrize("how", ["cancel", "cancel between", "aclose", "forget", "break", "with"])
def test_an_async_stream_that_is_not_read_to_its_end(how: str) -> None:
    log, backend = Memory(), Endless()
    pieces: list[str] = []

    async def main(guard: Guard) -> None:
        async def consume() -> None:
            async for piece in guard.astream("hi"):
                pieces.append(piece)
                if how == "cancel between" and len(pieces) == 2:
                    await asyncio.sleep(30)

        before = asyncio.all_tasks()
        if how.startswith("cancel"):
            task = asyncio.create_task(consume())
            while len(pieces) < 2:
                await asyncio.sleep(0.001)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            del task
        elif how == "with":
            async with guard.astream("hi") as stream:
                pieces.append(await anext(stream))
        else:
            stream = guard.astream("hi")
            async for piece in stream:
                pieces.append(piece)
                if len(pieces) == 2:
                    break
            if how == "aclose":
                await stream.aclose()
                await stream.aclose()
                with pytest.raises(Cancelled):
                    await anext(stream)
            del stream
        gc.collect()
        for _ in range(1000):
            if log.kinds[-1] == "Result" and asyncio.all_tasks() == before:
                break
            await asyncio.sleep(0.005)
        assert asyncio.all_tasks() == before
        assert_cancelled(log, pieces)
        assert backend.cancelled

    with Guard(backend, [passing()], log) as guard:
        run(main(guard))
    assert log.kinds.count("Result") == 1


def test_a_loop_that_ends_in_mid_stream() -> None:
    log, backend = Memory(), Endless()
    kept: list[Any] = []

    async def main(guard: Guard) -> None:
        stream = guard.astream("hi")
        kept.append(stream)
        kept.append(await anext(stream))

    with Guard(backend, [passing()], log) as guard:
        run(main(guard))
        assert backend.ended.wait(10)
        kept.pop(0)
        until(lambda: log.kinds[-1] == "Result")
    assert_cancelled(log, kept)


def test_closing_the_guard_closes_its_async_streams() -> None:
    log, backend = Memory(), Endless()

    async def main() -> str:
        guard = Guard(backend, [passing()], log)
        stream = guard.astream("hi")
        piece = await anext(stream)
        guard.close()
        with pytest.raises(Cancelled):
            await anext(stream)
        await asyncio.sleep(0.05)
        assert len(asyncio.all_tasks()) == 1
        return piece

    piece = run(main())
    assert_cancelled(log, [piece])


def test_a_timeout_around_a_stream() -> None:
    log, backend = Memory(), Endless()
    pieces: list[str] = []

    async def main(guard: Guard) -> None:
        async with asyncio.timeout(0.1):
            async for piece in guard.astream("hi"):
                pieces.append(piece)

    with Guard(backend, [passing()], log) as guard, pytest.raises(TimeoutError):
        run(main(guard))
    # The time may be up between a piece's record and its arrival: the log has it then, as released.
    recorded = [
        msgspec.json.decode(entry.payloads[0].body, type=str)
        for entry in log.entries
        if isinstance(entry.record, Segment)
    ]
    assert recorded[: len(pieces)] == pieces
    assert len(recorded) - len(pieces) in (0, 1)
    assert_cancelled(log, recorded)


def test_cancelling_while_the_record_is_written_waits_for_it() -> None:
    class Slow(Memory):
        def append(self, entries: Any) -> list[int]:
            time.sleep(0.1)
            return super().append(entries)

    log, backend = Slow(), Endless()

    async def main(guard: Guard) -> None:
        async def consume() -> None:
            async for _ in guard.astream("hi"):
                pass

        for delay in (0.05, 0.15, 0.25):
            task = asyncio.create_task(consume())
            await asyncio.sleep(delay)
            task.cancel()
            await asyncio.sleep(0.01)
            task.cancel()  # an impatient caller
            with pytest.raises(asyncio.CancelledError):
                await task

    with Guard(backend, [passing()], log) as guard:
        run(main(guard))
    kinds = [kind for kind in log.kinds if kind != "Segment"]
    assert kinds == ["Intent", "Result"] * 3


def test_a_cancelled_achat_is_recorded() -> None:
    log = Memory()

    class Sleeps(Scripted):
        async def agenerate(self, request: Any, *, on_text: Any = None) -> Generation:
            await asyncio.sleep(30)
            raise AssertionError

    async def main(guard: Guard) -> None:
        task = asyncio.create_task(guard.achat("hi"))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    with Guard(Sleeps(), [], log) as guard:
        run(main(guard))
    assert log.kinds == ["Intent", "Result"]
    assert result(log).error == "Cancelled"


def test_a_call_that_is_cancelled_before_the_model_is_asked_is_recorded() -> None:
    log, backend = Memory(), Scripted()

    class Slow:
        @hookimpl
        async def pre_filter(self, messages: Any, ctx: Any) -> None:
            ctx.effect("look", lambda: 1)
            await asyncio.sleep(30)

    async def main(guard: Guard) -> None:
        task = asyncio.create_task(guard.achat("hi"))
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    with Guard(backend, [Slow()], log) as guard:
        run(main(guard))
    assert log.kinds == ["Opening", "Intent", "Result"]
    assert (result(log).error, backend.requests) == ("Cancelled", [])


# errors


@pytest.mark.parametrize("way", ["stream", "astream"])
def test_a_backend_that_breaks_in_mid_stream(way: str) -> None:
    log = Memory()
    pieces: list[str] = []
    with Guard(Pieces([TEXT], CUTS, error=broken()), [passing()], log) as guard:
        with pytest.raises(BackendError) as plain:
            Guard(Scripted([broken()])).chat("hi")

        async def consume() -> None:
            async for piece in guard.astream("hi"):
                pieces.append(piece)

        with pytest.raises(BackendError) as caught:  # noqa: PT012
            if way == "astream":
                run(consume())
            else:
                pieces.extend(iter(guard.stream("hi")))
        assert (type(caught.value), str(caught.value)) == (type(plain.value), str(plain.value))
    record = result(log)
    assert (record.error, log.kinds[-1]) == ("BackendError", "Result")
    assert released(log) == output_in(log.only(Result)).text != ""
    assert [event.type for event in events_in(log.only(Result))] == ["backend_failed"]
    if way == "astream":
        assert released(log) == "".join(pieces)


@pytest.mark.parametrize("fails", [1, 2, 3])
@pytest.mark.parametrize("way", ["stream", "astream"])
def test_nothing_leaves_when_the_log_fails_in_mid_stream(fails: int, way: str) -> None:
    log, backend = Memory(fail_at=[fails]), Endless()
    pieces: list[str] = []

    async def consume(guard: Guard) -> None:
        async for piece in guard.astream("hi"):
            pieces.append(piece)

    with Guard(backend, [passing()], log) as guard:
        with pytest.raises(LogError, match="disk is full"):  # noqa: PT012
            if way == "astream":
                run(consume(guard))
            else:
                for piece in guard.stream("hi"):
                    pieces.append(piece)
        assert len(pieces) == fails - 1
        assert released(log) == "".join(pieces)
        assert backend.ended.wait(10)
        until(lambda: not streams_running())
    assert log.kinds == ["Intent", *["Segment"] * (fails - 1)]


def test_nothing_of_the_end_leaves_when_its_record_fails() -> None:
    log = Memory(fail_at=[1])
    with Guard(Pieces(["short"]), [], log) as guard, pytest.raises(LogError):
        next(guard.stream("hi"))
    assert log.kinds == ["Intent"]


def test_a_stream_has_one_reader() -> None:
    entered, go_on = threading.Event(), threading.Event()

    def wait(number: int) -> None:
        entered.set()
        go_on.wait(10)

    with Guard(Pieces(["x" * 100], before=wait), []) as guard:
        stream = guard.stream("hi")
        reading = threading.Thread(target=lambda: list(stream))
        reading.start()
        entered.wait(10)
        with pytest.raises(InputError, match="somebody else is reading"):
            next(stream)
        go_on.set()
        reading.join()
        assert stream.reply.text == "x" * 100

        async def twice() -> None:
            astream = guard.astream("hi")
            first = asyncio.create_task(anext(astream))  # type: ignore[arg-type]
            await asyncio.sleep(0)
            with pytest.raises(InputError, match="somebody else is reading"):
                await anext(astream)
            await first
            await astream.aclose()

        run(twice())


def test_an_observer_can_not_read_the_stream_of_its_call() -> None:
    seen: list[BaseException] = []
    streams: list[Any] = []

    class Reads:
        @hookimpl
        def observe(self, event: Any) -> None:
            if event.type == "judged":
                try:
                    next(streams[0])
                except InputError as error:
                    seen.append(error)

    with Guard(Pieces(["x" * 40]), [Reads(), passing()]) as guard:
        streams.append(guard.stream("hi"))
        assert "".join(streams[0]) == "x" * 40
    assert len(seen) == 1


# loops, threads, processes


def test_a_sync_stream_inside_a_running_loop() -> None:
    async def main(guard: Guard) -> str:
        return "".join(guard.stream("hi"))

    with Guard(Pieces([TEXT], CUTS), [passing(), finding("zz", BLOCK, 2)]) as guard:
        assert run(main(guard)) == TEXT


def test_pieces_may_be_asked_for_by_many_threads_in_turn() -> None:
    import contextvars

    seen: list[str | None] = []
    who: contextvars.ContextVar[str | None] = contextvars.ContextVar("who", default=None)

    def look(text: str) -> bool:
        seen.append(who.get())
        return True

    from isonomy.sdk import check

    with Guard(Pieces([TEXT], CUTS), [check(look, stages=("post_validate",), lookback=0)]) as guard:
        who.set("caller")
        stream = guard.stream("hi")
        pieces: list[str] = []
        while True:
            got: list[str | None] = []
            reader = threading.Thread(target=lambda: got.append(next(stream, None)))  # noqa: B023
            reader.start()
            reader.join()
            if got[0] is None:
                break
            pieces.append(got[0])
        assert "".join(pieces) == TEXT
    assert set(seen) == {"caller"}


def test_many_streams_at_once_never_mix() -> None:
    import re

    def own(number: int) -> Any:
        return re.sub(r"\D", "", str(number))

    class Echo(Pieces):
        def generate(self, request: Any, *, on_text: Any = None) -> Generation:
            from isonomy.sdk import Text

            word = request.messages[-1].text
            for _ in range(20):
                on_text(f"{word} and ")
            return Generation(
                content=(Text(f"{word} and " * 20),), finish_reason="stop", model="parrot"
            )

        async def agenerate(self, request: Any, *, on_text: Any = None) -> Generation:
            await asyncio.sleep(0)
            return self.generate(request, on_text=on_text)

    log = Memory()
    with Guard(Echo([]), [passing(), finding("zz", BLOCK, 2)], log) as guard:

        async def one(number: int) -> str:
            return "".join([piece async for piece in guard.astream(f"word{number}")])

        async def main() -> list[str]:
            return list(await asyncio.gather(*(one(number) for number in range(64))))

        found = run(main())
        assert found == [f"word{number} and " * 20 for number in range(64)]
        texts: dict[int, str] = {}

        def sync(number: int) -> None:
            texts[number] = "".join(guard.stream(f"word{number}"))

        threads = [threading.Thread(target=sync, args=(number,)) for number in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert texts == {number: f"word{number} and " * 20 for number in range(16)}
    assert log.kinds.count("Result") == log.kinds.count("Intent") == 80


ROOT = Path(__file__).parents[2]
KILLED = """
import sys, time
from tests.streaming.test_cancel import Endless
from isonomy.sdk import Guard
stream = Guard(Endless(), [], sys.argv[1]).stream("hi")
for piece in stream:
    print(piece, end="", flush=True)
"""


def test_kill_9_in_mid_stream_leaves_what_left(tmp_path: Path) -> None:
    """Every character that was seen is in the log; at most one segment more."""
    log = tmp_path / "log"
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(log)], cwd=ROOT, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    seen = process.stdout.read(500)
    process.kill()
    seen += process.stdout.read()
    process.stdout.close()
    process.wait()
    with ReplayLog(log) as opened:
        (call,) = opened.calls()
        assert (call.status, call.intent and call.intent.operation) == ("unfinished", "stream")
        texts = [text or "" for _, text in call.segments]
        assert seen.decode() in ("".join(texts), "".join(texts[:-1]))
        assert opened.verify().findings == ()
        rows = opened.sql("select text from segments order by number").fetchall()
        assert [text for (text,) in rows] == texts
        (row,) = opened.sql("select status, operation, segments from calls").fetchall()
        assert row == ("unfinished", "stream", len(texts))


ENDING = """
import sys
from tests.streaming.test_cancel import Endless
from isonomy.sdk import Guard
guard = Guard(Endless(), [], sys.argv[1])
stream = guard.stream("hi")
next(stream)
{end}
"""


@pytest.mark.parametrize("end", ["", "sys.exit(3)", "raise ValueError", "del stream"])
def test_a_process_that_ends_in_mid_stream_records_it(tmp_path: Path, end: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ENDING.format(end=end), str(tmp_path / "log")],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert "Exception ignored" not in done.stderr
    with ReplayLog(tmp_path / "log") as opened:
        (call,) = opened.calls()
        assert call.result is not None, done.stderr
        assert call.result.error == "Cancelled"


def test_a_forked_child_has_no_part_in_its_parent_s_stream(tmp_path: Path) -> None:
    backend = Pieces([TEXT], CUTS)
    with Guard(backend, [passing()], tmp_path / "log") as guard:
        stream = guard.stream("hi")
        pieces = [next(stream)]
        child = os.fork()
        if not child:
            status = 1
            try:
                next(stream)
            except InputError:
                del stream
                gc.collect()
                text = "".join(guard.stream("of my own"))  # its own works
                status = 0 if text == TEXT else 2
            finally:
                os._exit(status)
        _, status = os.waitpid(child, 0)
        assert status == 0
        pieces.extend(stream)
        assert "".join(pieces) == TEXT
    with ReplayLog(tmp_path / "log") as log:
        calls = log.calls()
        assert [call.status for call in calls] == ["complete", "complete"]
        assert len({call.result_record.record.process for call in calls if call.result_record}) == 2  # type: ignore[union-attr]
        assert log.verify().findings == ()


def test_the_record_of_a_segment_reads_back() -> None:
    log = Memory()
    with Guard(Pieces([TEXT], CUTS), [passing()], log) as guard:
        read(guard, log)
    assert released(log) == TEXT
    for entry in log.entries:
        assert msgspec.json.decode(msgspec.json.encode(entry.record))["schema"] == 2


# odd backends


@pytest.mark.parametrize("way", ["stream", "astream"])
def test_a_lone_surrogate_never_leaves(way: str) -> None:
    log = Memory()
    text = "x" * 40 + "\ud83d" + "y" * 100
    pieces: list[str] = []

    async def consume(guard: Guard) -> None:
        async for piece in guard.astream("hi"):
            pieces.append(piece)

    with Guard(Pieces([text], range(0, 150, 7)), [passing()], log) as guard:
        with pytest.raises(BackendError) as plain:
            guard.chat("hi")
        log.entries.clear()
        with pytest.raises(BackendError) as caught:  # noqa: PT012
            if way == "astream":
                run(consume(guard))
            else:
                for piece in guard.stream("hi"):
                    pieces.append(piece)
    assert str(caught.value) == str(plain.value)
    assert "surrogate" in str(caught.value)
    assert pieces in ([], ["x" * 32])
    assert result(log).error == "BackendError"


@pytest.mark.parametrize("piece", [b"bytes", None, 7])
def test_what_is_no_text_is_the_backend_s_error(piece: Any) -> None:
    class Odd(Pieces):
        def generate(self, request: Any, *, on_text: Any = None) -> Generation:
            on_text(piece)
            raise AssertionError

    log = Memory()
    with Guard(Odd([]), [], log) as guard, pytest.raises(BackendError, match="on_text takes text"):
        next(guard.stream("hi"))
    assert result(log).error == "BackendError"


def test_pieces_that_come_after_the_answer_are_nobody_s() -> None:
    late: list[Any] = []

    class Late(Pieces):
        def generate(self, request: Any, *, on_text: Any = None) -> Generation:
            late.append(on_text)
            return super().generate(request, on_text=on_text)

    with Guard(Late([TEXT], CUTS), []) as guard:
        stream = guard.stream("hi")
        text = "".join(stream)
        late[0]("more")
        assert (text, stream.reply.text) == (TEXT, TEXT)
        assert list(stream) == []
