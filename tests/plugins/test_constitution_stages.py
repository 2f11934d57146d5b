"""What a constitution does at each stage, given its arguments: it holds nothing between them."""

from __future__ import annotations

from typing import Any

import pytest
from tests.plugins.judges import (
    QUESTION,
    Asked,
    FakeContext,
    by_law,
    candidate,
    laws,
    parsed,
    reply,
    run,
)

from isonomy.plugins import Constitution
from isonomy.sdk import (
    Allow,
    AskHuman,
    Block,
    Candidate,
    Critique,
    Flag,
    Message,
    Reasoning,
    Text,
    ToolCall,
)


def written(asked: Asked) -> str:
    return reply(by_law(parsed(asked.prompt)))


def said(peace: float, manners: float, /, **reasons: str) -> tuple[Critique, ...]:
    return (
        Critique("house/peace", peace, reasons.get("peace", "")),
        Critique("house/manners", manners, reasons.get("manners", "")),
    )


def revise(
    constitution: Constitution, ctx: FakeContext, answer: Candidate, *critiques: Critique
) -> Candidate | None:
    found = run(constitution.revise(answer, critiques, QUESTION, ctx))
    assert found is None or isinstance(found, Candidate)
    return found


def test_what_complies_is_left_alone() -> None:
    ctx = FakeContext()
    assert revise(laws(), ctx, candidate("tea"), *said(0.5, 1.0)) is None
    assert revise(laws(), ctx, candidate("tea")) is None
    stranger = Critique("other/peace", 0.0)
    assert revise(laws(), ctx, candidate("tea"), *said(0.9, 0.9), stranger) is None
    assert ctx.asked == []


def test_a_breach_is_mended_with_the_requests_of_its_principles() -> None:
    ctx = FakeContext(words=lambda asked: " mild tea\n")
    answer = Candidate(
        index=3,
        content=(Reasoning("boom"), Text("rude "), ToolCall("1", "kettle", {}), Text("boom")),
        finish_reason="tool_calls",
    )
    found = revise(
        laws(reviser="pen"), ctx, answer, *said(0.1, 0.2, peace='it says "boom"', manners="rude")
    )
    assert found == Candidate(
        index=3, content=(Text("mild tea"), ToolCall("1", "kettle", {})), finish_reason="tool_calls"
    )
    (asked,) = ctx.asked
    assert (asked.kind, asked.backend, asked.sampling) == ("text", "pen", None)
    assert asked.messages[:2] == (*QUESTION, Message.of("assistant", "rude boom"))
    request = asked.prompt
    # The highest law comes first, and the judge's words are quoted.
    assert request.index("Never say boom.") < request.index("Never be rude.")
    assert r'The critique, as JSON: "it says \"boom\""' in request
    assert request.count("What to do: Change what breaches the law") == 2


def test_only_what_is_breached_is_mended() -> None:
    ctx = FakeContext(words=lambda asked: "tea")
    assert revise(laws(), ctx, candidate("rude"), *said(0.9, 0.49)) == candidate("tea")
    assert "Never say boom." not in ctx.asked[0].prompt


def test_the_worst_of_several_critiques_counts() -> None:
    constitution, ctx = laws(), FakeContext(words=lambda asked: "tea")
    critiques = (*said(0.9, 0.9), *said(0.1, 1.0), *said(1.0, 1.0))
    assert revise(constitution, ctx, candidate("boom"), *critiques) == candidate("tea")
    verdict = run(constitution.post_validate(candidate("boom"), critiques, QUESTION, ctx))
    assert verdict.name == "block"
    assert len(ctx.asked) == 1


@pytest.mark.parametrize("text", ["", "  \n", "boom"])
def test_a_revision_that_is_none(text: str) -> None:
    ctx = FakeContext(words=lambda asked: text)
    assert revise(laws(), ctx, candidate("boom"), *said(0.1, 0.9)) is None


