"""The terms against a slow reference, item by item."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from tests.unit.trainer.builders import random_sessions
from trainer.memory.tables import ItemTable, cooccurrence, transitions
from trainer.memory.terms import NO_MEMORY, PLACES, SCALES, RepeatTerm, SessionMemory, TableTerm, remember

ITEMS, RECENT = 40, 10


def drawn(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def whole_memory(items: int = ITEMS) -> SessionMemory:
    sessions = random_sessions(300, items, seed=4)
    weights = drawn(PLACES + 3, seed=1)
    return SessionMemory(
        RepeatTerm(weights[:PLACES], weights[PLACES], weights[PLACES + 1], weights[PLACES + 2]),
        TableTerm(cooccurrence(sessions, width=6, longest=30), drawn(8, len(SCALES), seed=2)),
        TableTerm(transitions(sessions, width=4), drawn(1, len(SCALES), seed=3)),
    )


def inputs(batch: int, seed: int = 5) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """z [B, I], and sessions of 0 to RECENT distinct items."""
    rng = np.random.default_rng(seed)
    recent, counts = np.full((batch, RECENT), -1), np.zeros((batch, RECENT), np.float32)
    for row in range(batch):
        size = row % (RECENT + 1)
        recent[row, :size] = rng.choice(ITEMS, size, replace=False)
        counts[row, :size] = rng.integers(1, 5, size)
    clicks = counts.sum(axis=1) + rng.integers(0, 3, batch)
    session = (torch.from_numpy(array) for array in (recent, counts, clicks.astype(np.float32)))
    return drawn(batch, ITEMS, seed=seed), next(session), next(session), next(session)


def by_hand(
    memory: SessionMemory, z: list[float], recent: list[int], counts: list[float], clicks: float
) -> list[float]:
    session = [item for item in recent if item >= 0]
    scores = list(z)
    if memory.repeat:
        term = memory.repeat
        for place, item in enumerate(session):
            scores[item] += float(term.place[min(place, PLACES - 1)] + term.count * math.log(counts[place]))
            scores[item] += float(term.score * (z[item] - max(z)) + term.length * math.log(clicks))

    def add(table: ItemTable, weights: Any) -> None:
        for place, item in enumerate(session[: len(weights)]):
            for entry in range(table.starts[item], table.starts[item + 1]):
                logs = [math.log(1 + table.counts[entry] / scale) for scale in SCALES]
                scores[table.items[entry]] += float(weights[place] @ torch.tensor(logs))

    for table_term in memory.tables.values():
        add(table_term.table, table_term.weights)
    return scores


@pytest.mark.parametrize("terms", [("repeat",), ("cooccurrence",), ("transitions",), ("repeat", "transitions"), None])
def test_each_term(terms: tuple[str, ...] | None) -> None:
    memory = whole_memory()
    if terms is not None:
        memory = SessionMemory(**{name: getattr(memory, name) for name in terms})
    z, recent, counts, clicks = inputs(25)
    before = [tensor.clone() for tensor in (z, recent, counts, clicks)]
    found = remember(memory, z, recent, counts, clicks)
    for row in range(len(z)):
        expected = by_hand(memory, z[row].tolist(), recent[row].tolist(), counts[row].tolist(), float(clicks[row]))
        np.testing.assert_allclose(found[row].numpy(), expected, rtol=1e-4, atol=1e-5)
    assert all(torch.equal(a, b) for a, b in zip(before, (z, recent, counts, clicks), strict=True))


def test_without_terms_the_scores_are_what_they_were() -> None:
    z, *session = inputs(5)
    assert remember(NO_MEMORY, z, *session) is z
    assert not NO_MEMORY
    assert whole_memory()


def test_what_no_term_touches_keeps_its_score() -> None:
    memory = SessionMemory(transitions=whole_memory().transitions)
    assert memory.transitions is not None
    z, recent, counts, clicks = inputs(12)
    moved = remember(memory, z, recent, counts, clicks) != z
    for row in range(len(z)):
        touched = set(memory.transitions.table.row(int(recent[row, 0])).tolist()) if recent[row, 0] >= 0 else set()
        assert set(torch.nonzero(moved[row]).squeeze(1).tolist()) == touched


def test_sessions_do_not_see_each_other() -> None:
    memory, (z, *session) = whole_memory(), inputs(20)
    together = remember(memory, z, *session)
    for row in range(len(z)):
        alone = remember(memory, z[row : row + 1], *(tensor[row : row + 1] for tensor in session))
        assert torch.equal(alone[0], together[row])


def test_other_tables_keep_the_weights() -> None:
    memory, table = whole_memory(), transitions(random_sessions(20, ITEMS, seed=9), width=3)
    again = memory.with_tables({"cooccurrence": table, "transitions": table})
    assert again.repeat is memory.repeat
    for name, term in again.tables.items():
        assert term.table is table
        assert torch.equal(term.weights, memory.tables[name].weights)
    assert NO_MEMORY.with_tables({"transitions": table}) == NO_MEMORY
