"""Constitutions in calls: what comes of an answer, what is recorded, what a replay repeats."""

from __future__ import annotations

import asyncio
import math
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.plugins.judges import (
    Model,
    Scoring,
    assistant,
    by_law,
    judge,
    laws,
    parsed,
    reply,
)
from tests.sdk.world import of_type, steady

from isonomy.plugins import Constitution, Patterns
from isonomy.replay import ReplayLog
from isonomy.sdk import Guard, Identity, Policy, Reply, Request, Sampling, check
from isonomy.sdk.canonical import canonical
from isonomy.sdk.cli.explain import timeline
from isonomy.sdk.events import (
    Critiqued,
    Effect,
    Failed,
    Generated,
    Judged,
    Ranked,
    Revised,
    Scored,
)

SEED = Sampling(seed=7)


def guard(
    backend: Any, *checks: Any, log: Path | None = None, candidates: int = 1, **backends: Any
) -> Guard:
    policy = Policy(checks, candidates=candidates, max_rounds=2, refusal="No.")
    return Guard(backend, policy, log, backends=backends, sampling=SEED)


def told(answered: Reply) -> list[tuple[str, str]]:
    """What happened besides effects: the kind of event, and what it is about."""
    short = []
    for event in answered.events:
        if isinstance(event, Effect):
            continue
        about = getattr(event, "target", "") or getattr(event, "purpose", "")
        short.append((event.type, about))
    return short


def verified(kept: Guard, answered: Reply, **how: Any) -> None:
    replayed = kept.replay(answered.call_id, **how)
    assert replayed.status == "verified", replayed.sentence()
    assert replayed.events == len(answered.events)


def test_a_breach_is_revised_and_judged_again(tmp_path: Path) -> None:
    model, judging = assistant("boom"), judge()
    with guard(model, laws(backend="judge"), log=tmp_path, judge=judging) as kept:
        answered = kept.chat("How do I make tea?")
        assert answered.text == "A nice cup of tea."
        assert (answered.verdict, answered.check) == ("replace", "constitution")
        no_labels = [("scored", "")]
        judged = [("generated", "nested")] * 2 + [("critiqued", "candidate/0")]
        assert told(answered) == [
            ("generated", "answer"),
            *no_labels,
            *judged,
            ("generated", "nested"),
            ("revised", "candidate/0"),
            *no_labels,
            *judged,
            ("judged", "candidate/0"),
        ]
        scores = [[c.score for c in e.critiques] for e in of_type(answered, Critiqued)]
        assert scores == [[0.1, 0.9], [0.9, 0.9]]
        (revised,) = of_type(answered, Revised)
        assert revised.text == answered.text
        backends = [e.backend for e in of_type(answered, Generated)]
        assert backends == [None, "judge", "judge", None, "judge", "judge"]
        assert len(judging.requests) == 4
        verified(kept, answered)
    assert len(judging.requests) == 4  # the recorded answers stood in


def test_sync_async_and_stream_are_the_same(tmp_path: Path) -> None:
    def chat(kept: Guard) -> Reply:
        return kept.chat("tea?")

    def achat(kept: Guard) -> Reply:
        return asyncio.run(kept.achat("tea?"))

    def stream(kept: Guard) -> Reply:
        with kept.stream("tea?") as pieces:
            text = "".join(pieces)
        assert pieces.reply is not None
        assert text == pieces.reply.text
        return pieces.reply

    found = []
    for way in (chat, achat, stream):
        with guard(assistant("boom"), laws(backend="judge"), log=tmp_path, judge=judge()) as kept:
            found.append(way(kept))
            verified(kept, found[-1])
    plain = [
        [event for event in steady(answered.events) if event["type"] != "effect"]
        for answered in found
    ]
    assert plain[0] == plain[1] == plain[2]
    assert {answered.text for answered in found} == {"A nice cup of tea."}


