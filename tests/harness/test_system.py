"""Which clicks a worker may have in flight when another one replaces it: told by a Kafka that is made up here."""

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import ConsumerGroupState, KafkaException, TopicPartition

from tests.harness import system as module
from tests.harness.history import History, lines
from tests.harness.system import PARTITIONS, WORKER, System

PROXIED = "127.0.0.1:2"


class Process:
    def send_signal(self, number: int) -> None:
        """It does not exist."""


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Worker a, behind the proxy, has partitions 0 and 1, worker b has 2 and 3; all is acknowledged up to 100."""
    it: Any = System.__new__(System)
    it.folder, it.name, it.clicks, it._unsure = tmp_path, "shop", "shop-clicks", {}
    links = [SimpleNamespace(hold=lambda gates: None, heal=lambda: None)]
    kafka = SimpleNamespace(kill_broker=lambda broker: None, start_broker=lambda broker: None)
    it.broker = SimpleNamespace(direct="127.0.0.1:1", proxied=PROXIED, links=links, size=1, kafka=kafka)
    it.workers = {}
    for name, settings in (("a", {"NEXTCLICK_KAFKA__BOOTSTRAP_SERVERS": PROXIED}), ("b", dict[str, str]())):
        it.workers[name] = SimpleNamespace(process=Process(), settings=settings, command=WORKER)
        it.data(name).mkdir()
        (it.data(name) / "member.json").write_text(json.dumps({"id": f"id of {name}", "folder": 1}))
    has = {"a": [("shop-clicks", 0), ("shop-clicks", 1), ("shop-sessions-changelog", 3)], "b": [("shop-clicks", 2)]}
    has["b"].append(("shop-clicks", 3))
    members = [
        SimpleNamespace(
            group_instance_id=f"id of {name}",
            assignment=SimpleNamespace(topic_partitions=[TopicPartition(*one) for one in its]),
        )
        for name, its in has.items()
    ]
    it._group = lambda: SimpleNamespace(state=ConsumerGroupState.STABLE, members=members)
    monkeypatch.setattr(module, "committed", lambda *_: dict.fromkeys(range(PARTITIONS), (100, 150)))
    monkeypatch.setattr(module, "end_offsets", lambda *_: dict.fromkeys(range(PARTITIONS), 200))
    with closing(History(tmp_path / "history.jsonl")) as it.history:
        yield it


def in_flight(system: Any) -> list[tuple[int, int, int]]:
    system.history.flush()
    told = [line for line in lines(system.history.path) if line["what"] == "in_flight"]
    return [(line["partition"], line["first"], line["below"]) for line in told]


def test_a_frozen_worker_has_clicks_of_its_own_partitions_in_flight(system: Any) -> None:
    system.freeze("b")
    assert in_flight(system) == [(2, 100, 200), (3, 100, 200)]


def test_one_that_is_frozen_for_less_than_its_session_timeout_keeps_them(system: Any) -> None:
    system.freeze("b", expelled=False)
    assert in_flight(system) == []


def test_a_cut_concerns_workers_behind_the_proxy_up_to_what_there_is_when_it_ends(system: Any) -> None:
    system.cut()
    assert in_flight(system) == []
    system.heal()
    system.heal()
    assert in_flight(system) == [(0, 100, 200), (1, 100, 200)]


def test_a_broker_that_is_away_concerns_all(system: Any) -> None:
    system.broker_down(kill=True)
    system.broker_up()
    assert in_flight(system) == [(partition, 100, 200) for partition in range(PARTITIONS)]


@pytest.mark.parametrize("state", ["moving", "moved"])
def test_all_partitions_are_concerned_where_kafka_does_not_say_who_has_them(system: Any, state: str) -> None:
    def fails() -> Any:
        raise KafkaException("not the coordinator")

    moving = SimpleNamespace(state=ConsumerGroupState.PREPARING_REBALANCING)
    system._group = fails if state == "moved" else lambda: moving
    system.freeze("b")
    assert len(in_flight(system)) == PARTITIONS
