"""Ids as numbers: the first id is 0, and so on."""

from collections import defaultdict
from itertools import count, islice

import numpy as np

from schemas.click_files.columns import Bools, Column, Ints, looked_up
from schemas.messages.click import MAX_ID_BYTES


class Ids:
    """All ids of a column, of several files; bad ones have numbers, too. Ids are checked once each, not once a row."""

    def __init__(self) -> None:
        self._numbers: defaultdict[bytes, int] = defaultdict(count().__next__)
        self._usable = bytearray()  # by number

    def numbers(self, column: Column) -> tuple[Ints, Bools]:
        """The number of each id, and which of them are usable, `[n]` both."""
        found = looked_up(column, self._numbers)
        new = list(islice(reversed(self._numbers), len(self._numbers) - len(self._usable)))[::-1]
        self._usable += b"\1" * len(new) if _all_usable(new) else bytes(id_reason(value) is None for value in new)
        return found, np.frombuffer(self._usable, np.bool_)[found]

    def text(self, number: int) -> str:
        """The id of a number, which must be usable."""
        return next(islice(self._numbers, number, None)).decode()

    def texts(self) -> tuple[str, ...]:
        """The ids by number; a bad one, which no row has, is empty."""
        return tuple(value.decode() if good else "" for value, good in zip(self._numbers, self._usable, strict=True))


def id_reason(value: bytes) -> str | None:
    """Why an id is none, as the worker judges it."""
    if not value:
        return "is empty"
    if len(value) > MAX_ID_BYTES:
        return f"has {len(value)} bytes, the limit is {MAX_ID_BYTES}"
    try:
        value.decode()
    except UnicodeDecodeError:
        return "is not UTF-8"
    return None


def _all_usable(ids: list[bytes]) -> bool:
    lengths = set(map(len, ids))
    if 0 in lengths or max(lengths, default=0) > MAX_ID_BYTES:
        return False
    try:
        b"\n".join(ids).decode()  # half a character does not continue after a line's end
    except UnicodeDecodeError:
        return False
    return True
