"""The endpoints: each a function from a request to an answer. Errors are raised (`stream_app/api/problems.py`)."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, TypeVar

import msgspec
import structlog
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.convertors import Convertor, register_url_convertor
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from schemas.bundle.signature import trusted_keys
from schemas.config.duration import parse_duration
from schemas.formats.codec import Codec, RegistryCodec
from schemas.messages.announcement import ModelAnnouncement
from schemas.messages.click import OWN_KEY, ClickRejectedError, RejectReason, decode_click, encode_click
from schemas.messages.source import Source
from stream_app.api.board import Board
from stream_app.api.clicks import ClickProducer
from stream_app.api.kept_bundle import KeptBundle
from stream_app.api.latest import Latest, of_value
from stream_app.api.metrics import ApiMetrics
from stream_app.api.problems import ProblemError, unavailable
from stream_app.api.stores import Store
from stream_app.api.watchers import Watch, Watchers
from stream_app.settings import StreamSettings
from stream_app.tools.announced import ModelError
from stream_app.tools.explain import NothingToExplainError, explanation
from stream_app.tools.scores import GROUPS, OF_PREDICTIONS, as_json, lines

JSON: Final = "application/json"
EVENT_STREAM: Final = "text/event-stream"
LOOKUPS: Final = "topics"
"""What lookups need."""
CLICKS: Final = "schema registry"
"""What clicks need where they are written by a schema."""
_KEEP_ALIVE_SECONDS: Final = 15.0
_LONGEST_SECONDS: Final = 1e12
_OF_THE_MOMENT: Final = {"Cache-Control": "no-store"}

log = structlog.get_logger(__name__)


T = TypeVar("T")


class Accepted(msgspec.Struct):
    """A click that is on its topic, and where."""

    source: Source


class AnnouncedModel(msgspec.Struct, omit_defaults=True):
    """An announcement, without the place of its bundle: that is for workers, not for whoever asks here."""

    alias: str
    version: str
    manifest_sha256: str
    announced_at: int
    why: str
    evidence: dict[str, Any] | None = None

    @classmethod
    def of(cls, one: ModelAnnouncement) -> "AnnouncedModel":
        """What is told of it."""
        return cls(one.alias, one.version, one.manifest_sha256, one.announced_at, one.why, one.evidence)


class Models(msgspec.Struct):
    """Announcements of models, the oldest first: the last one of an alias counts."""

    alias: str
    serving: AnnouncedModel | None
    announcements: list[AnnouncedModel]


@dataclass(frozen=True)
class Parts:
    """What the endpoints work with."""

    settings: StreamSettings
    store: Store
    clicks: ClickProducer
    watchers: Watchers
    board: Board
    metrics: ApiMetrics
    readiness: Callable[[], Mapping[str, str | None]]
    """What must be true before all is answered, by `LOOKUPS` and `CLICKS`, each with None or why it is not."""
    codec: Codec = field(default_factory=Codec)
    """Of clicks."""


class _AnyText(Convertor[str]):
    """As Starlette's `path`, and line breaks."""

    regex = r"[\s\S]*"

    def convert(self, value: str) -> str:
        """As it is."""
        return value

    def to_string(self, value: str) -> str:
        """As it is."""
        return value


register_url_convertor("text", _AnyText())


