"""What the endpoints say when something is missing or too much: the application, with fakes for Kafka and store."""

import asyncio
import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest
from msgspec.structs import replace
from opentelemetry.trace import SpanKind, StatusCode
from starlette.applications import Starlette

from schemas.bundle.files import manifest_digest
from schemas.config.settings import BundleSettings
from schemas.formats.codec import RegistryCodec
from schemas.messages.announcement import ModelAnnouncement, encode_announcement
from schemas.messages.click import Click
from schemas.messages.examples import MODEL_ANNOUNCEMENT, SCORE
from schemas.messages.score import encode_score
from stream_app.api.board import Board
from stream_app.api.clicks import _settle
from stream_app.api.gate import Guard, RateLimit, TokenFileError, tokens_of
from stream_app.api.latest import Latest
from stream_app.api.metrics import ApiMetrics
from stream_app.api.page_routes import PageEndpoints
from stream_app.api.routes import CLICKS, LOOKUPS, Endpoints, Parts
from stream_app.api.service import application
from stream_app.api.shelf import Shelf, ShownItem
from stream_app.api.traffic import Traffic
from stream_app.api.watchers import Watchers
from stream_app.api_settings import ApiSettings
from stream_app.errors import DeliveryError, StoreError
from stream_app.settings import StreamSettings, WorkerSettings
from stream_app.tools.announced import ModelError
from stream_app.tracing import Tracing
from tests.bundle_keys import new_keys
from tests.contract.tiny_model import TinyModel
from tests.patience import PATIENCE
from tests.told_spans import in_memory
from tests.unit.registry import Registry

CLICK = {"session_id": "s", "item_id": "i", "timestamp": 1_767_225_600_000}


@dataclass
class Fake:
    """A store with one ranking, and a producer of clicks."""

    fails: bool = False
    produced: list[bytes] = field(default_factory=list)
    stored: bytes = b"{}"

    async def ranking(self, session: bytes) -> bytes | None:
        if self.fails:
            raise StoreError("the store is away: 10.0.0.5:6379")
        return self.stored if session == b"s" else None

    async def produce(self, session: bytes, value: bytes) -> tuple[int, int]:
        if self.fails:
            raise DeliveryError("Kafka is away")
        self.produced.append(value)
        return 3, 4711


def app_of(
    fake: Fake,
    waiting_for: str | None = None,
    *,
    tracing: Tracing | None = None,
    watchers: Watchers | None = None,
    board: Board | None = None,
    **settings: Any,
) -> Starlette:
    api = StreamSettings(api=ApiSettings(**settings))
    metrics = ApiMetrics()
    outside: Any = fake
    watchers = watchers or Watchers()
    board = board or Board(print)
    parts = Parts(api, outside, outside, watchers, board, metrics, lambda: {"topics": waiting_for})
    guard, origins = Guard([], api.api.rate_limit), api.api.cors_origins
    return application(Endpoints(parts), guard, metrics, origins, tracing=tracing)


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes


async def ask(
    app: Starlette,
    path: str,
    body: bytes | None = None,
    *,
    slowly: bool = False,
    leaves: bool = False,
    sent: list[Any] | None = None,
    method: str = "GET",
    headers: Sequence[tuple[bytes, bytes]] = (),
    content_type: bytes = b"application/json",
    only: Sequence[tuple[bytes, bytes]] | None = None,
) -> Answer:
    """One request, without a server; `slowly`: its body never comes; `leaves`: nor does all of it.

    `only` are all of its headers, in place of the usual ones.
    """
    path, _, query = path.partition("?")
    scope = {
        "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1",
        "method": method if body is None else "POST", "scheme": "http", "path": path, "query_string": query.encode(),
        "headers": [(b"host", b"localhost"), (b"content-type", content_type), *headers] if only is None else [*only],
        "client": ("127.0.0.1", 1),
    }  # fmt: skip
    sent = [] if sent is None else sent
    told = iter([] if slowly else [{"type": "http.request", "body": body or b"", "more_body": leaves}])

    async def receive() -> dict[str, Any]:
        for message in told:
            return message
        if not leaves:
            await asyncio.sleep(60)
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    await app(scope, receive, send)
    return answered(sent)


