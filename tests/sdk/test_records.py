"""What a call appends to the log, and when."""

from __future__ import annotations

import os
import socket
import threading
import time
from typing import Any

import msgspec
import pytest
from tests.sdk.world import (
    Memory,
    Scripted,
    broken,
    events_in,
    output_in,
    payloads,
    request_in,
    run,
    told,
)

from isonomy.sdk import (
    BackendError,
    Block,
    Critique,
    Document,
    Flag,
    Guard,
    LogError,
    Message,
    Policy,
    Ranking,
    Replace,
    Retry,
    Sampling,
    Span,
    Text,
    ToolCall,
    check,
    hookimpl,
    on_input,
    on_output,
)
from isonomy.sdk.canonical import canonical, carriable, sha256
from isonomy.sdk.events import BackendFailed, Event, Generated
from isonomy.sdk.policy import REFUSAL
from isonomy.sdk.records import (
    SCHEMA_VERSION,
    Entry,
    EventHeader,
    Intent,
    Opening,
    Output,
    Record,
    RequestContent,
    Result,
    header_of,
)


@pytest.fixture(params=["chat", "achat"])
def ask(request: pytest.FixtureRequest) -> Any:
    def ask(guard: Guard, *args: Any, **options: Any) -> Any:
        if request.param == "chat":
            return guard.chat(*args, **options)
        return run(guard.achat(*args, **options))

    return ask


def passing(text: str) -> bool:
    return True


def test_the_intent_is_durable_before_the_model_is_asked_and_the_result_before_the_reply(
    ask: Any,
) -> None:
    log, backend = Memory(), Scripted()
    seen: list[list[str]] = []
    backend.when_asked.append(lambda request: seen.append(list(log.kinds)))
    with Guard(backend, [passing], log) as guard:
        ask(guard, "hello")
        assert seen == [["Intent"]]
        assert log.kinds == ["Intent", "Result"]
        assert [len(batch) for batch in log.batches] == [1, 1]


def test_what_the_records_say(ask: Any) -> None:
    log = Memory()
    started = time.time_ns()
    policy = Policy([passing], name="house rules")
    with Guard(Scripted(), policy, log, sampling=Sampling(temperature=0.5, top_p=0.9)) as guard:
        reply = ask(
            guard,
            "hello",
            session="s",
            actor="ada",
            subject="bob",
            tags={"team": "x"},
            sampling=Sampling(temperature=0.0, seed=2**64 - 1),
        )
        identity = guard.backend.identity()
    intent, result = log.only(Intent).record, log.only(Result).record
    assert isinstance(intent, Intent)
    assert isinstance(result, Result)
    for record in (intent, result):
        assert (record.schema, record.call_id) == (SCHEMA_VERSION, reply.call_id)
        assert (record.session, record.subject) == ("s", "bob")
        assert (record.host, record.process) == (socket.gethostname(), os.getpid())
        assert started <= record.wall_ns <= time.time_ns()
    assert intent.monotonic_ns < result.monotonic_ns
    assert (intent.operation, intent.actor, intent.tags) == ("chat", "ada", {"team": "x"})
    assert intent.identity == identity
    assert intent.sampling == Sampling(temperature=0.0, top_p=0.9, seed=2**64 - 1)
    assert (intent.policy_name, intent.policy_digest) == ("house rules", policy.digest)
    assert intent.checks == policy.identities
    assert set(intent.versions) >= {"isonomy", "msgspec", "pluggy"}
    assert (result.verdict, result.finish_reason, result.rounds) == ("allow", "stop", 0)
    assert (result.usage, result.error) == (reply.usage, None)
    assert 0 < result.duration_ns < time.time_ns() - started


def test_the_payloads_of_a_call(ask: Any) -> None:
    log, policy = Memory(), Policy([on_output(passing)])
    with Guard(Scripted(), policy, log) as guard:
        ask(guard, "hello")
    intent, result = log.only(Intent), log.only(Result)
    assert payloads(intent) == {
        "policy": policy.written,
        "message/0": b'{"content":[{"text":"hello","type":"text"}],"role":"user","type":"message"}',
        "request": b'{"admitted":[0],"documents":[],"extra":{},"messages":[0],'
        b'"response_format":null,"resumption":null,"tools":[]}',
        "events": b"[]",
    }
    assert [payload.name for payload in intent.payloads if payload.shared] == ["policy"]
    assert sha256(policy.written) == policy.digest
    assert set(payloads(result)) == {"events", "output"}
    assert told(events_in(result)) == [
        ("generated", "generate", "-", "-"),
        ("judged", "post_validate", "passing", "allow"),
    ]
    assert output_in(result) == Output(text="You said: hello", content=(Text("You said: hello"),))


