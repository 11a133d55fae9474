"""Whatever is sent to the port of a worker, scorer or sink, it is answered, and no error of the process is logged."""

import asyncio
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from stream_app.serve.web import Web
from tests.odd_requests import damaged_request, no_errors_logged, odd_headers, send, wire_request

PATHS = ("/livez", "/readyz", "/metrics", "/", "/metrics/x", "//", "/%00", "/livez?name[]=x")
METHODS = ("GET", "GET", "HEAD", "POST", "OPTIONS", "CONNECT", "TRACE", "X")
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
headers = odd_headers({
    b"host": [b"localhost", b"[::1", b""],
    b"accept": [b"application/openmetrics-text; version=1.0.0", b"*/*;q=x"],
    b"content-length": [b"0", b"5", b"-1", b"x", b"9" * 30],
    b"content-type": [b"multipart/form-data", b";"],
    b"content-encoding": [b"gzip", b"br", b"x"],
    b"sec-websocket-key": [b"x"],
    b"if-modified-since": [b"Thu, 99 Foo 99999 99:99:99 GMT"],
})  # fmt: skip
requests = st.tuples(
    st.sampled_from(PATHS) | texts.map("/{}".format),
    st.sampled_from(METHODS),
    st.none() | st.binary(max_size=9),
    headers,
)


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="module")
def listening(runner: asyncio.Runner) -> Iterator[int]:
    web = Web("127.0.0.1", 0, registry=CollectorRegistry(), readiness=lambda: {"model": None}, refresh=lambda: None)
    runner.run(web.start())
    yield web.port
    runner.run(web.stop())


@given(data=st.data())
def test_any_bytes_are_answered_or_the_connection_is_closed(
    runner: asyncio.Runner, listening: int, data: st.DataObject
) -> None:
    path, method, body, told = data.draw(requests)
    whole = wire_request(method, path, told, body)
    with no_errors_logged():
        statuses = runner.run(send(listening, data.draw(damaged_request(whole))))
    assert not [status for status in statuses if status >= 500], statuses
