"""Which clicks have spans, what these say, and how OpenTelemetry's variables are taken."""

import os
import sys
import threading
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, cast

import pytest
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, StatusCode

from schemas.messages.headers import Headers
from schemas.messages.source import Source
from stream_app.errors import TelemetryError
from stream_app.telemetry import TelemetrySettings, tracing_of
from stream_app.tracing import context_of, failed, is_sampled, start_tracing, trace_headers
from tests.patience import PATIENCE
from tests.told_spans import in_memory

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLED: Headers = [("traceparent", f"00-{TRACE}-{PARENT}-01".encode()), ("tracestate", b"shop=1")]
UNSAMPLED: Headers = [("traceparent", f"00-{TRACE}-{PARENT}-00".encode())]
SECRET = "Tr0ub4dor-planted"


@pytest.fixture(autouse=True)
def variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """None of OpenTelemetry's but those that a test sets, and none is left."""
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr("stream_app.tracing.BatchSpanProcessor", _Unstarted)


class _Unstarted(BatchSpanProcessor):
    """Reads its variables, and leaves no thread behind."""

    def __init__(self, exporter: Any) -> None:
        super().__init__(exporter)
        self.shutdown()  # type: ignore[no-untyped-call]


# -- traces -----------------------------------------------------------------------------------------------------------


def test_a_record_goes_on_with_its_trace() -> None:
    tracing, memory = in_memory()
    parent = context_of(SAMPLED)
    assert parent is not None
    span = tracing.process(Source("clicks", 3, 7), parent, group="g", began_ns=1)
    headers = trace_headers(span)
    failed(span, "not-json")
    span.end(2)
    [told] = memory.get_finished_spans()
    assert (told.name, told.kind, told.start_time, told.end_time) == ("process clicks", SpanKind.CONSUMER, 1, 2)
    assert told.status.status_code is StatusCode.ERROR
    assert told.attributes == {
        "messaging.system": "kafka",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.name": "clicks",
        "messaging.destination.partition.id": "3",
        "messaging.kafka.offset": 7,
        "messaging.consumer.group.name": "g",
        "error.type": "not-json",
    }
    assert told.parent == parent == told.links[0].context
    own = told.get_span_context()
    assert own is not None
    assert headers == [("traceparent", f"00-{TRACE}-{own.span_id:016x}-01".encode()), ("tracestate", b"shop=1")]


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [("tracestate", b"shop=1")],
        [("traceparent", b"")],
        [("traceparent", b"\xff\xfe\x00")],
        [("traceparent", b"1")],
        [("traceparent", f"ff-{TRACE}-{PARENT}-01".encode())],
        [("traceparent", f"00-{TRACE.upper()}-{PARENT}-01".encode())],
        [("traceparent", f"00-{'0' * 32}-{PARENT}-01".encode())],
        [("traceparent", f"00-{TRACE}-{'0' * 16}-01".encode())],
        [("traceparent", f"00-{TRACE}-{PARENT}-01\n".encode())],
        [("traceparent", f"00-{TRACE}-{PARENT}-0g".encode())],
        [("traceparent", f"00-{TRACE}-{PARENT}-01-more".encode())],
    ],
)
def test_what_is_no_trace_context_is_none(headers: Headers) -> None:
    assert context_of(headers) is None


@pytest.mark.parametrize("state", [b"", b"\xff", b"=", b",,,", b"a=" + b"b" * 5000, b"\n", b"a=1,a=2"])
def test_a_trace_goes_on_whatever_its_state(state: bytes) -> None:
    context = context_of([("traceparent", f"00-{TRACE}-{PARENT}-ff".encode()), ("tracestate", state)])
    assert context is not None
    assert context.trace_flags.sampled


def test_who_began_the_trace_says_whether_it_is_recorded() -> None:
    assert is_sampled(SAMPLED)
    assert not is_sampled(UNSAMPLED)
    assert not is_sampled([("traceparent", b"")])


