"""Precedence: which of several candidates is best under a constitution, and which breach it.

Pure functions of scores. A principle is breached where its score is below the threshold. Candidates
are compared level by level, in two passes:

1. breaches: from the highest law down, the first level at which one candidate breaches and the
   other does not decides. No score, however high, is looked at before all levels agree.
2. scores: from the highest law down, the first level at which their scores differ by a step
   decides. A level's score is its worst principle's, in whole tenths (rounded down): smaller
   differences are a judge's noise, which must not keep the laws below from being heard.

Equal candidates keep the order in which they were made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import NamedTuple

from isonomy.sdk import Ranking

from .laws import Principle

STEPS = 10
"""Steps into which scores from 0 to 1 are quantised before they are compared."""


class Standing(NamedTuple):
    """How a candidate stands: compared as a tuple, the greater is the better.

    `kept` says of each level, the highest first, whether no principle of it is breached; `steps` is
    each level's worst score in whole steps, 0 to `STEPS`.
    """

    kept: tuple[bool, ...]
    steps: tuple[int, ...]

    @property
    def scale(self) -> float:
        """A number from 0 to 1 in the same order, as far as a double can tell them apart.

        Half of the scale is the highest law kept, half of the rest the next one, and so on; steps
        fill what is left. So below 1/2 the highest law is breached, and 1 is perfect.
        """
        place = 0
        for kept in self.kept:
            place = place * 2 + kept
        for step in self.steps:
            place = place * (STEPS + 1) + step
        whole = (2 * (STEPS + 1)) ** len(self.kept)
        return float(Fraction(place, whole - 1))


def levels(principles: Sequence[Principle]) -> list[list[Principle]]:
    """Return the principles by precedence, the highest first, in the order given within a level."""
    places = sorted({principle.precedence for principle in principles})
    return [[p for p in principles if p.precedence == place] for place in places]


def standing(
    principles: Sequence[Principle], scores: Mapping[str, float], threshold: float
) -> Standing:
    """Return how a candidate stands.

    Args:
        principles: of the constitution.
        scores: of each principle by its id, from 0 (breach) to 1.
        threshold: below it a principle is breached.
    """
    worst = [min(scores[principle.id] for principle in level) for level in levels(principles)]
    return Standing(
        tuple(score >= threshold for score in worst),
        tuple(int(min(max(score, 0.0), 1.0) * STEPS) for score in worst),
    )


def ranked(standings: Sequence[tuple[int, Standing]]) -> Ranking:
    """Return the order of candidates, best first.

    Args:
        standings: each candidate's index, and how it stands.
    """
    order = sorted(standings, key=lambda pair: pair[1], reverse=True)  # stable: ties stay in order
    return Ranking(
        tuple(index for index, _ in order), tuple(standing.scale for _, standing in order)
    )
