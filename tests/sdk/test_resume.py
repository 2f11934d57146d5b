"""Calls that wait for a person: resumed once, after a restart too, judged again, and replayed."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from tests.sdk.world import SEED, Memory, Scripted, of_type, run, told

from isonomy.replay import ReplayLog
from isonomy.sdk import (
    Allow,
    AskHuman,
    BackendError,
    Block,
    Candidate,
    Document,
    Guard,
    InputError,
    Message,
    Replace,
    Reply,
    Retry,
    Text,
    ToolCall,
    ToolResult,
    check,
    hookimpl,
    on_input,
    on_output,
)
from isonomy.sdk.canonical import digest_of
from isonomy.sdk.events import Decided, Judged

REFUSAL = "I can't help with that."


def unless(approved: str) -> Any:
    """Asks a person about everything that holds none of their words."""

    def ask(text: str) -> Any:
        return True if approved in text else AskHuman("who?")

    return ask


def logged(folder: Path, policy: Any, backend: Any = None, **options: Any) -> Guard:
    return Guard(backend or Scripted(), policy, log=folder / "log", sampling=SEED, **options)


@pytest.mark.parametrize("log", [True, False])
@pytest.mark.parametrize("way", ["resume", "aresume"])
def test_an_approved_question_goes_to_the_model(tmp_path: Path, log: bool, way: str) -> None:
    backend = Scripted()
    policy = [on_input(lambda t: AskHuman("a refund"), id="refunds"), lambda t: True]
    with Guard(backend, policy, log=tmp_path / "log" if log else None) as guard:
        waits = guard.chat("pay me", session="s", actor="a", tags={"k": "v"})
        assert (waits.verdict, waits.text, backend.requests) == ("ask_human", REFUSAL, [])
        assert waits.token is not None
        assert waits.token.startswith(waits.call_id)
        resumed = getattr(guard, way)(waits.token, "approve", by="bob", reason="known")
        reply: Reply = resumed if way == "resume" else run(resumed)
        assert told(reply.events) == [
            ("decided", "pre_filter", "-", "-"),
            ("judged", "pre_filter", "refunds", "ask_human"),
            ("judged", "pre_filter", "check", "allow"),
            ("generated", "generate", "-", "-"),
            ("judged", "post_validate", "check", "allow"),
        ]
        (decided,) = of_type(reply, Decided)
        assert (decided.decision, decided.by, decided.reason, decided.after) == (
            "approve", "bob", "known", None,
        )  # fmt: skip
        assert decided.before == digest_of((Message.of("user", "pay me"),))
        assert (reply.verdict, reply.text, reply.token) == ("allow", "You said: pay me", None)
        if log:
            stored = ReplayLog(tmp_path / "log").call(reply.call_id)
            assert stored.intent is not None
            assert (stored.intent.operation, stored.intent.resumes) == ("resume", waits.call_id)
            assert (stored.intent.session, stored.intent.actor) == ("s", "a")
            assert stored.intent.tags == {"k": "v"}
            for call_id in (waits.call_id, reply.call_id):
                replayed = guard.replay(call_id)
                assert replayed.status == "verified", replayed.sentence()


def test_no_record_holds_a_token(tmp_path: Path) -> None:
    with logged(tmp_path, [on_input(unless("x"))]) as guard:
        token = guard.chat("hello").token
        assert token is not None
    secret = token.partition(".")[2].encode()
    files = [file.read_bytes() for file in (tmp_path / "log").iterdir()]
    assert sum(map(len, files)) > 1000
    assert not any(secret in body for body in files)


def test_an_approved_answer_is_released_without_asking_the_model_again(tmp_path: Path) -> None:
    backend, later = Scripted(["the answer"]), [0]

    def count(text: str) -> bool:
        later[0] += 1
        return True

    with logged(tmp_path, [on_output(lambda t: AskHuman("sure?")), on_output(count)], backend) as g:
        waits = g.chat("hello")
        assert later == [1]
        reply = g.resume(str(waits.token), "approve")
        assert (reply.text, reply.verdict, later) == ("the answer", "allow", [2])
        assert len(backend.requests) == 1
        assert g.replay(reply.call_id).status == "verified"


@pytest.mark.parametrize("place", [on_input, on_output])
def test_a_rejected_call_ends_in_the_refusal(tmp_path: Path, place: Any) -> None:
    backend = Scripted()
    with logged(tmp_path, [place(lambda t: AskHuman("sure?"))], backend) as guard:
        waits = guard.chat("hello")
        asked = len(backend.requests)
        reply = guard.resume(str(waits.token), "reject", by="bob", reason="no")
        assert (reply.text, reply.verdict) == (REFUSAL, "block")
        assert reply.reason == "rejected by bob: no"
        assert (len(backend.requests), told(reply.events)[0][0]) == (asked, "decided")
        assert len(reply.events) == 1
        assert guard.replay(reply.call_id).status == "verified"


def test_an_edit_is_judged_like_anything_else(tmp_path: Path) -> None:
    backend = Scripted()
    policy = [on_input(lambda t: "evil" not in t, id="evil"), on_input(unless("please"), id="who")]
    with logged(tmp_path, policy, backend) as guard:
        first, second = guard.chat("pay me"), guard.chat("pay me")
        blocked = guard.resume(str(first.token), "edit", edited="be evil", by="bob")
        assert (blocked.verdict, blocked.check, backend.requests) == ("block", "evil", [])
        reply = guard.resume(str(second.token), "edit", edited="please pay me", by="bob")
        assert (reply.text, reply.verdict) == ("You said: please pay me", "replace")
        (decided,) = of_type(reply, Decided)
        assert decided.after == digest_of((Message.of("user", "please pay me"),))
        for each in (blocked, reply):
            assert guard.replay(each.call_id).status == "verified"


class Tools:
    @hookimpl
    def tool_call(self, tool_call: ToolCall) -> Any:
        if tool_call.name == "delete":
            return Block("no deleting")
        return AskHuman("a payment") if tool_call.name == "pay" else Allow()


PAY, DELETE = ToolCall("1", "pay", {"n": 1}), ToolCall("1", "delete", {})


def test_an_edited_answer_s_tool_calls_are_judged_again(tmp_path: Path) -> None:
    policy = [Tools(), on_output(lambda t: AskHuman("sure?") if "b" in t else True)]
    with logged(tmp_path, policy, Scripted(lambda _: "bb")) as guard:
        waits = [guard.chat("hello") for _ in range(2)]
        reply = guard.resume(str(waits[0].token), "edit", edited=[Text("a"), DELETE])
        assert (reply.verdict, reply.reason) == ("block", "no deleting")
        again = guard.resume(str(waits[1].token), "edit", edited=[Text("a"), PAY])
        assert again.verdict == "ask_human"
        assert again.token is not None
        done = guard.resume(again.token, "approve")
        assert done.output.content == (Text("a"), PAY)
        for each in (reply, again, done):
            replayed = guard.replay(each.call_id)
            assert replayed.status == "verified", replayed.sentence()


def test_an_approved_tool_call_goes_on_to_the_rest(tmp_path: Path) -> None:
    seen: list[str] = []

    def note(text: str) -> bool:
        seen.append(text)
        return True

    with logged(tmp_path, [Tools(), on_output(note)], Scripted([(Text("ok"), PAY)])) as guard:
        waits = guard.chat("hello")
        assert seen == []
        reply = guard.resume(str(waits.token), "approve")
        assert (reply.output.content, seen) == ((Text("ok"), PAY), ["ok"])
        assert guard.replay(reply.call_id).status == "verified"


class Inputs:
    """Asks about documents and about what tools answered."""

    @hookimpl
    def retrieved(self, documents: tuple[Document, ...]) -> Any:
        return AskHuman("a rumour") if any("rumour" in d.text for d in documents) else Allow()

    @hookimpl
    def tool_result(self, result: ToolResult) -> Any:
        return AskHuman("odd") if "odd" in result.content else Allow()


@pytest.mark.parametrize("wait", [0, 0.001, 0.005])
def test_a_cancelled_resumption_has_ended_in_the_log(tmp_path: Path, wait: float) -> None:
    """The token is used up or not; a call that was begun with it has a result either way."""

    async def cancelled(token: str) -> None:
        resuming = asyncio.create_task(guard.aresume(token, "approve"))
        await asyncio.sleep(wait)
        resuming.cancel()
        with suppress(asyncio.CancelledError):
            await resuming

    with logged(tmp_path, [on_input(unless("please"))]) as guard:
        run(cancelled(str(guard.chat("pay me").token)))
    with ReplayLog(tmp_path / "log") as log:
        found = log.sql("select operation, status from calls order by sequence").fetchall()
        assert found == [("chat", "complete"), ("resume", "complete")]
        assert log.verify().intact


@pytest.mark.parametrize("edited", [5, Candidate(index=0, content=(), finish_reason="")])
def test_an_edit_of_another_type(edited: Any) -> None:
    with Guard(Scripted(), [on_input(unless("please"))]) as guard:
        token = str(guard.chat("pay me").token)
        with pytest.raises(InputError, match="malformed"):
            guard.resume(token, "edit", edited=edited)
        assert guard.resume(token, "edit", edited="please").verdict == "replace"


@pytest.mark.parametrize("backend", [5, "local:demo"])
def test_a_call_is_given_a_backend_and_nothing_else(backend: Any) -> None:
    with Guard(Scripted(), [on_input(unless("please"))]) as guard:
        waits = guard.chat("pay me")
        for call in (
            lambda: guard.chat("hello", backend=backend),
            lambda: guard.stream("hello", backend=backend),
            lambda: guard.resume(str(waits.token), "approve", backend=backend),
        ):
            with pytest.raises(InputError, match="must be a Backend"):
                call()


DIALOGUE = [
    Message.of("user", "find"),
    Message("assistant", (ToolCall("1", "f", {}),)),
    Message("tool", (ToolResult("1", "odd"),)),
]


@pytest.mark.parametrize(
    ("decision", "edited", "shown"),
    [("approve", None, "rumour"), ("edit", [Document("b", "fact")], "fact"), ("edit", [], "find")],
)
def test_documents_and_tool_results_wait_one_after_the_other(
    tmp_path: Path, decision: Any, edited: Any, shown: str
) -> None:
    backend = Scripted(lambda messages: "done")
    with logged(tmp_path, [Inputs()], backend) as guard:
        waits = guard.chat(DIALOGUE, documents=[Document("a", "rumour")])
        second = guard.resume(str(waits.token), decision, edited=edited)
        assert (second.verdict, second.reason) == ("ask_human", "odd")
        reply = guard.resume(str(second.token), "edit", edited="even")
        assert reply.text == "done"
        (request,) = backend.requests
        assert shown in request.messages[0].text
        assert request.messages[2].content == (ToolResult("1", "even"),)
        for each in (waits, second, reply):
            replayed = guard.replay(each.call_id)
            assert replayed.status == "verified", replayed.sentence()


def test_what_checks_had_replaced_is_what_waits(tmp_path: Path) -> None:
    def mask(text: str) -> Any:
        return Replace(text.replace("secret", "[x]")) if "secret" in text else True

    backend = Scripted()
    with logged(tmp_path, [on_input(mask), on_input(unless("please"))], backend) as guard:
        waits = guard.chat("a secret")
        reply = guard.resume(str(waits.token), "approve")
        assert backend.requests[0].messages == (Message.of("user", "a [x]"),)
        for each in (waits, reply):
            replayed = guard.replay(each.call_id)
            assert replayed.status == "verified", replayed.sentence()


def test_the_waiver_ends_with_a_new_answer(tmp_path: Path) -> None:
    def stern(text: str) -> Any:
        return Retry("again") if text == "one" else True

    backend = Scripted(["one", "two"])
    policy = [on_output(stern, id="stern"), on_output(lambda t: AskHuman(f"is {t} right?"))]
    with logged(tmp_path, policy, backend) as guard:
        waits = guard.chat("hello")
        again = guard.resume(str(waits.token), "approve")
        assert [m.text for m in backend.requests[1].messages] == ["hello", "one", "again"]
        assert (again.verdict, again.reason) == ("ask_human", "is two right?")
        assert guard.resume(str(again.token), "approve").text == "two"
        assert guard.replay(again.call_id).status == "verified"


def test_the_options_of_the_call_are_kept(tmp_path: Path) -> None:
    backend = Scripted()
    tools = [{"type": "function", "function": {"name": "f"}}]
    shape = {"type": "json_object"}
    with logged(tmp_path, [on_input(unless("x"))], backend) as guard:
        waits = guard.chat("hi", tools=tools, response_format=shape, extra={"user": "u"})
        guard.resume(str(waits.token), "approve")
    (request,) = backend.requests
    assert (request.tools, request.response_format, request.extra) == (
        tuple(tools), shape, {"user": "u"},
    )  # fmt: skip
    assert request.sampling.seed == 7


# Once.


@pytest.mark.parametrize("log", [True, False])
def test_a_token_is_used_once_whoever_comes_at_the_same_time(tmp_path: Path, log: bool) -> None:
    backend = Scripted()
    with Guard(backend, [on_input(unless("x"))], log=tmp_path / "log" if log else None) as guard:
        token = str(guard.chat("hello").token)
        barrier = threading.Barrier(8)

        def resume(_: int) -> str | None:
            barrier.wait(5)
            try:
                return guard.resume(token, "approve").text
            except InputError:
                return None

        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(resume, range(8)))
    assert sorted(found, key=str) == [None] * 7 + ["You said: hello"]
    assert len(backend.requests) == 1


RESUME = """
import sys
from isonomy.sdk import AskHuman, Guard, InputError, on_input
def ask(text): return AskHuman("who?")
def answer(messages): return "answered"
with Guard(answer, [on_input(ask)], log=sys.argv[1]) as guard:
    if len(sys.argv) == 2:
        print(guard.chat("hello").token)
    else:
        sys.stdin.readline()
        try:
            print(guard.resume(sys.argv[2], "approve").text)
        except InputError:
            print("used")
