"""Health and metrics as an operator's tools ask for them."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import aiohttp
import pytest
from prometheus_client import CollectorRegistry, Gauge

from stream_app.serve.web import Web
from tests.odd_requests import send


@dataclass
class Served:
    """A web server and what it is told."""

    state: dict[str, str | None]
    refreshed: int = 0
    registry: CollectorRegistry = field(default_factory=CollectorRegistry)
    web: Web = field(init=False)

    def __post_init__(self) -> None:
        gauge = Gauge("nextclick_refreshed", "How often.", registry=self.registry)

        def refresh() -> None:
            self.refreshed += 1
            gauge.set(self.refreshed)

        self.web = Web("127.0.0.1", 0, registry=self.registry, readiness=lambda: self.state, refresh=refresh)

    async def get(self, path: str) -> tuple[int, str]:
        url = f"http://127.0.0.1:{self.web.port}{path}"
        async with aiohttp.ClientSession() as session, session.get(url) as answer:
            return answer.status, await answer.text()


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    served = Served({"model": "none is announced", "tables": None})
    await served.web.start()
    yield served
    await served.web.stop()


async def test_alive_whatever_is_missing(served: Served) -> None:
    assert await served.get("/livez") == (200, '{"status": "alive"}')


async def test_not_ready_says_what_it_waits_for(served: Served) -> None:
    status, body = await served.get("/readyz")
    assert status == 503
    assert body == '{"status": "not ready", "model": "none is announced", "tables": "ok"}'


async def test_ready_when_nothing_is_missing(served: Served) -> None:
    served.state["model"] = None
    assert await served.get("/readyz") == (200, '{"status": "ready", "model": "ok", "tables": "ok"}')


async def test_metrics_are_fresh(served: Served) -> None:
    for expected in (1, 2):
        status, body = await served.get("/metrics")
        assert status == 200
        assert f"nextclick_refreshed {expected}.0" in body


async def test_nothing_else_is_shown(served: Served) -> None:
    for path in ("/", "/tables/", "/router/", "/metrics/x"):
        assert (await served.get(path))[0] == 404


@pytest.mark.parametrize(
    ("sent", "statuses", "warnings"),
    [
        (b"GET /livez HTTP/1.1\r\nHost: h\r\nExpect: \xff\r\n\r\n", [200], 0),
        (b"GET / HTTP/1.1\r\nHost: h\r\nExpect: \xff\r\n\r\n", [404], 0),
        (b"POST /livez HTTP/1.1\r\nHost: h\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\nab", [405], 0),
        (b"GET /livez HTTP/1.1\r\nAuthorization: Bearer secret\r\nX\r\n\r\n", [400], 1),
    ],
    ids=["expectation", "of no page", "encoding", "no HTTP"],
)
async def test_what_a_client_does_wrong_is_no_error_of_the_process(
    served: Served, caplog: pytest.LogCaptureFixture, sent: bytes, statuses: list[int], warnings: int
) -> None:
    assert await send(served.web.port, sent) == statuses
    assert [(record.levelname, record.exc_info) for record in caplog.records] == [("WARNING", None)] * warnings
    assert "secret" not in caplog.text


async def test_a_taken_port_is_an_error(served: Served) -> None:
    second = Web("127.0.0.1", served.web.port, registry=served.registry, readiness=dict, refresh=lambda: None)
    with pytest.raises(OSError, match="address already in use"):
        await second.start()
    await second.stop()


async def test_after_the_stop_nobody_answers() -> None:
    served = Served({})
    await served.web.start()
    await served.web.stop()
    with pytest.raises(aiohttp.ClientConnectorError):
        await served.get("/livez")


async def test_a_stop_before_the_start_is_nothing() -> None:
    await Served({}).web.stop()
