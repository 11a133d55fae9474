"""Vocabulary: the item ids a model knows, in the order of its item indices."""

from collections.abc import Iterable, Iterator
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from schemas.errors import VocabularyError
from schemas.messages.click import MAX_ID_BYTES

UNKNOWN: Final = -1
"""The index of an item that a vocabulary does not hold. No graph may see it: -1 would count from the end."""

_decoder: Final = msgspec.json.Decoder(list[str])


class Vocabulary:
    """Item id <-> item index, 0 to len - 1. Immutable."""

    __slots__ = ("_index", "_items")

    def __init__(self, items: Iterable[str]) -> None:
        """Raises VocabularyError for an id that is empty, over 256 bytes, not a string, or there twice."""
        self._items = tuple(items)
        self._index: dict[str, int] = {}
        for index, item in enumerate(self._items):
            if not isinstance(item, str) or not item:
                raise VocabularyError(f"item {index} is {item!r}, not an item id")
            if len(item) > MAX_ID_BYTES // 4 and len(item.encode(errors="surrogatepass")) > MAX_ID_BYTES:
                raise VocabularyError(f"item {index} is over {MAX_ID_BYTES} bytes")
            first = self._index.setdefault(item, index)
            if first != index:
                raise VocabularyError(f"item id {item!r} is there twice, at {first} and {index}")

    @property
    def items(self) -> tuple[str, ...]:
        """All item ids, in index order."""
        return self._items

    def index(self, item_id: str) -> int | None:
        """The item's index, or None when it is unknown."""
        return self._index.get(item_id)

    def item(self, index: int) -> str:
        """The id of the item with this index. Raises IndexError outside 0 to len - 1."""
        if index < 0:
            raise IndexError(f"no item has the index {index}")
        return self._items[index]

    def encode(self, item_ids: Iterable[str]) -> NDArray[np.int64]:
        """int64[n]: the indices of n item ids, UNKNOWN (-1) for those not in the vocabulary."""
        get = self._index.get
        return np.fromiter((get(item_id, UNKNOWN) for item_id in item_ids), dtype=np.int64)

    def to_json(self) -> bytes:
        """A JSON array of the ids in index order."""
        return msgspec.json.encode(self._items)

    @classmethod
    def from_json(cls, data: bytes, *, most: int | None = None) -> "Vocabulary":
        """Inverse of `to_json`, of at most so many items, give or take. Raises VocabularyError."""
        # Before they take ten times as much memory. Each id has two quotes that no backslash stands before, but where
        # it ends with one itself.
        if most is not None and data.count(b'"') - data.count(rb"\"") > 2 * most:
            raise VocabularyError(f"more than {most} items")
        try:
            items = _decoder.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise VocabularyError(f"not a JSON array of strings: {error}") from error
        return cls(items)

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __contains__(self, item_id: object) -> bool:
        return item_id in self._index

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Vocabulary) and self._items == other._items

    def __hash__(self) -> int:
        return hash(self._items)

    def __repr__(self) -> str:
        return f"Vocabulary({len(self)} items)"
