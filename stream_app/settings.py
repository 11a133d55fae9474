"""The worker's settings. Read once, at the command line; frozen from then on."""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from schemas.config.settings import ClickSettings, KafkaConnection, RootSettings, Section, TopicSettings
from schemas.kafka.topics import TopicSpec, topic_table
from schemas.messages.announcement import CHAMPION


class WorkerSettings(Section):
    """[worker]: what a worker does and how much it may use. Times are in seconds."""

    app_id: str = Field(
        default="nextclick",
        pattern=r"^[A-Za-z0-9._-]{1,100}$",
        description="Consumer group and prefix of the table's changelog; the same for all workers of a deployment.",
    )
    data_dir: Path = Field(default=Path("data"), description="Local state; one folder a worker, kept across restarts.")
    model_alias: str = Field(default=CHAMPION, min_length=1, description="The announced alias to serve.")
    bundle_locations: tuple[str, ...] = Field(
        default=(), description="Folders and beginnings of URLs from which bundles are loaded; empty for any."
    )
    bundle_timeout: float = Field(default=300.0, ge=1, description="A bundle not loaded within it is refused.")
    published: int = Field(default=20, ge=1, le=1000, description="Items of a published ranking.")

    recent_items: int = Field(
        default=30,
        ge=1,
        le=255,
        description="Item ids that a session's row remembers; a model that looks at more clicks is refused.",
    )
    session_ttl: float = Field(
        default=6 * 3600.0, gt=0, description="How long a row outlives its last click, locally and in the changelog."
    )

    chunk_clicks: int = Field(default=512, ge=1, le=10_000, description="Most clicks handled together.")
    chunks_in_flight: int = Field(
        default=16, ge=1, le=1000, description="Clicks not yet acknowledged, at most, in full chunks."
    )
    linger: float = Field(default=0.0, ge=0, le=1, description="How long a record may wait to share a request.")
    compression: Literal["none", "gzip", "snappy", "lz4", "zstd"] = Field(
        default="none",
        description="Of rankings, rejected records and the changelog. Whoever reads them must know it.",
    )
    delivery_timeout: float = Field(
        default=300.0, ge=1, description="An outage of Kafka that the worker waits out; after a longer one it exits."
    )
    session_timeout: float = Field(
        default=15.0, ge=6, le=300, description="Kafka gives a silent worker's partitions away after this."
    )
    stall_timeout: float = Field(
        default=120.0, ge=5, description="The worker exits when a part of it makes no progress for so long."
    )
    model_threads: int = Field(default=1, ge=1, le=64, description="ONNX Runtime's threads.")

    store_cache_mb: int = Field(default=256, ge=8, description="RocksDB's block cache, all partitions together.")
    store_write_buffer_mb: int = Field(default=16, ge=1, description="RocksDB's memtables, for each partition.")

    web_host: str = Field(default="127.0.0.1", description="Where health and metrics are served.")
    web_port: int = Field(default=6066, ge=0, le=65_535, description="0 takes any free port.")
    log_format: Literal["human", "json"] = "human"
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.stall_timeout <= self.session_timeout:
            raise ValueError(
                "stall_timeout must be above session_timeout: a rebalance waits that long for a dead worker"
            )
        return self


class StreamSettings(RootSettings):
    """What `stream-app` reads."""

    kafka: KafkaConnection = KafkaConnection()
    topics: TopicSettings = TopicSettings()
    clicks: ClickSettings = ClickSettings()
    worker: WorkerSettings = WorkerSettings()

    @model_validator(mode="after")
    def _rows_outlive_sessions(self) -> Self:
        if self.worker.session_ttl < self.clicks.idle_gap:
            raise ValueError(
                f"worker.session_ttl {self.worker.session_ttl:g} is below clicks.idle_gap {self.clicks.idle_gap:g}: "
                "rows of open sessions would be lost"
            )
        return self

    def topic_specs(self) -> tuple[TopicSpec, ...]:
        """Every topic of this deployment as it should be."""
        return topic_table(
            self.topics,
            self.worker.app_id,
            session_ttl_ms=int(self.worker.session_ttl * 1000),
            idle_gap_ms=self.clicks.idle_gap_ms,
        )
