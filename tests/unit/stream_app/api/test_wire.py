"""What a request may say beside its body, told to uvicorn over a real connection."""

import asyncio
import socket
from collections.abc import AsyncIterator

import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse

from stream_app.api.service import Server, _server_config
from stream_app.api.watchers import Watchers
from stream_app.api.wire import MOST_BYTES
from stream_app.api_settings import ApiSettings

PIECE = b"x" * 8192
START = b"POST / HTTP/1.1\r\nHost: localhost\r\n"


async def _length(scope: object, receive: object, send: object) -> None:
    body = await Request(scope, receive).body()  # type: ignore[arg-type]
    await PlainTextResponse(f"{len(body)}")(scope, receive, send)  # type: ignore[arg-type]


@pytest.fixture
async def port() -> AsyncIterator[int]:
    listener = socket.create_server(("127.0.0.1", 0))
    server = Server(_server_config(_length, ApiSettings()), Watchers())  # type: ignore[arg-type]
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    yield listener.getsockname()[1]
    server.should_exit = True
    await serving


@pytest.mark.parametrize(
    "begun",
    [b"GET /", START + b"X: ", START + b"Transfer-Encoding: chunked\r\n\r\n0\r\nX: "],
    ids=["address", "header", "trailer"],
)
async def test_what_has_no_end_is_cut_off(port: int, begun: bytes) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", port)

    async def go_on() -> None:
        for piece in (begun, *[PIECE] * 10_000):
            writer.write(piece)
            await writer.drain()

    with pytest.raises(ConnectionError):
        await go_on()
    writer.close()


async def test_a_body_may_be_longer_than_that_and_requests_follow_each_other(port: int) -> None:
    size = 4 * MOST_BYTES
    one = START + f"X: {'x' * 1000}\r\nContent-Length: {size}\r\n\r\n".encode() + b"b" * size
    last = START + b"Content-Length: 0\r\nConnection: close\r\n\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.writelines([*[one] * 20, last])
    told = await reader.read()
    writer.close()
    assert told.count(f"\r\n\r\n{size}".encode()) == 20
    assert told.endswith(b"\r\n\r\n0")
