"""What is an item and what is a rule, and why a record is neither."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.messages.examples import ITEM, RULE
from schemas.messages.item import decode_item, encode_item
from schemas.messages.refused import MOST_BYTES, RecordRefusedError, RefuseReason
from schemas.messages.rule import decode_rule, encode_rule

ITEM_FIELDS: dict[str, Any] = json.loads(encode_item(ITEM))
RULE_FIELDS: dict[str, Any] = json.loads(encode_rule(RULE))


def changed(fields: dict[str, Any], **change: Any) -> bytes:
    merged = fields | {name.replace("from_", "from"): value for name, value in change.items()}
    return json.dumps({name: value for name, value in merged.items() if value is not ...}).encode()


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (b"", RefuseReason.NOT_JSON),
        (b"{", RefuseReason.NOT_JSON),
        (b"\xff", RefuseReason.NOT_JSON),
        (b"[" * 100_000, RefuseReason.TOO_LARGE),
        (b'{"attributes":{"a":' + b"[" * 50_000, RefuseReason.NOT_JSON),
        (b" " * (MOST_BYTES + 1), RefuseReason.TOO_LARGE),
        (b"[]", RefuseReason.WRONG_TYPE),
        (changed(ITEM_FIELDS, item_id=7), RefuseReason.WRONG_TYPE),
        (changed(ITEM_FIELDS, item_id=...), RefuseReason.WRONG_TYPE),
        (changed(ITEM_FIELDS, available="true"), RefuseReason.WRONG_TYPE),
        (changed(ITEM_FIELDS, available_until=-1), RefuseReason.WRONG_TYPE),
        (changed(ITEM_FIELDS, available_until=2**63), RefuseReason.WRONG_TYPE),
        (changed(ITEM_FIELDS, available_from=10**40), RefuseReason.WRONG_TYPE),
        (changed(ITEM_FIELDS, availible=False), RefuseReason.WRONG_TYPE),
        (changed(ITEM_FIELDS, markets="de"), RefuseReason.WRONG_TYPE),
        (changed(ITEM_FIELDS, item_id=""), RefuseReason.BAD_ID),
        (changed(ITEM_FIELDS, item_id="ä" * 129), RefuseReason.BAD_ID),
        (changed(ITEM_FIELDS, markets=[""]), RefuseReason.BAD_ID),
        (changed(ITEM_FIELDS, categories=["c" * 257]), RefuseReason.BAD_ID),
        (changed(ITEM_FIELDS, item_id="camera-8"), RefuseReason.KEY_MISMATCH),
        (changed(ITEM_FIELDS, available_from=9, available_until=9), RefuseReason.BAD_TIMES),
    ],
)
def test_what_is_no_item_is_refused_with_its_reason(value: bytes, reason: RefuseReason) -> None:
    with pytest.raises(RecordRefusedError) as refused:
        decode_item(ITEM.item_id.encode(), value)
    assert refused.value.reason == reason


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"action": "hide"}, RefuseReason.WRONG_TYPE),
        ({"boost": 100.5}, RefuseReason.WRONG_TYPE),
        ({"match": {"item": ["a"]}}, RefuseReason.WRONG_TYPE),
        ({"begin": 1}, RefuseReason.WRONG_TYPE),
        ({"until": 10**40}, RefuseReason.WRONG_TYPE),
        ({"markets": [""]}, RefuseReason.BAD_ID),
        ({"from_": 5, "until": 5}, RefuseReason.BAD_TIMES),
        ({"match": {}}, RefuseReason.BAD_RULE),
        ({"boost": ...}, RefuseReason.BAD_RULE),
        ({"place": 1}, RefuseReason.BAD_RULE),
        ({"action": "exclude"}, RefuseReason.BAD_RULE),
        ({"action": "pin", "boost": ..., "place": 1}, RefuseReason.BAD_RULE),
        ({"action": "pin", "boost": ..., "match": {"items": ["a"]}}, RefuseReason.BAD_RULE),
    ],
)
def test_what_is_no_rule_is_refused_with_its_reason(change: dict[str, Any], reason: RefuseReason) -> None:
    with pytest.raises(RecordRefusedError) as refused:
        decode_rule(RULE.rule_id.encode(), changed(RULE_FIELDS, **change))
    assert refused.value.reason == reason


@pytest.mark.parametrize("key", [None, b"", b"\xff"])
def test_the_key_must_be_the_id(key: bytes | None) -> None:
    with pytest.raises(RecordRefusedError, match="key-mismatch"):
        decode_item(key, encode_item(ITEM))


@given(st.binary(max_size=200))
def test_no_bytes_raise_anything_else(value: bytes) -> None:
    for decode in (decode_item, decode_rule):
        with pytest.raises(RecordRefusedError):
            decode(b"x", value)
