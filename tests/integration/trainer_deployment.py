"""A deployment of the trainer's own for a test: topics, folders, settings, and clicks on the topic."""

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from confluent_kafka import Producer

from schemas.config.settings import KafkaConnection, TopicSettings, load_settings
from schemas.kafka.topics import topic_table
from schemas.messages.click import Click, encode_click
from tests.admin import ensure_topics
from tests.patience import PATIENCE
from trainer.service.announce import ModelsTopic
from trainer.service.click_log import ClickLogFolder
from trainer.service.settings import TrainerRoot

PARTITIONS = 3
FAST = {"epochs": 2, "n_sample": 64, "hidden_size": 24}
"""A training that takes a second or two and still beats popularity by far."""


@dataclass(frozen=True)
class Deployment:
    """Everything under one prefix and one folder."""

    bootstrap_servers: str
    prefix: str
    folder: Path

    @property
    def topics(self) -> TopicSettings:
        return TopicSettings(
            clicks=f"{self.prefix}-clicks",
            rankings=f"{self.prefix}-rankings",
            rejected=f"{self.prefix}-rejected",
            models=f"{self.prefix}-models",
            scores=f"{self.prefix}-scores",
            splits=f"{self.prefix}-splits",
            rankings_shadow=f"{self.prefix}-rankings-shadow",
            partitions=PARTITIONS,
        )

    @property
    def app_id(self) -> str:
        return f"{self.prefix}-app"

    @property
    def environ(self) -> dict[str, str]:
        """As a process of the deployment has it; the settings of the machine that runs the test have no say."""
        own = {name: value for name, value in os.environ.items() if not name.startswith(("NEXTCLICK_", "KAFKA_"))}
        topics = {f"NEXTCLICK_TOPICS__{name.upper()}": str(value) for name, value in self.topics.model_dump().items()}
        training = {f"NEXTCLICK_TRAINER__TRAINING__{name.upper()}": str(value) for name, value in FAST.items()}
        return own | topics | training | {
            "NEXTCLICK_KAFKA__BOOTSTRAP_SERVERS": self.bootstrap_servers,
            "NEXTCLICK_WORKER__APP_ID": self.app_id,
            "NEXTCLICK_TRAINER__REGISTRY": str(self.registry),
            "NEXTCLICK_TRAINER__LOG_DIR": str(self.log_dir),
            "NEXTCLICK_TRAINER__WORK_DIR": str(self.folder / "work"),
            "NEXTCLICK_TRAINER__MIN_NEW_SESSIONS": "100",
            "NEXTCLICK_TRAINER__GATE_PREDICTIONS": "100",
            "NEXTCLICK_TRAINER__LOG_FORMAT": "json",
        }  # fmt: skip

    @property
    def registry(self) -> Path:
        return self.folder / "registry"

    @property
    def log_dir(self) -> Path:
        return self.folder / "click-log"

    def root(self, **overrides: Any) -> TrainerRoot:
        """The settings in this process; `overrides` are names of the table [trainer], or dotted ones of another."""
        dotted = {name if "." in name else f"trainer.{name}": value for name, value in overrides.items()}
        return load_settings(TrainerRoot, config=None, environ=self.environ, overrides=dotted)

    def models_topic(self) -> ModelsTopic:
        connection = KafkaConnection(bootstrap_servers=self.bootstrap_servers)
        return ModelsTopic(connection, self.topics.models, "champion", group="test", delivery_seconds=30)

    def create_topics(self, *, splits: bool = False) -> None:
        connection = KafkaConnection(bootstrap_servers=self.bootstrap_servers)
        ensure_topics(connection, topic_table(self.topics, self.app_id, session_ttl_ms=3_600_000, splits=splits))

    def produce(self, clicks: Iterable[Click]) -> int:
        return self.produce_raw((click.session_id.encode(), encode_click(click)) for click in clicks)

    def produce_raw(self, records: Iterable[tuple[bytes | None, bytes | None]]) -> int:
        """Put records on the clicks topic, as a shop's producer would; returns how many."""
        producer = Producer(
            {
                "bootstrap.servers": self.bootstrap_servers,
                "enable.idempotence": True,
                "partitioner": "murmur2_random",
                "queue.buffering.max.messages": 1_000_000,
            }
        )
        count = 0
        for key, value in records:
            producer.produce(self.topics.clicks, value, key)
            count += 1
        assert producer.flush(PATIENCE) == 0
        return count

    def trainer(self, *arguments: str, **environ: str) -> "subprocess.CompletedProcess[str]":
        """Run the command `trainer` to its end."""
        return subprocess.run(
            [sys.executable, "-m", "trainer", *arguments],
            env=self.environ | environ, capture_output=True, text=True, timeout=240, check=False,
        )  # fmt: skip

    def start(self, *arguments: str, **environ: str) -> "subprocess.Popen[str]":
        """Start the command `trainer`; whoever starts it ends it."""
        return subprocess.Popen(
            [sys.executable, "-m", "trainer", *arguments],
            env=self.environ | environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            pipesize=1 << 20,  # nobody reads while a broker is away: what is logged then must not stop the process
        )  # fmt: skip

    def assert_logged_once(self, timestamps: range) -> None:
        """The click log has every offset of each partition once, in order, and a click of each of these times."""
        seen: Counter[int] = Counter()
        offsets: dict[int, list[int]] = {}
        for file in ClickLogFolder(self.log_dir).scan().files:
            table = pq.ParquetFile(self.log_dir / file.name).read()
            seen.update(table["timestamp"].to_pylist())
            offsets.setdefault(file.partition, []).extend(table["offset"].to_pylist())
        assert seen == Counter(timestamps)
        assert len(offsets) == PARTITIONS
        for found in offsets.values():
            assert found == list(range(len(found)))
