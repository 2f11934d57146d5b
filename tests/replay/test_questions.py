"""Every documented question, asked of a log whose answers are known."""

from __future__ import annotations

import json
import re
import sqlite3
import struct
from contextlib import closing
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import msgspec
import pytest
from click.testing import CliRunner
from tests.replay import making

from isonomy.replay import QueryFailed, ReplayLog, open_log, questions
from isonomy.replay.ingest import ingest
from isonomy.replay.questions import QUESTIONS
from isonomy.sdk import events as ev
from isonomy.sdk.canonical import canonical, digest_of
from isonomy.sdk.cli.inspect import sql_command
from isonomy.sdk.errors import InputError
from isonomy.sdk.records import Entry, Masked, Payload, header_of
from isonomy.sdk.vocabulary import Allow, AskHuman

START = datetime(2023, 11, 14, 22, 13, 20)
DAY = 86_400
OLD = digest_of({"name": "house rules"})
NEW = digest_of({"name": "house rules", "version": 2})


def with_events(entry: Entry, events: tuple[ev.Event, ...], **changes: Any) -> Entry:
    """The entry with other events, and other fields of its record."""
    payloads = tuple(
        Payload("events", canonical(events)) if payload.name == "events" else payload
        for payload in entry.payloads
    )
    headers = tuple(header_of(event) for event in events)
    return Entry(msgspec.structs.replace(entry.record, events=headers, **changes), payloads)


def with_record(entry: Entry, **changes: Any) -> Entry:
    return Entry(msgspec.structs.replace(entry.record, **changes), entry.payloads)


def asking(call_id: str, *, at: int) -> list[Entry]:
    """A call that waits for a person."""
    intent, result = making.call(call_id, "may I?", ["z"], at=at)
    asked = ev.Judged(
        sequence=2,
        stage="post_validate",
        check="privacy",
        target="candidate/0",
        verdict=AskHuman(reason="a person must see this"),
        before=digest_of("z"),
        duration_ns=4_000_000,
    )
    events = (making.generated(["z"]), asked)
    return [intent, with_events(result, events, verdict="ask_human", token="sha256:00")]


def resumed(call_id: str, resumes: str, *, at: int) -> list[Entry]:
    """The call that goes on with it, approved."""
    intent, result = making.call(call_id, "may I?", ["z"], at=at)
    decided = ev.Decided(
        sequence=0,
        stage="post_validate",
        target="candidate/0",
        decision="approve",
        before=digest_of("z"),
        by="grace",
        reason="harmless",
    )
    quiet = ev.Judged(
        sequence=1,
        stage="post_validate",
        check="quiet",
        target="candidate/0",
        verdict=Allow(),
        before=digest_of("z"),
    )
    return [
        with_events(intent, (decided,), operation="resume", resumes=resumes),
        with_events(result, (quiet,), verdict="allow"),
    ]


CALLS: list[list[Entry]] = [
    making.call("one", "hello", ["a", "b"]),
    making.call("two", "hello", ["a", "x"], at=10),
    making.call("blocked", "bye", ["c"], blocked=True, session="session-2", at=DAY),
    making.call("remote", "bye", ["d"], remote=True, at=DAY + 10),
    [making.opening("opened", at=DAY + 20)],
    [making.intent("killed", "tell me", at=DAY + 30), *making.segments("killed", ["hé", "llo"])],
    [making.gap(at=DAY + 40)],
    [making.intent("events", "y", at=DAY + 5, events=making.every_event())],
    asking("asks", at=2 * DAY),
    asking("waits", at=2 * DAY + 1),
    resumed("goes on", "asks", at=2 * DAY + 2),
]
LATE = making.call("late", "hello", ["a"], at=3 * DAY)
LATE[0] = with_record(
    LATE[0],
    policy_digest=NEW,
    actor="bob",
    masked=(Masked("message/0", "/content/0/text"),),
    checks=(
        making.CHECKS[0],
        msgspec.structs.replace(making.CHECKS[1], code="sha256:" + "99" * 32),
    ),
)
LATE[1] = with_record(
    LATE[1],
    error="BackendError",
    stalled={"0": 5},
    first_released_ns=2_000_000,
    duration_ns=9_000_000_000,
)
CALLS.append(LATE)
CALLS.append([making.opening("tampered", at=4 * DAY)])
CALLS.append([making.tombstone(), making.tombstone(done=True)])


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> ReplayLog:
    path = tmp_path_factory.mktemp("questions") / "log"
    with open_log(path, background=False) as journal:
        for number, entries in enumerate(CALLS):
            journal.append(entries)
            if number == 5:
                ingest(path)  # so that answers come from the published file and the tail
    with closing(sqlite3.connect(path / "journal.sqlite", isolation_level=None)) as tampering:
        tampering.execute("UPDATE records SET kind = 'result' WHERE call_id = 'tampered'")
    return ReplayLog(path)


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