class Endpoints:
    """All of them; one a process."""

    def __init__(self, parts: Parts) -> None:
        self._settings, self._store = parts.settings, parts.store
        self._clicks, self._watchers, self._board = parts.clicks, parts.watchers, parts.board
        self._metrics, self._readiness = parts.metrics, parts.readiness
        self._serving = partial(self._board.serving, self._settings.worker.model_alias)
        trusted = trusted_keys(self._settings.bundles.trusted_keys)
        self._bundle = KeptBundle(self._settings.worker, self._serving, trusted)
        self._codec = parts.codec
        self._open = 0
        self._slow = ThreadPoolExecutor(1, "slow")
        """What reads Kafka for one answer, or adds up for long, is done one at a time: also behind one that goes on
        although its request was given up."""

    def routes(self, document: bytes) -> list[Route]:
        """By path; the document is the OpenAPI one."""

        async def openapi(_: Request) -> Response:
            return Response(document, media_type=JSON)

        return [
            Route("/v1/sessions/{session_id:text}/ranking", self.ranking),
            Route("/v1/sessions/{session_id:text}/stream", self.stream),
            Route("/v1/sessions/{session_id:text}/explain", self.explain),
            Route("/v1/clicks", self.click, methods=["POST"]),
            Route("/v1/models", self.models),
            Route("/v1/scores", self.scores),
            Route("/healthz", self.ready),
            Route("/readyz", self.ready),
            Route("/livez", self.live),
            Route("/metrics", self.metrics),
            Route("/openapi.json", openapi),
        ]

    # -- sessions -----------------------------------------------------------------------------------------------------

    async def ranking(self, request: Request) -> Response:
        """The latest ranking of a session."""
        self._insist_on(LOOKUPS)
        session_id = request.path_params["session_id"]
        value = await self._store.ranking(session_id.encode())
        if value is None:
            raise _no_ranking(self._settings)
        return Response(value, headers=_OF_THE_MOMENT, media_type=JSON)

    async def stream(self, request: Request) -> Response:
        """The latest ranking of a session, and each new one, as server-sent events."""
        self._insist_on(LOOKUPS)
        if request.method == "HEAD":  # an answer without a body, which would never end
            return Response(headers=_OF_THE_MOMENT, media_type=EVENT_STREAM)
        session = request.path_params["session_id"].encode()
        self._insist_on_room()
        events = self._events(session, request.headers.get("last-event-id"))
        first = await anext(events)  # a store that does not answer is told while there is a status to tell it by
        return StreamingResponse(_all_of(first, events), headers=_OF_THE_MOMENT, media_type=EVENT_STREAM)

    async def _events(self, session: bytes, seen: str | None) -> AsyncGenerator[bytes, None]:
        with self._opened(), self._watchers.watch(session) as watch:
            value = await self._store.ranking(session)
            last = None if value is None else of_value(value)
            if last is not None and _event_id(last) != seen:
                yield _event(last)
            else:
                yield b": no ranking yet\n\n" if last is None else b": nothing new\n\n"
            while True:
                try:
                    latest = await asyncio.wait_for(watch.next(), _KEEP_ALIVE_SECONDS)
                except TimeoutError:
                    yield b": still here\n\n"  # or a proxy takes the connection for dead
                    continue
                if latest is None:
                    return
                if latest.replaces(last):  # not a repetition
                    last = latest
                    yield _event(latest)

    async def explain(self, request: Request) -> Response:
        """What adds up to the places of a session's ranking."""
        self._insist_on(LOOKUPS)
        item_id = request.query_params.get("item")
        session_id = request.path_params["session_id"]
        work = partial(explanation, session_id, self._settings, item_id=item_id, opened=self._bundle.opened)
        try:
            told = await self.slowly(work)
        except NothingToExplainError as error:
            raise ProblemError(404, "nothing-to-explain", str(error)) from error
        except ModelError as error:
            log.warning("a ranking was not explained", error=str(error))
            raise _no_model(self._serving()) from error
        return _json(told)

    # -- clicks -------------------------------------------------------------------------------------------------------

    async def click(self, request: Request) -> Response:
        """Put a click on its topic; with `wait`, answer with its ranking if it comes in time."""
        began = time.monotonic()
        wait = _duration(request, "wait") or 0.0
        async with self._in_time():
            body = await _body(request, self._settings.clicks.limits.max_bytes)
        try:
            now_ms = time.time_ns() // 1_000_000
            click = decode_click(OWN_KEY, body, now_ms=now_ms, limits=self._settings.clicks.limits)
        except ClickRejectedError as error:
            raise _refused(error) from error
        if isinstance(self._codec, RegistryCodec):
            self._insist_on(CLICKS)
            body = self._codec.to_wire(encode_click(click))
        session = click.session_id.encode()
        if not wait:
            return self._accepted(*await self._clicks.produce(session, body))
        until = began + min(wait, self._settings.api.max_wait)
        self._insist_on_room()
        with self._opened(), self._watchers.watch(session) as watch:  # first: the ranking may come before we know where
            partition, offset = await self._clicks.produce(session, body)
            latest = await _of_click(watch, partition, offset, until - time.monotonic())
        if latest is None:
            return self._accepted(partition, offset)
        return Response(latest.value, headers=_OF_THE_MOMENT, media_type=JSON)

    def _accepted(self, partition: int, offset: int) -> Response:
        return _json(Accepted(Source(self._settings.topics.clicks, partition, offset)), 202)

    # -- models and scores --------------------------------------------------------------------------------------------

    async def models(self, _: Request) -> Response:
        """Which models were announced, and which one serves."""
        self._insist_on(LOOKUPS)
        alias, serving, told = self._settings.worker.model_alias, self._serving(), AnnouncedModel.of
        announcements = [told(one) for one in self._board.announcements()]
        return _json(Models(alias, None if serving is None else told(serving), announcements))

    async def scores(self, request: Request) -> Response:
        """How good the models have been online."""
        self._insist_on(LOOKUPS)
        by = tuple(dict.fromkeys(request.query_params.getlist("by")))
        if unknown := [name for name in by if name not in GROUPS]:
            raise _wrong_parameter(f"by: {unknown[0]!r} is none of {', '.join(GROUPS)}")
        if len(set(by) & set(OF_PREDICTIONS)) > 1:
            raise _wrong_parameter("by: type and reason are counted apart; ask for one of them")
        last = _duration(request, "last")

        def told() -> list[dict[str, object]]:
            scores = self._board.scores()
            newest = max((score.window_start + score.window_ms for score in scores), default=0)
            since = 0 if last is None else newest - round(last * 1000)
            return [as_json(line, by) for line in lines(scores, by, since_ms=since)]

        return _json(await self.slowly(told))

    # -- for operators ------------------------------------------------------------------------------------------------

    async def live(self, _: Request) -> Response:
        """Whether the process answers."""
        return _json({"status": "alive"})

    async def ready(self, _: Request) -> Response:
        """Whether lookups are answered, and clicks taken."""
        state = self._readiness()
        ready = all(problem is None for problem in state.values())
        told = {part: problem or "ok" for part, problem in state.items()}
        return _json({"status": "ready" if ready else "not ready", **told}, 200 if ready else 503)

    async def metrics(self, _: Request) -> Response:
        """For Prometheus."""
        return Response(generate_latest(self._metrics.registry), media_type=CONTENT_TYPE_LATEST)

    # -- limits -------------------------------------------------------------------------------------------------------

    def _insist_on(self, part: str) -> None:
        if (problem := self._readiness().get(part)) is not None:
            raise unavailable("not-ready", f"{part}: {problem}")

    def _insist_on_room(self) -> None:
        if self._open >= self._settings.api.max_open:
            raise unavailable("too-many-open", f"api.max_open: {self._open} requests wait or stream already")

    @contextmanager
    def _opened(self) -> Iterator[None]:
        self._open += 1
        self._metrics.open.set(self._open)
        try:
            yield
        finally:
            self._open -= 1
            self._metrics.open.set(self._open)

    @asynccontextmanager
    async def _in_time(self) -> AsyncIterator[None]:
        seconds = self._settings.api.request_timeout
        try:
            async with asyncio.timeout(seconds):
                yield
        except TimeoutError as error:
            raise unavailable("timed-out", f"not done within api.request_timeout, {seconds:g} s") from error

    async def slowly(self, work: Callable[[], T]) -> T:
        """What `work` returns, done on a thread of its own. Raises ProblemError where that takes too long."""
        self._insist_on_room()
        with self._opened():
            async with self._in_time():
                return await asyncio.get_running_loop().run_in_executor(self._slow, work)


