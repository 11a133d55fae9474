"""Splits: what is refused, and why."""

import json
from typing import Any

import pytest

from schemas.messages.examples import SPLIT
from schemas.messages.refused import RecordRefusedError, RefuseReason
from schemas.messages.split import Split, Variant, decode_split, encode_split


def test_what_is_written_is_read() -> None:
    assert decode_split(b"nextclick", encode_split(SPLIT)) == SPLIT
    assert decode_split(b"a", b'{"app_id":"a"}') == Split(app_id="a")


@pytest.mark.parametrize(
    ("variants", "reason", "problem"),
    [
        ([("a", 90), ("b", 9)], RefuseReason.BAD_SPLIT, "add up to 99, and must add up to 100"),
        ([("a", 99.999), ("b", 0.001)], RefuseReason.BAD_SPLIT, "more than two decimals"),
        ([(f"a{n}", 10) for n in range(10)], RefuseReason.BAD_SPLIT, "names 10 aliases"),
        ([("a", 110), ("b", -10)], RefuseReason.WRONG_TYPE, "Expected `float` <= 100.0"),
        ([("a", 0), ("b", 100)], RefuseReason.WRONG_TYPE, "Expected `float` > 0.0"),
        ([("../a", 100)], RefuseReason.WRONG_TYPE, "matching regex"),
        ([("a\n", 100)], RefuseReason.WRONG_TYPE, "matching regex"),
    ],
)
def test_a_split_that_cannot_be_served_is_refused(
    variants: list[tuple[str, float]], reason: RefuseReason, problem: str
) -> None:
    value = {"app_id": "a", "variants": [{"alias": alias, "share": share} for alias, share in variants]}
    with pytest.raises(RecordRefusedError, match=problem) as refused:
        decode_split(b"a", json.dumps(value).encode())
    assert refused.value.reason == reason


@pytest.mark.parametrize(
    ("key", "value"), [(b"b", {"app_id": "a"}), (b"a", {"app_id": "a", "variant": []}), (None, {"app_id": "a"})]
)
def test_another_key_and_unknown_fields_are_refused(key: bytes | None, value: dict[str, Any]) -> None:
    with pytest.raises(RecordRefusedError):
        decode_split(key, json.dumps(value).encode())


def test_shadows_are_models_too() -> None:
    with pytest.raises(RecordRefusedError, match="b is named as a shadow and once more"):
        encode_split(Split(app_id="a", variants=(Variant("b", 100.0),), shadow=("b",)))
    with pytest.raises(RecordRefusedError, match="names 9 aliases"):
        encode_split(Split(app_id="a", variants=(Variant("b", 100.0),), shadow=tuple("cdefghij")))


def test_nobody_writes_what_is_refused() -> None:
    with pytest.raises(RecordRefusedError, match="add up to 90"):
        encode_split(Split(app_id="a", variants=(Variant("champion", 90.0),)))