def test_messages_are_numbered_by_first_appearance_and_stored_once() -> None:
    log = Memory()
    seen: list[str] = []

    def once(text: str) -> Any:
        seen.append(text)
        return Retry("be brief") if len(seen) == 1 else True

    class Nested:
        @hookimpl
        def critique(self, ctx: Any) -> Any:
            ctx.generate("hello")
            return []

    history = [Message.of("user", "hello"), Message.of("assistant", "yes"),
               Message.of("user", "hello"), Message.of("user", "my secret")]  # fmt: skip
    mask = on_input(lambda t: Replace("[x]") if "secret" in t else True)
    with Guard(Scripted(), [mask, Nested(), on_output(once)], log) as guard:
        guard.chat(history)
    intent, result = log.only(Intent), log.only(Result)
    table = {
        int(name.partition("/")[2]): msgspec.json.decode(body, type=Message).text
        for entry in (intent, result)
        for name, body in payloads(entry).items()
        if name.startswith("message/")
    }
    assert table == {
        0: "hello", 1: "yes", 2: "my secret", 3: "[x]", 4: "You said: [x]", 5: "be brief",
    }  # fmt: skip
    assert request_in(intent) == RequestContent(messages=(0, 1, 0, 2), admitted=(0, 1, 0, 3))
    assert {"message/3"} <= set(payloads(intent))
    assert {"message/4", "message/5"} <= set(payloads(result))
    sent = [e.messages for e in events_in(result) if isinstance(e, Generated)]
    assert sent == [(0, 1, 0, 3), (0,), (0, 1, 0, 3, 4, 5), (0,)]


def test_documents_are_part_of_the_request() -> None:
    log, document = Memory(), Document("a", "text", source="book")
    with Guard(Scripted(), [], log) as guard:
        guard.chat("hello", documents=[document])
    request = request_in(log.only(Intent))
    assert request.documents == (document,)
    assert (request.messages, request.admitted) == ((0,), (1,))


def test_a_call_blocked_at_the_input_is_written_in_one_piece(ask: Any) -> None:
    log, backend = Memory(), Scripted()
    with Guard(backend, [on_input(lambda text: Block("no"))], log) as guard:
        reply = ask(guard, "hello")
    assert [len(batch) for batch in log.batches] == [2]
    assert log.kinds == ["Intent", "Result"]
    intent, result = log.only(Intent), log.only(Result)
    assert request_in(intent) == RequestContent(messages=(0,), admitted=None)
    assert told(events_in(intent)) == [("judged", "pre_filter", "check", "block")]
    assert events_in(result) == ()
    assert isinstance(result.record, Result)
    assert (result.record.verdict, result.record.finish_reason) == ("block", "content_filter")
    assert output_in(result) == Output(
        text=REFUSAL, content=(Text(REFUSAL),), refusal=True, check="check", reason="no"
    )
    assert reply.usage == result.record.usage
    assert backend.requests == []


@pytest.mark.parametrize(
    ("error", "name", "message"),
    [
        (broken(), "BackendError", "the parrot is asleep. Wake it."),
        (ValueError("bug"), "BackendError", "the backend raised ValueError: bug"),
        (BackendError("odd \ud800", backend="scripted"), "BackendError", "odd ?"),
    ],
)
def test_a_backend_s_failure_is_recorded_and_raised(
    ask: Any, error: Exception, name: str, message: str
) -> None:
    log = Memory()
    with Guard(Scripted([error]), [passing], log) as guard, pytest.raises(BackendError) as caught:
        ask(guard, "hello")
    assert carriable(str(caught.value)) == message
    result = log.only(Result)
    assert isinstance(result.record, Result)
    assert (result.record.error, result.record.finish_reason) == (name, None)
    assert caught.value.call_id == result.record.call_id
    (event,) = events_in(result)
    assert isinstance(event, BackendFailed)
    assert (event.error, event.message, event.purpose) == (name, message, "answer")
    assert output_in(result) == Output(text=None, error=message)


def test_a_failure_in_a_later_round_keeps_the_events_of_the_earlier(ask: Any) -> None:
    log = Memory()
    policy = [on_output(lambda text: Retry("again"))]
    with Guard(Scripted(["one", broken()]), policy, log) as guard, pytest.raises(BackendError):
        ask(guard, "hello")
    assert [event.type for event in events_in(log.only(Result))] == [
        "generated", "judged", "backend_failed",
    ]  # fmt: skip
    assert log.only(Result).record.rounds == 1  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("a\ud800", "surrogate"),
        (("bare",), "malformed"),
        ([Text("list")], None),
        ((Text(5),), "malformed"),  # type: ignore[arg-type]
    ],
)
def test_an_answer_that_cannot_be_judged_or_recorded_is_a_backend_error(
    ask: Any, answer: Any, said: str | None
) -> None:
    log = Memory()
    with Guard(Scripted([answer]), [passing], log) as guard:
        if said is None:
            assert ask(guard, "hello").text == "list"
        else:
            with pytest.raises(BackendError, match=f"the backend's answer can't be used: .*{said}"):
                ask(guard, "hello")
    assert log.kinds == ["Intent", "Result"]


