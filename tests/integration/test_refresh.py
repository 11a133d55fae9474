"""A refresh on a real Kafka: the worker takes it into service, and no session is rebuilt for it."""

import json
from pathlib import Path

import pytest

from deploy.demo.oracle import Published, read_topic
from deploy.demo.shop import Shop, ShopSettings
from schemas.bundle.files import open_bundle
from schemas.messages.announcement import ModelAnnouncement
from schemas.messages.click import Click
from tests.conftest import REPOSITORY, KafkaUnderTest
from tests.doc_pages import commands
from tests.faults.deployment import NEVER_TAKEN_FOR_DEAD
from tests.faults.deployment import PARTITIONS as WORKER_PARTITIONS
from tests.faults.deployment import Deployment as Workers
from tests.integration.trainer_deployment import Deployment as Trainer

NOW = 1_767_225_600_000
SHOP = Shop(ShopSettings(departments=2, brands=3, items_per_line=6))
OPEN = 40
"""Sessions that go on while the model is swapped."""


@pytest.fixture
def trainer(kafka: KafkaUnderTest, topic_prefix: str, tmp_path: Path) -> Trainer:
    return Trainer(kafka.bootstrap_servers, topic_prefix, tmp_path)


def refreshed(trainer: Trainer) -> ModelAnnouncement:
    """By the first command of the page."""
    words = commands(REPOSITORY / "docs" / "fresh-items.md")[0].words
    done = trainer.trainer(*words[1:], "--json", NEXTCLICK_TOPICS__PARTITIONS=str(WORKER_PARTITIONS))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["outcome"] == "announced"
    announced = trainer.models_topic().current()
    assert announced is not None
    return announced


def test_sessions_go_on_over_a_refresh_and_new_items_are_ranked(trainer: Trainer) -> None:
    workers = Workers(trainer.bootstrap_servers, trainer.prefix, trainer.folder / "workers", ())
    (trainer.folder / "workers").mkdir()
    clicks = list(SHOP.history(900, before_ms=NOW))
    # A quarter of the items comes later: the first model does not know it.
    late = set(sorted({click.item_id for click in clicks})[::4])
    trainer.produce(click for click in clicks if click.item_id not in late)
    first = trainer.trainer("run", "--once", NEXTCLICK_TOPICS__PARTITIONS=str(WORKER_PARTITIONS))
    assert first.returncode == 0, first.stderr
    try:
        worker = workers.start_ready(**NEVER_TAKEN_FOR_DEAD)
        known = [click.item_id for click in clicks if click.item_id not in late]
        open_sessions = [[f"open-{n}", known[n * 7], known[n * 11]] for n in range(OPEN)]
        workers.send(Click(session, item, NOW + n) for session, *items in open_sessions for n, item in enumerate(items))
        workers.send(click for click in clicks if click.item_id in late)
        workers.wait_until_acknowledged()
        assert worker.metric("nextclick_rebuilt_rows_total") == 0

        announced = refreshed(trainer)
        workers.wait_until_swapped(worker, 2)
        new_items = sorted(late & set(open_bundle(announced.uri).vocabulary))
        assert new_items
        workers.send(
            Click(session, new_items[n % len(new_items)], NOW + 60_000) for n, (session, *_) in enumerate(open_sessions)
        )
        workers.wait_until_acknowledged()
        assert worker.metric("nextclick_rebuilt_rows_total") == 0
        assert worker.stop() == 0
    finally:
        workers.stop_all()

    # Every ranking is what one click at a time gives, with the model that it names; rows name the one that was trained.
    answers = Published.of(read_topic(workers.connection.librdkafka(), workers.topics.rankings)).last.values()
    assert {ranking.reason for ranking in answers if ranking.model_version == announced.version} == {"model"}
    for version in {ranking.model_version for ranking in answers}:
        workers.models[version] = open_bundle(trainer.folder / "registry" / version)
    verdict = workers.verdict(worker)
    assert verdict.versions[-1] == announced.version
    assert len(verdict.versions) == 2
    verdict.assert_nothing_lost_nothing_wrong()
