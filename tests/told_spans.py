"""Spans that are told to the test: kept in its memory, or sent to it by OTLP over HTTP, as a collector gets them."""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanContext

from stream_app.tracing import Tracing


def in_memory() -> tuple[Tracing, InMemorySpanExporter]:
    """What tells spans, and what has them once they have ended."""
    provider, memory = TracerProvider(shutdown_on_exit=False), InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(memory))
    return Tracing(provider), memory


def traces(memory: InMemorySpanExporter) -> list[dict[str, ReadableSpan]]:
    """The spans of each trace, by name."""
    found: dict[int, dict[str, ReadableSpan]] = {}
    for span in memory.get_finished_spans():
        found.setdefault(_of(span).trace_id, {})[span.name] = span
    return [*found.values()]


def parents(spans: Mapping[str, ReadableSpan]) -> dict[str, str | None]:
    """By the names of a trace's spans those of their parents; None for one whose parent is not among them."""
    names = {_of(span).span_id: name for name, span in spans.items()}
    return {name: names.get(span.parent.span_id) if span.parent else None for name, span in spans.items()}


def _of(span: ReadableSpan) -> SpanContext:
    context = span.get_span_context()
    assert context is not None
    return context


@dataclass(frozen=True)
class ToldSpan:
    """A span as it came; ids in hexadecimal."""

    service: str
    name: str
    trace: str
    id: str
    parent: str


@dataclass
class Collector:
    """Takes spans on a port of its own."""

    port: int
    spans: list[ToldSpan] = field(default_factory=list)

    def environment(self) -> dict[str, str]:
        """By which a process tells its spans here, as soon as they have ended, and begins no trace by itself."""
        return {
            "NEXTCLICK_TELEMETRY__TRACES": "true",
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{self.port}",
            "OTEL_BSP_SCHEDULE_DELAY": "100",
            "OTEL_TRACES_SAMPLER": "parentbased_always_off",
        }

    def of(self, trace: str) -> dict[str, ToldSpan]:
        """The spans of a trace, by name."""
        return {span.name: span for span in self.spans if span.trace == trace}

    def take(self, body: bytes) -> None:
        """A request of the protocol."""
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            named = {one.key: one.value.string_value for one in resource.resource.attributes}
            self.spans += [
                ToldSpan(
                    named["service.name"],
                    span.name,
                    span.trace_id.hex(),
                    span.span_id.hex(),
                    span.parent_span_id.hex(),
                )
                for scope in resource.scope_spans
                for span in scope.spans
            ]


@contextmanager
def collecting() -> Iterator[Collector]:
    """A collector, in the test's process."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            collector.take(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            return

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        collector = Collector(server.server_port)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield collector
        server.shutdown()
