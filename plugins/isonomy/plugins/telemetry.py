"""`Telemetry`: OpenTelemetry spans and metrics of guarded calls. Extra ``otel``.

It observes and judges nothing. Spans and metrics go to the providers that the application has set
up with OpenTelemetry's own SDK; nothing is exported otherwise. A call is a tree of spans:

```
isonomy.call                    from its begin to its reply; a child of the caller's current span
├── check NAME                  each judgement, critique, revision and ranking
├── chat MODEL                  each answer of a model, and each that a plugin asked for
└── ...
```

The span of the call is the current one while it lasts, for checks on their threads too, so that
what a client or a plugin traces itself is a part of it. Names of what concerns models are those of
OpenTelemetry's semantic conventions for generative AI
(https://opentelemetry.io/docs/specs/semconv/gen-ai/); our own begin with ``isonomy.``:

| metric | unit | attributes |
| --- | --- | --- |
| ``gen_ai.client.operation.duration`` | s | operation, provider, models, ``error.type`` |
| ``gen_ai.client.token.usage`` | {token} | the same, ``gen_ai.token.type`` |
| ``isonomy.verdicts`` | {verdict} | stage, check, verdict, shadow |
| ``isonomy.call.duration`` | s | verdict, ``error.type`` |

No content is in any of it unless `content` is set; error messages, which may quote content, never
are. What goes wrong in here changes no call (isonomy.sdk.observing).
"""

from __future__ import annotations

import importlib.util
import threading
import time
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from isonomy.sdk import (
    Call,
    Identity,
    Message,
    MissingExtra,
    Reply,
    conventions,
    hookimpl,
)
from isonomy.sdk.events import BackendFailed, Event, Failed, Generated

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Span

_DURATIONS = (
    0.01,
    0.02,
    0.04,
    0.08,
    0.16,
    0.32,
    0.64,
    1.28,
    2.56,
    5.12,
    10.24,
    20.48,
    40.96,
    81.92,
)
_TOKENS = (
    1,
    4,
    16,
    64,
    256,
    1024,
    4096,
    16384,
    65536,
    262144,
    1048576,
    4194304,
    16777216,
    67108864,
)
"""Bounds of histograms, as the semantic conventions advise."""


class _Instruments(NamedTuple):
    tracer: Any
    operations: Any
    tokens: Any
    verdicts: Any
    calls: Any


class _Watched(NamedTuple):
    """A call under way: its span, the context of what is within it, and who answers."""

    span: Span
    context: Context
    attached: Any
    identity: Identity | None
    started: int


