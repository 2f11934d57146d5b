"""What a check is shown is its own: nothing it does to it reaches what is recorded and released."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from tests.sdk.world import Memory, Scripted, events_in, of_type, output_in, request_in

from isonomy.sdk import (
    Candidate,
    Document,
    Generation,
    Guard,
    Message,
    Replace,
    Text,
    ToolCall,
    ToolResult,
    hookimpl,
)
from isonomy.sdk.canonical import digest_of, own
from isonomy.sdk.events import Generated, Judged
from isonomy.sdk.records import Intent, Result

CALL = ToolCall("t", "pay", {"to": "Ada", "list": [{"n": 1}]})


def spoil(value: Any, seen: set[int] | None = None) -> None:
    """Change whatever can be changed in a value, frozen fields included."""
    if isinstance(value, dict):
        for item in value.values():
            spoil(item)
        value["spoilt"] = "yes"
    elif isinstance(value, list | tuple):
        for item in value:
            spoil(item)
        if isinstance(value, list):
            value.append("spoilt")
    elif isinstance(value, msgspec.Struct):
        for name in value.__struct_fields__:
            spoil(getattr(value, name))
            if isinstance(getattr(value, name), str):
                msgspec.structs.force_setattr(value, name, "spoilt")


class Spoiler:
    """Spoils everything that any hook is shown, and gives no verdict for it."""

    def __init__(self, inline: bool) -> None:
        self.inline = inline

    @hookimpl
    def pre_filter(self, call: Any, messages: Any) -> None:
        spoil((call, messages))

    @hookimpl
    def retrieved(self, call: Any, documents: Any) -> None:
        spoil((call, documents))

    @hookimpl
    def tool_result(self, call: Any, tool_call: Any, result: Any) -> None:
        spoil((call, tool_call, result))

    @hookimpl
    def critique(self, call: Any, candidate: Any) -> None:
        spoil((call, candidate))

    @hookimpl
    def revise(self, call: Any, candidate: Any, critiques: Any) -> None:
        spoil((call, candidate, critiques))

    @hookimpl
    def rank(self, call: Any, candidates: Any) -> None:
        spoil((call, candidates))

    @hookimpl
    def tool_call(self, call: Any, tool_call: Any) -> None:
        spoil((call, tool_call))

    @hookimpl
    def post_validate(self, call: Any, candidate: Any) -> None:
        spoil((call, candidate))

    @hookimpl
    def observe(self, call: Any, event: Any) -> None:
        spoil((call, event))


@pytest.mark.parametrize("inline", [True, False])
def test_what_a_check_does_to_what_it_is_shown_reaches_nothing(inline: bool) -> None:
    answer = (Text("paying"), own(CALL))
    asked = [
        Message.of("user", "pay"),
        Message("assistant", (ToolCall("r", "look", {"a": [1]}),)),
        Message("tool", (ToolResult("r", "found"),)),
    ]
    log, backend = Memory(), Scripted([answer])
    with Guard(backend, [Spoiler(inline)], log) as guard:
        reply = guard.chat(
            own(asked), documents=[Document("d", "text")], tags={"k": "v"}, session="s"
        )
    assert reply.output.content == (Text("paying"), CALL)
    sent = backend.requests[0].messages
    assert sent[1:] == tuple(asked[1:])
    assert sent[0].text == "Documents:\n\n[d]\ntext\n\npay"
    intent, result = log.only(Intent), log.only(Result)
    assert (intent.record.tags, intent.record.session) == ({"k": "v"}, "s")
    assert request_in(intent).documents == (Document("d", "text"),)
    (generated,) = [event for event in events_in(result) if isinstance(event, Generated)]
    assert generated.generation.content == (Text("paying"), CALL)
    assert output_in(result).content == (Text("paying"), CALL)
    assert b"spoilt" not in log.everything()
    judged = [event for event in of_type(reply, Judged) if event.stage == "tool_call"]
    assert [event.before for event in judged] == [digest_of(CALL)]


def test_what_a_check_put_in_place_is_no_longer_its_own() -> None:
    class Replacing:
        def __init__(self) -> None:
            self.made: list[Any] = []

        @hookimpl
        def revise(self, candidate: Candidate) -> Candidate:
            self.made.append(candidate.with_content((Text("x"), own(CALL))))
            return self.made[-1]

        @hookimpl
        def post_validate(self, candidate: Candidate) -> Replace | None:
            spoil(self.made)
            if candidate.text == "y":
                return None
            self.made.append(Replace((Text("y"), own(CALL))))
            return self.made[-1]

    class Later:
        def __init__(self, first: Replacing) -> None:
            self.first = first

        @hookimpl
        def post_validate(self, candidate: Candidate) -> None:
            spoil(self.first.made)

    log, first = Memory(), Replacing()
    with Guard(Scripted(), [first, Later(first)], log) as guard:
        reply = guard.chat("hello")
    assert reply.output.content == (Text("y"), CALL)
    assert b"spoilt" not in log.everything()


def test_a_nested_answer_is_the_check_s_own() -> None:
    class Judge:
        @hookimpl
        def pre_filter(self, ctx: Any) -> None:
            spoil(ctx.generate("is it?"))

    log = Memory()
    with Guard(Scripted(lambda _: (Text("yes"), own(CALL))), [Judge()], log) as guard:
        guard.chat("hello")
    assert b"spoilt" not in log.everything()


def test_what_the_caller_and_the_backend_keep_is_not_what_is_judged() -> None:
    kept = Generation(content=(own(CALL),), finish_reason="stop", model="m")
    asked = Message("assistant", (own(CALL),))

    class Meddling:
        @hookimpl
        def pre_filter(self) -> None:
            spoil(asked)

        @hookimpl
        def post_validate(self) -> None:
            spoil(kept)

    log = Memory()
    with Guard(lambda _: kept, [Meddling()], log) as guard:
        reply = guard.chat([asked])
    assert reply.output.content == (CALL,)
    assert b"spoilt" not in log.everything()
