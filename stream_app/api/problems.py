"""Errors as RFC 9457 has them: every error that a client sees is one of these."""

import http
from collections.abc import Mapping
from typing import Any, Final

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

MEDIA_TYPE: Final = "application/problem+json"
_URN: Final = "urn:nextclick:problem:"


class ProblemDetails(msgspec.Struct, omit_defaults=True):
    """The body of an error."""

    type: str
    title: str
    status: int
    detail: str
    reason: str | None = None


class ProblemError(Exception):
    """Ends a request with an error. `kind` is for programs, `detail` for people."""

    def __init__(
        self,
        status: int,
        kind: str,
        detail: str,
        *,
        reason: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.kind = kind
        self.detail = detail
        self.reason = reason
        self.headers = headers

    def response(self) -> Response:
        """What the client gets."""
        title = self.kind.replace("-", " ").capitalize()
        body = ProblemDetails(_URN + self.kind, title, self.status, self.detail, self.reason)
        return Response(msgspec.json.encode(body), self.status, headers=dict(self.headers or {}), media_type=MEDIA_TYPE)


def unavailable(kind: str, detail: str, *, seconds: int = 1) -> ProblemError:
    """503, and when to ask again."""
    return ProblemError(503, kind, detail, headers={"Retry-After": str(seconds)})


async def of_problem(_: Request, error: Exception) -> Response:
    """Handler of ours."""
    assert isinstance(error, ProblemError)
    return error.response()


async def of_http(_: Request, error: Exception) -> Response:
    """Handler of Starlette's: no such path, no such method."""
    assert isinstance(error, HTTPException)
    kind = http.HTTPStatus(error.status_code).phrase.lower().replace(" ", "-")
    return ProblemError(error.status_code, kind, error.detail, headers=error.headers).response()


async def of_bug(_: Request, __: Exception) -> Response:
    """Handler of what nobody expected; the server logs it."""
    detail: Any = "the server failed at this request; its log says at what"
    return ProblemError(500, "internal-server-error", detail).response()
