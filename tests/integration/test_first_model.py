"""From an empty Kafka to rankings of a model, with settings that nobody has touched and as few sessions as promised."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from itertools import groupby, islice
from pathlib import Path

import pytest
from confluent_kafka import Producer

from deploy.demo.shop import Shop, ShopSettings
from deploy.kafka.ports import free_port
from schemas.messages.click import Click, encode_click
from tests.conftest import KafkaUnderTest
from tests.patience import PATIENCE

NOW = 1_767_225_600_000


def sessions(count: int) -> Iterator[Click]:
    """The clicks of so many sessions of two clicks and more."""
    history = Shop(ShopSettings(departments=2)).history(3 * count, before_ms=NOW)
    by_session = (
        list(clicks) for _, clicks in groupby(sorted(history, key=lambda c: c.session_id), lambda c: c.session_id)
    )
    for clicks in islice((clicks for clicks in by_session if len(clicks) > 1), count):
        yield from clicks


@pytest.mark.parametrize(
    ("count", "changed"),
    [
        pytest.param(500, {}, id="README.md"),
        pytest.param(100, {"NEXTCLICK_TRAINER__MIN_NEW_SESSIONS": "100"}, id="docs/docker.md", marks=pytest.mark.long),
    ],
)
def test_so_many_sessions_make_a_first_model_that_a_worker_serves(
    kafka: KafkaUnderTest, topic_prefix: str, tmp_path: Path, count: int, changed: dict[str, str]
) -> None:
    own = {name: value for name, value in os.environ.items() if not name.startswith(("NEXTCLICK_", "KAFKA_"))}
    topics = ("clicks", "rankings", "rejected", "models", "scores")
    environment = own | changed | {
        "KAFKA_BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
        "NEXTCLICK_WORKER__APP_ID": topic_prefix,
        "NEXTCLICK_WORKER__WEB_PORT": str(free_port()),
        **{f"NEXTCLICK_TOPICS__{name.upper()}": f"{topic_prefix}.{name}" for name in topics},
    }  # fmt: skip

    def command(*words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", *words], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    command("stream_app", "topics")
    producer = Producer({"bootstrap.servers": kafka.bootstrap_servers, "partitioner": "murmur2_random"})
    for click in sessions(count):
        producer.produce(f"{topic_prefix}.clicks", encode_click(click), click.session_id.encode())
    assert producer.flush(PATIENCE) == 0

    ended = json.loads(command("trainer", "run", "--once", "--json"))
    assert ended["outcome"] == "announced", ended
    assert f"predictions in {count // 10} sessions" in ended["reasons"][-1]

    worker = subprocess.Popen([sys.executable, "-m", "stream_app", "worker"], cwd=tmp_path, env=environment)
    try:
        (ranking,) = command("stream_app", "watch", "--from-beginning", "--limit", "1", "--json").splitlines()
    finally:
        worker.terminate()
        worker.wait(60)
    told = json.loads(ranking)
    assert (told["reason"], told["model_version"]) == ("model", ended["version"])
