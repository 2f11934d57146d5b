"""The rules at the top of isonomy.sdk.pipeline, one by one."""

from __future__ import annotations

from typing import Any

import pytest
from tests.sdk.world import Scripted, echo, of_type, told

from isonomy.sdk import (
    Allow,
    AskHuman,
    Block,
    Candidate,
    Critique,
    Document,
    Flag,
    Guard,
    Message,
    Policy,
    Ranking,
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
from isonomy.sdk.events import Critiqued, Failed, Generated, Judged, Ranked, Revised, Unjudged
from isonomy.sdk.policy import REFUSAL


def guarded(
    *checks: Any, backend: Scripted | None = None, prompt: Any = "hello", **options: Any
) -> Reply:
    policy = Policy(
        checks, **{k: options.pop(k) for k in ("max_rounds", "refusal") & options.keys()}
    )
    with Guard(backend or Scripted(), policy) as guard:
        return guard.chat(prompt, **options)


class Seen:
    """Says what it is told to, and remembers the texts it saw."""

    def __init__(self, *verdicts: Any, name: str = "seen") -> None:
        self.texts: list[str] = []
        self.__name__ = name
        self._verdicts = verdicts

    def __call__(self, text: str) -> Any:
        verdict = self._verdicts[min(len(self.texts), len(self._verdicts) - 1)]
        self.texts.append(text)
        return verdict


def swapping(old: str, new: str, name: str) -> Any:
    def swap(text: str) -> Any:
        return Replace(text.replace(old, new)) if old in text else True

    swap.__name__ = name
    return swap


# 1. Order, and what the next check sees.


def test_checks_are_asked_in_order_before_and_after_the_model() -> None:
    def first(text: str) -> bool:
        return True

    def second(text: str) -> Any:
        return Flag("odd") if text == "hello" else True

    reply = guarded(first, second)
    assert told(reply.events) == [
        ("judged", "pre_filter", "first", "allow"),
        ("judged", "pre_filter", "second", "flag"),
        ("generated", "generate", "-", "-"),
        ("judged", "post_validate", "first", "allow"),
        ("judged", "post_validate", "second", "allow"),
    ]
    assert [event.sequence for event in reply.events] == [0, 1, 2, 3, 4]
    assert (reply.text, reply.verdict, reply.check, reply.reason) == (
        "You said: hello",
        "flag",
        "second",
        "odd",
    )


def test_what_one_replaced_is_what_the_next_one_and_the_model_see() -> None:
    backend, later = Scripted(), Seen(True)
    reply = guarded(on_input(swapping("secret", "[x]", "mask")), on_input(later), backend=backend,
                    prompt="my secret")  # fmt: skip
    assert later.texts == ["my [x]"]
    assert backend.requests[0].messages == (Message.of("user", "my [x]"),)
    mask = of_type(reply, Judged)[0]
    assert mask.before == digest_of(Message.of("user", "my secret"))
    assert mask.after == digest_of(Message.of("user", "my [x]"))
    assert (reply.verdict, reply.check) == ("replace", "mask")


def test_a_replaced_answer_is_what_the_caller_gets() -> None:
    reply = guarded(on_output(swapping("hello", "[x]", "mask")))
    assert reply.text == "You said: [x]"
    assert not reply.blocked


def test_a_callable_is_given_each_non_system_text_then_the_final_text() -> None:
    seen = Seen(True)
    conversation = [
        Message.of("system", "be kind"),
        Message.of("user", "one"),
        Message.of("assistant", "two"),
        {"role": "user", "content": "three"},
    ]
    reply = guarded(seen, prompt=conversation)
    assert seen.texts == ["one", "two", "three", "You said: three"]
    assert [event.target for event in of_type(reply, Judged)] == [
        "message/1",
        "message/2",
        "message/3",
        "candidate/0",
    ]


def test_only_the_judged_message_is_replaced() -> None:
    backend = Scripted()
    conversation = [Message.of("user", "a secret"), Message.of("assistant", "ok"),
                    Message.of("user", "go on")]  # fmt: skip
    guarded(on_input(swapping("secret", "[x]", "mask")), backend=backend, prompt=conversation)
    assert [message.text for message in backend.requests[0].messages] == ["a [x]", "ok", "go on"]


class Rewriter:
    """A hook plugin that replaces at the input and at the output."""

    def __init__(self, messages: Any = None, content: Any = None) -> None:
        self._messages, self._content = messages, content

    @hookimpl
    def pre_filter(self, messages: tuple[Message, ...]) -> Any:
        return Replace(self._messages) if self._messages is not None else Allow()

    @hookimpl
    def post_validate(self, candidate: Candidate) -> Any:
        return Replace(self._content) if self._content is not None else Allow()


def test_a_hook_may_replace_all_messages() -> None:
    backend = Scripted()
    new = (Message.of("system", "short"), Message.of("user", "other"))
    guarded(Rewriter(messages=new), backend=backend)
    assert backend.requests[0].messages == new


def test_text_from_a_pre_filter_replaces_what_was_asked_last() -> None:
    backend = Scripted()
    conversation = [Message.of("user", "one"), Message.of("user", "two"),
                    Message.of("assistant", "three")]  # fmt: skip
    guarded(Rewriter(messages="new"), backend=backend, prompt=conversation)
    assert [message.text for message in backend.requests[0].messages] == ["one", "new", "three"]


def test_text_from_a_post_validator_keeps_the_other_parts() -> None:
    call = ToolCall("1", "search", {})
    backend = Scripted([(Text("a"), call, Text("b"))])
    reply = guarded(Rewriter(content="new"), backend=backend)
    assert reply.output.content == (Text("new"), call)


@pytest.mark.parametrize(
    "plugin",
    [
        Rewriter(messages=()),
        Rewriter(messages=(Text("part"),)),
        Rewriter(content=(Message.of("user", "x"),)),
        Rewriter(content="\ud800"),
        Rewriter(messages=(Message("user", "bare"),)),  # type: ignore[arg-type]
    ],
    ids=["nothing", "parts for messages", "messages for parts", "surrogate", "bare content"],
)
def test_a_replacement_that_makes_no_sense_there_breaks_the_contract(plugin: Rewriter) -> None:
    reply = guarded(plugin)
    (failed,) = of_type(reply, Failed)
    assert (failed.kind, failed.became) == ("invalid", "block")
    assert (reply.verdict, reply.text) == ("block", REFUSAL)


# 2. Settling.


def test_a_check_is_asked_again_only_if_others_changed_the_content() -> None:
    before, after = Seen(True, name="before"), Seen(True, name="after")
    guarded(on_output(before), on_output(swapping("hello", "[x]", "mask")), on_output(after))
    assert before.texts == ["You said: hello", "You said: [x]"]
    assert after.texts == ["You said: [x]"]


def test_a_check_that_replaced_is_not_asked_about_its_own_work() -> None:
    once = Seen(Replace("clean"))
    reply = guarded(on_output(once))
    assert once.texts == ["You said: hello"]
    assert reply.text == "clean"


@pytest.mark.parametrize("max_rounds", [0, 1, 3])
def test_checks_that_undo_each_other_block_after_max_rounds_more_passes(max_rounds: int) -> None:
    up, down = Seen(Replace("A"), name="up"), Seen(Replace("a"), name="down")
    reply = guarded(on_output(up), on_output(down), max_rounds=max_rounds)
    assert len(up.texts) == len(down.texts) == max_rounds + 1
    assert (reply.verdict, reply.text) == ("block", REFUSAL)
    assert reply.reason is not None
    assert "kept replacing each other's content" in reply.reason


def test_without_extra_passes_one_replacement_still_settles() -> None:
    seen = Seen(True)
    reply = guarded(on_output(swapping("hello", "[x]", "mask")), on_output(seen), max_rounds=0)
    assert reply.text == "You said: [x]"
    assert seen.texts == ["You said: [x]"]


def test_a_replacement_that_changes_nothing_settles() -> None:
    first = Seen(True, name="first")
    reply = guarded(on_output(first), on_output(Seen(Replace("You said: hello"), name="same")))
    assert first.texts == ["You said: hello"]
    assert (reply.verdict, reply.text) == ("replace", "You said: hello")


# 3. Block, Retry, AskHuman, Flag.


def test_a_block_ends_the_stage_and_the_model_is_never_asked() -> None:
    backend, never = Scripted(), Seen(True)
    reply = guarded(lambda text: Block("no competitors"), never, backend=backend, refusal="Sorry.")
    assert (reply.text, reply.verdict, reply.reason) == ("Sorry.", "block", "no competitors")
    assert (reply.blocked, reply.finish_reason) == (True, "content_filter")
    assert never.texts == []
    assert backend.requests == []


def test_a_blocked_answer_is_not_released() -> None:
    reply = guarded(on_output(lambda text: False), backend=Scripted(["canary"]))
    assert reply.text == REFUSAL
    assert "canary" not in repr(reply.output)


def test_a_retry_shows_the_model_its_answer_and_the_feedback() -> None:
    backend = Scripted(["Bonjour", "Hello"])
    seen = Seen(Retry("Answer in English."), True)
    reply = guarded(on_output(seen), backend=backend)
    assert reply.text == "Hello"
    assert (reply.verdict, reply.reason) == ("retry", "Answer in English.")
    assert [request.messages for request in backend.requests] == [
        (Message.of("user", "hello"),),
        (
            Message.of("user", "hello"),
            Message.of("assistant", "Bonjour"),
            Message.of("user", "Answer in English."),
        ),
    ]
    assert [event.round for event in reply.events] == [0, 0, 1, 1]
    assert reply.usage.output_tokens == 10


@pytest.mark.parametrize("max_rounds", [0, 2])
def test_retries_are_bounded(max_rounds: int) -> None:
    backend = Scripted()
    reply = guarded(on_output(lambda text: Retry("again")), backend=backend, max_rounds=max_rounds)
    assert len(backend.requests) == max_rounds + 1
    assert (reply.verdict, reply.text) == ("block", REFUSAL)
    assert reply.reason == f"still asked to retry after {max_rounds} more rounds: again"


def test_a_retry_lets_later_checks_speak_and_their_block_wins() -> None:
    backend, later = Scripted(), Seen(False)
    reply = guarded(on_output(lambda text: Retry("again")), on_output(later), backend=backend)
    assert len(later.texts) == len(backend.requests) == 1
    assert reply.verdict == "block"


def test_the_first_of_two_feedbacks_reaches_the_model_and_both_are_recorded() -> None:
    backend = Scripted()
    one, two = Seen(Retry("one"), True, name="one"), Seen(Retry("two"), True, name="two")
    reply = guarded(on_output(one), on_output(two), backend=backend)
    assert backend.requests[1].messages[-1].text == "one"
    assert [e.verdict for e in of_type(reply, Judged) if e.round == 0] == [
        Retry("one"),
        Retry("two"),
    ]


def test_a_retry_before_there_is_an_answer_breaks_the_contract() -> None:
    reply = guarded(on_input(lambda text: Retry("again")))
    (failed,) = of_type(reply, Failed)
    assert (failed.kind, reply.verdict) == ("invalid", "block")
    assert "post_validate only" in failed.message


@pytest.mark.parametrize("place", [on_input, on_output])
def test_what_needs_a_human_is_not_released(place: Any) -> None:
    reply = guarded(place(lambda text: AskHuman("a refund")))
    assert (reply.text, reply.verdict, reply.reason) == (REFUSAL, "ask_human", "a refund")
    assert reply.blocked


def test_a_block_after_ask_human_wins() -> None:
    reply = guarded(on_output(lambda text: AskHuman("a refund")), on_output(lambda text: False))
    assert told(reply.events)[-2:] == [
        ("judged", "post_validate", "check", "ask_human"),
        ("judged", "post_validate", "check-2", "block"),
    ]
    assert (reply.verdict, reply.check) == ("block", "check-2")


def test_ask_human_wins_over_retry() -> None:
    backend = Scripted()
    reply = guarded(
        on_output(lambda text: Retry("again")),
        on_output(lambda text: AskHuman("a refund")),
        backend=backend,
    )
    assert (reply.verdict, len(backend.requests)) == ("ask_human", 1)


# 5. Abstention.


class Quiet:
    """Abstains everywhere."""

    @hookimpl
    def pre_filter(self) -> None:
        return None

    @hookimpl
    def post_validate(self) -> None:
        return None


def test_where_every_check_abstained_the_target_is_flagged() -> None:
    reply = guarded(Quiet())
    assert [(e.stage, e.target) for e in of_type(reply, Unjudged)] == [
        ("pre_filter", "messages"),
        ("post_validate", "candidate/0"),
    ]
    assert (reply.verdict, reply.text) == ("flag", "You said: hello")
    assert all(event.verdict is None for event in of_type(reply, Judged))


def test_one_check_that_speaks_is_enough() -> None:
    reply = guarded(Quiet(), Rewriter())
    assert of_type(reply, Unjudged) == []
    assert reply.verdict == "allow"


def test_without_checks_nothing_is_judged_and_nothing_is_flagged() -> None:
    reply = guarded()
    assert [event.type for event in reply.events] == ["generated"]
    assert (reply.verdict, reply.text) == ("allow", "You said: hello")


# Critique, revise, rank.


class Constitution:
    """Critiques what shouts, and lowers its voice."""

    @hookimpl
    def critique(self, candidate: Candidate) -> Any:
        return [Critique("calm", 0.0 if candidate.text.isupper() else 1.0, "shouting")]

    @hookimpl
    def revise(self, candidate: Candidate, critiques: tuple[Critique, ...]) -> Any:
        if critiques[0].score == 0.0:
            return candidate.with_content((Text(candidate.text.lower()),))
        return None

    @hookimpl
    def rank(self, candidates: tuple[Candidate, ...]) -> Any:
        return Ranking(tuple(candidate.index for candidate in candidates), (0.5,))


def test_a_revision_is_recorded_and_validated() -> None:
    seen = Seen(True)
    reply = guarded(Constitution(), on_output(seen), backend=Scripted(["LOUD"]))
    assert [event.type for event in reply.events] == [
        "generated",
        "critiqued",
        "revised",
        "critiqued",
        "ranked",
        "judged",
    ]
    (critiqued, again), (revised,) = of_type(reply, Critiqued), of_type(reply, Revised)
    (ranked,) = of_type(reply, Ranked)
    assert critiqued.critiques == (Critique("calm", 0.0, "shouting"),)
    assert again.critiques == (Critique("calm", 1.0, "shouting"),)
    assert (revised.text, revised.check) == ("loud", "Constitution")
    assert revised.before == digest_of((Text("LOUD"),))
    assert revised.after == digest_of((Text("loud"),))
    assert ranked.ranking == Ranking((0,), (0.5,))
    assert seen.texts == ["loud"]
    assert (reply.text, reply.verdict, reply.check) == ("loud", "replace", "Constitution")


def test_a_revision_may_still_be_blocked() -> None:
    reply = guarded(Constitution(), on_output(lambda t: t != "loud"), backend=Scripted(["LOUD"]))
    assert (reply.verdict, reply.text) == ("block", REFUSAL)


def test_no_revision_is_recorded_where_nothing_changed() -> None:
    reply = guarded(Constitution(), backend=Scripted(["calm"]))
    assert [event.type for event in reply.events] == ["generated", "critiqued", "ranked"]
    assert (reply.verdict, reply.text) == ("allow", "calm")


class Odd:
    """Returns what it is told to from one constitutional hook."""

    def __init__(self, hook: str, value: Any) -> None:
        def said() -> Any:
            if isinstance(value, Exception):
                raise value
            return value

        setattr(self, hook, hookimpl(said))


@pytest.mark.parametrize(
    ("hook", "value"),
    [
        ("critique", 5),
        ("critique", ["bad"]),
        ("critique", [Critique("x", float("nan"))]),
        ("critique", [Critique("\ud800", 1.0)]),
        ("revise", "text"),
        ("revise", Candidate(index=0, content="bare", finish_reason="stop")),  # type: ignore[arg-type]
        ("revise", Candidate(index=0, content=(Text("\ud800"),), finish_reason="stop")),
        ("rank", Ranking((0, 1))),
        ("rank", Ranking(())),
        ("rank", Ranking((0,), (float("inf"),))),
        ("rank", "first"),
    ],
)
def test_nonsense_from_a_constitutional_hook_fails_closed(hook: str, value: Any) -> None:
    reply = guarded(Odd(hook, value))
    (failed,) = of_type(reply, Failed)
    assert (failed.stage, failed.kind, failed.became) == (hook, "invalid", "block")
    assert (reply.verdict, reply.text) == ("block", REFUSAL)


@pytest.mark.parametrize("hook", ["critique", "revise", "rank"])
@pytest.mark.parametrize("on_error", ["block", "allow", "flag"])
def test_on_error_of_a_constitutional_hook(hook: str, on_error: Any) -> None:
    reply = guarded(check(Odd(hook, ValueError("oops")), on_error=on_error))
    (failed,) = of_type(reply, Failed)
    assert (failed.stage, failed.kind, failed.error, failed.message, failed.became) == (
        hook, "error", "ValueError", "oops", on_error,
    )  # fmt: skip
    assert reply.verdict == on_error
    assert reply.blocked is (on_error == "block")


# Tools and documents.


class Tools:
    """Forbids one tool and results that hold a word."""

    @hookimpl
    def tool_call(self, tool_call: ToolCall) -> Any:
        return Block("no deleting") if tool_call.name == "delete" else Allow()

    @hookimpl
    def tool_result(self, tool_call: ToolCall, result: ToolResult) -> Any:
        return Flag(f"from {tool_call.name or 'nowhere'}") if "odd" in result.content else Allow()


def test_each_tool_call_of_an_answer_is_judged() -> None:
    search, delete = ToolCall("1", "search", {"q": "x"}), ToolCall("2", "delete", {})
    reply = guarded(Tools(), backend=Scripted([(Text("ok"), search, delete)]))
    assert [(e.target, e.verdict, e.before) for e in of_type(reply, Judged)] == [
        ("tool_call/1", Allow(), digest_of(search)),
        ("tool_call/2", Block("no deleting"), digest_of(delete)),
    ]
    assert reply.blocked
    assert delete not in reply.output.content


def test_tool_calls_of_one_id_are_each_judged_once() -> None:
    calls = (ToolCall("1", "search", {"q": "x"}), ToolCall("1", "search", {"q": "y"}))
    reply = guarded(Tools(), backend=Scripted([calls]))
    assert [event.before for event in of_type(reply, Judged)] == [digest_of(c) for c in calls]
    assert (reply.verdict, reply.output.content) == ("allow", calls)


def test_tool_results_are_judged_with_the_call_that_they_answer() -> None:
    conversation = [
        Message.of("user", "find it"),
        Message("assistant", (ToolCall("1", "search", {}),)),
        Message("tool", (ToolResult("1", "odd thing"), ToolResult("9", "odd too"))),
    ]
    reply = guarded(Tools(), prompt=conversation)
    assert [(e.target, e.verdict) for e in of_type(reply, Judged)] == [
        ("tool_result/1", Flag("from search")),
        ("tool_result/9", Flag("from nowhere")),
    ]
    assert reply.verdict == "flag"


class Meddling:
    """Tries to replace where that is not possible."""

    @hookimpl
    def tool_call(self) -> Any:
        return Replace("other")


def test_a_tool_call_cannot_be_replaced() -> None:
    reply = guarded(Meddling(), backend=Scripted([(ToolCall("1", "f", {}),)]))
    (failed,) = of_type(reply, Failed)
    assert (failed.kind, reply.verdict) == ("invalid", "block")


class Librarian:
    """Drops documents without a source."""

    @hookimpl
    def retrieved(self, documents: tuple[Document, ...]) -> Any:
        kept = tuple(document for document in documents if document.source)
        if not kept:
            return Block("no sources")
        return Replace(kept) if len(kept) < len(documents) else Allow()


GOOD, BAD = Document("a", "true", source="book"), Document("b", "rumour")


def test_only_documents_that_remain_reach_the_model() -> None:
    backend = Scripted()
    reply = guarded(Librarian(), backend=backend, documents=[GOOD, BAD])
    (message,) = backend.requests[0].messages
    assert (message.role, message.text) == ("user", "Documents:\n\n[a]\ntrue\n\nhello")
    (judged,) = of_type(reply, Judged)
    assert (judged.stage, judged.before, judged.after) == (
        "retrieved",
        digest_of((GOOD, BAD)),
        digest_of((GOOD,)),
    )


def test_blocked_documents_stop_the_call() -> None:
    backend = Scripted()
    reply = guarded(Librarian(), backend=backend, documents=[BAD])
    assert (reply.verdict, reply.reason, backend.requests) == ("block", "no sources", [])


def test_the_pre_filters_see_the_documents() -> None:
    class Look:
        @hookimpl
        def pre_filter(self, messages: tuple[Message, ...]) -> Any:
            return Flag(messages[0].text)

    assert guarded(Look(), documents=[GOOD]).reason == "Documents:\n\n[a]\ntrue\n\nhello"


def test_callables_judge_documents_and_tool_results_like_any_input() -> None:
    def honest(text: str) -> bool:
        return "evil" not in text

    assert guarded(honest, documents=[Document("a", "evil")]).verdict == "block"
    asked = [
        Message.of("user", "hello"),
        Message("assistant", (ToolCall("1", "look", {}),)),
        Message("tool", (ToolResult("1", "evil"),)),
    ]
    backend = Scripted()
    with Guard(backend, [honest]) as guard:
        assert guard.chat(asked).verdict == "block"
    with Guard(backend, [on_input(lambda text: Replace(text.replace("evil", "good")))]) as guard:
        reply = guard.chat(asked)
    assert [e.target for e in of_type(reply, Judged)][:2] == ["message/0", "message/2/0"]
    assert backend.requests[0].messages[2].content == (ToolResult("1", "good"),)


# Observers.


class Witness:
    """Notes every event; then raises."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, Any]] = []

    @hookimpl
    def observe(self, call: Any, event: Any) -> None:
        self.seen.append((call.id, event))
        raise RuntimeError("exporter down: canary")


def test_observers_see_every_event_and_their_errors_change_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    one, two = Witness(), Witness()
    reply = guarded(one, swapping("hello", "[x]", "mask"), Quiet(), two)
    assert one.seen == two.seen == [(reply.call_id, event) for event in reply.events]
    assert len(one.seen) > 3
    assert reply.text == "You said: [x]"
    assert len(caplog.records) == 2 * len(one.seen)
    assert "observer_failed" in caplog.text
    assert "RuntimeError" in caplog.text
    assert "canary" not in caplog.text


def test_an_observer_takes_the_arguments_it_names() -> None:
    stages: list[str] = []

    class Counter:
        @hookimpl
        def observe(self, event: Any) -> None:
            stages.append(event.stage)

    guarded(Counter())
    assert stages == ["generate"]


def test_the_backend_is_asked_once_without_a_retry() -> None:
    backend = Scripted(echo)
    reply = guarded(Constitution(), Tools(), Rewriter(), backend=backend)
    assert len(backend.requests) == len(of_type(reply, Generated)) == 1
