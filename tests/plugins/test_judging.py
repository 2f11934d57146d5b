"""What every built-in check does alike: which texts it judges, and how verdicts become one."""

import pytest

from isonomy.plugins import Length, Patterns
from isonomy.plugins.judging import MAX_SPANS, judge_messages
from isonomy.sdk import (
    Allow,
    Block,
    Candidate,
    Flag,
    Image,
    Message,
    Replace,
    Retry,
    Span,
    Text,
    ToolCall,
    ToolResult,
    Verdict,
)

REDACT = Patterns(deny={"secret": "secret"}, action="redact", replacement="#")


def test_system_messages_are_not_judged_and_alone_are_an_abstention() -> None:
    system = Message.of("system", "a secret")
    assert REDACT.pre_filter(messages=(system,)) is None
    assert REDACT.pre_filter(messages=()) is None
    assert REDACT.pre_filter(messages=(system, Message.of("user", "hi"))) == Allow(score=0.0)


def test_replace_gives_all_messages_with_other_parts_kept() -> None:
    call = ToolCall("1", "secret", {"secret": 1})
    image = Image("file:secret.png")
    messages = (
        Message.of("system", "secret"),
        Message("user", (Text("my sec"), image, Text("ret"))),
        Message("assistant", (call,)),
        Message("tool", (ToolResult("1", "é secret"), ToolResult("2", "fine"))),
        Message.of("user", "fine"),
    )
    verdict = REDACT.pre_filter(messages=messages)
    assert isinstance(verdict, Replace)
    assert verdict.content == (
        messages[0],
        Message("user", (Text("my #"), image)),
        messages[2],
        Message("tool", (ToolResult("1", "é #"), ToolResult("2", "fine"))),
        messages[4],
    )
    assert verdict.spans == (
        Span(3, 9, "message/1 secret"),
        Span(2, 8, "message/3 result secret"),
    )
    assert verdict.labels == ("secret",)
    assert verdict.score == 1.0
    assert verdict.reason.count("message/") == 2


def test_a_message_without_text_is_not_an_empty_text() -> None:
    least = Length(min=1)
    call = Message("assistant", (ToolCall("1", "f", {}),))
    assert least.pre_filter(messages=(call,)) is None
    assert isinstance(least.pre_filter(messages=(call, Message.of("user", ""))), Block)
    assert isinstance(least.pre_filter(messages=(Message("user", ()),)), Block)


def test_a_text_and_a_result_in_one_message_are_both_replaced() -> None:
    same = ToolResult("1", "secret")
    message = Message("tool", (same, Text("secret"), ToolResult("2", "secret")))
    verdict = REDACT.pre_filter(messages=(message,))
    assert isinstance(verdict, Replace)
    assert verdict.content == (
        Message("tool", (Text("#"), ToolResult("1", "#"), ToolResult("2", "#"))),
    )


@pytest.mark.parametrize(
    ("verdicts", "strongest"),
    [
        ([Allow(score=0.0), Flag("f"), Allow(score=0.0)], "flag"),
        ([Flag("f"), Replace("new"), Flag("g")], "replace"),
        ([Replace("new"), Block("b"), Flag("f")], "block"),
        ([Flag("f"), Retry("again")], "block"),
    ],
)
def test_the_strongest_verdict_decides(verdicts: list[Verdict], strongest: str) -> None:
    answers = iter(verdicts)
    messages = tuple(Message.of("user", str(i)) for i in range(len(verdicts)))
    verdict = judge_messages(lambda text: next(answers), messages)
    assert verdict is not None
    assert verdict.name == strongest


def test_evidence_is_bounded() -> None:
    flag = Patterns(deny=("a",), action="flag")
    verdict = flag.pre_filter(messages=tuple(Message.of("user", "a" * 300) for _ in range(3)))
    assert isinstance(verdict, Flag)
    assert len(verdict.spans) == MAX_SPANS


def test_the_answer_is_judged_as_text() -> None:
    candidate = Candidate(index=0, content=(Text("a sec"), Text("ret")), finish_reason="stop")
    verdict = REDACT.post_validate(candidate=candidate)
    assert verdict == Replace(
        "a #",
        reason="it matches the denied 'secret'",
        score=1.0,
        spans=(Span(2, 8, "secret"),),
        labels=("secret",),
    )
