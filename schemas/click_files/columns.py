"""A column of texts in its forms: a list, each value held once, or the places of the values in the text they stand in.

The last makes reading fast: a text becomes Python objects once for each distinct value of a block, not once a row.
"""

from collections.abc import Mapping, Sequence
from itertools import compress
from typing import Any, Final

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Int32s = npt.NDArray[np.int32]
Bools = npt.NDArray[np.bool_]
Bytes = npt.NDArray[np.uint8]

_PADDING: Final = 8
_MASKS: Final = np.array([(1 << 8 * size) - 1 for size in range(9)], np.uint64)  # the first bytes of a word
_MIX: Final = np.uint64(0x9E3779B97F4A7C15)


class Encoded(Sequence[bytes]):
    """Each value once, and which one each row has, `[n]`."""

    def __init__(self, values: Sequence[bytes], indices: Ints) -> None:
        self.values = values
        self.indices = indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, place: int) -> bytes:  # type: ignore[override]  # no slices
        return self.values[int(self.indices[place])]


class Text:
    """A block of text, as bytes and as the eight bytes that begin at each place."""

    def __init__(self, block: bytes) -> None:
        self.padded = block + bytes(_PADDING)
        self.cells: Bytes = np.frombuffer(block, np.uint8)
        self.words = np.ndarray((len(block) + 1,), np.uint64, self.padded, strides=(1,))


class Cells(Sequence[bytes]):
    """The texts that begin at `starts` and have `lengths`, `[n]` both."""

    def __init__(self, text: Text, starts: Ints, lengths: Ints) -> None:
        self._text = text
        self.starts = starts
        self.lengths = lengths

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, place: int) -> bytes:  # type: ignore[override]  # no slices
        start = int(self.starts[place])
        return self._text.padded[start : start + int(self.lengths[place])]

    def where(self, keep: Bools) -> "Cells":
        """Of the rows that the mask `[n]` names."""
        return Cells(self._text, self.starts[keep], self.lengths[keep])

    def matrix(self) -> Bytes | None:
        """Texts of one length, `[n, length]`, else None."""
        width = int(self.lengths[0])
        if not width or (self.lengths != width).any():
            return None
        found: Bytes = self._text.cells[self.starts[:, None] + np.arange(width)]
        return found

    def encoded(self) -> Encoded:
        """Each value once, in the order in which they come."""
        words = self._words()
        hashes = self.lengths.astype(np.uint64)
        for word in words:
            hashes = (hashes ^ word) * _MIX
            hashes ^= hashes >> np.uint64(29)
        _, first, indices = np.unique(hashes, return_index=True, return_inverse=True)
        like = first[indices]
        if not all((column == column[like]).all() for column in (self.lengths, *words)):
            return Encoded(list(self), np.arange(len(self)))  # two texts of one hash
        order = np.argsort(first)
        places = np.empty_like(order)
        places[order] = np.arange(len(order))
        spans = zip(self.starts[first[order]].tolist(), self.lengths[first[order]].tolist(), strict=True)
        return Encoded([self._text.padded[start : start + length] for start, length in spans], places[indices])

    def _words(self) -> list[npt.NDArray[np.uint64]]:
        """The texts as words of eight bytes, zeros after their ends; as many as the longest one needs."""
        last = len(self._text.words) - 1
        return [
            self._text.words[np.minimum(self.starts + at, last)] & _MASKS[np.clip(self.lengths - at, 0, 8)]
            for at in range(0, int(self.lengths.max(initial=1)), 8)
        ]


Column = Sequence[bytes]


def looked_up(column: Column, table: Mapping[bytes, int]) -> Ints:
    """The number of each value in the table, `[n]`."""
    if isinstance(column, Cells):
        column = column.encoded()
    if isinstance(column, Encoded):
        return looked_up(column.values, table)[column.indices]
    return np.fromiter(map(table.__getitem__, column), np.int64, len(column))


def where(column: Any, keep: Bools) -> Any:
    """The values of a column, or of an array, that the mask `[n]` names."""
    if isinstance(column, np.ndarray):
        return column[keep]
    if isinstance(column, Cells):
        return column.where(keep)
    if isinstance(column, Encoded):
        return Encoded(column.values, column.indices[keep])
    return list(compress(column, keep.tolist()))
