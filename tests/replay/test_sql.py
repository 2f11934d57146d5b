"""What SQL sees, what it may not do, and how the DuckDB log comes about."""

from __future__ import annotations

import math
import os
import struct
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import duckdb
import msgspec
import pytest
from blake3 import blake3
from tests.replay import making

from isonomy.replay import JournalLog, QueryFailed, QueryRefused, ReplayLog, open_log
from isonomy.replay.errors import DamagedLog, LogUnwritable
from isonomy.replay.ingest import ingest
from isonomy.replay.views import COMMENTS, VIEWS
from isonomy.sdk.canonical import canonical
from isonomy.sdk.errors import LogError
from isonomy.sdk.events import Generated
from isonomy.sdk.generation import TokenTrace
from isonomy.sdk.records import Entry, Payload, header_of

# The views, from the journal alone, from the published file alone, and from both.


@pytest.fixture(params=["tail", "published", "both"])
def log(request: pytest.FixtureRequest, journal: JournalLog) -> ReplayLog:
    calls = [
        making.call("call-finished", "hello", ["a", "b"]),
        making.call("call-blocked", "hello", ["c"], blocked=True, session="session-2", at=60),
        [making.opening("call-opened", at=120), making.intent("call-intended", "x", at=180)],
        [
            making.intent(
                "call-events",
                "y",
                at=240,
                events=making.every_event(),
                operation="stream",
                resumes="call-blocked",
            ),
            *making.segments("call-events", ["hé", "llo"]),
        ],
    ]
    log = ReplayLog(journal.path)
    for at, entries in enumerate(calls):
        for entry in entries:
            journal.append([entry])
            if request.param == "both" and at < 2:
                ingest(log.path)
    if request.param == "published":
        ingest(log.path)
        published = duckdb.connect(f"{log.path}/audit.duckdb", read_only=True)
        published.close()
    return log


def test_calls(log: ReplayLog) -> None:
    rows = log.sql(
        "select call_id, started_at, session, actor, provider, model, verdict, status, "
        "finish_reason, policy_name, input_text, output_text, refusal, input_tokens, "
        "output_tokens, duration_ms from calls order by sequence"
    ).fetchall()
    start = datetime(2023, 11, 14, 22, 13, 20)
    assert rows[0] == (
        "call-finished",
        start,
        "session-1",
        "ada",
        "local",
        "demo",
        "replace",
        "complete",
        "stop",
        "house rules",
        "hello",
        "[email]",
        False,
        12,
        2,
        123.456789,
    )
    assert rows[1][6:9] == ("block", "complete", None)
    assert rows[1][11:13] == ("I can't say that.", True)
    assert [(row[0], row[7]) for row in rows[2:]] == [
        ("call-opened", "unfinished"),
        ("call-intended", "unfinished"),
        ("call-events", "unfinished"),
    ]
    recent = "select count(*) from calls where started_at > now() - interval 30 day"
    assert log.sql(recent).fetchall() == [(0,)]


def test_decisions(log: ReplayLog) -> None:
    rows = log.sql(
        "select check_id, plugin, stage, verdict, reason, score, failure, error, duration_ms, "
        "labels from decisions where call_id = ? order by sequence",
        params=["call-events"],
    ).fetchall()
    assert rows == [
        ("secrets", "patterns", "pre_filter", "flag", "odd", 0.5, None, None, 0.0, []),
        ("privacy", "pii", "pre_filter", None, None, None, None, None, 0.0, None),
        ("privacy", "pii", "pre_filter", "flag", None, None, "timeout", "TimeoutError", 1e4, None),
        ("privacy", "pii", "post_validate", "block", "on trial", None, None, None, 0.0, []),
    ]
    blocks = (
        "select plugin, count(*) from decisions where verdict = 'block' and not shadow group by all"
    )
    assert log.sql(blocks).fetchall() == [("pii", 1)]


def test_segments(log: ReplayLog) -> None:
    rows = log.sql("select call_id, number, start, text from segments order by record").fetchall()
    assert rows == [("call-events", 0, 0, "hé"), ("call-events", 1, 2, "llo")]
    shown = log.sql("select operation, resumes, segments, status from calls where segments > 0")
    assert shown.fetchall() == [("stream", "call-blocked", 2, "unfinished")]


