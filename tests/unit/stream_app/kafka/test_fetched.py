"""What came in place of records, and what a member of a group makes of it."""

from typing import Any
from unittest.mock import Mock

import pytest
from confluent_kafka import KafkaError
from structlog.testing import capture_logs

from stream_app.errors import DeliveryError
from stream_app.kafka.fetched import by_partition


def message(partition: int, code: int | None = None, *, fatal: bool = False) -> Any:
    error = None if code is None else KafkaError(code, "told", fatal)
    return Mock(**{"partition.return_value": partition, "error.return_value": error})


def test_records_go_by_partition_and_what_is_gone_is_told_of_its_partition() -> None:
    first, second, other = message(0), message(0), message(3)
    gone = [message(1, KafkaError._AUTO_OFFSET_RESET), message(2, KafkaError.OFFSET_OUT_OF_RANGE)]
    with capture_logs() as told:
        found = by_partition([first, *gone, other, message(3, KafkaError._PARTITION_EOF), second], "rankings")
    assert found == ({0: [first, second], 3: [other]}, [1, 2])
    assert told == []


def test_what_passes_by_itself_is_told_and_read_past() -> None:
    record = message(0)
    with capture_logs() as told:
        assert by_partition([message(-1, KafkaError._ALL_BROKERS_DOWN), record], "rankings") == ({0: [record]}, [])
    assert [line["log_level"] for line in told] == ["warning"]


@pytest.mark.parametrize(
    "error", [message(0, KafkaError._FATAL), message(0, KafkaError.FENCED_INSTANCE_ID, fatal=True)]
)
def test_a_client_that_reads_nothing_any_more_ends_the_process(error: Any) -> None:
    """As when another has its place in the group: it would wait for ever, and look well."""
    with pytest.raises(DeliveryError, match="rankings cannot be read any more"):
        by_partition([message(0), error], "rankings")
