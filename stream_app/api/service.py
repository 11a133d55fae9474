"""`stream-app api` from start to exit: the store, the thread that reads, the ASGI application and its server."""

import asyncio
import contextlib
import gc
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final

import structlog
import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from schemas.errors import SchemaRegistryError, StoppedWaitingError
from schemas.formats.codec import Codec, formats_of
from schemas.kafka.admin import check_topics
from schemas.messages.headers import TRACE
from stream_app.api.backlog import Backlog
from stream_app.api.board import Board
from stream_app.api.clicks import ClickProducer
from stream_app.api.gate import Gate, Guard, TokenFileError, tokens_of
from stream_app.api.metrics import ApiMetrics
from stream_app.api.openapi import document
from stream_app.api.page_routes import PageEndpoints
from stream_app.api.problems import ProblemError, of_bug, of_http, of_problem, unavailable
from stream_app.api.reader import Reader
from stream_app.api.routes import CLICKS, LOOKUPS, Endpoints, Parts
from stream_app.api.shelf import Shelf
from stream_app.api.stores import EmbeddedStore, RedisStore, Store
from stream_app.api.traffic import Traffic
from stream_app.api.watchers import Watchers
from stream_app.api.wire import BoundedProtocol
from stream_app.api_settings import ApiSettings
from stream_app.errors import DeliveryError, StoreError, StreamError
from stream_app.settings import StreamSettings
from stream_app.state.data_lock import DataLock
from stream_app.state.topic_identity import topic_ids, watch_identity
from stream_app.telemetry import tracing_of

if TYPE_CHECKING:
    from stream_app.tracing import Tracing

log = structlog.get_logger(__name__)

EXIT_OK: Final = 0
EXIT_FAILED: Final = 1
_MOST_KEPT_SECONDS: Final = 75
_REGISTRY: Final = "waiting for the schema registry; the log says for what"
_AWAY: Final = "Kafka or the store of rankings does not answer; the log of the server says which, and why"


class ListenError(StreamError):
    """There is no listening where the settings say; the message says why."""


def application(
    endpoints: Endpoints,
    guard: Guard,
    metrics: ApiMetrics,
    cors_origins: tuple[str, ...],
    page: Sequence[Route] = (),
    *,
    tracing: "Tracing | None" = None,
) -> Starlette:
    """The routes, those of the page among them, and what a request passes on its way to them."""
    described = document(version=version("nextclick"), with_tokens=guard.has_tokens)
    routes = [*endpoints.routes(described), *page]
    middleware = [Middleware(Gate, guard=guard, metrics=metrics)]
    traced: Sequence[str] = ()
    if tracing is not None:
        from stream_app.api.click_requests import ClickRequests

        middleware.append(Middleware(ClickRequests, tracing=tracing))
        traced = TRACE
    if cors_origins:
        cors = Middleware(
            CORSMiddleware,
            allow_origins=cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["authorization", "content-type", "last-event-id", *traced],
            expose_headers=["retry-after"],
            max_age=600,
        )
        middleware.insert(0, cors)  # outside: a browser asks without a token whether it may ask
    handlers: Any = {ProblemError: of_problem, StreamError: _of_outage, HTTPException: of_http, Exception: of_bug}
    return Starlette(routes=routes, middleware=middleware, exception_handlers=handlers)


async def _of_outage(_: Request, error: Exception) -> Response:
    """Handler of what Kafka or a store did not do. Where these are is for the log, not for whoever asks."""
    log.warning("a request was not answered", error=str(error), kind=type(error).__name__)
    return unavailable("unavailable", str(error) if isinstance(error, DeliveryError) else _AWAY).response()


