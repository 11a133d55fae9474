"""The distinct items that a step touches, found without sorting."""

from typing import Any

import numpy as np

from trainer.compilation import compiled
from trainer.training.gru.compiled.arithmetic import ONE, fetch, fetch_row

Ints = Any  # integers [n]
_AHEAD = 16  # elements, or rows, that are asked for before their turn


@compiled
def place_of(item: int, found: int, items: Ints, place: Ints) -> int:
    """Where the item is among the first ``found`` of ``items``, -1 if it is not.

    ``place`` int32[I] is what the item was given when it was last met, in this step or in any other: a claim that
    ``items`` confirms or does not. So nothing must be cleared between steps.
    """
    at = place[item]
    return at if 0 <= at < found and items[at] == item else -1


@compiled
def add_distinct(touched: Ints, found: int, items: Ints, place: Ints, slot: Ints) -> int:
    """Append the touched items that are not among ``items`` yet; ``slot[i]`` is where touched[i] is. The new count."""
    for i in range(len(touched)):
        if i + _AHEAD < len(touched):
            fetch(place, touched[i + _AHEAD])  # type: ignore[call-arg]
        item = touched[i]
        at = place_of(item, found, items, place)
        if at < 0:
            at = found
            items[found] = item
            place[item] = found
            found += 1
        slot[i] = at
    return found


@compiled
def weigh(slot: Ints, touched: Ints, each: Any, weight: Any) -> None:
    """Add each touched item's weight to its column's; ``each`` float32[I], or float32[1] for the same for all."""
    for i in range(len(touched)):
        weight[slot[i]] += each[touched[i]] if len(each) > 1 else ONE


@compiled
def gather(items: Ints, table: Any, first: int, last: int, rows: Any) -> None:
    """rows[u] = table[items[u]] for u of first..last."""
    for u in range(first, last):
        if u + _AHEAD < last:
            fetch_row(table, items[u + _AHEAD])
        source, target = table[items[u]], rows[u]
        for k in range(len(target)):
            target[k] = source[k]


def room(items: int) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
    """The ``place`` of a catalogue before anything was met."""
    return np.zeros(items, np.int32)
