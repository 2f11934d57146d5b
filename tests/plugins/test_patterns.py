import time
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isonomy.plugins import Patterns
from isonomy.plugins.linear import characters, compile_linear, find_all, to_utf8
from isonomy.sdk import Allow, Block, Flag, Message, Replace, Retry
from isonomy.sdk.canonical import digest_of


def test_actions() -> None:
    text = "the key sk-12345678 here"
    deny = {"key": r"sk-\d{8}"}
    assert Patterns(deny=deny).judge("nothing") == Allow(score=0.0)
    block = Patterns(deny=deny).judge(text)
    assert isinstance(block, Block)
    assert block.reason == "it matches the denied 'key'"
    assert (block.labels, block.score) == (("key",), 1.0)
    assert [text[s.start : s.end] for s in block.spans] == ["sk-12345678"]
    flag = Patterns(deny=deny, action="flag").judge(text)
    assert isinstance(flag, Flag)
    redact = Patterns(deny=deny, action="redact").judge(text)
    assert isinstance(redact, Replace)
    assert redact.content == "the key [REDACTED] here"
    retry = Patterns(deny=deny, action="retry").judge(text)
    assert isinstance(retry, Retry)
    assert retry.feedback == "Write the answer again: it matches the denied 'key'."
    told = Patterns(deny=deny, action="retry", feedback="No keys.").judge(text)
    assert isinstance(told, Retry)
    assert told.feedback == "No keys."
    for verdict in (block, flag, redact, retry):
        assert b"12345678" not in msgspec.json.encode(msgspec.structs.replace(verdict))


def test_retry_blocks_at_the_input() -> None:
    check = Patterns(deny=("x",), action="retry")
    verdict = check.pre_filter(messages=(Message.of("user", "x"),))
    assert isinstance(verdict, Block)


def test_require() -> None:
    check = Patterns(require={"greeting": "^(Hello|Hi)", "name": "Jo"}, ignore_case=True)
    assert check.judge("hello jo") == Allow(score=0.0)
    verdict = check.judge("hello")
    assert isinstance(verdict, Block)
    assert verdict.reason == "it lacks the required 'name'"
    assert verdict.spans == ()
    both = Patterns(require=("a",), deny=("b",)).judge("b")
    assert isinstance(both, Block)
    assert both.reason == "it matches the denied 'deny[0]' and it lacks the required 'require[0]'"


def test_names_in_lists_are_places() -> None:
    verdict = Patterns(deny=("a", "b"), words=("c",)).judge("b c")
    assert isinstance(verdict, Block)
    assert verdict.labels == ("deny[1]", "words")


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        ("foo foo foo", "# # #"),
        ("foobar, barfoo, foo_bar, foo1", "foobar, barfoo, foo_bar, foo1"),
        ("FOO.", "#."),
        ("naïve naïves unnaïve", "# naïves unnaïve"),
        ("NAÏVE", "#"),
        ("ad \n hoc, adhoc", "#, adhoc"),
        ("ad\u00a0hoc", "#"),
        ("ad hoc committee of ad", "# of ad"),
        ("C++ and C++11 and c++.", "# and C++11 and #."),
        ("日本 日本語", "# 日本語"),
        ("cafe\u0301 cafe", "cafe\u0301 #"),
        ("", ""),
    ],
)
def test_words_are_whole_words_of_any_script(text: str, redacted: str) -> None:
    words = ("foo", "naïve", "ad hoc", "ad hoc committee", "C++", "日本", "cafe")
    verdict = Patterns(words=words, ignore_case=True, action="redact", replacement="#").judge(text)
    assert (verdict.content if isinstance(verdict, Replace) else text) == redacted


def test_words_are_literal() -> None:
    assert Patterns(words=("a.c", "[x]")).judge("abc x").name == "allow"
    assert Patterns(words=("a.c", "[x]")).judge("say [x]").name == "block"


def test_case_matters_unless_told() -> None:
    assert Patterns(deny=("straße",)).judge("STRAßE").name == "allow"
    assert Patterns(deny=("straße",), ignore_case=True).judge("STRAßE").name == "block"


def test_overlapping_places_are_redacted_together() -> None:
    check = Patterns(deny=("abc", "cd", "x+"), action="redact", replacement="#")
    verdict = check.judge("abcd xx, cd abcabc")
    assert isinstance(verdict, Replace)
    assert verdict.content == "# #, # ##"


@settings(deadline=None)
@given(st.text(alphabet="aé漢😀\u0301 b\n\ud800", max_size=40))
def test_spans_are_characters_of_the_string(text: str) -> None:
    check = Patterns(deny=("a", "漢.", "😀+"), action="flag")
    verdict = check.judge(text)
    spans = {(s.start, s.end, s.label) for s in verdict.spans}
    expected = {(i, i + 1, "deny[0]") for i, c in enumerate(text) if c == "a"}
    assert {s for s in spans if s[2] == "deny[0]"} == expected
    for start, end, label in spans:
        if label == "deny[1]":
            assert (text[start], end - start) == ("漢", 2)
        if label == "deny[2]":
            assert set(text[start:end]) == {"😀"}
            assert text[start - 1 : start] != "😀"
            assert text[end : end + 1] != "😀"


