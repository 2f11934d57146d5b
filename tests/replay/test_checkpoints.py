"""Checkpoints and proof bundles: what they show, and that nothing else passes for one."""

from __future__ import annotations

import ast
import base64
import hashlib
import json
import os
import shutil
import sqlite3
import stat
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import msgspec
import pytest
from tests.replay import making

from isonomy.replay import ReplayLog, checkpoints, open_log, proofs
from isonomy.replay.checkpoints import Checkpoint
from isonomy.replay.errors import DamagedLog, NoSuchCall
from isonomy.replay.notes import Command, Key, PrivateKey, opened, signed
from isonomy.sdk import InputError

SEED = bytes(range(32))


@pytest.fixture
def key() -> PrivateKey:
    return PrivateKey("example.com/log", SEED)


@pytest.fixture
def log(path: Path) -> Path:
    with open_log(path) as journal:
        for number in range(5):
            journal.append(making.call(f"call-{number}", f"question {number}", ["answer"]))
    return path


# Notes and keys.


def test_a_key_is_what_its_form_says(key: PrivateKey) -> None:
    """Derived here from the form itself: name, id, base64 of the algorithm's byte and the key."""
    name, key_id, encoded = str(key.key).split("+", 2)
    data = base64.b64decode(encoded)
    assert (name, data[0]) == ("example.com/log", 1)
    assert key_id == hashlib.sha256(b"example.com/log\n" + data).hexdigest()[:8]
    assert Key.parse(str(key.key) + "\n") == key.key
    # RFC 8032 derives this public key from the seed 000102...1f.
    assert data[1:].hex() == "03a107bff3ce10be1d70dd18e74bc09967e4d6309ba50d5f1ddc8664125531b8"


def test_a_note_is_what_its_form_says(key: PrivateKey) -> None:
    other = PrivateKey.generate("witness.example")
    note = signed("first\nsecond\n", [key, other])
    lines = note.split("\n")
    assert lines[:3] == ["first", "second", ""]
    assert lines[3].startswith("— example.com/log ")
    assert base64.b64decode(lines[3].split(" ")[2])[:4] == key.key.id
    assert lines[5:] == [""]
    assert opened(note, [key.key, other.key]) == ("first\nsecond\n", (key.key, other.key))
    assert opened(note, [other.key]) == ("first\nsecond\n", (other.key,))
    assert opened(note, []) == ("first\nsecond\n", ())


def test_an_altered_note_is_refused(key: PrivateKey) -> None:
    note = signed("size 12\n", [key])
    for altered in (note.replace("12", "13"), "x\n" + note):
        with pytest.raises(InputError, match="does not fit the note"):
            opened(altered, [key.key])
    for no_note in ("", "text\n", "text\n\nno signature\n", "x" * (1 << 21)):
        with pytest.raises(InputError, match="no signed note"):
            opened(no_note, [key.key])


def test_key_files_are_for_their_owner_only(key: PrivateKey, tmp_path: Path) -> None:
    file = tmp_path / "key"
    key.write(file)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert PrivateKey.read(file).key == key.key
    with pytest.raises(InputError, match="Name a new file"):
        key.write(file)
    file.chmod(0o644)
    with pytest.raises(InputError, match=r"mode 0644.*chmod 600"):
        PrivateKey.read(file)


@pytest.mark.parametrize("text", ["", "x", "PRIVATE+KEY+a+00000000+AAAA", "a+b+c"])
def test_what_is_no_key_is_refused_without_showing_it(tmp_path: Path, text: str) -> None:
    file = tmp_path / "key"
    file.write_text(text)
    file.chmod(0o600)
    with pytest.raises(InputError, match="holds no signing key"):
        PrivateKey.read(file)
    with pytest.raises(InputError, match="no public key"):
        Key.parse(text)
    with pytest.raises(InputError, match="can't be read"):
        PrivateKey.read(tmp_path / "none")


@pytest.mark.parametrize("name", ["", "two words", "a+b", "line\nbreak"])
def test_names_that_would_break_the_form(name: str) -> None:
    with pytest.raises(InputError, match="can't name a key"):
        PrivateKey(name, SEED)


