from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from tests.unit.trainer.builders import random_sessions, sessions_of
from trainer.data import shared_sessions
from trainer.data.sessions import SessionSet
from trainer.memory.tables import ItemTable, cooccurrence, transitions


def clicks_of(sessions: SessionSet) -> list[list[int]]:
    bounds = sessions.offsets.tolist()
    return [sessions.items[a:b].tolist() for a, b in pairwise(bounds)]


def as_dict(table: ItemTable) -> dict[int, list[tuple[int, float]]]:
    return {
        item: list(
            zip(table.row(item).tolist(), table.counts[table.starts[item] : table.starts[item + 1]], strict=True)
        )
        for item in range(len(table))
    }


def expected(counted: Counter[tuple[int, int]], items: int, width: int) -> dict[int, list[tuple[int, float]]]:
    rows: dict[int, list[tuple[int, float]]] = {item: [] for item in range(items)}
    for (item, other), count in sorted(counted.items(), key=lambda pair: (-pair[1], pair[0][1])):
        rows[item].append((other, float(count)))
    return {item: row[:width] for item, row in rows.items()}


@pytest.mark.parametrize("entries", [1, 300, 2_000_000])  # one item at a time, some, all at once
@pytest.mark.parametrize(("items", "width"), [(12, 100), (12, 3), (700, 4)])
def test_against_counting_by_hand(items: int, width: int, entries: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_sessions, "_ENTRIES", entries)
    sessions = random_sessions(400, items, longest=12, seed=3)
    followed, shared = Counter[tuple[int, int]](), Counter[tuple[int, int]]()
    for clicks in clicks_of(sessions):
        followed.update(pairwise(clicks))
        distinct = set(clicks[-5:])
        shared.update((a, b) for a in distinct for b in distinct if a != b)
    assert as_dict(transitions(sessions, width=width)) == expected(followed, items, width)
    assert as_dict(cooccurrence(sessions, width=width, longest=5)) == expected(shared, items, width)


def test_an_item_may_follow_itself_but_is_not_its_own_company() -> None:
    sessions = sessions_of([[0, 0, 0, 1], [1, 0]], items=3)
    assert as_dict(transitions(sessions, width=5)) == {0: [(0, 2.0), (1, 1.0)], 1: [(0, 1.0)], 2: []}
    assert as_dict(cooccurrence(sessions, width=5, longest=9)) == {0: [(1, 2.0)], 1: [(0, 2.0)], 2: []}


def test_a_robots_session_adds_few_pairs() -> None:
    robot = sessions_of([list(range(300)), [0, 1]])
    table = cooccurrence(robot, width=1000, longest=10)
    assert len(table.items) == 10 * 9 + 2
    assert len(table.row(0)) == 1


def test_nothing_takes_room_where_nothing_was_seen() -> None:
    table = transitions(sessions_of([[0, 1]], items=1000), width=100)
    assert (len(table.items), len(table.counts), len(table)) == (1, 1, 1000)
    assert table.items.dtype == np.int32


def test_counts_are_what_a_bundle_can_hold() -> None:
    """Float16: exact to 2,048, to three digits above, and no infinity."""
    table = transitions(sessions_of([[0] * 70_001, [0, *[1, 2] * 2049]]), width=5)
    assert as_dict(table) == {0: [(0, 65504.0), (1, 1.0)], 1: [(2, 2048.0)], 2: [(1, 2048.0)]}
    assert (table.counts == table.counts.astype(np.float16)).all()
