"""Whatever a client sends, it gets an answer, and an error is a problem that names itself: no fault of the server."""

import asyncio
import json
import socket
from collections.abc import Iterator
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.applications import Starlette

from schemas.messages import examples
from schemas.messages.item import encode_item
from stream_app.api.backlog import Backlog
from stream_app.api.board import Board
from stream_app.api.gate import Guard
from stream_app.api.metrics import ApiMetrics
from stream_app.api.page_routes import FOLDER, PageEndpoints
from stream_app.api.problems import MEDIA_TYPE
from stream_app.api.routes import Endpoints, Parts
from stream_app.api.service import Server, _server_config, application
from stream_app.api.shelf import Shelf
from stream_app.api.traffic import Traffic
from stream_app.api.watchers import Watchers
from stream_app.api_settings import ApiSettings
from stream_app.settings import StreamSettings
from tests.odd_requests import damaged_request, no_errors_logged, odd_headers, send, wire_request
from tests.told_spans import in_memory
from tests.unit.stream_app.api.test_endpoints import CLICK, Fake, ask
from tests.unit.test_decoders import changed, damaged

EXAMPLE = json.dumps(CLICK).encode()
FILES: Final = [f"/{path.relative_to(FOLDER).as_posix()}" for path in sorted(FOLDER.rglob("*")) if path.is_file()]
PATHS = (
    "/v1/sessions/s/ranking", "/v1/sessions/t/ranking", "/v1/sessions//ranking", "/v1/sessions/a/b/ranking",
    "/v1/sessions/%00/ranking", "/v1/sessions/s/stream", "/v1/sessions/s/explain", "/v1/sessions//explain",
    "/v1/clicks", "/v1/models", "/v1/scores", "/v1/overview", "/v1/items", "/healthz", "/readyz", "/livez",
    "/metrics", "/openapi.json", "/", "/..", "/v1/../etc/passwd", "//", "/vendor", "/vendor/../app.js", *FILES,
)  # fmt: skip
TOKEN, ORIGIN = "a-token-of-a-client", "https://shop.example"

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
queries = st.lists(
    st.tuples(
        st.sampled_from(["by", "last", "wait", "item", "id", "q", "x", ""]),
        texts
        | st.sampled_from(["", "variant", "type", "reason", "1h", "-1", "nan", "1e400", "9" * 5000, "0ms", "9e9d"])
        | st.just("x" + "&id=x" * 300),
    ).map("=".join),
    max_size=3,
).map("&".join)
METHODS = ("GET", "GET", "GET", "POST", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH", "X")
paths = (
    st.sampled_from(PATHS)
    | st.just("/v1/clicks")
    | texts.map("/{}".format)
    | texts.map("/v1/sessions/{}/ranking".format)
)
bodies = (
    st.none() | st.just(EXAMPLE) | changed(EXAMPLE) | damaged(EXAMPLE) | st.binary(max_size=20) | st.just(b"a" * 70_000)
)
headers = odd_headers({
    b"host": [b"localhost", b"127.0.0.1:8080", b"[::1]:8080", b"[::1", b"elsewhere", b"localhost:x", b"a@localhost"],
    b"authorization": [b"Bearer " + TOKEN.encode(), b"Bearer", b"Bearer ", b"Basic YTpi", b"bearer \xe4"],
    b"origin": [ORIGIN.encode(), b"null", b"https://elsewhere"],
    b"access-control-request-method": [b"GET", b"DELETE"],
    b"access-control-request-headers": [b"authorization, x", b",,"],
    b"content-type": [b"application/json", b"application/json; charset=x", b"text/plain", b";"],
    b"content-length": [b"0", b"5", b"-1", b"x", b"9" * 30],
    b"last-event-id": [b"0-0", b"3-4711", b"-"],
    b"if-none-match": [b"*", b'"x"'],
    b"traceparent": [
        b"00-" + b"a" * 32 + b"-" + b"b" * 16 + b"-01", b"00-" + b"0" * 32 + b"-" + b"0" * 16 + b"-00",
        b"ff-" + b"a" * 32 + b"-" + b"b" * 16 + b"-01", b"00-x",
    ],
    b"tracestate": [b"a=1", b"a=1,a=2", b"=", b",".join(b"k%d=v" % key for key in range(40)), b"a=" + b"x" * 300],
})  # fmt: skip

requests = st.tuples(paths, queries, st.sampled_from(METHODS), bodies, headers)


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="module", params=["open", "with tokens"])
def app(request: pytest.FixtureRequest, runner: asyncio.Runner) -> Iterator[Starlette]:
    """With the page; the other kind asks for a token, allows an origin, counts requests and traces clicks."""

    async def made() -> Starlette:
        return _application(guarded=request.param != "open")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stream_app.tools.explain.find_row", lambda session, _: object() if session == "s" else None)
        patch.setattr("stream_app.api.backlog.Backlog.by_partition", _nothing_waits)
        yield runner.run(made())


