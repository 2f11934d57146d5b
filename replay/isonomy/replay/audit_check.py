"""Comparing `audit.duckdb` with the rows that the journal's hashed bytes give."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

from . import audit, packing, projection
from .checking import FIRST, Examined
from .directory import AUDIT, LogDirectory
from .projection import TABLES
from .verification import Audited, Finding

if TYPE_CHECKING:
    import duckdb

_NAME = "audit"


class AuditCheck(Audited):
    """A comparison in progress.

    Damage becomes findings; the first that makes the file unreadable ends it.
    """

    def __init__(self, directory: LogDirectory, findings: list[Finding]) -> None:
        self._findings = findings
        self._connection: duckdb.DuckDBPyConnection | None = None
        self._after = FIRST
        self._content = 0
        self._state: dict[str, str] = {}
        self.present = directory.audit.exists()
        self.last = 0
        self.rows = 0
        if self.present:
            self._guarded(lambda: self._open(directory))

    def close(self) -> None:
        """Release the file."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def batch(self, examined: list[Examined], journal: sqlite3.Connection) -> None:
        """Compare the rows of these records, and find rows of records that are not there."""
        if self._connection is not None:
            self._guarded(lambda: self._compare(examined, journal))

    def end(self, journal: sqlite3.Connection, log_id: str | None) -> None:
        """Find rows beyond the last record."""
        if self._connection is None:
            return
        if self._state.get("log") != log_id:
            self._find("it belongs to another log, or one of the two ids was altered")
        if self.last > max(self._after, 0):
            self._find(f"it holds records up to {self.last}, the journal only up to {self._after}")
        self._guarded(lambda: self._beyond(journal))

    def _find(self, problem: str, sequence: int | None = None, call_id: str | None = None) -> None:
        self._findings.append(
            Finding(file=AUDIT, problem=problem, sequence=sequence, call_id=call_id)
        )

    def _guarded(self, step: Callable[[], None]) -> None:
        import duckdb

        try:
            step()
        except (duckdb.Error, UnicodeDecodeError, RuntimeError) as error:
            if "Query interrupted" in str(error):  # so DuckDB tells of Ctrl-C
                raise KeyboardInterrupt from error
            self._find(f"it can't be read ({' '.join(str(error).split())})")
            self.close()

    def _ask(self, query: str, parameters: list[Any] | None = None) -> list[tuple[Any, ...]]:
        assert self._connection is not None
        return self._connection.execute(query, parameters).fetchall()

    def _open(self, directory: LogDirectory) -> None:
        import duckdb

        self._connection = duckdb.connect(":memory:", config={"threads": 1})
        for setting in ("autoinstall_known_extensions", "autoload_known_extensions"):
            self._ask(f"SET {setting} = false")
        self._ask(f"ATTACH {audit.literal(str(directory.audit))} AS {_NAME} (READ_ONLY)")
        self._ask("SET enable_external_access = false")
        self._state = audit.state(self._connection, _NAME)
        if self._state.get("schema") != str(audit.AUDIT_SCHEMA):
            self._find(
                f"it is of another version ({self._state.get('schema')}): rebuild it with "
                "ReplayLog.refresh(rebuild=True)"
            )
            self.close()
            return
        try:
            self.last = int(self._state["records"])
            contents = int(self._state["contents"])
        except (KeyError, ValueError):
            self._find("its table state was altered")
            self.close()
            return
        if len(self._ask(f"FROM {_NAME}.stored.state")) != 4:
            self._find("its table state was altered")
        # Below zero are bodies that stand in their records: a log may have no others.
        highest = f"SELECT greatest(coalesce(max(content), 0), 0) FROM {_NAME}.stored.contents"
        if self._ask(highest) != [(contents,)]:
            self._find("its contents do not end where its state says")
        self._check_catalogue()

    def _check_catalogue(self) -> None:
        assert self._connection is not None
        found = set(audit.catalogue(self._connection, _NAME))
        for kind, name, *_ in sorted(found ^ _expected_catalogue(), key=repr):
            self._find(f"the definition of {kind} {name} is not the one that was laid down")

    def _compare(self, examined: list[Examined], journal: sqlite3.Connection) -> None:
        first, last = self._after + 1, min(examined[-1].raw.sequence, self.last)
        self._after = examined[-1].raw.sequence
        if first > last:
            return
        calls = {each.raw.sequence: each.call_id for each in examined}
        damaged = {each.raw.sequence for each in examined if each.problems}
        expected = projection.empty()
        for each in examined:
            if each.raw.sequence <= self.last and not each.problems:
                projection.project(each, expected)
        for table in TABLES:
            # Rows of a record that is damaged in the journal have nothing left to be compared with.
            found = [
                row
                for row in self._ask(
                    f"FROM {_NAME}.stored.{table} WHERE record BETWEEN ? AND ?", [first, last]
                )
                if row[0] not in damaged
            ]
            self.rows += len(found)
            if found == expected[table] and not _has_float(table):
                continue
            differing = _differing(found, expected[table])
            for sequence in differing:
                self._find(
                    f"its rows in {table} differ from the journal's"
                    if sequence in calls
                    else f"it has rows in {table} of a record that the journal lacks",
                    sequence,
                    calls.get(sequence),
                )
        self._compare_contents(examined, journal)

    def _compare_contents(self, examined: list[Examined], journal: sqlite3.Connection) -> None:
        """Compare the bodies that these records brought with them."""
        used = {
            content: (each.raw.sequence, each.call_id, name)
            for each in reversed(examined)
            if each.raw.sequence <= self.last and not each.problems
            for name, content in each.contents.items()
            if content > self._content
        }
        self._compare_bodies(examined)
        if not used:
            return
        newest = max(used)
        stored = dict(
            self._ask(
                f"SELECT content, body FROM {_NAME}.stored.contents WHERE content BETWEEN ? AND ?",
                [self._content + 1, newest],
            )
        )
        kept = dict(
            journal.execute(
                "SELECT id, body FROM contents WHERE id BETWEEN ? AND ?",
                (self._content + 1, newest),
            ).fetchall()
        )
        self.rows += len(stored)
        for content in sorted(stored.keys() | used.keys()):
            if stored.get(content) == kept.get(content, b""):
                continue
            sequence, call_id, name = used.get(content, (None, None, None))
            which = f"payload {name}" if name else f"content {content}"
            self._find(f"{which} differs from the journal's", sequence, call_id)
        self._content = newest

    def _compare_bodies(self, examined: list[Examined]) -> None:
        """Compare the bodies that stand in these records."""
        expected: dict[int, tuple[Examined, str]] = {}
        damaged: set[int] = set()
        taken = [each for each in examined if 1 <= each.raw.sequence <= self.last]
        if not taken:
            return
        for each in taken:
            if each.problems:
                damaged.add(each.raw.sequence)
                continue
            for name, content in each.contents.items():
                if content < 0:
                    expected[content] = each, name
        first, last = taken[0].raw.sequence, taken[-1].raw.sequence
        found = self._ask(
            f"SELECT content, body FROM {_NAME}.stored.contents WHERE content BETWEEN ? AND ?",
            [packing.number(last + 1, 0) + 1, packing.number(first, 0)],
        )
        stored = {
            content: body for content, body in found if -content // packing.PLACES not in damaged
        }
        self.rows += len(stored)
        for _ in stored.keys() - expected.keys():
            self._find("it has content of a record that the journal lacks")
        for content, (each, name) in sorted(expected.items(), reverse=True):
            if stored.get(content) != each.payloads[name]:
                self._find(
                    f"payload {name} differs from the journal's", each.raw.sequence, each.call_id
                )

    def _beyond(self, journal: sqlite3.Connection) -> None:
        for table in TABLES:
            for (sequence,) in self._ask(
                f"SELECT DISTINCT record FROM {_NAME}.stored.{table}"
                " WHERE record IS NULL OR record > ? ORDER BY ALL LIMIT 20",
                [min(self._after, self.last)],
            ):
                self._find(f"it has rows in {table} of a record that the journal lacks", sequence)
        for content, body in self._ask(
            f"SELECT content, body FROM {_NAME}.stored.contents WHERE content > ?", [self._content]
        ):
            row = journal.execute("SELECT body FROM contents WHERE id = ?", (content,)).fetchone()
            if row != (body,):
                self._find(f"content {content} differs from the journal's")
        for (content,) in self._ask(
            f"SELECT content FROM {_NAME}.stored.contents WHERE content IS NULL"
            f" OR content BETWEEN {packing.number(1, 0) + 1} AND 0"
            f" OR content <= {packing.number(min(self._after, self.last) + 1, 0)}"
            " UNION ALL SELECT content FROM"
            f" {_NAME}.stored.contents GROUP BY content HAVING count(*) > 1 LIMIT 20"
        ):
            self._find(f"content {content} is there more than once, or has no number")


@cache
def _expected_catalogue() -> frozenset[tuple[Any, ...]]:
    import duckdb

    with duckdb.connect(":memory:", config={"threads": 1}) as fresh:
        audit.create_tables(fresh)
        audit.create_views(fresh)
        return frozenset(audit.catalogue(fresh, "memory"))


def _has_float(table: str) -> bool:
    return any(type_.startswith(("FLOAT", "DOUBLE")) for _, type_ in TABLES[table])


def _differing(found: list[projection.Row], expected: list[projection.Row]) -> list[int]:
    """Return the records whose rows differ, bit for bit.

    ``==`` would take -0.0 for 0.0 and find NaN different from itself; ``repr`` does neither.
    """
    ours: dict[Any, list[str]] = {}
    theirs: dict[Any, list[str]] = {}
    for rows, by_record in ((found, ours), (expected, theirs)):
        for row in rows:
            by_record.setdefault(row[0], []).append(repr(row))
    return sorted(
        record
        for record in ours.keys() | theirs.keys()
        if sorted(ours.get(record, [])) != sorted(theirs.get(record, []))
    )
