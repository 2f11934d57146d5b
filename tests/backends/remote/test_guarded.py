"""Remote backends behind a guard: what a call records of its attempts, and its replay."""

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.backends.remote.conftest import Opened
from tests.backends.remote.serving import KEY, Endpoint, chunk, completion, sse

from isonomy.backends import Router
from isonomy.replay import ReplayLog
from isonomy.sdk import Guard, RemoteError
from isonomy.sdk.events import BackendFailed, Generated


def events_of(log: Path) -> list[Any]:
    with ReplayLog(log) as opened:
        return [event for call in opened.calls() for event in call.events]


def test_every_attempt_is_in_the_log(endpoint: Endpoint, opened: Opened, tmp_path: Path) -> None:
    endpoint.answers((429, {"retry-after": "2"}, b"slow"), (500, {}, b""), completion("Hello!"))
    with Guard(backend=opened(), log=tmp_path / "log") as guard:
        reply = guard.chat("Hi")
        assert reply.text == "Hello!"
        assert guard.replay(reply.call_id).exit_status == 0
    (generated,) = [e for e in events_of(tmp_path / "log") if isinstance(e, Generated)]
    outcomes = [(a.number, a.outcome, a.status) for a in generated.generation.attempts]
    assert outcomes == [(1, "overloaded", 429), (2, "failed", 500), (3, "ok", 200)]
    assert generated.generation.attempts[0].wait_ns == 2_000_000_000


@pytest.mark.parametrize("is_async", [False, True])
def test_attempts_of_a_failure_too(
    endpoint: Endpoint, opened: Opened, tmp_path: Path, is_async: bool
) -> None:
    endpoint.answers((503, {}, f"down, {KEY}".encode()))
    router = Router([opened(max_attempts=1), {"use": opened(max_attempts=2), "name": "spare"}])
    with Guard(backend=router, log=tmp_path / "log") as guard:

        def ask() -> Any:
            return asyncio.run(guard.achat("Hi")) if is_async else guard.chat("Hi")

        with pytest.raises(RemoteError) as caught:
            ask()
        (failed,) = [e for e in events_of(tmp_path / "log") if isinstance(e, BackendFailed)]
        assert failed.attempts == caught.value.attempts
        assert [a.backend for a in failed.attempts] == ["openai:small", "spare", "spare"]
        with ReplayLog(tmp_path / "log") as log:
            call_id = log.calls()[0].call_id
        assert guard.replay(call_id).exit_status == 0
    recorded = (tmp_path / "log").rglob("*")
    assert not [file for file in recorded if file.is_file() and KEY.encode() in file.read_bytes()]


def test_a_stream_is_released_as_it_comes(endpoint: Endpoint, opened: Opened) -> None:
    released = threading.Event()

    def body() -> Iterator[bytes]:
        yield sse(chunk(content="word and word " * 10), done=False)
        assert released.wait(10)
        yield sse(chunk(content="the end."), chunk("stop"))
        yield b""

    endpoint.answers((200, {}, body()))
    pieces = []
    with Guard(backend=opened()) as guard, guard.stream("Hi") as stream:
        for piece in stream:
            pieces.append(piece)
            released.set()
    assert "".join(pieces) == "word and word " * 10 + "the end."
    assert len(pieces) > 1


def test_a_stream_that_is_closed_ends_the_request(endpoint: Endpoint, opened: Opened) -> None:
    def endless() -> Any:
        while True:
            yield sse(chunk(content="word and word "), done=False)
            yield 0.005

    endpoint.answers((200, {}, endless()))
    with Guard(backend=opened()) as guard:
        with guard.stream("Hi") as stream:
            next(iter(stream))
        assert endpoint.gone.wait(10)
