"""TOML as people write it by hand: whatever the text is, its tables, or one error."""

import tomllib
from collections.abc import Mapping
from typing import Any


def parse_toml(text: str) -> dict[str, Any]:
    """The tables of a text. Raises ValueError, also for a number of more than 64 bits, which TOML does not have."""
    try:
        tables = tomllib.loads(text)
        _check_integers(tables)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    return tables


def _check_integers(value: object) -> None:
    # tomllib reads any: in hexadecimal even those that Python does not print, so that no message could name them.
    if isinstance(value, int) and value.bit_length() > 63:
        raise ValueError("an integer of more than 64 bits")
    for inner in value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ():
        _check_integers(inner)
