"""What the gateway counts, for Prometheus.

| metric                                | labels                         |
| ------------------------------------- | ------------------------------ |
| `isonomy_requests_total`              | route, status                  |
| `isonomy_request_seconds`             | route                          |
| `isonomy_requests_in_flight`          |                                |
| `isonomy_calls_total`                 | verdict, stream                |
| `isonomy_call_errors_total`           | error                          |
| `isonomy_first_chunk_seconds`         |                                |
| `isonomy_check_outcomes_total`        | check, stage, outcome, shadow  |
| `isonomy_tokens_total`                | direction                      |

Labels are names from the configuration or of a fixed set: never what a client sends. `outcome` is a
verdict, ``abstain`` or ``failed``. A stream's first chunk counts from when its request was here.

With several processes the numbers live in files below ``$PROMETHEUS_MULTIPROC_DIR``, which must be
set before this module is imported, and every process tells the sum of all.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import choose_encoder
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from ..events import Failed, Judged
from ..performing import Reply

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5, 10, 30, 60, 120, 300, 600)
_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"


class Metrics:
    """The counters of one application; several in one process do not mix."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        into = self._registry
        self._requests = Counter(
            "isonomy_requests", "Requests answered.", ("route", "status"), registry=into
        )
        self._seconds = Histogram(
            "isonomy_request_seconds",
            "From a request's headers to the end of its answer.",
            ("route",),
            buckets=_SECONDS,
            registry=into,
        )
        self._running = Gauge(
            "isonomy_requests_in_flight",
            "Requests that are being answered.",
            multiprocess_mode="livesum",
            registry=into,
        )
        self._calls = Counter(
            "isonomy_calls",
            "Guarded calls that were answered.",
            ("verdict", "stream"),
            registry=into,
        )
        self._errors = Counter(
            "isonomy_call_errors",
            "Guarded calls that ended in an error.",
            ("error",),
            registry=into,
        )
        self._first = Histogram(
            "isonomy_first_chunk_seconds",
            "From a request's headers to the first text of its stream.",
            buckets=_SECONDS,
            registry=into,
        )
        self._checks = Counter(
            "isonomy_check_outcomes",
            "What checks said.",
            ("check", "stage", "outcome", "shadow"),
            registry=into,
        )
        self._tokens = Counter("isonomy_tokens", "Tokens of models.", ("direction",), registry=into)

    @contextmanager
    def in_flight(self) -> Iterator[None]:
        """Count a request as being answered."""
        self._running.inc()
        try:
            yield
        finally:
            self._running.dec()

    def request(self, route: str, status: int, seconds: float) -> None:
        """Count a request that has ended."""
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def call(self, reply: Reply, *, stream: bool) -> None:
        """Count a guarded call, what its checks said, and its tokens."""
        self._calls.labels(reply.verdict, str(stream).lower()).inc()
        for event in reply.events:
            if isinstance(event, Judged):
                outcome: str = event.verdict.name if event.verdict is not None else "abstain"
            elif isinstance(event, Failed):
                outcome = "failed"
            else:
                continue
            shadow = str(event.shadow).lower()
            self._checks.labels(event.check or "", event.stage, outcome, shadow).inc()
        for direction, count in (
            ("input", reply.usage.input_tokens),
            ("output", reply.usage.output_tokens),
        ):
            if count:
                self._tokens.labels(direction).inc(count)

    def call_failed(self, error: BaseException) -> None:
        """Count a guarded call that ended in an error."""
        self._errors.labels(type(error).__name__).inc()

    def first_chunk(self, seconds: float) -> None:
        """Count how long a stream's first text took."""
        self._first.observe(seconds)

    def leave(self) -> None:
        """Take what this process has in flight out of the sum: it ends."""
        if folder := os.environ.get(_VARIABLE):
            mark_process_dead(os.getpid(), path=folder)  # type: ignore[no-untyped-call]

    def exposition(self, accept: str) -> tuple[bytes, str]:
        """Return the metrics of all processes, and their media type.

        Args:
            accept: the request's header, which chooses between Prometheus' text and OpenMetrics.
        """
        encode, media_type = choose_encoder(accept)
        folder = os.environ.get(_VARIABLE)
        if not folder:
            return encode(self._registry), media_type
        _forget_the_dead(Path(folder))
        registry = CollectorRegistry()
        MultiProcessCollector(registry, path=folder)  # type: ignore[no-untyped-call]
        return encode(registry), media_type


@contextmanager
def shared() -> Iterator[None]:
    """Let the processes that are started meanwhile share their metrics, in a private directory."""
    os.environ[_VARIABLE] = tempfile.mkdtemp(prefix="isonomy-metrics-")
    try:
        yield
    finally:
        clear_shared()
        del os.environ[_VARIABLE]


def clear_shared() -> None:
    """Delete what processes have shared."""
    shutil.rmtree(os.environ[_VARIABLE], ignore_errors=True)


def _forget_the_dead(folder: Path) -> None:
    """Take back what processes that were killed had in flight."""
    for file in folder.glob("gauge_live*_*.db"):
        process = int(file.stem.rpartition("_")[2])
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            mark_process_dead(process, path=str(folder))  # type: ignore[no-untyped-call]
        except PermissionError:
            pass
