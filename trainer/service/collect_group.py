"""Several collectors, on as many machines as one likes, that write one click log in a folder that all of them see.

A consumer group says who reads which partitions. It can be wrong about who does: a collector that was suspended, or cut
off from Kafka, has lost its partitions without knowing. So each holds a lock on a partition for as long as it may write
it, and whoever is assigned that partition waits for the lock. Positions come from the names of the files, as for a
single collector: nothing is committed to Kafka, and no kill makes the two disagree.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Any, Final, Self, TextIO

import structlog
from confluent_kafka import Consumer, TopicPartition

from trainer.service.click_log import ClickLogFolder
from trainer.service.collect import Collected, Collector

log = structlog.get_logger(__name__)

_PAUSE_SECONDS: Final = 0.2


class GroupCollector(Collector):
    """A member of the group. Use as a context manager, inside `folder.shared()`."""

    def __init__(self, *arguments: Any, log_keep: float, **options: Any) -> None:
        """As a `Collector`, of whatever the group gives it. It tidies up what it holds itself."""
        super().__init__(*arguments, log_keep=log_keep, **options)
        self._log: ClickLogFolder = self._folder
        self._claims: dict[int, TextIO] = {}
        # Of what is claimed at the time: whatever else lies there is another member's, to join and to remove, too.
        self._folder = ClickLogFolder(self._log.folder, self._claims.keys())
        self._awaited: set[int] = set()
        self._joined = self._ending = False

    def __exit__(self, *_: object) -> None:
        self._ending = True  # what is not written yet is read by the next owner
        super().__exit__()
        self._give_up()

    def _membership(self) -> dict[str, Any]:
        return {
            # All partitions are given up before they are assigned anew: few and rare, and then there is one way only.
            "partition.assignment.strategy": "roundrobin",
            "session.timeout.ms": 10_000,
        }

    def _begin(self) -> None:
        self._consumer.subscribe([self._topic], on_assign=self._on_assign, on_revoke=self._on_revoke)

    def _look_around(self) -> None:
        if self._awaited:
            self._claim_awaited()

    def _has_reached(self, targets: Mapping[int, int]) -> bool:
        return self._joined and not self._awaited and super()._has_reached(targets)

    def _on_assign(self, _: Consumer, partitions: Iterable[TopicPartition]) -> None:
        self._joined = True
        self._awaited = {assigned.partition for assigned in partitions}
        self._assign_positions()  # of none: else librdkafka reads them all
        self._claim_awaited()
        if self._awaited:
            log.warning("another collector still holds partitions; waiting for it", partitions=sorted(self._awaited))

    def _on_revoke(self, consumer: Consumer, _: object) -> None:
        """Also of partitions that are lost already: as long as we hold their locks nobody else writes them."""
        if not self._ending:
            self._flush()
        self._joined = False  # nothing is ours now, which is no end of our partitions
        self._give_up()
        consumer.unassign()

    def _claim_awaited(self) -> None:
        claimed = {number: claim for number in sorted(self._awaited) if (claim := self._log.claim(number)) is not None}
        if claimed:
            self._claims |= claimed
            self._awaited -= claimed.keys()
            self._take_up(claimed.keys())
            log.info("collecting", partitions=sorted(self._claims))

    def _give_up(self) -> None:
        self._partitions.clear()
        self._awaited.clear()
        while self._claims:
            self._claims.popitem()[1].close()


class OthersCollect:
    """In the place of a collector, where a group collects: what is in the log is all there is to train on."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        pass

    def collect_to_end(self, _: Callable[[], bool]) -> Collected:
        return Collected()

    def collect_until(self, stop: Callable[[], bool]) -> Collected:
        while not stop():
            time.sleep(_PAUSE_SECONDS)
        return Collected()
