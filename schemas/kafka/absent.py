"""What an operator is told of a topic that brokers do not show."""

from confluent_kafka import KafkaError


def why_absent(topic: str, error: KafkaError | None) -> str:
    """Why a topic has no partitions for us, and what to do; `error` is what its metadata say."""
    if error is None or error.code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
        return f"the topic {topic} does not exist; create it with `stream-app topics`"
    if error.code() == KafkaError.TOPIC_AUTHORIZATION_FAILED:
        # What brokers say of a topic that does not exist, too, to who may not see topics.
        return f"the topic {topic} does not exist, or this login has no right to it"
    return f"the topic {topic}: {error.str()}"