def test_records_that_are_done_together() -> None:
    tracing, memory = in_memory()
    records = [
        SimpleNamespace(
            headers=lambda own=own: own, topic=lambda: "rankings", partition=lambda: 1, offset=lambda n=n: n
        )
        for n, own in enumerate([None, SAMPLED, UNSAMPLED, [("traceparent", b"1")]])
    ]
    tracing.processed(cast(Any, records), group="g-sink", began_ns=5)
    [told] = memory.get_finished_spans()
    assert told.attributes is not None
    assert (told.name, told.attributes["messaging.kafka.offset"]) == ("process rankings", 1)


def test_a_collector_that_does_not_answer_does_not_keep_a_process_from_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    tracing, answers = in_memory()[0], threading.Event()
    monkeypatch.setattr(tracing._provider, "shutdown", lambda: answers.wait(PATIENCE))
    tracing.stop(0.01)
    assert not answers.is_set()
    answers.set()


# -- OpenTelemetry's variables ----------------------------------------------------------------------------------------


def told_service() -> object:
    tracing = start_tracing("nextclick-worker")
    assert tracing is not None
    return tracing._provider.resource.attributes["service.name"]


def test_off_by_default() -> None:
    assert tracing_of(TelemetrySettings(), "nextclick-worker") is None


def test_without_the_extra_it_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "stream_app.tracing")
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(
        TelemetryError, match=r"^telemetry.traces needs opentelemetry.*: pip install 'nextclick\[otel\]'$"
    ):
        tracing_of(TelemetrySettings(traces=True), "nextclick-worker")


def test_standard_variables_win(monkeypatch: pytest.MonkeyPatch) -> None:
    assert told_service() == "nextclick-worker"
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "service.name=recommender,deployment.environment.name=test")
    assert told_service() == "recommender"
    monkeypatch.setenv("OTEL_SERVICE_NAME", "ours")
    assert told_service() == "ours"
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    assert start_tracing("nextclick-worker") is None


def test_an_empty_variable_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "OTEL_SERVICE_NAME",
        "OTEL_EXPORTER_OTLP_ENDPOINT",
        "OTEL_EXPORTER_OTLP_TIMEOUT",
        "OTEL_TRACES_SAMPLER",
    ):
        monkeypatch.setenv(name, "")
    assert told_service() == "nextclick-worker"


@pytest.mark.parametrize(
    ("variables", "told"),
    [
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "collector:4318"}, "OTEL_EXPORTER_OTLP_ENDPOINT"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://"}, "OTEL_EXPORTER_OTLP_ENDPOINT"),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": f"ftp://me:{SECRET}@collector"}, "OTEL_EXPORTER_OTLP_ENDPOINT"),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "OTEL_EXPORTER_OTLP_PROTOCOL"),
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, "zipkin"),
        ({"OTEL_EXPORTER_OTLP_CERTIFICATE": "/nowhere.pem"}, "/nowhere.pem"),
        ({"OTEL_EXPORTER_OTLP_TIMEOUT": "soon"}, "soon"),
        ({"OTEL_EXPORTER_OTLP_COMPRESSION": "zip"}, "zip"),
        ({"OTEL_TRACES_SAMPLER": "sometimes"}, "sometimes"),
        ({"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "2"}, "SAMPLER_ARG"),
        ({"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "few"}, "SAMPLER_ARG"),
        ({"OTEL_BSP_MAX_QUEUE_SIZE": "many"}, "OTEL_BSP_MAX_QUEUE_SIZE"),
        ({"OTEL_EXPORTER_OTLP_HEADERS": f"Bearer {SECRET}"}, "OTEL_EXPORTER_OTLP_HEADERS"),
        ({"OTEL_EXPORTER_OTLP_HEADERS": f"authorization=Bearer%20{SECRET}%0Amore"}, "OTEL_EXPORTER_OTLP_HEADERS"),
        ({"OTEL_EXPORTER_OTLP_HEADERS": f"authorization=%E2%82%AC{SECRET}"}, "OTEL_EXPORTER_OTLP_HEADERS"),
    ],
)  # fmt: skip
def test_a_variable_that_is_not_usable_refuses_to_start(
    variables: Mapping[str, str], told: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(TelemetryError, match=told) as caught:
        start_tracing("nextclick-worker")
    assert SECRET not in str(caught.value)
    assert caplog.text == ""
