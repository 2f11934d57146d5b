from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isonomy.plugins import Length
from isonomy.sdk import Allow, Block, Flag, Message, Replace, Retry


def test_bounds_are_inclusive() -> None:
    check = Length(min=2, max=3)
    names = [check.judge("x" * n).name for n in range(6)]
    assert names == ["block", "block", "allow", "allow", "block", "block"]


@pytest.mark.parametrize(
    ("unit", "text", "size"),
    [
        ("characters", "né😀", 3),
        ("bytes", "né😀", 7),
        ("bytes", "\ud800", 1),
        ("lines", "", 0),
        ("lines", "a", 1),
        ("lines", "a\nb", 2),
        ("lines", "a\n", 2),
    ],
)
def test_units(unit: Any, text: str, size: int) -> None:
    assert Length(max=max(size, 1), min=size, unit=unit).judge(text) == Allow(score=0.0)
    verdict = Length(min=size + 1, unit=unit).judge(text)
    assert isinstance(verdict, Block)
    assert verdict.reason == f"{size} {unit}, fewer than the {size + 1} required"
    assert verdict.labels == ("too_short",)


def test_actions() -> None:
    text = "x" * 10
    block = Length(max=4).judge(text)
    assert block == Block("10 characters, more than the 4 allowed", score=1.0, labels=("too_long",))
    flag = Length(max=4, action="flag").judge(text)
    assert flag == Flag("10 characters, more than the 4 allowed", score=1.0, labels=("too_long",))
    retry = Length(max=4, action="retry").judge(text)
    assert isinstance(retry, Retry)
    assert "more than the 4 allowed" in retry.feedback
    told = Length(max=4, action="retry", feedback="Shorter!").judge(text)
    assert isinstance(told, Retry)
    assert told.feedback == "Shorter!"
    cut = Length(max=4, action="truncate", ending="..").judge(text)
    assert isinstance(cut, Replace)
    assert cut.content == "xx.."


def test_a_short_text_can_not_be_truncated() -> None:
    verdict = Length(min=3, max=5, action="truncate").judge("x")
    assert isinstance(verdict, Block)


def test_lines_are_cut() -> None:
    verdict = Length(max=2, unit="lines", action="truncate", ending=" [...]").judge("a\nb\nc\nd")
    assert isinstance(verdict, Replace)
    assert verdict.content == "a\nb [...]"


@pytest.mark.parametrize(
    ("text", "unit", "most", "content"),
    [
        ("abe\u0301d", "characters", 3, "ab"),
        ("ab👩\u200d👩\u200d👧", "characters", 4, "ab"),
        ("ab❤\ufe0fx", "characters", 3, "ab"),
        ("abéd", "bytes", 3, "ab"),
        ("ab😀d", "bytes", 5, "ab"),
        ("\u0301" * 50, "characters", 40, "\u0301" * 40),
    ],
)
def test_a_cut_parts_no_letter(text: str, unit: Any, most: int, content: str) -> None:
    verdict = Length(max=most, unit=unit, action="truncate").judge(text)
    assert isinstance(verdict, Replace)
    assert verdict.content == content


@settings(deadline=None)
@given(
    st.text(max_size=60),
    st.integers(1, 30),
    st.sampled_from(["characters", "bytes", "lines"]),
    st.sampled_from(["", "…"]),
)
def test_what_was_cut_fits_and_stays(text: str, most: int, unit: Any, ending: str) -> None:
    if unit == "bytes":
        most = max(most, 3)
    check = Length(max=most, unit=unit, action="truncate", ending=ending)
    verdict = check.judge(text)
    if isinstance(verdict, Replace):
        new = str(verdict.content)
        assert check.judge(new) == Allow(score=0.0)
        assert text.startswith(new.removesuffix(ending))
    else:
        assert verdict == Allow(score=0.0)


def test_each_message_is_judged() -> None:
    check = Length(max=3, action="truncate")
    messages = tuple(Message.of("user", t) for t in ("abcd", "ab", "wxyz"))
    verdict = check.pre_filter(messages=messages)
    assert isinstance(verdict, Replace)
    assert [m.text for m in verdict.content if isinstance(m, Message)] == ["abc", "ab", "wxy"]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "needs a bound"),
        ({"min": -1}, "must not be negative"),
        ({"max": 0}, "at least 1"),
        ({"max": 3, "min": 4}, "at least min"),
        ({"min": 1, "action": "truncate"}, "needs max"),
        ({"max": 3, "action": "truncate", "ending": "[...]"}, "must fit into max"),
        ({"max": 3, "action": "truncate", "ending": "\n", "unit": "lines"}, "one line"),
        ({"max": 3, "ending": "…"}, "only used with action = 'truncate'"),
        ({"max": 3, "feedback": "x"}, "only used with action = 'retry'"),
    ],
)
def test_wrong_settings(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Length(**settings)