def answered(sent: list[Any]) -> Answer:
    """What the application sent."""
    headers = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return Answer(sent[0]["status"], headers, b"".join(message.get("body", b"") for message in sent[1:]))


def kind(answer: Answer) -> str:
    assert answer.headers["content-type"] == "application/problem+json"
    return str(json.loads(answer.body)["type"].removeprefix("urn:nextclick:problem:"))


@pytest.mark.parametrize(
    "path", [*(f"/v1/sessions/s/{what}" for what in ("ranking", "stream", "explain")), "/v1/models", "/v1/scores"]
)
async def test_lookups_wait_until_everything_was_read(path: str) -> None:
    answer = await ask(app_of(Fake(), "not read yet"), path)
    assert (answer.status, kind(answer), answer.headers["retry-after"]) == (503, "not-ready", "1")
    health = await ask(app_of(Fake(), "not read yet"), "/healthz")
    assert (health.status, json.loads(health.body)["topics"]) == (503, "not read yet")


async def test_clicks_need_no_store() -> None:
    fake = Fake()
    answer = await ask(app_of(fake, "not read yet"), "/v1/clicks", json.dumps(CLICK).encode())
    assert (answer.status, json.loads(answer.body)["source"]["offset"]) == (202, 4711)
    assert [json.loads(value) for value in fake.produced] == [CLICK]


async def test_only_clicks_wait_for_the_schema_that_they_are_written_by() -> None:
    outside: Any = Fake()
    metrics, board = ApiMetrics(), Board(print)
    state: dict[str, str | None] = {LOOKUPS: None, CLICKS: "away"}
    codec = RegistryCodec(Click, "json-schema", "clicks", Registry())
    parts = Parts(StreamSettings(), outside, outside, Watchers(), board, metrics, lambda: state, codec)
    app = application(Endpoints(parts), Guard([], 0), metrics, ())
    body = json.dumps(CLICK).encode()
    answer = await ask(app, "/v1/clicks", body)
    assert (answer.status, kind(answer), outside.produced) == (503, "not-ready", [])
    assert json.loads(answer.body)["detail"] == "schema registry: away"
    assert (await ask(app, "/v1/sessions/s/ranking")).status == 200
    assert (await ask(app, "/readyz")).status == 503
    codec.start()
    state[CLICKS] = None
    assert (await ask(app, "/v1/clicks", body)).status == 202
    assert outside.produced[0][:1] == b"\0"


async def test_what_kafka_or_the_store_does_not_do_is_no_bug_of_the_server() -> None:
    """And where these are, is not told to whoever asks."""
    app = app_of(Fake(fails=True))
    for path in ("/v1/sessions/s/ranking", "/v1/sessions/s/stream"):
        answer = await ask(app, path)
        assert (answer.status, kind(answer), b"10.0.0.5" in answer.body) == (503, "unavailable", False)
    answer = await ask(app, "/v1/clicks", json.dumps(CLICK).encode())
    assert (answer.status, kind(answer)) == (503, "unavailable")


async def test_a_request_that_brings_a_click_has_a_span() -> None:
    tracing, memory = in_memory()
    for fake in (Fake(), Fake(fails=True)):
        app = app_of(fake, tracing=tracing)
        await ask(app, "/v1/clicks", json.dumps(CLICK).encode())
        await ask(app, "/v1/models")
    told = [(span.name, span.kind, span.attributes, span.status.status_code) for span in memory.get_finished_spans()]
    about = {"http.request.method": "POST", "http.route": "/v1/clicks", "url.path": "/v1/clicks", "url.scheme": "http"}
    assert told == [
        ("POST /v1/clicks", SpanKind.SERVER, about | {"http.response.status_code": 202}, StatusCode.UNSET),
        (
            "POST /v1/clicks",
            SpanKind.SERVER,
            about | {"http.response.status_code": 503, "error.type": "503"},
            StatusCode.ERROR,
        ),
    ]


