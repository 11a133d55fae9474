"""The shipped alerts on metrics of real processes: worker, scorer, guard, API and sink of a deployment.

A part breaks, a page of each process is read before and after, and promtool runs the shipped rules over both. So this
shows that the metrics, with their names and labels, move as the rules expect; that rules wait as long as they say is in
`deploy/prometheus/rules.test.yml`. Reading pages and telling who answers is Prometheus' own work.

All but NextclickNoRankings, for which the network has to hold back what the worker sends, and nothing else:
`tests/faults/test_cut_off.py`.
"""

import math
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests
from confluent_kafka import Producer

from deploy.kafka.ports import free_port
from schemas.config.settings import load_settings
from schemas.messages.click import Click, encode_click
from tests.conftest import REPOSITORY, KafkaUnderTest
from tests.contract.tiny_model import TinyFailing, seal
from tests.faults.deployment import NEVER_TAKEN_FOR_DEAD, Deployment
from tests.integration.redis_server import SERVER, RedisServer
from tests.patience import PATIENCE
from tests.promtool import assert_firing, promtool
from tests.retention import expire
from trainer.service.assembly import championship_of, registry_of
from trainer.service.settings import TrainerRoot

ITEMS = [f"item-{number}" for number in range(40)]
MANY = 300
"""More than alerts take for nothing."""
READERS = {"score": "scores", "api": "api", "sink": "sink"}
"""Of rankings, and how their metrics begin."""


