"""What is told where the record that is to be read next is gone."""

from typing import Any
from unittest.mock import Mock

import pytest
from structlog.testing import capture_logs

from stream_app.kafka.expired import oldest_left


@pytest.mark.parametrize(
    ("due", "at", "told"),
    [
        (10, None, "retention removed them"),
        (20, None, None),  # told twice
        (30, None, "brokers lost records"),  # and the topic has grown since
        (50, None, "brokers lost records"),
        (30, 10, None),  # of what was to be read once more
        (30, 25, "brokers lost records"),
        (None, None, None),
    ],
)
def test_what_is_told_of_a_partition_from_20_to_40(due: int | None, at: int | None, told: str | None) -> None:
    consumer: Any = Mock(**{"get_watermark_offsets.return_value": (20, 40)})
    with capture_logs() as logs:
        assert oldest_left(consumer, "rankings", 3, due, at=at) == (20, 40)
    assert [told is not None and told in line["event"] for line in logs] == ([] if told is None else [True])
    gone = [(line["first"], line["last"], line["offsets"]) for line in logs if "last" in line]
    assert gone == ([(10, 19, 10)] if told == "retention removed them" else [])
    [[assigned]] = consumer.incremental_assign.call_args.args
    assert (assigned.partition, assigned.offset) == (3, 20)