async def _nothing_waits(_: object) -> list[Any]:
    return []


def _application(*, guarded: bool) -> Starlette:
    api = ApiSettings(max_wait=0.001, cors_origins=(ORIGIN,) if guarded else ())
    outside: Any = Fake()
    metrics, board, traffic, shelf = ApiMetrics(), Board(print), Traffic(), Shelf((), print)
    shelf.put(examples.ITEM.item_id.encode(), encode_item(examples.ITEM))
    endpoints = Endpoints(Parts(StreamSettings(api=api), outside, outside, Watchers(), board, metrics, dict))
    backlog = Backlog({}, topic="clicks", group="nextclick")
    page = PageEndpoints(
        traffic=traffic, shelf=shelf, backlog=backlog, serving=lambda: None, readiness=dict, image_origins=(),
        slowly=endpoints.slowly,
    )  # fmt: skip
    guard = Guard([TOKEN] if guarded else [], 1e6 if guarded else 0)
    tracing = in_memory()[0] if guarded else None
    return application(endpoints, guard, metrics, api.cors_origins, page.routes(), tracing=tracing)


@given(asked=requests)
def test_any_request_is_answered(
    runner: asyncio.Runner,
    app: Starlette,
    asked: tuple[str, str, str, bytes | None, list[tuple[bytes, bytes]]],
) -> None:
    path, query, method, body, told = asked
    if path.endswith("/stream") and method == "GET" and body is None:
        method = "HEAD"  # the answer would not end
    usual = {b"host": b"localhost", b"content-type": b"application/json", b"authorization": f"Bearer {TOKEN}".encode()}
    named = [(name, value) for name, value in usual.items() if name not in dict(told)]
    answer = runner.run(ask(app, f"{path.replace('?', '')}?{query}", body, method=method, only=[*named, *told]))
    assert answer.status < 500, answer
    is_of_cors = method == "OPTIONS" and answer.body.startswith(b"Disallowed CORS")
    if answer.status >= 400 and answer.body and not is_of_cors:
        assert answer.headers["content-type"] == MEDIA_TYPE
        assert json.loads(answer.body)["status"] == answer.status


@pytest.fixture(scope="module")
def listening(runner: asyncio.Runner, app: Starlette) -> Iterator[int]:
    """The port where uvicorn serves it, as `stream-app api` has it."""

    async def start(listener: socket.socket) -> tuple[Server, asyncio.Task[None]]:
        server = Server(_server_config(app, ApiSettings(stop_timeout=1)), Watchers())
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        while not server.started:
            await asyncio.sleep(0.01)
        return server, serving

    async def stop() -> None:
        server.should_exit = True
        await serving

    with socket.create_server(("127.0.0.1", 0)) as listener:
        server, serving = runner.run(start(listener))
        yield listener.getsockname()[1]
        runner.run(stop())


@given(data=st.data())
def test_any_bytes_are_answered_or_the_connection_is_closed(
    runner: asyncio.Runner, listening: int, data: st.DataObject
) -> None:
    path, query, method, body, told = data.draw(requests)
    whole = wire_request(method, f"{path}?{query}", told, body)
    with no_errors_logged():
        statuses = runner.run(send(listening, data.draw(damaged_request(whole))))
    assert not [status for status in statuses if status >= 500], statuses
