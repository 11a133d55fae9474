"""A table of entries in blocks of a few, as a rank graph stores it: a row has as many blocks as it needs."""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from trainer.memory.tables import ItemTable

BLOCK: Final = 8  # entries: a row wastes half of them on average, and a row of 100 is 13 reads


@dataclass(frozen=True)
class Blocks:
    """A table in blocks of 8 entries, the first block empty; Q blocks, at most ``most`` a row.

    first, count  int64[I]  row j has the blocks ``first[j]`` to ``first[j] + count[j]``
    items         int32[Q, 8], counts f16[Q, 8] (or of another type): 0 where a row has no more entries
    """

    first: npt.NDArray[np.int64]
    count: npt.NDArray[np.int64]
    items: npt.NDArray[np.int32]
    counts: npt.NDArray[Any]
    most: int

    @classmethod
    def of(cls, table: ItemTable) -> "Blocks":
        return cls.of_rows(table.starts, table.items, table.counts.astype(np.float16))

    @classmethod
    def of_rows(cls, starts: npt.NDArray[np.int64], items: npt.NDArray[np.int32], counts: npt.NDArray[Any]) -> "Blocks":
        """Of a table whose row j has the entries from ``starts[j]`` to ``starts[j + 1]``."""
        lengths = np.diff(starts)
        count = -(-lengths // BLOCK)
        first = 1 + np.cumsum(count) - count
        at = np.repeat(first * BLOCK - starts[:-1], lengths) + np.arange(len(items))
        size = (1 + int(count.sum())) * BLOCK
        item, number = np.zeros(size, np.int32), np.zeros(size, counts.dtype)
        item[at], number[at] = items, counts
        most = max(1, int(count.max(initial=0)))
        return cls(first, count, item.reshape(-1, BLOCK), number.reshape(-1, BLOCK), most)
