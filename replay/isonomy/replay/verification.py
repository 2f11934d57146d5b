"""Verification: does the log still hold, byte for byte, what was written?

From the journal's stored bytes every hash is derived again (leaf, commitments, addresses), every
column beside a leaf is compared with it, and the order is compared with the file `leaves`; missing,
added, swapped and doubled records are looked for, and content that belongs to nothing. From those
hashed bytes the rows of every view are derived again and compared with what `audit.duckdb` holds.
Every finding names the file, and the record and call where it has one.

What can't be shown from inside: that nobody rewrote the whole log, or cut its end from every file.
A checkpoint that was kept outside shows it (see `checkpoints`); without one the report says so.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from itertools import islice
from typing import TYPE_CHECKING

import msgspec

from isonomy.sdk.errors import LogError
from isonomy.sdk.records import Gap, Record, Result, Segment

from . import checking, database
from .checking import Examined
from .directory import JOURNAL, LEAVES, LogDirectory
from .errors import DamagedLog
from .leaves import LeavesFile

if TYPE_CHECKING:
    from .checkpoints import Checked

END_UNPROVEN = (
    "The end is unproven: no checkpoint kept outside the log was given, so a log that was "
    "rewritten as a whole, or cut short in all its files, would not show."
)

_BATCH = 500

Progress = Callable[[int, int], None]


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """Something that is not as it was written.

    `file` is its name in the log's directory; `sequence` and `call_id` say which record, where
    one can be named.
    """

    file: str
    problem: str
    sequence: int | None = None
    call_id: str | None = None

    def __str__(self) -> str:
        where = self.file
        if self.sequence is not None:
            where += f", record {self.sequence}"
        if self.call_id is not None:
            where += f" of call {self.call_id}"
        return f"{where}: {self.problem}"


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What a verification found.

    Attributes:
        path: the log's directory.
        records: how many records the journal holds.
        audited: up to which record the rows of `audit.duckdb` were compared; 0 without the file.
        rows: how many rows were compared.
        findings: what is damaged; empty for an intact log.
        notes: what the verification could not or need not show.
        proven: up to which record a checkpoint from outside the log proves it; 0 without one.
    """

    path: str
    records: int
    audited: int
    rows: int
    findings: tuple[Finding, ...]
    notes: tuple[str, ...]
    proven: int = 0

    @property
    def intact(self) -> bool:
        """Whether nothing was found."""
        return not self.findings


class Audited:
    """What the comparison with a DuckDB log needs of the journal's check; see `audit_check`."""

    def batch(self, examined: list[Examined], journal: sqlite3.Connection) -> None:
        """Take the next records, in sequence."""

    def end(self, journal: sqlite3.Connection, log_id: str | None) -> None:
        """Take note that these were all."""


def verify(
    directory: LogDirectory,
    *,
    progress: Progress | None = None,
    checkpoints: Sequence[Checked] = (),
) -> Report:
    """Check the log in `directory`; damage is reported, never raised.

    `checkpoints` were kept outside the log, and signed by keys that the caller trusts.
    """
    from .audit_check import AuditCheck

    findings: list[Finding] = []
    # The published file first, then `leaves`, then the journal: each knows at least what the one
    # before it knew, so a log that is being written to stays free of false alarms.
    audited = AuditCheck(directory, findings)
    try:
        records = verify_journal(directory, findings, audited=audited, progress=progress)
    finally:
        audited.close()
    proven = _compare(directory, checkpoints, findings) if checkpoints else 0
    notes = [END_UNPROVEN]
    if proven:
        notes = [
            f"Up to record {proven} the log is the one that was signed; what lies beyond is "
            "unproven."
        ]
    notes += _unfinished(directory)
    if not audited.present:
        notes.append(
            "There is no audit.duckdb yet; the first `isonomy sql` on a long log makes it."
        )
    return Report(
        path=str(directory),
        records=records,
        audited=audited.last,
        rows=audited.rows,
        findings=tuple(findings),
        notes=tuple(notes),
        proven=proven,
    )


def _unfinished(directory: LogDirectory) -> Iterator[str]:
    """Yield what is to be said of erasures that were broken off."""
    begun: dict[tuple[str, str], str] = {}
    try:
        with closing(database.connect(directory, writable=False)) as journal:
            for number, stone in checking.tombstones(journal):
                begun.pop((stone.what, stone.target), None)
                if not stone.done:
                    begun[stone.what, stone.target] = (
                        f"The erasure that record {number} announces did not come to its end: "
                        f"erase the {stone.what} again (isonomy log erase)."
                    )
    except database.FAILURES:
        return  # a finding already
    yield from begun.values()


