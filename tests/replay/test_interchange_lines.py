"""Calls as JSON Lines: out of a log and into another, to the byte; what is damaged is told."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.replay import making

from isonomy.replay import ReplayLog, open_log, replay_call
from isonomy.replay.errors import NoSuchCall, QueryFailed
from isonomy.replay.hashing import leaf_hash
from isonomy.replay.interchange import lines as lines_module
from isonomy.replay.interchange import selecting
from isonomy.replay.interchange.calls import CallSummary, export_calls
from isonomy.replay.interchange.errors import UnusableFile
from isonomy.replay.interchange.jsonl import CallLine, Origin, export_lines, import_lines
from isonomy.replay.interchange.lines import data_of
from isonomy.replay.interchange.selecting import Selection
from isonomy.sdk import Guard
from isonomy.sdk.canonical import canonical
from isonomy.sdk.errors import LogError
from isonomy.sdk.records import Entry, Payload


def refuse(call_id: str, problem: str) -> None:
    raise AssertionError(f"{call_id}: {problem}")


def exported(log: ReplayLog, **selection: Any) -> list[bytes]:
    return list(export_lines(log, Selection(**selection), damaged=refuse))


def ids(lines: list[bytes]) -> list[str]:
    return [json.loads(line)["call_id"] for line in lines]


def written(folder: Path, lines: list[bytes], name: str = "calls.jsonl") -> Path:
    file = folder / name
    file.write_bytes(b"".join(line + b"\n" for line in lines))
    return file


def contents(log: ReplayLog) -> dict[str, list[tuple[str, dict[str, bytes]]]]:
    """By call: the kind of each record and its payloads, but for where it comes from."""
    return {
        call.call_id: [
            (
                str(stored.record.__struct_config__.tag if stored.record else ""),
                {n: b for n, b in stored.payloads.items() if not n.startswith("origin/")},
            )
            for stored in call.records
        ]
        for call in log.calls()
    }


def test_a_log_comes_back_to_the_byte(filled: ReplayLog, tmp_path: Path) -> None:
    file = written(tmp_path, exported(filled))
    done = import_lines([file], tmp_path / "copy")
    copy = ReplayLog(tmp_path / "copy")
    assert (done.calls, done.skipped) == (5, ())
    assert contents(copy) == contents(filled)
    assert copy.verify().findings == ()
    assert copy.log_id != filled.log_id
    for call in filled.calls():
        again = copy.call(call.call_id)
        for old, new in zip(call.records, again.records, strict=True):
            origin = new.decode("origin/0", Origin)
            assert origin is not None
            assert (origin.log, origin.sequence) == (filled.log_id, old.sequence)
            assert (origin.leaf.encode(), origin.leaf_hash) == (old.leaf, old.leaf_hash)
            assert set(origin.salts) == set(old.payloads)
        if again.intent is not None:
            assert again.intent.tags["imported_from"] == filled.log_id
            assert call.intent is not None
            assert msgspec.structs.replace(again.intent, tags=call.intent.tags) == call.intent
    assert copy.sql("select count(*) from calls where tags like '%imported_from%'").fetchall() == [
        (4,)
    ]


GOLDEN = sorted(
    path for path in (Path(__file__).parent / "golden").iterdir() if (path / "leaves").exists()
)


@pytest.mark.parametrize("golden", GOLDEN, ids=lambda path: path.name)
def test_logs_of_every_version_come_back(golden: Path, tmp_path: Path) -> None:
    shutil.copytree(golden, tmp_path / "log")
    log = ReplayLog(tmp_path / "log")
    import_lines([written(tmp_path, exported(log))], tmp_path / "copy")
    copy = ReplayLog(tmp_path / "copy")
    assert copy.verify().findings == ()
    found = contents(log)
    assert contents(copy) == {call_id: found[call_id] for call_id in ids(exported(log))}


def test_an_import_of_an_import_keeps_both_origins(filled: ReplayLog, tmp_path: Path) -> None:
    import_lines([written(tmp_path, exported(filled))], tmp_path / "one")
    one = ReplayLog(tmp_path / "one")
    import_lines([written(tmp_path, exported(one), "again.jsonl")], tmp_path / "two")
    two = ReplayLog(tmp_path / "two")
    record = two.call("call-finished").records[0]
    logs = [record.decode(f"origin/{number}", Origin) for number in (0, 1)]
    assert [origin and origin.log for origin in logs] == [filled.log_id, one.log_id]
    assert contents(two) == contents(filled)
    assert two.verify().findings == ()


def test_what_was_erased_stays_erased(tmp_path: Path) -> None:
    with Guard(lambda messages: "hi", [], tmp_path / "log") as guard:
        guard.chat("my name is Ada")
    (line,) = exported(ReplayLog(tmp_path / "log"))
    told = json.loads(line)
    for payload in told["records"][0]["payloads"]:
        if payload["name"] == "message/0":
            payload.update(salt=None, text=None)
    import_lines([written(tmp_path, [json.dumps(told).encode()])], tmp_path / "copy")
    copy = ReplayLog(tmp_path / "copy")
    (call,) = copy.calls()
    assert (call.messages, call.damage) == ({}, ())
    assert copy.verify().findings == ()
    refused = replay_call(call)
    assert refused.status == "refused"
    assert "message 0 of the call is not in its record" in refused.sentence()
    (light,) = export_calls(copy, damaged=refuse)
    assert msgspec.json.decode(light, type=CallSummary).messages is None


bodies = st.one_of(
    st.text().map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.binary(max_size=200),
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers(-(2**63), 2**63)
        | st.text(st.characters(codec="utf-8")),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.text(st.characters(codec="utf-8")), inner, max_size=3)
        ),
        max_leaves=8,
    ).map(canonical),
)
names = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12).filter(
    lambda name: not name.startswith(("origin/", "message/")) and name != "events"
)


@settings(
    max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(
        st.tuples(
            st.lists(st.tuples(names, bodies), unique_by=lambda pair: pair[0], max_size=4),
            st.text(st.characters(codec="utf-8"), max_size=20),
            st.booleans(),
        ),
        min_size=1,
        max_size=4,
    )
)
def test_any_call_comes_back(
    tmp_path_factory: pytest.TempPathFactory,
    calls: list[tuple[list[tuple[str, bytes]], str, bool]],
) -> None:
    """Payloads of any bytes: JSON or none, UTF-8 or none, escapes, lone surrogates as bytes."""
    folder = tmp_path_factory.mktemp("any")
    with open_log(folder / "a") as log:
        for number, (payloads, text, shared) in enumerate(calls):
            intent = making.intent(f"call-{number}", text or "x", session=f"s-{number % 2}")
            more = tuple(Payload(name, body, shared=shared) for name, body in payloads)
            known = {payload.name for payload in intent.payloads}
            more = tuple(payload for payload in more if payload.name not in known)
            log.append([Entry(intent.record, (*intent.payloads, *more))])
    first = ReplayLog(folder / "a")
    lines = exported(first)
    assert all(b"\n" not in line and b"\r" not in line for line in lines)
    rewritten = [json.dumps(json.loads(line), indent=None).encode() for line in lines]
    import_lines([written(folder, rewritten)], folder / "b")
    second = ReplayLog(folder / "b")
    assert contents(second) == contents(first)
    assert second.verify().findings == ()


# What is chosen


def test_selections(filled: ReplayLog) -> None:
    everything = ids(exported(filled))
    assert everything == [
        "call-finished",
        "call-blocked",
        "call-remote",
        "call-opened",
        "call-intended",
    ]
    assert ids(exported(filled, verdict="block")) == ["call-blocked"]
    assert ids(exported(filled, subject="session-2")) == ["call-blocked"]
    assert ids(exported(filled, calls=("call-fin", "call-opened"))) == [
        "call-finished",
        "call-opened",
    ]
    assert ids(exported(filled, where="status = 'unfinished' -- a comment")) == everything[3:]
    at = datetime.fromtimestamp(making.START // 10**9, UTC)
    assert ids(exported(filled, since=at)) == everything
    assert ids(exported(filled, until=at)) == []
    assert ids(exported(filled, since=at.replace(tzinfo=None), verdict="allow")) == []


@pytest.mark.parametrize(
    ("selection", "error"),
    [
        ({"where": "nonsense = 1"}, QueryFailed),
        ({"where": "read_text('/etc/passwd') is null"}, LogError),
        ({"where": "true); drop table calls; select (1"}, QueryFailed),
        ({"calls": ("nowhere",)}, NoSuchCall),
    ],
)
def test_what_can_not_be_chosen(
    filled: ReplayLog, selection: dict[str, Any], error: type[LogError]
) -> None:
    with pytest.raises(error):
        exported(filled, **selection)


def test_pages_are_one_list(filled: ReplayLog, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = ids(exported(filled))
    monkeypatch.setattr(selecting, "PAGE", 2)
    assert ids(exported(filled)) == whole


def test_damaged_calls_are_named_and_left_out(filled: ReplayLog, path: Path) -> None:
    import sqlite3

    with sqlite3.connect(path / "journal.sqlite") as journal:
        journal.execute("UPDATE records SET leaf = leaf || ' ' WHERE call_id = 'call-opened'")
        journal.execute("UPDATE records SET leaf = leaf || ' ' WHERE sequence = 2")
    journal.close()
    told: dict[str, str] = {}
    lines = list(export_lines(filled, damaged=told.__setitem__))
    assert sorted(told) == ["call-finished", "call-opened"]
    assert told["call-finished"].startswith("record 2: ")
    assert ids(lines) == ["call-blocked", "call-remote", "call-intended"]


# What is refused


Spoil = Callable[[dict[str, Any]], None]


def _put(call: dict[str, Any], value: Any, *place: Any) -> None:
    for name in place[:-1]:
        call = call[name]
    call[place[-1]] = value


SPOILED: dict[str, tuple[Spoil, str]] = {
    "text": (lambda c: _put(c, '"other"', "records", 0, "payloads", 1, "text"), "commitment"),
    "salt": (lambda c: _put(c, "00" * 32, "records", 0, "payloads", 1, "salt"), "commitment"),
    "short salt": (lambda c: _put(c, "00", "records", 0, "payloads", 1, "salt"), "commitment"),
    "no salt": (lambda c: _put(c, None, "records", 0, "payloads", 1, "salt"), "commitment"),
    "both": (lambda c: _put(c, "", "records", 0, "payloads", 1, "base64"), "either"),
    "leaf": (lambda c: c["records"][0].update(leaf=c["records"][0]["leaf"] + " "), "leaf hash"),
    "leaf hash": (lambda c: _put(c, "00" * 32, "records", 0, "leaf_hash"), "leaf hash"),
    "a payload less": (lambda c: c["records"][0]["payloads"].pop(), "not those of its leaf"),
    "order": (lambda c: c["records"].reverse(), "out of order"),
    "no records": (lambda c: c.update(records=[]), "no records"),
    "another call": (lambda c: c.update(call_id="call-x"), "another call"),
    "another format": (lambda c: c.update(format="isonomy call 2"), "isonomy call 1"),
    "unknown field": (lambda c: c.update(more=1), "more"),
    "a type": (lambda c: c.update(log=5), "log"),
}


@pytest.mark.parametrize("spoiled", SPOILED)
def test_damaged_lines_are_refused_by_number(
    filled: ReplayLog, tmp_path: Path, spoiled: str
) -> None:
    spoil, says = SPOILED[spoiled]
    lines = exported(filled)
    call = json.loads(lines[1])
    spoil(call)
    file = written(tmp_path, [lines[0], b"", json.dumps(call).encode(), lines[2]])
    with pytest.raises(UnusableFile, match=re.escape(says)) as refused:
        import_lines([file], tmp_path / "copy")
    assert (refused.value.file, refused.value.place) == (str(file), "line 3")
    assert [entry.name for entry in tmp_path.iterdir() if "copy" in entry.name] == []
    done = import_lines([file], tmp_path / "copy", skip_bad=True)
    assert [(each.file, each.place) for each in done.skipped] == [(str(file), "line 3")]
    assert sorted(contents(ReplayLog(tmp_path / "copy"))) == ["call-finished", "call-remote"]


@pytest.mark.parametrize("kind", ["gap", "tombstone"])
def test_what_a_log_says_of_itself_comes_from_no_other(tmp_path: Path, kind: str) -> None:
    """A tombstone from elsewhere would have verification accept what is missing."""
    told: dict[str, Any] = {"kind": kind, "call_id": f"{kind}-1", "session": "s", "subject": "s"}
    told |= {"wall_ns": 1, "monotonic_ns": 1, "host": "h", "process": 1, "reason": "r"}
    if kind == "gap":
        told |= {"since_ns": 1, "until_ns": 2, "entries": 1, "calls": 1, "lost": {}, "unnamed": 0}
    else:
        told |= {"what": "call", "target": "call-1", "by": "x", "done": True, "erased": []}
    leaf = canonical({"payloads": [], "record": told})
    record = {"sequence": 1, "leaf": leaf.decode(), "leaf_hash": leaf_hash(leaf).hex()}
    line = {"format": "isonomy call 1", "log": "x", "call_id": f"{kind}-1", "records": [record]}
    with pytest.raises(UnusableFile, match=r"no record of a call|can't be read"):
        import_lines([written(tmp_path, [json.dumps(line).encode()])], tmp_path / "copy")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b"{", "no JSON"),
        (b"[1]", "isonomy call 1"),
        (b'"\xff"', "UTF-8"),
        (b'{"format": "isonomy call 1", "format": "isonomy call 1"}', "twice"),
        (b'{"format": "isonomy call 1", "log": "\\ud800"}', "surrogate"),
        (b'{"format": NaN}', "NaN"),
        (b"[" * 100_000, "nested|JSON"),
        (b"1" * 6000, "it"),
    ],
)
def test_hostile_lines(tmp_path: Path, line: bytes, says: str) -> None:
    with pytest.raises(UnusableFile, match=says):
        import_lines([written(tmp_path, [line])], tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_a_line_without_end_does_not_fill_the_memory(
    filled: ReplayLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines_module, "LONGEST", 100_000)
    lines = exported(filled)
    file = written(tmp_path, [lines[0], b"x" * 3_000_000, lines[1]])
    done = import_lines([file], tmp_path / "copy", skip_bad=True)
    assert done.calls == 2
    assert [each.place for each in done.skipped] == ["line 2"]
    assert "longer than 100000 bytes" in done.skipped[0].problem


def test_a_call_comes_once(filled: ReplayLog, tmp_path: Path) -> None:
    file = written(tmp_path, exported(filled))
    with pytest.raises(UnusableFile, match="was there already"):
        import_lines([file, file], tmp_path / "copy")


def test_nothing_is_written_over(filled: ReplayLog, tmp_path: Path) -> None:
    file = written(tmp_path, exported(filled))
    with pytest.raises(LogError, match="there already"):
        import_lines([file], filled.path)
    (tmp_path / "empty").mkdir()
    assert import_lines([file], tmp_path / "empty").calls == 5
    with pytest.raises(UnusableFile, match="can't be read"):
        import_lines([tmp_path / "nowhere"], tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_killed_import_leaves_no_log(filled: ReplayLog, tmp_path: Path) -> None:
    file = written(tmp_path, exported(filled))
    program = (
        "import os, sys; from isonomy.replay.interchange import jsonl, newlog\n"
        "newlog._BATCH_ENTRIES = 1\n"
        "count = []\n"
        "def killed(calls): count.append(calls); len(count) == 3 and os.kill(os.getpid(), 9)\n"
        "jsonl.import_lines([sys.argv[1]], sys.argv[2], progress=killed)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, file, tmp_path / "copy"], check=False)
    assert done.returncode == -9
    assert not (tmp_path / "copy").exists()
    assert import_lines([file], tmp_path / "copy").calls == 5


# For notebooks


def test_the_light_form(filled: ReplayLog) -> None:
    found = [
        msgspec.json.decode(line, type=CallSummary) for line in export_calls(filled, damaged=refuse)
    ]
    assert [call.call_id for call in found] == ids(exported(filled))
    finished = found[0]
    assert finished.messages is not None
    assert [(m.role, m.text, m.parts) for m in finished.messages] == [("user", "hello", ())]
    assert finished.output_text == "[email]"
    assert (finished.verdict, finished.status, finished.model) == ("replace", "complete", "demo")
    assert finished.duration_ms == 123.456789
    assert [(d.check, d.verdict) for d in finished.decisions] == [
        ("secrets", "allow"),
        ("privacy", "replace"),
    ]
    assert [(a.text, a.input_tokens, a.output_tokens) for a in finished.answers] == [("ab", 12, 2)]
    assert (found[3].status, found[3].operation, found[3].messages) == ("unfinished", None, None)
    assert any(d.shadow for d in found[4].decisions)


@pytest.mark.parametrize("kind", [CallLine, CallSummary])
def test_the_schema_says_every_field(kind: Any) -> None:
    schema = msgspec.json.schema(kind)
    for name, defined in schema["$defs"].items():
        if name in ("CallLine", "RecordLine", "PayloadLine", "CallSummary", "Said", "Decision"):
            for field in defined["properties"]:
                assert re.search(rf"\b{field}: ", defined["description"]), (name, field)


# Size


MEASURED = """
import resource, sys
from tests.replay import making
from isonomy.replay import open_log, ReplayLog
from isonomy.replay.interchange.jsonl import export_lines, import_lines
from isonomy.sdk.records import Entry, Payload
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
folder, calls, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
with open_log(folder + "/log") as log:
    for number in range(calls):
        intent = making.intent(f"call-{number}", "hello")
        body = b'"' + bytes([97 + number % 26]) * size + b'"'
        log.append([Entry(intent.record, (*intent.payloads, Payload("large", body)))])
    del body
