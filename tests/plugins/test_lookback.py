"""What the built-in checks say of themselves in mid-stream holds for every cut of a text."""

from __future__ import annotations

from typing import Any

import pytest
import re2
from hypothesis import example, given, settings
from hypothesis import strategies as st

from isonomy.plugins import Length, Patterns, Pii
from isonomy.plugins.width import widest
from isonomy.sdk import Candidate, Replace
from isonomy.sdk.vocabulary import Json, Reasoning, Text, ToolCall


@pytest.mark.parametrize(
    ("pattern", "width"),
    [
        ("", 0),
        ("abc", 3),
        ("a|bcd|ef", 3),
        ("(ab)?c", 3),
        ("(?:ab){2,3}", 6),
        ("(?P<n>ab){4}?", 8),
        ("(?<n>ab)", 2),
        ("(?i)ab", 2),
        ("(?is:a.)b", 3),
        ("a*", None),
        ("a+?", None),
        ("a{2,}", None),
        ("(a|b*)c", None),
        ("(?:^|$|\\b)*", 0),
        ("a{,2}", 5),
        ("a{x}", 4),
        ("[]a-c]x", 2),
        ("[^]]{3}", 3),
        ("[[:alpha:]\\]]", 1),
        (r"\Aab\z", 2),
        (r"\pL\p{Greek}\PN\P{^Greek}", 4),
        (r"\x41\x{10FFFF}\101\n\.\\", 6),
        (r"\Qa.b\E{2}", 6),
        (r"\Qa*", 2),
        (r"sk-[a-z0-9]{8,20}", 23),
        ("((a{2}){3}){4}", 24),
        ("(?:a{0}b)*", None),
        ("a{0}", 0),
        (r"\C", 1),
    ],
)
def test_the_width_of_a_pattern(pattern: str, width: int | None) -> None:
    re2.compile(pattern)  # it is one
    assert widest(pattern) == width


ATOMS = st.sampled_from(
    ["a", "b", ".", "[ab]", "[^a]", r"\d", r"\b", "^", "$", r"\x61", r"\pL", "(?i:A)", r"\Qa\E"]
)
PATTERNS = st.recursive(
    ATOMS,
    lambda inner: st.one_of(
        st.tuples(inner, inner).map("".join),
        st.tuples(inner, inner).map(lambda two: f"(?:{two[0]}|{two[1]})"),
        st.tuples(inner, st.sampled_from(["?", "{2}", "{0,3}", "{1,2}?"])).map(
            lambda two: f"({two[0]}){two[1]}"
        ),
    ),
    max_leaves=6,
)


@given(PATTERNS, st.text("ab1 \n", max_size=30))
@settings(max_examples=300, deadline=None)
def test_no_match_is_wider(pattern: str, text: str) -> None:
    width = widest(pattern)
    assert width is not None
    assert all(match.end() - match.start() <= width for match in re2.finditer(pattern, text))


def made_of(check: Any, text: str) -> str | None:
    """What a check makes of an answer; `None` where it does not let it pass."""
    candidate = Candidate(index=0, content=(Text(text),), finish_reason="")
    if isinstance(check, Pii):
        verdict: Any = check.post_validate(candidate, None)  # type: ignore[arg-type]
    else:
        verdict = check.post_validate(candidate)
    if isinstance(verdict, Replace):
        return str(verdict.content)
    return text if verdict.name in ("allow", "flag") else None


def holds(check: Any, text: str) -> None:
    """The promise of `lookback`, for every cut of a text."""
    back = check.lookback
    assert isinstance(back, int)
    whole = made_of(check, text)
    for cut in range(len(text)):
        early = made_of(check, text[:cut])
        if early is None or whole is None:
            continue  # held back, or refused in the end
        stable = early[: max(0, len(early) - back)]
        assert whole.startswith(stable), (cut, early, whole)


@given(
    st.lists(PATTERNS, min_size=1, max_size=3), st.text("ab1 ", max_size=40),
    st.sampled_from(["", "X", "[REDACTED]", "ab"]),
)  # fmt: skip
@settings(max_examples=200, deadline=None)
def test_what_patterns_redact_early_stays(patterns: list[str], text: str, replacement: str) -> None:
    try:
        check = Patterns(deny=tuple(patterns), action="redact", replacement=replacement)
    except ValueError:
        return  # it matches the empty text, or the replacement
    holds(check, text)


@given(st.lists(PATTERNS, min_size=1, max_size=3), st.text("ab1 ", max_size=40))
@settings(max_examples=200, deadline=None)
def test_nothing_of_what_is_blocked_leaves_early(patterns: list[str], text: str) -> None:
    try:
        check = Patterns(deny=tuple(patterns))
    except ValueError:
        return
    back = check.lookback
    assert isinstance(back, int)
    places = [match.span() for p in patterns for match in re2.finditer(p, text)]
    for cut in range(len(text) + 1):
        if made_of(check, text[:cut]) is not None:
            left = max(0, cut - back)
            assert all(start >= left for start, _ in places)