def _compare(
    directory: LogDirectory, checkpoints: Sequence[Checked], findings: list[Finding]
) -> int:
    """Compare the journal with checkpoints; return up to which record they prove it."""
    from .checkpoints import compare

    try:
        with closing(database.connect(directory, writable=False)) as journal:
            log_id = database.check(journal, directory, writing=False)["log"]
            journal.execute("BEGIN")
            problems, proven = compare(journal, directory, log_id, checkpoints)
    except (*database.FAILURES, LogError):
        problems, proven = ["the checkpoints can't be compared with it"], 0
    findings.extend(Finding(file=JOURNAL, problem=problem) for problem in problems)
    return proven


def verify_journal(
    directory: LogDirectory,
    findings: list[Finding],
    *,
    audited: Audited | None = None,
    progress: Progress | None = None,
) -> int:
    """Check the journal and `leaves`, add what is found to `findings`, return the record count."""
    leaves, marked = _open_leaves(directory, findings)
    try:
        try:
            journal = database.connect(directory, writable=False)
        except database.FAILURES as error:
            findings.append(_failed(error, directory))
            return 0
        try:
            check = _JournalCheck(journal, directory, leaves, marked, findings)
            return check.run(audited, progress)
        except database.FAILURES as error:
            findings.append(_failed(error, directory))
            return 0
        finally:
            journal.close()
    finally:
        if leaves is not None:
            leaves.close()


def _open_leaves(directory: LogDirectory, findings: list[Finding]) -> tuple[LeavesFile | None, int]:
    try:
        leaves = LeavesFile(directory.leaves, writable=False)
        return leaves, leaves.last()
    except OSError as error:
        findings.append(
            Finding(file=LEAVES, problem=f"it can't be read ({error.strerror or error})")
        )
        return None, 0


def _failed(error: Exception, directory: LogDirectory) -> Finding:
    name = getattr(error, "sqlite_errorname", None)
    return Finding(file=JOURNAL, problem=f"it can't be read ({error}{f', {name}' if name else ''})")


class Lost:
    """What the gaps of a log explain: records that are not there, and were never written."""

    def __init__(self) -> None:
        self._named: dict[str, dict[str, int]] = {}
        self._first: dict[str, int] = {}
        self._unnamed: dict[tuple[str, int], int] = {}

    def __bool__(self) -> bool:
        return bool(self._named or self._unnamed)

    def add(self, gap: Gap, sequence: int) -> None:
        """Take note of a gap: record `sequence`."""
        for call_id, kinds in gap.lost.items():
            known = self._named.setdefault(call_id, {})
            self._first.setdefault(call_id, sequence)
            for kind, count in kinds.items():
                known[kind] = known.get(kind, 0) + count
        if gap.unnamed:
            self._unnamed.setdefault((gap.host, gap.process), sequence)

    def explains(self, record: Record, sequence: int, kind: str, count: int) -> bool:
        """Return whether a gap before `record` says that so many records of a kind were lost.

        A gap that could not name all calls explains whatever its process wrote later.
        """
        if not count > 0:
            return False
        named = self._first.get(record.call_id, sequence) < sequence
        if named and self._named[record.call_id].get(kind, 0) >= count:
            return True
        return self._unnamed.get((record.host, record.process), sequence) < sequence


