"""Damage of every kind is found and named, or changes nothing that anyone can read."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import duckdb
import msgspec
import pytest
from tests.replay import making

from isonomy.replay import (
    DamagedLog,
    Finding,
    JournalLog,
    ReplayLog,
    checking,
    database,
    open_log,
    packing,
    projection,
)
from isonomy.replay.directory import LogDirectory
from isonomy.replay.ingest import ingest
from isonomy.replay.projection import TABLES
from isonomy.replay.verification import verify_journal
from isonomy.sdk.records import Entry, Masked

EVERY_BYTE = os.environ.get("ISONOMY_TORTURE") == "1"
"""Flip every byte instead of a sample: minutes instead of seconds."""

SEED = 20_260
"""Which bytes and bits the samples take: always the same, so that a failure can be met again."""
FLIPS = 1200
"""Bytes in a sample."""


def test_an_intact_log(filled: ReplayLog) -> None:
    report = filled.verify()
    assert (report.records, report.audited, report.findings) == (8, 0, ())
    assert any("end is unproven" in note for note in report.notes)
    ingest(filled.path)
    with open_log(filled.path) as journal:
        journal.append(making.call("later", "x", ["y"]))
    seen: list[tuple[int, int]] = []
    report = filled.verify(progress=lambda done, total: seen.append((done, total)))
    assert (report.records, report.audited, report.findings) == (10, 8, ())
    assert report.rows > 60
    assert seen == [(10, 10)]


# One bit in any byte.


def small_log(folder: Path, *, page_size: int) -> Path:
    """A log at rest with records of every kind, in small pages so that most bytes matter."""
    path = folder / "small"
    with open_log(path) as journal:
        journal.append([making.opening("c1")])
        journal.append(making.call("c1", "hi", ["a", "b"]))
        journal.append([making.intent("c2", "hi", session="s2")])
        # A loss, and what it explains.
        journal.append([making.gap(lost={"c3": {"intent": 1}}, unnamed=0)])
        journal.append([making.result("c3", ["a"])])
    with closing(sqlite3.connect(path / "journal.sqlite", isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = DELETE")
        connection.execute(f"PRAGMA page_size = {page_size}")
        connection.execute("VACUUM")
        connection.execute("PRAGMA journal_mode = WAL")
    return path


def readable(path: Path) -> str:
    """All that a reader can get out of a journal: records, payloads, rows."""
    directory = LogDirectory(path)
    with closing(database.connect(directory, writable=False)) as journal:
        known = checking.subjects(journal)
        rows = projection.empty()
        records = []
        for raw in checking.read(journal):
            examined = checking.examine(raw, known)
            projection.project(examined, rows)
            records.append((raw.sequence, raw.call_id, raw.kind, raw.leaf, examined.payloads))
    return repr((records, rows))


def flip_each(
    path: Path, name: str, positions: list[int], rng: random.Random
) -> tuple[int, list[tuple[int, int]]]:
    """Flip a bit at each position in turn; return how many were found, which changed silently."""
    original = readable(path)
    file = path / name
    data = file.read_bytes()
    found, silent = 0, []
    for at in positions:
        bit = rng.randrange(8)
        poke(file, at, data[at] ^ (1 << bit))
        findings: list[Finding] = []
        verify_journal(LogDirectory(path), findings)
        if findings:
            found += 1
            assert all(finding.file and finding.problem for finding in findings)
        elif readable(path) != original:
            silent.append((at, bit))
        poke(file, at, data[at])
        for left in (file.with_name("journal.sqlite-shm"), file.with_name("journal.sqlite-wal")):
            if left != file:
                left.unlink(missing_ok=True)
    return found, silent


def poke(file: Path, at: int, byte: int) -> None:
    descriptor = os.open(file, os.O_WRONLY)
    try:
        os.pwrite(descriptor, bytes([byte]), at)
    finally:
        os.close(descriptor)


def sample(size: int, rng: random.Random) -> list[int]:
    return list(range(size)) if EVERY_BYTE else sorted(rng.sample(range(size), FLIPS))


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("page_size", [512, 4096])
def test_a_flipped_bit_of_the_journal(tmp_path: Path, page_size: int) -> None:
    rng = random.Random(SEED)
    path = small_log(tmp_path, page_size=page_size)
    size = (path / "journal.sqlite").stat().st_size
    positions = sample(size, rng)
    if page_size == 512 and not EVERY_BYTE:
        positions = sorted({*positions, *range(100)})  # SQLite's header, byte for byte
    found, silent = flip_each(path, "journal.sqlite", positions, rng)
    assert silent == []
    if page_size == 512:
        assert found > len(positions) // 2


@pytest.mark.timeout(3600)
def test_a_flipped_bit_of_the_leaves(tmp_path: Path) -> None:
    path = small_log(tmp_path, page_size=4096)
    positions = list(range((path / "leaves").stat().st_size))
    found, silent = flip_each(path, "leaves", positions, random.Random(SEED))
    assert (found, silent) == (6 * 32, [])


@pytest.mark.timeout(3600)
def test_a_flipped_bit_of_the_write_ahead_log(tmp_path: Path) -> None:
    """As a crash leaves it: nothing moved into the database yet, the schema included.

    SQLite drops the log from the damaged frame on without a word; the file leaves tells.
    """
    running, path = tmp_path / "running", tmp_path / "crashed"
    with open_log(running) as journal:
        journal.append([making.opening("c1")])
        journal.append(making.call("c1", "hi", ["a", "b"]))
        path.mkdir()
        for name in ("journal.sqlite", "journal.sqlite-wal", "leaves", "lock"):
            shutil.copy(running / name, path / name)
    wal = path / "journal.sqlite-wal"
    assert verify_journal(LogDirectory(path), []) == 3
    size = wal.stat().st_size
    assert size > 20_000
    rng = random.Random(SEED)
    for at in sorted({*sample(size, rng), *range(32)}):
        byte = wal.read_bytes()[at]
        poke(wal, at, byte ^ (1 << rng.randrange(8)))
        findings: list[Finding] = []
        verify_journal(LogDirectory(path), findings)
        assert findings, at
        poke(wal, at, byte)
        wal.with_name("journal.sqlite-shm").unlink(missing_ok=True)
    assert verify_journal(LogDirectory(path), []) == 3


@pytest.mark.timeout(3600)
def test_a_flipped_bit_of_the_published_file(filled: ReplayLog, path: Path, tmp_path: Path) -> None:
    ingest(path)
    audit = path / "audit.duckdb"
    data = audit.read_bytes()
    views = rows_of_views(audit)
    rng = random.Random(SEED)
    positions = rng.sample(range(len(data)), 3000 if EVERY_BYTE else 25)
    positions += rng.sample(range(3 * 4096), 500 if EVERY_BYTE else 10)  # the three headers
    found = 0
    for at in positions:
        altered = bytearray(data)
        altered[at] ^= 1 << rng.randrange(8)
        audit.unlink()
        audit.write_bytes(altered)
        report = filled.verify()
        if report.findings:
            found += 1
            assert {finding.file for finding in report.findings} == {"audit.duckdb"}
        else:
            assert rows_of_views(audit) == views, at
    assert found


def rows_of_views(audit: Path) -> list[list[tuple]]:  # type: ignore[type-arg]
    names = ("calls", "events", "decisions", "generations", "tokens", "records", "payloads")
    with duckdb.connect(str(audit), read_only=True) as connection:
        return [connection.execute(f"FROM {name} ORDER BY ALL").fetchall() for name in names]


# Whole records, and what somebody with SQL would do.


def without(payloads: bytes, position: int) -> bytes:
    kept = list(packing.unpacked(payloads) or ())
    return packing.packed(kept[:position] + kept[position + 1 :])


def resalted(payloads: bytes) -> bytes:
    return packing.packed([(os.urandom(32), body) for _, body in packing.unpacked(payloads) or ()])


def holding(payloads: bytes, position: int, body: bytes | int) -> bytes:
    kept = list(packing.unpacked(payloads) or ())
    kept[position] = (kept[position][0], body)
    return packing.packed(kept)


def alter(path: Path, *statements: str) -> None:
    with closing(sqlite3.connect(path / "journal.sqlite", isolation_level=None)) as connection:
        for function, arguments in ((without, 2), (resalted, 1), (holding, 3)):
            connection.create_function(function.__name__, arguments, function)
        for statement in statements:
            connection.execute(statement)


REMOVE = "DELETE FROM {} WHERE sequence = {}"
PAYLOADS = "UPDATE records SET payloads = {} WHERE sequence = {}"
SWAP = "UPDATE records SET sequence = sequence - 4 WHERE sequence IN (1, 3)"  # 1 to -3, 3 to -1
UNSIGN = "UPDATE records SET sequence = -sequence WHERE sequence < 0"


@pytest.mark.parametrize(
    ("statements", "sequence", "problem"),
    [
        ([REMOVE.format("records", 3)], 3, "record 3 is missing"),
        ([REMOVE.format("records", 8)], 8, "record 8 is missing"),
        ([PAYLOADS.format("without(payloads, 1)", 2)], 2, "payload output is missing"),
        ([PAYLOADS.format("NULL", 2)], 2, "its payloads can't be read"),
        ([PAYLOADS.format("x''", 2)], 2, "its payloads can't be read"),
        ([PAYLOADS.format("CAST(payloads || x'00' AS BLOB)", 2)], 2, "its payloads can't be read"),
        (
            ["UPDATE records SET payloads = (SELECT payloads FROM records WHERE sequence = 1)"],
            2,
            "a payload at position 3 is not in the leaf",
        ),
        ([SWAP, UNSIGN], 1, "differs from the journal's leaf hash"),
        (
            [
                "INSERT INTO records SELECT 9, call_id, kind, leaf, leaf_hash, payloads FROM "
                "records WHERE sequence = 2"
            ],
            9,
            "copy of record 2",
        ),
        (
            [
                "UPDATE records SET leaf = CAST(replace(leaf, 'ctor\":\"ada', 'ctor\":\"eve') AS "
                "BLOB) WHERE sequence = 1"
            ],
            1,
            "leaf and leaf hash",
        ),
        (
            ["UPDATE records SET leaf_hash = zeroblob(32) WHERE sequence = 1"],
            1,
            "leaf and leaf hash",
        ),
        (["UPDATE records SET call_id = 'other' WHERE sequence = 2"], 2, "column call_id"),
        (["UPDATE records SET kind = 'result' WHERE sequence = 1"], 1, "column kind"),
        ([PAYLOADS.format("resalted(payloads)", 2)], 2, "commitment"),
        ([PAYLOADS.format("holding(payloads, 0, x'00')", 2)], 2, "commitment"),
        ([PAYLOADS.format("holding(payloads, 1, 1)", 1)], 1, "commitment"),
        ([PAYLOADS.format("holding(payloads, 1, 99)", 1)], 1, "content is missing"),
        (
            [PAYLOADS.format("holding(payloads, 0, (SELECT body FROM contents WHERE id = 1))", 1)],
            1,
            "wrong subject",
        ),
        (["UPDATE contents SET body = CAST(body || ' ' AS BLOB) WHERE id = 2"], 1, "commitment"),
        (["UPDATE contents SET body = CAST(body AS TEXT) WHERE id = 2"], 1, "not stored as bytes"),
        (["UPDATE contents SET address = randomblob(32) WHERE id = 2"], 1, "address"),
        (["UPDATE contents SET subject = 2 WHERE id = 2"], 1, "wrong subject"),
        (["DELETE FROM contents WHERE id = 2"], 1, "content is missing"),
        (["UPDATE subjects SET key = randomblob(32) WHERE id = 1"], 1, "address"),
        (["UPDATE subjects SET subject = 'x' WHERE id = 1"], 1, "wrong subject"),
        (["UPDATE subjects SET key = randomblob(32) WHERE id = 0"], 1, "address"),
        (
            ["INSERT INTO contents VALUES (99, 1, randomblob(32), x'00')"],
            None,
            "belongs to no record",
        ),
        (["INSERT INTO subjects VALUES (99, 'x', zeroblob(32))"], None, "has no content"),
        (["CREATE TABLE extra (a)"], None, "definition of extra"),
        (["DROP INDEX records_by_call"], None, "definition of records_by_call"),
        (["UPDATE meta SET value = 'x' WHERE name = 'format'"], None, "disagree"),
        (["PRAGMA user_version = 7"], None, "disagree"),
        (["PRAGMA application_id = 7"], None, "disagree"),
        (["DROP TABLE records"], None, "no such table"),
    ],
)
def test_an_altered_journal(
    filled: ReplayLog, path: Path, statements: list[str], sequence: int | None, problem: str
) -> None:
    alter(path, *statements)
    findings = filled.verify().findings
    assert any(f.sequence == sequence and problem in f.problem for f in findings), findings


def test_a_removed_result_of_the_last_call_in_all_files_shows_only_as_an_unproven_end(
    filled: ReplayLog, path: Path
) -> None:
    alter(
        path,
        REMOVE.format("records", 8),
        "DELETE FROM contents WHERE id = (SELECT max(id) FROM contents)",  # its only message
    )
    os.truncate(path / "leaves", 7 * 32)
    report = filled.verify()
    assert report.findings == ()
    assert "end is unproven" in report.notes[0]


def test_a_second_intent_and_a_result_without_intent(path: Path) -> None:
    with open_log(path) as journal:
        journal.append([making.intent("a", "x"), making.intent("a", "y")])
        journal.append([making.result("b", ["z"])])
    problems = [f.problem for f in ReplayLog(path).verify().findings]
    assert problems == [
        "its call has more than one intent",
        "it is a result without an intent before it",
    ]


def test_a_damaged_page_names_the_records_on_it_and_the_rest_is_still_read(path: Path) -> None:
    with open_log(path) as journal:
        for number in range(60):
            journal.append(making.call(f"call-{number:02}", f"{number} " + "x" * 2000, ["y"]))
    with closing(sqlite3.connect(path / "journal.sqlite", isolation_level=None)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        root = connection.execute(
            "SELECT rootpage FROM sqlite_schema WHERE name = 'records'"
        ).fetchone()[0]
    data = (path / "journal.sqlite").read_bytes()
    # A leaf page below the root of `records`, by its right-most pointer.
    page = int.from_bytes(data[(root - 1) * 4096 + 8 : (root - 1) * 4096 + 12], "big")
    for at in range(64):
        poke(path / "journal.sqlite", (page - 1) * 4096 + at, 0xFF)
    log = ReplayLog(path)
    findings = log.verify().findings
    assert any(f.sequence is not None and f.sequence > 100 for f in findings)
    assert any(f.sequence is None for f in findings)  # SQLite's own check
    with pytest.raises(DamagedLog, match="damaged"):
        log.sql("select count(*) from calls")
    with pytest.raises(DamagedLog):
        open_log(path).append([making.opening("x")])


def test_a_damaged_record_leaves_the_others_readable(filled: ReplayLog, path: Path) -> None:
    alter(
        path,
        "UPDATE records SET leaf = CAST(replace(leaf, 'ctor\":\"ada', 'ctor\":\"eve') AS BLOB) "
        "WHERE sequence = 1",
    )
    call = filled.call("call-finished")
    assert call.damage == ("record 1: leaf and leaf hash don't fit",)
    assert call.records[1].damage == ()
    for _ in range(2):
        assert filled.sql("select sequence, call_id, problem from damaged").fetchall() == [
            (1, "call-finished", "leaf and leaf hash don't fit")
        ]
        assert filled.sql("select count(*) from calls").fetchall() == [(5,)]
        assert len(filled.verify().findings) == 1
        ingest(path)


# Every typed column of the published file.


def rewrite_audit(path: Path, *statements: str) -> None:
    audit = path / "audit.duckdb"
    audit.chmod(0o600)
    with duckdb.connect(str(audit)) as connection:
        for statement in statements:
            connection.execute(statement)


OTHER: dict[str, Callable[[str], str]] = {
    "BIGINT": lambda c: f'coalesce("{c}", 0) + 1000',
    "INTEGER": lambda c: f'coalesce("{c}", 0) + 1000',
    "UBIGINT": lambda c: f'coalesce("{c}", 1) - 1',
    "DOUBLE": lambda c: f'coalesce("{c}", 0) + 1e-9',
    "BOOLEAN": lambda c: f'NOT coalesce("{c}", false)',
    "VARCHAR": lambda c: f"coalesce(\"{c}\", '') || 'x'",
    "BLOB": lambda c: f"coalesce(\"{c}\", ''::BLOB) || 'x'::BLOB",
    "VARCHAR[]": lambda c: f"list_append(coalesce(\"{c}\", []), 'x')",
    "BIGINT[]": lambda c: f'list_append(coalesce("{c}", []), 1)',
    "FLOAT[]": lambda c: f'list_transform(coalesce("{c}", [0]), lambda x: x + 1e-3)',
}


def test_every_typed_column_is_compared(filled: ReplayLog, journal: JournalLog, path: Path) -> None:
    """Every column in turn; the n-th of every table at the same time, for speed."""
    first, second = making.segments("call-intended", ["hé", "llo"])
    masked = msgspec.structs.replace(second.record, masked=(Masked("text", ""),))
    withheld = Entry(masked, second.payloads)
    journal.append([first, withheld, making.gap(), making.tombstone()])
    ingest(path)
    published = (path / "audit.duckdb").read_bytes()
    tables = {table: columns for table, columns in TABLES.items() if table != "damaged"}
    for at in range(max(len(columns) for columns in tables.values())):
        (path / "audit.duckdb").chmod(0o600)
        (path / "audit.duckdb").write_bytes(published)
        altered = {table: columns[at] for table, columns in tables.items() if at < len(columns)}
        rewrite_audit(
            path,
            *(
                f'UPDATE stored.{table} SET "{column}" = {OTHER[type_](column)}'
                for table, (column, type_) in altered.items()
            ),
        )
        findings = filled.verify().findings
        assert {f.file for f in findings} == {"audit.duckdb"}
        for table in altered:
            assert any(f"rows in {table} " in f.problem for f in findings), (table, at)


def test_a_call_that_was_killed_in_mid_stream(
    filled: ReplayLog, journal: JournalLog, path: Path
) -> None:
    journal.append(making.segments("call-intended", ["hé", "llo"]))
    assert filled.verify().findings == ()
    call = filled.call("call-intended")
    assert call.status == "unfinished"
    assert [(record.number, record.start, text) for record, text in call.segments] == [
        (0, 0, "hé"),
        (1, 2, "llo"),
    ]


@pytest.mark.parametrize(
    ("call_id", "left_out", "problem"),
    [
        ("call-intended", 0, "it is segment 1 of its call, and number 0 should follow"),
        ("call-opened", None, "it is a segment without an intent before it"),
        ("call-finished", None, "it is a segment after its call's result"),
    ],
)
def test_segments_that_do_not_belong(
    filled: ReplayLog, journal: JournalLog, call_id: str, left_out: int | None, problem: str
) -> None:
    segments = making.segments(call_id, ["hé", "llo"])
    journal.append([entry for at, entry in enumerate(segments) if at != left_out])
    found = filled.verify().findings
    assert problem in [finding.problem for finding in found]
    assert {finding.call_id for finding in found} == {call_id}


@pytest.mark.parametrize(
    ("statement", "problem"),
    [
        ("DELETE FROM stored.results WHERE record = 2", "rows in results differ"),
        (
            "INSERT INTO stored.records SELECT * FROM stored.records WHERE record = 2",
            "rows in records",
        ),
        ("INSERT INTO stored.results SELECT * REPLACE (77 AS record) FROM stored.results", "lacks"),
        (
            "INSERT INTO stored.results SELECT * REPLACE (NULL AS record) FROM stored.results",
            "lacks",
        ),
        ("INSERT INTO stored.damaged VALUES (2, 'call-finished', 'x')", "rows in damaged differ"),
        (
            "UPDATE stored.contents SET body = 'x'::BLOB WHERE content = 2",
            "payload message/0 differs",
        ),
        ("DELETE FROM stored.contents WHERE content = 2", "payload message/0 differs"),
        (
            f"UPDATE stored.contents SET body = 'x'::BLOB WHERE content = {packing.number(1, 2)}",
            "payload request differs",
        ),
        (
            f"DELETE FROM stored.contents WHERE content = {packing.number(1, 2)}",
            "payload request differs",
        ),
        (
            f"INSERT INTO stored.contents VALUES ({packing.number(1, 77)}, 'x'::BLOB)",
            "content of a record that the journal lacks",
        ),
        (
            f"INSERT INTO stored.contents VALUES ({packing.number(99, 0)}, 'x'::BLOB)",
            "has no number",
        ),
        ("INSERT INTO stored.contents VALUES (-1, 'x'::BLOB)", "has no number"),
        ("INSERT INTO stored.contents SELECT * FROM stored.contents", "more than once"),
        ("INSERT INTO stored.contents VALUES (99, 'x'::BLOB)", "contents do not end"),
        ("UPDATE stored.state SET value = '6' WHERE name = 'records'", "lacks"),
        ("UPDATE stored.state SET value = '99' WHERE name = 'records'", "only up to 8"),
        ("UPDATE stored.state SET value = 'x' WHERE name = 'records'", "table state"),
        ("UPDATE stored.state SET value = 'x' WHERE name = 'log'", "another log"),
        ("CREATE OR REPLACE VIEW calls AS SELECT 'c1' AS call_id", "view main.calls"),
        ("CREATE TABLE main.extra (a INTEGER)", "table main.extra"),
        ("CREATE MACRO main.lower(x) AS x", "function main.lower"),
        ("COMMENT ON COLUMN main.calls.verdict IS 'all is well'", "column main.calls.verdict"),
        ("DROP VIEW main.tokens", "view main.tokens"),
        ("DROP TABLE stored.state", "can't be read"),
    ],
)
def test_an_altered_published_file(
    filled: ReplayLog, path: Path, statement: str, problem: str
) -> None:
    ingest(path)
    rewrite_audit(path, statement)
    findings = filled.verify().findings
    assert any(problem in f.problem for f in findings), findings
    assert {f.file for f in findings} == {"audit.duckdb"}


def test_a_published_file_of_noise(filled: ReplayLog, path: Path) -> None:
    ingest(path)
    (path / "audit.duckdb").unlink()
    (path / "audit.duckdb").write_bytes(os.urandom(100_000))
    [finding] = filled.verify().findings
    assert (finding.file, finding.problem[:14]) == ("audit.duckdb", "it can't be re")
    with pytest.raises(DamagedLog, match="rebuild"):
        filled.sql("select 1 from calls")
    filled.refresh(rebuild=True)
    assert filled.verify().findings == ()
