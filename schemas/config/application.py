"""Which workers belong together: what the trainer has to know of the table [worker]."""

from typing import ClassVar

from pydantic import Field

from schemas.kafka.connection import Section


class Application(Section):
    """The part of [worker] that other programs read."""

    whole: ClassVar[bool] = False

    app_id: str = Field(
        default="nextclick",
        pattern=r"^[A-Za-z0-9._-]{1,100}$",
        description="Consumer group, prefix of the changelog topic, and key of the split; the same for all workers of "
        "a deployment. `trainer split` reads it, too.",
    )
