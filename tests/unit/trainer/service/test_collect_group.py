"""A member of the group between two assignments: it owns nothing."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import TopicPartition

from schemas.config.settings import KafkaConnection
from schemas.messages.click import ClickLimits
from tests.unit.trainer.service.test_click_log import put
from trainer.service.click_log import ClickLogFolder
from trainer.service.collect_group import GroupCollector


class Assigned:
    """A consumer, as far as a rebalance asks it."""

    def assign(self, partitions: list[TopicPartition]) -> None: ...

    def unassign(self) -> None: ...


@pytest.fixture
def consumer() -> Any:
    return Assigned()


@pytest.fixture
def member(tmp_path: Path, consumer: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[GroupCollector]:
    member = GroupCollector(
        KafkaConnection(), "clicks", ClickLogFolder(tmp_path),
        group="collect", limits=ClickLimits(), flush_clicks=1000, flush_seconds=60.0, log_keep=0.0,
    )  # fmt: skip
    member._consumer = consumer
    monkeypatch.setattr(member, "_take_up", lambda _: None)  # it asks Kafka
    yield member
    member._give_up()


def test_the_end_is_not_reached_while_the_partitions_are_given_out_anew(member: GroupCollector, consumer: Any) -> None:
    """With `--once` it ended then, with what it had."""
    member._on_assign(consumer, [])
    assert member._has_reached({0: 5})  # there are more members than partitions
    member._on_revoke(consumer, [])
    assert not member._has_reached({0: 5})


@pytest.mark.parametrize("owned_before", [False, True])
def test_who_owns_no_partition_leaves_the_files_of_the_others_alone(
    member: GroupCollector, consumer: Any, tmp_path: Path, *, owned_before: bool
) -> None:
    """Its owner may be removing a forgotten session from them."""
    log = ClickLogFolder(tmp_path)
    for first in range(0, 32, 2):
        put(log, 0, first, first + 1)
    if owned_before:
        member._on_assign(consumer, [TopicPartition("clicks", 0)])
        member._on_revoke(consumer, [])
    for _ in range(32):
        member._flush()
    assert len(log.scan().files) == 16
