"""Item ids to indices and back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.bundle.vocabulary import UNKNOWN, Vocabulary
from schemas.errors import VocabularyError


def test_maps_both_ways() -> None:
    vocabulary = Vocabulary(["b", "a", "ü"])
    assert (len(vocabulary), list(vocabulary)) == (3, ["b", "a", "ü"])
    assert [vocabulary.index(item) for item in ("b", "a", "ü", "x")] == [0, 1, 2, None]
    assert [vocabulary.item(index) for index in range(3)] == ["b", "a", "ü"]
    assert "a" in vocabulary
    assert "x" not in vocabulary


def test_encodes_unknown_items_as_minus_one() -> None:
    encoded = Vocabulary(["b", "a"]).encode(["a", "x", "b", "a"])
    assert encoded.tolist() == [1, UNKNOWN, 0, 1]
    assert encoded.dtype == "int64"
    assert Vocabulary([]).encode([]).shape == (0,)


@pytest.mark.parametrize("index", [-1, 2])
def test_no_item_outside(index: int) -> None:
    with pytest.raises(IndexError):
        Vocabulary(["a", "b"]).item(index)


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b'["a","b","a"]', "'a' is there twice, at 0 and 2"),
        (b'["a",""]', "item 1 is ''"),
        (b'["a",5]', "Expected `str`"),
        (b'{"a":1}', "Expected `array`"),
        (b'["a"', "truncated"),
        (b'["\xff"]', "utf-8"),
        (b"[" * 9_000, "not a JSON array"),
        (b'["' + b"a" * 257 + b'"]', "item 0 is over 256 bytes"),
        ('["{}"]'.format("ü" * 129).encode(), "item 0 is over 256 bytes"),
    ],
)
def test_refuses(data: bytes, problem: str) -> None:
    with pytest.raises(VocabularyError, match=problem):
        Vocabulary.from_json(data)


@given(st.lists(st.text(st.characters(codec="utf-8"), min_size=1, max_size=60), unique=True, max_size=20))
def test_survives_json(items: list[str]) -> None:
    vocabulary = Vocabulary(items)
    again = Vocabulary.from_json(vocabulary.to_json())
    assert again == vocabulary
    assert again.items == tuple(items)
    assert again.encode(items).tolist() == list(range(len(items)))