def test_there_is_no_text_to_mend() -> None:
    call = Candidate(index=0, content=(ToolCall("1", "boom", {}),), finish_reason="tool_calls")
    ctx = FakeContext()
    assert revise(laws(), ctx, call, *said(0.1, 0.9)) is None


def test_no_revision_beyond_the_bounds() -> None:
    ctx = FakeContext(words=lambda asked: "tea")
    assert revise(laws(tokens=3), ctx, candidate("boom"), *said(0.1, 0.9)) is None
    assert ctx.asked == []


def rank(ctx: FakeContext, critiques: Any, *texts: str) -> Any:
    candidates = tuple(candidate(text, index) for index, text in enumerate(texts))
    return run(laws().rank(candidates, critiques, QUESTION, ctx))


def test_ranking_by_the_critiques_that_are_there() -> None:
    ctx = FakeContext()
    ranking = rank(ctx, (said(0.4, 1.0), said(0.6, 0.1), said(0.6, 0.6)), "a", "b", "c")
    assert ranking.order == (2, 1, 0)
    assert ranking.scores[0] > 0.75 > ranking.scores[1] >= 0.5 > ranking.scores[2]
    assert ctx.asked == []


def test_ranking_judges_what_was_changed_since() -> None:
    ctx = FakeContext(words=written)
    ranking = rank(ctx, (said(0.9, 0.2), (), said(0.9, 0.9)[:1]), "a", "boom", "tea")
    assert ranking.order == (2, 0, 1)
    answers = [parsed(asked.prompt).answer for asked in ctx.asked]
    assert answers == ["boom", "boom", "tea", "tea"]


def test_one_candidate_is_not_ranked() -> None:
    assert rank(FakeContext(), ((),), "a") is None


def test_equal_candidates_keep_their_order() -> None:
    assert rank(FakeContext(), (said(0.94, 0.9), said(0.9, 0.99)), "a", "b").order == (0, 1)


def validate(constitution: Constitution, ctx: FakeContext, *critiques: Critique) -> Any:
    return run(constitution.post_validate(candidate("boom"), critiques, QUESTION, ctx))


def test_the_verdict_comes_from_the_critiques() -> None:
    ctx = FakeContext()
    assert validate(laws(), ctx, *said(0.5, 0.75)) == Allow(score=0.5)
    blocked = Block(
        "it breaches house/peace (0.10), house/manners (0.00)",
        score=1.0,
        labels=("house/peace", "house/manners"),
    )
    assert validate(laws(), ctx, *said(0.1, 0.0, peace="it quotes the text")) == blocked
    flagged = Flag("it breaches house/manners (0.25)", score=0.75, labels=("house/manners",))
    assert validate(laws(on_breach="flag"), ctx, *said(1.0, 0.25)) == flagged
    asked = AskHuman("it breaches house/manners (0.25)", score=0.75, labels=("house/manners",))
    assert validate(laws(on_breach="ask_human"), ctx, *said(1.0, 0.25)) == asked
    assert ctx.asked == []


def test_an_answer_that_was_changed_since_is_judged_again() -> None:
    ctx = FakeContext(words=written)
    verdict = validate(laws(), ctx)
    assert verdict.reason == "it breaches house/peace (0.10)"
    assert ctx.kinds == ["schema", "schema"]
    # Nobody needs a critique in words here.
    ctx = FakeContext(scores=lambda prompt: (-9.0, -1.0))
    assert validate(laws(), ctx, Critique("house/peace", 1.0)).name == "block"
    assert ctx.kinds == ["labels", "labels"]


def test_principles_of_one_level_stand_together() -> None:
    constitution = laws(together=True)
    ctx = FakeContext()
    candidates = (candidate("a", 0), candidate("b", 1))
    critiques = (said(1.0, 0.4), said(0.6, 0.6))
    assert run(constitution.rank(candidates, critiques, QUESTION, ctx)).order == (1, 0)