async def test_a_body_that_does_not_come_is_not_waited_for_for_ever() -> None:
    answer = await ask(app_of(Fake(), request_timeout=0.1), "/v1/clicks", b"{}", slowly=True)
    assert (answer.status, kind(answer)) == (503, "timed-out")


async def test_slow_work_is_done_one_at_a_time_also_when_it_was_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    go, begun = threading.Event(), []

    def work(session_id: str, *_: object, **__: object) -> None:
        begun.append(session_id)
        go.wait(60)

    monkeypatch.setattr("stream_app.api.routes.explanation", work)
    app = app_of(Fake(), request_timeout=0.1)
    for _ in range(3):
        answer = await ask(app, "/v1/sessions/s/explain")
        assert (answer.status, kind(answer)) == (503, "timed-out")
    go.set()
    assert len(begun) == 1


async def test_a_session_id_may_hold_a_line_break() -> None:
    assert kind(await ask(app_of(Fake()), "/v1/sessions/a\nb/ranking")) == "no-ranking"


async def test_a_ranking_is_kept_by_no_cache() -> None:
    told = [await ask(app_of(Fake()), f"/v1/{path}") for path in ("sessions/s/ranking", "models", "scores")]
    assert [(answer.status, answer.headers["cache-control"]) for answer in told] == [(200, "no-store")] * 3


async def test_a_click_may_be_as_long_as_workers_take_and_name_its_charset() -> None:
    body = json.dumps(CLICK).encode()
    most = StreamSettings().clicks.limits.max_bytes
    longest = [body[:-1] + b" " * (size - len(body)) + b"}" for size in (most, most + 1)]
    assert [(await ask(app_of(Fake()), "/v1/clicks", click)).status for click in longest] == [202, 413]
    for named, status in ((b"Application/JSON; charset=utf-8", 202), (b"text/plain", 415)):
        answer = await ask(app_of(Fake()), "/v1/clicks", body, content_type=named)
        assert answer.status == status


async def test_a_client_that_leaves_before_its_click_is_complete_is_no_error_of_the_server() -> None:
    answer = await ask(app_of(Fake()), "/v1/clicks", b"{", leaves=True)
    assert (answer.status, kind(answer)) == (400, "bad-request")


async def test_no_more_wait_than_may() -> None:
    app = app_of(Fake(), max_open=1, max_wait=30)
    waiting = asyncio.create_task(ask(app, "/v1/clicks?wait=30s", json.dumps(CLICK).encode()))
    await asyncio.sleep(0)
    while b"nextclick_api_open 1.0" not in (await ask(app, "/metrics")).body:
        await asyncio.sleep(0.01)
    for path, body in (
        ("/v1/clicks?wait=1s", json.dumps(CLICK).encode()),
        ("/v1/sessions/s/stream", None),
        ("/v1/sessions/s/explain", None),
        ("/v1/scores", None),
    ):
        answer = await ask(app, path, body)
        assert (answer.status, kind(answer)) == (503, "too-many-open")
    waiting.cancel()


def ranking(partition: int, offset: int) -> Latest:
    value = json.dumps({"source": {"partition": partition, "offset": offset}}).encode()
    return Latest(partition, offset, 0, value)


