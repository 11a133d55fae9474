"""Spans of traced clicks, by OpenTelemetry's SDK: loaded only with `telemetry.traces`.

A span belongs to the trace that the record's `traceparent` names (https://www.w3.org/TR/trace-context/). Names and
attributes are those of OpenTelemetry's semantic conventions for messaging and for HTTP. No span holds a session or an
item.
"""

import logging
import os
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Final

import structlog
from confluent_kafka import Message
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    TraceState,
    set_span_in_context,
    use_span,
)
from opentelemetry.util.re import parse_env_headers
from requests import Request
from requests.exceptions import InvalidHeader, InvalidURL, RequestException

from schemas.kafka.record_headers import headers_of
from schemas.messages.headers import TRACE, Headers, trace_of
from schemas.messages.source import Source
from stream_app.errors import TelemetryError

log = structlog.get_logger(__name__)

_TRACEPARENT: Final = re.compile(rb"(?!ff)[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")
_ODD: Final = frozenset(b"%c" % digit for digit in b"13579bdf")
_OTLP: Final = "OTEL_EXPORTER_OTLP_"
_FILES: Final = ("CERTIFICATE", "CLIENT_CERTIFICATE", "CLIENT_KEY")
_STOP_SECONDS: Final = 5.0


def start_tracing(service: str) -> "Tracing | None":
    """As OpenTelemetry's variables say; None where they switch it off.

    Raises:
        TelemetryError: one of them is not usable.
    """
    for name in [name for name, value in os.environ.items() if name.startswith("OTEL_") and not value]:
        del os.environ[name]  # by their specification it is not set; the SDK takes some for a value
    if os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true" or os.environ.get("OTEL_TRACES_EXPORTER") == "none":
        log.info("no spans are sent, as OTEL_SDK_DISABLED or OTEL_TRACES_EXPORTER says")
        return None
    logging.getLogger("opentelemetry.trace.span").setLevel(logging.ERROR)  # it repeats what producers wrote
    with _insisting():
        _check(os.environ)
        own = Resource({"service.name": service, "service.version": version("nextclick")})
        resource = Resource.create().merge(own).merge(OTELResourceDetector().detect())
        provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return Tracing(provider)


class Tracing:
    """Begins spans. Those that have ended are sent by a thread of the SDK's, which drops them where nobody takes them.

    Times are nanoseconds since the epoch.
    """

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("nextclick", version("nextclick"))

    def stop(self, seconds: float = _STOP_SECONDS) -> None:
        """Send what has ended, for at most so long: the SDK itself takes up to 30 s where nobody takes it."""
        sending = threading.Thread(target=self._provider.shutdown, name="last spans", daemon=True)
        sending.start()
        sending.join(seconds)
        if sending.is_alive():
            log.warning("the last spans were not sent before the stop")

    def process(self, source: Source, parent: SpanContext, *, group: str, began_ns: int) -> Span:
        """A record, from when a member of the group has read it."""
        return self._tracer.start_span(
            f"process {source.topic}",
            set_span_in_context(NonRecordingSpan(parent)),
            SpanKind.CONSUMER,
            {
                **_messaging("process", source.topic),
                "messaging.consumer.group.name": group,
                "messaging.destination.partition.id": str(source.partition),
                "messaging.kafka.offset": source.offset,
            },
            [Link(parent)],
            start_time=began_ns,
        )

    def processed(self, records: Sequence[Message], *, group: str, began_ns: int) -> None:
        """Records that were worked on together since `began_ns`, and are done now; spans of those that are sampled."""
        for record in records:
            headers = trace_of(headers_of(record))
            if headers and is_sampled(headers) and (parent := context_of(headers)) is not None:
                source = Source(record.topic(), record.partition(), record.offset())
                self.process(source, parent, group=group, began_ns=began_ns).end()

    def step(self, name: str, within: Span, began_ns: int, ended_ns: int, told: Mapping[str, float]) -> None:
        """A part of the work that `within` tells of."""
        context = set_span_in_context(within)
        self._tracer.start_span(name, context, attributes=told, start_time=began_ns).end(ended_ns)

    def send(self, topic: str, within: Span | None = None, began_ns: int | None = None) -> Span:
        """A record on its way to a topic, with `trace_headers` of this span."""
        context = None if within is None else set_span_in_context(within)
        return self._tracer.start_span(
            f"send {topic}", context, SpanKind.PRODUCER, _messaging("send", topic), start_time=began_ns
        )

    @contextmanager
    def sending(self, topic: str) -> Iterator[Headers]:
        """The same as long as the block waits for it, as part of `request`; the headers are those of the record."""
        with use_span(self.send(topic), end_on_exit=True, record_exception=False) as span:
            yield trace_headers(span)

    @contextmanager
    def request(self, method: str, route: str, headers: Headers) -> Iterator[Span]:
        """A request over HTTP while it is answered. It goes on with the trace of its headers, or begins one."""
        parent = context_of(headers)
        span = self._tracer.start_span(
            f"{method} {route}",
            None if parent is None else set_span_in_context(NonRecordingSpan(parent)),
            SpanKind.SERVER,
            {"http.request.method": method, "http.route": route, "url.path": route, "url.scheme": "http"},
        )
        with use_span(span, end_on_exit=True, record_exception=False):
            yield span


