"""Which records are clicks, and what is told of those that are not."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.messages.click import Click, ClickLimits, ClickRejectedError, RejectReason, decode_click, encode_click

NOW = 1_767_225_600_000
YEAR_2000 = 946_684_800_000
HALF = "\ud800"  # of a surrogate pair: JSON, and no UTF-8
LIMITS = ClickLimits()
GOOD: dict[str, Any] = {"session_id": "s1", "item_id": "i1", "timestamp": NOW}

ids = st.text(st.characters(codec="utf-8"), min_size=1, max_size=256).filter(lambda text: len(text.encode()) <= 256)


def value(**changed: Any) -> bytes:
    return json.dumps({**GOOD, **changed}).encode()


def without(field: str) -> bytes:
    return json.dumps({name: GOOD[name] for name in GOOD if name != field}).encode()


@pytest.mark.parametrize(
    ("key", "record", "expected"),
    [
        (b"s1", value(), Click("s1", "i1", NOW)),
        (b"s1", value(event_id="e1"), Click("s1", "i1", NOW, "e1")),
        (b"s1", value(event_id=None), Click("s1", "i1", NOW)),
        (b"s1", value(type="purchase"), Click("s1", "i1", NOW, type="purchase")),
        (b"s1", value(type=None), Click("s1", "i1", NOW)),
        (b"s1", value(type="käse", timestamp=float(NOW)), Click("s1", "i1", NOW, type="käse")),
        (b"s1", value(user_agent={"nested": [1, 2.5, None, True]}), Click("s1", "i1", NOW)),
        (b"s1", value(timestamp=YEAR_2000), Click("s1", "i1", YEAR_2000)),
        (b"s1", value(timestamp=float(NOW)), Click("s1", "i1", NOW)),
        (b"s1", value(timestamp=0).replace(b"0}", b"1.7e12}"), Click("s1", "i1", 1_700_000_000_000)),
        (b"s1", value(timestamp=0).replace(b"0}", b"17e11 }"), Click("s1", "i1", 1_700_000_000_000)),
        (b"s1", value(x=HALF), Click("s1", "i1", NOW)),
        (b"s1", value(x={HALF: [HALF, 1e300]}, **{HALF: HALF}, timestamp=float(NOW)), Click("s1", "i1", NOW)),
        (b"s1", value(timestamp=NOW + 60_000), Click("s1", "i1", NOW + 60_000)),
        ("ü".encode(), value(session_id="ü", item_id="käse/🧀"), Click("ü", "käse/🧀", NOW)),
        (b"s" * 256, value(session_id="s" * 256, item_id="i" * 256), Click("s" * 256, "i" * 256, NOW)),
        (b"s1", value(item_id="ü" * 128), Click("s1", "ü" * 128, NOW)),
        (b"s1", b" \n" + value() + b"\n", Click("s1", "i1", NOW)),
    ],
)
def test_accepts(key: bytes, record: bytes, expected: Click) -> None:
    assert decode_click(key, record, now_ms=NOW, limits=LIMITS) == expected


@pytest.mark.parametrize(
    ("key", "record", "reason", "detail"),
    [
        (b"s1", None, RejectReason.NO_VALUE, "tombstone"),
        (b"s1", value(pad="x" * 16_384), RejectReason.TOO_LARGE, "the limit is 16384"),
        (b"s1", b"", RejectReason.NOT_JSON, "truncated"),
        (b"s1", b"\x00\x01\x02", RejectReason.NOT_JSON, "malformed"),
        (b"s1", b'{"session_id":"s1"', RejectReason.NOT_JSON, "truncated"),
        (b"s1", value()[:-1], RejectReason.NOT_JSON, "truncated"),
        (b"s1", value() + b"{}", RejectReason.NOT_JSON, "trailing"),
        (b"s1", b"\xef\xbb\xbf" + value(), RejectReason.NOT_JSON, "malformed"),
        (b"s1", value().decode().encode("utf-16"), RejectReason.NOT_JSON, ""),
        (b"s1", value(item_id="X").replace(b"X", b"\xff"), RejectReason.NOT_JSON, "utf-8"),
        (b"s1", value(item_id="X" + HALF), RejectReason.BAD_ID, "item_id has half of a surrogate pair at character 1"),
        (b"s1", value(item_id="\udc00"), RejectReason.BAD_ID, "surrogate"),
        (b"s1", value(session_id=HALF), RejectReason.BAD_ID, "session_id has half of a surrogate pair"),
        (b"s1", value(event_id=HALF), RejectReason.BAD_ID, "event_id has half of a surrogate pair"),
        (b"s1", value(type=HALF), RejectReason.BAD_ID, "type has half of a surrogate pair"),
        (b"s1", value(type=""), RejectReason.BAD_ID, "type is empty"),
        (b"s1", value(type="ü" * 129), RejectReason.BAD_ID, "type is 258 bytes, the limit is 256"),
        (b"s1", value(type=3), RejectReason.WRONG_TYPE, "$.type"),
        (b"s1", value(x=HALF, item_id=5), RejectReason.WRONG_TYPE, "$.item_id"),
        (b"s1", value(x=HALF)[:-1], RejectReason.NOT_JSON, ""),
        (b"s1", value(x=HALF)[:-1] + b',"y":NaN}', RejectReason.NOT_JSON, ""),
        (b"s1", b'["' + rb"\ud800" + b'"]', RejectReason.WRONG_TYPE, "object"),
        (b"s1", b'{"x":' + b"[" * 14_000, RejectReason.NOT_JSON, "deep"),
        (b"s1", value(timestamp=0.5)[:-1] + b',"x":NaN}', RejectReason.NOT_JSON, "invalid"),
        # A wrong type in front of broken JSON: it is no JSON.
        (b"s1", b'{"session_id":5,"item_id":', RejectReason.NOT_JSON, "truncated"),
        (b"s1", b'{"session_id":5,"x":' + b"[" * 14_000, RejectReason.NOT_JSON, ""),
        (b"s1", b"null", RejectReason.WRONG_TYPE, "object"),
        (b"s1", b"[]", RejectReason.WRONG_TYPE, "object"),
        (b"s1", b'"s1"', RejectReason.WRONG_TYPE, "object"),
        (b"s1", b"{}", RejectReason.WRONG_TYPE, "session_id"),
        (b"s1", without("session_id"), RejectReason.WRONG_TYPE, "session_id"),
        (b"s1", without("item_id"), RejectReason.WRONG_TYPE, "item_id"),
        (b"s1", without("timestamp"), RejectReason.WRONG_TYPE, "timestamp"),
        (b"s1", value(session_id=5), RejectReason.WRONG_TYPE, "$.session_id"),
        (b"s1", value(item_id=None), RejectReason.WRONG_TYPE, "$.item_id"),
        (b"s1", value(item_id=["i1"]), RejectReason.WRONG_TYPE, "$.item_id"),
        (b"s1", value(timestamp=str(NOW)), RejectReason.WRONG_TYPE, "$.timestamp"),
        (b"s1", value(timestamp=HALF), RejectReason.WRONG_TYPE, "$.timestamp"),
        (b"s1", value(timestamp=1.5), RejectReason.WRONG_TYPE, "timestamp 1.5 is no whole number"),
        (b"s1", value(timestamp=0).replace(b"0}", b"1e999}"), RejectReason.WRONG_TYPE, "timestamp inf"),
        (b"s1", value(timestamp=True), RejectReason.WRONG_TYPE, "$.timestamp"),
        (b"s1", value(event_id=7), RejectReason.WRONG_TYPE, "$.event_id"),
        (b"", value(session_id=""), RejectReason.BAD_ID, "session_id is empty"),
        (b"s" * 257, value(session_id="s" * 257), RejectReason.BAD_ID, "session_id is 257 bytes"),
        (b"s1", value(item_id=""), RejectReason.BAD_ID, "item_id is empty"),
        (b"s1", value(item_id="i" * 257), RejectReason.BAD_ID, "item_id is 257 bytes"),
        (b"s1", value(item_id="ü" * 129), RejectReason.BAD_ID, "item_id is 258 bytes"),
        (b"s1", value(item_id="🧀" * 65), RejectReason.BAD_ID, "item_id is 260 bytes"),
        (b"s1", value(event_id=""), RejectReason.BAD_ID, "event_id is empty"),
        (b"s1", value(event_id="e" * 257), RejectReason.BAD_ID, "event_id"),
        (None, value(), RejectReason.KEY_MISMATCH, "no key"),
        (b"", value(), RejectReason.KEY_MISMATCH, "differs"),
        (b"s2", value(), RejectReason.KEY_MISMATCH, "differs"),
        (b'"s1"', value(), RejectReason.KEY_MISMATCH, "differs"),
        (b"\xff", value(), RejectReason.KEY_MISMATCH, "not UTF-8"),
        (b"s1", value(timestamp=-1), RejectReason.BAD_TIMESTAMP, "before 946684800000 (2000-01-01)"),
        (b"s1", value(timestamp=0), RejectReason.BAD_TIMESTAMP, "clicks are in milliseconds since the epoch"),
        (b"s1", value(timestamp=YEAR_2000 - 1), RejectReason.BAD_TIMESTAMP, "before 946684800000"),
        (b"s1", value(timestamp=NOW // 1000), RejectReason.BAD_TIMESTAMP, "looks like seconds: multiply by 1000"),
        (b"s1", value(timestamp=float(NOW // 1000)), RejectReason.BAD_TIMESTAMP, "looks like seconds"),
        (b"s1", value(timestamp=NOW * 1000), RejectReason.FUTURE_TIMESTAMP, "looks like microseconds: divide by 1000,"),
        (b"s1", value(timestamp=NOW * 10**6), RejectReason.FUTURE_TIMESTAMP, "nanoseconds: divide by 1000000,"),
        (b"s1", value(timestamp=-(10**30)), RejectReason.BAD_TIMESTAMP, "of 100 bits"),
        (b"s1", value(timestamp=NOW + 60_001), RejectReason.FUTURE_TIMESTAMP, "more than 60000 ms"),
        (b"s1", value(timestamp=10**30), RejectReason.FUTURE_TIMESTAMP, "of 100 bits"),
        (b"s1", value(timestamp=0).replace(b"0}", b"9" * 5_000 + b"}"), RejectReason.WRONG_TYPE, "out of range"),
    ],
)  # fmt: skip
def test_rejects(key: bytes | None, record: bytes | None, reason: RejectReason, detail: str) -> None:
    with pytest.raises(ClickRejectedError) as caught:
        decode_click(key, record, now_ms=NOW, limits=LIMITS)
    assert caught.value.reason is reason
    assert detail in caught.value.detail
    assert len(caught.value.detail) <= 400


def test_a_deployment_may_have_clicks_of_any_time() -> None:
    limits = ClickLimits(min_timestamp_ms=0)
    assert decode_click(b"s1", value(timestamp=0), now_ms=NOW, limits=limits).timestamp == 0


@given(ids, ids, st.integers(YEAR_2000, NOW), st.none() | ids)
def test_what_is_encoded_is_accepted(session_id: str, item_id: str, timestamp: int, event_id: str | None) -> None:
    click = Click(session_id, item_id, timestamp, event_id)
    assert decode_click(session_id.encode(), encode_click(click), now_ms=NOW, limits=LIMITS) == click


@given(st.none() | st.binary(max_size=40), st.none() | st.binary(max_size=200))
def test_any_bytes_are_accepted_or_rejected(key: bytes | None, record: bytes | None) -> None:
    with pytest.raises(ClickRejectedError):
        decode_click(key, record, now_ms=NOW, limits=LIMITS)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


timestamps = st.one_of(
    json_values,
    st.integers(YEAR_2000 - 10, NOW + 60_010),
    st.integers(YEAR_2000, NOW).map(float),
    st.floats(YEAR_2000, NOW),
)


@given(
    st.fixed_dictionaries(
        {"session_id": json_values, "item_id": json_values, "timestamp": timestamps},
        optional={"x": st.text(st.characters(), max_size=5), "\ud800": st.none()},
    )
)
def test_any_object_is_accepted_or_rejected(fields: dict[str, Any]) -> None:
    session_id = fields["session_id"]
    key = session_id.encode("utf-8", "replace") if isinstance(session_id, str) else b"s1"
    acceptable = (
        isinstance(session_id, str)
        and isinstance(fields["item_id"], str)
        and type(fields["timestamp"]) in (int, float)
        and fields["timestamp"] == fields["timestamp"] // 1
        and all(fields[name] for name in ("session_id", "item_id"))
        and YEAR_2000 <= fields["timestamp"] <= NOW + 60_000
        and not any("\ud800" <= letter <= "\udfff" for name in ("session_id", "item_id") for letter in fields[name])
    )
    record = json.dumps(fields).encode()
    if acceptable:
        assert decode_click(key, record, now_ms=NOW, limits=LIMITS).item_id == fields["item_id"]
    else:
        with pytest.raises(ClickRejectedError):
            decode_click(key, record, now_ms=NOW, limits=LIMITS)
