"""What a log is told not to hold is in none of its files; the record says what was taken out."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from isonomy.replay import ReplayLog, replay_call
from isonomy.sdk import BackendError, ConfigError, Guard, InputError, check
from isonomy.sdk.generation import Generation, Identity, Request, Sampling, TokenTrace
from isonomy.sdk.policycheck import examine
from isonomy.sdk.streaming import boundaries
from isonomy.sdk.vocabulary import (
    Allow,
    Block,
    Flag,
    Message,
    Reasoning,
    Replace,
    Span,
    Text,
    ToolCall,
    Verdict,
)

SECRET = 'K4"NARY-7731'


def bytes_of(log: Path) -> Iterator[bytes]:
    """Every file as it is, every value of every table of the journal, and of the DuckDB log."""
    import duckdb

    from isonomy.replay.ingest import ingest

    with ReplayLog(log) as opened:
        ingest(log)
        for call in opened.calls():
            for record in call.records:
                yield record.leaf
                yield from record.payloads.values()
    with duckdb.connect(str(log / "audit.duckdb"), read_only=True) as audit:
        for (table,) in audit.execute(
            "select table_name from duckdb_tables() where schema_name = 'stored'"
        ).fetchall():
            for row in audit.execute(f"from stored.{table}").fetchall():
                yield repr(row).encode()
                yield b"".join(cell for cell in row if isinstance(cell, bytes))
    for file in log.iterdir():
        yield file.read_bytes()


def holds(log: Path, canary: str) -> bool:
    forms = {canary, canary[2:], *(json.dumps(canary)[1:-1], canary.encode().hex())}
    return any(form.encode() in data for data in bytes_of(log) for form in forms)


class Echo:
    """Answers with what it was asked, in every form in which an answer is recorded."""

    def __init__(self, make: Callable[[str], tuple[Any, ...]] = lambda text: (Text(text),)) -> None:
        self._make = make

    def identity(self) -> Identity:
        return Identity(provider="test", model="echo", spec="test:echo")

    def resolve(self, sampling: Sampling) -> Sampling:
        return sampling

    def generate(
        self, request: Request, *, on_text: Callable[[str], None] | None = None
    ) -> Generation:
        text = request.messages[-1].text
        if on_text is not None:
            for at in range(0, len(text), 3):  # cuts whatever is to be masked in pieces
                on_text(text[at : at + 3])
        return Generation(
            content=self._make(text),
            finish_reason="stop",
            model="echo",
            prompt=f"<user>{json.dumps(text)}</user>",
            prompt_ids=tuple(text.encode()),
            runtime={"received": text.encode().hex(), "threads": 1},
            raw=json.dumps({"deltas": [text[:9], text[9:]], "text": text}),
            tokens=TokenTrace(
                ids=tuple(text.encode()),
                texts=tuple(text),
                logprobs=b"",
                digests=b"",
                chain=bytes(32),
            ),
        )

    async def agenerate(
        self, request: Request, *, on_text: Callable[[str], None] | None = None
    ) -> Generation:
        return self.generate(request, on_text=on_text)

    def close(self) -> None:
        pass


PATTERN = {"pattern": 'K4"NARY-[0-9]+'}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "log"


def finder(verdict: Callable[[tuple[Span, ...]], Verdict]) -> Callable[[str], Verdict]:
    def find(text: str) -> Verdict:
        at = text.find(SECRET)
        return Allow() if at < 0 else verdict((Span(at, at + len(SECRET), "key"),))

    return find


def test_without_a_mask_the_canary_is_found(path: Path) -> None:
    with Guard(Echo(), [], path) as guard:
        guard.chat(f"my key is {SECRET}, keep it")
    assert holds(path, SECRET)


@pytest.mark.parametrize(
    "mask",
    [
        [PATTERN],
        [{"payload": "message/*", "pointer": "/content/*/text", "pattern": PATTERN["pattern"]}],
        [{"payload": "message/*", "pointer": "/content/0/text"}],
    ],
)
def test_what_a_mask_names_is_in_no_file(path: Path, mask: list[dict[str, str]]) -> None:
    with Guard(Echo(), [], path, mask=mask) as guard:
        reply = guard.chat(f"my key is {SECRET}, keep it", session="one")
        assert SECRET in reply.text  # the caller's own is not masked
    assert not holds(path, SECRET)
    with ReplayLog(path) as log:
        (call,) = log.calls()
        assert log.verify().findings == ()
        assert call.intent is not None
        assert [(m.payload, m.pointer) for m in call.intent.masked or ()] == [
            ("message/0", "/content/0/text")
        ]
        assert call.result is not None
        places = {m.pointer for m in call.result.masked or () if m.payload == "events"}
        assert {f"/0/generation/{name}" for name in ("raw", "tokens", "prompt_ids")} <= places
        replayed = replay_call(call)
        assert (replayed.status, "told to mask message/0" in str(replayed.reason)) == (
            "refused",
            True,
        )


def test_a_call_without_anything_to_mask_is_recorded_whole_and_replays(path: Path) -> None:
    with Guard("local:demo", [], path, mask=[PATTERN]) as guard:
        guard.chat("nothing here", sampling=Sampling(max_tokens=3, seed=1))
    with ReplayLog(path) as log:
        (call,) = log.calls()
        assert call.intent is not None
        assert not call.intent.masked
        assert b"masked" not in b"".join(record.leaf for record in call.records)
        assert replay_call(call).status == "verified"


@pytest.mark.parametrize(
    "verdict",
    [
        lambda spans: Flag("a key", spans=spans),
        lambda spans: Replace("my key is gone", spans=spans),
        lambda spans: Block("a key", spans=spans),
        lambda spans: Block(f"a key: {SECRET}"),
        lambda spans: 1 / 0,
    ],
    ids=["flag", "replace", "block", "block without spans", "failure"],
)
def test_what_a_check_marks_is_in_no_file(path: Path, verdict: Any) -> None:
    found = check(finder(verdict), id="keys")
    with Guard(Echo(), [found], path, mask=[{"check": "keys"}]) as guard:
        guard.chat(f"my key is {SECRET}, keep it")
        guard.chat("harmless")
    assert not holds(path, SECRET)
    assert holds(path, "harmless")


def test_what_a_check_was_never_asked_about_is_masked_whole(path: Path) -> None:
    def first(text: str) -> bool:
        return False

    found = check(finder(lambda spans: Flag("a key", spans=spans)), id="keys")
    with Guard(Echo(), [first, found], path, mask=[{"check": "keys"}]) as guard:
        guard.chat(f"my key is {SECRET}, keep it")
    assert not holds(path, SECRET)


def test_streams_flow_and_their_segments_hold_nothing(path: Path) -> None:
    said = f"my key is {SECRET}, keep it for me. " * 3

    async def stream(guard: Guard) -> str:
        return "".join([piece async for piece in guard.astream(said)])

    with Guard(Echo(), [], path, mask=[PATTERN]) as guard:
        with guard.stream(said) as pieces:
            taken = list(pieces)
        assert "".join(taken) == said
        assert len(taken) > 1
        assert asyncio.run(stream(guard)) == said
    assert not holds(path, SECRET)
    with ReplayLog(path) as log:
        texts = log.sql("select distinct text from segments").fetchall()
        assert texts == [("[masked]",)]
        assert all("[masked], keep it" in str(c.output and c.output.text) for c in log.calls())


class Broken(Echo):
    """Stops in the middle of what is to be masked, as soon as that has left."""

    def __init__(self) -> None:
        super().__init__()
        self.left = threading.Event()
        self.cut = next(islice(boundaries(), 5, None))

    def generate(
        self, request: Request, *, on_text: Callable[[str], None] | None = None
    ) -> Generation:
        text = request.messages[-1].text
        assert on_text is not None
        on_text(text[: self.cut])
        assert self.left.wait(10)
        raise BackendError("it broke off", backend="broken")


def test_an_answer_that_was_cut_off_is_masked_whole(path: Path) -> None:
    model = Broken()
    with Guard(model, [], path, mask=[PATTERN]) as guard:
        stream = guard.stream(f"{'x' * (model.cut - 6)}{SECRET}, keep it")
        taken = next(stream)
        model.left.set()
        with pytest.raises(BackendError):
            next(stream)
    assert taken.endswith('xK4"NAR')
    assert not holds(path, SECRET)
    with ReplayLog(path) as log:
        (call,) = log.calls()
        assert call.output is not None
        assert call.output.text == "[masked]"


def test_what_stood_in_between_is_masked(path: Path) -> None:
    def adds(text: str) -> Verdict:
        return Replace(f"{text} {SECRET}") if SECRET not in text else Allow()

    def removes(text: str) -> Verdict:
        return Replace(text.replace(SECRET, "gone")) if "gone" not in text else Allow()

    found = check(finder(lambda spans: Flag("a key", spans=spans)), id="keys")
    with Guard(Echo(), [adds, removes, found], path, mask=[{"check": "keys"}]) as guard:
        guard.chat("hello")
    assert not holds(path, SECRET)


def test_what_a_masking_check_made_of_an_answer_is_recorded(path: Path) -> None:
    found = check(finder(lambda spans: Replace("my key is gone", spans=spans)), id="keys")
    with Guard(Echo(), [found], path, mask=[{"check": "keys"}]) as guard:
        guard.chat("an answer without", session="one")
        guard.chat(f"my key is {SECRET}")
    assert not holds(path, SECRET)
    with ReplayLog(path) as log:
        second, first = log.calls()
        assert first.output is not None
        assert second.output is not None
        assert (first.output.text, second.output.text) == ("an answer without", "my key is gone")


def test_other_forms_are_masked_too(path: Path) -> None:
    def answer(text: str) -> tuple[Any, ...]:
        half = len(text) // 2
        return (
            Text(text[:half]),
            Text(text[half:]),
            ToolCall("1", "look", {SECRET: [SECRET, 7731, 1.5]}),
            Reasoning(f"hm, {SECRET}", SECRET.encode().hex()),
        )

    with Guard(Echo(answer), [], path, mask=[PATTERN, {"pattern": "^7731$"}]) as guard:
        guard.chat(
            [Message("user", (Text(SECRET[:5]), Text(SECRET[5:])))],
            extra={"user": SECRET, "number": 7731},
        )
    assert not holds(path, SECRET)
    with ReplayLog(path) as log:
        (call,) = log.calls()
        assert call.request is not None
        assert call.request.extra == {"user": "[masked]", "number": "[masked]"}
        assert call.output is not None
        assert call.output.content[1] == ToolCall(
            "1", "look", {"[masked]": ["[masked]", "[masked]", 1.5]}
        )


def test_digests_do_not_give_a_short_text_away(path: Path) -> None:
    def fine(text: str) -> bool:
        return True

    with Guard(Echo(), [fine], path, mask=[{"pattern": "[0-9]{4}"}]) as guard:
        guard.chat("pin 4711")
    with ReplayLog(path) as log:
        (call,) = log.calls()
        digests = [getattr(event, "before", "masked:") for event in call.events]
        assert all(digest.startswith("masked:") for digest in digests)


@pytest.mark.parametrize(
    ("mask", "why"),
    [
        ({"check": "nobody"}, "no check 'nobody'"),
        ({"pattern": "(?=a)"}, "not one that RE2 can run"),
        ({"payload": "output"}, "say what to mask"),
        ({"pointer": "content"}, "must begin with '/'"),
        ({"check": "x", "pattern": "y"}, "check stands alone"),
        ({"patern": "y"}, "unknown field"),
    ],
)
def test_masks_that_can_not_be_used_are_refused(
    path: Path, tmp_path: Path, mask: dict[str, str], why: str
) -> None:
    with pytest.raises(InputError, match=why.replace("(", r"\(")):
        Guard(Echo(), [], path, mask=[mask])
    file = tmp_path / "isonomy.toml"
    lines = "".join(f"{name} = '{value}'\n" for name, value in mask.items())
    file.write_text(f"[backend]\nuse = 'local:demo'\n[log]\npath = 'log'\n[[log.mask]]\n{lines}")
    with pytest.raises(ConfigError) as raised:
        Guard.from_file(file)
    assert any("log.mask" in str(problem) for problem in examine(str(file)).problems)
    assert "log.mask" in str(raised.value)


def test_masks_of_a_file_apply(tmp_path: Path) -> None:
    file = tmp_path / "isonomy.toml"
    file.write_text(
        "[backend]\nuse = 'local:demo'\nmax_tokens = 2\n[log]\npath = 'log'\n"
        f"[[log.mask]]\npattern = '{PATTERN['pattern']}'\n"
    )
    with Guard.from_file(file) as guard:
        guard.chat(f"my key is {SECRET}, keep it")
    assert not holds(tmp_path / "log", SECRET)


def test_a_call_that_waits_for_a_person_can_not_go_on_masked(path: Path) -> None:
    from isonomy.sdk.vocabulary import AskHuman

    def ask(text: str) -> Verdict:
        return AskHuman("is that so?")

    with Guard(Echo(), [ask], path, mask=[PATTERN]) as guard:
        reply = guard.chat(f"my key is {SECRET}, keep it")
        assert reply.token is not None
        with pytest.raises(Exception, match="was masked in its log"):
            guard.resume(reply.token, "approve")
