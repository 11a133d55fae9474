"""Whatever a client sends, it gets an answer, and an error is a problem that names itself: no fault of the server."""

import asyncio
import json
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.applications import Starlette

from stream_app.api.problems import MEDIA_TYPE
from tests.unit.stream_app.api.test_endpoints import CLICK, Fake, app_of, ask
from tests.unit.test_decoders import changed, damaged

EXAMPLE = json.dumps(CLICK).encode()
PATHS = (
    "/v1/sessions/s/ranking", "/v1/sessions/t/ranking", "/v1/sessions//ranking", "/v1/sessions/a/b/ranking",
    "/v1/sessions/%00/ranking", "/v1/sessions/s/stream", "/v1/clicks", "/v1/models", "/v1/scores", "/healthz",
    "/readyz", "/livez", "/metrics", "/openapi.json", "/..", "/v1/../etc/passwd", "//",
)  # fmt: skip
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
queries = st.lists(
    st.tuples(
        st.sampled_from(["by", "last", "wait", "item", "x", ""]),
        texts
        | st.sampled_from(["", "variant", "type", "reason", "1h", "-1", "nan", "1e400", "9" * 5000, "0ms", "9e9d"]),
    ).map("=".join),
    max_size=3,
).map("&".join)
METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "X")


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="module")
def app(runner: asyncio.Runner) -> Starlette:
    async def made() -> Starlette:
        return app_of(Fake(), max_wait=0.001)

    return runner.run(made())


paths = st.sampled_from(PATHS) | texts.map("/{}".format) | texts.map("/v1/sessions/{}/ranking".format)
bodies = st.none() | changed(EXAMPLE) | damaged(EXAMPLE) | st.binary(max_size=20) | st.just(b"a" * 70_000)


@given(asked=st.tuples(paths, queries, st.sampled_from(METHODS), bodies))
def test_any_request_is_answered(
    runner: asyncio.Runner, app: Starlette, asked: tuple[str, str, str, bytes | None]
) -> None:
    path, query, method, body = asked
    if path.endswith("/stream") and method == "GET" and body is None:
        method = "HEAD"  # the answer would not end
    answer = runner.run(ask(app, f"{path.replace('?', '')}?{query}", body, method=method))
    assert answer.status < 500, answer
    if answer.status >= 400 and answer.body:
        assert answer.headers["content-type"] == MEDIA_TYPE
        assert json.loads(answer.body)["status"] == answer.status
