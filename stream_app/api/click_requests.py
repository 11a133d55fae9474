"""The span of a request that brings a click: ASGI middleware, only there with `telemetry.traces`."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from stream_app.tracing import Tracing, failed

CLICKS = "/v1/clicks"


class ClickRequests:
    """Goes on with the trace of the request's headers, or begins one; the click on its topic belongs to it."""

    def __init__(self, app: ASGIApp, tracing: Tracing) -> None:
        self._app, self._tracing = app, tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] != CLICKS or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        headers = [(name.decode("latin-1"), value) for name, value in scope["headers"]]
        with self._tracing.request("POST", CLICKS, headers) as span:

            async def answer(message: Message) -> None:
                if message["type"] == "http.response.start":
                    status = message["status"]
                    span.set_attribute("http.response.status_code", status)
                    if status >= 500:
                        failed(span, str(status))
                await send(message)

            await self._app(scope, receive, answer)