@given(
    st.text(["a", "b", " ", "\n", "\u0301", "\u200d", "\U0001f469"], max_size=80),
    st.integers(4, 40), st.sampled_from(["characters", "bytes", "lines"]),
    st.sampled_from(["", "...", "\u2026"]),
)  # fmt: skip
@settings(max_examples=300, deadline=None)
@example("a\n" * 8, 4, "lines", "...")
def test_what_is_cut_early_stays(text: str, most: int, unit: Any, ending: str) -> None:
    holds(Length(max=most, unit=unit, action="truncate", ending=ending), text)


PIECES = [
    "jo@example.org", "@", ".", "+1 212 555 0123", "4111 1111 1111 1111", "4111111111111111",
    "DE89 3702 0044 0532 0130 00", "192.0.2.7", "2001:db8::1", " ", "x", "1", "-", ":", "\u200b",
    "call ", "order ", "and so on, ",
]  # fmt: skip


@given(st.lists(st.sampled_from(PIECES), max_size=40), st.sampled_from(["redact", "mask"]))
@settings(max_examples=150, deadline=None)
@example(["a" * 200, "@", "b" * 40, ".", "example.org", "x " * 300], "redact")
def test_what_is_redacted_early_stays(pieces: list[str], action: Any) -> None:
    check = Pii(action=action, regions=("US",))
    text = "".join(pieces) + " and so on" * 60
    back = check.lookback
    assert isinstance(back, int)
    whole = made_of(check, text)
    for cut in range(0, len(text), 7):
        early = made_of(check, text[:cut])
        if early is not None and whole is not None:
            assert whole.startswith(early[: max(0, len(early) - back)]), (cut, early, whole)


@pytest.mark.parametrize(
    ("check", "back"),
    [
        (Patterns(deny=("ab",), action="flag"), 0),
        (Patterns(deny=("ab",)), 3),
        (Patterns(deny=("ab", "c{4}"), action="redact"), 50),
        (Patterns(words=("acme",)), 7),
        (Patterns(deny=("a+",)), "all"),
        (Patterns(words=("acme corp",)), "all"),
        (Patterns(require=("ab",)), "all"),
        (Patterns(deny=("ab",), action="retry"), "all"),
        (Length(max=9), "all"),
        (Length(max=9, action="flag"), 0),
        (Length(max=9, action="truncate", unit="lines"), 0),
        (Length(max=9, min=2, action="truncate"), "all"),
        (Pii(), 512),
        (Pii(action="flag"), 0),
        (Pii(action="hash", key="k"), "all"),
    ],
)
def test_what_is_declared(check: Any, back: Any) -> None:
    assert check.lookback == back


@pytest.mark.parametrize(
    ("check", "read_only"),
    [
        (Patterns(deny=("ab",)), True),
        (Patterns(deny=("ab",), action="redact"), False),
        (Length(max=9), True),
        (Length(max=9, action="truncate"), False),
        (Pii(action="block"), True),
        (Pii(action="block", actions={"ip": "mask"}), False),
        (Pii(action="flag", kinds=("ip",)), True),
    ],
)
def test_what_never_replaces_says_so(check: Any, read_only: bool) -> None:
    assert check.read_only is read_only


# Reasoning and structured data.


def judged(check: Any, *parts: Any) -> Any:
    return check.post_validate(Candidate(index=0, content=parts, finish_reason="stop"))


def test_reasoning_and_data_are_judged_beside_the_text() -> None:
    check = Patterns(deny={"key": "sk-[0-9]+"}, action="redact", replacement="[X]")
    call = ToolCall("1", "f", {"q": "sk-1"})
    found = judged(check, Reasoning("use sk-1", "signed"), Text("fine"), Json({"k": "sk-2"}), call)
    assert found.content == (Reasoning("use [X]"), Text("fine"), Json({"k": "[X]"}), call)
    assert [span.label for span in found.spans] == ["reasoning key", "data key"]
    assert judged(check, Text("sk-1"), call).content == "[X]"
    assert judged(check, call) is None
    assert judged(check, Reasoning("hm"), Text("fine")).name == "allow"


def test_data_that_would_be_no_json_any_more_is_blocked() -> None:
    check = Patterns(deny={"key": '"sk-[0-9]+"'}, action="redact", replacement="[X")
    found = judged(check, Json({"k": "sk-2"}))
    assert found.name == "block"
    assert "leaves no JSON" in found.reason