async def test_a_click_that_waits_gets_its_own_ranking_or_is_accepted_and_gives_its_place_back() -> None:
    fake, watchers = Fake(), Watchers()
    app = app_of(fake, watchers=watchers, max_open=1, max_wait=0.05)
    body = json.dumps(CLICK).encode()
    for _ in range(2):
        assert (await asyncio.wait_for(ask(app, "/v1/clicks?wait=1h", body), PATIENCE)).status == 202
    told = [(b"s", ranking(4, 4711)), (b"s", ranking(3, 4710)), (b"t", ranking(3, 4711)), (b"s", ranking(3, 4711))]
    waiting = asyncio.create_task(ask(app_of(fake, watchers=watchers), "/v1/clicks?wait=10s", body))
    while len(fake.produced) < 3:
        await asyncio.sleep(0)
    watchers.tell(told)
    answer = await waiting
    assert (answer.status, answer.body) == (200, told[-1][1].value)


async def test_a_ranking_that_is_faster_than_the_confirmation_of_its_click_is_answered_with() -> None:
    class Slow(Fake):
        async def produce(self, session: bytes, value: bytes) -> tuple[int, int]:
            watchers.tell([(session, ranking(3, 4711))])
            await asyncio.sleep(0)  # it is handed over
            return await super().produce(session, value)

    watchers = Watchers()
    app = app_of(Slow(), watchers=watchers, max_wait=0.05)
    assert (await ask(app, "/v1/clicks?wait=1h", json.dumps(CLICK).encode())).status == 200


async def test_a_stream_tells_what_is_new_and_nothing_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    stored, watchers = ranking(0, 5), Watchers()
    outside: Any = Fake(stored=stored.value)
    parts = Parts(StreamSettings(), outside, outside, watchers, Board(print), ApiMetrics(), dict)
    stream = Endpoints(parts)._events
    events, again = stream(b"s", None), stream(b"s", "0-5")
    assert b"id: 0-5\n" in await anext(events)
    assert await anext(again) == b": nothing new\n\n"
    forgotten = Latest(-1, -1, 0, b"", anew=True)
    watchers.tell([(b"s", one) for one in (stored, ranking(0, 4), ranking(0, 6), forgotten, ranking(0, 3))])
    told = [await anext(events) for _ in range(3)]
    assert [event.partition(b"\n")[0] for event in told] == [b"id: 0-6", b"event: forgotten", b"id: 0-3"]
    monkeypatch.setattr("stream_app.api.routes._KEEP_ALIVE_SECONDS", 0.001)
    assert await anext(events) == await anext(events) == b": still here\n\n"
    by_others = Latest(0, 7, 0, b'{"source":\r\n{}}')
    watchers.tell([(b"s", by_others)])
    told = [await anext(events)]
    while told[-1] == b": still here\n\n":
        told.append(await anext(events))
    assert told[-1] == b'id: 0-7\nevent: ranking\ndata: {"source":\ndata: {}}\n\n'
    watchers.close()
    assert [event async for event in events if event != b": still here\n\n"] == []
    with watchers.watch(b"s") as late:
        assert await asyncio.wait_for(late.next(), PATIENCE) is None


async def test_a_stream_that_is_read_slowly_misses_the_oldest() -> None:
    with Watchers().watch(b"s") as watch:
        for offset in range(100):
            watch.put(ranking(0, offset))
        assert await watch.next() == ranking(0, 36)


async def test_a_confirmation_for_which_nobody_waits_any_more_is_no_error() -> None:
    done: asyncio.Future[tuple[int, int]] = asyncio.get_running_loop().create_future()
    done.cancel()
    confirmed: Any = None
    _settle(done, None, confirmed)


async def test_an_error_that_nobody_expected_is_a_problem_too(monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*_: object) -> None:
        raise ZeroDivisionError

    fake = Fake()
    monkeypatch.setattr(fake, "ranking", fail)
    sent: list[Any] = []
    with pytest.raises(ZeroDivisionError):  # for the server's log, behind the answer
        await ask(app_of(fake), "/v1/sessions/s/ranking", sent=sent)
    answer = answered(sent)
    assert (answer.status, kind(answer)) == (500, "internal-server-error")


