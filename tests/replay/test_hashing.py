"""The scheme, against hashlib alone, and against the log that is checked in."""

from __future__ import annotations

import hashlib
import hmac
import json
import shutil
import sqlite3
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.replay import golden, making

from isonomy.replay import ReplayLog, open_log
from isonomy.replay.hashing import (
    SHARED_SALT,
    Commitment,
    address,
    commitment,
    leaf_bytes,
    leaf_hash,
)

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


@pytest.fixture
def stored_golden(tmp_path: Path) -> Path:
    # A copy: opening a journal puts files of SQLite's beside it.
    return Path(shutil.copytree(golden.FOLDER, tmp_path / "golden"))


def test_the_golden_log_verifies(stored_golden: Path) -> None:
    report = ReplayLog(stored_golden).verify()
    assert report.findings == ()
    assert report.records == 6


def test_the_golden_log_is_written_the_same_today(stored_golden: Path, path: Path) -> None:
    assert golden.write(path) == [1, 2, 3, 4, 5, 6]
    for table in ("records", "payloads", "contents", "subjects", "meta"):
        assert rows(path, table) == rows(stored_golden, table)
    assert (path / "leaves").read_bytes() == (stored_golden / "leaves").read_bytes()


def test_every_hash_of_the_golden_log_follows_from_its_bytes(stored_golden: Path) -> None:
    """An independent derivation: sqlite3, json and hashlib, nothing of ours."""
    keys = {row: (name, key) for row, name, key in rows(stored_golden, "subjects")}
    contents = {row: rest for row, *rest in rows(stored_golden, "contents")}
    links = {(seq, position): rest for seq, position, *rest in rows(stored_golden, "payloads")}
    shared = 0
    for sequence, call_id, kind, leaf, stored_hash in rows(stored_golden, "records"):
        assert stored_hash == hashlib.sha256(b"\x00" + leaf).digest()
        content = json.loads(leaf)
        assert list(content) == ["payloads", "record"]
        assert (content["record"]["call_id"], content["record"]["kind"]) == (call_id, kind)
        for position, payload in enumerate(content["payloads"]):
            row, salt = links.pop((sequence, position))
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
    assert shared == 3


def test_equal_bodies_are_stored_once_within_a_subject_and_unrelated_across(path: Path) -> None:
    with open_log(path) as log:
        for session in ("one", "two"):
            for number in range(3):
                log.append([making.intent(f"{session}-{number}", "same words", session=session)])
    contents = rows(path, "contents")
    links = rows(path, "payloads")
    policy = [row for row in contents if row[3] == making.POLICY]
    assert [row[1] for row in policy] == [0]
    # message, request and events: once for each of the two subjects.
    assert len(contents) == 1 + 2 * 3
    assert len({bytes(row[2]) for row in contents}) == len(contents)
    salts = [row[3] for row in links if row[3] != bytes(32)]
    assert len(set(salts)) == len(salts) == 6 * 3
    leaves = [json.loads(row[3]) for row in rows(path, "records")]
    commitments = {p["commitment"] for leaf in leaves for p in leaf["payloads"][1:]}
    assert len(commitments) == 6 * 3
    assert not any(bytes(row[2]).hex() in str(leaves) for row in contents)


def rows(path: Path, table: str) -> list[tuple]:  # type: ignore[type-arg]
    connection = sqlite3.connect(path / "journal.sqlite")
    try:
        return connection.execute(f"SELECT * FROM {table} ORDER BY 1, 2").fetchall()
    finally:
        connection.close()
