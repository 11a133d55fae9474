"""The bytes on the wire: golden files, round trips, and what readers refuse.

A golden file that must change is a change of the contract: raise `CONTRACT_VERSION` and say so in the changelog.
"""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from schemas.errors import AnnouncementError, MessageError
from schemas.messages import examples
from schemas.messages.announcement import ModelAnnouncement, decode_announcement, encode_announcement, is_version
from schemas.messages.click import LATEST_MS, ClickLimits, ClickRejectedError, RejectReason, decode_click, encode_click
from schemas.messages.forget import decode_forget, encode_forget
from schemas.messages.item import decode_item, encode_item
from schemas.messages.ranking import RankedItem, Ranking, RankingReason, decode_ranking, encode_ranking
from schemas.messages.rejected import KEPT_BYTES, RejectedClick, decode_rejected, encode_rejected, reject
from schemas.messages.rule import decode_rule, encode_rule
from schemas.messages.score import Moments, Score, Tally, decode_score, encode_score, score_key
from schemas.messages.source import Source
from schemas.messages.split import decode_split, encode_split

GOLDEN = Path(__file__).parent / "golden"

ids = st.text(st.characters(codec="utf-8"), min_size=1, max_size=64)
times = st.integers(0, LATEST_MS)
sources = st.builds(Source, st.text(max_size=20), st.integers(0, 1000), st.integers(0, 2**63 - 1))


def golden(name: str) -> bytes:
    return (GOLDEN / name).read_bytes().removesuffix(b"\n")


def test_click_as_it_was() -> None:
    assert encode_click(examples.CLICK) == golden("click.json")
    key = examples.CLICK.session_id.encode()
    decoded = decode_click(key, golden("click.json"), now_ms=examples.CLICK.timestamp, limits=ClickLimits())
    assert decoded == examples.CLICK


def test_request_to_forget_as_it_was() -> None:
    assert encode_forget(examples.FORGET) == golden("forget.json")
    assert decode_forget(examples.FORGET.session_id.encode(), golden("forget.json")) == examples.FORGET


def test_a_click_without_a_type_is_what_it_was_before_there_were_types() -> None:
    """A worker of before reads it as ever, and so does this one read what a producer of before writes."""
    before = b'{"session_id":"s-4711","item_id":"camera-7","timestamp":1767225600000,"event_id":"e-1"}'
    click = replace(examples.CLICK, type=None)
    assert encode_click(click) == before
    assert decode_click(b"s-4711", before, now_ms=click.timestamp, limits=ClickLimits()) == click


def test_ranking_as_it_was() -> None:
    assert encode_ranking(examples.RANKING) == golden("ranking.json")
    assert decode_ranking(golden("ranking.json")) == examples.RANKING


def test_item_as_it_was() -> None:
    assert encode_item(examples.ITEM) == golden("item.json")
    assert decode_item(examples.ITEM.item_id.encode(), golden("item.json")) == examples.ITEM


def test_rule_as_it_was() -> None:
    assert encode_rule(examples.RULE) == golden("rule.json")
    assert decode_rule(examples.RULE.rule_id.encode(), golden("rule.json")) == examples.RULE


def test_split_bytes() -> None:
    assert encode_split(examples.SPLIT) == golden("split.json")
    assert decode_split(examples.SPLIT.app_id.encode(), golden("split.json")) == examples.SPLIT


def test_rejected_click_as_it_was() -> None:
    assert encode_rejected(examples.REJECTED_CLICK) == golden("rejected-click.json")
    assert decode_rejected(golden("rejected-click.json")) == examples.REJECTED_CLICK


def test_score_as_it_was() -> None:
    assert encode_score(examples.SCORE) == golden("score.json")
    assert decode_score(golden("score.json")) == examples.SCORE
    assert score_key(examples.SCORE) == b'["20260101T000000Z-1f0c",null,null,1767225600000,3]'


def test_model_announcement_as_it_was() -> None:
    assert encode_announcement(examples.MODEL_ANNOUNCEMENT) == golden("model-announcement.json")
    assert decode_announcement(golden("model-announcement.json"), b"champion") == examples.MODEL_ANNOUNCEMENT


@given(
    st.builds(
        Ranking,
        session_id=ids,
        event_id=st.none() | ids,
        item_id=ids,
        model_version=ids,
        items=st.lists(st.builds(RankedItem, ids, st.floats(allow_nan=False, allow_infinity=False))).map(tuple),
        source=sources,
        click_timestamp=times,
        produced_at=times,
        reason=st.sampled_from(RankingReason),
    )
)
def test_ranking_round_trip(ranking: Ranking) -> None:
    assert decode_ranking(encode_ranking(ranking)) == ranking


tallies = st.dictionaries(ids, st.builds(Tally, times, times, st.floats(0, 1e9)), max_size=3)


