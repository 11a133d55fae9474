"""The guard on a real Kafka: worker, scorer and guard at work, live clicks, a challenger, and a bad model."""

import json
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from confluent_kafka import Producer

from deploy.demo.bad_model import publish_shuffled
from deploy.demo.oracle import read_topic
from deploy.demo.shop import Shop, ShopSettings
from deploy.kafka.ports import free_port
from schemas.bundle.files import read_manifest
from schemas.messages.announcement import ModelAnnouncement
from schemas.messages.click import encode_click
from schemas.messages.ranking import Ranking, decode_ranking
from schemas.messages.split import Split, Variant
from stream_app.tools.pacing import pace, wait_until_due
from tests.conftest import REPOSITORY, KafkaUnderTest
from tests.doc_pages import commands as commands_of
from tests.integration.trainer_deployment import Deployment
from tests.patience import PATIENCE
from trainer.service.assembly import championship_of, registry_of, split_topic_of
from trainer.service.loop import run

LOOKS, GUARDS = commands_of(REPOSITORY / "docs" / "guard.md")[:2]
NOW = 1_767_225_600_000
SESSIONS_PER_SECOND = 40.0
MEAN_LENGTH = 7.0
TWO_MINUTES = 120 * SESSIONS_PER_SECOND * MEAN_LENGTH
"""Clicks of the shop in that time."""
SHOP = Shop(
    ShopSettings(
        departments=2,
        brands=3,
        items_per_line=6,
        retired=0.0,
        shifted=0.0,
        mean_length=MEAN_LENGTH,
        sessions_per_second=SESSIONS_PER_SECOND,
    )
)


