"""What is made of what librdkafka says of a record that is looked up."""

from collections.abc import Sequence
from itertools import chain, repeat
from typing import Any
from unittest.mock import Mock

import pytest
from confluent_kafka import KafkaError, KafkaException

from stream_app.kafka import lookup

LOOKED_UP = 7


def first_of(monkeypatch: pytest.MonkeyPatch, *codes: int | None, ends: Sequence[int] = ()) -> Any:
    """Look a record up that the client tells so of; None is the record. `ends` are the leader's answers."""
    told = [
        Mock(**{"error.return_value": None if code is None else KafkaError(code), "offset.return_value": LOOKED_UP})
        for code in codes
    ]
    consumer = Mock(**{
        "poll.side_effect": chain(told, repeat(None)),
        "get_watermark_offsets.side_effect": [(0, end) for end in ends],
    })  # fmt: skip
    asked: dict[str, Any] = {}
    monkeypatch.setattr(lookup, "Consumer", lambda config, **__: asked.update(config) or consumer)
    try:
        found = lookup.first_from({"client.rack": "zone-b"}, "clicks", 0, LOOKED_UP, seconds=0.05)
    finally:
        consumer.close.assert_called_once()
        # Of the leader, and of no other record than asked for.
        assert (asked["client.rack"], asked["auto.offset.reset"]) == ("", "error")
    return None if found is None else told.index(found)


def test_a_leader_is_waited_for_and_where_there_is_none_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    away = KafkaError._ALL_BROKERS_DOWN
    assert first_of(monkeypatch, away, KafkaError.NOT_LEADER_FOR_PARTITION, None) == 2
    assert first_of(monkeypatch, away, KafkaError._PARTITION_EOF, ends=[LOOKED_UP]) is None
    with pytest.raises(KafkaException, match="no answer from its leader"):
        first_of(monkeypatch, away)


@pytest.mark.parametrize("code", [KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE])
def test_behind_the_end_there_is_no_record(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    assert first_of(monkeypatch, code) is None


def test_a_leader_that_is_new_is_asked_for_its_end_before_a_record_counts_as_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It gives the last record out once it knows that the others have it, too. A row of it would be thrown away."""
    end = KafkaError._PARTITION_EOF
    assert first_of(monkeypatch, end, None, ends=[LOOKED_UP + 1]) == 1
    with pytest.raises(KafkaException, match="no answer from its leader"):
        first_of(monkeypatch, end, ends=[LOOKED_UP + 1])


def test_a_right_that_is_missing_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KafkaException, match="TOPIC_AUTHORIZATION_FAILED"):
        first_of(monkeypatch, KafkaError.TOPIC_AUTHORIZATION_FAILED, None)