"""


def test_a_token_is_used_once_by_several_processes_after_a_restart(tmp_path: Path) -> None:
    command = [sys.executable, "-c", RESUME, str(tmp_path / "log")]
    began = subprocess.run(command, capture_output=True, text=True, check=True)
    token = began.stdout.strip()
    children = [
        subprocess.Popen(
            [*command, token], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    for child in children:
        assert child.stdin is not None
        child.stdin.write("\n")
        child.stdin.flush()
    said = sorted(child.communicate(timeout=60)[0].strip() for child in children)
    assert said == ["answered", "used", "used"]


def test_a_token_is_used_up_even_if_the_model_fails(tmp_path: Path) -> None:
    failing = Scripted([BackendError("down. Wait.", backend="x")])
    with logged(tmp_path, [on_input(unless("x"))], failing) as guard:
        token = str(guard.chat("hello").token)
        with pytest.raises(BackendError):
            guard.resume(token, "approve")
        with pytest.raises(InputError, match="used already"):
            guard.resume(token, "approve")


@pytest.mark.parametrize("log", [True, False])
@pytest.mark.parametrize(
    "change",
    [
        lambda token: token[:-1] + ("0" if token[-1] != "0" else "1"),
        lambda token: token.split(".")[0],
        lambda token: "nothing",
        lambda token: "",
    ],
)
def test_a_wrong_token_resumes_nothing_and_spoils_nothing(
    tmp_path: Path, log: bool, change: Any
) -> None:
    with Guard(Scripted(), [on_input(unless("x"))], log=tmp_path / "l" if log else None) as guard:
        token = str(guard.chat("hello").token)
        with pytest.raises(InputError, match="no call waits for this token"):
            guard.resume(change(token), "approve")
        assert guard.resume(token, "approve").text == "You said: hello"


@pytest.mark.parametrize(
    ("decision", "options", "said"),
    [
        ("maybe", {}, "approve, edit or reject"),
        ("edit", {}, "edited="),
        ("approve", {"edited": "x"}, "edited="),
        ("edit", {"edited": [Text("part")]}, "does not fit at pre_filter"),
        ("edit", {"edited": "\ud800"}, "surrogate"),
        ("edit", {"edited": [5]}, "malformed"),
        ("approve", {"by": 5}, "malformed"),
    ],
)
def test_a_wrong_decision_is_refused_and_the_token_stays_good(
    tmp_path: Path, decision: Any, options: Any, said: str
) -> None:
    with logged(tmp_path, [on_input(unless("x"))]) as guard:
        token = str(guard.chat("hello").token)
        with pytest.raises(InputError, match=said):
            guard.resume(token, decision, **options)
        assert guard.resume(token, "approve").text == "You said: hello"


def test_only_calls_that_wait_have_a_token(tmp_path: Path) -> None:
    policy = [on_output(lambda t: AskHuman("sure?"), id="a"), on_output(lambda t: "b" not in t)]
    with logged(tmp_path, policy, Scripted(["b", "a"])) as guard:
        assert guard.chat("hello").token is None  # blocked
        waits = guard.chat("hello")
        stored = ReplayLog(tmp_path / "log").call(waits.call_id)
        assert stored.result is not None
        assert stored.result.token is not None
        assert stored.result.token not in str(waits.token)


def test_without_a_log_the_newest_are_kept() -> None:
    from isonomy.sdk.resuming import Memory as Kept

    with Guard(Scripted(), [on_input(unless("x"))], log=Memory()) as guard:
        guard._waiting = Kept(size=2)
        tokens = [str(guard.chat(f"hello {n}").token) for n in range(3)]
        with pytest.raises(InputError):
            guard.resume(tokens[0], "approve")
        assert [guard.resume(t, "approve").text for t in tokens[1:]] == [
            "You said: hello 1",
            "You said: hello 2",
        ]


def test_a_person_who_decides_about_one_check_has_not_decided_about_another(tmp_path: Path) -> None:
    backend = Scripted()
    policy = [
        on_input(lambda t: AskHuman("a refund"), id="first"),
        check(lambda t: AskHuman("a name"), id="second", beside=True, stages=("pre_filter",)),
    ]
    with logged(tmp_path, policy, backend) as guard:
        waits = guard.chat("pay Mia")
        assert (waits.verdict, waits.check, backend.requests) == ("ask_human", "first", [])
        again = guard.resume(waits.token, "approve", by="bob")
        assert (again.verdict, again.check, again.text) == ("ask_human", "second", REFUSAL)
        reply = guard.resume(again.token, "approve", by="eve")
        assert (reply.verdict, reply.text) == ("allow", "You said: pay Mia")
        for each in (waits, again, reply):
            assert guard.replay(each.call_id).status == "verified"


def test_a_check_beside_the_model_may_ask_a_person(tmp_path: Path) -> None:
    backend = Scripted()
    asks = check(lambda t: AskHuman("who?"), beside=True, stages=("pre_filter",))
    with logged(tmp_path, [asks], backend) as guard:
        waits = guard.chat("hello")
        assert waits.verdict == "ask_human"
        reply = guard.resume(str(waits.token), "approve")
        assert (reply.text, reply.verdict) == ("You said: hello", "allow")
        for each in (waits, reply):
            assert guard.replay(each.call_id).status == "verified"


def test_what_a_hook_asks_about_is_what_it_is_shown_when_it_is_resumed(tmp_path: Path) -> None:
    class Look:
        @hookimpl
        def post_validate(self, candidate: Candidate) -> Any:
            return AskHuman(candidate.text)

    with logged(tmp_path, [Look()], Scripted(["first"])) as guard:
        waits = guard.chat("hello")
        reply = guard.resume(str(waits.token), "edit", edited="second")
        (judged,) = of_type(reply, Judged)
        assert judged.verdict == AskHuman("second")
        assert reply.text == "second"