def context_of(headers: Headers) -> SpanContext | None:
    """The span that a record or request names as its parent; None where it names none as W3C has it."""
    found = dict(headers)
    match = _TRACEPARENT.fullmatch(found.get("traceparent", b""))
    if match is None:
        return None
    context = SpanContext(
        int(match[1], 16),
        int(match[2], 16),
        is_remote=True,
        trace_flags=TraceFlags(int(match[3], 16)),
        trace_state=TraceState.from_header([found.get("tracestate", b"").decode("ascii", "replace")]),
    )
    return context if context.is_valid else None


def is_sampled(headers: Headers) -> bool:
    """Whether whoever began the trace asks for its spans, as far as can be told at a glance."""
    for name, value in headers:
        if name == "traceparent":
            return value[-1:] in _ODD
    return False


def trace_headers(span: Span) -> Headers:
    """Those by which whoever gets the record goes on with the trace, below this span."""
    context = span.get_span_context()
    parent = f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"
    values = (parent, context.trace_state.to_header())
    return [(name, value.encode()) for name, value in zip(TRACE, values, strict=True) if value]


def failed(span: Span, kind: str) -> None:
    """What the span tells of did not come to its end."""
    span.set_attribute("error.type", kind)
    span.set_status(Status(StatusCode.ERROR))


def _messaging(operation: str, topic: str) -> dict[str, str | int]:
    return {
        "messaging.system": "kafka",
        "messaging.operation.name": operation,
        "messaging.operation.type": operation,
        "messaging.destination.name": topic,
    }


# -- OpenTelemetry's variables ----------------------------------------------------------------------------------------


def _check(environ: Mapping[str, str]) -> None:
    """Refuse what would only fail later, with each request to the collector. Raises TelemetryError."""

    def given(name: str, default: str = "") -> str:
        return environ.get(f"{_OTLP}TRACES_{name}", environ.get(f"{_OTLP}{name}", default))

    exporter, protocol = environ.get("OTEL_TRACES_EXPORTER", "otlp"), given("PROTOCOL", "http/protobuf")
    if (exporter, protocol) != ("otlp", "http/protobuf"):
        raise TelemetryError(
            f"spans are sent by OTLP over HTTP alone: OTEL_TRACES_EXPORTER must be otlp (is {exporter}), and "
            f"{_OTLP}PROTOCOL http/protobuf (is {protocol})"
        )
    for name in _FILES:
        if (path := given(name)) and not Path(path).is_file():
            raise TelemetryError(f"{_OTLP}{name}: there is no file {path}")
    endpoint = given("ENDPOINT", "http://localhost:4318")
    try:
        if not endpoint.startswith(("http://", "https://")):
            raise InvalidURL(f"{endpoint} begins with neither http:// nor https://")
        headers = parse_env_headers(given("HEADERS"), liberal=True)
        Request("POST", endpoint, headers).prepare()
        "".join([*headers, *headers.values()]).encode("latin-1")  # as they are sent
    except (InvalidHeader, UnicodeEncodeError):  # which have it
        raise TelemetryError(f"{_OTLP}HEADERS: a header holds a character that none may") from None
    except RequestException as error:
        raise TelemetryError(f"{_OTLP}ENDPOINT: {error}") from error


@contextmanager
def _insisting() -> Iterator[None]:
    """Refuse what the SDK only warns of, and goes on without, while it reads its variables. Raises TelemetryError."""
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(_told(record))  # type: ignore[method-assign]
    logger = logging.getLogger("opentelemetry")
    level, propagate = logger.level, logger.propagate
    logger.setLevel(logging.WARNING)
    logger.propagate = False
    logger.addHandler(handler)
    try:
        yield
    except ValueError as error:
        raise TelemetryError(f"a variable of OpenTelemetry (OTEL_...) is not usable: {error}") from error
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate
    if said:
        raise TelemetryError(f"a variable of OpenTelemetry (OTEL_...) is not usable: {said[0]}")


def _told(record: logging.LogRecord) -> str:
    if record.name == parse_env_headers.__module__:  # it repeats the headers, which may hold a token
        return f"{_OTLP}HEADERS must be name=value, several separated by commas, values URL-encoded"
    return record.getMessage().partition(". ")[0]  # without what it goes on with instead
