"""The rank graph's inputs, and when two answers count as the same."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.bundle.golden import Golden, close, decode_golden, encode_golden, recent_items, same_ranking


def test_recent_items() -> None:
    #                     a  b  c     three sessions, the second shorter
    clicks = np.asarray([[1, 5, 2], [2, 5, 3], [1, -1, 4], [3, -1, 2]])
    recent, counts, lengths = recent_items(clicks, 3)
    assert recent.tolist() == [[3, 1, 2], [5, -1, -1], [2, 4, 3]]
    assert counts.tolist() == [[1, 1, 1], [2, 0, 0], [1, 1, 1]]
    assert lengths.tolist() == [4, 2, 4]
    assert [array.dtype.name for array in (recent, counts, lengths)] == ["int64", "float32", "float32"]


def test_only_the_last_clicks_are_looked_at() -> None:
    recent, counts, lengths = recent_items(np.asarray([[1], [2], [3], [1]]), 2)
    assert recent.tolist() == [[1, 3]]
    assert counts.tolist() == [[1, 1]]
    assert lengths.tolist() == [4]


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=8))
def test_float32_survives_json(values: list[float]) -> None:
    floats, indices = np.asarray([values], dtype=np.float32), np.arange(len(values))[None, :]
    golden = Golden(indices, indices, floats, floats[0], indices, floats, floats[None], floats[None])
    again = decode_golden(encode_golden(golden))
    for name in ("item_index", "recent", "counts", "clicks", "top_index", "top_score", "query", "hidden"):
        before, after = getattr(golden, name), getattr(again, name)
        assert (after == before).all()
        assert after.dtype == before.dtype


@pytest.mark.parametrize(
    ("found_index", "found_score", "same"),
    [
        ([1, 2, 3], [3.0, 2.0, 1.0], True),
        ([1, 2, 3], [3.001, 1.999, 1.0], True),
        ([1, 2, 3], [3.1, 2.0, 1.0], False),
        ([1, 2, 3], [3.0, 2.0, float("nan")], False),
        ([2, 1, 3], [3.0, 2.0, 1.0], False),  # swapped, and their scores are apart
        ([1, 2, 9], [3.0, 2.0, 1.0], True),  # an item from beyond the list that ties with its last
        ([9, 2, 3], [3.0, 2.0, 1.0], False),
        ([1, 2, 2], [3.0, 2.0, 1.0], False),
        ([1, 2], [3.0, 2.0], False),
    ],
)
def test_same_ranking(found_index: list[int], found_score: list[float], same: bool) -> None:
    expected = np.asarray([[1, 2, 3]]), np.asarray([[3.0, 2.0, 1.0]], dtype=np.float32)
    found = np.asarray([found_index]), np.asarray([found_score], dtype=np.float32)
    assert same_ranking(expected, found) is same


def test_ties_may_come_in_any_order() -> None:
    expected = np.asarray([[1, 2, 3]]), np.asarray([[3.0, 3.0, 1.0]], dtype=np.float32)
    assert same_ranking(expected, (np.asarray([[2, 1, 3]]), expected[1]))
    assert not same_ranking(expected, (np.asarray([[1, 1, 3]]), expected[1]))


def test_nothing_is_close_to_nan() -> None:
    nan = np.asarray([np.nan], dtype=np.float32)
    assert not close(nan, nan)
    assert not close(nan, np.zeros(1, dtype=np.float32))
    assert not close(np.zeros((1, 2), dtype=np.float32), np.zeros((2, 1), dtype=np.float32))