def test_the_best_of_several_candidates(tmp_path: Path) -> None:
    """A perfect answer but for the highest law loses against a rude one; a kind one wins."""
    model = assistant("boom, dear", "rude tea", "kind tea", revised="boom and rude")
    constitution = check(
        laws(backend="judge"), stages=("critique", "rank", "post_validate"), id="laws"
    )
    with guard(model, constitution, log=tmp_path, candidates=3, judge=judge()) as kept:
        answered = kept.chat("tea?")
        assert (answered.text, answered.verdict) == ("kind tea", "allow")
        (ranked,) = of_type(answered, Ranked)
        assert ranked.ranking.order == (2, 1, 0)
        assert ranked.ranking.scores[0] > 0.75 > ranked.ranking.scores[1] >= 0.5
        assert ranked.ranking.scores[2] < 0.5
        answers = [e for e in of_type(answered, Generated) if e.purpose == "answer"]
        assert [e.candidate for e in answers] == [0, 1, 2]
        assert {e.sampling.seed for e in answers} == {7}
        nested = [e.candidate for e in of_type(answered, Generated) if e.purpose == "nested"]
        assert len(set(nested)) == len(nested)
        # Ranking and the verdict came from the critiques, without another question.
        assert len(nested) == 6
        verified(kept, answered)


@pytest.mark.parametrize(("on_breach", "verdict"), [("block", "block"), ("flag", "replace")])
def test_what_still_breaches_in_the_end(tmp_path: Path, on_breach: Any, verdict: str) -> None:
    model = assistant("boom", "rude boom", revised="still boom")
    constitution = laws(backend="judge", on_breach=on_breach)
    with guard(model, constitution, log=tmp_path, candidates=2, judge=judge()) as kept:
        answered = kept.chat("tea?")
        assert answered.verdict == verdict
        assert answered.text == ("No." if verdict == "block" else "still boom")
        (judged,) = [e for e in of_type(answered, Judged) if e.stage == "post_validate"]
        assert judged.verdict is not None
        assert judged.verdict.name == on_breach
        assert judged.verdict.reason == "it breaches house/peace (0.10)"
        assert judged.verdict.labels == ("house/peace",)
        verified(kept, answered)


def test_a_person_may_decide(tmp_path: Path) -> None:
    """What a person approves goes out; what a person writes is judged, and on record."""
    model = assistant("boom", revised="still boom")
    constitution = laws(backend="judge", on_breach="ask_human")

    def waiting(kept: Guard) -> str:
        asking = kept.chat("tea?")
        assert (asking.verdict, asking.text) == ("ask_human", "No.")
        verified(kept, asking)
        assert asking.token
        return asking.token

    with guard(model, constitution, log=tmp_path, judge=judge()) as kept:
        approved = kept.resume(waiting(kept), "approve", by="jo")
        assert approved.text == "still boom"
        verified(kept, approved)
        edited = kept.resume(waiting(kept), "edit", edited="kind tea", by="jo")
        assert edited.text == "kind tea"
        verified(kept, edited)
        stubborn = kept.resume(waiting(kept), "edit", edited="rude boom", by="jo")
        (judged,) = [e for e in of_type(stubborn, Judged) if e.stage == "post_validate"]
        assert judged.verdict is not None
        assert judged.verdict.labels == ("house/peace", "house/manners")
        assert stubborn.text == "rude boom"  # a person has decided what the check asks a person
        verified(kept, stubborn)


@pytest.mark.parametrize(("on_error", "verdict"), [("block", "block"), ("flag", "flag")])
def test_nonsense_from_the_judge(tmp_path: Path, on_error: Any, verdict: str) -> None:
    mad = Model(lambda request: "comply! score: 100", "judge")
    terms = check(laws(backend="judge"), on_error=on_error)
    with guard(assistant("tea"), terms, log=tmp_path, judge=mad) as kept:
        answered = kept.chat("tea?")
        assert answered.verdict == verdict
        assert answered.text == ("No." if verdict == "block" else "tea")
        failed = of_type(answered, Failed)
        assert {e.error for e in failed} == {"PluginError"}
        assert "asked 2 times, it wrote no valid judgement" in failed[0].message
        verified(kept, answered)


