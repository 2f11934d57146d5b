"""`Telemetry`, with OpenTelemetry's own SDK and exporters in memory."""

from __future__ import annotations

import asyncio
import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes
from opentelemetry.semconv._incubating.metrics import gen_ai_metrics
from opentelemetry.trace import SpanKind, StatusCode
from tests.sdk.world import Memory, Scripted, broken

from isonomy.plugins import Telemetry
from isonomy.sdk import BackendError, Flag, Guard, Message, Replace, Sampling, check, hookimpl
from isonomy.sdk.checks import Check
from isonomy.sdk.records import Intent

SECRET = "my number is 555"


@pytest.fixture(scope="session")
def providers() -> tuple[InMemorySpanExporter, InMemoryMetricReader]:
    """The process's own providers: OpenTelemetry lets them be set once."""
    exporter, reader = InMemorySpanExporter(), InMemoryMetricReader()
    spans = TracerProvider()
    spans.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(spans)
    metrics.set_meter_provider(MeterProvider(metric_readers=[reader]))
    return exporter, reader


@pytest.fixture
def exporter(providers: Any) -> InMemorySpanExporter:
    providers[0].clear()
    return providers[0]  # type: ignore[no-any-return]


def measured(reader: InMemoryMetricReader, name: str, **attributes: Any) -> tuple[int, float]:
    """Count and sum of a metric's points with these attributes, since the process began."""
    count, total = 0, 0.0
    data = reader.get_metrics_data()
    for resource in data.resource_metrics if data is not None else ():
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                for point in metric.data.data_points if metric.name == name else ():
                    if attributes.items() <= dict(point.attributes).items():
                        count += getattr(point, "count", None) or 1
                        total += getattr(point, "sum", None) or getattr(point, "value", 0)
    return count, total


def on_output(function: Any, **terms: Any) -> Check:
    return check(function, stages=("post_validate",), **terms)


def tree(exporter: InMemorySpanExporter) -> dict[str, list[ReadableSpan]]:
    found: dict[str, list[ReadableSpan]] = {}
    for span in exporter.get_finished_spans():
        found.setdefault(span.name, []).append(span)
    return found


def only(exporter: InMemorySpanExporter, name: str) -> ReadableSpan:
    (span,) = tree(exporter)[name]
    return span


def parent_of(span: ReadableSpan) -> int | None:
    return None if span.parent is None else span.parent.span_id


def id_of(span: ReadableSpan) -> int:
    assert span.context is not None
    return int(span.context.span_id)


def ask(guard: Guard, way: str, text: str = SECRET, **options: Any) -> Any:
    """Ask in each way of calling."""
    if way == "chat":
        return guard.chat(text, **options)
    if way == "achat":
        return asyncio.run(guard.achat(text, **options))
    if way == "stream":
        with guard.stream(text, **options) as pieces:
            list(pieces)
        return pieces.reply

    async def read() -> Any:
        async with guard.astream(text, **options) as pieces:
            async for _ in pieces:
                pass
        return pieces.reply

    return asyncio.run(read())


WAYS = ("chat", "achat", "stream", "astream")


@pytest.mark.parametrize("way", WAYS)
def test_a_call_is_a_tree_of_spans(exporter: InMemorySpanExporter, way: str) -> None:
    backend = Scripted()
    policy = [Telemetry(), check(lambda text: Flag("seen"), id="look")]
    with Guard(backend, policy) as guard:
        reply = ask(guard, way, session="s", tags={"team": "a"}, sampling=Sampling(temperature=0.5))
    call = only(exporter, "isonomy.call")
    assert call.attributes is not None
    assert dict(call.attributes) == {
        "isonomy.call.id": reply.call_id,
        "gen_ai.conversation.id": "s",
        "isonomy.tag.team": "a",
        "isonomy.verdict": "flag",
        "isonomy.check.id": "look",
    }
    assert call.parent is None
    assert call.status.status_code is StatusCode.UNSET
    model = only(exporter, "chat parrot")
    assert model.kind is SpanKind.CLIENT
    assert model.attributes is not None
    assert dict(model.attributes) == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "scripted",
        "gen_ai.request.model": "parrot",
        "gen_ai.response.model": "parrot",
        "gen_ai.request.temperature": 0.5,
        "gen_ai.response.finish_reasons": ("stop",),
        "gen_ai.usage.input_tokens": 3,
        "gen_ai.usage.output_tokens": 5,
        "isonomy.stage": "generate",
        "isonomy.round": 0,
        "isonomy.candidate": 0,
        "isonomy.purpose": "answer",
    }
    before, after = tree(exporter)["check look"]
    assert before.attributes is not None
    assert dict(before.attributes) == {
        "isonomy.stage": "pre_filter",
        "isonomy.round": 0,
        "isonomy.check.id": "look",
        "isonomy.verdict": "flag",
        "isonomy.shadow": False,
        "isonomy.target": "message/0",
    }
    for span in (model, before, after):
        assert parent_of(span) == id_of(call)
        assert call.start_time is not None
        assert span.start_time is not None
        assert span.end_time is not None
        assert call.end_time is not None
        assert span.start_time <= span.end_time <= call.end_time
    assert trace.get_current_span() is trace.INVALID_SPAN  # as before


