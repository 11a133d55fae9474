"""Health and metrics over HTTP."""

from collections.abc import Callable, Mapping
from typing import Any

from aiohttp import web
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
        self._runner: web.AppRunner | None = None
        self.port = port

    async def start(self) -> None:
        """Listen. Raises OSError when the port is taken."""
        app = web.Application()
        app.add_routes(
            [web.get("/livez", self._live), web.get("/readyz", self._ready), web.get("/metrics", self._metrics)]
        )
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        await web.TCPSite(self._runner, self._host, self._asked_port).start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        """Stop listening."""
        if self._runner is not None:
            await self._runner.cleanup()

    async def _live(self, _: web.Request) -> web.Response:
        return web.json_response({"status": "alive"})

    async def _ready(self, _: web.Request) -> web.Response:
        state = self._readiness()
        ready = all(problem is None for problem in state.values())
        body: dict[str, Any] = {
            "status": "ready" if ready else "not ready",
            **{part: problem or "ok" for part, problem in state.items()},
        }
        return web.json_response(body, status=200 if ready else 503)

    async def _metrics(self, _: web.Request) -> web.Response:
        self._refresh()
        return web.Response(body=generate_latest(self._registry), headers={"Content-Type": CONTENT_TYPE_LATEST})
