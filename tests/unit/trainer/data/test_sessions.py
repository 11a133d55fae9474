from itertools import pairwise

import numpy as np
import pytest

from schemas.click_files.read import ClickLog
from tests.unit.trainer.builders import sessions_of
from trainer.data.sessions import (
    SessionSet,
    drop_short,
    encode,
    group_sessions,
    temporal_holdout,
    train_and_test,
    vocabulary_of,
)
from trainer.errors import TooFewSessionsError


def log_of(*clicks: tuple[str, str, int], timed: bool = True) -> ClickLog:
    sessions = {s: i for i, s in enumerate(dict.fromkeys(s for s, _, _ in clicks))}
    items = {x: i for i, x in enumerate(dict.fromkeys(x for _, x, _ in clicks))}
    return ClickLog(
        session=np.array([sessions[s] for s, _, _ in clicks], dtype=np.int64),
        item=np.array([items[x] for _, x, _ in clicks], dtype=np.int64),
        item_ids=tuple(items),
        timestamp=np.array([t for _, _, t in clicks], dtype=np.int64) if timed else None,
    )


def as_lists(sessions: SessionSet) -> list[list[str]]:
    ids = [sessions.item_ids[i] for i in sessions.items.tolist()]
    return [ids[a:b] for a, b in pairwise(sessions.offsets.tolist())]


def test_groups_interleaved_sessions_in_time_order_oldest_last_click_first() -> None:
    log = log_of(("s", "a", 10), ("t", "b", 20), ("s", "d", 50), ("t", "c", 30), ("s", "x", 40))
    sessions = group_sessions(log)
    assert as_lists(sessions) == [["b", "c"], ["a", "x", "d"]]
    assert sessions.ends.tolist() == [30, 50]


def test_equal_times_keep_the_order_of_the_file() -> None:
    assert as_lists(group_sessions(log_of(("s", "b", 5), ("s", "a", 5), ("s", "c", 5)))) == [["b", "a", "c"]]


def test_without_times_the_order_of_the_file_counts() -> None:
    log = log_of(("s", "a", 0), ("t", "b", 0), ("t", "c", 0), ("s", "d", 0), timed=False)
    sessions = group_sessions(log)
    assert as_lists(sessions) == [["b", "c"], ["a", "d"]]
    assert not sessions.timed


def test_a_click_later_than_the_idle_gap_starts_a_session() -> None:
    log = log_of(("s", "a", 0), ("s", "b", 100), ("s", "c", 201), ("t", "d", 150))
    assert as_lists(group_sessions(log, idle_gap_ms=100)) == [["a", "b"], ["d"], ["c"]]
    assert as_lists(group_sessions(log)) == [["d"], ["a", "b", "c"]]


def test_an_idle_gap_needs_times() -> None:
    with pytest.raises(ValueError, match="no"):
        group_sessions(log_of(("s", "a", 0), timed=False), idle_gap_ms=1)


def test_vocabulary_is_the_most_clicked_first_and_knows_no_item_of_single_clicks() -> None:
    sessions = sessions_of([[0, 2], [2, 1], [3], [0, 2, 4]])
    assert vocabulary_of(sessions) == ("i2", "i0", "i1", "i4")
    assert vocabulary_of(sessions, min_support=2) == ("i2", "i0")
    with pytest.raises(TooFewSessionsError, match="min_support"):
        vocabulary_of(sessions, min_support=9)


def test_encoding_drops_unknown_clicks_and_then_sessions_of_one() -> None:
    encoded = encode(sessions_of([[0, 9, 1], [9, 0], [1, 1]]), ("i1", "i0"))
    assert as_lists(encoded) == [["i0", "i1"], ["i1", "i1"]]
    assert encoded.items.tolist() == [1, 0, 0, 0]
    assert encoded.ends.tolist() == [0, 2]


def test_the_holdout_is_the_newest_sessions() -> None:
    sessions = sessions_of([[0, i] for i in range(1, 11)])
    older, newer = temporal_holdout(sessions, fraction=0.3)
    assert [session[1] for session in as_lists(older)] == [f"i{i}" for i in range(1, 8)]
    assert [session[1] for session in as_lists(newer)] == ["i8", "i9", "i10"]


def test_a_holdout_by_duration_takes_the_sessions_that_end_within_it() -> None:
    log = log_of(*[(f"s{t}", x, t) for t in (0, 100, 199, 200, 300) for x in "ab"])
    older, newer = temporal_holdout(group_sessions(log), duration_ms=100)
    assert (older.ends.tolist(), newer.ends.tolist()) == ([0, 100, 199], [200, 300])


@pytest.mark.parametrize("fraction", [0.0, 0.01, 1.0])
def test_a_holdout_that_leaves_a_part_empty_is_refused(fraction: float) -> None:
    with pytest.raises(TooFewSessionsError):
        temporal_holdout(sessions_of([[0, 1], [1, 0]]), fraction=fraction)


def test_test_sessions_are_cut_to_the_vocabulary_of_training() -> None:
    train, test = train_and_test(sessions_of([[0, 1], [1, 2]]), sessions_of([[7, 0, 2], [8, 1]]))
    assert test.item_ids == train.item_ids == ("i1", "i0", "i2")
    assert as_lists(test) == [["i0", "i2"]]
    with pytest.raises(TooFewSessionsError, match="test"):
        train_and_test(sessions_of([[0, 1]]), sessions_of([[7, 8]]))


def test_support_and_transitions_count() -> None:
    sessions = sessions_of([[0, 0, 2], [1], [2, 0]])
    assert sessions.support().tolist() == [3, 1, 2]
    assert sessions.transitions == 3
    assert drop_short(sessions).clicks == 5


def test_the_newest_clicks_of_each_session() -> None:
    sessions = sessions_of([[0, 1, 2], [3], [4, 5]], items=6)
    cut = sessions.newest(2)
    assert (cut.items.tolist(), cut.offsets.tolist()) == ([1, 2, 3, 4, 5], [0, 2, 3, 5])
    assert cut.ends.tolist() == sessions.ends.tolist()
    assert sessions.newest(3) is sessions
