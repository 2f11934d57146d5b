"""What a recognizer reports, and how reports that overlap become one. Pure functions.

Invariants of `resolve`: what it returns is in order and does not overlap; every character that any
recognizer reported is covered; the outcome does not depend on the order of the reports.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple, get_args

Kind = Literal["email", "phone", "card", "iban", "ip"]
KINDS: tuple[Kind, ...] = get_args(Kind)
_RANK: dict[Kind, int] = {"iban": 0, "card": 1, "email": 2, "ip": 3, "phone": 4}
"""Which kind wins between two reports of equal length: those with a checksum before those
without."""


class Finding(NamedTuple):
    """A place `[start, end)` in a text and what is there.

    `value` is the datum in one canonical spelling (an address in lower case, a number as E.164,
    digits without separators), so that the same datum written differently is recognized as the
    same. `merged` is true where several reports overlapped and the place is more than the datum.
    """

    start: int
    end: int
    kind: Kind
    value: str
    merged: bool = False


class Budget:
    """How many candidates of a text may still be examined.

    Bounds the time and, unlike a clock, gives the same on replay.
    """

    def __init__(self, limit: int) -> None:
        self._left = limit

    def spend(self) -> None:
        """Count one candidate.

        Raises:
            BudgetSpent: there are more than the limit.
        """
        if self._left == 0:
            raise BudgetSpent
        self._left -= 1


class BudgetSpent(Exception):
    """A text holds more candidates than the limit."""


def resolve(findings: Iterable[Finding]) -> list[Finding]:
    """Merge reports that overlap: the union of the places, under the kind of the longest."""
    result: list[Finding] = []
    cluster: list[Finding] = []
    end = -1
    for finding in sorted(findings):
        if cluster and finding.start >= end:
            result.append(_union(cluster))
            cluster = []
            end = -1
        cluster.append(finding)
        end = max(end, finding.end)
    if cluster:
        result.append(_union(cluster))
    return result


def _union(cluster: list[Finding]) -> Finding:
    best = min(cluster, key=lambda f: (f.start - f.end, _RANK[f.kind], f.start, f.value))
    start = min(f.start for f in cluster)
    end = max(f.end for f in cluster)
    merged = (start, end) != (best.start, best.end)
    return Finding(start, end, best.kind, best.value, merged)
