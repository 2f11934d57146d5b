"""The demo model's world: determinism, disjoint splits, decidable and well-formed answers."""

from __future__ import annotations

import itertools
import pathlib
import random
import re

import pytest
from stdnum import luhn

from demo_model import answers, elsewhere, evaluate, grammar, phrases, records, world

ROOT = pathlib.Path(__file__).parents[2]
SHIPPED = ROOT / "backends/isonomy/backends/local/demo"


COUNT = 1500


@pytest.fixture(scope="module")
def training() -> list[world.Dialogue]:
    return list(itertools.islice(world.dialogues(7, held_out=False), COUNT))


@pytest.fixture(scope="module")
def kept() -> list[world.Dialogue]:
    return world.held_out(300)


def test_equal_seeds_give_equal_dialogues() -> None:
    first = list(itertools.islice(world.dialogues(3, held_out=False), 50))
    again = list(itertools.islice(world.dialogues(3, held_out=False), 50))
    other = list(itertools.islice(world.dialogues(4, held_out=False), 50))
    assert first == again
    assert first != other


def test_held_out_dialogues_are_different_from_each_other_and_stay_the_same(
    kept: list[world.Dialogue],
) -> None:
    assert len({dialogue.text() for dialogue in kept}) == 300
    assert world.held_out(20) == kept[:20]


def test_no_held_out_dialogue_is_ever_trained_on(
    training: list[world.Dialogue], kept: list[world.Dialogue]
) -> None:
    assert not {dialogue.text() for dialogue in training} & {dialogue.text() for dialogue in kept}


def _numbers(dialogue: world.Dialogue) -> set[str]:
    found = (re.search(r"[Oo]rder (\d+)", turn.accepted[0]) for turn in dialogue.turns)
    return {match.group(1) for match in found if match}


def _mailboxes(dialogue: world.Dialogue) -> set[str]:
    found = (
        re.search(r"account is (\S+)@", turn.accepted[0])
        for turn in dialogue.turns
        if turn.intent == "email"
    )
    return {match.group(1) for match in found if match}


def test_slot_values_are_split_too(
    training: list[world.Dialogue], kept: list[world.Dialogue]
) -> None:
    trained = {number for dialogue in training for number in _numbers(dialogue)}
    tested = {number for dialogue in kept for number in _numbers(dialogue)}
    assert len(trained) > 300
    assert len(tested) > 60
    assert not any(records.is_held_out(number) for number in trained)
    assert all(records.is_held_out(number) for number in tested)


def test_names_are_split_too(training: list[world.Dialogue], kept: list[world.Dialogue]) -> None:
    trained = [
        turn.user
        for dialogue in training
        for turn in dialogue.turns
        if turn.intent == "introduction"
    ]
    tested = [turn for dialogue in kept for turn in dialogue.turns if turn.intent == "introduction"]
    firsts = [turn.accepted[0].split()[1].rstrip("!") for turn in tested]
    assert trained
    assert firsts
    assert all(records.is_held_out(first) for first in firsts)
    words = {word.strip(",.!") for text in trained for word in text.split()}
    assert not set(firsts) & words


def test_the_training_answer_is_acceptable(training: list[world.Dialogue]) -> None:
    assert all(turn.answer in turn.accepted for dialogue in training for turn in dialogue.turns)
    usual = [
        turn.answer == turn.accepted[0]
        for dialogue in training
        for turn in dialogue.turns
        if len(turn.accepted) > 1
    ]
    assert 0.75 < sum(usual) / len(usual) < 0.85


def test_every_intent_occurs_and_leaves_no_slot_or_bracket_behind(
    training: list[world.Dialogue],
) -> None:
    turns = [turn for dialogue in training for turn in dialogue.turns]
    account = {"email", "phone", "address", "card", "key"}
    wanted = {*phrases.ORDER, *phrases.PLAIN, *account, "introduction", "elsewhere"}
    assert {turn.intent for turn in turns} == wanted
    for turn in turns:
        assert turn.user.strip() == turn.user != ""
        for text in (turn.user, *turn.accepted):
            assert not set("[]{}@|") & set(text.replace("@example.", ""))