def test_a_stream_s_first_segment_and_a_token(journal: JournalLog) -> None:
    journal.append(
        [
            making.intent("call", "x"),
            making.result("call", ["a"], first_released_ns=1_500_000, token="sha256:00"),
        ]
    )
    with ReplayLog(journal.path) as log:
        found = log.sql("select first_released_ms, token from calls").fetchall()
    assert found == [(1.5, "sha256:00")]


def test_attempts(log: ReplayLog) -> None:
    rows = log.sql(
        "select call_id, sequence, position, number, backend, provider, outcome, status, error, "
        "duration_ms, wait_ms from attempts order by record, sequence, position"
    ).fetchall()
    failed = ("call-events", 9)
    assert rows == [
        (*failed, 0, 1, None, "local", "overloaded", 429, "busy", 7e-6, 9e-6),
        (*failed, 1, 1, "second", "local", "failed", 503, "é", 0.0, 0.0),
    ]


def test_decided_and_scored_events(log: ReplayLog) -> None:
    rows = log.sql(
        "select type, check_id, decision, decided_by, reason, labels, backend from events"
        " where type in ('decided', 'scored', 'backend_failed') order by sequence"
    ).fetchall()
    assert rows == [
        ("backend_failed", None, None, None, None, None, "judge"),
        ("decided", None, "edit", "grace", "better so", None, None),
        ("scored", "asimov", None, None, None, ["yes", "no"], "judge"),
    ]


def test_events_are_shown_as_hashed(log: ReplayLog) -> None:
    rows = log.sql(
        "select type, content from events where call_id = 'call-events' order by sequence"
    ).fetchall()
    events = making.every_event()
    assert [row[0] for row in rows] == [event.type for event in events]
    for event, (_, content) in zip(events, rows, strict=True):
        if isinstance(event, Generated):
            assert content is None
        else:
            assert content.encode() == canonical(event)


def test_generations(log: ReplayLog) -> None:
    [row] = log.sql(
        "select seed, temperature, stop, text, provider, model_digest, numerics_version, chain,"
        " token_ids, prompt_ids from generations where call_id = 'call-finished'"
    ).fetchall()
    trace = making.trace(["a", "b"])
    digest = "sha256:" + "33" * 32
    assert row == (
        2**64 - 1,
        0.7,
        ["\n\n"],
        "ab",
        "local",
        digest,
        "1",
        trace.chain.hex(),
        [100, 101],
        [1, 2, 3],
    )


def test_tokens(log: ReplayLog) -> None:
    rows = log.sql(
        "select generation, step, token_id, text, logprob, digest, chain from tokens"
        " where call_id = 'call-finished' order by step"
    ).fetchall()
    chain = bytes(32)
    for step, (text, row) in enumerate(zip("ab", rows, strict=True)):
        digest = blake3(f"0 {text}".encode()).digest()
        chain = blake3(chain + digest).digest()
        assert row[:4] == (1, step, 100 + step, text)
        assert struct.pack("<f", row[4]) == struct.pack("<f", -0.1 * (step + 1))
        assert row[5:] == (digest.hex(), chain.hex())
    assert chain == making.trace(["a", "b"]).chain


def test_payloads_and_records_are_the_hashed_bytes(log: ReplayLog) -> None:
    call = log.call("call-finished")
    rows = log.sql("select name, json from payloads where record = 1 order by position").fetchall()
    assert {name: text.encode() for name, text in rows} == call.records[0].payloads
    rows = log.sql(
        "select sequence, leaf, leaf_hash from records where call_id = ?", params=["call-finished"]
    )
    assert [(s, leaf.encode(), h) for s, leaf, h in rows.order("sequence").fetchall()] == [
        (record.sequence, record.leaf, record.leaf_hash) for record in call.records
    ]


@pytest.mark.parametrize("view", VIEWS)
def test_every_column_is_documented_and_named_as_said(log: ReplayLog, view: str) -> None:
    assert tuple(log.sql(f"from {view}").columns) == VIEWS[view].columns
    comments = dict(
        log.sql(
            "select column_name, comment from duckdb_columns() where table_name = ?"
            " and schema_name = 'main' and database_name = 'memory'",
            params=[view],
        ).fetchall()
    )
    assert comments == {column: COMMENTS[view, column] for column in VIEWS[view].columns}
    assert all(comments.values())


