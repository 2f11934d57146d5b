"""What is erased is found, decoded, in every store before, and in none afterwards, nor raw."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import msgspec
import pytest
from click.testing import CliRunner
from tests.replay import golden, making

from isonomy.replay import (
    JournalLog,
    NoSuchCall,
    ReplayLog,
    database,
    erase,
    erasing,
    open_log,
    packing,
)
from isonomy.replay import ingest as ingestion
from isonomy.replay.checkpoints import open_checkpoint, take
from isonomy.replay.ingest import ingest
from isonomy.replay.notes import PrivateKey
from isonomy.replay.proofs import SCRIPT
from isonomy.sdk import InputError, LogError
from isonomy.sdk.cli.explain import explain_command
from isonomy.sdk.cli.log import log_command
from isonomy.sdk.records import Entry, Erased

REFRESH = ingestion.refresh
CANARY = "K4NARY-ZEBRA-7731"


def decoded(path: Path) -> Iterator[tuple[str, bytes]]:
    """Every value of every table of the journal and of the DuckDB log."""
    with sqlite3.connect(path / "journal.sqlite") as journal:
        for sequence, leaf, stored in journal.execute(
            "select sequence, leaf, payloads from records"
        ):
            yield f"record {sequence}", leaf
            for _, body in packing.unpacked(stored) or ():
                if isinstance(body, bytes):
                    yield "payloads", body
        for (body,) in journal.execute("select body from contents"):
            yield "contents", body
    journal.close()
    if (path / "audit.duckdb").exists():
        with duckdb.connect(str(path / "audit.duckdb"), read_only=True) as audit:
            for (table,) in audit.execute(
                "select table_name from duckdb_tables() where schema_name = 'stored'"
            ).fetchall():
                for row in audit.execute(f"from stored.{table}").fetchall():
                    yield f"audit {table}", repr(row).encode()


def stores_with(path: Path, text: str) -> set[str]:
    return {store for store, value in decoded(path) if text.encode() in value}


def files_with(path: Path, text: str) -> set[str]:
    """Names of files whose bytes hold it, at whatever place; or a copy cut by a page."""
    pieces = [text.encode(), text[:9].encode(), text[8:].encode()]
    return {
        file.name
        for file in path.rglob("*")
        if file.is_file() and any(piece in file.read_bytes() for piece in pieces)
    }


@pytest.fixture(autouse=True)
def ingested_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """An ingestion in this process instead of one of its own: the same, sooner."""
    monkeypatch.setattr(ingestion, "refresh", lambda path, **_: ingest(path))


@pytest.fixture
def log(path: Path) -> Path:
    """Canaries in three calls of one subject and in one of another, among much else."""
    with JournalLog(path) as journal:
        for number in range(6):
            journal.append(making.call(f"other-{number}", f"hello {number}", ["x" * 900]))
        for number in range(3):
            journal.append(making.call(f"call-{number}", CANARY, [CANARY], session="ada"))
        journal.append(making.call("call-long", CANARY * 700, [CANARY * 900], session="ada"))
        ingest(path)
        journal.append(making.call("eve-1", "K4NARY of another", ["fine"], session="eve"))
    return path


def erase_ada(log: Path) -> erasing.Erasure:
    return erase(log, subject="ada", by="office-1", reason="request 17")


def test_a_subject_is_erased_from_every_store(log: Path) -> None:
    assert stores_with(log, CANARY) >= {"payloads", "contents", "audit intents", "audit contents"}
    assert "journal.sqlite" in files_with(log, CANARY)
    with ReplayLog(log) as opened:
        root = opened.verify()
    assert root.findings == ()
    key = PrivateKey.generate("example.com/log")
    checked = open_checkpoint(take(log, [key]), [key.key])
    leaves = (log / "leaves").read_bytes()

    done = erase_ada(log)

    assert stores_with(log, CANARY) == set()
    assert files_with(log, CANARY) == set()
    assert stores_with(log, "K4NARY of another") >= {"contents", "audit intents"}
    assert {each.sequence for each in done.erased} == set(range(13, 21))
    assert done.kept == ()
    assert (log / "leaves").read_bytes()[: len(leaves)] == leaves
    with sqlite3.connect(log / "journal.sqlite") as journal:
        assert journal.execute(
            "select count(*) from subjects where subject = 'ada'"
        ).fetchone() == (0,)
    journal.close()
    with ReplayLog(log) as opened:
        report = opened.verify(checkpoints=[checked])
        assert report.findings == ()
        assert report.proven == checked.checkpoint.size
        assert not any("did not come to its end" in note for note in report.notes)
        call = opened.call("call-1")
        assert call.damage == ()
        assert call.records[0].erased == ("message/0", "request", "events")
        assert call.policy is not None  # everyone's
        replayed = opened.replay("call-1")
        assert (replayed.status, "was erased" in str(replayed.reason)) == ("refused", True)
        rows = opened.sql(
            "select what, target, erased_by, reason, done from tombstones order by record"
        ).fetchall()
        told = ("subject", "ada", "office-1", "request 17")
        assert rows == [(*told, False), (*told, True)]
        assert opened.sql(
            "select count(*) filter (erased), count(json) from payloads where call_id = 'call-1'"
        ).fetchall() == [(5, 1)]
        assert opened.sql(
            "select verdict, input_text, output_text from calls where call_id = 'call-1'"
        ).fetchall() == [("replace", None, None)]
        # What an event came to stays: it stands in the record.
        assert opened.sql(
            "select check_id, verdict, content from events where call_id = 'call-1' limit 1"
        ).fetchall() == [("secrets", "allow", None)]
        assert not any(c.call_id.startswith("tombstone") for c in opened.calls())


def test_a_call_is_erased_apart_from_what_others_hold(log: Path) -> None:
    with JournalLog(log) as journal:
        journal.append(making.call("call-own", "only here: Q0WNED-PARROT-1", ["a"], session="ada"))
    done = erase(log, call="call-1", by="office-1", reason="request 18")
    assert [each.payloads for each in done.kept] == [("message/0",)]
    own = erase(log, call="call-own", by="office-1", reason="request 19")
    assert own.kept == ()
    assert files_with(log, "Q0WNED-PARROT-1") == set()
    with ReplayLog(log) as opened:
        assert opened.verify().findings == ()
        assert opened.call("call-0").damage == ()
        assert opened.call("call-0").messages[0].text == CANARY
        assert opened.call("call-1").messages[0].text == CANARY
        assert opened.call("call-1").output is None
        assert opened.call("call-own").messages == {}
    # With the last that holds it, it goes.
    erase_ada(log)
    assert files_with(log, CANARY) == set()
    with ReplayLog(log) as opened:
        assert opened.verify().findings == ()


def test_snapshots_are_renewed(log: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with ReplayLog(log) as opened:
        file = opened.snapshot(tmp_path / "out" / "all.duckdb")
    counted = (
        "select count(*) from calls",
        f"select count(*) from calls where input_text = '{CANARY}'",
    )

    def found() -> list[Any]:
        with duckdb.connect(str(file), read_only=True) as taken:
            return [taken.execute(query).fetchone() for query in counted]

    assert found() == [(11,), (3,)]
    erase_ada(log)
    assert found() == [(11,), (0,)]
    assert files_with(tmp_path / "out", CANARY) == set()


def test_what_is_erased_already_stays_so(log: Path) -> None:
    done = erase_ada(log)
    assert erase_ada(log) == done
    with JournalLog(log) as journal:
        journal.append(making.call("call-later", CANARY, [CANARY], session="ada"))
    again = erase_ada(log)
    assert {each.sequence for each in again.erased} > {each.sequence for each in done.erased}
    assert files_with(log, CANARY) == set()
    with ReplayLog(log) as opened:
        assert opened.verify().findings == ()


@pytest.mark.parametrize("version", golden.FOLDERS)
def test_logs_of_every_version_can_be_erased_from(path: Path, version: int) -> None:
    shutil.copytree(golden.FOLDERS[version], path)
    erase(path, call="golden-2", by="office-1", reason="request 17")
    with ReplayLog(path) as opened:
        assert opened.verify().findings == ()
        assert all(record.erased for record in opened.call("golden-2").records)
        assert opened.call("golden-1").output is not None


def test_only_what_a_tombstone_names_may_be_missing(log: Path) -> None:
    erase(log, call="call-2", by="office-1", reason="request 17")
    with sqlite3.connect(log / "journal.sqlite") as journal:
        (stored,) = journal.execute("select payloads from records where sequence = 1").fetchone()
        kept = packing.unpacked(stored)
        assert kept is not None
        journal.execute(
            "update records set payloads = ? where sequence = 1",
            (packing.packed([*kept[:-1], packing.ERASED]),),
        )
        journal.execute("delete from contents where id = 2")
    journal.close()
    with ReplayLog(log) as opened:
        findings = [f for f in opened.verify().findings if f.file == "journal.sqlite"]
    assert {f.sequence for f in findings} == {1}
    told = "; ".join(f.problem for f in findings)
    assert "payload events was removed, and no tombstone says so" in told
    assert "payload message/0: its content is missing" in told


def test_a_tombstone_does_not_speak_of_what_comes_later(path: Path) -> None:
    with JournalLog(path) as journal:
        journal.append([making.tombstone(done=True)])
        entry = making.tombstone().record
        ahead = msgspec.structs.replace(
            entry, call_id="tombstone-2", erased=(Erased(3, ("text",)),)
        )
        journal.append([Entry(ahead)])
        journal.append(making.call("call", "hello", ["x"]))
    with sqlite3.connect(path / "journal.sqlite") as journal_file:
        journal_file.execute(
            "update records set payloads = ? where sequence = 3",
            (packing.packed([packing.ERASED] * 4),),
        )
    journal_file.close()
    with ReplayLog(path) as opened:
        assert any("no tombstone says so" in f.problem for f in opened.verify().findings)


def test_content_that_came_back_is_found(log: Path) -> None:
    journal = sqlite3.connect(log / "journal.sqlite")
    (stored,) = journal.execute("select payloads from records where sequence = 14").fetchone()
    journal.close()
    erase_ada(log)
    with sqlite3.connect(log / "journal.sqlite") as journal:
        journal.execute("update records set payloads = ? where sequence = 14", (stored,))
    journal.close()
    with ReplayLog(log) as opened:
        told = {f.problem for f in opened.verify().findings if f.sequence == 14}
    assert "payload output is there, and a tombstone says that it was erased" in told


STEPS = ("_drop_published", "_take_out", "_rewrite", "_renew")


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
@pytest.mark.parametrize("step", STEPS)
def test_a_crash_at_any_step_leaves_nothing_false(
    log: Path, step: str, before: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = getattr(erasing, step)

    def crash(*arguments: Any) -> Any:
        if not before:
            original(*arguments)
        os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if not child:
        try:
            setattr(erasing, step, crash)
            ingestion.refresh = REFRESH  # DuckDB must not be used on both sides of a fork
            erase_ada(log)
        finally:
            os._exit(1)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    with ReplayLog(log) as opened:
        report = opened.verify()
        assert report.findings == ()
        assert any("did not come to its end" in note for note in report.notes)
        assert opened.sql("select count(*) from calls where session = 'ada'").fetchall() == [(4,)]
    done = erase_ada(log)
    assert done.erased[0].payloads == ("message/0", "request", "events")
    assert stores_with(log, CANARY) == set()
    assert files_with(log, CANARY) == set()
    with ReplayLog(log) as opened:
        report = opened.verify()
        assert report.findings == ()
        assert not any("did not come to its end" in note for note in report.notes)


def test_writers_go_on_meanwhile(log: Path) -> None:
    stop = threading.Event()
    written: list[int] = []

    def write() -> None:
        with open_log(log, background=False) as journal:
            while not stop.wait(0.005):
                name = f"busy-{len(written)}"
                written.extend(journal.append(making.call(name, CANARY[:7], ["b"], session="eve")))

    writer = threading.Thread(target=write)
    writer.start()
    try:
        erase_ada(log)
    finally:
        stop.set()
        writer.join()
    assert len(written) > 2
    assert files_with(log, CANARY) == set()
    with ReplayLog(log) as opened:
        assert opened.verify().findings == ()


def test_a_reader_that_holds_on_keeps_it_from_ending(
    log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(erasing, "_PATIENCE", 0.1)
    with JournalLog(log) as journal:
        journal.append(making.call("newest", "hello", ["x"]))
        reader = sqlite3.connect(log / "journal.sqlite", isolation_level=None)
        reader.execute("begin")
        reader.execute("select count(*) from records").fetchone()
        real = database.connect
        monkeypatch.setattr(
            database, "connect", lambda *a, **k: real(*a, **{**k, "busy_seconds": 0.1})
        )
        with pytest.raises(LogError, match="readers of the log"):
            erase_ada(log)
        reader.close()
        erase_ada(log)
    assert files_with(log, CANARY) == set()


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"by": "a", "reason": "b"}, InputError),
        ({"call": "x", "subject": "y", "by": "a", "reason": "b"}, InputError),
        ({"call": "call-1", "by": " ", "reason": "b"}, InputError),
        ({"call": "call-1", "by": "a", "reason": ""}, InputError),
        ({"call": "call-", "by": "a", "reason": "b"}, NoSuchCall),
        ({"subject": "nobody", "by": "a", "reason": "b"}, NoSuchCall),
    ],
)
def test_what_can_not_be_erased_is_refused(
    log: Path, arguments: dict[str, str], error: type[Exception]
) -> None:
    erasing_it: Callable[..., Any] = erase
    with pytest.raises(error):
        erasing_it(log, **arguments)
    assert "payloads" in stores_with(log, CANARY)


def test_the_command_and_its_certificate(log: Path, tmp_path: Path) -> None:
    key = PrivateKey.generate("example.com/log")
    key.write(tmp_path / "key")
    certificate = tmp_path / "certificate.json"
    said = CliRunner().invoke(
        log_command,
        [
            *("erase", "--log", str(log), "--subject", "ada", "--by", "office-1"),
            *("--reason", "request 17", "--certificate", str(certificate)),
            *("--sign-with", str(tmp_path / "key")),
        ],
        catch_exceptions=False,
    )
    assert said.exit_code == 0, said.output
    assert "20 payloads of 8 records are erased" in said.output
    told = json.loads(certificate.read_text())
    assert told["erasure"]["target"] == "ada"
    assert CANARY not in certificate.read_text()
    checked = subprocess.run(
        [sys.executable, str(SCRIPT), str(certificate), str(key.key)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
    explained = CliRunner().invoke(explain_command, ["call-1", "--log", str(log)])
    assert explained.exit_code == 0, explained.output
    assert "erased   record 15: message/0, request, events" in explained.output
    assert f"record {told['erasure']['tombstone']}, tombstone" in checked.stdout