@given(
    st.builds(
        Score,
        ids,
        st.none() | ids,
        st.none() | ids,
        times,
        times.filter(bool),
        st.integers(0, 1000),
        st.integers(1, 1000),
        rankings=st.dictionaries(ids, times, max_size=3),
        types=tallies,
        reasons=tallies,
        sessions=times,
        moments=st.builds(Moments, times, times, times, st.floats(0, 1e9), st.floats(0, 1e9)),
        next_offset=times,
    )
)
def test_score_round_trip(score: Score) -> None:
    assert decode_score(encode_score(score)) == score


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf])
def test_a_ranking_never_has_a_score_of_null(score: float) -> None:
    items = (RankedItem('"score":null', 1.0), RankedItem("b", score))
    with pytest.raises(MessageError, match="not a finite number"):
        encode_ranking(replace(examples.RANKING, items=items))
    encode_ranking(replace(examples.RANKING, items=items[:1]))  # the item's name is no score


@given(
    st.builds(
        RejectedClick,
        reason=st.sampled_from(RejectReason),
        detail=st.text(st.characters(codec="utf-8")),
        source=sources,
        key=st.none() | st.binary(),
        value=st.none() | st.binary(),
        value_size=st.none() | st.integers(0, 2**40),
        rejected_at=times,
    )
)
def test_rejected_click_round_trip(rejected: RejectedClick) -> None:
    assert decode_rejected(encode_rejected(rejected)) == rejected


def test_a_rejected_record_is_parked_as_it_came() -> None:
    source = Source("clicks", 3, 9)
    with pytest.raises(ClickRejectedError) as caught:
        decode_click(b"\xff\x00", b"\xfe{", now_ms=7, limits=ClickLimits())
    rejected = reject(caught.value, source=source, key=b"\xff\x00", value=b"\xfe{", now_ms=7)
    detail = caught.value.detail
    assert rejected == RejectedClick(RejectReason.NOT_JSON, detail, source, b"\xff\x00", b"\xfe{", 2, 7)
    tombstone = reject(caught.value, source=source, key=None, value=None, now_ms=7)
    assert (tombstone.key, tombstone.value, tombstone.value_size) == (None, None, None)


def test_a_rejected_record_of_any_size_can_be_parked() -> None:
    error = ClickRejectedError(RejectReason.TOO_LARGE, "too large")
    huge = bytes(8_000_000)
    rejected = reject(error, source=Source("clicks", 0, 1), key=huge, value=huge, now_ms=0)
    assert rejected.value_size == 8_000_000
    assert rejected.value == bytes(KEPT_BYTES)
    assert len(encode_rejected(rejected)) < 1_000_000  # below a broker's default limit of a record


@given(
    st.builds(
        ModelAnnouncement,
        alias=ids,
        version=st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,127}\Z"),
        uri=ids,
        manifest_sha256=st.from_regex(r"\A[0-9a-f]{64}\Z"),
        announced_at=times,
        why=ids,
    )
)
def test_announcement_round_trip(announcement: ModelAnnouncement) -> None:
    assert is_version(announcement.version)
    assert decode_announcement(encode_announcement(announcement), announcement.alias.encode()) == announcement


def announcement(**changed: Any) -> bytes:
    return json.dumps(json.loads(golden("model-announcement.json")) | changed).encode()


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (None, "no value"),
        (b"", "truncated"),
        (b"\xff", "not a model announcement"),
        (b"[]", "Expected `object`"),
        (b"{}", "missing required field `alias`"),
        (announcement(version="../../etc"), r"\$\.version"),
        (announcement(version="v1\n"), r"\$\.version"),
        (announcement(version=""), r"\$\.version"),
        (announcement(version="v" * 129), r"\$\.version"),
        (announcement(manifest_sha256="abc"), r"\$\.manifest_sha256"),
        (announcement(uri=""), r"\$\.uri"),
        (announcement(uri=None), r"\$\.uri"),
        (announcement(announced_at="now"), r"\$\.announced_at"),
        (announcement(announced_at=-1), r"\$\.announced_at"),
        (announcement(alias="challenger"), "the record's key b'champion' is not its alias 'challenger'"),
    ],
)
def test_a_bad_announcement_tells_what_is_wrong(value: bytes | None, problem: str) -> None:
    with pytest.raises(AnnouncementError, match=problem):
        decode_announcement(value, b"champion")


def test_nothing_unusable_is_announced() -> None:
    bad = ModelAnnouncement("champion", "no version!", "/models/x", "0" * 64, 0, "")
    with pytest.raises(AnnouncementError, match="version"):
        encode_announcement(bad)


@pytest.mark.parametrize("value", [b"", b"{}", b"\xff", b"[" * 9_000, b'{"session_id": "\xff"}'])
def test_readers_raise_one_error(value: bytes) -> None:
    for decode in (decode_ranking, decode_rejected, decode_score):
        with pytest.raises(MessageError):
            decode(value)


def test_readers_pass_over_fields_of_later_versions() -> None:
    later = json.dumps(json.loads(golden("ranking.json")) | {"experiment": "b"}).encode()
    assert decode_ranking(later) == examples.RANKING
    rejected: RejectedClick = decode_rejected(
        json.dumps(json.loads(golden("rejected-click.json")) | {"worker": 1}).encode()
    )
    assert rejected == examples.REJECTED_CLICK