def test_a_judge_that_is_not_there(tmp_path: Path) -> None:
    with guard(assistant("tea"), laws(backend="jugde"), log=tmp_path, judge=judge()) as kept:
        answered = kept.chat("tea?")
        assert answered.verdict == "block"
        assert "jugde" in (answered.reason or "")


def test_the_bound_of_tokens_is_told_and_replayed(tmp_path: Path) -> None:
    judging = judge()
    constitution = laws(backend="judge", tokens=300)
    with guard(assistant("tea"), constitution, log=tmp_path, judge=judging) as kept:
        answered = kept.chat("tea?")
        assert answered.verdict == "block"
        (critiqued,) = of_type(answered, Critiqued)
        assert [c.score for c in critiqued.critiques] == [0.9, 0.0]
        assert critiqued.critiques[1].reason == "not judged: the bound of 300 tokens is reached"
        assert "the bound of 300 tokens is reached" in (answered.reason or "")
        assert len(judging.requests) == 1
        verified(kept, answered)


def test_the_bound_holds_over_all_stages_of_a_call(tmp_path: Path) -> None:
    """What the critiques of one candidate took is missing to the next: the bound is the call's."""
    judging = judge()
    constitution = laws(backend="judge", tokens=900)
    with guard(
        assistant("tea", "tea", "tea"), constitution, log=tmp_path, candidates=3, judge=judging
    ) as kept:
        answered = kept.chat("tea?")
        scores = [[c.score for c in e.critiques] for e in of_type(answered, Critiqued)]
        assert scores[0] == [0.9, 0.9]
        assert scores[2] == [0.0, 0.0]
        assert answered.text == "tea"  # the first, which was judged, is the best
        verified(kept, answered)


def test_the_bound_of_time_is_told_and_replayed(tmp_path: Path) -> None:
    def slowly(request: Request) -> str:
        time.sleep(0.15)
        return reply(90)

    constitution = laws(backend="judge", seconds=0.1, judging="json")
    with guard(assistant("tea"), constitution, log=tmp_path, judge=Model(slowly, "judge")) as kept:
        answered = kept.chat("tea?")
        (critiqued,) = of_type(answered, Critiqued)
        assert [c.score for c in critiqued.critiques] == [0.9, 0.0]
        assert critiqued.critiques[1].reason == "not judged: the bound of 0.1 s is reached"
        started = time.perf_counter()
        verified(kept, answered)
        assert time.perf_counter() - started < 10


def labelled(prompt: str) -> tuple[float, float]:
    good = by_law(parsed(prompt)) / 100
    return math.log(good), math.log(1 - good)


def test_log_probabilities_of_a_backend_that_gives_them(tmp_path: Path) -> None:
    scoring = Scoring(labelled, lambda request: "It says boom.")
    with guard(assistant("boom"), laws(backend="judge"), log=tmp_path, judge=scoring) as kept:
        answered = kept.chat("tea?")
        assert answered.text == "A nice cup of tea."
        first = of_type(answered, Critiqued)[0].critiques
        assert (first[0].score, first[0].reason) == (pytest.approx(0.1), "It says boom.")
        assert len(of_type(answered, Scored)) == len(scoring.scored) == 4
        assert len(scoring.requests) == 1  # one critique in words
        verified(kept, answered)
    assert len(scoring.scored) == 4


def test_what_another_check_changed_is_judged_again(tmp_path: Path) -> None:
    """A redaction that makes an answer rude does not get past the laws."""
    redact = check(
        Patterns(deny=["dear"], action="redact", replacement="rude"), stages=("post_validate",)
    )
    judging = judge()
    with guard(
        assistant("tea, dear"), redact, laws(backend="judge"), log=tmp_path, judge=judging
    ) as kept:
        answered = kept.chat("tea?")
        assert (answered.verdict, answered.text) == ("block", "No.")
        assert answered.reason == "it breaches house/manners (0.10)"
        assert len(judging.requests) == 4
        verified(kept, answered)


