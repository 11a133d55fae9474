"""Whether the way of traced clicks is told to OpenTelemetry, of which nothing is loaded unless it is."""

from typing import TYPE_CHECKING

from pydantic import Field

from schemas.kafka.connection import Section
from stream_app.errors import TelemetryError

if TYPE_CHECKING:
    from stream_app.tracing import Tracing


class TelemetrySettings(Section):
    """[telemetry]: what is told to OpenTelemetry. Where to and how much is for its own variables (OTEL_...) to say."""

    traces: bool = Field(
        default=False,
        description="Whether workers, the API and the sink send spans of traced clicks by OTLP; needs the extra "
        "`nextclick[otel]`.",
    )


def tracing_of(settings: TelemetrySettings, service: str) -> "Tracing | None":
    """What tells the spans of a process, which is called `service` unless OTEL_SERVICE_NAME says otherwise; or None.

    Raises:
        TelemetryError: it cannot be done as the settings, or OpenTelemetry's variables, say.
    """
    if not settings.traces:
        return None
    try:
        from stream_app.tracing import start_tracing
    except ModuleNotFoundError as error:
        raise TelemetryError(
            f"telemetry.traces needs {error.name}, which is not installed: pip install 'nextclick[otel]'"
        ) from error
    return start_tracing(service)