class Shop:
    """A deployment, its processes, and the store that the sink fills and the API asks."""

    def __init__(self, deployment: Deployment, store: RedisServer) -> None:
        self.deployment, self.store = deployment, store
        self.worker = deployment.start()
        self.ports = {"nextclick": self.worker.web_port}
        self.ports |= {f"nextclick-{name}": free_port() for name in ("score", "guard", "api", "sink")}
        self._api = f"http://127.0.0.1:{self.ports['nextclick-api']}"
        self._environ = deployment.environment() | {
            "NEXTCLICK_SCORES__INTERVAL": "0.1",
            "NEXTCLICK_SCORES__DATA_DIR": str(deployment.root / "scores"),
            "NEXTCLICK_SCORES__WEB_PORT": str(self.ports["nextclick-score"]),
            "NEXTCLICK_GUARD__EVERY": "1s",
            "NEXTCLICK_GUARD__MIN_SESSIONS": "100",
            "NEXTCLICK_GUARD__METRICS_PORT": str(self.ports["nextclick-guard"]),
            "NEXTCLICK_TRAINER__REGISTRY": str(deployment.root / "registry"),
            "NEXTCLICK_TRAINER__WORK_DIR": str(deployment.root / "work"),
            "NEXTCLICK_API__PORT": str(self.ports["nextclick-api"]),
            "NEXTCLICK_API__STORE_URL": store.url,
            "NEXTCLICK_SINK__DATA_DIR": str(deployment.root / "sink"),
            "NEXTCLICK_SINK__WEB_PORT": str(self.ports["nextclick-sink"]),
        }
        self.processes = {"nextclick": self.worker.process}
        for words in (("stream_app", "score"), ("trainer", "guard"), ("stream_app", "api"), ("stream_app", "sink")):
            with (deployment.root / f"{words[1]}.log").open("wb") as log:
                self.processes[f"nextclick-{words[1]}"] = subprocess.Popen(
                    [sys.executable, "-m", *words], cwd=REPOSITORY, env=self._environ, stdout=log, stderr=log
                )

    def pages(self) -> dict[str, str]:
        """The metrics of every process that answers, by the job's name."""
        found = {}
        for job, port in self.ports.items():
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
                    found[job] = answer.read().decode()
            except OSError:
                continue
        return found

    def wait_for(self, metric: str, at_least: float = -1.0, at_most: float = math.inf) -> dict[str, str]:
        """Wait until the sum of a metric lies between these; returns the pages that say so."""
        found: dict[str, str] = {}

        def is_reached() -> bool:
            found.update(self.pages())
            lines = [line for page in found.values() for line in page.splitlines() if line.startswith(metric)]
            return at_least <= sum(float(line.rsplit(" ", 1)[1]) for line in lines) <= at_most

        self.deployment.wait(is_reached, f"{metric} from {at_least:g} to {at_most:g}")
        return found

    def send(self, sessions: Iterable[str], items: Iterable[str]) -> None:
        """One click a session and item."""
        now = time.time_ns() // 1_000_000
        self.deployment.send(Click(session, item, now + n) for session in sessions for n, item in enumerate(items))

    def look_up(self, session: str, seconds: float = PATIENCE) -> int:
        """The status that the API answers with. Raises requests.Timeout."""
        return requests.get(f"{self._api}/v1/sessions/{session}/ranking", timeout=seconds).status_code

    def click(self, session: str, item: str) -> list[str]:
        """Click through the API; returns the items of the ranking."""
        click = encode_click(Click(session, item, time.time_ns() // 1_000_000))
        headers = {"Content-Type": "application/json"}
        answer = requests.post(f"{self._api}/v1/clicks?wait=10s", data=click, headers=headers, timeout=PATIENCE)
        assert answer.status_code == 200, answer.text
        return [ranked["item_id"] for ranked in answer.json()["items"]]

    def promote(self, version: str) -> None:
        """As `trainer promote` does it, to a model of random weights; returns when it serves."""
        self.deployment.bundle(version)
        root = load_settings(TrainerRoot, config=None, environ=self._environ)
        registry = registry_of(root)
        championship_of(root, registry).promote(registry.get(version), "test")
        self.wait_for(f'nextclick_model_info{{version="{version}"', 1)

    @contextmanager
    def frozen(self, *jobs: str) -> Iterator[None]:
        """These processes stand still meanwhile."""
        for job in jobs:
            self.processes[job].send_signal(signal.SIGSTOP)
        yield
        for job in jobs:
            self.processes[job].send_signal(signal.SIGCONT)

    def stop(self) -> None:
        self.deployment.stop_all()
        for process in self.processes.values():
            process.kill()
            process.wait()


@pytest.fixture
def shop(kafka: KafkaUnderTest, topic_prefix: str, tmp_path: Path) -> Iterator[Shop]:
    promtool("--version")  # skips where there is none
    if SERVER is None:
        pytest.skip("needs redis-server or valkey-server, of the distribution")
    deployment = Deployment(kafka.bootstrap_servers, topic_prefix, tmp_path, ITEMS, extra=dict(NEVER_TAKEN_FOR_DEAD))
    deployment.use_splits()
    bundle = deployment.bundle("v1")
    seal(bundle, metrics={"model": {"recall@20": 0.5}})
    deployment.announce(bundle)
    store = RedisServer(tmp_path)
    store.start()
    shop = Shop(deployment, store)
    yield shop
    shop.stop()
    store.stop()


def models_break(shop: Shop, well: dict[str, str], folder: Path) -> None:
    """A variant has none; then the champion is one that was made long ago, and has no answer to long sessions."""
    deployment = shop.deployment
    deployment.split(champion=50, nobody=50)
    shop.wait_for('nextclick_variant_share{variant="nobody"', 50)
    shop.send((f"of-two-{n}" for n in range(40)), ITEMS[:1])
    shop.wait_for("nextclick_variant_fallbacks_total", 1)
    deployment.split()
    deployment.announce(deployment.add(TinyFailing(items=tuple(ITEMS), k=20, chooses_k=True), "failing"))
    shop.wait_for('nextclick_model_info{version="failing"', 1)
    shop.send(["long"], ITEMS[:10])
    shop.wait_for('nextclick_rankings_total{reason="not-finite"', 1)
    after = shop.wait_for("nextclick_lag_clicks{", at_most=0)  # all are answered
    alerts = ["NextclickModelOld", "NextclickNotFinite", "NextclickVariantWithoutModel"]
    assert_firing(alerts, well, after, folder)
    deployment.announce(deployment.root / "registry" / "v1")
    shop.wait_for('nextclick_model_info{version="v1"', 1)
    well.update(shop.wait_for("nextclick_lag_clicks{", at_most=0))


def open_transaction(shop: Shop, topic: str, value: bytes) -> Producer:
    """Many records of which nobody knows yet whether they count."""
    producer = Producer({**shop.deployment.connection.librdkafka(), "transactional.id": topic})
    producer.init_transactions(PATIENCE)
    producer.begin_transaction()
    for _ in range(MANY):
        producer.produce(topic, value, b"open", partition=0)
    assert producer.flush(PATIENCE) == 0
    return producer


def readers_fall_behind(shop: Shop, well: dict[str, str], folder: Path) -> None:
    """A transaction of somebody else's on the rankings topic, with records that are no rankings."""
    producer = open_transaction(shop, shop.deployment.topics.rankings, b"no ranking")
    for reader in READERS.values():
        after = shop.wait_for(f"nextclick_{reader}_lag{{", MANY)
    lags = ["NextclickScoresLag", "NextclickApiBehind", "NextclickSinkLag"]
    assert_firing(lags, well, after, folder)
    producer.commit_transaction(PATIENCE)
    for reader in READERS.values():
        after = shop.wait_for(f"nextclick_{reader}_lag{{", at_most=1)  # the transaction's mark
    assert_firing(["NextclickUnreadableRankings"], well, after, folder)
    well.update(after)


def store_breaks(shop: Shop, well: dict[str, str], folder: Path) -> None:
    """It stands still, so that lookups wait for it; it is away; it comes back without its data."""
    shop.store.process.send_signal(signal.SIGSTOP)
    with pytest.raises(requests.Timeout):
        shop.look_up("s", seconds=0.5)
    shop.store.process.send_signal(signal.SIGCONT)
    after = shop.wait_for('nextclick_api_requests_total{route="ranking"', 2)
    assert_firing(["NextclickApiSlow"], well, after, folder)
    well.update(after)
    shop.store.stop()
    assert {shop.look_up("s") for _ in range(100)} == {503}
    shop.send((f"unstored-{n}" for n in range(MANY)), ITEMS[:1])
    shop.wait_for("nextclick_sink_waits", 1)
    after = shop.wait_for("nextclick_sink_lag{", MANY // 2)
    assert_firing(["NextclickApiErrors", "NextclickSinkLag", "NextclickStoreAway"], well, after, folder)
    shop.store.start()  # empty
    shop.wait_for("nextclick_sink_moved_total", 1)
    after = shop.wait_for("nextclick_sink_lag{", at_most=1)
    after["nextclick-api"] = well["nextclick-api"]
    # The sink has read all again, what is no ranking as well.
    assert_firing(["NextclickStoreMoved", "NextclickUnreadableRankings"], well, after, folder)
    well.update(shop.pages())


def forty_more(shop: Shop, topic: str) -> None:
    """Clicks, which lead to as many records of a topic."""
    there = shop.deployment.records(topic)
    shop.send((f"{there}-{n}" for n in range(40)), ITEMS[:1])
    shop.deployment.wait(lambda: shop.deployment.records(topic) == there + 40, f"forty more of {topic}")


def retention_is_faster(shop: Shop, well: dict[str, str], folder: Path) -> None:
    """Than processes that stand still: the worker, then those that read rankings."""
    topics = shop.deployment.topics
    readers = {f"nextclick-{name}": f"{metric}_expired" for name, metric in READERS.items()}
    for topic, counters in ((topics.clicks, {"nextclick": "expired_clicks"}), (topics.rankings, readers)):
        with shop.frozen(*counters):
            forty_more(shop, topic)  # answers the requests that were under way
            forty_more(shop, topic)
            expire(shop.deployment.connection.librdkafka(), topic)
        for counter in counters.values():
            shop.wait_for(f"nextclick_{counter}_total", 1)
        for lag in ("lag_clicks", *(f"{metric}_lag" for metric in READERS.values())):
            after = shop.wait_for(f"nextclick_{lag}{{", at_most=1)
    assert_firing(["NextclickExpiredClicks", "NextclickExpiredRankings"], well, after, folder)
    well.update(after)


def models_fall(shop: Shop, well: dict[str, str], folder: Path) -> None:
    """The shop has new items only; then a model is worse than the one before, to which the guard returns."""
    shop.send((f"new-{n}" for n in range(200)), ["new-item-1", "new-item-2"])
    for alarm in ("unknown-items", "online-recall"):
        shop.wait_for(f'nextclick_guard_alarm{{alarm="{alarm}"}}', 1)
    after = shop.wait_for("nextclick_lag_clicks{", at_most=0)
    assert_firing(["NextclickOnlineRecall", "NextclickUnknownItems"], well, after, folder)
    shop.promote("better")
    shown = shop.click("tried", ITEMS[0])
    path = [ITEMS[0], shown[0]]
    while len(path) < 5:
        path.append(shop.click("tried", path[-1])[0])
    shop.send((f"better-{n}" for n in range(200)), path)  # each click is on the first item of the ranking
    shop.wait_for("nextclick_online_hits{", 4 * 200)
    shop.wait_for("nextclick_guard_alarm{", at_most=0)
    well.update(shop.wait_for("nextclick_lag_clicks{", at_most=0))
    shop.promote("worse")
    shown += shop.click("tried again", ITEMS[0])
    shop.send((f"worse-{n}" for n in range(400)), [ITEMS[0], next(item for item in ITEMS if item not in shown)])
    shop.wait_for('nextclick_guard_decisions_total{action="roll-back"}', 1)
    after = shop.wait_for("nextclick_online_predictions{", 200 + 4 * 200 + 400)
    assert_firing(["NextclickRecallFalls", "NextclickRolledBack"], well, after, folder)
    well.update(after)


def test_each_alert_fires_when_its_part_breaks(shop: Shop, tmp_path: Path) -> None:
    deployment, topics = shop.deployment, shop.deployment.topics
    shop.send(["s"], ITEMS[:20])
    shop.wait_for("nextclick_scores_rankings_total", 20)
    shop.wait_for("nextclick_sink_rankings_total", 20)
    deployment.wait(lambda: shop.pages().keys() == shop.ports.keys(), "all processes answer")
    deployment.wait(lambda: shop.look_up("s") == 200, "the API has read what it begins with")
    well = shop.pages()
    assert_firing([], well, well, tmp_path)

    def breaks(after: dict[str, str], *alerts: str) -> None:
        assert_firing(alerts, well, after, tmp_path)
        well.update(shop.pages())

    deployment.announce(deployment.bundle("v2"), uri="/nowhere/v2")
    shop.wait_for("nextclick_refused_bundles_total", 1)
    deployment.announce(deployment.root / "registry" / "v1")
    deployment.put(topics.splits, deployment.app_id, b"{}")
    after = shop.wait_for("nextclick_refused_records_total{", 1)
    breaks(after, "NextclickRefusedBundle", "NextclickRefusedRecord")

    models_break(shop, well, tmp_path)

    for _ in range(MANY):
        deployment.send_raw(b"s", b"no click")
    deployment.flush()
    # Nothing but garbage came, which is one alert: rankings that there cannot be are not missed.
    shop.wait_for("nextclick_rejected_total", MANY)
    after = shop.wait_for("nextclick_lag_clicks{", at_most=0)
    breaks(after, "NextclickRejected")

    click = Click("open", ITEMS[0], time.time_ns() // 1_000_000)
    producer = open_transaction(shop, topics.clicks, encode_click(click))
    breaks(shop.wait_for("nextclick_lag_clicks{", MANY), "NextclickLag")
    producer.abort_transaction(PATIENCE)
    well.update(shop.wait_for("nextclick_lag_clicks{", at_most=0))
    readers_fall_behind(shop, well, tmp_path)
    store_breaks(shop, well, tmp_path)
    retention_is_faster(shop, well, tmp_path)

    models_fall(shop, well, tmp_path)

    shop.worker.kill()
    left = shop.pages()
    assert "nextclick" not in left
    job = "nextclick"  # alone: the guard's alarm goes on
    assert_firing(["NextclickDown", "NextclickNoWorker"], {job: well[job]}, left, tmp_path)