def test_any_duckdb_client_reads_the_published_file(filled: ReplayLog, path: Path) -> None:
    filled.refresh()
    with duckdb.connect(str(path / "audit.duckdb"), read_only=True) as client:
        assert client.execute("select count(*) from calls").fetchall() == [(5,)]
        for view in VIEWS:
            own = filled.sql(f"select * from {view} order by all").fetchall()
            assert client.execute(f"select * from {view} order by all").fetchall() == own
    with duckdb.connect() as client:
        client.execute(f"attach '{path / 'audit.duckdb'}' as log (read_only)")
        assert client.execute("select count(*) from log.tokens").fetchall() == [(5,)]


def test_a_query_always_sees_the_newest_call(journal: JournalLog) -> None:
    log = ReplayLog(journal.path)
    for number in range(4):
        journal.append(making.call(f"call-{number}", "x", ["y"]))
        count = "select count(*), count(distinct call_id) from calls"
        assert log.sql(count).fetchall() == [(number + 1, number + 1)]
        if number % 2:
            ingest(log.path)


def test_a_long_tail_is_ingested_first(journal: JournalLog, path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr("isonomy.replay.reading.TAIL_LIMIT", 3)
    journal.append(making.call("a", "x", ["y"]))
    log = ReplayLog(path)
    log.sql("select 1")
    assert not (path / "audit.duckdb").exists()
    journal.append(making.call("b", "x", ["y"]))
    assert log.sql("select count(*) from calls").fetchall() == [(2,)]
    assert (path / "audit.duckdb").exists()


def test_floats_and_texts_come_through_bit_for_bit(journal: JournalLog) -> None:
    numbers = [-0.0, math.inf, -math.inf, 1e-45, struct.unpack("<f", b"\x01\x00\x80\x3f")[0]]
    texts = ["\x00", "'\"\\", "\u202e", "日本", "\U0001f44d"]
    event = making.generated(texts)
    trace = TokenTrace(
        ids=(0, 2**31, 2**53 + 1, -1, 2**63 - 1),
        texts=tuple(texts),
        logprobs=struct.pack("<5f", *numbers),
        digests=bytes(range(160)),
        chain=bytes(32),
    )
    event = msgspec.structs.replace(
        event, sequence=0, generation=msgspec.structs.replace(event.generation, tokens=trace)
    )
    intent = making.intent("a", "\x00 [bold]", events=(event,))
    journal.append([intent])
    log = ReplayLog(journal.path)
    for _ in range(2):
        rows = log.sql("select token_id, text, logprob from tokens order by step").fetchall()
        assert [row[0] for row in rows] == list(trace.ids)
        assert [row[1] for row in rows] == texts
        assert struct.pack("<5f", *(row[2] for row in rows)) == trace.logprobs
        assert log.sql("select input_text from calls").fetchall() == [("\x00 [bold]",)]
        assert log.verify().findings == ()
        ingest(log.path)


def test_content_of_an_unknown_shape_is_kept_and_leaves_columns_empty(journal: JournalLog) -> None:
    """As a later version, or another writer, may have left it."""
    intent = making.intent("a", "x")
    bodies = {"events": b"[]", "request": b'{"messages":"all"}', "message/0": b"\xff\xfe"}
    record = msgspec.structs.replace(intent.record, events=())
    payloads = tuple(Payload(p.name, bodies.get(p.name, p.body), p.shared) for p in intent.payloads)
    journal.append([Entry(record, payloads)])
    log = ReplayLog(journal.path)
    for _ in range(2):
        assert log.sql("select call_id, input_text from calls").fetchall() == [("a", None)]
        names = log.sql("select name from payloads where json is null").fetchall()
        assert names == [("message/0",)]
        assert log.verify().findings == ()
        ingest(log.path)
    assert log.call("a").records[0].payloads["message/0"] == b"\xff\xfe"
    assert header_of(making.every_event()[0]).type == "judged"


# What a query may not do.


@pytest.mark.parametrize(
    "query",
    [
        "",
        ";",
        "selec",
        "select 1; select 2",
        "select 1 from calls; drop view calls",
        "insert into stored.records values (1)",
        "update tail.results set verdict = 'allow'",
        "delete from calls",
        "with x as (insert into tail.damaged values (1, 'a', 'b') returning 1) select * from x",
        "select * from (with x as (delete from tail.results returning 1) select * from x)",
        "create table t (a int)",
        "create macro f() as 1",
        "drop view calls",
        "attach '/tmp/x.db'",
        "detach audit",
        "use audit",
        "copy (select 1) to '/tmp/isonomy-leak'",
        "copy calls to '/tmp/isonomy-leak'",
        "export database '/tmp/isonomy-leak'",
        "install httpfs",
        "load httpfs",
        "set enable_external_access = true",
        "reset lock_configuration",
        "pragma enable_profiling",
        "call enable_logging()",
        "from enable_logging('QueryLog', storage='file', storage_config={'path': '/tmp/leak'})",
        "explain analyze select 1",
        "prepare p as select 1",
        "checkpoint",
        "vacuum",
        "select * from read_text('/etc/passwd')",
        "select * from read_csv('/etc/passwd')",
        "select * from \"read_blob\"('/etc/passwd')",
        "select * from read_duckdb('/etc/passwd')",
        "select (select content from read_text('/etc/passwd'))",
        "select * from calls where call_id in (select content from read_text('/etc/passwd'))",
        "select * from '/etc/passwd'",
        "select * from '/etc/passwd.csv'",
        "from glob('/etc/*')",
        "from query('select * from read_text(''/etc/passwd'')')",
        "from json_execute_serialized_sql('{}')",
        "from arrow_scan(1, 2, 3)",
        "from python_map_function(1, 2)",
        "from which_secret('s3://x', 's3')",
        "from duckdb_secrets()",
        "select * from local_variable",
        "select getenv('HOME')",
        "select write_log('x')",
        "pivot calls on verdict",
        "select \x00 1",
        "select no_such_column from calls",
    ],
)
def test_a_query_that_is_not_one_harmless_select(filled: ReplayLog, query: str) -> None:
    local_variable = [1]  # DuckDB would read it from the caller's frame.
    assert local_variable
    with pytest.raises((QueryRefused, QueryFailed)) as raised:
        filled.sql(query).fetchall()
    assert raised.value.query == query
    assert raised.value.path == filled.path
    assert not Path("/tmp/isonomy-leak").exists()


@pytest.mark.parametrize("query", ["select nothing from calls", "select 1 +", "selct 1"])
def test_a_select_that_is_wrong_has_failed(filled: ReplayLog, query: str) -> None:
    with pytest.raises(QueryFailed, match=r"^the query failed: ") as raised:
        filled.sql(query)
    assert raised.value.query == query


@pytest.mark.parametrize("query", ["select " + "1+" * 900 + "1", "select \udcff", "", " -- x"])
def test_a_query_that_cannot_be_checked_is_refused(filled: ReplayLog, query: str) -> None:
    with pytest.raises(QueryRefused, match="refused: it is"):
        filled.sql(query)


def test_times_with_a_zone_come_in_utc(filled: ReplayLog) -> None:
    """Without the package pytz, whatever the machine's own zone, nested or not."""
    noon = "timestamptz '2026-01-02 14:00:00+02'"
    query = f'select {noon} as a, [{noon}] as a, {{\'x\': {noon}}} as s, 1 as "q""uoted"'
    relation = filled.sql(query)
    twelve = datetime(2026, 1, 2, 12)
    assert relation.columns == ["a", "a", "s", 'q"uoted']
    assert relation.fetchall() == [(twelve, [twelve], {"x": twelve}, 1)]
    ordered = filled.sql("select now() t, range r from range(3000) order by r desc").fetchall()
    assert [row[1] for row in ordered] == list(range(2999, -1, -1))


def test_the_configuration_is_locked_behind_the_parser_too(filled: ReplayLog) -> None:
    """The second fence, should the first one ever let something through."""
    filled.refresh()
    source, rows, contents = filled._source()
    with source.connection as connection:
        source.add_tail(rows, contents, documented=False)
        for statement in (
            "SET enable_external_access = true",
            "SET lock_configuration = false",
            "ATTACH '/tmp/isonomy-leak.db'",
            "COPY (SELECT 1) TO '/tmp/isonomy-leak'",
            "SELECT * FROM read_text('/etc/passwd')",
            "INSERT INTO audit.stored.damaged VALUES (1, 'x', 'y')",
            "INSTALL httpfs",
            "LOAD httpfs",
        ):
            with pytest.raises(duckdb.Error):
                connection.execute(statement).fetchall()


@pytest.mark.parametrize(
    "query",
    [
        "values (1)",
        "from calls",
        "table calls",
        "show tables",
        "describe calls",
        "summarize calls",
        "with c as (select * from calls) select count(*) from c",
        "with recursive t as (select 1 as a union all select a + 1 from t where a < 3) from t",
        "select * from calls union all by name select * from calls",
        "select e.key from events, json_each(content) e",
        "select unnest(range(3))",
        "select 1 -- a comment; with a semicolon",
        "select 'it''s; fine';",
    ],
)
def test_selects_of_every_form_are_answered(filled: ReplayLog, query: str) -> None:
    assert filled.sql(query).fetchall()


def test_parameters_by_place_and_by_name(filled: ReplayLog) -> None:
    one = filled.sql("select call_id from calls where verdict = ?", params=["block"]).fetchall()
    two = filled.sql(
        "select call_id from calls where verdict = $v", params={"v": "block"}
    ).fetchall()
    assert one == two == [("call-blocked",)]


def test_reading_leaves_no_files(filled: ReplayLog, path: Path, tmp_path: Path) -> None:
    before = sorted(path.iterdir())
    working = tmp_path / "working"
    working.mkdir()
    there = Path.cwd()
    os.chdir(working)
    try:
        filled.sql("select * from tokens order by all").fetchall()
        filled.verify()
    finally:
        os.chdir(there)
    assert sorted(path.iterdir()) == before
    assert list(working.iterdir()) == []


# Ingestion.


def test_ingestion_is_idempotent_and_takes_only_what_is_new(filled: ReplayLog, path: Path) -> None:
    first = filled.refresh()
    assert (first.records, first.last, first.rebuilt) == (8, 8, True)
    assert (filled.refresh().records, filled.refresh().rows) == (0, 0)
    with open_log(path) as journal:
        journal.append(making.call("later", "hello", ["z"]))
    assert filled.refresh().records == 2
    assert filled.verify().audited == 10
    assert filled.verify().findings == ()


def test_ingestion_moves_the_write_ahead_log_and_completes_the_leaves(
    filled: ReplayLog, path: Path
) -> None:
    os.truncate(path / "leaves", 3 * 32)
    filled.refresh()
    wal = path / "journal.sqlite-wal"
    data = wal.read_bytes()
    wal.unlink()  # Nothing is lost with it: all is in the database.
    assert filled.verify().findings == ()
    wal.write_bytes(data)
    assert (path / "leaves").stat().st_size == 8 * 32
    assert filled.verify().findings == ()


def test_an_ingestion_holds_no_more_in_memory_than_it_must(
    filled: ReplayLog, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Large records make small batches, and long tails short ones."""
    from isonomy.replay import ingest as ingesting

    def batches() -> list[int]:
        with filled._journal() as journal:
            assert ingesting.waiting(journal, 6)[0] == 2
            assert ingesting.waiting(journal, 0)[1] > ingesting.waiting(journal, 6)[1] > 0
            return [len(batch) for batch in ingesting._batches(journal, 0)]

    assert batches() == [8]
    monkeypatch.setattr(ingesting, "BATCH_BYTES", 1)
    assert batches()[:3] == [1, 1, 1]
    ingest(path)
    assert filled.verify().findings == ()


def test_a_large_tail_is_ingested_first(
    filled: ReplayLog, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled.sql("select 1")
    assert not (path / "audit.duckdb").exists()
    monkeypatch.setattr("isonomy.replay.reading.TAIL_BYTES", 1000)
    filled.sql("select 1")
    assert (path / "audit.duckdb").exists()


@pytest.mark.parametrize("shared", [True, False])
def test_the_published_file_is_copied_by_the_kernel_or_by_hand(
    filled: ReplayLog, path: Path, monkeypatch: pytest.MonkeyPatch, shared: bool
) -> None:
    ingest(path)
    if not shared:
        real, asked = os.copy_file_range, []

        def once(source: int, target: int, count: int) -> int:
            asked.append(count)
            if len(asked) > 1:
                raise OSError(18, "Invalid cross-device link")
            return real(source, target, 4096)

        monkeypatch.setattr(os, "copy_file_range", once)
    with open_log(path) as journal:
        journal.append(making.call("later", "hello", ["z"]))
    assert ingest(path).records == 2
    assert filled.verify().findings == ()


def alter(path: Path, statement: str) -> None:
    (path / "audit.duckdb").chmod(0o600)
    with duckdb.connect(str(path / "audit.duckdb")) as connection:
        connection.execute(statement)


@pytest.mark.parametrize("name", ["schema", "log", None])
def test_a_published_file_that_is_no_base_to_build_on(
    filled: ReplayLog, path: Path, name: str | None
) -> None:
    """Of another version: built anew. Damage stays as evidence until a rebuild is asked for."""
    ingest(path)
    if name is None:
        (path / "audit.duckdb").chmod(0o600)
        (path / "audit.duckdb").write_bytes(os.urandom(20_000))
    else:
        alter(path, f"UPDATE stored.state SET value = 'x' WHERE name = '{name}'")
    if name != "schema":
        before = (path / "audit.duckdb").read_bytes()
        with pytest.raises(DamagedLog, match="rebuild"):
            ingest(path)
        assert (path / "audit.duckdb").read_bytes() == before
        assert not filled.verify().intact
    assert ingest(path, rebuild=name != "schema").rebuilt
    assert filled.verify().findings == ()


@pytest.mark.parametrize("rebuild", [False, True])
def test_a_working_file_is_never_taken_up(filled: ReplayLog, path: Path, rebuild: bool) -> None:
    """Whoever left it: rows forged in it must not be published."""
    ingest(path)
    assert not (path / "ingest.duckdb").exists()
    forged = path / "ingest.duckdb"
    forged.write_bytes((path / "audit.duckdb").read_bytes())
    with duckdb.connect(str(forged)) as connection:
        connection.execute("UPDATE stored.results SET verdict = 'allow'")
    (path / "ingest.duckdb.wal").write_bytes(b"forged")
    with open_log(path) as journal:
        journal.append(making.call("later", "hello", ["z"]))
    ingest(path, rebuild=rebuild)
    assert filled.sql("select count(*) from calls where verdict = 'block'").fetchall() == [(1,)]
    assert filled.verify().findings == ()
    assert {file.name for file in path.glob("*.duckdb*")} == {"audit.duckdb"}


def test_rows_forged_before_an_ingestion_are_found_after_it(filled: ReplayLog, path: Path) -> None:
    ingest(path)
    alter(path, "UPDATE stored.results SET verdict = 'allow'")
    with open_log(path) as journal:
        journal.append(making.call("later", "hello", ["z"]))
    assert ingest(path).records == 2
    assert {finding.file for finding in filled.verify().findings} == {"audit.duckdb"}


def test_an_ingestion_that_fails_leaves_no_file(
    filled: ReplayLog, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from isonomy.replay import ingest as ingesting

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ingesting, "_publish", full)
    with pytest.raises(LogUnwritable, match="No space left"):
        ingest(path)
    assert list(path.glob("*.duckdb*")) == []


def test_a_published_file_of_another_version_is_passed_over(filled: ReplayLog, path: Path) -> None:
    ingest(path)
    (path / "audit.duckdb").chmod(0o600)
    with duckdb.connect(str(path / "audit.duckdb")) as connection:
        connection.execute("UPDATE stored.state SET value = '0' WHERE name = 'schema'")
    assert filled.sql("select count(*) from calls").fetchall() == [(5,)]
    assert "another version" in filled.verify().findings[0].problem


def test_readers_keep_what_they_have_open_while_a_new_file_is_published(
    filled: ReplayLog, path: Path
) -> None:
    ingest(path)
    with duckdb.connect(str(path / "audit.duckdb"), read_only=True) as reader:
        with open_log(path) as journal:
            journal.append(making.call("later", "hello", ["z"]))
        assert filled.refresh().records == 2
        assert reader.execute("select count(*) from calls").fetchall() == [(5,)]
    assert filled.sql("select count(*) from audit.calls").fetchall() == [(6,)]


def test_ingestions_at_the_same_time_take_turns(filled: ReplayLog, path: Path) -> None:
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "isonomy.replay.ingest", str(path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    taken = []
    for process in running:
        output, errors = process.communicate()
        assert process.returncode == 0, errors
        taken.append(msgspec.json.decode(output)["records"])
    assert sorted(taken) == [0, 0, 8]
    assert filled.verify().findings == ()


def test_an_ingestion_that_fails_says_why(tmp_path: Path) -> None:
    from isonomy.replay.ingest import main, refresh

    with pytest.raises(LogError, match="no log at"):
        refresh(tmp_path / "nothing")
    assert main([]) == 2
    assert main([str(tmp_path / "nothing")]) == 1
