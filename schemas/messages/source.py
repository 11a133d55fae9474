"""Where a click came from: the identity by which consumers drop duplicate rankings."""

import msgspec


class Source(msgspec.Struct, frozen=True, gc=False):
    """Position of a record in Kafka; unique within one cluster."""

    topic: str
    partition: int
    offset: int
