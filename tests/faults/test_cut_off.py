"""A worker that the network cuts off: what it sent before arrives after its partitions have moved."""

import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from deploy.kafka import LocalKafka
from deploy.kafka.ports import free_ports
from deploy.kafka.properties import HOST
from schemas.messages.click import Click
from tests.conftest import KafkaUnderTest
from tests.faults.deployment import NEVER_TAKEN_FOR_DEAD, PARTITIONS, Deployment
from tests.faults.proxy import ALL, Gate, Proxy
from tests.promtool import assert_firing, promtool
from tests.stream_process import StreamProcess

_IN_BETWEEN_SECONDS = 2.0
"""How much later the second half heals. It is long enough for whatever the worker does about the first."""


@dataclass(frozen=True)
class CutOff:
    """Which traffic is held, and in which order it goes on."""

    what: str
    held: Sequence[Gate]
    healed: Sequence[Sequence[Gate]]


PRODUCER, CONSUMER = ALL[:2], ALL[2:]
CUT_OFFS = [
    CutOff("the producer heals first", ALL, [PRODUCER, CONSUMER]),
    CutOff("the consumer heals first", ALL, [CONSUMER, PRODUCER]),
    # The rows get there at once, their confirmation and the heartbeats do not.
    CutOff("one way", [("producer", "answers"), ("consumer", "requests")], [PRODUCER, CONSUMER]),
]


@pytest.fixture(scope="module")
def listener_and_proxy() -> tuple[int, int]:
    listener, proxy = free_ports(2)
    return listener, proxy


@pytest.fixture(scope="module")
def kafka(tmp_path_factory: pytest.TempPathFactory, listener_and_proxy: tuple[int, int]) -> Iterator[KafkaUnderTest]:
    """A broker of its own: one that is also reached through a proxy has to name it to its clients."""
    with LocalKafka(log_dir=tmp_path_factory.mktemp("kafka-logs"), proxied=[listener_and_proxy]) as local:
        yield KafkaUnderTest(local.bootstrap_servers)


@pytest.fixture
def proxy(kafka: KafkaUnderTest, listener_and_proxy: tuple[int, int]) -> Iterator[Proxy]:
    listener, port = listener_and_proxy
    with closing(Proxy(HOST, port, listener)) as proxy:
        yield proxy


def recoveries(worker: StreamProcess) -> list[str]:
    return [line for line in worker.output().splitlines() if "tables recovered" in line]


def test_cut_off_in_every_way(
    deployment: Deployment, stream: list[Click], proxy: Proxy, listener_and_proxy: tuple[int, int]
) -> None:
    behind = f"{HOST}:{listener_and_proxy[1]}"
    cut = deployment.start_ready("a", NEXTCLICK_KAFKA__BOOTSTRAP_SERVERS=behind)
    other = deployment.start_ready("b")
    load = deployment.load(stream, per_second=250)
    everything = str(list(range(PARTITIONS)))
    for cut_off in CUT_OFFS:
        deployment.wait_until_more_clicks(cut, 200)
        before = len(recoveries(other))
        proxy.hold_at_produce(deployment.changelog, cut_off.held)
        assert proxy.caught.wait(60), f"{cut_off.what}: no rows were on their way"
        deployment.wait(
            lambda: any(everything in line for line in recoveries(other)[before:]),  # noqa: B023 - called in this round
            f"{cut_off.what}: the other worker takes over",
        )
        deployment.wait_until_more_clicks(other, 500)
        first, second = cut_off.healed
        proxy.heal(first)
        time.sleep(_IN_BETWEEN_SECONDS)
        proxy.heal(second)
    deployment.wait_until_more_clicks(cut, 200)
    assert other.stop() == 0
    deployment.wait_until_more_clicks(cut, 1000)
    deployment.judge(load, cut)


def test_clicks_whose_rankings_kafka_does_not_confirm_raise_an_alert(
    deployment: Deployment, stream: list[Click], proxy: Proxy, listener_and_proxy: tuple[int, int], tmp_path: Path
) -> None:
    """NextclickNoRankings; tests/integration/test_alerts.py breaks what the other alerts watch.

    The worker reads clicks and stays in its group; what its producer sends is held on the way.
    """
    promtool("--version")  # skips where there is none
    deployment.extra |= NEVER_TAKEN_FOR_DEAD | {"NEXTCLICK_KAFKA__BOOTSTRAP_SERVERS": f"{HOST}:{listener_and_proxy[1]}"}
    worker = deployment.start_ready()

    def send(clicks: list[Click], metric: str) -> str:
        counted = worker.metric(metric) + len(clicks)
        deployment.send(clicks)
        deployment.wait(lambda: worker.metric(metric) == counted, f"{metric} at {counted}")
        return worker.metrics()

    well = send(stream[:20], "nextclick_rankings_total")
    proxy.hold(PRODUCER)
    broken = send(stream[20:40], "nextclick_clicks_total")
    proxy.heal(PRODUCER)
    assert_firing(["NextclickNoRankings"], {"nextclick": well}, {"nextclick": broken}, tmp_path)
    deployment.wait(lambda: worker.metric("nextclick_rankings_total") == 40, "all rankings")
    assert worker.stop() == 0
