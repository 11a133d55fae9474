"""How a model version is named when nobody names it."""

from datetime import UTC, datetime, timedelta


def version_at(created_at: int) -> str:
    """The time in UTC, to the millisecond: names sort as the models were made. ``created_at`` in milliseconds."""
    at = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=created_at)
    return f"{at:%Y%m%dT%H%M%S}.{at.microsecond // 1000:03d}Z"