def test_a_command_signs(key: PrivateKey, tmp_path: Path) -> None:
    key.write(tmp_path / "key")
    script = (
        "import sys; from isonomy.replay.notes import *; "
        f"sys.stdout.write(signed(sys.stdin.read(), [PrivateKey.read({str(tmp_path / 'key')!r})]))"
    )
    note = signed("text\n", [Command([sys.executable, "-c", script], key.key)])
    assert opened(note, [key.key]) == ("text\n", (key.key,))
    for arguments, said in (
        (["false"], "printed no signature"),
        (["/no/such/command"], "FileNotFoundError"),
    ):
        with pytest.raises(InputError, match=said):
            Command(arguments, key.key).sign("text\n")


# Checkpoints.


def test_a_checkpoint_names_log_size_and_root(log: Path, key: PrivateKey) -> None:
    note = checkpoints.take(log, [key])
    with closing(sqlite3.connect(log / "journal.sqlite")) as journal:
        hashes = [h for (h,) in journal.execute("SELECT leaf_hash FROM records ORDER BY sequence")]
        (log_id,) = journal.execute("SELECT value FROM meta WHERE name = 'log'").fetchone()
    level = hashes
    while len(level) > 1:
        pairs = [level[at : at + 2] for at in range(0, len(level), 2)]
        level = [hashlib.sha256(b"\x01" + p[0] + p[1]).digest() if p[1:] else p[0] for p in pairs]
    root = base64.b64encode(level[0]).decode()
    assert note.split("\n\n")[0] == f"isonomy/{log_id}\n10\n{root}"
    checked = checkpoints.open_checkpoint(note, [key.key])
    assert checked.signers == ("example.com/log",)
    assert Checkpoint.parse(checked.checkpoint.text()) == checked.checkpoint


def test_a_growing_log_keeps_its_checkpoints(log: Path, key: PrivateKey) -> None:
    given = [checkpoints.open_checkpoint(checkpoints.take(log, [key]), [key.key])]
    with open_log(log) as journal:
        journal.append(making.call("later", "x", ["y"]))
    given.append(checkpoints.open_checkpoint(checkpoints.take(log, [key]), [key.key]))
    with ReplayLog(log) as reader:
        report = reader.verify(checkpoints=given[:1])
        assert (report.findings, report.proven, report.records) == ((), 10, 12)
        assert any("Up to record 10" in note for note in report.notes)
        report = reader.verify(checkpoints=given)
        assert (report.findings, report.proven) == ((), 12)
        assert not any("unproven: no checkpoint" in note for note in report.notes)


REWRITTEN = (
    "UPDATE records SET leaf = CAST(replace(leaf, 'call-4', 'call-X') AS BLOB),"
    " call_id = 'call-X' WHERE call_id = 'call-4'"
)


def rewrite(log: Path, *statements: str) -> None:
    """Alter a log as somebody would who covers the traces: hashes and leaves fit again."""
    with closing(sqlite3.connect(log / "journal.sqlite", isolation_level=None)) as journal:
        journal.create_function("leafhash", 1, lambda b: hashlib.sha256(b"\x00" + b).digest())
        for statement in statements:
            journal.execute(statement)
        journal.execute("UPDATE records SET leaf_hash = leafhash(leaf)")
        journal.execute("DELETE FROM contents WHERE subject <> 0 AND id > 99")
        hashes = journal.execute("SELECT leaf_hash FROM records ORDER BY sequence").fetchall()
    (log / "leaves").write_bytes(b"".join(h for (h,) in hashes))


def test_a_log_that_was_rewritten_as_a_whole_shows(log: Path, key: PrivateKey) -> None:
    given = [checkpoints.open_checkpoint(checkpoints.take(log, [key]), [key.key])]
    rewrite(log, REWRITTEN)
    with ReplayLog(log) as reader:
        assert reader.verify().findings == ()  # from inside nothing can be seen
        report = reader.verify(checkpoints=given)
    assert report.proven == 0
    assert [f.problem for f in report.findings] == [
        "its first 10 records are not those that example.com/log signed: one or more were altered,"
        " added, removed or swapped"
    ]


