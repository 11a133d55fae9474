"""Settings that processes have alike: their log, their page of health and metrics, their place in a consumer group."""

from typing import Annotated, Literal

from pydantic import Field

from schemas.kafka.connection import Section

WebPort = Annotated[
    int, Field(ge=0, le=65_535, description="Port of the health and metrics pages; 0 takes a free one.")
]


class LogSettings(Section):
    """How a process logs."""

    log_format: Literal["human", "json"] = Field(
        default="human", description="Log format on standard error: readable, or one JSON object per line."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Least severe level that is logged."
    )


class MemberSettings(LogSettings):
    """A process that is a member of a consumer group and serves pages for those who watch it."""

    session_timeout: float = Field(
        default=15.0,
        ge=6,
        le=300,
        description="Kafka reassigns the partitions of a process that it has not heard from for this long.",
    )
    group_instance_id: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$",
        description="Name of this process in its consumer group, under which it gets its partitions again after a "
        "restart (static membership): one per process. By default a random one that is kept in data_dir.",
    )
    web_host: str = Field(default="127.0.0.1", description="Address of the health and metrics pages.")
    web_port: WebPort