async def _all_of(first: bytes, rest: AsyncGenerator[bytes, None]) -> AsyncIterator[bytes]:
    async with aclosing(rest):
        yield first
        async for event in rest:
            yield event


async def _body(request: Request, most: int) -> bytes:
    """The body of a request with JSON. Raises ProblemError."""
    # Browsers ask before they send this type across origins, which they do not for a form's.
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != JSON:
        raise ProblemError(415, "unsupported-media-type", f"a click is {JSON}")
    body = b""
    try:
        async for part in request.stream():
            body += part
            if len(body) > most:
                raise ProblemError(413, "too-large", f"a click has at most {most} bytes", reason="too-large")
    except ClientDisconnect as error:
        raise ProblemError(400, "bad-request", "the body is not complete") from error
    return body


async def _of_click(watch: Watch, partition: int, offset: int, seconds: float) -> Latest | None:
    try:
        async with asyncio.timeout(seconds):
            return await watch.of_click(partition, offset)
    except TimeoutError:
        return None


def _duration(request: Request, name: str) -> float | None:
    """Seconds; None where the parameter is not given. Raises ProblemError."""
    text = request.query_params.get(name)
    if text is None:
        return None
    try:
        seconds = float(str(parse_duration(text)))
    except ValueError as error:
        raise _wrong_parameter(f"{name}: {error}") from error
    if seconds > _LONGEST_SECONDS:
        raise _wrong_parameter(f"{name}: longer than {_LONGEST_SECONDS:g} s")
    return seconds


def _event_id(latest: Latest) -> str:
    return f"{latest.partition}-{latest.offset}"


def _event(latest: Latest) -> bytes:
    if latest.is_forgotten:
        return b"event: forgotten\ndata: {}\n\n"
    data = latest.value.replace(b"\r", b"").replace(b"\n", b"\ndata: ")  # ours have no line breaks
    return b"id: %s\nevent: ranking\ndata: %s\n\n" % (_event_id(latest).encode(), data)


def _json(value: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status, headers=_OF_THE_MOMENT, media_type=JSON)


def _refused(error: ClickRejectedError) -> ProblemError:
    status = 400 if error.reason is RejectReason.NOT_JSON else 422
    return ProblemError(status, "no-click", error.detail, reason=error.reason)


def _wrong_parameter(detail: str) -> ProblemError:
    return ProblemError(422, "wrong-parameter", detail)


def _no_model(serving: ModelAnnouncement | None) -> ProblemError:
    """What the model of now is; where its bundle lies is for the log."""
    why = "no model is announced" if serving is None else f"{serving.version} cannot be used; the server's log says why"
    return ProblemError(404, "no-model", why)


def _no_ranking(settings: StreamSettings) -> ProblemError:
    hours = settings.worker.session_ttl / 3600
    detail = f"the session has no ranking: it had no click that a worker answered within {hours:g} h, or is forgotten"
    return ProblemError(404, "no-ranking", detail)
