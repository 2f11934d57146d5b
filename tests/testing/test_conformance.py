"""The conformance kit finds what breaks a rule, says so, and lets everything else pass."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from tests.testing import bad_checks as bad

from isonomy.sdk import Allow, Block, Critique, PluginError, Retry, check, hookimpl
from isonomy.sdk.testing import NotConformant, ScriptedModel, assert_conforms, examine
from isonomy.sdk.testing.conformance import PROPERTIES, shrunk

QUICK = ("linear",)
SLOW = ("elsewhere", "linear", "state")
"""Left out where a test is about something else."""


def failing(report: Any) -> list[str]:
    return [outcome.property for outcome in report.failed]


def test_a_check_that_keeps_every_rule() -> None:
    report = assert_conforms(bad.Careful(word="order"), texts=["an order", "none"])
    assert [outcome.status for outcome in report.outcomes] == ["held"] * len(PROPERTIES)
    assert report.ok
    assert report.questions > 30


def test_a_check_that_takes_everything_through_its_context() -> None:
    report = assert_conforms(bad.Asking(), secrets={"key": "abc"}, skip=QUICK)
    assert report.of("effects").status == "held"


def test_an_async_check_that_keeps_every_rule() -> None:
    report = assert_conforms(bad.Awaits(), skip=QUICK)
    assert {o.status for o in report.outcomes if o.property not in QUICK} == {"held"}


def test_effects_that_vary_are_told_beforehand() -> None:
    report = examine(bad.Ticking(), skip=SLOW)
    assert failing(report) == ["determinism", "parity", "streams", "settings"]
    assert "effects={'tick': ...}" in report.of("determinism").sentence
    assert_conforms(bad.Ticking(), effects={"tick": 1}, skip=SLOW)


def test_functions_conform_too() -> None:
    report = assert_conforms(no_orders, texts=["an order"])
    assert report.of("settings").status == "skipped"
    assert report.of("elsewhere").status == "held"


def no_orders(text: str) -> bool:
    return "order" not in text


BROKEN: list[tuple[Any, str, str, str | None]] = [
    (bad.Nonsense(), "well_formed", "must return a verdict or None, not Match", "order"),
    (bad.Silent(), "well_formed", "block without saying why", "order"),
    (bad.OutOfBounds(), "well_formed", "a span counts characters", None),
    (bad.Fragile(), "hostile", "raised ValueError: embedded null byte (control", "\x00"),
    (bad.Dice(), "determinism", "Take time and chance through ctx", ""),
    (bad.SeedOfHashes(), "elsewhere", "the order of a set", None),
    (bad.Counting(), "state", "after other texts", None),
    (bad.Shared(), "state", "while other threads asked it too", None),
    (bad.LoopDependent(), "parity", "an async caller got something else", None),
    (bad.Restless(), "settles", "'order!', and that by 'order!!'", "order"),
    (
        bad.Short(),
        "streams",
        "lets '482' pass and objects to '4821' because of what stands in the first 1 characters",
        None,
    ),
    (bad.ShortRewriter(), "streams", "Declare a greater lookback", None),
    (bad.TalksInStreams(), "streams", "a function of the text alone", None),
    (bad.Catastrophe(), "linear", "s of processor time", None),
    (bad.Quadratic(), "linear", "times as long", None),
    (check(bad.Slow(), timeout=0.1), "timeouts", "no answer within 0.1 s", None),
    (bad.BlocksTheLoop(), "timeouts", "kept the event loop for", None),
    (bad.ClosedOver(), "settings", "'timeout' is the name of a term", None),
    (bad.Mutable(), "settings", "Make it frozen", None),
]


@pytest.mark.parametrize(("plugin", "property", "said", "example"), BROKEN)
def test_what_breaks_a_rule_is_told(
    plugin: Any, property: str, said: str, example: str | None
) -> None:
    others = [name for name in PROPERTIES if name != property]
    outcome = examine(plugin, skip=others).of(property)
    assert outcome.status == "failed"
    assert said.lower() in str(outcome).lower()
    if example is not None:
        assert outcome.example == example


@pytest.mark.parametrize("what", bad.REACHING)
def test_what_a_check_reaches_for_is_named(what: str) -> None:
    others = [name for name in PROPERTIES if name != "effects"]
    outcome = examine(bad.Reaching(what=what), skip=others).of("effects")
    assert outcome.status == "failed"
    assert bad.REACHING[what][1] in outcome.sentence
    assert outcome.example == "order"


def test_tripwires_are_down_outside_of_the_kit() -> None:
    from pathlib import Path

    from isonomy.sdk.testing import tripwires

    tripwires.add_hook()
    with tripwires.armed() as found:
        other = threading.Thread(target=lambda: Path("/etc/passwd").read_text())
        other.start()
        other.join()
    Path("/etc/passwd").read_text()
    assert [each for each in found if "file" in each] == []


def test_the_error_has_a_line_for_each_property() -> None:
    with pytest.raises(NotConformant, match="does not conform") as caught:
        assert_conforms(bad.Restless(), skip=SLOW)
    assert isinstance(caught.value, AssertionError)
    assert failing(caught.value.report) == ["settles"]
    assert "Smallest example: 'order'." in str(caught.value)
    assert "settles: failed" in str(caught.value.report)


def test_instances_that_are_no_structs() -> None:
    class Plain:
        def __init__(self, word: str) -> None:
            self.word = word

        @hookimpl
        def post_validate(self, candidate: Any) -> Any:
            return Block("a bad word") if self.word in candidate.text else Allow()

    report = assert_conforms(Plain("order"), skip=QUICK)
    assert report.of("elsewhere").status == "skipped"
    assert report.of("settings").status == "skipped"

    class Holding(Plain):
        def __init__(self) -> None:
            super().__init__("x")
            self.lock = threading.Lock()

    report = examine(Holding(), skip=SLOW)
    assert failing(report) == ["settings"]
    assert "frozen msgspec.Struct" in report.of("settings").sentence


def test_terms_of_a_check_count() -> None:
    given = check(no_orders, id="mine", stages=["post_validate"], lookback=3)
    report = examine(given, texts=["an order"], skip=SLOW)
    assert failing(report) == ["streams"]
    given = check(no_orders, stages=["post_validate"], lookback=4)
    assert_conforms(given, texts=["an order"], skip=SLOW)


def test_a_lookback_that_counts_characters_holds() -> None:
    def short(text: str) -> bool:
        return len(text) < 20

    assert_conforms(check(short, stages=["post_validate"], lookback=0), skip=SLOW)


def test_a_judge_and_its_answers() -> None:
    class Judge:
        @hookimpl
        def post_validate(self, candidate: Any, ctx: Any) -> Any:
            said = ctx.generate(f"Is this polite? {candidate.text}").text
            return Allow() if said == "polite" else Retry("Say it politely.")

    assert_conforms(Judge(), judge="polite", skip=SLOW)
    report = assert_conforms(Judge(), judge=lambda messages: "rude", skip=SLOW)
    assert report.ok
    with pytest.raises(NotConformant, match="has 1 answers"):
        assert_conforms(Judge(), judge=ScriptedModel(["polite"]), skip=SLOW)


def test_every_stage_is_asked() -> None:
    asked: set[str] = set()

    class Everywhere:
        @hookimpl
        def pre_filter(self, messages: Any) -> Any:
            asked.add("pre_filter")
            return Allow()

        @hookimpl
        def retrieved(self, documents: Any) -> Any:
            asked.add(f"retrieved {documents[0].text}")
            return Allow()

        @hookimpl
        def critique(self, candidate: Any) -> Any:
            asked.add(f"critique {candidate.text}")

        @hookimpl
        def revise(self, candidate: Any, critiques: Any) -> Any:
            asked.add("revise")

        @hookimpl
        def rank(self, candidates: Any) -> Any:
            asked.add(f"rank {len(candidates)}")

        @hookimpl
        def post_validate(self, candidate: Any) -> Any:
            asked.add(f"post_validate {candidate.text}")
            return Allow()

        @hookimpl
        def tool_call(self, tool_call: Any) -> Any:
            asked.add(f"tool_call {tool_call.arguments['query']}")
            return Allow()

        @hookimpl
        def tool_result(self, result: Any) -> Any:
            asked.add(f"tool_result {result.content}")
            return Allow()

    examine(Everywhere(), texts=["needle"], skip=SLOW)
    assert {each for each in asked if "needle" in each} == {
        "retrieved needle", "critique needle", "post_validate needle", "tool_call needle",
        "tool_result needle",
    }  # fmt: skip
    assert {"pre_filter", "revise", "rank 2"} <= asked


def test_critiques_have_scores_between_0_and_1() -> None:
    class Critic:
        @hookimpl
        def critique(self, candidate: Any) -> Any:
            return [Critique("kind", 90.0 if "order" in candidate.text else 0.5)]

    report = examine(Critic(), skip=SLOW)
    assert failing(report) == ["well_formed"]
    assert "'kind' with 90" in report.of("well_formed").sentence


def test_observers_are_asked_nothing() -> None:
    class Watching:
        @hookimpl
        def observe(self, event: Any) -> None:
            raise AssertionError

    report = assert_conforms(Watching())
    assert report.of("streams").status == "skipped"


def test_what_is_no_check() -> None:
    with pytest.raises(PluginError, match="is no check"):
        examine(5)
    with pytest.raises(PluginError, match="is a class"):
        examine(bad.Careful)
    with pytest.raises(PluginError, match="are no data"):
        examine(bad.NoData())
    with pytest.raises(ValueError, match="no property 'speed'"):
        examine(no_orders, skip=["speed"])


def test_examples_are_made_small() -> None:
    assert shrunk("hello 4821 there", lambda text: "48" in text) == "48"
    assert shrunk("abc", lambda text: True) == ""
    asked: list[str] = []
    shrunk("x" * 10_000, lambda text: bool(asked.append(text)), tries=20)
    assert len(asked) == 20
