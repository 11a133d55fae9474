"""Session memory: what the session's own items say about the next one, added to the network's scores.

A GRU squeezes a session into H numbers, and on items already clicked it is worse than counting. So three terms are
added to the score z_i of an item, each with a few learned weights (:mod:`trainer.memory.fit`):

    repeat          items clicked in this session:  a_r + b ln n_i + c (z_i - max z) + d ln l
    co-occurrence   items that shared sessions with the session's last ones:  Σ_r Σ_s v_rs ln(1 + C_ji / s)
    transitions     items that came right after the last one:  Σ_s w_s ln(1 + T_ji / s)

r is the place of a distinct item j of the session, the most recent 1; i was clicked n_i times in a session of l clicks;
C and T are sparse (:mod:`trainer.memory.tables`), s a few scales. Every other item keeps z_i, so the terms cost a few
hundred additions a session, whatever the catalogue's size.

Shapes: B sessions, I items, R recent items, D places of a table's term, M entries a row, S scales.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import torch
from torch import Tensor

from trainer.memory.tables import ItemTable

PLACES: Final = 7
"""Recency ranks with a weight of their own in the repeat term; the last stands for all behind it as well."""
SCALES: Final = (0.3, 1.0, 10.0)
TABLES: Final = ("cooccurrence", "transitions")
"""Names of the terms that have a table."""
RECENT: Final = 30
"""Distinct recent items that a session's row keeps and the terms may look at."""


@dataclass(frozen=True)
class RepeatTerm:
    """Weights of the repeat term."""

    place: Tensor  # [7]
    count: Tensor  # []
    score: Tensor  # []
    length: Tensor  # []


@dataclass(frozen=True)
class TableTerm:
    """A table and the weights of its counts."""

    table: ItemTable
    weights: Tensor  # [D, S]


@dataclass(frozen=True)
class SessionMemory:
    """The terms of a model; None for a term that it does without. False where it has none."""

    repeat: RepeatTerm | None = None
    cooccurrence: TableTerm | None = None
    transitions: TableTerm | None = None

    def __bool__(self) -> bool:
        return self.repeat is not None or bool(self.tables)

    @property
    def tables(self) -> dict[str, TableTerm]:
        named = {"cooccurrence": self.cooccurrence, "transitions": self.transitions}
        return {name: term for name, term in named.items() if term is not None}

    def with_tables(self, tables: Mapping[str, ItemTable]) -> "SessionMemory":
        """The same weights over other tables, by the name of their term."""
        terms = {name: replace(term, table=tables[name]) for name, term in self.tables.items()}
        return SessionMemory(self.repeat, terms.get("cooccurrence"), terms.get("transitions"))


NO_MEMORY: Final = SessionMemory()


def remember(memory: SessionMemory, z: Tensor, recent: Tensor, counts: Tensor, clicks: Tensor) -> Tensor:
    """Scores with the terms: z [B, I], recent int64[B, R] (padded with -1), counts [B, R], clicks [B] -> [B, I]."""
    items, added = [], []
    if memory.repeat is not None:
        items.append(recent)  # [B, R]
        added.append(repeat_values(memory.repeat, z, recent, counts, clicks))  # [B, R]
    for term in memory.tables.values():
        index, count = table_rows(term.table, recent[:, : len(term.weights)])  # [B, D, M]
        items.append(index.flatten(1))  # [B, D M]
        added.append(table_values(term, count).flatten(1))  # [B, D M]
    if not items:
        return z
    # Padding adds 0 to the first item.
    return z.scatter_add(1, torch.cat(items, dim=1).clamp(min=0), torch.cat(added, dim=1))


def repeat_values(term: RepeatTerm, z: Tensor, recent: Tensor, counts: Tensor, clicks: Tensor) -> Tensor:
    """What the repeat term adds to each recent item, 0 where padded: [B, R]."""
    known = recent >= 0  # [B, R]
    own = z.gather(1, recent.clamp(min=0)) - z.max(dim=1, keepdim=True).values  # [B, R]
    value = (
        term.place[place_of(recent.shape[1])]  # [R]
        + term.count * counts.clamp(min=1).log()  # [B, R]
        + term.score * own  # [B, R]
        + term.length * clicks.clamp(min=1).log().unsqueeze(1)  # [B, 1]
    )
    return value * known


def place_of(recent_size: int) -> Tensor:
    """Which of a term's weights each recent item takes: int64[R]."""
    return torch.arange(recent_size).clamp(max=PLACES - 1)


def table_rows(table: ItemTable, index: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of a table: int64[B, D] -> items int64[B, D, M] padded with -1, counts [B, D, M] padded with 0.

    An index of -1, no item, has an empty row.
    """
    known = index.numpy().clip(min=0)  # [B, D]
    start = table.starts[known]
    end = np.where(index.numpy() >= 0, table.starts[known + 1], start)  # [B, D]
    entry = start[..., None] + np.arange(table.width)  # [B, D, M]
    there = entry < end[..., None]
    entry = np.where(there, entry, 0)
    if not len(table.items):
        return torch.full(entry.shape, -1), torch.zeros(entry.shape)
    items = np.where(there, table.items[entry], -1).astype(np.int64)
    return torch.from_numpy(items), torch.from_numpy(np.where(there, table.counts[entry], np.float32(0)))


def table_values(term: TableTerm, count: Tensor) -> Tensor:
    """What a table's term adds for each entry, 0 where padded: [B, D, M] -> [B, D, M]."""
    depth = count.shape[1]
    value = torch.zeros_like(count)
    for s, scale in enumerate(SCALES):
        value = value + term.weights[:depth, s, None] * torch.log1p(count / scale)  # [D, 1] * [B, D, M]
    return value
