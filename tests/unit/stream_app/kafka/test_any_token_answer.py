"""Whatever the OAuth token endpoint answers: a token that can be sent, or a TokenError, which is tried again."""

import asyncio
import time
from collections.abc import Iterator

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from stream_app.kafka.credentials import ClientCredentialsToken, TokenError
from tests.unit.odd_bytes import odd_json

EXAMPLE = b'{"access_token": "a.b-c", "token_type": "Bearer", "expires_in": 300}'
TYPES = ("application/json", "application/json; charset=utf-16", "application/json; charset=x", "text/plain", ";")


class Endpoint:
    """Answers as it is told."""

    body, content_type, url = b"", TYPES[0], ""

    async def handle(self, _: web.BaseRequest) -> web.Response:
        return web.Response(body=self.body, headers={"Content-Type": self.content_type})


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="module")
def endpoint(runner: asyncio.Runner) -> Iterator[Endpoint]:
    endpoint = Endpoint()

    async def start() -> web.ServerRunner:
        server = web.ServerRunner(web.Server(endpoint.handle))
        await server.setup()
        await web.TCPSite(server, "127.0.0.1", 0).start()
        endpoint.url = f"http://127.0.0.1:{server.addresses[0][1]}/token"
        return server

    server = runner.run(start())
    yield endpoint
    runner.run(server.cleanup())


@pytest.fixture(scope="module")
def provider(endpoint: Endpoint) -> ClientCredentialsToken:
    return ClientCredentialsToken(endpoint.url, "worker", "open sesame", None)


@given(body=odd_json(EXAMPLE), content_type=st.sampled_from([TYPES[0], *TYPES]))
def test_any_answer_is_a_token_or_refused(
    runner: asyncio.Runner, endpoint: Endpoint, provider: ClientCredentialsToken, body: bytes, content_type: str
) -> None:
    endpoint.body, endpoint.content_type, provider._expires = body, content_type, 0.0
    try:
        token = runner.run(provider.token())
    except TokenError as error:
        str(error).encode()  # can be printed
        return
    assert token
    assert token.isascii()
    assert token.isprintable()
    assert provider._expires < time.monotonic() + 86_400  # else none is asked for when the broker knows it no more
