"""What an operator is told of a topic that brokers do not show."""

from confluent_kafka import KafkaError


def not_listed(topic: str, servers: str | None = None) -> str:
    """The same where all topics were listed: brokers leave out what a login may not see, without a word."""
    where = f" at {servers}" if servers else ""
    return (
        f"there is no topic {topic}{where}, or this login has no right to it; `stream-app topics` creates it, "
        "`stream-app settings` shows the names in use"
    )


def why_absent(topic: str, error: KafkaError | None) -> str:
    """Why a topic has no partitions for us, and what to do; `error` is what its metadata say."""
    if error is None or error.code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
        return f"the topic {topic} does not exist; create it with `stream-app topics`"
    if error.code() == KafkaError.TOPIC_AUTHORIZATION_FAILED:
        # What brokers say of a topic that does not exist, too, to who may not see topics.
        return f"the topic {topic} does not exist, or this login has no right to it"
    return f"the topic {topic}: {error.str()}"
