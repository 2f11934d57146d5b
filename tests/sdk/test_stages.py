"""Several candidates, revisions, tools that are replaced, checks on trial, beside and together.

Everything here is replayed too: what a call came to, its replay comes to, event for event.
"""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from tests.sdk.world import (
    SEED,
    Memory,
    Scripted,
    broken,
    events_in,
    in_three_ways,
    of_type,
    run,
    steady,
    told,
)

from isonomy.sdk import (
    Allow,
    AskHuman,
    BackendError,
    Block,
    Candidate,
    ConfigError,
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
from isonomy.sdk.events import (
    Critiqued,
    Effect,
    Failed,
    Generated,
    Judged,
    Ranked,
    Revised,
    Unjudged,
)
from isonomy.sdk.generation import Generation, Request
from isonomy.sdk.records import Intent, Result
from isonomy.sdk.vocabulary import Audio, Image, Json, Reasoning


def guarded(
    folder: Path, *checks: Any, backend: Any = None, prompt: Any = "hello", **settings: Any
) -> Reply:
    """One call, the same whoever waits, and replayed event for event."""
    options = {name: settings.pop(name) for name in ("documents", "tools") if name in settings}
    backend = backend or Scripted
    policy = Policy(checks, **settings)
    replies = in_three_ways(lambda: Guard(backend(), policy, sampling=SEED), prompt, **options)
    assert steady(replies[0].events) == steady(replies[1].events) == steady(replies[2].events)
    assert replies[0].output == replies[1].output == replies[2].output
    with Guard(backend(), policy, log=folder / "log", sampling=SEED) as guard:
        reply = guard.chat(prompt, **options)
        replayed = guard.replay(reply.call_id)
    assert replayed.status == "verified", replayed.sentence()
    assert steady(reply.events) == steady(replies[0].events)
    return reply


def said(*answers: Any) -> Any:
    return lambda: Scripted(answers)


# Candidates.


class Longest:
    @hookimpl
    def rank(self, candidates: tuple[Candidate, ...]) -> Ranking:
        order = sorted(candidates, key=lambda each: -len(each.text))
        return Ranking(
            tuple(each.index for each in order), tuple(float(len(each.text)) for each in order)
        )


def test_the_ranking_chooses_among_candidates_drawn_from_one_seed(tmp_path: Path) -> None:
    backend = Scripted(["bb", "dddd", "ccc"])
    reply = guarded(tmp_path, Longest(), lambda t: True, candidates=3, backend=said(
        "bb", "dddd", "ccc"))  # fmt: skip
    assert reply.text == "dddd"
    drawn = of_type(reply, Generated)
    assert [event.candidate for event in drawn] == [0, 1, 2]
    assert [(e.sampling.candidate, e.sampling.seed) for e in drawn] == [(0, 7), (1, 7), (2, 7)]
    (ranked,) = of_type(reply, Ranked)
    assert ranked.ranking == Ranking((1, 2, 0), (4.0, 3.0, 2.0))
    assert [e.target for e in of_type(reply, Judged)] == ["message/0", "candidate/1"]
    assert reply.usage.output_tokens == 15
    with Guard(backend, Policy([], candidates=3)) as guard:
        assert guard.chat("hello").text == "bb"  # unranked, the first


def test_the_last_of_several_rankings_stands(tmp_path: Path) -> None:
    class Backwards:
        @hookimpl
        def rank(self, candidates: tuple[Candidate, ...]) -> Ranking:
            return Ranking(tuple(each.index for each in reversed(candidates)))

    reply = guarded(tmp_path, Longest(), Backwards(), candidates=2, backend=said("bb", "dddd"))
    assert [e.ranking.order for e in of_type(reply, Ranked)] == [(1, 0), (0, 1)]
    assert reply.text == "bb"


@pytest.mark.parametrize(
    "ranking", [Ranking((0,)), Ranking((0, 0)), Ranking((0, 2)), Ranking((0, 1), (1.0,))]
)
def test_a_ranking_orders_every_candidate_once(tmp_path: Path, ranking: Ranking) -> None:
    class Odd:
        @hookimpl
        def rank(self, candidates: Any) -> Ranking:
            return ranking

    reply = guarded(tmp_path, Odd(), candidates=2)
    assert [(e.kind, e.stage) for e in of_type(reply, Failed)] == [("invalid", "rank")]
    assert reply.verdict == "block"


@pytest.mark.parametrize("candidates", [0, 65])
def test_candidates_are_bounded(candidates: int) -> None:
    with pytest.raises(ConfigError, match="between 1 and 64"):
        Policy([], candidates=candidates)


def test_a_retry_draws_all_candidates_again_and_shows_the_chosen_one(tmp_path: Path) -> None:
    asked: list[Request] = []

    def backend() -> Scripted:
        scripted = Scripted(["a", "bb", "ccc", "d"])
        scripted.when_asked.append(asked.append)
        return scripted

    short = on_output(lambda t: Retry("longer") if len(t) < 3 else True)
    reply = guarded(tmp_path, Longest(), short, candidates=2, backend=backend)
    assert reply.text == "ccc"
    assert [(e.round, e.candidate) for e in of_type(reply, Generated)] == [
        (0, 0), (0, 1), (1, 0), (1, 1),
    ]  # fmt: skip
    assert asked[2].messages[1:] == (Message.of("assistant", "bb"), Message.of("user", "longer"))


# Critique and revision.


class Shorten:
    """Finds fault with what is longer than two, and takes one letter from it."""

    @hookimpl
    def critique(self, candidate: Candidate) -> Any:
        return [Critique("short", 1.0 if len(candidate.text) < 3 else 0.0)]

    @hookimpl
    def revise(self, candidate: Candidate, critiques: tuple[Critique, ...]) -> Any:
        if critiques[-1].score == 1.0:
            return None
        return candidate.with_content((Text(candidate.text[:-1]),))


@pytest.mark.parametrize(("max_rounds", "text"), [(0, "abcdef"), (1, "abcde"), (2, "abcd")])
def test_revisions_are_bounded_and_each_is_criticised(
    tmp_path: Path, max_rounds: int, text: str
) -> None:
    reply = guarded(tmp_path, Shorten(), backend=said("abcdef"), max_rounds=max_rounds)
    assert reply.text == text
    assert len(of_type(reply, Revised)) == max_rounds
    assert len(of_type(reply, Critiqued)) == max_rounds + 1


def test_revision_ends_when_nothing_is_left_to_revise(tmp_path: Path) -> None:
    reply = guarded(tmp_path, Shorten(), backend=said("abc"), max_rounds=9)
    assert [e.type for e in reply.events] == ["generated", "critiqued", "revised", "critiqued"]
    assert (reply.text, reply.verdict) == ("ab", "replace")


def test_every_candidate_is_revised_under_its_own_name(tmp_path: Path) -> None:
    reply = guarded(
        tmp_path, Shorten(), Longest(), candidates=2, backend=said("abc", "xyz"), max_rounds=1
    )
    assert [(e.target, e.text) for e in of_type(reply, Revised)] == [
        ("candidate/0", "ab"),
        ("candidate/1", "xy"),
    ]
    assert of_type(reply, Ranked)[0].ranking.scores == (2.0, 2.0)


# Tools.


ASK = [
    Message.of("user", "find it"),
    Message("assistant", (ToolCall("1", "search", {"q": "x"}),)),
    Message("tool", (ToolResult("1", "card 4111"), ToolResult("2", "fine"))),
]


class Rewriting:
    def __init__(self, call: Any = None, result: Any = None) -> None:
        self._call, self._result = call, result

    @hookimpl
    def tool_call(self, tool_call: ToolCall) -> Any:
        return self._call or Allow()

    @hookimpl
    def tool_result(self, result: ToolResult) -> Any:
        return self._result if self._result and "4111" in result.content else Allow()


@pytest.mark.parametrize(
    ("content", "name", "arguments"),
    [
        ('{"q":"safe"}', "search", {"q": "safe"}),
        ((ToolCall("other", "lookup", {"k": 1}),), "lookup", {"k": 1}),
    ],
)
def test_a_tool_call_is_replaced_under_its_id(
    tmp_path: Path, content: Any, name: str, arguments: Any
) -> None:
    call = ToolCall("7", "search", {"q": "x"})
    reply = guarded(tmp_path, Rewriting(call=Replace(content)), backend=said((Text("ok"), call)))
    assert reply.output.content == (Text("ok"), ToolCall("7", name, arguments))
    (judged,) = of_type(reply, Judged)
    assert (judged.before, judged.after) == (
        digest_of(call),
        digest_of(ToolCall("7", name, arguments)),
    )


@pytest.mark.parametrize("content", ["no json", "[1]", (Text("x"),), ()])
def test_a_tool_call_can_t_become_anything_else(tmp_path: Path, content: Any) -> None:
    backend = said((ToolCall("7", "f", {}),))
    reply = guarded(tmp_path, Rewriting(call=Replace(content)), backend=backend)
    assert [e.kind for e in of_type(reply, Failed)] == ["invalid"]
    assert reply.verdict == "block"


@pytest.mark.parametrize(
    "made",
    [
        (Text("ok"), ToolCall("1", "remove", {})),
        (Text("ok"), ToolCall("7", "f", {"q": "other"})),
    ],
)
def test_no_tool_call_comes_about_after_tool_calls_were_judged(made: Any) -> None:
    class Adding:
        @hookimpl
        def post_validate(self, candidate: Candidate) -> Any:
            return Replace(made)

    backend = Scripted([(Text("ok"), ToolCall("7", "f", {}))])
    with Guard(backend, [Adding()]) as guard:
        reply = guard.chat("hi")
    assert (reply.verdict, reply.output.refusal) == ("block", True)
    (failed,) = of_type(reply, Failed)
    assert "can't add or change a tool call" in failed.message


def test_of_equal_tool_calls_the_judged_one_is_replaced(tmp_path: Path) -> None:
    class Second:
        @hookimpl
        def tool_call(self, tool_call: ToolCall) -> Any:
            return Replace('{"q":"y"}') if tool_call.arguments["q"] == "evil" else Allow()

    calls = (ToolCall("1", "f", {"q": "x"}), ToolCall("1", "f", {"q": "evil"}))
    reply = guarded(tmp_path, Second(), backend=said(calls))
    assert reply.output.content == (calls[0], ToolCall("1", "f", {"q": "y"}))
    assert reply.verdict == "replace"


@pytest.mark.parametrize("content", ["[card]", (ToolResult("9", "[card]"),)])
def test_a_tool_result_is_replaced_before_the_model_sees_it(tmp_path: Path, content: Any) -> None:
    asked: list[Request] = []

    def backend() -> Scripted:
        scripted = Scripted()
        scripted.when_asked.append(asked.append)
        return scripted

    reply = guarded(tmp_path, Rewriting(result=Replace(content)), backend=backend, prompt=ASK)
    assert asked[0].messages[2].content == (ToolResult("1", "[card]"), ToolResult("2", "fine"))
    assert [e.target for e in of_type(reply, Judged)] == ["tool_result/1", "tool_result/2"]


def test_a_retry_about_a_tool_call_answers_the_call(tmp_path: Path) -> None:
    asked: list[Request] = []

    def backend() -> Scripted:
        scripted = Scripted([(ToolCall("1", "delete", {}),), "as you like"])
        scripted.when_asked.append(asked.append)
        return scripted

    reply = guarded(tmp_path, Rewriting(call=Retry("don't delete")), backend=backend)
    assert reply.text == "as you like"
    assert asked[1].messages == (
        Message.of("user", "hello"),
        Message("assistant", (ToolCall("1", "delete", {}),)),
        Message("tool", (ToolResult("1", "This call was not run."),)),
        Message.of("user", "don't delete"),
    )


MALFORMED = ToolCall("1", "f", {}, malformed='{"q": ')


def test_malformed_arguments_are_blocked_where_tool_calls_are_judged(tmp_path: Path) -> None:
    reply = guarded(tmp_path, Rewriting(), backend=said((MALFORMED,)))
    (failed,) = of_type(reply, Failed)
    assert (failed.stage, failed.check, failed.kind, failed.error, failed.became) == (
        "tool_call", None, "invalid", "MalformedArguments", "block",
    )  # fmt: skip
    assert failed.before == digest_of(MALFORMED)
    assert reply.verdict == "block"
    assert reply.reason == "the arguments of the call of 'f' are no JSON object"


def test_malformed_arguments_are_flagged_where_nobody_judges_tool_calls(tmp_path: Path) -> None:
    reply = guarded(tmp_path, backend=said((Text("ok"), MALFORMED)))
    assert [e.became for e in of_type(reply, Failed)] == ["flag"]
    assert (reply.verdict, reply.output.content) == ("flag", (Text("ok"), MALFORMED))


# What callables are given.


class Texts:
    def __init__(self, *changes: tuple[str, str]) -> None:
        self.seen: list[str] = []
        self._changes = dict(changes)

    def __call__(self, text: str) -> Any:
        self.seen.append(text)
        return Replace(self._changes[text]) if text in self._changes else True


def test_a_callable_is_given_everything_that_was_written() -> None:
    texts = Texts()
    conversation = [
        Message.of("system", "ours"),
        Message("user", (Text("a"), Image("https://x/y.png"), Audio("z.wav"), Json({"k": [1]}))),
        Message("assistant", (Reasoning("hm"), ToolCall("1", "f", {"q": "unseen"}))),
        Message("tool", (ToolResult("1", "found"),)),
    ]
    answer = (Reasoning("let me see"), Text("b"), Json({"n": 1}), Text("c"))
    with Guard(Scripted([answer]), [texts]) as guard:
        reply = guard.chat(conversation)
    assert texts.seen == ["a", '{"k":[1]}', "hm", "found", "bc", "let me see", '{"n":1}']
    assert [e.target for e in of_type(reply, Judged)] == [
        "message/1", "message/1/3", "message/2/0", "message/3/0",
        "candidate/0", "candidate/0/0", "candidate/0/2",
    ]  # fmt: skip
    assert reply.output.content == answer


def test_parts_are_replaced_in_their_own_form(tmp_path: Path) -> None:
    texts = Texts(("let me see", "hush"), ('{"n":1}', '{"n": 2}'))
    answer = (Reasoning("let me see", "signed"), Text("b"), Json({"n": 1}))
    reply = guarded(tmp_path, on_output(texts), backend=said(answer))
    assert reply.output.content == (Reasoning("hush"), Text("b"), Json({"n": 2}))


def test_reasoning_goes_with_the_text_that_it_led_to(tmp_path: Path) -> None:
    reply = guarded(
        tmp_path,
        on_output(Texts(("secret", "[x]"))),
        backend=said((Reasoning("hm"), Text("secret"))),
    )
    assert reply.output.content == (Text("[x]"),)


def test_structured_data_is_replaced_by_json_only(tmp_path: Path) -> None:
    reply = guarded(tmp_path, on_output(Texts(("[1]", "no"))), backend=said((Json([1]),)))
    assert [e.kind for e in of_type(reply, Failed)] == ["invalid"]


def test_an_answer_of_tool_calls_alone_has_no_text_to_judge() -> None:
    texts = Texts()
    with Guard(Scripted([(ToolCall("1", "f", {"q": "x"}),)]), [on_output(texts)]) as guard:
        assert guard.chat("hello").verdict == "allow"
    assert texts.seen == []


def test_a_callable_judges_tools_and_documents_where_it_is_given_the_stage(tmp_path: Path) -> None:
    masks = Texts(('{"q":"x"}', '{"q":"y"}'), ("card 4111", "[card]"), ("rumour", "fact"))
    asked = check(masks, stages=("retrieved", "tool_call", "tool_result"))
    reply = guarded(
        tmp_path,
        asked,
        backend=said((ToolCall("1", "f", {"q": "x"}),)),
        prompt=ASK,
        documents=[Document("d", "rumour"), Document("e", "so")],
    )
    assert reply.output.content == (ToolCall("1", "f", {"q": "y"}),)
    assert [(e.stage, e.target) for e in of_type(reply, Judged)] == [
        ("retrieved", "document/d"),
        ("retrieved", "document/e"),
        ("tool_result", "tool_result/1"),
        ("tool_result", "tool_result/2"),
        ("tool_call", "tool_call/1"),
    ]


# On trial.


class Everywhere:
    """Objects at every stage, in one way or another."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def _say(self) -> Any:
        if isinstance(self.value, Exception):
            raise self.value
        return self.value

    @hookimpl
    def pre_filter(self, ctx: Any) -> Any:
        ctx.generate("what do you think?")
        return self._say()

    @hookimpl
    def post_validate(self) -> Any:
        return self._say()

    @hookimpl
    def tool_call(self) -> Any:
        return self._say()

    @hookimpl
    def critique(self) -> Any:
        return [Critique("all", 0.0)]

    @hookimpl
    def revise(self, candidate: Candidate) -> Any:
        return candidate.with_content((Text("other"),))

    @hookimpl
    def rank(self, candidates: tuple[Candidate, ...]) -> Any:
        return Ranking(tuple(each.index for each in reversed(candidates)))


class Nested:
    """Asks the model: which draws it gets must not depend on checks on trial."""

    @hookimpl
    def post_validate(self, ctx: Any) -> Allow:
        ctx.generate("and you?")
        return Allow()


@pytest.mark.parametrize(
    "value",
    [Block("no"), Replace("other"), Retry("again"), AskHuman("who?"), None, "nonsense",
     ValueError("oops")],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_a_check_on_trial_changes_nothing(tmp_path: Path, value: Any) -> None:
    class Echo(Scripted):
        def generate(self, request: Request, **more: Any) -> Generation:
            found = super().generate(request)
            content = (Text(f"{request.sampling.candidate}"), ToolCall("1", "f", {}))
            return Generation(content=content, finish_reason="stop", model=found.model)

    plain = guarded(tmp_path / "plain", Nested(), backend=Echo, candidates=2)
    trial = check(Everywhere(value), id="trial", shadow=True)
    reply = guarded(tmp_path / "trial", trial, Nested(), backend=Echo, candidates=2)
    assert reply.output == plain.output
    assert (reply.verdict, reply.text) == (plain.verdict, plain.text) == ("allow", "0")
    real = [e for e in steady(reply.events) if e["check"] != "trial"]
    for event in (*real, *(without := steady(plain.events))):
        event.pop("sequence")
        event.pop("messages", None)
    assert real == without
    tried = [e for e in reply.events if e.check == "trial"]
    assert {e.stage for e in tried} == {
        "pre_filter", "post_validate", "tool_call", "critique", "revise", "rank",
    }  # fmt: skip
    assert all(getattr(e, "shadow", False) for e in tried if not isinstance(e, Generated))


def test_a_check_on_trial_that_replaces_is_recorded_without_effect(tmp_path: Path) -> None:
    seen = Texts()
    trial = check(lambda t: Replace("other"), id="trial", stages=("post_validate",), shadow=True)
    reply = guarded(tmp_path, trial, on_output(seen), backend=said("mine"))
    assert set(seen.seen) == {"mine"}
    assert [(e.check, e.verdict, e.after, e.shadow) for e in of_type(reply, Judged)] == [
        ("trial", Replace("other"), None, True),
        ("Texts", Allow(), None, False),
    ]


def test_a_stage_with_checks_on_trial_alone_is_like_one_without(tmp_path: Path) -> None:
    reply = guarded(tmp_path, check(lambda t: False, shadow=True))
    assert of_type(reply, Unjudged) == []
    assert reply.verdict == "allow"


# Together.


class Slow:
    """Waits until others have come too, and takes something from the world."""

    def __init__(self, barrier: threading.Barrier | None, verdict: Any, pause: float = 0) -> None:
        self._barrier, self._verdict, self._pause = barrier, verdict, pause

    def __deepcopy__(self, memo: Any) -> Slow:
        return self

    @hookimpl
    def post_validate(self, candidate: Candidate, ctx: Any) -> Any:
        if self._barrier is not None and not getattr(self, "alone", False):
            self._barrier.wait(5)
        time.sleep(self._pause)
        ctx.effect(f"look {self._verdict.name}", lambda: candidate.text)
        ctx.generate(f"judge {self._verdict.name}")
        return self._verdict


def test_neighbours_that_only_read_run_together_and_are_told_of_in_order(tmp_path: Path) -> None:
    def asked(live: bool) -> list[Any]:
        barrier = threading.Barrier(3) if live else None
        # The first is the slowest.
        slow = [Slow(barrier, Flag(f"{n}"), 0.05 * (2 - n)) for n in range(3)]
        return [check(each, id=f"slow-{n}", read_only=True) for n, each in enumerate(slow)]

    for way in ("chat", "achat"):
        with Guard(Scripted(), asked(True), log=tmp_path / way, sampling=SEED) as guard:
            reply = guard.chat("hi") if way == "chat" else run(guard.achat("hi"))
        expected = [
            kind for n in range(3) for kind in (
                ("effect", "post_validate", f"slow-{n}", "-"),
                ("generated", "post_validate", f"slow-{n}", "-"),
                ("judged", "post_validate", f"slow-{n}", "flag"),
            )
        ]  # fmt: skip
        assert told(reply.events)[1:] == expected
        drawn = [e.sampling.candidate for e in of_type(reply, Generated)]
        assert len(set(drawn)) == 4  # each draws its own


def test_checks_that_ran_together_are_replayed_one_after_another(tmp_path: Path) -> None:
    class Look:
        @hookimpl
        def post_validate(self, candidate: Candidate, ctx: Any) -> Any:
            time.sleep(ctx.effect("pause", lambda: 0.01))
            ctx.generate("what?")
            return Flag(candidate.text)

    checks = [check(Look(), id=f"look-{n}", read_only=True) for n in range(4)]
    reply = guarded(tmp_path, *checks, lambda t: True)
    assert [e.check for e in of_type(reply, Effect)] == [f"look-{n}" for n in range(4)]


def test_all_that_were_asked_together_are_recorded_though_the_first_blocks(tmp_path: Path) -> None:
    never = Texts()
    two = [
        check(lambda t: False, id="no", read_only=True, stages=("post_validate",)),
        check(lambda t: Flag("odd"), id="odd", read_only=True, stages=("post_validate",)),
    ]
    reply = guarded(tmp_path, *two, on_output(never))
    assert told(reply.events)[1:] == [
        ("judged", "post_validate", "no", "block"),
        ("judged", "post_validate", "odd", "flag"),
    ]
    assert (reply.verdict, reply.check, never.seen) == ("block", "no", [])


def test_what_only_reads_can_t_replace(tmp_path: Path) -> None:
    reply = guarded(tmp_path, check(lambda t: Replace("x"), read_only=True))
    assert [e.kind for e in of_type(reply, Failed)] == ["invalid"]
    assert "read_only" in of_type(reply, Failed)[0].message


def test_a_timeout_among_checks_that_run_together_is_handed_back(tmp_path: Path) -> None:
    class Hang:
        @hookimpl
        def post_validate(self, ctx: Any) -> Any:
            ctx.effect("began", lambda: 1)
            time.sleep(1.0)
            return Allow()

    checks = [
        check(lambda t: True, id="a", read_only=True),
        check(Hang(), id="hang", read_only=True, timeout=0.05, on_error="flag"),
        check(lambda t: True, id="b", read_only=True),
    ]
    with Guard(Scripted(), checks, log=tmp_path / "log") as guard:
        reply = guard.chat("hello")
        assert told(reply.events)[3:] == [
            ("judged", "post_validate", "a", "allow"),
            ("effect", "post_validate", "hang", "-"),
            ("failed", "post_validate", "hang", "flag"),
            ("judged", "post_validate", "b", "allow"),
        ]
        started = time.perf_counter()
        assert guard.replay(reply.call_id).status == "verified"
        assert time.perf_counter() - started < 0.9


def test_checks_that_answer_at_once_are_asked_one_by_one() -> None:
    class Quick:
        inline = True
        read_only = True

        @hookimpl
        def post_validate(self) -> Allow:
            return Allow()

    slow = [check(lambda t: True, read_only=True, id=f"slow-{n}") for n in range(2)]
    groups = Policy([Quick(), Quick(), slow[0]]).groups("post_validate")
    assert [len(group) for group in groups] == [1, 1, 1]
    groups = Policy([slow[0], Quick(), slow[1], lambda t: True]).groups("post_validate")
    assert [len(group) for group in groups] == [3, 1]


# Beside the model.


class Rendezvous(Scripted):
    """Answers only when the check beside it has begun."""

    def __init__(self, answers: Any = None) -> None:
        super().__init__(answers or (lambda messages: "an answer"))
        self.begun = threading.Event()

    def generate(self, request: Request, *, on_text: Any = None) -> Generation:
        if not request.messages[-1].text.startswith("judge"):
            assert self.begun.wait(5), "nothing ran beside the model"
        return super().generate(request)

    async def agenerate(self, request: Request, *, on_text: Any = None) -> Generation:
        return await asyncio.to_thread(self.generate, request)


def beside(backend: Rendezvous, verdict: Any, **terms: Any) -> Any:
    class Beside:
        @hookimpl
        def pre_filter(self, messages: tuple[Message, ...], ctx: Any) -> Any:
            ctx.effect("look", lambda: messages[-1].text)
            backend.begun.set()
            ctx.generate("judge")
            if isinstance(verdict, Exception):
                raise verdict
            return verdict

    return check(Beside(), id="beside", beside=True, **terms)


@pytest.mark.parametrize("way", ["chat", "achat"])
@pytest.mark.parametrize(
    ("verdict", "outcome"),
    [
        (Allow(), "allow"),
        (Flag("odd"), "flag"),
        (Block("no"), "block"),
        (AskHuman("who?"), "ask_human"),
        (ValueError("oops"), "block"),
        (Replace("x"), "block"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_a_check_runs_beside_the_model_and_the_answer_waits(
    tmp_path: Path, way: str, verdict: Any, outcome: str
) -> None:
    backend = Rendezvous()
    after = Texts()
    policy = [beside(backend, verdict), on_input(lambda t: True, id="first"), on_output(after)]
    with Guard(backend, policy, log=tmp_path / "log") as guard:
        reply = guard.chat("hello") if way == "chat" else run(guard.achat("hello"))
        replayed = guard.replay(reply.call_id)
    assert reply.verdict == outcome
    assert [line[:3] for line in told(reply.events)][:5] == [
        ("judged", "pre_filter", "first"),
        ("generated", "generate", "-"),
        ("effect", "pre_filter", "beside"),
        ("generated", "pre_filter", "beside"),
        ("failed" if outcome == "block" and not isinstance(verdict, Block) else "judged",
         "pre_filter", "beside"),
    ]  # fmt: skip
    assert bool(after.seen) is (outcome in ("allow", "flag"))
    assert reply.blocked is (outcome in ("block", "ask_human"))
    assert replayed.status == "verified", replayed.sentence()


def test_a_callable_may_run_beside_the_model(tmp_path: Path) -> None:
    on_trial = [check(lambda t: "evil" not in t, beside=True, stages=("pre_filter",))]
    assert guarded(tmp_path / "a", *on_trial).verdict == "allow"
    assert guarded(tmp_path / "b", *on_trial, prompt="evil").verdict == "block"


def test_a_check_beside_the_model_is_asked_again_at_other_stages_like_any(tmp_path: Path) -> None:
    seen = Texts()
    both = check(lambda t: seen(t), id="both", beside=True)
    swap = on_output(lambda t: Replace("new") if t != "new" else True, id="swap")
    guarded(tmp_path, both, swap, backend=said("old"))
    assert seen.seen[:3] == ["hello", "old", "new"]


def test_what_ran_beside_a_model_that_failed_is_recorded(tmp_path: Path) -> None:
    backend = Rendezvous([broken()])
    with Guard(backend, [beside(backend, Allow())], log=tmp_path / "log") as guard:
        with pytest.raises(BackendError):
            guard.chat("hello")
        assert guard.log is not None
        from isonomy.replay import ReplayLog

        (stored,) = ReplayLog(guard.log.path).calls()
        assert [e.type for e in stored.events][0:2] == ["backend_failed", "effect"]
        replayed = guard.replay(stored.call_id)
    assert replayed.status == "verified", replayed.sentence()


def test_only_the_input_can_be_judged_beside_the_model() -> None:
    with pytest.raises(ConfigError, match="beside is for checks of pre_filter") as caught:
        check(lambda t: True, stages=("post_validate",), beside=True)
    assert caught.value.key is not None
    assert caught.value.key.endswith(".beside")


# Many at once.


def own_name(text: str) -> Any:
    """Replaces a call's own secret, and blocks whatever holds another's."""
    time.sleep(0.001)
    return Replace(text.replace("secret", "public")) if "secret" in text else True


@pytest.mark.parametrize("terms", [{}, {"read_only": False, "timeout": 5.0}])
def test_64_calls_at_once_never_mix_what_is_replaced(tmp_path: Path, terms: Any) -> None:
    policy = [check(own_name, **terms), check(lambda t: Flag(t), read_only=True)]

    def expected(number: int, reply: Reply) -> None:
        assert reply.text == f"You said: public-{number}"
        assert {e.verdict.reason for e in of_type(reply, Judged) if e.check == "check"} == {
            f"public-{number}",
            f"You said: public-{number}",
        }

    def answer(messages: tuple[Message, ...]) -> str:
        return f"You said: {messages[-1].text.replace('public', 'secret')}"

    with Guard(Scripted(answer), policy, log=tmp_path / "log") as guard:
        with ThreadPoolExecutor(64) as pool:
            replies = list(pool.map(lambda n: guard.chat(f"secret-{n}"), range(64)))

        async def all_at_once() -> list[Reply]:
            return await asyncio.gather(*(guard.achat(f"secret-{n}") for n in range(64)))

        replies += run(all_at_once())
        for number, reply in enumerate(replies):
            expected(number % 64, reply)
        for reply in replies[::16]:
            assert guard.replay(reply.call_id).status == "verified"


# Cancelled in the middle.


@pytest.mark.parametrize("terms", [{"beside": True}, {"read_only": True}, {}])
def test_who_is_cancelled_leaves_no_task_and_a_whole_record(terms: dict[str, Any]) -> None:
    began, ended = threading.Event(), threading.Event()

    class Waits:
        @hookimpl
        async def pre_filter(self, ctx: Any) -> Allow:
            await ctx.aeffect("look", looked)
            began.set()
            try:
                await asyncio.sleep(60)
            finally:
                ended.set()
            return Allow()

    async def looked() -> int:
        return 1

    class Sleepy(Scripted):
        async def agenerate(self, request: Request, *, on_text: Any = None) -> Generation:
            await asyncio.sleep(60)
            raise AssertionError

    neighbour = check(lambda t: True, read_only=True, stages=("pre_filter",))
    log = Memory()
    with Guard(Sleepy(), [check(Waits(), id="waits", **terms), neighbour], log) as guard:

        async def main() -> None:
            call = asyncio.create_task(guard.achat("hello"))
            await asyncio.to_thread(began.wait, 5)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            assert asyncio.all_tasks() == {asyncio.current_task()}

        run(main())
        assert ended.wait(5)
    result = log.only(Result)
    assert isinstance(result.record, Result)
    assert result.record.error == "Cancelled"
    recorded = [*events_in(log.only(Intent)), *events_in(result)]
    assert [e.name for e in recorded if isinstance(e, Effect)] == ["look"]
    assert [e.sequence for e in recorded] == list(range(len(recorded)))


def test_an_inline_wrapper_s_coroutine_still_has_its_context(tmp_path: Path) -> None:
    class Wrapped:
        inline = True

        @hookimpl
        def post_validate(self, ctx: Any) -> Any:
            async def later() -> Flag:
                return Flag(str(await ctx.aeffect("look", looked)))

            async def looked() -> int:
                return 7

            return later()

    assert guarded(tmp_path, Wrapped()).reason == "7"
