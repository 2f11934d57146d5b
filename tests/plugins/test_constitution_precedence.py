"""Precedence is lexicographic: a breach of a higher law is never outweighed."""

from __future__ import annotations

import math
from fractions import Fraction
from functools import cmp_to_key
from itertools import permutations

from hypothesis import given
from hypothesis import strategies as st

from isonomy.plugins import Principle
from isonomy.plugins.constitution.precedence import STEPS, Standing, levels, ranked, standing

scores = st.one_of(st.floats(0, 1), st.sampled_from([0.0, 0.5, 0.499999, 0.500001, 0.9, 1.0]))
thresholds = st.sampled_from([0.5, 0.1, 0.75, 1.0])


@st.composite
def constitutions(draw: st.DrawFn) -> list[Principle]:
    places = draw(st.lists(st.integers(0, 3), min_size=1, max_size=6))
    return [Principle(id=f"p{i}", precedence=place, text="law") for i, place in enumerate(places)]


@st.composite
def contests(draw: st.DrawFn) -> tuple[list[Principle], list[dict[str, float]], float]:
    principles = draw(constitutions())
    candidate = st.fixed_dictionaries({p.id: scores for p in principles})
    return principles, draw(st.lists(candidate, min_size=1, max_size=6)), draw(thresholds)


def reference(
    principles: list[Principle], a: dict[str, float], b: dict[str, float], threshold: float
) -> int:
    """The rules of the module's docstring, word by word: 1 where a is better, -1 where b is."""
    places = sorted({p.precedence for p in principles})
    for place in places:
        here = [p.id for p in principles if p.precedence == place]
        a_breaches = any(a[id] < threshold for id in here)
        b_breaches = any(b[id] < threshold for id in here)
        if a_breaches != b_breaches:
            return -1 if a_breaches else 1
    for place in places:
        here = [p.id for p in principles if p.precedence == place]
        a_steps = math.floor(min(a[id] for id in here) * 10)
        b_steps = math.floor(min(b[id] for id in here) * 10)
        if a_steps != b_steps:
            return 1 if a_steps > b_steps else -1
    return 0


@given(contests())
def test_the_order_is_that_of_the_rules(
    contest: tuple[list[Principle], list[dict[str, float]], float],
) -> None:
    principles, candidates, threshold = contest
    ranking = ranked(
        [(i, standing(principles, found, threshold)) for i, found in enumerate(candidates)]
    )
    best_first = sorted(
        range(len(candidates)),
        key=cmp_to_key(
            lambda i, j: -reference(principles, candidates[i], candidates[j], threshold)
        ),
    )
    assert list(ranking.order) == best_first
    assert sorted(ranking.order) == list(range(len(candidates)))
    assert list(ranking.scores) == sorted(ranking.scores, reverse=True)
    assert all(0.0 <= score <= 1.0 for score in ranking.scores)


@given(contests(), st.data())
def test_a_breach_is_never_outweighed(
    contest: tuple[list[Principle], list[dict[str, float]], float], data: st.DataObject
) -> None:
    """Whatever is changed below a level at which one breaches and the other does not."""
    principles, candidates, threshold = contest
    place = data.draw(st.sampled_from(sorted({p.precedence for p in principles})))
    good = dict(candidates[0])
    for p in principles:
        if p.precedence <= place:
            good[p.id] = max(good[p.id], threshold)
    bad = {p.id: 1.0 for p in principles}  # perfect but for one breach
    breached = data.draw(st.sampled_from([p.id for p in principles if p.precedence == place]))
    bad[breached] = data.draw(st.floats(0, threshold, exclude_max=True))
    first = standing(principles, good, threshold)
    second = standing(principles, bad, threshold)
    assert first > second
    assert ranked([(0, second), (1, first)]).order == (1, 0)


@given(contests())
def test_the_order_does_not_depend_on_how_candidates_are_listed(
    contest: tuple[list[Principle], list[dict[str, float]], float],
) -> None:
    principles, candidates, threshold = contest
    standings = [(i, standing(principles, c, threshold)) for i, c in enumerate(candidates[:4])]
    found = {
        tuple(standing for _, standing in sorted(pairs, key=lambda p: p[1], reverse=True))
        for pairs in permutations(standings)
    }
    assert len(found) == 1


@given(contests())
def test_the_scale_tells_what_is_breached(
    contest: tuple[list[Principle], list[dict[str, float]], float],
) -> None:
    principles, candidates, threshold = contest
    for found in candidates:
        one = standing(principles, found, threshold)
        assert (one.scale >= 0.5) == one.kept[0]
        if all(one.kept[:2]) and len(one.kept) > 1:
            assert one.scale >= 0.75


def test_the_ends_of_the_scale() -> None:
    assert Standing((True, True), (STEPS, STEPS)).scale == 1.0
    assert Standing((False, False), (0, 0)).scale == 0.0
    assert Standing((True,), (5,)).scale == float(Fraction(16, 21))


def test_levels_keep_the_order_given() -> None:
    principles = [
        Principle(id=id, precedence=place, text="law")
        for id, place in [("b", 7), ("a", 2), ("c", 7)]
    ]
    assert [[p.id for p in level] for level in levels(principles)] == [["a"], ["b", "c"]]


def test_noise_at_a_high_law_does_not_silence_a_low_one() -> None:
    principles = [Principle(id=id, precedence=i, text="law") for i, id in enumerate("ab")]
    careful = standing(principles, {"a": 0.93, "b": 0.9}, 0.5)
    rude = standing(principles, {"a": 0.97, "b": 0.1}, 0.5)
    assert careful > rude
    dull = standing(principles, {"a": 0.97, "b": 0.6}, 0.5)
    assert careful > dull