def test_a_client_may_ask_so_often_and_another_one_too() -> None:
    limit = RateLimit(2.0)
    assert [limit.wait(b"a", 10.0) for _ in range(3)] == [0, 0, 0.5]
    assert limit.wait(b"b", 10.0) == 0
    assert [limit.wait(b"a", 10.5), limit.wait(b"a", 10.5)] == [0, 0.5]
    assert [limit.wait(b"a", 99.0) for _ in range(3)] == [0, 0, 0.5]


def asking(path: str = "/v1/models", host: bytes = b"localhost:6068", **told: Any) -> dict[str, Any]:
    return {
        "path": path,
        "headers": [(b"host", host), *told.get("headers", ())],
        "client": (told.get("client", "a"), 1),
    }


def status_of(guard: Guard, scope: dict[str, Any]) -> int:
    problem = guard.problem(scope)
    return 200 if problem is None else problem.status


def test_who_may_ask_how_often_is_told_by_token_and_without_any_by_address() -> None:
    guard = Guard(["one", "two"], 1.0)
    sent = [b"", b"one", b"Basic one", b"Bearer other", b"Bearer one", b"bearer  one", b"Bearer two"]
    headers = [[(b"authorization", value)] for value in sent]
    found = [status_of(guard, asking(host=b"shop.example", headers=value)) for value in headers]
    assert found == [401, 401, 401, 401, 200, 429, 200]
    assert [status_of(guard, asking(path)) for path in ("/livez", "/", "/metrics")] == [200, 200, 401]
    here = Guard([], 1.0)
    assert [status_of(here, asking(client=client)) for client in "aab"] == [200, 429, 200]
    hosts = [b"evil.example", b"localhost.evil.example", b"", b"[::1]:6068", b"127.0.0.1"]
    assert [status_of(Guard([], 0), asking("/livez", host)) for host in hosts] == [403, 403, 403, 200, 200]


def test_a_file_of_tokens_may_have_comments_and_has_a_token() -> None:
    assert tokens_of(["# of the shop", "", "  ", " one ", "two"]) == ["one", "two"]
    with pytest.raises(TokenFileError, match="no token"):
        tokens_of(["# none", ""])


def test_clients_that_nobody_heard_of_again_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stream_app.api.gate._MOST_CLIENTS", 2)
    limit = RateLimit(1.0)
    assert [limit.wait(client, 10.0) for client in (b"a", b"b", b"c", b"c", b"a")] == [0, 0, 0, 1, 0]


async def test_the_head_of_a_stream_ends_and_takes_no_place() -> None:
    app = app_of(Fake(), max_open=1)
    for _ in range(2):
        answer = await asyncio.wait_for(ask(app, "/v1/sessions/s/stream", method="HEAD"), PATIENCE)
        assert (answer.status, answer.body) == (200, b"")
        assert answer.headers["content-type"].startswith("text/event-stream")


async def test_a_large_catalogue_is_sorted_beside_the_event_loop() -> None:
    """Where lookups are answered."""

    class Sorted(Shelf):
        by = 0

        def offered(self, text: str, now_ms: int, *, clicked: Mapping[str, float]) -> list[ShownItem]:
            self.by = threading.get_ident()
            return super().offered(text, now_ms, clicked=clicked)

    outside: Any = Fake()
    metrics, shelf = ApiMetrics(), Sorted((), print)
    board = Board(print)
    endpoints = Endpoints(Parts(StreamSettings(), outside, outside, Watchers(), board, metrics, dict))
    page = PageEndpoints(
        traffic=Traffic(), shelf=shelf, backlog=outside, serving=lambda: None, readiness=dict, image_origins=(),
        slowly=endpoints.slowly,
    )  # fmt: skip
    answer = await ask(application(endpoints, Guard([], 0), metrics, (), page.routes()), "/v1/items?q=a")
    assert (answer.status, answer.body) == (200, b"[]")
    assert shelf.by not in (0, threading.get_ident())
    answer = await ask(application(endpoints, Guard([], 0), metrics, (), page.routes()), f"/v1/items?{'id=a&' * 201}")
    assert (answer.status, kind(answer)) == (422, "wrong-parameter")


