from __future__ import annotations

from typing import get_args

import msgspec
import pytest

from isonomy.sdk import (
    Allow,
    AskHuman,
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
from isonomy.sdk.canonical import canonical
from isonomy.sdk.pipeline import Standing
from isonomy.sdk.vocabulary import SEVERITY, VERDICTS, Stage, VerdictName

MIXED = (Text("a"), ToolCall("1", "search", {"q": "x"}), Text("b"), ToolResult("1", "found"))


def test_text_of_a_message_is_its_text_parts_joined() -> None:
    assert Message("user", MIXED).text == "ab"
    assert Candidate(index=0, content=MIXED, finish_reason="stop").text == "ab"


def test_with_text_keeps_the_other_parts_and_leaves_the_original() -> None:
    message = Message("assistant", MIXED)
    assert message.with_text("new") == Message("assistant", (Text("new"), MIXED[1], MIXED[3]))
    assert message.text == "ab"


def test_with_content_keeps_index_and_finish_reason() -> None:
    candidate = Candidate(index=3, content=MIXED, finish_reason="length")
    assert candidate.with_content((Text("z"),)) == Candidate(
        index=3, content=(Text("z"),), finish_reason="length"
    )


@pytest.mark.parametrize(
    "value", [Message.of("user", "x"), Text("x"), Block("no"), Span(0, 1, "email")]
)
def test_values_are_frozen(value: msgspec.Struct) -> None:
    field = value.__struct_fields__[0]
    with pytest.raises(AttributeError):
        setattr(value, field, None)


VALUES: list[Verdict] = [
    Allow(),
    Block("no", score=0.5, spans=(Span(1, 2, "x"),), labels=("pii",)),
    Replace("other"),
    Replace((Text("a"), Image("ref")), reason="redacted"),
    Replace((Message.of("user", "hi"),)),
    Retry("say it in English"),
    Flag("odd", score=1.0),
    AskHuman("money"),
]


@pytest.mark.parametrize("verdict", VALUES, ids=lambda verdict: verdict.name)
def test_verdicts_read_back_from_their_bytes(verdict: Verdict) -> None:
    assert msgspec.json.decode(canonical(verdict), type=Verdict) == verdict


def test_every_verdict_has_a_severity_and_a_name() -> None:
    names = {kind.__struct_config__.tag for kind in VERDICTS}
    assert names == set(SEVERITY) == set(get_args(VerdictName))
    assert set(VERDICTS) == set(get_args(Verdict))


def test_precedence_is_block_human_retry_replace_flag_allow() -> None:
    assert sorted(SEVERITY, key=SEVERITY.__getitem__, reverse=True) == [
        "block",
        "ask_human",
        "retry",
        "replace",
        "flag",
        "allow",
    ]


def test_stages_are_in_the_order_of_the_pipeline() -> None:
    assert get_args(Stage) == (
        "pre_filter",
        "retrieved",
        "critique",
        "revise",
        "rank",
        "post_validate",
        "tool_call",
        "tool_result",
    )


def test_a_standing_keeps_the_strongest_verdict_and_the_first_among_equals() -> None:
    standing = Standing()
    for verdict, check in [
        ("flag", "a"),
        ("replace", "b"),
        ("flag", "c"),
        ("replace", "d"),
        ("allow", "e"),
    ]:
        standing.note(verdict, check, f"because of {check}")  # type: ignore[arg-type]
    assert (standing.verdict, standing.check, standing.reason) == ("replace", "b", "because of b")