ONE, TWO = at(0), at(10)
BLOCKED, REMOTE, OPENED, KILLED, EVENTS = (at(DAY + s) for s in (0, 10, 20, 30, 5))
ASKS, WAITS, GOES_ON, LATER = at(2 * DAY), at(2 * DAY + 1), at(2 * DAY + 2), at(3 * DAY)
CODE, OTHER_CODE, SETTINGS = (f"sha256:{each * 32}" for each in ("22", "99", "11"))
MODEL = "sha256:" + "33" * 32
SEED = 2**64 - 1
STAGES = ["pre_filter", "post_validate"]
RULES = "house rules"
EMAIL = digest_of("[email]")
FULL = 123.456789
F1, F2 = (struct.unpack("<f", struct.pack("<f", x))[0] for x in (-0.1, -0.2))

ANSWERS: dict[str, tuple[dict[str, Any], list[tuple[Any, ...]]]] = {
    "actors": (
        {},
        [("ada", 9, 1, ONE, GOES_ON), ("bob", 1, 0, LATER, LATER), (None, 1, 0, OPENED, OPENED)],
    ),
    "calls_of_actor": (
        {"actor": "bob"},
        [("late", LATER, "chat", "replace", "hello", "[email]")],
    ),
    "calls_by_day": (
        {},
        [
            (date(2023, 11, 14), 2, 0, 0),
            (date(2023, 11, 15), 5, 1, 3),
            (date(2023, 11, 16), 3, 0, 0),
            (date(2023, 11, 17), 1, 0, 0),
        ],
    ),
    "conversation": (
        {"session": "session-2"},
        [("blocked", BLOCKED, "ada", "bye", "I can't say that.", "block")],
    ),
    "hosts": ({}, [("host-a", 4711, 11, 3, ONE, LATER)]),
    "timeline": (
        {"call": "blocked"},
        [
            (5, 0, "judged", "pre_filter", "secrets", "allow", None, None, None, 0.0015),
            (5, None, "intent", None, None, None, None, "bye", BLOCKED, None),
            (6, 1, "generated", "generate", None, None, None, "c", None, 2.0),
            (
                *(6, 2, "judged", "post_validate", "privacy", "block", "an e-mail address"),
                *(None, None, 0.0009),
            ),
            (
                *(6, None, "result", None, None, None, None, "I can't say that."),
                *(BLOCKED + timedelta(microseconds=123_457), None),
            ),
        ],
    ),
    "why": (
        {"call": "events"},
        [
            ("pre_filter", "secrets", "patterns", "message/0", "flag", "odd", 0.5, [], None),
            (
                *("pre_filter", "privacy", "pii", "message/0", "flag", None, None, None),
                "timeout",
            ),
        ],
    ),
    "policy_text": ({"call": "one"}, [(RULES, OLD, '{"name":"house rules"}')]),
    "how_generated": (
        {"call": "one"},
        [
            (
                *(1, "answer", "local", "demo", MODEL, "1", True, 0.7, 0.9, None, SEED, 32),
                *("stop", 2, making.trace(["a", "b"]).chain.hex()),
            )
        ],
    ),
    "what_judged": (
        {"call": "late"},
        [
            ("secrets", "patterns", "isonomy", "0.1.0", CODE, False, SETTINGS, STAGES),
            ("privacy", "pii", "isonomy", "0.1.0", OTHER_CODE, False, SETTINGS, STAGES),
        ],
    ),
    "first_divergence": (
        {"a": "one", "b": "two"},
        [
            (
                *(1, "generated", "generated", "generate", None, ["text", "logits"]),
                *(None, None, 1, 101, 101, "b", "x", True),
            )
        ],
    ),
    "tokens_beside": (
        {"a": "one", "b": "two"},
        [
            (0, 0, 100, 100, "a", "a", F1, F1, True, True),
            (0, 1, 101, 101, "b", "x", F2, F2, True, False),
        ],
    ),
    "policy_versions": (
        {},
        [
            (RULES, OLD, 9, ONE, GOES_ON),
            (None, None, 1, OPENED, OPENED),
            (RULES, NEW, 1, LATER, LATER),
        ],
    ),
    "verdicts_by_policy": (
        {},
        [
            (RULES, OLD, "replace", 3, 3 / 9, ONE, REMOTE),
            (RULES, OLD, "block", 1, 1 / 9, BLOCKED, BLOCKED),
            (None, None, "unfinished", 1, 1.0, OPENED, OPENED),
            (RULES, OLD, "unfinished", 2, 2 / 9, EVENTS, KILLED),
            (RULES, OLD, "ask_human", 2, 2 / 9, ASKS, WAITS),
            (RULES, OLD, "allow", 1, 1 / 9, GOES_ON, GOES_ON),
            (RULES, NEW, "replace", 1, 1.0, LATER, LATER),
        ],
    ),
    "refusals_by_policy": ({}, [(RULES, OLD, 7, 1, 0.1429), (RULES, NEW, 1, 0, 0.0)]),
    "refusals_by_check": ({}, [("privacy", 1)]),
    "check_versions": (
        {},
        [
            ("privacy", "pii", "isonomy", "0.1.0", CODE, SETTINGS, 9, 1),
            ("privacy", "pii", "isonomy", "0.1.0", OTHER_CODE, SETTINGS, 1, 21),
            ("secrets", "patterns", "isonomy", "0.1.0", CODE, SETTINGS, 10, 1),
        ],
    ),
    "changed_checks": ({}, [("privacy", "isonomy", "0.1.0", 2, 1)]),
    "silent_checks": ({}, [("quiet", 1)]),
    "failed_checks": ({}, [("privacy", "timeout", "TimeoutError", "flag", 1)]),
    "slowest_checks": (
        {"limit": 2},
        [
            ("privacy", "pre_filter", 2, 5000.0, 9900.0, 10000.0),
            ("secrets", "pre_filter", 9, 0.0015, 0.0015, 0.0015),
        ],
    ),
    "trials": ({}, [("privacy", "block", 1)]),
    "replaced": (
        {},
        [
            (record, call, "post_validate", "privacy", "candidate/0", 1, digest_of(said), EMAIL)
            for record, call, said in (
                (2, "one", "ab"),
                (4, "two", "ax"),
                (8, "remote", "d"),
                (22, "late", "a"),
            )
        ],
    ),
    "principles": ({}, [("first law", 1, 0.25, 0.25, "events")]),
    "overrides": ({}, [("privacy", 2, 1, 0, 0, 1)]),
    "deciders": ({}, [("grace", "approve", 1, "goes on"), ("grace", "edit", 1, "events")]),
    "waiting": ({}, [("waits", WAITS, "ada", "privacy", "a person must see this")]),
    "mentions": ({"text": "llo", "limit": 2}, [(1, "one", "message/0"), (1, "one", "events")]),
    "erasures": (
        {},
        [(ONE, "subject", "session-9", "office-1", "request 17", True)] * 2,
    ),
    "masked": ({}, [("message/0", "/content/0/text", 1, 1)]),
    "unfinished": (
        {},
        [
            ("opened", OPENED, "host-a", 4711, None, None, 0),
            ("killed", KILLED, "host-a", 4711, "ada", "demo", 2),
            ("events", EVENTS, "host-a", 4711, "ada", "demo", 0),
        ],
    ),
    "released_before_kill": ({}, [("killed", 2, ONE, "héllo")]),
    "gaps": (
        {},
        [(at(DAY + 40), at(DAY + 100), "host-a", 4711, 3, 1, 1, "the disk is full")],
    ),
    "lost_calls": ({}, [(13, "lost", '{"intent":1,"result":1}')]),
    "damaged": ({}, [(23, "tampered", "the column kind differs from the leaf")]),
    "errors": ({}, [("BackendError", None, 1, LATER)]),
    "unjudged": ({}, [(14, "events", "post_validate", 1)]),
    "clock_went_back": ({}, [("host-a", "events", EVENTS, KILLED)]),
    "models": ({}, [("local", "demo", MODEL, "1", True, 8)]),
    "usage": ({}, [("local", "demo", 10, 96, 10), (None, None, 1, None, None)]),
    "retries_by_provider": ({}, [("local", "", 2, 1, 9e-6), ("local", "second", 1, 1, 0.0)]),
    "outcomes_by_provider": (
        {},
        [
            ("local", "failed", 503, 1, 0.0),
            ("local", "ok", 200, 1, 5e-6),
            ("local", "overloaded", 429, 1, 7e-6),
        ],
    ),
    "slowest_calls": (
        {"limit": 2},
        [("late", LATER, "demo", 9000.0, 1, 1), ("one", ONE, "demo", FULL, 1, 2)],
    ),
    "first_word": ({}, [("demo", 1, 2.0, 2.0)]),
    "stalled": ({}, [("late", LATER, '{"0":5}')]),
}