class LiveShop:
    """Clicks at the shop's own pace, on a thread, until it is closed."""

    def __init__(self, deployment: Deployment) -> None:
        self._producer = Producer(
            {"bootstrap.servers": deployment.bootstrap_servers, "partitioner": "murmur2_random", "linger.ms": 5}
        )
        self._topic = deployment.topics.clicks
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._send, name="shop", daemon=True)
        self._thread.start()

    def _send(self) -> None:
        live = pace(SHOP.live(time.time_ns() // 1_000_000), speed=1.0)
        for batch in wait_until_due(live, clock=time.monotonic, sleep=time.sleep):
            for click in batch.clicks:
                self._producer.produce(self._topic, encode_click(click), click.session_id.encode())
            self._producer.poll(0)
            if self._closing.is_set():
                return

    def close(self) -> None:
        self._closing.set()
        self._thread.join()
        assert self._producer.flush(PATIENCE) == 0


class Commands:
    """Processes of the deployment."""

    def __init__(self, deployment: Deployment) -> None:
        self._deployment = deployment
        self._running: list[tuple[subprocess.Popen[bytes], Path]] = []
        self._environ = deployment.environ | {
            "NEXTCLICK_WORKER__SPLITS": "true",
            "NEXTCLICK_WORKER__DATA_DIR": str(deployment.folder / "worker"),
            "NEXTCLICK_WORKER__WEB_PORT": str(free_port()),
            "NEXTCLICK_SCORES__DATA_DIR": str(deployment.folder / "scorer"),
            "NEXTCLICK_SCORES__WEB_PORT": str(free_port()),
            "NEXTCLICK_SCORES__WINDOW": "5s",
            "NEXTCLICK_GUARD__EVERY": "1s",
            "NEXTCLICK_GUARD__MIN_SESSIONS": "250",
        }

    def start(self, *words: str) -> None:
        log = self._deployment.folder / f"{'-'.join(words)}.log"
        with log.open("wb") as output:
            process = subprocess.Popen([sys.executable, "-m", *words], env=self._environ, stdout=output, stderr=output)
        self._running.append((process, log))

    def wait(self, until: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while not until():
            for process, log in self._running:
                assert process.poll() is None, log.read_text()[-3000:]
            if time.monotonic() > deadline:
                raise AssertionError(
                    f"never: {what}\n" + "\n".join(log.read_text()[-2000:] for _, log in self._running)
                )
            time.sleep(0.5)

    def stop(self) -> list[int]:
        for process, _ in reversed(self._running):
            process.terminate()
        return [process.wait(PATIENCE) for process, _ in self._running]

    def kill(self) -> None:
        for process, _ in self._running:
            process.kill()
            process.wait()


@pytest.fixture
def deployment(kafka: KafkaUnderTest, topic_prefix: str, tmp_path: Path) -> Deployment:
    deployment = Deployment(kafka.bootstrap_servers, topic_prefix, tmp_path)
    deployment.create_topics(splits=True)
    return deployment


@pytest.fixture
def open_shop(deployment: Deployment) -> Iterator[Callable[[], LiveShop]]:
    opened: list[LiveShop] = []

    def open_() -> LiveShop:
        opened.append(LiveShop(deployment))
        return opened[-1]

    yield open_
    for shop in opened:
        shop.close()


@pytest.fixture
def commands(deployment: Deployment) -> Iterator[Commands]:
    commands = Commands(deployment)
    yield commands
    commands.kill()


def champion(deployment: Deployment) -> ModelAnnouncement:
    announced = deployment.models_topic().current()
    assert announced is not None
    return announced


def check_evidence(
    deployment: Deployment,
    good: str,
    promoted: ModelAnnouncement,
    rolled_back: ModelAnnouncement,
    *,
    judged: tuple[str, str],
) -> None:
    """Both announcements say why, and `trainer models` shows it. `judged` are the champions that were worse."""
    assert promoted.evidence is not None
    assert rolled_back.evidence is not None
    assert promoted.why.startswith("promoted by the guard: Recall@20 0.")
    assert rolled_back.why.startswith(f"rolled back from {judged[1]}: the guard: Recall@20 0.")
    assert promoted.evidence["compared_with"]["version"] == good
    for evidence, version in zip((promoted.evidence, rolled_back.evidence), judged, strict=True):
        assert evidence["champion"]["version"] == version
        assert evidence["champion"]["sessions"] >= evidence["rules"]["sessions"]
    told = deployment.trainer("models")
    assert f"{good} was announced by the guard: rolled back from {judged[1]}" in told.stdout
    [listed] = [one for one in json.loads(deployment.trainer("models", "--json").stdout) if one["version"] == good]
    shown = [one["evidence"] for one in listed["guard"][-2:]]
    assert shown == json.loads(json.dumps([promoted.evidence, rolled_back.evidence]))


def test_a_better_challenger_is_promoted_and_a_bad_model_that_passed_the_gate_is_rolled_back(
    deployment: Deployment, commands: Commands, open_shop: Callable[[], LiveShop]
) -> None:
    config, topics, registry = (
        {"bootstrap.servers": deployment.bootstrap_servers},
        deployment.topics,
        deployment.registry,
    )
    deployment.produce(SHOP.history(900, before_ms=NOW))
    first = run(deployment.root(), once=True, stopping=lambda: False)
    assert first is not None
    assert first.outcome == "announced"
    good = first.version or ""
    assert read_manifest(registry / good).metrics["gate"]["passed"]
    bad = publish_shuffled(registry, good)
    published, split = registry_of(deployment.root()), split_topic_of(deployment.root())
    championship = championship_of(deployment.root(), published)
    championship.promote(published.get(bad), "a bad day")
    championship_of(deployment.root(), published, "challenger").promote(published.get(good), "to be tried")
    split.put(Split(app_id=deployment.app_id, variants=(Variant("champion", 50.0), Variant("challenger", 50.0))))
    commands.start("stream_app", "worker")
    commands.start("stream_app", "score")
    commands.start(*GUARDS.words)
    shop = open_shop()

    def rankings() -> list[Ranking]:
        return [decode_ranking(one.value() or b"") for one in read_topic(config, topics.rankings)]

    commands.wait(lambda: champion(deployment).version == good, "the better challenger is promoted")
    promoted = champion(deployment)
    commands.wait(lambda: split.current() is None, "the split ends")
    commands.wait(lambda: rankings()[-1].variant is None, "the promoted model serves alone")
    worse = publish_shuffled(registry, bad)
    championship.promote(published.get(worse), "passed the gate")
    commands.wait(lambda: champion(deployment).version == good, "the bad model is rolled back")
    commands.wait(lambda: rankings()[-1].model_version == good, "the good model serves again")
    shop.close()
    everything = {(record.partition(), record.offset()) for record in read_topic(config, topics.clicks)}

    def answered() -> set[tuple[int, int]]:
        return {(ranking.source.partition, ranking.source.offset) for ranking in rankings()}

    commands.wait(lambda: answered() == everything, "every click has its ranking")
    assert commands.stop() == [0, 0, 0]
    assert not list(read_topic(config, topics.rejected))

    served = Counter((ranking.variant, ranking.model_version) for ranking in rankings())
    until_it_ends = {("champion", good)}  # the split, after the promotion
    assert served.keys() - until_it_ends == {("champion", bad), ("challenger", good), (None, good), (None, worse)}
    assert served[None, worse] < TWO_MINUTES
    made = champion(deployment)
    check_evidence(deployment, good, promoted, made, judged=(bad, worse))
    # A cycle after it leaves the bad model where it is.
    after = run(deployment.root(min_new_sessions=10**6), once=True, stopping=lambda: False)
    assert after is not None
    assert after.outcome == "skipped"
    assert champion(deployment) == made


def test_a_dry_run_announces_nothing_and_needs_no_lease(deployment: Deployment) -> None:
    nothing = deployment.trainer(*LOOKS.words[1:])
    assert nothing.returncode == 0
    assert "no champion is announced yet" in nothing.stderr