@settings(deadline=None)
@given(st.text(max_size=30), st.lists(st.integers(0, 30)))
def test_offsets(text: str, offsets: list[int]) -> None:
    data = to_utf8(text)
    starts = [len(to_utf8(text[:i])) for i in range(len(text) + 1)]
    wanted = [starts[i % len(starts)] for i in offsets]
    assert characters(text, data, wanted) == {o: starts.index(o) for o in wanted}


def test_find_all_knows_what_stands_before() -> None:
    # Going on behind a match must not make a word's middle its beginning, nor the text's.
    assert find_all(compile_linear(r"\bfoo", what="x"), b"foofoo foo", limit=9) == (
        [(0, 3), (7, 10)],
        False,
    )
    assert find_all(compile_linear("^a", what="x"), b"aaa", limit=9) == ([(0, 1)], False)
    assert find_all(compile_linear("a|^|$", what="x"), b"aab", limit=9) == (
        [(0, 1), (1, 2)],
        False,
    )
    assert find_all(compile_linear("a", what="x"), b"aaa", limit=2) == ([(0, 1), (1, 2)], True)
    assert find_all(compile_linear("a", what="x"), b"aa", limit=2) == ([(0, 1), (1, 2)], False)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "needs a pattern"),
        ({"deny": {"twice": r"(a)\1"}}, "'twice' is not a pattern that RE2 can run"),
        ({"deny": {"twice": r"(a)\1"}}, "no backreferences and no look-around"),
        ({"deny": ("a(?=b)",)}, "no backreferences and no look-around"),
        ({"require": ("(?<!a)b",)}, r"the require pattern 'require\[0\]'.*no look-around"),
        ({"deny": ("(a",)}, r"missing \): \(a.*wiki/Syntax"),
        ({"deny": ("a{1001}",)}, "at most 1000"),
        ({"deny": (r"((\pL{1000}){1000}){2}",)}, "repetition"),
        ({"deny": (r"a\Z",)}, r"end of the text as \\z"),
        ({"deny": ("x" * 10_001,)}, "10001 characters; the limit is 10000"),
        ({"deny": ("a*",)}, "matches the empty text"),
        ({"deny": ("",)}, "matches the empty text"),
        ({"require": ("$",)}, "matches the empty text"),
        ({"words": ("a", " ")}, r"words\[1\] is empty"),
        ({"deny": ("RED",), "action": "redact"}, "matches the replacement"),
        ({"words": ("redacted",), "ignore_case": True, "action": "redact"}, "the replacement"),
        ({"require": ("a",), "action": "redact"}, "what is missing can't be replaced"),
        ({"deny": ("a",), "feedback": "x"}, "only used with action = 'retry'"),
        ({"deny": ("a",), "limit": 0}, "limit must be between"),
        ({"deny": ("\ud800",)}, "lone surrogate"),
    ],
)
def test_wrong_settings(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Patterns(**settings)
    # As the policy loader decodes them: the same sentence.
    with pytest.raises(msgspec.ValidationError, match=said):
        msgspec.convert(
            {k: list(v) if isinstance(v, tuple) else v for k, v in settings.items()}, Patterns
        )


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"denny": []}, "unknown field `denny`"),
        ({"deny": ["a"], "action": "explode"}, "explode"),
        ({"deny": [1]}, r"`\$.deny\[0\]`"),
        ({"deny": 1}, r"`\$.deny`"),
    ],
)
def test_settings_of_the_wrong_type(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=said):
        msgspec.convert(settings, Patterns)


def test_settings_decode_and_have_a_digest() -> None:
    table = {"deny": {"key": "sk-"}, "words": ["foo"], "action": "flag"}
    check = msgspec.convert(table, Patterns)
    check.judge("foo")
    again = Patterns(deny={"key": "sk-"}, words=("foo",), action="flag")
    assert digest_of(check) == digest_of(again)
    assert digest_of(check) != digest_of(Patterns(deny={"key": "sk-"}))
    assert check != again  # two checks, each with its own place in a policy
    with pytest.raises(AttributeError):
        check.limit = 3  # type: ignore[misc]


def test_redaction_is_limited() -> None:
    check = Patterns(deny=("a",), action="redact", limit=3)
    assert check.judge("aaa").name == "replace"
    verdict = check.judge("aaaa")
    assert isinstance(verdict, Block)
    assert "more than 3 places" in verdict.reason


def test_hostile_text_takes_linear_time() -> None:
    # Each match of this pattern looks at all the rest of the text before it gives up.
    text = "a" * 300_000
    check = Patterns(deny=("a(?:.*b)?",), words=("foo",), action="redact", limit=200)
    started = time.process_time()
    assert check.judge(text).name == "block"
    assert Patterns(deny=("(a+)+$", "(a|a)*b", "(.*a){20}b")).judge(text).name == "block"
    assert time.process_time() - started < 3


def test_a_long_list_of_words() -> None:
    words = tuple(f"wort{i * 7919 % 100_003}" for i in range(10_000))
    check = Patterns(words=words, ignore_case=True)
    assert check.judge("Ein Wort7919 hier").name == "block"
    assert check.judge("Ein Wort hier" * 1000).name == "allow"
