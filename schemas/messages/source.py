"""Where a click came from: the identity by which consumers drop duplicate rankings."""

from typing import Annotated, Final

import msgspec

LAST_OFFSET: Final = 2**63 - 1
Partition = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]
Offset = Annotated[int, msgspec.Meta(ge=0, le=LAST_OFFSET)]
OffsetOrNone = Annotated[int, msgspec.Meta(ge=-1, le=LAST_OFFSET)]
"""-1: there is none."""
Count = Annotated[int, msgspec.Meta(ge=0, le=LAST_OFFSET)]


class Source(msgspec.Struct, frozen=True, gc=False):
    """Position of a record in Kafka; unique within one cluster."""

    topic: str
    partition: Partition
    offset: Offset