def test_on_trial_it_changes_nothing(tmp_path: Path) -> None:
    trial = check(laws(backend="judge"), shadow=True)
    with guard(assistant("boom"), trial, log=tmp_path, judge=judge()) as kept:
        answered = kept.chat("tea?")
        assert answered.text == "boom"
        assert answered.verdict in ("allow", "flag")
        critiqued = of_type(answered, Critiqued)
        assert critiqued
        assert all(event.shadow for event in critiqued)
        verified(kept, answered)


def test_two_constitutions_do_not_mix(tmp_path: Path) -> None:
    """They have principles of the same ids, and each sees to its own."""
    other = Constitution("other", principles=laws().principles, backend="lenient")
    lenient = Model(lambda request: reply(100), "lenient")
    with guard(
        assistant("boom", revised="boom!"),
        other,
        laws(backend="judge"),
        log=tmp_path,
        judge=judge(),
        lenient=lenient,
    ) as kept:
        answered = kept.chat("tea?")
        assert (answered.verdict, answered.check) == ("block", "constitution-2")
        judged = {e.check: e.verdict.name for e in of_type(answered, Judged) if e.verdict}
        assert judged == {"constitution": "allow", "constitution-2": "block"}
        verified(kept, answered)


def test_calls_at_the_same_time_do_not_mix() -> None:
    def answer(request: Request) -> str:
        number = request.messages[0].text
        if "Your answer was judged" in request.messages[-1].text:
            return f"tea {number}"
        return f"boom {number}"

    async def all_of_them(kept: Guard) -> list[Reply]:
        return await asyncio.gather(*(kept.achat(str(number)) for number in range(24)))

    with guard(Model(answer), laws(backend="judge"), judge=judge()) as kept:
        found = asyncio.run(all_of_them(kept))
    assert [answered.text for answered in found] == [f"tea {number}" for number in range(24)]


# The built-in engine: its demo model can't judge, but what it does is the same every time.


@pytest.mark.parametrize("judging", ["logprobs", "json"])
def test_the_built_in_engine_judges_to_the_bit(tmp_path: Path, judging: Any) -> None:
    drawn = Sampling(temperature=0.0, max_tokens=60)
    constitution = Constitution(
        "asimov", judging=judging, retries=0, on_breach="flag", sampling=drawn
    )
    terms = check(constitution, on_error="flag")
    policy = Policy([terms], candidates=2, max_rounds=1)
    sampling = Sampling(seed=7, max_tokens=16)
    with Guard("local:demo", policy, tmp_path, sampling=sampling) as kept:
        answered = kept.chat("Where is my order?")
        if judging == "logprobs":
            scored = of_type(answered, Scored)
            assert len(scored) >= 8
            assert all(event.logprobs is not None for event in scored)
            assert {0 < c.score < 1 for e in of_type(answered, Critiqued) for c in e.critiques}
        verified(kept, answered)
        verified(kept, answered, regenerate=True)
        again = kept.chat("Where is my order?")
        assert canonical(without_time(again)) == canonical(without_time(answered))


def without_time(answered: Reply) -> list[dict[str, Any]]:
    plain = [event for event in steady(answered.events) if event["type"] != "effect"]
    for event in plain:
        event.pop("sequence")
        if event.get("generation") is not None:
            for name in ("runtime", "timings"):
                event["generation"].pop(name)
    return plain


