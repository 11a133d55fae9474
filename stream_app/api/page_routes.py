"""The page: its files, and the two endpoints that were made for it (`/v1/overview`, `/v1/items`)."""

import time
from collections.abc import Awaitable, Callable, Mapping
from hashlib import sha256
from mimetypes import guess_type
from pathlib import Path
from typing import Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from schemas.messages.announcement import ModelAnnouncement
from stream_app.api.backlog import Backlog
from stream_app.api.overview import Known, overview
from stream_app.api.problems import ProblemError
from stream_app.api.shelf import MOST_SHOWN, Shelf, ShownItem
from stream_app.api.traffic import SPAN_MS, Traffic

FOLDER: Final = Path(__file__).parent / "page"
_MOST_TEXT: Final = 256
Slowly = Callable[[Callable[[], list[ShownItem]]], Awaitable[list[ShownItem]]]
"""Does something beside the event loop."""


class PageEndpoints:
    """All of them; one a process."""

    def __init__(
        self,
        *,
        traffic: Traffic,
        shelf: Shelf,
        backlog: Backlog,
        serving: Callable[[], ModelAnnouncement | None],
        readiness: Callable[[], Mapping[str, str | None]],
        image_origins: tuple[str, ...],
        slowly: Slowly,
    ) -> None:
        self._traffic, self._shelf, self._backlog = traffic, shelf, backlog
        self._serving, self._readiness = serving, readiness
        self._image_origins = image_origins
        self._slowly = slowly

    def routes(self) -> list[Route]:
        """By path. The files are read once, so no path of a request ever names one."""
        files = sorted(path for path in FOLDER.rglob("*") if path.is_file())
        headers = _headers(self._image_origins)
        found = [_file_route(f"/{path.relative_to(FOLDER).as_posix()}", path, headers) for path in files]
        return [
            Route("/v1/overview", self.overview),
            Route("/v1/items", self.items),
            _file_route("/", FOLDER / "index.html", headers),
            *found,
        ]

    async def overview(self, _: Request) -> Response:
        """How the deployment fares."""
        backlog = await self._backlog.by_partition()
        now_ms = time.time_ns() // 1_000_000
        known = Known(now_ms, backlog, self._backlog.problem, self._serving(), self._readiness())
        return _json(overview(self._traffic, known))

    async def items(self, request: Request) -> Response:
        """Items to click on: those that the parameters name, or those that are offered."""
        now_ms = time.time_ns() // 1_000_000
        named, text = request.query_params.getlist("id"), request.query_params.get("q", "")
        if len(named) > MOST_SHOWN or len(text) > _MOST_TEXT:
            detail = f"at most {MOST_SHOWN} ids, and {_MOST_TEXT} characters in q"
            raise ProblemError(422, "wrong-parameter", detail)
        if named:
            return _json(self._shelf.named(named, now_ms))

        def offered() -> list[ShownItem]:
            return self._shelf.offered(text, now_ms, clicked=self._traffic.shares(now_ms, SPAN_MS, "items"))

        return _json(await self._slowly(offered))  # of twenty thousand: it would hold up every lookup


def _file_route(path: str, file: Path, headers: Mapping[str, str]) -> Route:
    content = file.read_bytes()
    tag = f'"{sha256(content).hexdigest()[:32]}"'
    media_type = guess_type(file.name)[0] or "text/plain"
    told = {**headers, "ETag": tag, "Cache-Control": "no-cache"}  # an upgrade shows at once

    async def page(request: Request) -> Response:
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=told)
        return Response(content, headers=told, media_type=media_type)

    return Route(path, page)


def _headers(image_origins: tuple[str, ...]) -> dict[str, str]:
    """The page loads nothing from elsewhere but images that the settings allow, and no other page may frame it."""
    policy = {
        "default-src": "'none'",
        "script-src": "'self'",
        "style-src": "'self'",
        "img-src": " ".join(("'self'", "data:", *image_origins)),
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    return {
        "Content-Security-Policy": "; ".join(f"{name} {value}" for name, value in policy.items()),
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cross-Origin-Opener-Policy": "same-origin",
    }


def _json(value: object) -> Response:
    return Response(msgspec.json.encode(value), headers={"Cache-Control": "no-store"}, media_type="application/json")
