"""Health and metrics over HTTP."""

import logging
from collections.abc import Callable, Mapping
from typing import Any

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.log import server_logger
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest


class Web:
    """`/livez`, `/readyz` and `/metrics`, on loopback unless told otherwise.

    Args:
        readiness: what must be true before clicks are served, each with None or why it is not.
        refresh: brings gauges up to date before they are read.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        registry: CollectorRegistry,
        readiness: Callable[[], Mapping[str, str | None]],
        refresh: Callable[[], None],
    ) -> None:
        self._host, self._asked_port = host, port
        self._registry = registry
        self._readiness = readiness
        self._refresh = refresh
        self._runner: web.ServerRunner | None = None
        self._pages = {"/livez": self._live, "/readyz": self._ready, "/metrics": self._metrics}
        self.port = port

    async def start(self) -> None:
        """Listen. Raises OSError when the port is taken."""
        server_logger.addFilter(_calmly)
        # No `web.Application`: it fails at what a client may expect (RFC 9110, 10.1.1), before we are asked.
        server = web.Server(self._answer, access_log=None, auto_decompress=False)  # no body is read
        self._runner = web.ServerRunner(server)
        await self._runner.setup()
        await web.TCPSite(self._runner, self._host, self._asked_port).start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        """Stop listening."""
        if self._runner is not None:
            await self._runner.cleanup()

    async def _answer(self, request: web.BaseRequest) -> web.Response:
        page = self._pages.get(request.path)
        if page is None:
            return web.Response(text="404: Not Found", status=404)
        if request.method not in ("GET", "HEAD"):
            return web.Response(text="405: Method Not Allowed", status=405, headers={"Allow": "GET,HEAD"})
        return page()

    def _live(self) -> web.Response:
        return web.json_response({"status": "alive"})

    def _ready(self) -> web.Response:
        state = self._readiness()
        ready = all(problem is None for problem in state.values())
        body: dict[str, Any] = {
            "status": "ready" if ready else "not ready",
            **{part: problem or "ok" for part, problem in state.items()},
        }
        return web.json_response(body, status=200 if ready else 503)

    def _metrics(self) -> web.Response:
        self._refresh()
        return web.Response(body=generate_latest(self._registry), headers={"Content-Type": CONTENT_TYPE_LATEST})


def _calmly(record: logging.LogRecord) -> bool:
    """Make aiohttp's error with a traceback a warning where a client sent what is no HTTP, for which it gets a 400.

    Whoever reaches the port would fill the log, and the traceback quotes the request with all that it holds.
    """
    error = record.exc_info[1] if isinstance(record.exc_info, tuple) else None
    if isinstance(error, HttpProcessingError | web.RequestPayloadError):
        record.levelno, record.levelname = logging.WARNING, logging.getLevelName(logging.WARNING)
        record.msg, record.args, record.exc_info = "a request is refused: it is no HTTP", (), None
    return True
