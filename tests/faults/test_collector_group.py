"""Three collectors share the partitions. One is killed, one hangs, and the log still holds every offset once."""

import json
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from schemas.messages.click import Click
from tests.conftest import KafkaUnderTest
from tests.integration.trainer_deployment import PARTITIONS, Deployment
from tests.patience import PATIENCE
from trainer.service.assembly import collect
from trainer.service.click_log import ClickLogFolder
from trainer.service.loop import run

pytestmark = pytest.mark.fault

NOW = 1_767_225_600_000
OFTEN = {"NEXTCLICK_TRAINER__FLUSH_CLICKS": "50", "NEXTCLICK_TRAINER__FLUSH_INTERVAL": "20ms"}


class Member:
    """A `trainer collect` of the group."""

    def __init__(self, deployment: Deployment, group: str) -> None:
        self.process = deployment.start("collect", NEXTCLICK_TRAINER__COLLECT_GROUP=group, **OFTEN)
        self.owned: list[int] = []
        self.awaited: list[int] = []
        self._listening = threading.Thread(target=self._listen)
        self._listening.start()

    def _listen(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            entry = json.loads(line)
            if entry["event"] == "collecting":
                self.owned = entry["partitions"]
            elif entry["event"].startswith("another collector still holds"):
                self.awaited = entry["partitions"]

    def end(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        code = self.process.wait(PATIENCE)
        self._listening.join()
        self.process.communicate()
        return code


@contextmanager
def clicks_going_on(deployment: Deployment) -> Iterator[list[int]]:
    """About 2,000 clicks a second, each of a time of its own; at the end their number is in the list."""
    stop, produced = threading.Event(), list[int]()

    def steady() -> Iterator[Click]:
        number = 0
        while not stop.is_set():
            for _ in range(100):
                yield Click(f"s{number % 97}", f"i{number % 11}", NOW + number)
                number += 1
            stop.wait(0.05)

    producing = threading.Thread(target=lambda: produced.append(deployment.produce(steady())))
    producing.start()
    try:
        yield produced
    finally:
        stop.set()
        producing.join()


def until(condition: Callable[[], bool]) -> None:
    waiting = threading.Event()
    for _ in range(int(PATIENCE / 0.05)):
        if condition():
            return
        waiting.wait(0.05)
    pytest.fail("it did not come")


def test_every_offset_is_in_the_log_once_whoever_dies_or_hangs(
    kafka: KafkaUnderTest, topic_prefix: str, tmp_path: Path
) -> None:
    deployment = Deployment(kafka.bootstrap_servers, topic_prefix, tmp_path)
    deployment.create_topics()
    log, group = ClickLogFolder(deployment.log_dir), f"{topic_prefix}-collect"
    with ExitStack() as ending:
        produced = ending.enter_context(clicks_going_on(deployment))
        members = [Member(deployment, group) for _ in range(PARTITIONS)]
        for member in members:
            ending.callback(member.end, signal.SIGKILL)
        until(lambda: [len(member.owned) for member in members] == [1] * PARTITIONS)
        killed, hanging, left = members
        until(lambda: hanging.owned[0] in log.scan().next_offsets)
        hanging.process.send_signal(signal.SIGSTOP)
        killed.end(signal.SIGKILL)
        until(lambda: left.awaited == hanging.owned and len(left.owned) == 2)
        # It may wake at any moment and write what it had read: nobody else has until then.
        stood_at = log.scan().next_offsets[hanging.owned[0]]
        result = run(deployment.root(collect_group=group, min_new_sessions=10**6), once=True, stopping=bool)
        assert result is not None
        assert "new sessions, a cycle needs" in result.reasons[0]  # it reads what all of them wrote
        assert log.scan().next_offsets[hanging.owned[0]] == stood_at
        hanging.process.send_signal(signal.SIGCONT)
        until(lambda: sorted(left.owned + hanging.owned) == list(range(PARTITIONS)))
        assert [member.end(signal.SIGTERM) for member in (hanging, left)] == [0, 0]
    assert collect(deployment.root(collect_group=group), once=True, stopping=bool).lost == 0
    deployment.assert_logged_once(range(NOW, NOW + produced[0]))
