"""The guard on a real Kafka: worker, scorer and guard at work, live clicks, and a bad model that passed the gate."""

import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from confluent_kafka import Producer

from deploy.demo.oracle import read_topic
from deploy.demo.shop import Shop, ShopSettings
from deploy.kafka.ports import free_port
from schemas.bundle.files import read_manifest, write_bundle
from schemas.bundle.golden import decode_golden
from schemas.bundle.manifest import ADVANCE, GOLDEN, RANK
from schemas.bundle.vocabulary import Vocabulary
from schemas.messages.announcement import ModelAnnouncement
from schemas.messages.click import encode_click
from schemas.messages.ranking import decode_ranking
from schemas.messages.score import decode_score, totals_by_model
from stream_app.tools.pacing import pace, wait_until_due
from tests.conftest import KafkaUnderTest
from tests.integration.trainer_deployment import Deployment
from tests.patience import PATIENCE
from trainer.service.assembly import championship_of, registry_of
from trainer.service.loop import run
from trainer.service.registry import PublishedModel

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
            "NEXTCLICK_WORKER__APP_ID": f"{deployment.prefix}-app",
            "NEXTCLICK_WORKER__DATA_DIR": str(deployment.folder / "worker"),
            "NEXTCLICK_WORKER__WEB_PORT": str(free_port()),
            "NEXTCLICK_SCORES__DATA_DIR": str(deployment.folder / "scorer"),
            "NEXTCLICK_SCORES__WEB_PORT": str(free_port()),
            "NEXTCLICK_GUARD__EVERY": "1s",
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
    deployment.create_topics()
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


def shuffled(deployment: Deployment, good: str) -> PublishedModel:
    """The same graphs with items under each other's names: every check passes, and so did its gate."""
    registry = registry_of(deployment.root())
    folder = deployment.folder / "registry" / good
    manifest = read_manifest(folder)
    items = list(Vocabulary.from_json((folder / "vocabulary.json").read_bytes()).items)
    bad = write_bundle(
        deployment.folder / "staging",
        version=f"{good}-shuffled",
        family=manifest.family,
        advance=(folder / ADVANCE).read_bytes(),
        rank=(folder / RANK).read_bytes(),
        vocabulary=Vocabulary([items[n] for n in np.random.default_rng(0).permutation(len(items))]),
        popularity=np.load(folder / "popularity.npy"),
        golden=decode_golden((folder / GOLDEN).read_bytes()),
        layers=manifest.layers,
        hidden_size=manifest.hidden_size,
        query_size=manifest.query_size,
        k=manifest.k,
        recent_size=manifest.recent_size,
        training=manifest.training,
        metrics=manifest.metrics,
        created_at=manifest.created_at + 1,
    )
    assert manifest.metrics["gate"]["passed"]
    published = registry.publish(bad)
    shutil.rmtree(deployment.folder / "staging")
    return published


def champion(deployment: Deployment) -> ModelAnnouncement:
    announced = deployment.models_topic().current()
    assert announced is not None
    return announced


def test_a_bad_model_that_passed_the_gate_is_rolled_back(
    deployment: Deployment, commands: Commands, open_shop: Callable[[], LiveShop]
) -> None:
    config = {"bootstrap.servers": deployment.bootstrap_servers}
    began = time.time_ns() // 1_000_000
    deployment.produce(SHOP.history(900, before_ms=NOW))
    first = run(deployment.root(), once=True, stopping=lambda: False)
    assert first is not None
    assert first.outcome == "announced"
    good = first.version or ""
    commands.start("stream_app", "worker")
    commands.start("stream_app", "score")
    commands.start("trainer", "guard")
    shop = open_shop()

    def sessions_of(version: str) -> int:
        newest = {record.key(): record.value() for record in read_topic(config, deployment.topics.scores)}
        live = (score for score in map(decode_score, newest.values()) if score.window_start > began - 600_000)
        found = totals_by_model(live).get(version)
        return found.sessions if found else 0

    commands.wait(lambda: sessions_of(good) > 1000, "the good model is known")
    bad = shuffled(deployment, good)
    championship = championship_of(deployment.root(), registry_of(deployment.root()))
    championship.promote(bad, "passed the gate")
    commands.wait(lambda: champion(deployment).version == good, "the bad model is rolled back")

    def served() -> list[str]:
        return [
            decode_ranking(one.value() or b"").model_version for one in read_topic(config, deployment.topics.rankings)
        ]

    commands.wait(lambda: served()[-1] == good, "the good model serves again")
    shop.close()
    clicks = list(read_topic(config, deployment.topics.clicks))

    def answered() -> set[tuple[int, int]]:
        rankings = (decode_ranking(one.value() or b"") for one in read_topic(config, deployment.topics.rankings))
        return {(ranking.source.partition, ranking.source.offset) for ranking in rankings}

    everything = {(record.partition(), record.offset()) for record in clicks}
    commands.wait(lambda: answered() == everything, "every click has its ranking")
    assert commands.stop() == [0, 0, 0]

    assert 0 < served().count(bad.version) < TWO_MINUTES
    assert not list(read_topic(config, deployment.topics.rejected))
    made = champion(deployment)
    assert made.why.startswith(f"rolled back from {bad.version}: the guard: Recall@20 0.")
    assert made.evidence is not None
    assert made.evidence["champion"]["version"] == bad.version
    assert made.evidence["champion"]["sessions"] >= made.evidence["rules"]["sessions"]
    told = deployment.trainer("models")
    assert f"{good} was announced by the guard: rolled back from {bad.version}" in told.stdout
    [listed] = [one for one in json.loads(deployment.trainer("models", "--json").stdout) if one["version"] == good]
    assert listed["guard"][-1]["evidence"] == json.loads(json.dumps(made.evidence))
    # A cycle after it leaves the bad model where it is.
    after = run(deployment.root(min_new_sessions=10**6), once=True, stopping=lambda: False)
    assert after is not None
    assert after.outcome == "skipped"
    assert champion(deployment) == made


def test_a_dry_run_announces_nothing_and_needs_no_lease(deployment: Deployment) -> None:
    nothing = deployment.trainer("guard", "--once", "--dry-run")
    assert nothing.returncode == 0
    assert "no champion is announced yet" in nothing.stderr
