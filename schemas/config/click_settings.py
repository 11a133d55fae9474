"""What a click is, and when a session ends: the settings that worker and trainer must not differ in."""

from typing import Annotated, Final

from pydantic import Field

from schemas.config.duration import Duration
from schemas.kafka.connection import Section
from schemas.messages.click import MAX_ID_BYTES, ClickLimits

_DEFAULTS: Final = ClickLimits()


class ClickSettings(Section):
    """[clicks]: which records are clicks and what a session is, for all workers and the trainer of a deployment."""

    idle_gap: Duration = Field(default=1800.0, gt=0, description="A later click starts the session anew.")
    max_bytes: int = Field(default=_DEFAULTS.max_bytes, ge=64, description="Larger records are rejected.")
    max_future: Duration = Field(
        default=_DEFAULTS.max_future_ms / 1000,
        ge=0,
        description="Clicks further ahead of the broker's clock are rejected.",
    )
    min_timestamp: int = Field(
        default=_DEFAULTS.min_timestamp_ms,
        ge=0,
        le=4_102_444_800_000,
        description="Clicks before it are rejected, in milliseconds since the epoch; by default the year 2000, "
        "so that a producer that sends seconds is noticed.",
    )

    advance_on: tuple[Annotated[str, Field(min_length=1, max_length=MAX_ID_BYTES)], ...] = Field(
        default=(),
        description='Types of clicks that move a session on, for example `["view", "cart"]`; empty: all. Clicks of '
        "other types get a ranking and leave the session as it is.",
    )

    @property
    def moving(self) -> frozenset[str] | None:
        """The types that move a session on; None for all."""
        return frozenset(self.advance_on) or None

    @property
    def idle_gap_ms(self) -> int:
        return round(self.idle_gap * 1000)

    @property
    def limits(self) -> ClickLimits:
        return ClickLimits(
            max_bytes=self.max_bytes,
            max_future_ms=round(self.max_future * 1000),
            min_timestamp_ms=self.min_timestamp,
        )