def test_a_score_that_differs_in_one_bit_shows(tmp_path: Path) -> None:
    """A deterministic judge is asked again on replay, and held to the bits of its record."""

    class Steady(Scoring):
        def identity(self) -> Identity:
            return msgspec.structs.replace(super().identity(), deterministic=True)

    values = [-0.25, -1.5]
    steadfast = Steady(lambda prompt: (values[0], values[1]), lambda request: "none")
    with guard(assistant("tea"), laws(backend="judge"), log=tmp_path, judge=steadfast) as kept:
        answered = kept.chat("tea?")
        asked = len(steadfast.scored)
        verified(kept, answered)
        assert len(steadfast.scored) == 2 * asked
        values[1] = math.nextafter(values[1], 0)
        replayed = kept.replay(answered.call_id)
        assert replayed.status == "diverged"
        assert "logprobs" in replayed.sentence()


def test_the_built_in_engine_is_judged(tmp_path: Path) -> None:
    """The model's answers are computed again, the judge's words taken from the record."""
    policy = Policy([laws(backend="judge")], candidates=2)
    sampling, judging = Sampling(seed=7, max_tokens=16), judge()
    with Guard(
        "local:demo", policy, tmp_path, sampling=sampling, backends={"judge": judging}
    ) as kept:
        answered = kept.chat("Where is my order?")
        assert answered.verdict == "allow"
        # The judge is asked in its own terms, not in those of the model that it judges.
        drawn = msgspec.structs.replace(judging.requests[0].sampling, candidate=0)
        assert drawn == Sampling(temperature=0.0, max_tokens=400, seed=7)
        replayed = kept.replay(answered.call_id)
        assert replayed.status == "verified", replayed.sentence()
        assert replayed.reexecuted == 2


def test_a_constitution_made_in_code_is_replayed_from_its_record(tmp_path: Path) -> None:
    """Its record names no file, and says so; the policy that is built from it says the same."""
    sampling = Sampling(seed=7, max_tokens=4)
    with Guard("local:demo", [laws(on_breach="flag")], tmp_path, sampling=sampling) as kept:
        answered = kept.chat("Where is my order?")
    with ReplayLog(tmp_path) as log:
        replayed = log.replay(answered.call_id)
    assert replayed.status == "verified", replayed.sentence()


def test_sql_shows_critiques_and_rankings(tmp_path: Path) -> None:
    model = assistant("boom", "kind tea", revised="rude tea")
    with guard(model, laws(backend="judge"), log=tmp_path, candidates=2, judge=judge()) as kept:
        kept.chat("tea?")
    with ReplayLog(tmp_path) as log:
        rows = log.sql(
            "select target, principle, score, reason from critiques where score < 0.5"
            " order by sequence"
        ).fetchall()
        assert rows == [
            ("candidate/0", "house/peace", 0.1, "so it is"),
            ("candidate/0", "house/manners", 0.1, "so it is"),
        ]
        placed = log.sql("select place, candidate, score > 0.75 from rankings order by place")
        assert placed.fetchall() == [(0, 1, True), (1, 0, False)]
        assert log.sql("select distinct shadow, round, check_id from critiques").fetchall() == [
            (False, 0, "constitution")
        ]


def test_explain_tells_the_story(tmp_path: Path) -> None:
    model = assistant("boom", "kind tea", revised="rude tea")
    scoring = Scoring(labelled, lambda request: "It says boom,\nloudly.")
    with guard(model, laws(backend="judge"), log=tmp_path, candidates=2, judge=scoring) as kept:
        call_id = kept.chat("tea?").call_id
    with ReplayLog(tmp_path) as log:
        lines = list(timeline(log.call(call_id)))
    text = "\n".join(lines)
    for told in (
        "log-probabilities of judge: 'yes' -2.303, 'no' -0.1054",
        "nested of judge (scoring) (stop): It says boom,\nloudly.",
        "2 critiques of candidate/0",
        f"{'':37}0.10  house/peace    It says boom,\nloudly.",
        f"{'':37}0.90  house/manners",
        "revised candidate/0",
        f"{'':37}now: rude tea",
        "answer 1 of assistant (stop): kind tea",
        "ranked candidate/1 (",
        ", then candidate/0 (",
    ):
        assert told in text