class _JournalCheck:
    def __init__(
        self,
        journal: sqlite3.Connection,
        directory: LogDirectory,
        leaves: LeavesFile | None,
        marked: int,
        findings: list[Finding],
    ) -> None:
        self.journal = journal
        self.directory = directory
        self.leaves = leaves
        self.marked = marked
        self.findings = findings
        self.count = 0
        self.last = 0
        self.segments: dict[str, int] = {}  # of calls without a result so far: how many left
        self.version = database.SCHEMA
        self.used: set[int] = set()
        self.known = checking.Subjects()
        self.lost = Lost()
        self.hidden = False  # whether some record does not say what it uses

    def run(self, audited: Audited | None, progress: Progress | None) -> int:
        log_id = self.header()
        if log_id is None:
            return 0
        self.journal.execute("BEGIN")
        self.guarded(self.schema)
        self.guarded(self.structure)
        known = self.known = checking.subjects(self.journal)
        (total,) = self.journal.execute("SELECT count(*) FROM records").fetchone()
        for batch in self.batches():
            examined = [checking.examine(raw, known) for raw in batch]
            for each in examined:
                self.record(each)
            self.compare_leaves(examined)
            if audited is not None:
                audited.batch(examined, self.journal)
            self.count += len(batch)
            if progress is not None:
                progress(self.count, max(total, self.count))
        if self.marked > self.last:
            self.missing(self.last + 1, self.marked, "the file leaves shows that they were there")
        self.guarded(self.relations)
        if audited is not None:
            audited.end(self.journal, log_id)
        return self.count

    def find(
        self, problem: str, *, sequence: int | None = None, call_id: str | None = None
    ) -> None:
        self.findings.append(
            Finding(file=JOURNAL, problem=problem, sequence=sequence, call_id=call_id)
        )

    def guarded(self, step: Callable[[], None]) -> None:
        """Run a step; what SQLite can't read is a finding, and the next step still runs."""
        try:
            step()
        except database.FAILURES as error:
            self.findings.append(_failed(error, self.directory))

    def header(self) -> str | None:
        """Check what identifies the file; return the log's id, or `None` if it can't be read on."""
        try:
            meta = database.check(self.journal, self.directory, writing=False)
        except LogError as error:
            self.find(
                "it is empty or not a journal any more"
                if not isinstance(error, DamagedLog)
                else "its header and its table meta disagree"
            )
            return None
        self.version = int(meta["schema"])
        if self.version not in database.TABLES:
            self.find(
                f"it has schema {meta['schema']}, which this version can't verify: upgrade isonomy"
            )
            return None
        if set(meta) != {"format", "schema", "log"} or len(meta["log"]) != 32:
            self.find("its table meta was altered")
        (mode,) = self.journal.execute("PRAGMA journal_mode").fetchone()
        if mode != "wal" and not database.at_rest(self.directory):
            self.find(f"its header asks for journal mode {mode} instead of wal")
        return meta["log"]

    def schema(self) -> None:
        expected: dict[str, tuple[str, str, str | None]] = {
            "sqlite_autoindex_subjects_1": ("index", "subjects", None)
        }
        for sql in database.TABLES[self.version]:
            kind, name, table = database.defined(sql)
            expected[name] = (kind, table, sql)
        found = {
            str(name): (kind, table, sql)
            for kind, name, table, sql in self.journal.execute(
                "SELECT type, name, tbl_name, sql FROM sqlite_schema"
            )
        }
        for name in sorted(found.keys() | expected.keys()):
            if found.get(name) != expected.get(name):
                self.find(f"the definition of {name} is not the one that was laid down")

    def structure(self) -> None:
        for (text,) in self.journal.execute("PRAGMA integrity_check(20)"):
            if text != "ok":
                self.find(f"SQLite's own check: {' '.join(str(text).split())}")

    def batches(self) -> Iterator[list[checking.RawRecord]]:
        """Yield the records; where pages can't be read, whatever records can be read one by one."""
        after = checking.FIRST
        records = checking.read(self.journal, batch=_BATCH)
        while True:
            batch: list[checking.RawRecord] = []
            try:
                batch.extend(islice(records, _BATCH))
            except database.FAILURES as error:
                self.findings.append(_failed(error, self.directory))
                yield from self.singly(after)
                return
            if not batch:
                return
            yield batch
            after = batch[-1].sequence

    def singly(self, after: int) -> Iterator[list[checking.RawRecord]]:
        for sequence in range(max(after + 1, 1), self.marked + 1):
            try:
                found = list(checking.read_range(self.journal, sequence, sequence))
            except database.FAILURES as error:
                self.find(f"it can't be read ({error})", sequence=sequence)
                self.last = sequence
                continue
            if found:
                yield found

    def record(self, examined: Examined) -> None:
        sequence = examined.raw.sequence
        if sequence < 1:
            self.find("this is no sequence number", sequence=sequence, call_id=examined.call_id)
            return
        if sequence > self.last + 1:
            self.missing(self.last + 1, sequence - 1, "the numbers have a gap")
        self.last = max(self.last, sequence)
        for problem in examined.problems:
            self.find(problem, sequence=sequence, call_id=examined.call_id)
        back = self.known.done.get(sequence, frozenset()) & examined.payloads.keys()
        for name in sorted(back):
            self.find(
                f"payload {name} is there, and a tombstone says that it was erased",
                sequence=sequence,
                call_id=examined.call_id,
            )
        self.segment(examined)
        self.hidden = self.hidden or examined.raw.payloads is None
        self.used.update(
            payload.content
            for payload in examined.raw.payloads or ()
            if isinstance(payload.content, int) and payload.content > 0
        )

    def segment(self, examined: Examined) -> None:
        """Check that what left as a stream is numbered without a gap."""
        record = examined.record
        if isinstance(record, Gap):
            self.lost.add(record, examined.raw.sequence)
        if isinstance(record, Result):
            self.segments.pop(record.call_id, None)
        if not isinstance(record, Segment):
            return
        expected = self.segments.get(record.call_id, 0)
        lost = record.number - expected
        if lost and not self.lost.explains(record, examined.raw.sequence, "segment", lost):
            self.find(
                f"it is segment {record.number} of its call, and number {expected} should follow",
                sequence=examined.raw.sequence,
                call_id=record.call_id,
            )
        self.segments[record.call_id] = record.number + 1

    def explained(self, sequence: int) -> bool:
        """Return whether a record's intent was lost, as a gap before it says."""
        if not self.lost:
            return False
        for raw in checking.read_range(self.journal, sequence, sequence):
            record = checking.examine(raw, checking.Subjects()).record
            return record is not None and self.lost.explains(record, sequence, "intent", 1)
        return False

    def missing(self, first: int, last: int, why: str) -> None:
        which = f"record {first} is" if first == last else f"records {first} to {last} are"
        self.find(f"{which} missing: {why}", sequence=first)

    def compare_leaves(self, examined: list[Examined]) -> None:
        if self.leaves is None:
            return
        numbers = [each.raw.sequence for each in examined]
        contiguous = numbers[0] >= 1 and numbers[-1] - numbers[0] == len(numbers) - 1
        known = self.leaves.read(numbers[0], len(numbers)) if contiguous else None
        for at, each in enumerate(examined):
            sequence = each.raw.sequence
            if not 1 <= sequence <= self.marked:
                continue
            entry = known[at] if known is not None else self.leaves.read(sequence, 1)[0]
            if entry is not None and entry != each.raw.leaf_hash:
                self.findings.append(
                    Finding(
                        file=LEAVES,
                        problem="its entry differs from the journal's leaf hash: either was "
                        "altered, or records were swapped or replaced",
                        sequence=sequence,
                        call_id=each.call_id,
                    )
                )

    def relations(self) -> None:
        """Look for what no single record shows: copies, results without intent, orphans."""
        ask = self.journal.execute
        for sequence, call_id, first in ask(
            "SELECT r.sequence, r.call_id, d.first FROM records r JOIN (SELECT leaf_hash, "
            "min(sequence) AS first FROM records GROUP BY leaf_hash HAVING count(*) > 1) d"
            " ON d.leaf_hash = r.leaf_hash AND r.sequence > d.first"
        ):
            self.find(f"it is a copy of record {first}", sequence=sequence, call_id=str(call_id))
        for call_id, kind, last in ask(
            "SELECT call_id, kind, max(sequence) FROM records WHERE kind IN ('intent', 'result')"
            " GROUP BY call_id, kind HAVING count(*) > 1"
        ):
            self.find(f"its call has more than one {kind}", sequence=last, call_id=str(call_id))
        for sequence, call_id, kind in ask(
            "SELECT sequence, call_id, kind FROM records r WHERE kind IN ('segment', 'result') AND "
            "NOT EXISTS (SELECT 1 FROM records i WHERE i.call_id = r.call_id AND i.kind = 'intent'"
            " AND i.sequence < r.sequence)"
        ).fetchall():
            if not self.explained(sequence):
                self.find(
                    f"it is a {kind} without an intent before it",
                    sequence=sequence,
                    call_id=str(call_id),
                )
        for sequence, call_id in ask(
            "SELECT sequence, call_id FROM records r WHERE kind = 'segment' AND EXISTS (SELECT 1 "
            "FROM records e WHERE e.call_id = r.call_id AND e.kind = 'result' AND e.sequence < "
            "r.sequence)"
        ):
            self.find(
                "it is a segment after its call's result", sequence=sequence, call_id=str(call_id)
            )
        if self.version == 1:
            for (sequence,) in ask(
                "SELECT DISTINCT sequence FROM payloads WHERE sequence NOT IN (SELECT sequence "
                "FROM records)"
            ):
                self.find("there are payloads of a record that is not there", sequence=sequence)
        for (content,) in ask("SELECT id FROM contents"):
            if content not in self.used and not self.hidden:
                self.find(f"content {content} belongs to no record")
        for (subject,) in ask(
            "SELECT id FROM subjects WHERE id <> 0 AND id NOT IN (SELECT subject FROM contents)"
        ):
            self.find(f"subject {subject} has no content")
        shared = ask("SELECT subject, key FROM subjects WHERE id = 0").fetchall()
        if shared != [(None, bytes(32))]:
            self.find("the row for shared content was altered")
