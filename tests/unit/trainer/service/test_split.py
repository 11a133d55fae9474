"""Changing shares: who moves."""

import itertools
from types import SimpleNamespace

import pytest
from confluent_kafka import KafkaError
from hypothesis import given
from hypothesis import strategies as st

from schemas.config.settings import KafkaConnection
from schemas.messages.split import MOST_PARTS, PLACES, Split, Variant, decode_split, encode_split, places_of, shares_of
from trainer.errors import AnnounceError
from trainer.service import compacted
from trainer.service.split import SplitTopic, moved, told


@st.composite
def shares(draw: st.DrawFn) -> dict[str, int]:
    aliases = draw(st.lists(st.sampled_from("abcdef"), min_size=1, max_size=6, unique=True))
    cuts = draw(st.lists(st.integers(1, PLACES - 1), min_size=len(aliases) - 1, max_size=len(aliases) - 1, unique=True))
    edges = [0, *sorted(cuts), PLACES]
    return {alias: end - begin for alias, begin, end in zip(aliases, edges[:-1], edges[1:], strict=True)}


def owners(variants: tuple[Variant, ...]) -> list[str]:
    """Of each place of the line."""
    return [variant.alias for variant in variants for _ in range(places_of(variant))]


@given(st.lists(shares(), min_size=2, max_size=6))
def test_only_sessions_of_a_share_that_falls_move_to_one_that_rises(steps: list[dict[str, int]]) -> None:
    line = moved((), steps[0])
    assert shares_of(line) == steps[0]
    for before, after in itertools.pairwise(steps):
        changed = moved(line, after)
        assert shares_of(changed) == {alias: after[alias] for alias in shares_of(changed)}
        assert set(shares_of(changed)) == set(after)
        split = Split(app_id="a", variants=changed)
        assert decode_split(b"a", encode_split(split)) == split
        moves = [(old, new) for old, new in zip(owners(line), owners(changed), strict=True) if old != new]
        assert all(before[old] > after.get(old, 0) and after[new] > before.get(new, 0) for old, new in set(moves))
        assert len(moves) == sum(max(0, after[alias] - before.get(alias, 0)) for alias in after)
        line = changed


def test_a_canary_that_grows_keeps_its_sessions() -> None:
    line = moved((), {"champion": 9000, "challenger": 1000})
    assert line == (Variant("champion", 90.0), Variant("challenger", 10.0))
    line = moved(line, {"challenger": 2500, "champion": 7500})
    assert line == (Variant("champion", 75.0), Variant("challenger", 25.0))
    line = moved(line, {"champion": 7400, "challenger": 2500, "third": 100})
    assert line == (Variant("champion", 74.0), Variant("third", 1.0), Variant("challenger", 25.0))
    assert told(Split(app_id="a", variants=line)) == "split: champion 74 %, third 1 %, challenger 25 %"


def test_beyond_what_a_split_may_have_all_is_drawn_anew() -> None:
    line = tuple(Variant("ab"[n % 2], 1.0) for n in range(MOST_PARTS))
    assert moved(line, {"a": 4999, "b": 4999, "c": 2}) == (Variant("a", 49.99), Variant("b", 49.99), Variant("c", 0.02))


@pytest.mark.parametrize("code", [KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError.TOPIC_AUTHORIZATION_FAILED])
def test_without_experiments_a_login_needs_no_right_to_their_topic(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    metadata = SimpleNamespace(topics={"splits": SimpleNamespace(error=KafkaError(code), partitions={})})
    consumer = SimpleNamespace(list_topics=lambda *_, **__: metadata, close=lambda: None)
    monkeypatch.setattr(compacted, "Consumer", lambda *_, **__: consumer)
    topic = SplitTopic(KafkaConnection(), "splits", "shop", group="test", delivery_seconds=1)
    assert topic.current_if_used() is None
    with pytest.raises(AnnounceError, match="the topic splits does not exist"):
        topic.current()
