"""Durations as people write them: seconds, or a number with a unit."""

import re
from typing import Annotated, Final

from pydantic import BeforeValidator

_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_DURATION: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*(ms|s|m|h|d)?")


def parse_duration(value: object) -> object:
    """Seconds from a text such as `90s`, `15m`, `1h` or `30d`; numbers are seconds already. Raises ValueError."""
    if not isinstance(value, str):
        return value
    match = _DURATION.fullmatch(value.strip())
    if match is None:
        raise ValueError(f"{value!r} is no duration; write a number and a unit, as in 90s, 15m, 1h, 30d")
    return float(match[1]) * _UNITS[match[2] or "s"]


Duration = Annotated[float, BeforeValidator(parse_duration)]