class Telemetry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, dict=True):
    """Trace and measure every call.

    Attributes:
        content: put the messages of the caller and the answer into the spans. They leave this
            process unjudged then, and the log's erasure does not reach them.

    Raises:
        MissingExtra: opentelemetry-api is not installed.
    """

    content: bool = False

    def __post_init__(self) -> None:
        if importlib.util.find_spec("opentelemetry") is None:
            raise MissingExtra("the check 'telemetry'", "otel", "opentelemetry-api")
        _ = self._calls, self._lock

    @cached_property
    def _calls(self) -> dict[str, _Watched]:
        return {}

    @cached_property
    def _lock(self) -> threading.Lock:
        return threading.Lock()

    @cached_property
    def _instruments(self) -> _Instruments:
        from opentelemetry import metrics, trace

        meter = metrics.get_meter(conventions.SCOPE)
        return _Instruments(
            tracer=trace.get_tracer(conventions.SCOPE),
            operations=meter.create_histogram(
                "gen_ai.client.operation.duration",
                unit="s",
                description="GenAI operation duration.",
                explicit_bucket_boundaries_advisory=_DURATIONS,
            ),
            tokens=meter.create_histogram(
                "gen_ai.client.token.usage",
                unit="{token}",
                description="Number of input and output tokens used.",
                explicit_bucket_boundaries_advisory=_TOKENS,
            ),
            verdicts=meter.create_counter(
                "isonomy.verdicts", unit="{verdict}", description="Verdicts of checks."
            ),
            calls=meter.create_histogram(
                "isonomy.call.duration",
                unit="s",
                description="Duration of guarded calls.",
                explicit_bucket_boundaries_advisory=_DURATIONS,
            ),
        )

    @hookimpl
    def call_begins(
        self, call: Call, messages: tuple[Message, ...], identity: Identity | None
    ) -> None:
        """Begin the call's span, within the caller's."""
        from opentelemetry import context, trace

        attributes = conventions.call_attributes(
            call_id=call.id,
            session=call.session,
            tags=call.tags,
            messages=messages if self.content else (),
        )
        started = time.time_ns()
        span = self._instruments.tracer.start_span(
            conventions.CALL, context=_parent(call), attributes=attributes, start_time=started
        )
        within = trace.set_span_in_context(span)
        watched = _Watched(span, within, context.attach(within), identity, started)
        with self._lock:
            self._calls[call.id] = watched

    @hookimpl
    def observe(self, call: Call, event: Event) -> None:
        """Add a span for what took time, and count."""
        with self._lock:
            watched = self._calls.get(call.id)
        if watched is None:
            return
        if isinstance(event, Generated | BackendFailed):
            self._model(watched, event)
        elif event.type in conventions.JUDGEMENTS:
            self._check(watched, event)

    @hookimpl
    def call_ends(self, call: Call, reply: Reply | None, error: BaseException | None) -> None:
        """End the call's span."""
        from opentelemetry import context, trace
        from opentelemetry.trace import StatusCode

        with self._lock:
            watched = self._calls.pop(call.id, None)
        if watched is None:
            return
        ended = time.time_ns()
        verdict = reply.verdict if reply is not None else None
        raised = type(error).__name__ if error is not None else None
        if raised is not None:
            watched.span.set_status(StatusCode.ERROR)
        self._instruments.calls.record(
            (ended - watched.started) / 1e9,
            conventions.end_attributes(verdict=verdict, error=raised),
        )
        watched.span.set_attributes(
            conventions.end_attributes(
                verdict=verdict,
                error=raised,
                output=reply.output if reply is not None else None,
                finish_reason=reply.finish_reason if reply is not None else None,
                content=self.content,
            )
        )
        watched.span.end(ended)
        # Not where a coroutine that nobody awaits any more is collected in another context.
        if trace.get_current_span() is watched.span:
            context.detach(watched.attached)

    def _model(self, watched: _Watched, event: Generated | BackendFailed) -> None:
        from opentelemetry.trace import SpanKind

        common = conventions.model_attributes(event, watched.identity)
        self._instruments.operations.record(event.duration_ns / 1e9, common)
        if isinstance(event, Generated):
            for kind, count in conventions.usage_of(event):
                self._instruments.tokens.record(count, {**common, "gen_ai.token.type": kind})
        attributes = common | conventions.answer_attributes(event, content=self.content)
        name, failed = conventions.model_span(common), isinstance(event, BackendFailed)
        self._span(watched, name, event.duration_ns, attributes, SpanKind.CLIENT, failed)

    def _check(self, watched: _Watched, event: Any) -> None:
        from opentelemetry.trace import SpanKind

        attributes = conventions.check_attributes(event)
        if "isonomy.verdict" in attributes:
            told = ("isonomy.round", "isonomy.target")
            counted = {name: value for name, value in attributes.items() if name not in told}
            self._instruments.verdicts.add(1, counted)
        name, failed = conventions.check_span(event), isinstance(event, Failed)
        self._span(watched, name, event.duration_ns, attributes, SpanKind.INTERNAL, failed)

    def _span(
        self,
        watched: _Watched,
        name: str,
        duration_ns: int,
        attributes: conventions.Attributes,
        kind: Any,
        failed: bool,
    ) -> None:
        """Add a span of what has just ended."""
        from opentelemetry.trace import StatusCode

        ended = time.time_ns()
        span = self._instruments.tracer.start_span(
            name,
            context=watched.context,
            kind=kind,
            attributes=attributes,
            start_time=ended - duration_ns,
        )
        if failed:
            span.set_status(StatusCode.ERROR)
        span.end(ended)


def _parent(call: Call) -> Context | None:
    """Return the context that the call was made in: the current one, or the trace it was given."""
    from opentelemetry import trace

    current = trace.get_current_span().get_span_context()
    if current.is_valid or call.trace_id is None or call.parent_id is None:
        return None  # the current one
    parent = trace.SpanContext(
        trace_id=int(call.trace_id, 16),
        span_id=int(call.parent_id, 16),
        is_remote=True,
        trace_flags=trace.TraceFlags(trace.TraceFlags.SAMPLED),
    )
    return trace.set_span_in_context(trace.NonRecordingSpan(parent))
