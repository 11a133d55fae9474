"""What every request passes first: who it is from, how often they ask; and the metrics of its answer."""

import hashlib
import hmac
import time
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Any, Final
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from stream_app.api.metrics import ApiMetrics
from stream_app.api.problems import ProblemError
from stream_app.api_settings import is_loopback
from stream_app.errors import StreamError

_MOST_CLIENTS: Final = 10_000
_GUARDED: Final = ("/v1/", "/metrics")
"""Health, the OpenAPI document and the page tell nothing of sessions: they need no token, and have no limit."""


class TokenFileError(StreamError):
    """The file of tokens cannot be used; the message says why."""


class RateLimit:
    """A bucket a client: as many requests at once as in a second, and then so many a second."""

    def __init__(self, per_second: float) -> None:
        self._per_second = per_second
        self._most = max(1.0, per_second)
        self._buckets: OrderedDict[bytes, tuple[float, float]] = OrderedDict()  # client -> requests left, since when

    def wait(self, client: bytes, now: float) -> float:
        """Take a request of a client; returns 0, or how many seconds it is too early."""
        left, since = self._buckets.pop(client, (self._most, now))
        left = min(self._most, left + (now - since) * self._per_second)
        early = max(0.0, (1 - left) / self._per_second)
        self._buckets[client] = (left if early else left - 1, now)
        if len(self._buckets) > _MOST_CLIENTS:
            self._buckets.popitem(last=False)
        return early


class Guard:
    """Decides whether a request may go on.

    Args:
        tokens: of which a client must have one; without any, only requests to this machine's own name are answered, or
            a page whose name was turned to this machine (DNS rebinding) could read what its visitor can.
        rate_limit: requests per second and client; 0 for none.
    """

    def __init__(self, tokens: Sequence[str], rate_limit: float) -> None:
        self._digests = [hashlib.sha256(token.encode()).digest() for token in tokens]
        self._rate = RateLimit(rate_limit) if rate_limit else None

    @property
    def has_tokens(self) -> bool:
        """Whether a client must have one."""
        return bool(self._digests)

    def problem(self, scope: Scope) -> ProblemError | None:
        """Why a request may not go on; None where it may."""
        if not self._digests and not _is_for_here(_header(scope, b"host")):
            return ProblemError(403, "forbidden", "without tokens only requests to localhost are answered")
        if not scope["path"].startswith(_GUARDED):
            return None
        client = str((scope.get("client") or ("",))[0]).encode()
        if self._digests:
            scheme, _, token = _header(scope, b"authorization").partition(b" ")
            client = hashlib.sha256(token.strip()).digest()
            # All are compared, each in constant time: how long it takes tells nothing of a token.
            known = sum(hmac.compare_digest(client, digest) for digest in self._digests)
            if scheme.lower() != b"bearer" or not known:
                detail = "send a token that the server knows, as in `Authorization: Bearer TOKEN`"
                return ProblemError(401, "unauthorized", detail, headers={"WWW-Authenticate": "Bearer"})
        if self._rate is not None and (early := self._rate.wait(client, time.monotonic())):
            detail = f"too many requests; the next one is welcome in {early:.3f} s"
            return ProblemError(429, "too-many-requests", detail, headers={"Retry-After": str(int(early) + 1)})
        return None


class Gate:
    """ASGI middleware around the routes."""

    def __init__(self, app: ASGIApp, guard: Guard, metrics: ApiMetrics) -> None:
        self._app, self._guard, self._metrics = app, guard, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.perf_counter(), 500

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                self._metrics.seconds(_route(scope)).observe(time.perf_counter() - began)
            await send(message)

        problem = self._guard.problem(scope)
        try:
            await (self._app if problem is None else problem.response())(scope, receive, answer)
        finally:
            self._metrics.answered(_route(scope), status).inc()


def tokens_of(lines: Iterable[str]) -> list[str]:
    """One a line; empty lines and those that begin with # are none. Raises TokenFileError."""
    tokens = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    if not tokens:
        raise TokenFileError("it holds no token; write one per line")
    return tokens


def _route(scope: Scope) -> str:
    endpoint: Any = scope.get("endpoint")
    return getattr(endpoint, "__name__", "none")


def _header(scope: Scope, name: bytes) -> bytes:
    return next((value for key, value in scope["headers"] if key == name), b"")


def _is_for_here(host: bytes) -> bool:
    try:
        return is_loopback(urlsplit(f"//{host.decode('latin-1')}").hostname or "")
    except ValueError:
        return False
