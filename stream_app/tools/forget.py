"""`stream-app forget`: ask everybody who reads clicks to forget a session."""

import logging

import msgspec
from confluent_kafka import KafkaError, KafkaException, Message, Producer
from rich.console import Console

from schemas.messages.forget import Forget, encode_forget
from stream_app.errors import StreamError
from stream_app.kafka.plain_consumer import plain_consumer
from stream_app.settings import StreamSettings


class ForgetError(StreamError):
    """The request is not on the topic, as far as is known; the message says why."""


def forget(session_id: str, settings: StreamSettings, *, json: bool, out: Console) -> int:
    """Put the request behind the session's clicks and say where; returns the exit code. Raises ForgetError."""
    topic = settings.topics.clicks
    try:
        value = encode_forget(Forget(session_id, "forget"))
    except ValueError as error:
        raise ForgetError(str(error)) from error
    with plain_consumer(settings.kafka, topic, name=f"{settings.app_id}-forget"):
        pass  # producing to a topic that is not there may create it
    done: list[tuple[KafkaError | None, Message]] = []
    config = {
        **settings.kafka.librdkafka(),
        "enable.idempotence": True,
        "partitioner": "murmur2_random",  # where the session's clicks are
        "message.timeout.ms": int(settings.worker.delivery_timeout * 1000),
    }
    try:
        producer = Producer(config, logger=logging.getLogger("librdkafka"))
        producer.produce(topic, value, session_id.encode(), on_delivery=lambda *answer: done.append(answer))
        producer.flush(settings.worker.delivery_timeout + 10)
    except KafkaException as error:
        raise ForgetError(f"the request was refused: {error.args[0].str()}") from error
    if not done or done[0][0] is not None:
        why = done[0][0].str() if done and done[0][0] is not None else "no answer"
        raise ForgetError(f"Kafka did not confirm the request: {why}; run the command again")
    message = done[0][1]
    where = {"session_id": session_id, "topic": topic, "partition": message.partition(), "offset": message.offset()}
    if json:
        print(msgspec.json.encode(where).decode())
    else:
        out.print(
            f"session {session_id!r} is forgotten up to partition {where['partition']}, offset {where['offset']} of "
            f"{topic}, as soon as workers and trainers have come so far",
            markup=False,
            highlight=False,
        )
    return 0
