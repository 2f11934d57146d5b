"""The scheme, against hashlib alone, and against the log that is checked in."""

from __future__ import annotations

import hashlib
import hmac
import json
import shutil
import sqlite3
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.replay import golden, making

from isonomy.replay import ReplayLog, open_log, packing
from isonomy.replay.hashing import (
    SHARED_SALT,
    Commitment,
    address,
    commitment,
    leaf_bytes,
    leaf_hash,
)
from isonomy.replay.ingest import ingest
from isonomy.sdk import LogError

LEAF = b'{"payloads":[{"commitment":"sha256:00","name":"events"}],"record":{"a":1}}'


def test_leaf_bytes_are_canonical_json_of_record_and_commitments() -> None:
    assert leaf_bytes({"a": 1}, [Commitment("sha256:00", "events")]) == LEAF


def test_leaf_hash_vectors() -> None:
    # RFC 6962: the hash of an empty leaf is SHA-256 of one zero byte.
    empty = "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d"
    assert leaf_hash(b"").hex() == empty
    assert leaf_hash(LEAF) == hashlib.sha256(b"\x00" + LEAF).digest()


def test_commitment_vectors() -> None:
    salt = bytes(range(32))
    body = b'{"text":"hi"}'
    assert commitment(salt, body) == (
        "sha256:ca6990fa3cd33603d68ce9ceb6d7009f1cd8804e1758b419bdafc486ba0e0a46"
    )
    assert commitment(SHARED_SALT, b"") == (
        "sha256:" + hashlib.sha256(b"\x02" + bytes(32)).hexdigest()
    )


@pytest.mark.parametrize("size", [0, 31, 33])
def test_a_salt_of_another_length_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        commitment(bytes(size), b"x")


@given(st.binary(min_size=32, max_size=32), st.binary(max_size=200))
def test_commitment_and_address_follow_their_formulas(salt: bytes, body: bytes) -> None:
    expected = "sha256:" + hashlib.sha256(b"\x02" + salt + body).hexdigest()
    assert commitment(salt, body) == expected
    assert address(salt, body) == hmac.new(salt, body, hashlib.sha256).digest()


