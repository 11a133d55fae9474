"""kill -9 of the collector and of the retraining loop, again and again, at random moments."""

import json
import random
import subprocess
import threading
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest

from deploy.demo.shop import Shop, ShopSettings
from schemas.bundle.files import open_bundle
from schemas.messages.click import Click
from tests.conftest import KafkaUnderTest
from tests.integration.trainer_deployment import Deployment
from trainer.data.click_log_lock import keeping_files
from trainer.service.assembly import registry_of
from trainer.service.click_log import ClickLogFolder

pytestmark = pytest.mark.fault

NOW = 1_767_225_600_000
COLLECTOR_KILLS = 8
CYCLE_KILLS = 5
SHOP = Shop(ShopSettings(departments=2, brands=3, items_per_line=6))


@pytest.fixture
def deployment(kafka: KafkaUnderTest, topic_prefix: str, tmp_path: Path) -> Deployment:
    deployment = Deployment(kafka.bootstrap_servers, topic_prefix, tmp_path)
    deployment.create_topics()
    return deployment


def steady_clicks(stop: threading.Event) -> Iterator[Click]:
    """About 2,000 clicks a second, each of a time of its own, until `stop`."""
    number = 0
    while not stop.is_set():
        for _ in range(100):
            yield Click(f"s{number % 97}", f"i{number % 11}", NOW + number)
            number += 1
        stop.wait(0.05)


def collected_to(deployment: Deployment) -> int:
    """How many offsets the log holds; the collector may be joining its files."""
    with keeping_files(deployment.log_dir):
        return sum(ClickLogFolder(deployment.log_dir).scan().next_offsets.values())


def test_the_log_holds_every_offset_once_however_often_the_collector_dies(deployment: Deployment) -> None:
    moments = random.Random(20_251_122)
    stop = threading.Event()
    produced: list[int] = []
    producer = threading.Thread(target=lambda: produced.append(deployment.produce(steady_clicks(stop))))
    producer.start()
    often = {"NEXTCLICK_TRAINER__FLUSH_CLICKS": "50", "NEXTCLICK_TRAINER__FLUSH_INTERVAL": "20ms"}
    positions = [0]
    try:
        for _ in range(COLLECTOR_KILLS):
            process = deployment.start("collect", **often)
            try:
                # Into its work, and a random moment further: among flushes that follow each other at once.
                while collected_to(deployment) <= positions[-1]:
                    assert process.poll() is None, process.communicate()
                    time.sleep(0.005)
                time.sleep(moments.uniform(0.0, 0.4))
            finally:
                end(process)
            positions.append(collected_to(deployment))
    finally:
        stop.set()
        producer.join()
    assert sorted(positions) == positions  # never back
    finished = deployment.trainer("collect", "--once", "--json")
    assert finished.returncode == 0, finished.stderr
    assert json.loads(finished.stdout)["lost"] == 0
    deployment.assert_logged_once(range(NOW, NOW + produced[0]))


@pytest.mark.long
def test_no_kill_of_the_loop_leaves_a_half_published_model(deployment: Deployment) -> None:
    moments = random.Random(11_22)
    live = SHOP.live(NOW)
    deployment.produce(SHOP.history(900, before_ms=NOW))
    registry = registry_of(deployment.root())
    for _ in range(CYCLE_KILLS):
        process = deployment.start("run", "--every", "100ms")
        try:
            assert process.stderr is not None
            for line in process.stderr:
                if json.loads(line)["event"] in ("training", "next cycle"):
                    break
            time.sleep(moments.uniform(0.0, 1.5))
        finally:
            end(process)
        for model in registry.versions():  # whatever is listed is whole
            assert registry.open(model).version == model.version
        announced = deployment.models_topic().current()
        if announced is not None:
            assert open_bundle(announced.uri, manifest_sha256=announced.manifest_sha256).version == announced.version
        deployment.produce(islice(live, 1500))
    deployment.produce(islice(live, 3000))
    finished = deployment.trainer("run", "--once", "--json")
    assert finished.returncode == 0, finished.stderr
    result = json.loads(finished.stdout)
    announced = deployment.models_topic().current()
    assert announced is not None
    assert result["outcome"] != "announced" or announced.version == result["version"]
    assert open_bundle(announced.uri, manifest_sha256=announced.manifest_sha256).version == announced.version
    names = {path.name for path in (deployment.folder / "registry").iterdir() if path.name[0] != "_"}
    assert names == {model.version for model in registry.versions()}
    assert list((deployment.folder / "registry" / "_unfinished").glob("[!.]*")) == []
    assert [path.name for path in (deployment.folder / "work").iterdir()] in ([], ["cache"])


def end(process: "subprocess.Popen[str]") -> None:
    """kill -9, and read what it said so that its pipes close."""
    process.kill()
    process.communicate()
