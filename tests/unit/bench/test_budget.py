"""A budget of steps, by a processor clock in the test's hands."""

import json
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from bench.budget import Budget


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    clock = SimpleNamespace(now=1_000_000)
    monkeypatch.setattr(time, "thread_time_ns", lambda: clock.now)
    monkeypatch.setattr("bench.budget._loop_ns", lambda: clock.now)
    return clock


def test_a_step_does_not_count_the_steps_within_it(clock: SimpleNamespace, tmp_path: Path) -> None:
    class Worker:
        def send(self) -> None:
            clock.now += 30_000

        def compute(self) -> None:
            clock.now += 10_000
            self.send()

    budget = Budget()
    budget.measure(Worker, "send", "send")
    budget.measure(Worker, "compute", "metrics")
    Worker.compute = budget.count_batches(Worker.compute)  # type: ignore[method-assign]
    worker = Worker()
    worker.send()  # before the first batch: no batch's
    for _ in range(2):
        worker.compute()
        clock.now += 5_000
    budget.write(tmp_path / "budget.json")
    told = json.loads((tmp_path / "budget.json").read_text())
    assert (told["batches"], told["steps"]) == (
        2,
        {"send": 30.0, "metrics": 10.0, "all else: Faust, asyncio, waiting": 5.0},
    )
    assert "event loop" in told["threads"]


def test_without_a_batch_there_is_none(tmp_path: Path) -> None:
    Budget().write(tmp_path / "budget.json")
    assert not (tmp_path / "budget.json").exists()