async def test_scores_may_be_of_the_last_hours_alone() -> None:
    """Counted back from the end of the newest window: at night there may be none for hours."""
    board, begin, length = Board(print), SCORE.window_start, SCORE.window_ms
    for number in range(3):
        score = replace(SCORE, window_start=begin + number * length)
        board.score(b"%d" % number, encode_score(score), now_ms=begin + 3 * length)
    app = app_of(Fake(), board=board)
    told = {}
    for last in ("", "?last=1ms", f"?last={length}ms", f"?last={length + 1}ms", "?last=6d"):
        [line] = json.loads((await ask(app, f"/v1/scores{last}")).body)
        told[last.removeprefix("?last=")] = line["predictions"] / SCORE.total.predictions
    assert told == {"": 3, "1ms": 1, f"{length}ms": 1, f"{length + 1}ms": 2, "6d": 3}
    assert json.loads((await ask(app, "/v1/scores?last=0s")).body) == []


async def test_the_model_that_serves_is_the_one_of_the_workers_alias() -> None:
    board, outside = Board(print), cast(Any, Fake())
    for alias in ("ours", "champion"):
        board.announce(alias.encode(), encode_announcement(replace(MODEL_ANNOUNCEMENT, alias=alias)))
    settings = StreamSettings(worker=WorkerSettings(model_alias="ours"))
    parts = Parts(settings, outside, outside, Watchers(), board, ApiMetrics(), dict)
    told = json.loads((await ask(application(Endpoints(parts), Guard([], 0), parts.metrics, ()), "/v1/models")).body)
    assert (told["alias"], told["serving"]["alias"]) == ("ours", "ours")
    assert [one["alias"] for one in told["announcements"]] == ["ours", "champion"]


async def test_no_answer_tells_where_bundles_lie(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ModelError("the bundle of v1 cannot be opened: ftp://store/v1 does not answer")

    monkeypatch.setattr("stream_app.api.routes.explanation", fail)
    announcement = replace(MODEL_ANNOUNCEMENT, uri="ftp://robot:hunter2@store/v1")
    board, outside, metrics = Board(print), Fake(), ApiMetrics()
    board.announce(announcement.alias.encode(), encode_announcement(announcement))
    fake: Any = outside
    endpoints = Endpoints(Parts(StreamSettings(), fake, fake, Watchers(), board, metrics, dict))
    app = application(endpoints, Guard([], 0), metrics, ())
    models, explained = await ask(app, "/v1/models"), await ask(app, "/v1/sessions/s/explain")
    assert (models.status, json.loads(models.body)["serving"]["version"]) == (200, announcement.version)
    assert (explained.status, kind(explained)) == (404, "no-model")
    assert json.loads(explained.body)["detail"].startswith(f"{announcement.version} cannot be used")
    assert b"ftp:" not in models.body + explained.body


async def test_explanations_open_no_bundle_that_nobody_trusted_has_signed(tmp_path: Path) -> None:
    keys, folder = new_keys(tmp_path, "shop"), TinyModel().write(tmp_path / "registry")
    announcement = ModelAnnouncement("champion", "v1", str(folder), manifest_digest(folder), 0, "test")
    board, outside, metrics = Board(print), Fake(), ApiMetrics()
    board.announce(b"champion", encode_announcement(announcement))
    fake: Any = outside
    settings = StreamSettings(bundles=BundleSettings(trusted_keys=(keys.public,)))
    bundle = Endpoints(Parts(settings, fake, fake, Watchers(), board, metrics, dict))._bundle
    with pytest.raises(ModelError, match="allows no unsigned bundle"):
        bundle.opened()
    keys.sign(folder)
    assert bundle.opened().terms.model.version == "v1"