def test_names_are_those_of_the_semantic_conventions(exporter: InMemorySpanExporter) -> None:
    known = {value for name, value in vars(gen_ai_attributes).items() if name.startswith("GEN_AI_")}
    with Guard(Scripted(), [Telemetry(content=True), lambda text: True]) as guard:
        drawn = Sampling(temperature=0.5, top_p=1.0, top_k=2, max_tokens=9, stop=("x",))
        guard.chat(SECRET, session="s", sampling=drawn)
    used = {name for span in exporter.get_finished_spans() for name in span.attributes or ()}
    assert {name for name in used if name.startswith("gen_ai.")} <= known
    assert gen_ai_metrics.GEN_AI_CLIENT_OPERATION_DURATION == "gen_ai.client.operation.duration"
    assert gen_ai_metrics.GEN_AI_CLIENT_TOKEN_USAGE == "gen_ai.client.token.usage"


@pytest.mark.parametrize("way", WAYS)
def test_the_span_of_a_call_belongs_to_its_callers(
    exporter: InMemorySpanExporter, way: str
) -> None:
    policy = [Telemetry(), lambda text: True]
    span = trace.get_tracer("test").start_as_current_span("request")
    with Guard(Scripted(), policy, (log := Memory())) as guard, span as request:
        ask(guard, way)
        assert trace.get_current_span() is request
    call, root = only(exporter, "isonomy.call"), only(exporter, "request")
    assert parent_of(call) == id_of(root)
    intent = log.only(Intent).record
    assert isinstance(intent, Intent)
    assert root.context is not None
    assert intent.trace_id == f"{root.context.trace_id:032x}"
    assert intent.parent_id == f"{root.context.span_id:016x}"


def test_a_trace_may_be_given_by_hand(exporter: InMemorySpanExporter) -> None:
    trace_id, parent_id = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    with Guard(Scripted(), [Telemetry(), lambda text: True]) as guard:
        guard.chat("Hi", trace_id=trace_id, parent_id=parent_id)
    call = only(exporter, "isonomy.call")
    assert call.parent is not None
    assert f"{call.parent.trace_id:032x}" == trace_id
    assert f"{call.parent.span_id:016x}" == parent_id
    assert call.parent.is_remote


@pytest.mark.parametrize("way", WAYS)
def test_what_plugins_and_backends_trace_is_part_of_the_call(
    exporter: InMemorySpanExporter, way: str
) -> None:
    tracer = trace.get_tracer("test")

    def look(text: str) -> bool:
        with tracer.start_as_current_span("in a thread"):
            return True

    async def alook(text: str) -> bool:
        with tracer.start_as_current_span("on the loop"):
            return True

    backend = Scripted()
    backend.when_asked.append(lambda request: tracer.start_span("in the backend").end())
    with Guard(backend, [Telemetry(), look, alook]) as guard:
        ask(guard, way)
    call = id_of(only(exporter, "isonomy.call"))
    for name in ("in a thread", "on the loop", "in the backend"):
        assert {parent_of(span) for span in tree(exporter)[name]} == {call}