def test_system_messages_and_several_turns_occur(training: list[world.Dialogue]) -> None:
    lengths = {len(dialogue.turns) for dialogue in training}
    assert {1, 2, 3, 4} <= lengths
    with_system = sum(dialogue.system is not None for dialogue in training)
    assert 0.2 < with_system / COUNT < 0.3


def test_the_number_given_after_the_question_answers_it() -> None:
    for dialogue in itertools.islice(world.dialogues(11, held_out=False), 500):
        for asking, giving in itertools.pairwise(dialogue.turns):
            if asking.accepted == answers.ASK_ORDER and giving.intent == asking.intent:
                digits = re.findall(r"\d+", giving.user)
                if digits:
                    assert giving.accepted == answers.about_order(asking.intent, digits[-1])
                    return
    pytest.fail("no dialogue in which the desk asks for the number")


def test_cards_have_right_check_digits_and_all_data_is_made_up() -> None:
    for first, last in itertools.product("ABCDEFGHIJKLMNOPQRSTUVWXYZÖ", repeat=2):
        customer = records.customer(f"{first}x {last}y")
        assert luhn.is_valid(re.sub(r"\D", "", customer.card))
        assert re.fullmatch(r"\+1 \d{3}-555-01\d\d", customer.phone)
        assert customer.email.endswith("@example.com")
        assert re.fullmatch(r"sk-demo-[0-9a-f]{16}", customer.key)
    assert luhn.is_valid(re.sub(r"\D", "", records.ANONYMOUS.card))


def test_a_known_customer_and_known_orders() -> None:
    mia = records.customer("Mia Berg")
    assert mia.email == "mia.berg@example.com"
    assert mia == records.customer("mia BERG")
    assert records.customer("Ada").email == "ada@example.com"
    assert records.customer("Ada") != records.customer("Zoe")
    assert answers.about_order("status", "4821") == (
        "Order 4821 is on its way and should arrive on Thursday.",
    )
    assert answers.about_order("cancel", "4827") == (
        "Order 4827 is cancelled. We will confirm it by e-mail.",
    )


def test_templates_expand_and_slips_spare_the_slots() -> None:
    rng = random.Random(1)
    expanded = {grammar.expand("[a|b[c|d]] , x", rng) for _ in range(60)}
    assert expanded == {"a, x", "bc, x", "bd, x"}
    slipped = {grammar.misspell("please {order} me", rng) for _ in range(60)}
    assert len(slipped) > 5
    assert all(text.endswith(" {order} me") for text in slipped)
    assert grammar.misspell("a b {order}", rng) == "a b {order}"
    assert grammar.fill("{a}-{b}", {"a": "{b}", "b": "2"}) == "{b}-2"
    with pytest.raises(KeyError):
        grammar.fill("{c}", {})


def test_questions_from_elsewhere_are_of_many_kinds() -> None:
    rng = random.Random(2)
    drawn = {elsewhere.draw(rng) for _ in range(1000)}
    assert len(drawn) > 900
    assert not any("{" in text or "[" in text for text in drawn)


def test_evaluation_counts_answers_and_whole_dialogues(kept: list[world.Dialogue]) -> None:
    several = next(dialogue for dialogue in kept if len(dialogue.turns) > 1)
    script = iter([*(turn.accepted[-1] for turn in several.turns[:-1]), "no"])
    seen: list[list[dict[str, str]]] = []

    def answer(messages: list[dict[str, str]]) -> str:
        seen.append(messages)
        return next(script)

    score = evaluate.evaluate(answer, [several])
    assert (score.dialogues, score.right_dialogues, score.share) == (1, 0, 0.0)
    assert (score.answers, score.right_answers) == (len(several.turns), len(several.turns) - 1)
    assert score.misses[0].answer == "no"
    assert score.misses[0].accepted == several.turns[-1].accepted
    assert seen[1][-2] == {"role": "assistant", "content": several.turns[0].accepted[-1]}
    with pytest.raises(ValueError, match="no dialogues"):
        evaluate.evaluate(answer, [])