def test_if_the_intent_is_not_durable_the_model_is_not_asked(ask: Any) -> None:
    log, backend = Memory(fail_at=[0]), Scripted()
    with Guard(backend, [passing], log) as guard, pytest.raises(LogError, match="disk is full"):
        ask(guard, "hello")
    assert (backend.requests, log.entries) == ([], [])


def test_if_the_result_is_not_durable_no_reply_is_released(ask: Any) -> None:
    log, backend = Memory(fail_at=[1]), Scripted()
    with Guard(backend, [passing], log) as guard, pytest.raises(LogError, match="disk is full"):
        ask(guard, "hello")
    assert len(backend.requests) == 1
    assert log.kinds == ["Intent"]


def test_a_blocked_call_that_is_not_durable_releases_no_reply_either(ask: Any) -> None:
    log = Memory(fail_at=[0])
    with Guard(Scripted(), [lambda text: False], log) as guard, pytest.raises(LogError):
        ask(guard, "hello")


def test_records_of_async_calls_need_no_worker() -> None:
    log, release = Memory(), threading.Event()

    def stuck(text: str) -> bool:
        return release.wait(30)

    async def main(guard: Guard) -> None:
        for _ in range(70):  # more than there may be stuck workers
            reply = await guard.achat("hello")
            assert reply.verdict == "block"

    with Guard(Scripted(), [on_output(stuck, timeout=0.001)], log) as guard:
        run(main(guard))
    release.set()
    assert len(log.entries) == 140


# What stands in a record proper.

CANARY = "canary"


class Chatty:
    """Puts the canary wherever a plugin can put text."""

    @hookimpl
    def pre_filter(self, ctx: Any) -> Any:
        ctx.effect("look", lambda: {CANARY: [CANARY]})
        ctx.generate(CANARY)
        return Flag(CANARY, spans=(Span(0, 1, CANARY),), labels=(CANARY,))

    @hookimpl
    def critique(self) -> Any:
        return [Critique(CANARY, 0.5, CANARY)]

    @hookimpl
    def revise(self, candidate: Any) -> Any:
        return candidate.with_content((Text(f"{CANARY} revised"), ToolCall("1", CANARY, {})))

    @hookimpl
    def rank(self) -> Any:
        return Ranking((0,))

    @hookimpl
    def tool_call(self) -> Any:
        raise ValueError(CANARY)

    @hookimpl
    def post_validate(self, ctx: Any) -> Any:
        try:
            ctx.effect("look", lambda: int(CANARY))
        except ValueError:
            return Replace(f"{CANARY} again", reason=CANARY)


def test_no_content_stands_in_a_record_proper() -> None:
    log = Memory()
    with Guard(Scripted(lambda messages: CANARY), [check(Chatty(), on_error="flag")], log) as guard:
        guard.chat(CANARY, documents=[Document(CANARY, CANARY, CANARY)])
    failing = Scripted([BackendError(CANARY, backend="x")])
    with Guard(failing, [], log) as guard, pytest.raises(BackendError):
        guard.chat("hello")
    assert log.kinds == ["Opening", "Intent", "Result", "Intent", "Result"]
    for entry in log.entries:
        assert CANARY.encode() not in canonical(entry.record)
        assert CANARY.encode() not in repr(entry.record).encode()
    assert CANARY.encode() in log.everything()


def test_headers_are_the_content_free_part_of_each_event() -> None:
    log = Memory()
    with Guard(Scripted(), [check(Chatty(), on_error="flag", id="c")], log) as guard:
        events = guard.chat("hello").events
    headers = [
        header
        for entry in log.entries
        if isinstance(entry.record, Intent | Result)
        for header in entry.record.events
    ]
    assert headers == [header_of(event) for event in events]
    assert {header.type for header in headers} >= {
        "effect", "generated", "judged", "critiqued", "revised", "ranked", "failed",
    }  # fmt: skip
    failed = next(event for event in events if event.type == "failed")
    assert header_of(failed) == EventHeader(
        sequence=failed.sequence,
        type="failed",
        stage="tool_call",
        check="c",
        round=0,
        verdict="flag",
        duration_ns=failed.duration_ns,
    )
    assert {f.name for f in msgspec.structs.fields(EventHeader)} == {
        "sequence", "type", "stage", "check", "round", "verdict", "duration_ns",
    }  # fmt: skip


def test_records_and_payloads_read_back_from_their_bytes() -> None:
    log = Memory()
    with Guard(Scripted(), [check(Chatty(), on_error="flag")], log) as guard:
        reply = guard.chat("hello")
    back: list[Event] = []
    for entry in log.entries:
        assert msgspec.json.decode(canonical(entry.record), type=Record) == entry.record
        if not isinstance(entry.record, Opening):
            back.extend(events_in(entry))
    assert tuple(back) == reply.events


def test_an_entry_holds_a_payload_name_once() -> None:
    log = Memory()
    with Guard(Scripted(), [passing], log) as guard:
        guard.chat("hello")
    entry: Entry
    for entry in log.entries:
        names = [payload.name for payload in entry.payloads]
        assert len(names) == len(set(names))
