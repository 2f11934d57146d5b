"""Table macros of the log: what they answer, in whose hands, and that verification covers them."""

from __future__ import annotations

from pathlib import Path

import duckdb
import pytest
from tests.replay import making

from isonomy.replay import JournalLog, QueryRefused, ReplayLog
from isonomy.replay.ingest import ingest
from isonomy.replay.macros import MACROS


@pytest.fixture(params=["tail", "published"])
def log(request: pytest.FixtureRequest, journal: JournalLog) -> ReplayLog:
    journal.append(making.call("first", "hello", ["a", "b", "c"]))
    journal.append(making.call("other", "hello", ["a", "x"]))
    journal.append(making.call("again", "hello", ["a", "b", "c"], at=9))
    journal.append(making.call("refused", "hello", ["a", "b", "c"], blocked=True))
    journal.append([making.intent("killed", "hello"), *making.segments("killed", ["hé", "llo"])])
    log = ReplayLog(journal.path)
    if request.param == "published":
        ingest(log.path)
    return log


def test_tokens_of_two_calls_side_by_side(log: ReplayLog) -> None:
    rows = log.sql(
        "select step, text_a, text_b, token_a, token_b, same_token, same_logits"
        " from tokens_beside('first', 'other')"
    ).fetchall()
    assert rows == [
        (0, "a", "a", 100, 100, True, True),
        (1, "b", "x", 101, 101, True, False),
        (2, "c", None, 102, None, False, False),
    ]
    columns = "generation, logprob_a is not distinct from logprob_b"
    rows = log.sql(f"select {columns} from tokens_beside('first', 'again')").fetchall()
    assert rows == [(0, True)] * 3
    assert log.sql("from tokens_beside('first', 'no such call')").fetchall()[0][3] is None


def divergence(log: ReplayLog, one: str, other: str) -> list[dict[str, object]]:
    relation = log.sql("from first_divergence(?, ?)", params=[one, other])
    return [dict(zip(relation.columns, row, strict=True)) for row in relation.fetchall()]


def test_the_first_token_that_differs(log: ReplayLog) -> None:
    [found] = divergence(log, "first", "other")
    assert found["sequence"] == 1
    assert (found["type_a"], found["type_b"]) == ("generated", "generated")
    assert found["differs"] == ["text", "tokens", "logits"]
    assert (found["step"], found["text_a"], found["text_b"]) == (1, "b", "x")
    assert found["same_token"] is True  # the logits differ already, the token does not


def test_calls_that_agree_have_no_divergence(log: ReplayLog) -> None:
    """Whenever they were, and however long it took."""
    assert divergence(log, "first", "again") == []
    assert divergence(log, "first", "first") == []


def test_the_first_decision_that_differs(log: ReplayLog) -> None:
    [found] = divergence(log, "first", "refused")
    assert (found["sequence"], found["check_id"]) == (2, "privacy")
    assert (found["verdict_a"], found["verdict_b"]) == ("replace", "block")
    assert set(found["differs"]) == {"verdict", "reason", "score", "after"}  # type: ignore[call-overload]
    assert found["step"] is None


def test_an_event_that_one_of_them_lacks(log: ReplayLog) -> None:
    [found] = divergence(log, "first", "killed")
    assert (found["sequence"], found["type_a"], found["type_b"]) == (1, "generated", None)


def test_timeline(log: ReplayLog) -> None:
    rows = log.sql("select step, check_id, verdict, text from timeline('first')").fetchall()
    assert rows == [
        ("judged", "secrets", "allow", None),
        ("intent", None, None, "hello"),
        ("generated", None, None, "abc"),
        ("judged", "privacy", "replace", None),
        ("result", None, None, "[email]"),
    ]
    rows = log.sql("select step, text, time is null from timeline('killed')").fetchall()
    assert rows[1:] == [
        ("intent", "hello", False),
        ("segment", "hé", False),
        ("segment", "llo", False),
    ]


def test_verdicts_by_policy(log: ReplayLog) -> None:
    rows = log.sql("select policy_name, verdict, calls, share from verdicts_by_policy()").fetchall()
    assert rows == [
        ("house rules", "replace", 3, 0.6),
        ("house rules", "block", 1, 0.2),
        ("house rules", "unfinished", 1, 0.2),
    ]


def test_any_duckdb_client_has_the_macros(log: ReplayLog, path: Path) -> None:
    log.refresh()
    asked = (
        "from first_divergence('first', 'other')",
        "from timeline('killed')",
        "from verdicts_by_policy()",
        "from tokens_beside('first', 'other')",
    )
    assert len(asked) == len(MACROS)
    with (
        duckdb.connect(str(path / "audit.duckdb"), read_only=True) as opened,
        duckdb.connect() as attached,
    ):
        attached.execute(f"attach '{path / 'audit.duckdb'}' as log (read_only)")
        attached.execute("use log")
        for query in asked:
            own = log.sql(query).fetchall()
            assert own
            assert opened.execute(query).fetchall() == own
            assert attached.execute(query).fetchall() == own
        described = opened.execute(
            "select function_name, parameters, comment from duckdb_functions() where not internal"
        ).fetchall()
    assert sorted(described) == [
        (name, list(macro.parameters), macro.comment) for name, macro in sorted(MACROS.items())
    ]


@pytest.mark.parametrize(
    "statement",
    [
        "create or replace macro main.verdicts_by_policy() as table select 'fine' as verdict",
        "drop macro table main.timeline",
        "create macro main.count(x) as 1",
        "comment on macro table main.timeline is 'ask nobody'",
    ],
)
def test_altered_macros_are_found(log: ReplayLog, path: Path, statement: str) -> None:
    log.refresh()
    assert log.verify().findings == ()
    (path / "audit.duckdb").chmod(0o600)
    with duckdb.connect(str(path / "audit.duckdb")) as connection:
        connection.execute(statement)
    findings = log.verify().findings
    assert any("the definition of function main." in finding.problem for finding in findings)


def test_other_table_functions_stay_refused(log: ReplayLog) -> None:
    with pytest.raises(QueryRefused, match="read_text"):
        log.sql("from timeline((select content from read_text('/etc/passwd')))")


def test_gaps(journal: JournalLog) -> None:
    journal.append([making.gap()])
    log = ReplayLog(journal.path)
    for _ in range(2):
        rows = log.sql(
            "select until - since = interval 1 minute, entries, calls, lost, unnamed, reason, host,"
            " process, record from gaps"
        ).fetchall()
        lost_text = '{"lost":{"intent":1,"result":1}}'
        assert rows == [(True, 3, 1, lost_text, 1, "the disk is full", "host-a", 4711, 1)]
        assert log.sql("from calls").fetchall() == []
        assert log.verify().findings == ()
        ingest(log.path)
