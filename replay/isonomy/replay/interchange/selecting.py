"""Which calls of a log are exported, in the order of the log."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from isonomy.sdk.errors import LogError
from isonomy.sdk.vocabulary import VerdictName

from ..directory import JOURNAL

if TYPE_CHECKING:
    from ..checking import Examined
    from ..reading import ReplayLog

PAGE = 20_000
"""Ids that are asked for at a time."""
_SMALL = 16 << 20
"""Bytes of a journal that a query may well read itself."""


class Selection(msgspec.Struct, frozen=True, kw_only=True):
    """Which calls: those for which all that is given holds; all of them, unless something is.

    Attributes:
        since: begun at this time or later; UTC where it names no zone.
        until: begun before this time.
        calls: with one of these ids, or beginnings of ids of one call each.
        subject: of this subject.
        verdict: with this verdict.
        where: for which this SQL condition over the view `calls` holds.
    """

    since: datetime | None = None
    until: datetime | None = None
    calls: tuple[str, ...] = ()
    subject: str | None = None
    verdict: VerdictName | None = None
    where: str | None = None


EVERYTHING = Selection()


def call_ids(log: ReplayLog, selection: Selection = EVERYTHING) -> Iterator[str]:
    """Yield the ids of calls, by their first records' places in the log.

    A call all of whose records are damaged is among them only where everything is selected.

    Raises:
        NoSuchCall: there is no such call.
        LogError: the log can't be read, or the condition is none.
    """
    _bring_up_to_date(log)
    conditions, values = _conditions(log, selection)
    query = f"SELECT call_id, sequence FROM calls {conditions and 'WHERE'} {conditions}"
    if not conditions:
        query += (
            "UNION ALL SELECT call_id, min(sequence) FROM damaged"
            " WHERE call_id NOT IN (SELECT call_id FROM calls) GROUP BY call_id"
        )
    # What is written meanwhile is left for the next export: the order stays, and it ends.
    [(last,)] = log.sql(
        "SELECT coalesce(max(sequence), 0) FROM (SELECT sequence FROM records"
        " UNION ALL SELECT sequence FROM damaged)"
    ).fetchall()
    after = -1
    while after < last:
        page = log.sql(
            f"SELECT * FROM ({query}) AS found(call_id, sequence)"
            " WHERE sequence > $after AND sequence <= $last ORDER BY sequence LIMIT $page",
            params={**values, "after": after, "last": last, "page": PAGE},
        ).fetchall()
        for call_id, sequence in page:
            yield str(call_id)
            after = int(sequence)
        if len(page) < PAGE:
            return


def _bring_up_to_date(log: ReplayLog) -> None:
    """Have a large journal ingested, in a process of its own, so that no query holds its tail."""
    files = (JOURNAL, f"{JOURNAL}-wal")
    with suppress(OSError, LogError):  # what can't be written is read as it is
        if sum((Path(log.path) / file).stat().st_size for file in files) > _SMALL:
            log.refresh()


def examined(
    log: ReplayLog, selection: Selection = EVERYTHING
) -> Iterator[tuple[str, tuple[Examined, ...]]]:
    """Yield selected calls: id and records, checked against their hashes; one call at a time."""
    return log.each(call_ids(log, selection))


def _conditions(log: ReplayLog, selection: Selection) -> tuple[str, dict[str, Any]]:
    conditions: list[str] = []
    values: dict[str, Any] = {}
    for name, condition in (("since", "started_at >= $since"), ("until", "started_at < $until")):
        if (time := getattr(selection, name)) is not None:
            conditions.append(condition)
            values[name] = time.astimezone(UTC).replace(tzinfo=None) if time.tzinfo else time
    for name in ("subject", "verdict"):
        if (wanted := getattr(selection, name)) is not None:
            conditions.append(f"{name} = ${name}")
            values[name] = wanted
    if selection.calls:
        conditions.append("list_contains($calls, call_id)")
        values["calls"] = [log.call(call).call_id for call in selection.calls]
    if selection.where is not None:
        # On lines of its own: a comment in it must not swallow what follows.
        conditions.append(f"(\n{selection.where}\n)")
    return " AND ".join(conditions), values
