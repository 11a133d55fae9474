"""What a source of rows hands over: some rows of a file, by column."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from schemas.click_files.clock import Floats
from schemas.click_files.columns import Column, Ints


@dataclass(frozen=True)
class BadRow:
    """Where a row that is no click stands (1-based line of a text, 1-based row of a Parquet file), and why."""

    place: str
    reason: str


@dataclass
class Rows:
    """Rows one after another, `[n]` each.

    numbers  line in a text, row in a Parquet file; from 1
    time     texts, numbers, or an array with NaN where there is none; None without a time column
    broken   what could not be taken apart at all, among these rows
    """

    numbers: Ints
    session: Column
    item: Column
    time: Sequence[Any] | Floats | None = None
    since: Sequence[Any] | None = None
    kind: Column | None = None
    event: Column | None = None
    broken: list[BadRow] = field(default_factory=list)