@pytest.mark.parametrize("name", sorted(ANSWERS))
def test_a_question_is_answered(log: ReplayLog, name: str) -> None:
    parameters, answer = ANSWERS[name]
    assert log.ask(name, **parameters).fetchall() == answer


def test_what_a_subject_s_data_appears_in(log: ReplayLog) -> None:
    rows = log.ask("subject_data", subject="session-2").fetchall()
    expected = [
        (number, "blocked", entry.record.__struct_config__.tag, payload.name)
        for number, entry in enumerate(CALLS[2], 5)
        for payload in entry.payloads
    ]
    assert [row[:-1] for row in rows] == expected
    for *_, name, content in rows:  # what is stored once within a subject, or shared by all
        assert (content > 0) is (name == "policy" or name.startswith("message/"))
    assert log.ask("subject_data", subject="nobody").fetchall() == []


def test_equal_requests_with_other_answers(log: ReplayLog) -> None:
    """The made calls all have one prompt, seed and model, and draw different answers."""
    [(model, seed, prompt, runs, a, b)] = log.ask("unrepeatable").fetchall()
    assert (model, seed, prompt, runs) == (MODEL, SEED, "<user>hi", 6)
    assert log.ask("first_divergence", a=a, b=b).fetchall()[0][0] == 1


def test_every_question_has_a_test() -> None:
    assert {*ANSWERS, "subject_data", "unrepeatable"} == set(QUESTIONS)
    assert len(QUESTIONS) >= 25