def test_a_log_that_was_cut_short_shows(log: Path, key: PrivateKey) -> None:
    early = checkpoints.open_checkpoint(checkpoints.take(log, [key]), [key.key])
    with open_log(log) as journal:
        journal.append([making.opening("later")])
    late = checkpoints.open_checkpoint(checkpoints.take(log, [key]), [key.key])
    rewrite(log, "DELETE FROM records WHERE sequence = 11")
    with ReplayLog(log) as reader:
        assert reader.verify().findings == ()
        report = reader.verify(checkpoints=[early, late])
    assert report.proven == 10
    assert [f.problem for f in report.findings] == [
        "its end was cut off: example.com/log signed 11 records, and it holds 10"
    ]


def test_another_logs_checkpoint_says_nothing_good(
    log: Path, tmp_path: Path, key: PrivateKey
) -> None:
    with open_log(tmp_path / "other") as journal:
        journal.append([making.opening("x")])
    given = checkpoints.open_checkpoint(checkpoints.take(tmp_path / "other", [key]), [key.key])
    with ReplayLog(log) as reader:
        report = reader.verify(checkpoints=[given])
    assert ["another log" in f.problem for f in report.findings] == [True]


def test_a_damaged_log_is_not_signed(log: Path, key: PrivateKey) -> None:
    with closing(sqlite3.connect(log / "journal.sqlite", isolation_level=None)) as journal:
        journal.execute("DELETE FROM records WHERE sequence = 3")
    with pytest.raises(DamagedLog, match="lacks records"):
        checkpoints.take(log, [key])
    with pytest.raises(InputError, match="at least one signing key"):
        checkpoints.take(log, [])


def test_untrusted_signatures_are_none(log: Path, key: PrivateKey) -> None:
    note = checkpoints.take(log, [key])
    with pytest.raises(InputError, match="no trusted key signed"):
        checkpoints.open_checkpoint(note, [PrivateKey.generate("other").key])
    same_name = PrivateKey.generate("example.com/log")
    with pytest.raises(InputError, match="no trusted key signed"):
        checkpoints.open_checkpoint(note, [same_name.key])


@pytest.mark.parametrize("text", ["", "a\n1\n", "a\n-1\nAAAA\n", "a\n01\n" + "A" * 43 + "=\n"])
def test_what_is_no_checkpoint(text: str, key: PrivateKey) -> None:
    with pytest.raises(InputError, match="no checkpoint"):
        Checkpoint.parse(text)


def test_where_checkpoints_go(log: Path, tmp_path: Path, key: PrivateKey) -> None:
    note = checkpoints.take(log, [key])
    folder = tmp_path / "kept"
    folder.mkdir()
    assert checkpoints.keep(note, folder).name == "00000000000000000010.checkpoint"
    assert checkpoints.keep(note, tmp_path / "one").read_text() == note
    assert [text for _, text in checkpoints.read_notes([folder, tmp_path / "one"])] == [note, note]
    checkpoints.hand_over(note, ["sh", "-c", f"cat > {tmp_path / 'taken'}"])
    assert (tmp_path / "taken").read_text() == note
    with pytest.raises(InputError, match="exit status 3"):
        checkpoints.hand_over(note, ["sh", "-c", "exit 3"])
    with pytest.raises(InputError, match="can't be written"):
        checkpoints.keep(note, tmp_path / "no" / "where")
    with pytest.raises(InputError, match="holds no file"):
        checkpoints.read_notes([log])


# Proof bundles, checked by the script that stands alone.


def script(bundle: Path, *keys: str, folder: Path) -> subprocess.CompletedProcess[str]:
    alone = folder / "verify_proof.py"
    shutil.copy(proofs.SCRIPT, alone)
    # -I: neither this folder nor the environment's paths, -S would hide cryptography.
    return subprocess.run(
        [sys.executable, "-I", alone, bundle, *keys],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": os.environ["PATH"]},
    )