class Server(uvicorn.Server):
    """Ends streams before it waits for requests to end; signals are the service's."""

    def __init__(self, config: uvicorn.Config, watchers: Watchers) -> None:
        super().__init__(config)
        self._watchers = watchers

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Nothing: the service has handlers of its own."""
        yield

    async def shutdown(self, sockets: Any = None) -> None:
        """Answer what waits for rankings, then stop as ever."""
        self._watchers.close()
        await super().shutdown(sockets)


async def run_api(settings: StreamSettings) -> int:
    """Serve until SIGTERM or SIGINT; returns the exit code. Raises StreamError and SchemaError before it serves."""
    tokens, tracing = _tokens(settings.api), tracing_of(settings.telemetry, "nextclick-api")
    try:
        with _listen(settings.api) as listener:
            await asyncio.to_thread(_check_topics, settings)
            return await _run(settings, tokens, listener, tracing)
    finally:
        if tracing is not None:
            await asyncio.to_thread(tracing.stop)


async def _run(
    settings: StreamSettings, tokens: Sequence[str], listener: socket.socket, tracing: "Tracing | None"
) -> int:
    api = settings.api
    metrics, watchers, traffic = ApiMetrics(), Watchers(), Traffic()

    def warn(text: str) -> None:
        log.warning("a record is passed over", why=text)

    stopping = threading.Event()
    formats = formats_of(settings.schema_registry, settings.topics, stopping=stopping.is_set)
    board, shelf = Board(warn), Shelf(api.image_origins, warn)
    ttl_ms = round(settings.worker.session_ttl * 1000)
    embedded = None if api.store_url is not None else await asyncio.to_thread(_embedded, settings, ttl_ms)
    store: Store = embedded or RedisStore(_secret(api), api.store_prefix)
    connection = settings.kafka.librdkafka()
    clicks = ClickProducer(connection, settings.topics.clicks, tracing, timeout_ms=round(api.delivery_timeout * 1000))
    failures: list[BaseException] = []

    def fail(error: BaseException) -> None:
        failures.append(error)
        log.error("the API cannot go on", error=str(error), kind=type(error).__name__)
        server.should_exit = True

    reader = Reader(
        settings.kafka.plain_consumer(f"{settings.app_id}-api"), settings.topics,
        store=embedded, ttl_ms=ttl_ms, watchers=watchers, board=board, traffic=traffic, shelf=shelf,
        metrics=metrics, on_fatal=fail, codec=formats.rankings,
    )  # fmt: skip

    def readiness() -> Mapping[str, str | None]:
        # Once all is read that was there, lookups are answered from it, whatever the registry does.
        state = {LOOKUPS: reader.waiting_for and (_REGISTRY if formats.waiting_for else reader.waiting_for)}
        if formats.registry is not None:
            state[CLICKS] = None if formats.clicks.can_write else _REGISTRY
        return state

    endpoints = Endpoints(Parts(settings, store, clicks, watchers, board, metrics, readiness, formats.clicks))
    page = PageEndpoints(
        traffic=traffic, shelf=shelf, backlog=Backlog(connection, topic=settings.topics.clicks, group=settings.app_id),
        serving=lambda: board.serving(settings.worker.model_alias), readiness=readiness,
        image_origins=api.image_origins, slowly=endpoints.slowly,
    )  # fmt: skip
    guard = Guard(tokens, api.rate_limit)
    app = application(endpoints, guard, metrics, api.cors_origins, page.routes(), tracing=tracing)
    server = Server(_server_config(app, api), watchers)
    registering = asyncio.create_task(_register(formats.clicks, fail))
    same = asyncio.create_task(_watch(settings, embedded, fail))
    reader.start()
    clicks.start()
    try:
        await _serve(server, listener)
    finally:
        stopping.set()
        same.cancel()
        await registering
        await asyncio.to_thread(reader.stop)
        await asyncio.to_thread(clicks.stop)
        await store.close()
    return EXIT_FAILED if failures else EXIT_OK


async def _watch(
    settings: StreamSettings, store: EmbeddedStore | None, on_fatal: Callable[[BaseException], None]
) -> None:
    """See that rankings are those of which this process keeps the positions, if it keeps any."""
    if store is not None:
        await watch_identity(settings.kafka, {settings.topics.rankings: store.topic_id}, on_fatal=on_fatal)


async def _register(clicks: Codec, on_fatal: Callable[[BaseException], None]) -> None:
    """Have the schema that clicks are written by. While the registry is away they are refused, and nothing else is."""
    try:
        await asyncio.to_thread(clicks.start)
    except StoppedWaitingError as error:
        log.info("stopped", waited_for=str(error))
    except SchemaRegistryError as error:
        on_fatal(error)


def _check_topics(settings: StreamSettings) -> None:
    needed = {settings.topics.clicks, settings.topics.rankings, settings.topics.models}
    specs = [spec for spec in settings.topic_specs() if spec.name in needed]
    for difference in check_topics(settings.kafka, specs):
        log.warning("topic differs", difference=str(difference))


async def _serve(server: Server, listener: socket.socket) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, lambda: setattr(server, "should_exit", True))
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    while not server.started and not serving.done():
        await asyncio.sleep(0.01)
    host, port = listener.getsockname()[:2]
    log.info("answering", url=f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}")
    # What has been made by now stays: to go through all of it, at any request, takes as long as hundreds of lookups.
    gc.collect()
    gc.freeze()
    await serving


def _server_config(app: Starlette, api: ApiSettings) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        lifespan="off",
        server_header=False,
        timeout_keep_alive=_MOST_KEPT_SECONDS,
        timeout_graceful_shutdown=max(1, round(api.stop_timeout)),
        http=BoundedProtocol,
        ws="none",
    )


def _listen(api: ApiSettings) -> socket.socket:
    """The socket that is listened on. Raises ListenError."""
    family = socket.AF_INET6 if ":" in api.host else socket.AF_INET
    try:
        return socket.create_server((api.host.strip("[]"), api.port), family=family)
    except OSError as error:
        raise ListenError(f"{api.host}:{api.port} (api.host, api.port) cannot be listened on: {error}") from error


def _embedded(settings: StreamSettings, ttl_ms: int) -> EmbeddedStore:
    data_dir, rankings = settings.api.data_dir, settings.topics.rankings
    try:
        DataLock(data_dir, setting="api.data_dir")  # until the process ends
    except OSError as error:
        raise StoreError(f"api.data_dir {data_dir} cannot be written: {error}") from error
    topic_id = topic_ids(settings.kafka, [rankings])[rankings]
    return EmbeddedStore(data_dir, topic_id, ttl_ms=ttl_ms, cache_mb=settings.api.store_cache_mb)


def _tokens(api: ApiSettings) -> list[str]:
    """All of them. Raises TokenFileError."""
    tokens = [] if api.token is None else [api.token.get_secret_value()]
    if api.token_file is not None:
        try:
            tokens += tokens_of(api.token_file.read_text().splitlines())
        except (OSError, UnicodeError, TokenFileError) as error:
            raise TokenFileError(f"api.token_file {api.token_file}: {error}") from error
    return tokens


def _secret(api: ApiSettings) -> str:
    assert api.store_url is not None
    return api.store_url.get_secret_value()


def main(settings: StreamSettings) -> int:
    """`stream-app api`; returns the exit code."""
    import uvloop

    return uvloop.run(run_api(settings))
