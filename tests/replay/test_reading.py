"""Calls as they come back from the log."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from tests.replay import making

from isonomy.replay import JournalLog, NoSuchCall, ReplayLog, StoredRecord
from isonomy.sdk.records import Intent, Opening, Output, RequestContent, Result
from isonomy.sdk.vocabulary import Message


def test_a_call_comes_back_as_it_was_written(filled: ReplayLog) -> None:
    call = filled.call("call-finished")
    intent, result = making.call("call-finished", "hello", ["a", "b"])
    assert (call.intent, call.result) == (intent.record, result.record)
    assert [record.sequence for record in call.records] == [1, 2]
    for record, entry in zip(call.records, (intent, result), strict=True):
        assert record.payloads == {payload.name: payload.body for payload in entry.payloads}
        assert (record.missing, record.damage) == ((), ())
    assert [event.sequence for event in call.events] == [0, 1, 2]
    assert call.messages == {0: Message.of("user", "hello")}
    assert call.request == RequestContent(messages=(0,), admitted=(0,))
    assert call.policy == making.POLICY
    assert isinstance(call.output, Output)
    assert call.output.text == "[email]"
    assert (call.status, call.damage) == ("complete", ())


def test_unfinished_calls(filled: ReplayLog) -> None:
    opened, intended = filled.call("call-opened"), filled.call("call-intended")
    assert isinstance(opened.openings[0], Opening)
    assert (opened.status, opened.intent, opened.request, opened.output) == (
        "unfinished",
        None,
        None,
        None,
    )
    assert isinstance(intended.intent, Intent)
    assert (intended.status, intended.result, intended.output) == ("unfinished", None, None)
    assert intended.events == making.every_event()


def test_calls_newest_first(filled: ReplayLog) -> None:
    ids = [call.call_id for call in filled.calls()]
    assert ids == ["call-intended", "call-opened", "call-remote", "call-blocked", "call-finished"]
    assert [call.call_id for call in filled.calls(limit=2)] == ids[:2]
    assert isinstance(filled.calls()[3].result, Result)


def test_a_unique_beginning_is_enough(filled: ReplayLog) -> None:
    assert filled.call("call-f").call_id == "call-finished"


@pytest.mark.parametrize(
    ("asked", "message", "nearest"),
    [
        ("call-", "Several calls", "call-blocked"),
        ("call-finishde", "no call", "call-finished"),
        ("%", "no call", None),
        ("", "Several calls", "call-blocked"),
        ("call-finished\x00", "no call", "call-finished"),
        ("CALL-FINISHED", "no call", "call-finished"),
    ],
)
def test_a_call_that_is_not_there(
    filled: ReplayLog, asked: str, message: str, nearest: str | None
) -> None:
    with pytest.raises(NoSuchCall, match=message) as raised:
        filled.call(asked)
    assert nearest in raised.value.nearest if nearest else raised.value.nearest == ()


def test_an_empty_log(journal: JournalLog, path: Path) -> None:
    log = ReplayLog(path)
    assert log.calls() == []
    with pytest.raises(NoSuchCall, match="empty"):
        log.call("x")
    assert log.sql("select count(*) from calls").fetchall() == [(0,)]
    assert log.refresh().last == 0
    assert log.verify().findings == ()


def test_records_travel_as_json(filled: ReplayLog) -> None:
    records = filled.call("call-finished").records
    sent = msgspec.json.encode(records)
    assert msgspec.json.decode(sent, type=tuple[StoredRecord, ...]) == records


def test_two_reads_of_a_log_share_nothing(filled: ReplayLog) -> None:
    with filled as log:
        assert log.calls()
    assert filled.calls()
