import pytest
from confluent_kafka import KafkaError

from schemas.kafka.absent import why_absent


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (None, "the topic items does not exist; create it with `stream-app topics`"),
        (KafkaError.UNKNOWN_TOPIC_OR_PART, "the topic items does not exist; create it with `stream-app topics`"),
        (KafkaError.TOPIC_AUTHORIZATION_FAILED, "the topic items does not exist, or this login has no right to it"),
        (KafkaError.LEADER_NOT_AVAILABLE, "the topic items: Broker: Leader not available"),
    ],
)
def test_an_operator_is_told_what_to_do_about_a_topic(error: int | None, told: str) -> None:
    assert why_absent("items", None if error is None else KafkaError(error)) == told
