"""Headers of records that others wrote."""

from collections.abc import Sequence

from confluent_kafka import Message


def headers_of(message: Message) -> Sequence[tuple[str, bytes | None]]:
    """A record's headers; none of a record with a name that is no UTF-8, which confluent-kafka cannot hand out."""
    try:
        return message.headers() or ()
    except SystemError:  # it says nothing else of the name; asked again, it would hand out a tuple without one
        message.set_headers([])
        return ()