@pytest.fixture(params=golden.FOLDERS)
def stored_golden(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    # A copy: opening a journal puts files of SQLite's beside it.
    return Path(shutil.copytree(golden.FOLDERS[request.param], tmp_path / "golden"))


def test_a_golden_log_verifies(stored_golden: Path) -> None:
    report = ReplayLog(stored_golden).verify()
    assert report.findings == ()
    assert report.records in (6, 12)


def test_the_newest_golden_log_is_written_the_same_today(path: Path, tmp_path: Path) -> None:
    stored = Path(shutil.copytree(golden.NEWEST, tmp_path / "golden"))
    assert golden.write(path) == list(range(1, 13))
    for table in ("records", "contents", "subjects", "meta"):
        assert rows(path, table) == rows(stored, table)
    assert (path / "leaves").read_bytes() == (stored / "leaves").read_bytes()


def everything(log: ReplayLog) -> tuple[object, ...]:
    """All that can be read from a log: its calls as stored, its rows."""
    calls = [log.call(call.call_id) for call in log.calls()]
    return calls, log.sql("from payloads").fetchall(), log.sql("from events").fetchall()


def test_a_log_of_version_1_becomes_one_of_version_2_when_it_is_written_to(tmp_path: Path) -> None:
    path = Path(shutil.copytree(golden.FOLDERS[1], tmp_path / "golden"))
    with ReplayLog(path) as log:
        before = everything(log)
        ingest(path)
    with open_log(path) as journal:
        with ReplayLog(path) as log:
            assert everything(log) == before
            assert log.verify().findings == ()
        assert journal.append([making.opening("later")]) == [7]
    with ReplayLog(path) as log:
        report = log.verify()
        assert (report.findings, report.records, report.audited) == ((), 7, 6)
    # What stands in the file is what a new one would have, table by table.
    with open_log(tmp_path / "new"):
        pass
    definitions = "SELECT type, name, tbl_name, sql FROM sqlite_schema ORDER BY name"
    assert ask(path, definitions) == ask(tmp_path / "new", definitions)


def test_a_migration_that_fails_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(shutil.copytree(golden.FOLDERS[1], tmp_path / "golden"))

    def broken(pairs: str) -> bytes:
        raise ValueError(pairs)

    monkeypatch.setattr("isonomy.replay.packing.packed_text", broken)
    with pytest.raises(LogError):
        open_log(path)
    monkeypatch.undo()
    assert ask(path, "PRAGMA user_version") == [(1,)]
    with open_log(path) as journal:
        assert journal.append([making.opening("later")]) == [7]


def test_every_hash_of_the_golden_log_follows_from_its_bytes(stored_golden: Path) -> None:
    """An independent derivation: sqlite3, json and hashlib, nothing of ours."""
    keys = {row: (name, key) for row, name, key in rows(stored_golden, "subjects")}
    contents = {row: rest for row, *rest in rows(stored_golden, "contents")}
    records = rows(stored_golden, "records")
    if len(records[0]) == 5:
        links = {(seq, position): rest for seq, position, *rest in rows(stored_golden, "payloads")}
    else:
        links = {
            (sequence, position): (kept, salt)
            for sequence, *_, stored in records
            for position, (salt, kept) in enumerate(msgspec.msgpack.decode(stored))
        }
    shared = 0
    for sequence, call_id, kind, leaf, stored_hash, *_ in records:
        assert stored_hash == hashlib.sha256(b"\x00" + leaf).digest()
        content = json.loads(leaf)
        assert list(content) == ["payloads", "record"]
        assert (content["record"]["call_id"], content["record"]["kind"]) == (call_id, kind)
        for position, payload in enumerate(content["payloads"]):
            row, salt = links.pop((sequence, position))
            if isinstance(row, bytes):
                digest = hashlib.sha256(b"\x02" + salt + row).hexdigest()
                assert payload["commitment"] == "sha256:" + digest
                assert salt != bytes(32)
                continue
            subject, place, body = contents[row]
            digest = hashlib.sha256(b"\x02" + salt + body).hexdigest()
            assert payload["commitment"] == "sha256:" + digest
            name, key = keys[subject]
            assert place == hmac.new(key, body, hashlib.sha256).digest()
            assert name == (None if payload["name"] == "policy" else content["record"]["subject"])
            if name is None:
                assert salt == key == bytes(32)
                shared += 1
            else:
                assert bytes(32) not in (salt, key)
    assert not links
    assert shared == sum(kind == "intent" for _, _, kind, *_ in records)


def test_equal_bodies_are_stored_once_within_a_subject_and_unrelated_across(path: Path) -> None:
    with open_log(path) as log:
        for session in ("one", "two"):
            for number in range(3):
                log.append([making.intent(f"{session}-{number}", "same words", session=session)])
    contents = rows(path, "contents")
    policy = [row for row in contents if row[3] == making.POLICY]
    assert [row[1] for row in policy] == [0]
    # The message: once for each of the two subjects.
    assert len(contents) == 1 + 2
    assert len({bytes(row[2]) for row in contents}) == len(contents)
    kept = [pair for *_, stored in rows(path, "records") for pair in packing.unpacked(stored) or ()]
    salts = [salt for salt, _ in kept if salt != bytes(32)]
    assert len(set(salts)) == len(salts) == 6 * 3
    leaves = [json.loads(row[3]) for row in rows(path, "records")]
    commitments = {p["commitment"] for leaf in leaves for p in leaf["payloads"][1:]}
    assert len(commitments) == 6 * 3
    assert not any(bytes(row[2]).hex() in str(leaves) for row in contents)


def rows(path: Path, table: str) -> list[tuple]:  # type: ignore[type-arg]
    return ask(path, f"SELECT * FROM {table} ORDER BY 1, 2")


def ask(path: Path, question: str) -> list[tuple]:  # type: ignore[type-arg]
    connection = sqlite3.connect(path / "journal.sqlite")
    try:
        return connection.execute(question).fetchall()
    finally:
        connection.close()
