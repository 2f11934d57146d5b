"""Reading a log: its calls, its SQL, its integrity. Nothing here changes a record.

Every method opens what it needs and closes it again; a `ReplayLog` itself holds nothing open, can
be shared between threads, and sees what other processes write. `sql` always sees the newest call:
it reads the published DuckDB log and adds the journal's tail; when the tail has grown long, it has
the DuckDB log brought up to date first.
"""

from __future__ import annotations

import difflib
import os
import sqlite3
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING

from isonomy.sdk.errors import LogError

from . import checking, database
from .directory import LogDirectory
from .errors import NoSuchCall
from .stored import StoredCall, StoredRecord

if TYPE_CHECKING:
    from pathlib import Path

    from .answers import Answer
    from .checkpoints import Checked
    from .ingest import Ingested
    from .projection import Projection
    from .query import Parameters, Source
    from .replaying import Replayed
    from .status import Status
    from .verification import Report

_TOGETHER = 200
"""Calls that are read of one state of the journal, by who reads many."""
TAIL_LIMIT = 2000
"""Records beyond the published DuckDB log that a query reads from the journal itself, at most."""
TAIL_BYTES = 64 << 20
"""Bytes of such records, at most."""


class ReplayLog:
    """A log, to be read."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Look at the log at `path`.

        Raises:
            NotALog: nothing is there, or something else.
            DamagedLog: it lost its journal.
        """
        self._directory = LogDirectory(path)
        self._directory.require()

    @property
    def path(self) -> str:
        """The log's directory."""
        return str(self._directory)

    def __enter__(self) -> ReplayLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Release what is held: nothing. Calling it is harmless."""

    def __repr__(self) -> str:
        return f"ReplayLog({self.path!r})"

    def calls(self, *, limit: int | None = None) -> list[StoredCall]:
        """Return the calls, newest first (by their first record), at most `limit`.

        For questions over many calls use `sql`: this decodes each.
        """
        with self._journal() as journal:
            known = checking.subjects(journal)
            ids = journal.execute(
                "SELECT call_id FROM records WHERE kind NOT IN ('gap', 'tombstone')"
                " GROUP BY call_id"
                " ORDER BY min(sequence) DESC LIMIT ?",
                (-1 if limit is None else limit,),
            ).fetchall()
            return [_call(journal, known, str(call_id)) for (call_id,) in ids]

    def call(self, call_id: str) -> StoredCall:
        """Return one call, by its id or by the beginning of one.

        Raises:
            NoSuchCall: no call has this id, or several begin so; the nearest are listed.
        """
        with self._journal() as journal:
            known = checking.subjects(journal)
            exact = journal.execute(
                "SELECT 1 FROM records WHERE call_id = ? LIMIT 1", (call_id,)
            ).fetchone()
            if exact:
                return _call(journal, known, call_id)
            begun = _beginning(journal, call_id)
            if call_id and len(begun) == 1:
                return _call(journal, known, begun[0])
            raise self._no_such_call(journal, call_id, begun)

    def each(self, call_ids: Iterable[str]) -> Iterator[tuple[str, tuple[checking.Examined, ...]]]:
        """Yield calls by their whole ids: id and records, checked; nothing more of them is held.

        The journal is opened anew for every `_TOGETHER` of them, so that who reads a long log keeps
        nobody from cutting its write-ahead log.

        Raises:
            LogError: the log can't be read.
        """
        wanted = iter(call_ids)
        while some := tuple(islice(wanted, _TOGETHER)):
            with self._journal() as journal:
                known = checking.subjects(journal)
                for call_id in some:
                    raws = checking.read_call(journal, call_id)
                    yield call_id, tuple(checking.examine(raw, known) for raw in raws)

    @property
    def log_id(self) -> str:
        """The log's own id, made up when it was created."""
        with self._journal() as journal:
            found = journal.execute("SELECT value FROM meta WHERE name = 'log'").fetchone()
            return str(found[0])

    def sql(self, query: str, *, params: Parameters | None = None) -> Answer:
        """Ask one SELECT over the log's views.

        Args:
            query: one SELECT; with `?`, `$1` or `$name` for parameters.
            params: their values, in sequence or by name.

        Returns:
            DuckDB's relation over a connection of its own, which ends with it: `.fetchall()`,
            `.show()`, `.columns` and more; `.arrow()`, `.df()` and `.pl()` for Arrow, pandas and
            polars where those are installed. DuckDB runs it when it is asked for rows; a damaged
            file may show as `duckdb.Error` then. Times with a time zone come as UTC without one,
            like every time of the log.

        Raises:
            QueryRefused: it is not one harmless SELECT.
            QueryFailed: it can't be parsed or bound.
            DamagedLog: a file of the log can't be read.
        """
        source, rows, contents = self._source()
        try:
            source.add_tail(rows, contents, documented="duckdb_" in query.lower())
            return source.run(query, params)
        except BaseException:
            source.connection.close()
            raise

    def ask(self, question: str, **parameters: object) -> Answer:
        """Ask one of the documented questions (QUESTIONS.md); what `sql` returns.

        Args:
            question: its name, such as ``slowest_checks``.
            parameters: the question's own, by name.

        Raises:
            InputError: there is no such question, or a parameter is missing or unknown.
            QueryFailed: a parameter's value can't be used.
        """
        from .questions import question as named

        asked = named(question)
        values = asked.bind(question, {name: str(value) for name, value in parameters.items()})
        return self.sql(asked.sql, params=values or None)

    def replay(
        self,
        call_id: str,
        *,
        plugins: Collection[str] = (),
        regenerate: bool = False,
        deep: bool = False,
    ) -> Replayed:
        """Re-execute a call in a child process and compare every bit; see `replaying`.

        Args:
            call_id: its id, or the beginning of one.
            plugins: modules that the replay may import, besides Isonomy's own.
            regenerate: have the model answer token by token, instead of computing all tokens of the
                recorded answer in one pass; the same result, later.
            deep: name the first layer and operation that differ.

        Raises:
            NoSuchCall: there is no such call.
        """
        from .separate import replay_separately

        return replay_separately(
            self.call(call_id), plugins=plugins, regenerate=regenerate, deep=deep
        )

    def refresh(self, *, rebuild: bool = False) -> Ingested:
        """Bring `audit.duckdb` up to date, in a subprocess; with `rebuild`, from nothing.

        Raises:
            LogError: it could not be done.
        """
        from .ingest import refresh

        return refresh(self._directory.path, rebuild=rebuild)

    def snapshot(self, file: str | os.PathLike[str]) -> Path:
        """Write everything up to now to a new, read-only DuckDB file for any client.

        Raises:
            LogError: the log can't be brought up to date.
            LogUnwritable: the file is there already, or can't be written.
        """
        from .snapshot import snapshot

        return snapshot(self._directory, file)

    def status(self) -> Status:
        """Tell how the log is doing: records, how far they are ingested, bytes on disk.

        Raises:
            LogError: the journal can't be read.
        """
        from .status import status

        return status(self._directory)

    def verify(
        self,
        *,
        progress: Callable[[int, int], None] | None = None,
        checkpoints: Sequence[Checked] = (),
    ) -> Report:
        """Check the whole log against its own hashes; see `isonomy.replay.verification`.

        Args:
            progress: called with the number of records checked and of all.
            checkpoints: kept outside the log; see `isonomy.replay.checkpoints.open_checkpoint`.
        """
        from .verification import verify

        return verify(self._directory, progress=progress, checkpoints=checkpoints)

    def _source(self) -> tuple[Source, Projection, dict[int, bytes]]:
        from .ingest import projected, waiting
        from .query import Source

        source = Source(self._directory)
        try:
            with self._journal() as journal:
                records, held = waiting(journal, source.marks[0])
            if (records > TAIL_LIMIT or held > TAIL_BYTES) and self._refreshed():
                source.connection.close()
                source = Source(self._directory)
            with self._journal() as journal:
                tail = list(checking.read(journal, source.marks[0]))
                return source, *projected(journal, tail, source.marks[1])
        except BaseException:
            source.connection.close()
            raise

    def _refreshed(self) -> bool:
        """Try to bring the DuckDB log up to date; a log that can't be written is read as it is."""
        try:
            self.refresh()
        except LogError:
            return False
        return True

    @contextmanager
    def _journal(self) -> Iterator[sqlite3.Connection]:
        """Open the journal for reading, in one snapshot."""
        with database.explained(self._directory, writing=False):
            connection = database.connect(self._directory, writable=False)
            try:
                database.check(connection, self._directory, writing=False)
                connection.execute("BEGIN")
                yield connection
            finally:
                connection.close()

    def _no_such_call(
        self, journal: sqlite3.Connection, call_id: str, begun: list[str]
    ) -> NoSuchCall:
        if begun:
            nearest = tuple(begun[:5])
            return NoSuchCall(
                f"Several calls of the log {self.path} begin with {call_id!r}: {', '.join(nearest)}"
                f"{', ...' if len(begun) > 5 else ''}. Give more of the id.",
                path=self.path,
                nearest=nearest,
            )
        recent = [
            str(row[0])
            for row in journal.execute(
                "SELECT DISTINCT call_id FROM (SELECT call_id FROM records ORDER BY sequence DESC "
                "LIMIT 5000)"
            )
        ]
        folded = {name.lower(): name for name in recent}
        close = difflib.get_close_matches(call_id.lower(), folded, 3, 0.5)
        nearest = tuple(folded[name] for name in close)
        hint = f" Nearest: {', '.join(nearest)}." if nearest else ""
        if not recent:
            hint = " The log is empty."
        return NoSuchCall(
            f"The log {self.path} has no call {call_id!r}.{hint} List the calls with `isonomy "
            "log`.",
            path=self.path,
            nearest=nearest,
        )


def _beginning(journal: sqlite3.Connection, prefix: str) -> list[str]:
    """Return up to six call ids that begin with `prefix`."""
    return [
        str(row[0])
        for row in journal.execute(
            "SELECT DISTINCT call_id FROM records WHERE call_id >= ?1 AND substr(call_id, 1, ?2) = "
            "?1 AND call_id < ?1 || char(1114111) LIMIT 6",
            (prefix, len(prefix)),
        )
    ]


def _call(journal: sqlite3.Connection, known: checking.Subjects, call_id: str) -> StoredCall:
    return StoredCall(
        call_id=call_id,
        records=tuple(
            StoredRecord.of(checking.examine(raw, known))
            for raw in checking.read_call(journal, call_id)
        ),
    )