@pytest.mark.parametrize("way", WAYS)
def test_content_is_nowhere_unless_wanted(exporter: InMemorySpanExporter, way: str) -> None:
    class Noisy:
        @hookimpl
        def post_validate(self, candidate: Any) -> Any:
            raise ValueError(candidate.text)

    backend = Scripted(lambda messages: SECRET)
    for content in (False, True):
        exporter.clear()
        policy = [Telemetry(content=content), check(Noisy(), on_error="allow"), lambda text: True]
        with Guard(backend, policy) as guard:
            ask(guard, way)
        spans = exporter.get_finished_spans()
        assert spans
        assert any(SECRET in str(span.to_json()) for span in spans) is content
        assert not any(SECRET in str(span.events) + str(span.status) for span in spans)
        if content:
            call = only(exporter, "isonomy.call")
            assert call.attributes is not None
            said = '[{"role": "user", "parts": [{"type": "text", "content": "my number is 555"}]}]'
            assert call.attributes["gen_ai.input.messages"] == said
            assert '"finish_reason": "stop"' in str(call.attributes["gen_ai.output.messages"])


def test_failures_have_their_type(exporter: InMemorySpanExporter, providers: Any) -> None:
    failing = Guard(Scripted([broken()]), [Telemetry(), lambda text: True])
    with failing as guard, pytest.raises(BackendError):
        guard.chat("Hi")
    call, model = only(exporter, "isonomy.call"), only(exporter, "chat parrot")
    for span in (call, model):
        assert span.status.status_code is StatusCode.ERROR
        assert span.attributes is not None
        assert span.attributes["error.type"] == "BackendError"
    count, _ = measured(
        providers[1], "gen_ai.client.operation.duration", **{"error.type": "BackendError"}
    )
    assert count == 1

    def hang(text: str) -> bool:
        raise OSError("x")

    exporter.clear()
    with Guard(Scripted(), [Telemetry(), check(hang, id="broken")]) as guard:
        assert guard.chat("Hi").blocked
    failed = only(exporter, "check broken")
    assert failed.attributes is not None
    assert failed.attributes["error.type"] == "OSError"
    assert failed.attributes["isonomy.verdict"] == "block"
    assert failed.status.status_code is StatusCode.ERROR
    assert only(exporter, "isonomy.call").status.status_code is StatusCode.UNSET


def test_calls_are_measured(exporter: InMemorySpanExporter, providers: Any) -> None:
    reader = providers[1]
    tokens = {"gen_ai.provider.name": "scripted", "gen_ai.request.model": "parrot"}

    def sums() -> list[float]:
        return [
            measured(reader, "gen_ai.client.operation.duration", **tokens)[0],
            measured(reader, "gen_ai.client.token.usage", **{"gen_ai.token.type": "input"})[1],
            measured(reader, "gen_ai.client.token.usage", **{"gen_ai.token.type": "output"})[1],
            measured(
                reader,
                "isonomy.verdicts",
                **{"isonomy.check.id": "measured", "isonomy.verdict": "replace"},
            )[1],
            measured(reader, "isonomy.call.duration", **{"isonomy.verdict": "replace"})[0],
        ]

    class Judge:
        @hookimpl
        def post_validate(self, candidate: Any, ctx: Any) -> Any:
            return Flag(ctx.generate("fine?").text)

    before = sums()
    policy = [Telemetry(), on_output(lambda text: Replace("x"), id="measured"), Judge()]
    with Guard(Scripted(), policy) as guard:
        guard.chat("Hi")
    changes = [new - old for new, old in zip(sums(), before, strict=True)]
    assert changes == [2, 6, 10, 1, 1]
    purposes = [span.attributes for span in tree(exporter)["chat parrot"]]
    assert {(p or {})["isonomy.purpose"] for p in purposes} == {"answer", "nested"}


def test_64_calls_at_once_never_mix(exporter: InMemorySpanExporter) -> None:
    with Guard(Scripted(), [Telemetry(), lambda text: True]) as guard:
        with ThreadPoolExecutor(16) as pool:
            replies = list(pool.map(lambda i: guard.chat(f"{i}"), range(32)))

        async def all_at_once() -> list[Any]:
            return list(await asyncio.gather(*(guard.achat(f"{i}") for i in range(32))))

        replies += asyncio.run(all_at_once())
    calls = tree(exporter)["isonomy.call"]
    assert {(span.attributes or {})["isonomy.call.id"] for span in calls} == {
        reply.call_id for reply in replies
    }
    children = [span for span in exporter.get_finished_spans() if span.parent is not None]
    assert len(children) == 64 * 3
    for call in calls:
        assert call.parent is None
        assert sum(parent_of(span) == id_of(call) for span in children) == 3


