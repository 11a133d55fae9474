"""Will a bundle hold what is to be trained? Answered before hours of training, not after them."""

from collections.abc import Callable, Mapping
from typing import Final

import msgspec
import numpy as np

from schemas.bundle.manifest import RANK, VOCABULARY, BundleLimits
from trainer.data.sessions import SessionSet
from trainer.errors import TrainingSettingsError
from trainer.export.blocks import BLOCK
from trainer.export.shortlist_catalogue import LEAST_ITEMS, MOST_BIAS_COLUMNS, padded_items
from trainer.memory.tables import ItemTable
from trainer.memory.terms import RECENT
from trainer.models.settings import LearnedSettings, TrainingSettings

_FLOAT, _INT64, _ENTRY = 4, 8, 6  # bytes; an entry of a table is an int32 and a float16
_NODES: Final = 1024**2  # more than the operators and the small constants of any graph
_LIMITS: Final = BundleLimits()


def check_bundle_size(
    sessions: SessionSet, settings: TrainingSettings, tables: Callable[[], Mapping[str, ItemTable]]
) -> None:
    """Refuse what no bundle could hold once it is trained on these sessions. Raises :class:`TrainingSettingsError`.

    ``tables`` makes those of the session memory; it is called only where their size decides.
    """
    items = len(sessions.item_ids)
    if items > _LIMITS.catalogue_size:
        raise _too_large(f"{items:,} items are more than the {_LIMITS.catalogue_size:,} of a bundle")
    names = len(msgspec.json.encode(sessions.item_ids))
    if names > _LIMITS.data_bytes:
        raise _too_large(f"{items:,} item ids take {_gib(names)} in {VOCABULARY}, of {_gib(_LIMITS.data_bytes)}")
    if not isinstance(settings, LearnedSettings):
        return  # what counts is bounded by its own settings, and refused when it is written if it is too large
    blocks = _most_blocks(sessions, settings)
    if max(graph_bytes(items, settings, blocks).values()) <= _LIMITS.graph_bytes:
        return
    if blocks and max(graph_bytes(items, settings, [0] * len(blocks)).values()) <= _LIMITS.graph_bytes:
        blocks = [int((-(-np.diff(table.starts) // BLOCK)).sum()) for table in tables().values()]
    size, name = max((size, name) for name, size in graph_bytes(items, settings, blocks).items())
    if size > _LIMITS.graph_bytes:
        memory = " with a session memory" if blocks else ""
        of_all = f"{items:,} items at {settings.units} units{memory}"
        raise _too_large(f"{of_all} take {_gib(size)} in {name}, of {_gib(_LIMITS.graph_bytes)}")


def graph_bytes(items: int, settings: LearnedSettings, table_blocks: list[int]) -> dict[str, int]:
    """By file, the most bytes that a graph of so many items can take; the memory's tables have so many blocks each."""
    units = settings.units
    rank = items * (units + 1) * _FLOAT
    if items >= LEAST_ITEMS:
        padded = padded_items(items)
        rank += padded * (units + MOST_BIAS_COLUMNS) + padded * _FLOAT
        # Tables of a tail, which item is where and where it is, are smaller than the integers that it has none of.
    for blocks in table_blocks:
        rank += items * 2 * _INT64 + (blocks + 1) * BLOCK * _ENTRY
    return {settings.encoder_file: settings.encoder_numbers(items) * _FLOAT + _NODES, RANK: rank + _NODES}


def _most_blocks(sessions: SessionSet, settings: LearnedSettings) -> list[int]:
    """As many as the memory's tables can have at most, each, whatever goes with what."""
    items, width = len(sessions.item_ids), settings.table_width
    pairs = {"cooccurrence": sessions.clicks * (RECENT - 1), "transitions": sessions.transitions}
    return [
        min(items * -(-width // BLOCK), items + entries // BLOCK)
        for name, entries in pairs.items()
        if name in settings.memory
    ]


def _too_large(cause: str) -> TrainingSettingsError:
    return TrainingSettingsError(
        f"{cause}: keep fewer items (min_support), or lower hidden_size, members or table_width, or set memory=none"
    )


def _gib(size: int) -> str:
    return f"{size / 1024**3:.2f} GiB"