before = peak()
with open(folder + "/calls.jsonl", "wb") as file:
    for line in export_lines(ReplayLog(folder + "/log"), damaged=print):
        file.write(line + b"\\n")
exported = peak()
done = import_lines([folder + "/calls.jsonl"], folder + "/copy")
assert done.calls == calls, done
for number in (0, calls - 1):
    old, new = (ReplayLog(folder + f"/{n}").call(f"call-{number}").records[0].payloads["large"]
                for n in ("log", "copy"))
    assert old == new and len(new) == size + 2
print(before, exported, peak())
"""


def _measured(folder: Path, calls: int, size: int) -> list[int]:
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, folder, str(calls), str(size)],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr
    return [int(number) for number in done.stdout.split()]


def test_memory_is_that_of_a_call_not_of_a_log(tmp_path: Path) -> None:
    """Thirty calls of 1 MB, of which only a few are held."""
    before, exported, imported = _measured(tmp_path, 30, 1_000_000)
    assert exported - before < 75
    assert imported - before < 90


def test_a_payload_of_50_mb(tmp_path: Path) -> None:
    before, exported, imported = _measured(tmp_path, 1, 50_000_000)
    assert exported - before < 300
    assert imported - before < 500


def test_json_that_could_be_read_in_two_ways() -> None:
    assert data_of(b'{"a": [1, "\\u00e9", "\\ud83d\\ude00"]}') == {"a": [1, "é", "😀"]}
    assert data_of(b'{"a": NaN}', constants=True) == {"a": None}
    for wrong in (
        b'{"a": 1, "a": 1}',
        b'{"a": {"b": 1, "b": 2}}',
        b'["\\udc00"]',
        b'{"\\ud800": 1}',
    ):
        with pytest.raises(ValueError, match=r"twice|surrogate"):
            data_of(wrong)
