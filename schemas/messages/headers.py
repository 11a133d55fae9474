"""Kafka headers of rankings and of rejected records, and those of a click that are passed on."""

from collections.abc import Sequence
from typing import Final

from schemas.messages.rejected import RejectedClick

Headers = list[tuple[str, bytes]]

CONTENT_TYPE: Final = "content-type"
JSON: Final = b"application/json"
MODEL: Final = "nextclick-model"
RESENT: Final = "nextclick-resent"
"""Which rejected record this is, repaired or not: topic/partition/offset. On the topic of rejected records, without a
value: that this one was sent again."""
TRACE: Final = ("traceparent", "tracestate")
"""Of W3C's Trace Context."""
_ERRORS: Final = "__streams.errors."
"""As Kafka Streams names them (KIP-1034), so that one tool finds its way through all dead letters."""


def ranking_headers(model_version: str, content_type: bytes = JSON) -> Headers:
    """Of every ranking of a model."""
    return [(CONTENT_TYPE, content_type), (MODEL, model_version.encode())]


def trace_of(headers: Sequence[tuple[str, bytes | None]] | None) -> Headers | None:
    """Those of a click's headers that its ranking has too; None without any."""
    return [(name, value) for name, value in headers or () if name in TRACE and value is not None] or None


def rejected_headers(rejected: RejectedClick) -> Headers:
    """What went wrong with a record and where it is, beside what its value says."""
    source = rejected.source
    told = {
        "exception": rejected.reason.value,
        "message": rejected.detail,
        "topic": source.topic,
        "partition": str(source.partition),
        "offset": str(source.offset),
    }
    return [(CONTENT_TYPE, JSON), *((_ERRORS + name, text.encode()) for name, text in told.items())]
