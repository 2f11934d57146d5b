"""Past calls as OpenTelemetry spans: what `isonomy.plugins.Telemetry` would have told live.

The names are the same (`isonomy.sdk.conventions`). A call's span begins and ends when it did, by
the log's wall clock, and is a child of the span that it was made in, where the record names one. Of
what happened within it the log holds order and duration; when each began follows from them, and may
be off by what was between them, or at the same time. Ids are made from the call's, so that the same
call exported again has the same.

`export_otlp` gives OTLP/JSON (https://opentelemetry.io/docs/specs/otlp/#json-protobuf-encoding), an
object a line as OpenTelemetry's own file exporter writes it: nothing is needed for that, and
nothing is sent. `send` hands spans to an exporter of OpenTelemetry's SDK.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

import msgspec

from isonomy.sdk import conventions
from isonomy.sdk.errors import ConfigError, IsonomyError, MissingExtra
from isonomy.sdk.events import BackendFailed, Event, Failed, Generated
from isonomy.sdk.records import Intent, Result

from ..stored import StoredCall
from .calls import readable_or_none, stored_calls
from .selecting import EVERYTHING, Selection

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace.export import SpanExporter

    from ..reading import ReplayLog

_INTERNAL, _CLIENT = 1, 3
"""Kinds of spans, as OTLP numbers them."""
_ERROR = 2
_HEX = frozenset("0123456789abcdef")
_SENT_TOGETHER = 512


class Span(msgspec.Struct, frozen=True, kw_only=True):
    """A span. Ids are hexadecimal, times nanoseconds since 1970; `client` is its kind."""

    trace_id: str
    span_id: str
    parent_id: str | None
    name: str
    start_ns: int
    end_ns: int
    attributes: conventions.Attributes
    client: bool = False
    failed: bool = False


def spans_of(call: StoredCall, *, content: bool = False) -> list[Span]:
    """Return a call's spans, its own first.

    Args:
        call: with records.
        content: put the caller's messages and the answers into the spans.
    """
    intent, result = call.intent, call.result
    first, last = call.records[0].record, call.records[-1].record
    assert first is not None
    assert last is not None
    ends = result.wall_ns if result is not None else last.wall_ns
    begins = first.wall_ns
    if result is not None:
        begins = min(begins, ends - result.duration_ns)
    ends = max(begins, ends)
    named = intent is not None and intent.trace_id is not None
    trace_id = intent.trace_id if named and intent is not None else None
    if trace_id is None or not _is_id(trace_id, 32):
        trace_id = _id(call.call_id, 16)
    parent = intent.parent_id if intent is not None and named else None
    messages = (readable_or_none(lambda: call.messages) if content else None) or {}
    request = readable_or_none(lambda: call.request) if content else None
    asked = request.messages if request is not None else ()
    own = Span(
        trace_id=trace_id,
        span_id=_id(f"{call.call_id} call", 8),
        parent_id=parent if parent is not None and _is_id(parent, 16) else None,
        name=conventions.CALL,
        start_ns=begins,
        end_ns=ends,
        attributes=conventions.call_attributes(
            call_id=call.call_id,
            session=first.session,
            tags=intent.tags if intent is not None else {},
            messages=[messages[number] for number in asked if number in messages],
        )
        | conventions.end_attributes(
            verdict=result.verdict if result is not None else None,
            error=result.error if result is not None else None,
            output=readable_or_none(lambda: call.output),
            finish_reason=result.finish_reason if result is not None else None,
            content=content,
        ),
        failed=result is not None and result.error is not None,
    )
    return [own, *_within(call, own, content)]


def _within(call: StoredCall, own: Span, content: bool) -> Iterator[Span]:
    intent = call.intent
    identity = intent.identity if intent is not None else None
    for event, start, end in _placed(call, own.start_ns, own.end_ns):
        attributes: conventions.Attributes
        if isinstance(event, Generated | BackendFailed):
            attributes = conventions.model_attributes(event, identity)
            name = conventions.model_span(attributes)
            attributes |= conventions.answer_attributes(event, content=content)
        elif event.type in conventions.JUDGEMENTS:
            attributes, name = conventions.check_attributes(event), conventions.check_span(event)
        else:
            continue
        yield Span(
            trace_id=own.trace_id,
            span_id=_id(f"{call.call_id} {event.sequence}", 8),
            parent_id=own.span_id,
            name=name,
            start_ns=start,
            end_ns=end,
            attributes=attributes,
            client=isinstance(event, Generated | BackendFailed),
            failed=isinstance(event, Failed | BackendFailed),
        )


def _placed(call: StoredCall, begins: int, ends: int) -> Iterator[tuple[Event, int, int]]:
    """Yield events with when each began and ended.

    Those of the intent were over when it was recorded; those of the result began after it.
    """
    at = begins
    for stored in call.records:
        if not isinstance(stored.record, Intent | Result):
            continue
        events = readable_or_none(stored.events) or ()
        if isinstance(stored.record, Intent):
            took = sum(getattr(event, "duration_ns", 0) for event in events)
            at = max(begins, stored.record.wall_ns - took)
        for event in events:
            start = min(at, ends)
            at = min(start + getattr(event, "duration_ns", 0), ends)
            yield event, start, at


def _id(text: str, size: int) -> str:
    return hashlib.sha256(f"isonomy {text}".encode()).hexdigest()[: 2 * size]


def _is_id(text: str, size: int) -> bool:
    return len(text) == size and set(text) <= _HEX and set(text) != {"0"}


# OTLP/JSON


def export_otlp(
    log: ReplayLog,
    selection: Selection = EVERYTHING,
    *,
    damaged: Callable[[str, str], None],
    content: bool = False,
) -> Iterator[bytes]:
    """Yield selected calls as lines of OTLP/JSON, one ``TracesData`` a call.

    Args:
        log: the log.
        selection: which calls.
        damaged: is told the id of a call that is left out, and what is wrong with it.
        content: put what was said into the spans; the log's erasure does not reach them.
    """
    for call in stored_calls(log, selection, damaged=damaged):
        yield msgspec.json.encode(otlp_of(spans_of(call, content=content), _resource_of(call)))


def _resource_of(call: StoredCall) -> conventions.Attributes:
    first = call.records[0].record
    assert first is not None
    return {
        "service.name": "isonomy",
        "host.name": first.host,
        "process.pid": first.process,
    }


def otlp_of(spans: Iterable[Span], resource: Mapping[str, Any]) -> dict[str, Any]:
    """Return spans as a ``TracesData`` of OTLP/JSON."""
    return {
        "resourceSpans": [
            {
                "resource": {"attributes": _attributes(resource)},
                "scopeSpans": [
                    {
                        "scope": {"name": conventions.SCOPE},
                        "spans": [_otlp_span(span) for span in spans],
                    }
                ],
            }
        ]
    }


def _otlp_span(span: Span) -> dict[str, Any]:
    return {
        "traceId": span.trace_id,
        "spanId": span.span_id,
        **({"parentSpanId": span.parent_id} if span.parent_id is not None else {}),
        "name": span.name,
        "kind": _CLIENT if span.client else _INTERNAL,
        "startTimeUnixNano": str(span.start_ns),
        "endTimeUnixNano": str(span.end_ns),
        "attributes": _attributes(span.attributes),
        "status": {"code": _ERROR} if span.failed else {},
    }


def _attributes(attributes: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [{"key": name, "value": _value(value)} for name, value in attributes.items()]


def _value(value: Any) -> dict[str, Any]:
    if isinstance(value, bool):
        return {"boolValue": value}
    if isinstance(value, int):
        return {"intValue": str(value)}
    if isinstance(value, float):
        return {"doubleValue": value}
    if isinstance(value, list | tuple):
        return {"arrayValue": {"values": [_value(each) for each in value]}}
    return {"stringValue": str(value)}


# OpenTelemetry's SDK


def exporter_named(name: str) -> SpanExporter:
    """Return an exporter of OpenTelemetry's SDK, as its own environment variables configure it.

    Args:
        name: that of its entry point, as in OTEL_TRACES_EXPORTER: ``otlp_proto_http``, ``console``.

    Raises:
        MissingExtra: OpenTelemetry's SDK is not installed.
        ConfigError: no installed package has such an exporter, or it can't be made.
    """
    try:
        import opentelemetry.sdk.trace.export  # noqa: F401
    except ImportError:
        raise MissingExtra("the export to OpenTelemetry", "otel", "opentelemetry-sdk") from None
    found = {each.name: each for each in entry_points(group="opentelemetry_traces_exporter")}
    if name not in found:
        raise ConfigError(
            f"there is no exporter named {name!r} (installed: "
            f"{', '.join(sorted(found)) or 'none'}). Install its package, such as "
            "opentelemetry-exporter-otlp-proto-http."
        )
    try:
        exporter: SpanExporter = found[name].load()()
    except Exception as error:  # foreign code
        raise ConfigError(f"the exporter {name!r} can't be made: {error}.") from error
    return exporter


def send(calls: Iterable[StoredCall], exporter: SpanExporter, *, content: bool = False) -> int:
    """Hand calls to an exporter of OpenTelemetry's SDK; return how many calls.

    Raises:
        IsonomyError: the exporter did not take them.
    """
    from opentelemetry.sdk.trace.export import SpanExportResult

    def export() -> None:
        if waiting and exporter.export(waiting) is not SpanExportResult.SUCCESS:
            raise IsonomyError(
                f"the exporter took {count} calls, and not the next ones. See its own messages, "
                "and export again from there: ids stay the same."
            )

    count = begun = 0
    waiting: list[ReadableSpan] = []
    try:
        for call in calls:
            waiting += readable(spans_of(call, content=content), _resource_of(call))
            begun += 1
            if len(waiting) >= _SENT_TOGETHER:
                export()
                waiting, count = [], begun
        export()
    finally:
        exporter.shutdown()
    return begun


def readable(spans: Sequence[Span], resource: Mapping[str, Any]) -> list[ReadableSpan]:
    """Return spans as those of OpenTelemetry's SDK, with their own ids and times."""
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope
    from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags

    def context(trace_id: str, span_id: str) -> SpanContext:
        return SpanContext(
            int(trace_id, 16),
            int(span_id, 16),
            is_remote=False,
            trace_flags=TraceFlags(TraceFlags.SAMPLED),
        )

    told = Resource(dict(resource))
    return [
        ReadableSpan(
            name=span.name,
            context=context(span.trace_id, span.span_id),
            parent=None if span.parent_id is None else context(span.trace_id, span.parent_id),
            resource=told,
            attributes=span.attributes,
            kind=SpanKind.CLIENT if span.client else SpanKind.INTERNAL,
            status=Status(StatusCode.ERROR if span.failed else StatusCode.UNSET),
            start_time=span.start_ns,
            end_time=span.end_ns,
            instrumentation_scope=InstrumentationScope(conventions.SCOPE),
        )
        for span in spans
    ]
