"""Past calls as OpenTelemetry spans: the names that the live plugin uses, and the times of then."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SpanExporter, SpanExportResult
from opentelemetry.trace import SpanKind, StatusCode
from tests.replay import making

from isonomy.replay import JournalLog, ReplayLog
from isonomy.replay.interchange import otel
from isonomy.replay.interchange.selecting import Selection
from isonomy.sdk import conventions
from isonomy.sdk.errors import ConfigError, IsonomyError
from isonomy.sdk.records import Intent

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


def refuse(call_id: str, problem: str) -> None:
    raise AssertionError(f"{call_id}: {problem}")


def spans(log: ReplayLog, call_id: str, **options: Any) -> list[otel.Span]:
    return otel.spans_of(log.call(call_id), **options)


def test_a_call_is_a_tree_of_spans_with_its_times(filled: ReplayLog) -> None:
    call, before, model, after = spans(filled, "call-finished")
    ends = making.START + 1_000_000_000
    assert (call.name, call.start_ns, call.end_ns) == ("isonomy.call", making.START, ends)
    assert call.trace_id == TRACE
    assert call.attributes == {
        "isonomy.call.id": "call-finished",
        "gen_ai.conversation.id": "session-1",
        "isonomy.tag.team": "support",
        "isonomy.verdict": "replace",
    }
    assert [span.name for span in (before, model, after)] == [
        "check secrets",
        "chat demo",
        "check privacy",
    ]
    assert {span.parent_id for span in (before, model, after)} == {call.span_id}
    assert [span.end_ns - span.start_ns for span in (before, model, after)] == [
        1500,
        2_000_000,
        900,
    ]
    for earlier, later in ((before, model), (model, after)):
        assert earlier.end_ns <= later.start_ns
    assert call.start_ns <= before.start_ns
    assert after.end_ns <= call.end_ns
    assert model.client
    assert model.attributes["gen_ai.request.model"] == "demo"
    assert model.attributes["gen_ai.usage.input_tokens"] == 12
    assert model.attributes["gen_ai.response.finish_reasons"] == ["stop"]
    assert after.attributes["isonomy.verdict"] == "replace"


def test_no_content_unless_asked_for(filled: ReplayLog) -> None:
    plain = b"".join(otel.export_otlp(filled, damaged=refuse))
    assert b"hello" not in plain
    assert b"[email]" not in plain
    (line,) = otel.export_otlp(
        filled, Selection(calls=("call-finished",)), damaged=refuse, content=True
    )
    assert b"hello" in line
    assert b"[email]" in line


def test_the_span_that_a_call_was_made_in_is_its_parent(journal: JournalLog) -> None:
    import msgspec

    entry = making.intent("call-1", "hello")
    assert isinstance(entry.record, Intent)
    record = msgspec.structs.replace(entry.record, parent_id=PARENT)
    wrong = msgspec.structs.replace(
        entry.record, call_id="call-2", trace_id="no hexadecimal", parent_id="0" * 16
    )
    journal.append([msgspec.structs.replace(entry, record=record)])
    journal.append([msgspec.structs.replace(entry, record=wrong)])
    log = ReplayLog(journal.path)
    assert spans(log, "call-1")[0].parent_id == PARENT
    own = spans(log, "call-2")[0]
    assert own.parent_id is None
    assert len(own.trace_id) == 32
    assert int(own.trace_id, 16)


def test_every_kind_of_call_and_event_has_spans(filled: ReplayLog) -> None:
    for call in filled.calls():
        found = otel.spans_of(call)
        assert found[0].name == "isonomy.call"
        assert len({span.span_id for span in found}) == len(found)
        assert all(found[0].start_ns <= s.start_ns <= s.end_ns <= found[0].end_ns for s in found)
        again = otel.spans_of(call)
        assert again == found
    failed = [span for span in spans(filled, "call-intended") if span.failed]
    assert sorted(span.name for span in failed) == ["chat", "check privacy"]


def values(attributes: list[dict[str, Any]]) -> dict[str, Any]:
    def plain(value: dict[str, Any]) -> Any:
        ((kind, held),) = value.items()
        if kind == "arrayValue":
            return [plain(each) for each in held["values"]]
        return int(held) if kind == "intValue" else held

    return {each["key"]: plain(each["value"]) for each in attributes}


def test_otlp_json_is_as_its_specification_says(filled: ReplayLog) -> None:
    lines = list(otel.export_otlp(filled, damaged=refuse))
    assert len(lines) == 5
    (told,) = json.loads(lines[0])["resourceSpans"]
    assert values(told["resource"]["attributes"])["host.name"] == "host-a"
    (scoped,) = told["scopeSpans"]
    assert scoped["scope"] == {"name": conventions.SCOPE}
    expected = spans(filled, "call-finished")
    assert len(scoped["spans"]) == len(expected)
    for written, span in zip(scoped["spans"], expected, strict=True):
        assert (written["traceId"], written["spanId"]) == (span.trace_id, span.span_id)
        assert written.get("parentSpanId") == span.parent_id
        assert written["kind"] == (3 if span.client else 1)
        # 64-bit integers are strings in JSON of protocol buffers.
        assert written["startTimeUnixNano"] == str(span.start_ns)
        assert written["endTimeUnixNano"] == str(span.end_ns)
        assert values(written["attributes"]) == span.attributes
    assert scoped["spans"][2]["attributes"][-1] == {
        "key": "isonomy.candidate",
        "value": {"intValue": "0"},
    }


class Collecting(SpanExporter):
    def __init__(self, accepts: bool = True) -> None:
        self.taken: list[ReadableSpan] = []
        self.closed = 0
        self._accepts = accepts

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.taken.extend(spans)
        return SpanExportResult.SUCCESS if self._accepts else SpanExportResult.FAILURE

    def shutdown(self) -> None:
        self.closed += 1


def test_an_exporter_of_the_sdk_gets_the_same_spans(filled: ReplayLog) -> None:
    exporter = Collecting()
    calls = list(reversed(filled.calls()))
    assert otel.send(calls, exporter) == 5
    assert exporter.closed == 1
    expected = [span for call in calls for span in otel.spans_of(call)]
    assert len(exporter.taken) == len(expected)
    for taken, span in zip(exporter.taken, expected, strict=True):
        context = taken.get_span_context()
        assert context is not None
        assert context.span_id == int(span.span_id, 16)
        assert context.trace_id == int(span.trace_id, 16)
        assert (taken.name, taken.start_time, taken.end_time) == (
            span.name,
            span.start_ns,
            span.end_ns,
        )
        assert taken.kind is (SpanKind.CLIENT if span.client else SpanKind.INTERNAL)
        assert taken.status.status_code is (StatusCode.ERROR if span.failed else StatusCode.UNSET)
        json.loads(taken.to_json())


def test_an_exporter_that_fails_says_so(filled: ReplayLog) -> None:
    exporter = Collecting(accepts=False)
    with pytest.raises(IsonomyError, match="took 0 calls"):
        otel.send(filled.calls(), exporter)
    assert exporter.closed == 1


def test_exporters_are_found_by_name() -> None:
    assert isinstance(otel.exporter_named("console"), ConsoleSpanExporter)
    with pytest.raises(ConfigError, match=r"no exporter named 'nowhere' \(installed: .*console"):
        otel.exporter_named("nowhere")