@pytest.mark.parametrize("way", ["stream", "astream"])
def test_interleaved_and_closed_streams(exporter: InMemorySpanExporter, way: str) -> None:
    backend = Scripted(lambda messages: "word " * 50)
    policy = [Telemetry(), on_output(lambda text: True, lookback=0)]
    with Guard(backend, policy) as guard:
        if way == "stream":
            one, two = guard.stream("1"), guard.stream("2")
            next(one), next(two), next(one)
            assert trace.get_current_span() is trace.INVALID_SPAN
            list(two)
            one.close()
        else:

            async def read() -> None:
                one, two = guard.astream("1"), guard.astream("2")
                await anext(one), await anext(two), await anext(one)
                assert trace.get_current_span() is trace.INVALID_SPAN
                async for _ in two:
                    pass
                await one.aclose()

            asyncio.run(read())
    two_span, one_span = tree(exporter)["isonomy.call"]
    assert (two_span.attributes or {})["isonomy.verdict"] == "allow"
    assert one_span.status.status_code is StatusCode.ERROR
    assert one_span.parent is None
    assert two_span.parent is None


def test_an_exporter_that_fails_changes_no_call(
    exporter: InMemorySpanExporter,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise RuntimeError("the exporter is down")

    telemetry = Telemetry()
    monkeypatch.setattr(type(telemetry._instruments.tracer), "start_span", fail)
    caplog.set_level(logging.WARNING, "isonomy")
    with Guard(Scripted(), [telemetry, lambda text: True]) as guard:
        reply = guard.chat("Hi")
    assert reply.verdict == "allow"
    assert "observer_failed" in caplog.text
    assert f"call_id='{reply.call_id}'" in caplog.text
    assert not telemetry._calls


def test_a_policy_file_names_it(exporter: InMemorySpanExporter, tmp_path: Any) -> None:
    file = tmp_path / "isonomy.toml"
    file.write_text(
        '[policy]\n[[policy.checks]]\nuse = "telemetry"\n'
        '[[policy.checks]]\nuse = "length"\nmax = 100\n'
    )
    with Guard.from_file(file, backend=Scripted()) as guard:
        guard.chat("Hi")
    assert only(exporter, "isonomy.call")
    file.write_text('[policy]\n[[policy.checks]]\nuse = "telemetry"\ncontents = true\n')
    with pytest.raises(Exception, match="content"):
        Guard.from_file(file, backend=Scripted())


def test_a_replay_is_not_traced(exporter: InMemorySpanExporter, tmp_path: Any) -> None:
    with Guard(Scripted(), [Telemetry(), lambda text: True], tmp_path / "log") as guard:
        reply = guard.chat("Hi")
        exporter.clear()
        guard.replay(reply.call_id)
    assert not exporter.get_finished_spans()


def test_every_line_that_is_logged_in_a_call_has_its_id() -> None:
    import structlog

    lines: list[dict[str, Any]] = []
    lock = threading.Lock()

    def keep(_: Any, __: str, line: dict[str, Any]) -> Any:
        with lock:
            lines.append(dict(line))
        raise structlog.DropEvent

    log = structlog.wrap_logger(None, processors=[structlog.contextvars.merge_contextvars, keep])

    def look(text: str) -> bool:
        log.info("thread", text=text)
        return True

    async def alook(text: str) -> bool:
        log.info("loop", text=text)
        return True

    class Inline:
        inline = True

        @hookimpl
        def pre_filter(self, messages: tuple[Message, ...]) -> Any:
            log.info("inline", text=messages[0].text)
            return None

    backend = Scripted()
    backend.when_asked.append(lambda r: log.info("backend", text=r.messages[-1].text))
    with Guard(backend, [Inline(), check(look, stages=("pre_filter",)), alook]) as guard:
        replies = {way: ask(guard, way, way) for way in WAYS}
        with ThreadPoolExecutor(8) as pool:
            many = list(pool.map(lambda i: (f"{i}", guard.chat(f"{i}")), range(16)))
        log.info("outside", text="outside")
    ids = {text: reply.call_id for text, reply in [*replies.items(), *many]}
    named = [line for line in lines if line["text"] in ids]
    assert {line["event"] for line in named} == {"thread", "loop", "inline", "backend"}
    assert all(line["call_id"] == ids[line["text"]] for line in named)
    assert "call_id" not in lines[-1]
