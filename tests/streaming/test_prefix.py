"""What may leave: boundaries, lookback, replacements in a chain."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import islice, pairwise
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.sdk.world import run

from isonomy.sdk import Policy, check, hookimpl
from isonomy.sdk.streaming import STEP, Prefix, boundaries, joined, readers


class Rule(NamedTuple):
    """A check as far as `Prefix` knows it, with what it makes of a text."""

    id: str
    makes: Callable[[str], str | None]
    lookback: int = 0
    read_only: bool = False


async def ask(rule: Any, text: str) -> str | None:
    return rule.makes(text)  # type: ignore[no-any-return]


def prefix(*rules: Rule, passes: int = 3) -> Prefix:
    return Prefix(rules, ask, passes=passes)


def fed(made: Prefix, *pieces: str) -> str:
    async def feed() -> str:
        for piece in pieces:
            await made.feed(piece)
        return made.text

    return run(feed())  # type: ignore[no-any-return]


def allow(text: str) -> str:
    return text


def test_boundaries_grow_wider_with_the_answer() -> None:
    first = list(islice(boundaries(), 5))
    assert first == [STEP, 2 * STEP, 3 * STEP, 4 * STEP, 5 * STEP]
    at = list(islice(boundaries(), 400))
    assert all(b - a == max(STEP, a // 16) for a, b in pairwise(at))
    # No check reads more than some 16 times an answer, however long it is.
    assert sum(at) < 18 * at[-1]


def test_without_checks_everything_up_to_the_last_boundary_leaves() -> None:
    text = "x" * (3 * STEP + 5)
    assert fed(prefix(), text) == text[: 3 * STEP]
    assert fed(prefix(), "x" * (STEP - 1)) == ""


def test_the_lookback_stays_behind() -> None:
    text = "x" * (2 * STEP)
    assert fed(prefix(Rule("a", allow, 10)), text) == text[:-10]
    assert fed(prefix(Rule("a", allow, 1000)), text) == ""


def test_lookbacks_add_up_where_checks_may_replace_and_do_not_where_they_only_read() -> None:
    text = "x" * (2 * STEP)
    assert len(fed(prefix(Rule("a", allow, 5), Rule("b", allow, 7)), text)) == 2 * STEP - 12
    reading = [Rule("a", allow, 5, True), Rule("b", allow, 7, True)]
    assert len(fed(prefix(*reading), text)) == 2 * STEP - 7
    assert len(fed(prefix(*reading, Rule("c", allow, 3)), text)) == 2 * STEP - 10
    assert len(fed(prefix(Rule("c", allow, 3), *reading), text)) == 2 * STEP - 10


def test_what_was_replaced_leaves_as_it_was_made() -> None:
    rule = Rule("a", lambda text: text.replace("secret", "*"), 5)
    text = "my secret is out " * 4
    assert text.replace("secret", "*").startswith(fed(prefix(rule), text))
    assert fed(prefix(rule), text)


def test_an_objection_ends_it_for_good() -> None:
    asked: list[str] = []

    def object_once(text: str) -> str | None:
        asked.append(text)
        return None if len(asked) == 2 else text

    made = prefix(Rule("a", object_once, 2))
    text = "x" * (5 * STEP)
    assert fed(made, text) == text[: STEP - 2]
    assert made.held
    assert len(asked) == 2


def test_a_check_that_only_reads_must_not_replace() -> None:
    made = prefix(Rule("a", lambda text: text.upper(), 0, True))
    assert (fed(made, "x" * 100), made.held) == ("", True)


def test_a_check_that_goes_back_on_what_it_let_go_ends_it() -> None:
    # Its lookback should have been "all": the beginning depends on the end.
    made = prefix(Rule("a", lambda text: ("A" if len(text) > 40 else "B") + text, 0))
    assert fed(made, "x" * 100) == "B" + "x" * STEP
    assert made.held


def test_what_a_later_check_made_is_shown_to_the_earlier_again() -> None:
    """A blocked word that only a replacement brings in does not leave."""
    blocks = Rule("a", lambda text: None if "bad" in text else text, 2)
    brings = Rule("b", lambda text: text.replace("good", "bad"), 3)
    text = "x" * 40 + " good " + "x" * 80
    assert fed(prefix(blocks, brings), text) == "x" * (STEP - 5)
    assert fed(prefix(brings, blocks), text) == "x" * (STEP - 5)


def test_what_is_settled_after_a_second_look_leaves() -> None:
    reads = Rule("a", allow, 2)
    changes = Rule("b", lambda text: text.replace("good", "fine"), 3)
    text = "a good word " * 8
    made = prefix(reads, changes, passes=2)
    assert fed(made, text) == text.replace("good", "fine")[: len(made.text)]
    assert made.text.count("fine") > 5
    assert fed(prefix(reads, changes, passes=1), text) == ""


def test_checks_that_undo_each_other_let_nothing_go() -> None:
    to_b = Rule("a", lambda text: text.replace("a", "b"))
    to_a = Rule("b", lambda text: text.replace("b", "a"))
    made = prefix(to_b, to_a)
    assert (fed(made, "a" * 100), made.held) == ("", True)


def test_a_lone_surrogate_holds_what_follows_back() -> None:
    made = prefix()
    assert fed(made, "x" * 40, "\ud83d" + "x" * 100) == "x" * STEP
    assert made.held


def test_all_is_no_number() -> None:
    made = prefix(Rule("a", allow, "all"))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="wants all of an answer"):
        fed(made, "x" * 100)


RULES = [
    Rule("shout", str.upper),
    Rule("mask", lambda text: re.sub("[0-9]+", "#", text), 0),
    Rule("squeeze", lambda text: text.replace("ab", "X"), 1),
    Rule("grow", lambda text: text.replace("é", "<e>"), 0),
    Rule("no-cc", lambda text: None if "cc" in text else text, 1, True),
    Rule("no-xx", lambda text: None if re.search("X.X", text, re.S) else text, 2),
]


@given(
    text=st.text(alphabet="abcX0é \n🙂", max_size=300),
    rules=st.lists(st.sampled_from(RULES), unique_by=lambda rule: rule.id, max_size=4),
    cuts=st.lists(st.integers(0, 300), max_size=8),
)
def test_what_leaves_does_not_depend_on_the_cut_and_is_never_taken_back(
    text: str, rules: list[Rule], cuts: list[int]
) -> None:
    whole = prefix(*rules)
    fed(whole, text)
    at = [0, *sorted(cut for cut in cuts if cut < len(text)), len(text)]
    made = prefix(*rules)

    async def feed() -> None:
        left = ""
        for start, end in pairwise(at):
            await made.feed(text[start:end])
            assert made.text.startswith(left)
            left = made.text

    run(feed())
    assert (made.text, made.held, made.taken) == (whole.text, whole.held, text)
    for longer in ("", "c", "ab", "X"):
        more = prefix(*rules)
        assert fed(more, text + longer).startswith(whole.text) or more.held


def test_joined() -> None:
    assert joined("", "No.") == "No."
    assert joined("So", "No.") == "So\n\nNo."
    assert joined("So\n", "No.") == "So\n\nNo."
    assert joined("So\n\n", "No.") == "So\n\nNo."
    assert joined("So\n\n\n", "No.") == "So\n\n\nNo."


class Judge:
    @hookimpl
    def critique(self, candidate: Any) -> Any:
        return []


class Tools:
    @hookimpl
    def tool_call(self, tool_call: Any) -> Any:
        return None


def test_who_is_asked_in_mid_stream() -> None:
    quick = check(lambda text: True, id="quick", lookback=4)
    slow = check(lambda text: True, id="slow")
    trial = check(lambda text: True, id="trial", shadow=True)

    def ids(*checks: Any, tools: bool = False, **settings: Any) -> list[str] | None:
        found = readers(Policy(checks, **settings), tools=tools)
        return None if found is None else [each.id for each in found]

    assert ids() == []
    assert ids(quick) == ["quick"]
    assert ids(quick, trial) == ["quick"]
    assert ids(quick, slow) is None
    assert ids(quick, candidates=2) is None
    assert ids(quick, Judge()) is None
    assert ids(quick, check(Judge(), lookback=0)) == ["quick"]
    assert ids(quick, Tools()) == ["quick"]
    assert ids(quick, Tools(), tools=True) is None
    assert ids(quick, check(lambda text: True, id="input", stages=("pre_filter",))) == ["quick"]
