"""What a collector does when its next offset is not there."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import TopicPartition
from structlog.testing import capture_logs

from schemas.config.settings import KafkaConnection
from schemas.messages.click import ClickLimits
from trainer.errors import ClickLogError
from trainer.service.click_log import ClickLogFolder
from trainer.service.collect import Collector, _Partition


class Assigned:
    """A consumer, as far as it is asked."""

    at: int | None = None

    def assign(self, partitions: list[TopicPartition]) -> None:
        [one] = partitions
        self.at = one.offset


@pytest.mark.parametrize(
    ("low", "high", "told", "at"),
    [
        (40, 60, "retention removed them", 40),
        (30, 60, None, 30),  # told twice
        (0, 60, "brokers lost clicks that they had confirmed", 30),  # and others have come since
        (0, 20, None, None),
    ],
)
def test_clicks_that_are_gone_are_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, low: int, high: int, told: str | None, at: int | None
) -> None:
    collector = Collector(
        KafkaConnection(), "clicks", ClickLogFolder(tmp_path),
        group="collect", limits=ClickLimits(), flush_clicks=1000, flush_seconds=60.0,
    )  # fmt: skip
    consumer: Any = Assigned()
    collector._consumer = consumer
    collector._partitions = {0: _Partition(expected=30, first=30, next=30)}
    marks = iter((low, high))
    monkeypatch.setattr(collector, "_offsets", lambda _numbers, _spec: {0: next(marks)})
    with (
        capture_logs() as logs,
        nullcontext() if at is not None else pytest.raises(ClickLogError, match=r"ends at 20: .* made anew or cut"),
    ):
        collector._reposition(0)
    assert [told is not None and told in line["event"] for line in logs] == ([] if told is None else [True])
    assert consumer.at == at
