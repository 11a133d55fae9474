"""What a worker's process is built of and how long it may take to end; nothing of it is started."""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from schemas.kafka.connection import KafkaConnection
from stream_app.errors import StreamError
from stream_app.serve import worker as worker_module
from stream_app.serve.delivery import Delivery
from stream_app.serve.watchdog import Deadline
from stream_app.serve.worker import Worker
from stream_app.settings import StreamSettings, WorkerSettings


class NotedDeadline(Deadline):
    """Ends no process: notes when it would."""

    def __init__(self) -> None:
        super().__init__()
        self.noted: list[tuple[float, int]] = []

    def set(self, seconds: float, code: int) -> None:
        self.noted.append((seconds, code))


def settings(data_dir: Path, **worker: Any) -> StreamSettings:
    return StreamSettings(
        kafka=KafkaConnection(bootstrap_servers="127.0.0.1:1"), worker=WorkerSettings(data_dir=data_dir, **worker)
    )


async def test_a_worker_that_cannot_go_on_is_gone_in_five_seconds_whatever_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "Deadline", NotedDeadline)
    worker = Worker(settings(tmp_path))
    for _ in range(2):
        worker.fail(StreamError("the first one counts"))
    await asyncio.sleep(0)
    deadline = worker._deadline
    assert isinstance(deadline, NotedDeadline)
    assert deadline.noted == [(5.0, 1)]
    worker.stop()  # a signal meanwhile gives it no more time
    assert deadline.noted == [(5.0, 1)]


async def test_a_worker_that_is_told_to_stop_has_time_to_drain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_module, "Deadline", NotedDeadline)
    worker = Worker(settings(tmp_path))
    for _ in range(2):
        worker.stop()
    deadline = worker._deadline
    assert isinstance(deadline, NotedDeadline)
    assert deadline.noted == [(65.0, 1)]
    worker.fail(StreamError("while it drains"))
    await asyncio.sleep(0)
    assert deadline.noted == [(65.0, 1), (5.0, 1)]


async def test_records_are_compressed_as_the_settings_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configs: list[Mapping[str, Any]] = []

    def noted(config: Mapping[str, Any], **others: Any) -> Delivery:
        configs.append(config)
        return Delivery(config, **others)

    monkeypatch.setattr(worker_module, "Delivery", noted)
    for compression in ("none", "zstd"):
        Worker(settings(tmp_path, compression=compression))
    assert [config["compression.type"] for config in configs] == ["none", "zstd"]