def test_the_published_file_answers_too_whatever_opens_it(log: ReplayLog, tmp_path: Path) -> None:
    with open_log(tmp_path / "log", background=False) as journal:
        for entries in CALLS:
            journal.append(entries)
    log = ReplayLog(tmp_path / "log")
    ingest(log.path)
    given = {**{name: answer[0] for name, answer in ANSWERS.items()}, "subject_data": {}}
    given["subject_data"] = {"subject": "session-2"}
    with duckdb.connect(str(tmp_path / "log" / "audit.duckdb"), read_only=True) as client:
        client.execute("SET TimeZone = 'UTC'")
        for name, question in QUESTIONS.items():
            parameters = {key: str(value) for key, value in given.get(name, {}).items()}
            values = question.bind(name, parameters)
            rows = client.execute(question.sql, values or None).fetchall()
            assert rows == log.ask(name, **parameters).fetchall(), name


def test_the_document_is_in_step() -> None:
    written = Path(questions.__file__).with_name("QUESTIONS.md").read_text("utf-8")
    assert written == questions.document()
    for name, question in QUESTIONS.items():
        assert f"## {name}\n\n{question.asks}\n" in written
        assert set(re.findall(r"[$]([a-z]+)", question.sql)) == set(question.parameters)


def test_what_cannot_be_asked(log: ReplayLog) -> None:
    with pytest.raises(InputError, match="Did you mean slowest_checks"):
        log.ask("slowest_check")
    with pytest.raises(InputError, match="needs call: the call's id"):
        log.ask("timeline")
    with pytest.raises(InputError, match="no parameter 'limt'; it has: limit"):
        log.ask("slowest_calls", limt=1)
    with pytest.raises(QueryFailed):
        log.ask("slowest_calls", limit="many").fetchall()


# The command.


def told(log: ReplayLog, *arguments: str) -> tuple[int, str, str]:
    done = CliRunner().invoke(sql_command, [*arguments, "--log", log.path])
    return done.exit_code, done.stdout, done.stderr


def test_the_command_lists_questions(log: ReplayLog) -> None:
    status, out, _ = told(log, "--questions")
    assert status == 0
    for name, question in QUESTIONS.items():
        assert f"{name}\t{' '.join(question.parameters)}\t{question.asks}\n" in out


def test_the_command_asks_a_question(log: ReplayLog) -> None:
    status, out, _ = told(log, "--question", "refusals_by_check")
    assert (status, out) == (0, "check_id\trefusals\nprivacy\t1\n")
    parameters = ("--param", "actor=bob")
    status, out, _ = told(log, "--question", "calls_of_actor", *parameters, "--json")
    assert status == 0
    assert [row["call_id"] for row in json.loads(out)] == ["late"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "nothing is asked"),
        (("select 1", "--question", "gaps"), "not both"),
        (("select 1", "--param", "a=b"), "--param belongs to --question"),
        (("--question", "timeline", "--param", "call"), "NAME=VALUE"),
    ],
)
def test_the_command_says_what_is_wrong(
    log: ReplayLog, arguments: tuple[str, ...], said: str
) -> None:
    status, _, error = told(log, *arguments)
    assert status == 2
    assert said in error


def test_the_measurement_s_log_answers_every_question(tmp_path: Path) -> None:
    """`bench.queries` lays down rows by hand: they must be those of a log."""
    from bench import queries

    queries.make(tmp_path / "log", 4000)
    log = ReplayLog(tmp_path / "log")
    assert log.sql("select count(*), count(distinct call_id) from calls").fetchall() == [
        (4000, 4000)
    ]
    found = {name: len(log.ask(name, **queries.given(log, name)).fetchall()) for name in QUESTIONS}
    assert found["unfinished"] == found["waiting"] == found["released_before_kill"] == 4
    assert found["first_divergence"] == found["policy_text"] == found["overrides"] == 1
    assert found["subject_data"] == 32
    [overrides] = log.ask("overrides").fetchall()
    assert overrides == ("privacy", 8, 4, 0, 0, 4)