@pytest.mark.parametrize("payloads", [True, False])
def test_a_bundle_is_proven_by_the_script(
    log: Path, tmp_path: Path, key: PrivateKey, payloads: bool
) -> None:
    bundle = proofs.prove(log, "call-2", signers=[key], payloads=payloads)
    file = tmp_path / "bundle.json"
    file.write_bytes(msgspec.json.encode(bundle))
    done = script(file, str(key.key), folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == "PROVEN: call call-2"
    assert "record 5, intent; payloads: " + ("policy" if payloads else "none") in done.stdout
    told = b"question 2" in base64.b64decode(
        "".join(p.body for r in bundle.records for p in r.payloads if p.name == "message/0") or ""
    )
    assert told == payloads


def test_the_script_imports_nothing_of_ours() -> None:
    names = []
    for found in ast.walk(ast.parse(proofs.SCRIPT.read_text())):
        if isinstance(found, ast.Import):
            names += [alias.name for alias in found.names]
        elif isinstance(found, ast.ImportFrom):
            names.append(str(found.module))
    assert {name.partition(".")[0] for name in names} == {
        "base64", "cryptography", "hashlib", "json", "sys", "typing",
    }  # fmt: skip


ALTERATIONS = {
    "a leaf": (lambda b: b["records"][0].update(leaf=flip(b["records"][0]["leaf"])), "tree"),
    "a place": (lambda b: b["records"][0].update(sequence=6), "not in the tree"),
    "a proof": (
        lambda b: b["records"][0]["proof"].__setitem__(0, flip(b["records"][0]["proof"][0])),
        "not in the tree",
    ),
    "a payload": (
        lambda b: b["records"][0]["payloads"][1].update(
            body=flip(b["records"][0]["payloads"][1]["body"])
        ),
        "does not fit its record",
    ),
    "a salt": (
        lambda b: b["records"][0]["payloads"][1].update(
            salt=flip(b["records"][0]["payloads"][1]["salt"])
        ),
        "does not fit its record",
    ),
    "the call": (lambda b: b.update(call_id="call-3"), "of another call"),
    "the checkpoint": (
        lambda b: b.update(checkpoint=b["checkpoint"].replace("\n10\n", "\n11\n")),
        "signature",
    ),
    "a doubled record": (lambda b: b["records"].append(b["records"][0]), "twice"),
    "no record": (lambda b: b["records"].clear(), "no record"),
}


def flip(text: str) -> str:
    data = bytearray(base64.b64decode(text))
    data[-1] ^= 1
    return base64.b64encode(data).decode()


@pytest.mark.parametrize("what", ALTERATIONS)
def test_an_altered_bundle_is_not_proven(
    log: Path, tmp_path: Path, key: PrivateKey, what: str
) -> None:
    alter, said = ALTERATIONS[what]
    bundle = json.loads(msgspec.json.encode(proofs.prove(log, "call-2", signers=[key])))
    alter(bundle)
    file = tmp_path / "bundle.json"
    file.write_text(json.dumps(bundle))
    done = script(file, str(key.key), folder=tmp_path)
    assert done.returncode == 1
    assert done.stdout.startswith("NOT PROVEN: ")
    assert said in done.stdout


def test_another_key_does_not_prove(log: Path, tmp_path: Path, key: PrivateKey) -> None:
    file = tmp_path / "bundle.json"
    file.write_bytes(msgspec.json.encode(proofs.prove(log, "call-2", signers=[key])))
    done = script(file, str(PrivateKey.generate("example.com/log").key), folder=tmp_path)
    assert (done.returncode, "none of the given keys" in done.stdout) == (1, True)
    for arguments in ((tmp_path / "none", str(key.key)), (file, "x")):
        done = script(*arguments, folder=tmp_path)  # type: ignore[arg-type]
        assert (done.returncode, done.stdout) == (2, "")


def test_what_can_not_be_proven(log: Path, key: PrivateKey) -> None:
    with pytest.raises(NoSuchCall):
        proofs.prove(log, "none", signers=[key])
    with closing(sqlite3.connect(log / "journal.sqlite", isolation_level=None)) as journal:
        journal.execute("UPDATE records SET payloads = NULL WHERE sequence = 5")
    with pytest.raises(InputError, match="record 5 is damaged"):
        proofs.prove(log, "call-2", signers=[key])
