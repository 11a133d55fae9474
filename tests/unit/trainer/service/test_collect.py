"""What a collector does when its next offset is not there."""

import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import TIMESTAMP_LOG_APPEND_TIME, TopicPartition
from structlog.testing import capture_logs

from schemas.config.settings import KafkaConnection
from schemas.messages.click import Click, ClickLimits, encode_click
from tests.unit.trainer.service.test_click_log import put
from trainer.errors import ClickLogError
from trainer.service.assembly import collect
from trainer.service.click_log import ClickLogFolder, LogFile, TopicIdentity
from trainer.service.collect import Collected, Collector, _Partition
from trainer.service.settings import TrainerRoot, TrainerSettings


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


class Record:
    """A message of the clicks topic."""

    def __init__(self, offset: int) -> None:
        self._offset = offset

    def error(self) -> None: ...

    def partition(self) -> int:
        return 0

    def offset(self) -> int:
        return self._offset

    def timestamp(self) -> tuple[int, int]:
        return TIMESTAMP_LOG_APPEND_TIME, 1_767_225_600_000

    def key(self) -> bytes:
        return b"s"

    def value(self) -> bytes:
        return encode_click(Click("s", "i", 1_767_225_600_000))


class Endless:
    """A consumer that always has three more records."""

    offset = 0

    def consume(self, _most: int, _seconds: float) -> list[Record]:
        self.offset += 3
        return [Record(offset) for offset in range(self.offset - 3, self.offset)]


def test_a_full_disk_makes_nobody_read_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Collecting is tried again every few seconds, for hours: each time there were more clicks in memory."""
    collector = Collector(
        KafkaConnection(), "clicks", ClickLogFolder(tmp_path),
        group="collect", limits=ClickLimits(), flush_clicks=5, flush_seconds=60.0,
    )  # fmt: skip
    consumer: Any = Endless()
    collector._consumer, collector._identity = consumer, TopicIdentity("clicks", "id-1")
    collector._flushed_at = time.monotonic()
    collector._partitions = {0: _Partition(expected=0, first=0, next=0)}

    def full(*_: Any, **__: Any) -> None:
        raise ClickLogError("No space left on device")

    with monkeypatch.context() as disk:
        disk.setattr(ClickLogFolder, "write", full)
        for _ in range(10):
            with pytest.raises(ClickLogError):
                collector.collect_until(lambda: False)
        assert consumer.offset == 6
    collected = collector.collect_until(lambda: consumer.offset >= 9)
    assert (collected.clicks, ClickLogFolder(tmp_path).scan().next_offsets) == (9, {0: 9})


class Played(Collector):
    """Without Kafka; it has nothing to write, but often."""

    def __enter__(self) -> "Played":
        return self

    def __exit__(self, *_: object) -> None: ...

    def collect_to_end(self, stop: Callable[[], bool] = lambda: False) -> Collected:
        return Collected()

    def collect_until(self, stop: Callable[[], bool]) -> Collected:
        for _ in range(20):
            self._flush()
        return Collected()


@pytest.mark.parametrize("once", [True, False])
def test_who_collects_alone_joins_small_files_and_removes_old_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, once: bool
) -> None:
    """`trainer run` does it after a cycle; a log that `trainer collect` alone keeps grew for ever."""
    monkeypatch.setattr("trainer.service.assembly.Collector", Played)
    log = ClickLogFolder(tmp_path)
    for first in range(0, 40, 2):
        put(log, 0, first, first + 1)
    day = 86_400_000
    put(log, 0, 40, 40, time=2 * day)
    settings = TrainerSettings(log_dir=tmp_path, window=day / 1000, log_keep=day / 1000)
    collect(TrainerRoot(trainer=settings), once=once, stopping=lambda: False)
    assert log.scan().files == (LogFile(0, 40, 40),)
