"""The worker's settings. Read once, at the command line; frozen from then on."""

from pathlib import Path
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from schemas.config.application import Application
from schemas.config.duration import Duration
from schemas.config.process_settings import MemberSettings, WebPort
from schemas.config.settings import (
    BundleSettings,
    ClickSettings,
    KafkaConnection,
    RootSettings,
    SchemaRegistrySettings,
    TopicSettings,
)
from schemas.kafka.topics import TopicSpec, topic_table
from schemas.messages.announcement import CHAMPION
from schemas.plain_url import PlainUrl
from stream_app.api_settings import ApiSettings, SinkSettings
from stream_app.telemetry import TelemetrySettings


class WorkerSettings(MemberSettings, Application):
    """[worker]: what a worker does and how much it may use. Times are in seconds."""

    whole: ClassVar[bool] = True

    data_dir: Path = Field(
        default=Path("data"), description="Folder for local state: one per worker, kept across restarts."
    )
    model_alias: str = Field(default=CHAMPION, min_length=1, description="Alias of the model to serve.")
    bundle_locations: tuple[PlainUrl, ...] = Field(
        default=(), description="Folders and URL prefixes from which bundles may be loaded; empty allows any."
    )
    bundle_timeout: float = Field(
        default=300.0, ge=1, le=86_400, description="A bundle that takes longer to load is refused."
    )
    bundle_memory_mb: int = Field(
        default=0,
        ge=0,
        description="A bundle is opened in a process of its own first, which may take so much memory, in MB, and "
        "bundle_timeout of processor time; 0: it is not.",
    )
    published: int = Field(default=20, ge=1, le=1000, description="Number of items in a published ranking.")

    items: bool = Field(
        default=False,
        description="Whether rankings hold only items that the topic topics.items says are available.",
    )
    rules: bool = Field(default=False, description="Whether rankings keep to the rules on the topic topics.rules.")
    rule_attributes: tuple[str, ...] = Field(
        default=(), description="Attributes of items that rules may match; a rule that matches another is refused."
    )
    hide: Literal["none", "clicked", "purchased"] = Field(
        default="none",
        description="clicked leaves out of a session's rankings the items among its last worker.recent_items clicks, "
        "purchased the last worker.recent_items items that it purchased.",
    )
    purchase_type: str = Field(
        default="purchase", min_length=1, max_length=256, description="Type of the clicks that are purchases."
    )

    max_per_category: int = Field(
        default=0, ge=0, description="A ranking holds at most so many items of a category; 0: any number."
    )
    mmr_lambda: float = Field(
        default=1.0,
        ge=0,
        le=1,
        description="Below 1, items are also chosen by how unlike the others of the list they are (MMR): the "
        "lower, the more so.",
    )
    mmr_candidates: int = Field(
        default=100, ge=1, le=1000, description="MMR chooses among so many of the highest scores."
    )
    splits: bool = Field(
        default=False,
        description="Whether the topic topics.splits says which models rank for which shares of the sessions.",
    )

    recent_items: int = Field(
        default=30,
        ge=1,
        le=255,
        description="Number of recent items kept in a session's row; models that need more are refused.",
    )
    session_ttl: float = Field(
        default=6 * 3600.0,
        gt=0,
        description="How long a session's row is kept at least after its last click, locally and in the changelog.",
    )

    chunk_clicks: int = Field(default=512, ge=1, le=10_000, description="Largest batch of clicks.")
    chunks_in_flight: int = Field(
        default=16, ge=1, le=1000, description="Limit of unacknowledged clicks, in full batches."
    )
    linger: float = Field(
        default=0.0, ge=0, le=1, description="How long Kafka's client waits to fill a request (linger)."
    )
    compression: Literal["none", "gzip", "snappy", "lz4", "zstd"] = Field(
        default="none",
        description="Compression of rankings, rejected records and the changelog; all consumers must support it.",
    )
    headers: bool = Field(
        default=False,
        description="Whether rankings have Kafka headers: content type, model, and the trace context of the click.",
    )
    delivery_timeout: float = Field(
        default=300.0, ge=1, description="How long the worker waits for an unavailable Kafka before it exits."
    )
    stall_timeout: float = Field(
        default=120.0, ge=5, description="The worker exits if a part of it makes no progress for this long."
    )
    model_threads: int = Field(default=1, ge=1, le=64, description="Threads of ONNX Runtime.")

    store_cache_mb: int = Field(
        default=256, ge=8, description="RocksDB's block cache for all partitions together, in MB."
    )
    store_write_buffer_mb: int = Field(default=16, ge=1, description="RocksDB's write buffer per partition, in MB.")

    web_port: WebPort = 6066

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.stall_timeout <= self.session_timeout:
            raise ValueError(
                "stall_timeout must be above session_timeout: a rebalance waits that long for a dead worker"
            )
        if self.rule_attributes and not (self.items and self.rules):
            raise ValueError("rule_attributes needs items = true and rules = true: rules match what the items have")
        if self.max_per_category and not self.items:
            raise ValueError("max_per_category needs items = true: the topic of items says which categories they have")
        if self.mmr_lambda < 1 and self.mmr_candidates < self.published:
            raise ValueError(
                f"mmr_candidates {self.mmr_candidates} is below published {self.published}: there would be too few to "
                "choose from"
            )
        return self

    @property
    def hide_type(self) -> str | None:
        """The type of clicks whose items a session is not shown again."""
        return self.purchase_type if self.hide == "purchased" else None

    @property
    def diversifies(self) -> bool:
        """Whether a list need not be that of the highest scores."""
        return self.max_per_category > 0 or self.mmr_lambda < 1

    @property
    def adjusts(self) -> bool:
        """Whether rankings may be others than the highest scores of everything."""
        return self.items or self.rules or self.hide != "none" or self.diversifies


class ScoreSettings(MemberSettings):
    """[scores]: how `stream-app score` judges rankings by the clicks after them."""

    data_dir: Path = Field(
        default=Path("scores-data"), description="Folder for local state: one per scorer, kept across restarts."
    )
    k: int = Field(default=20, ge=1, le=1000, description="Recall@k and MRR@k look at this many items of a ranking.")
    window: Duration = Field(default=300.0, ge=1, description="Length of the windows of click time that are counted.")
    keep: Duration = Field(
        default=86_400.0,
        ge=1,
        description="Late clicks count in their own window for so long; later ones are not counted.",
    )
    interval: Duration = Field(default=1.0, ge=0.05, le=60, description="How often scores are published.")
    delivery_timeout: Duration = Field(
        default=300.0, ge=10, description="How long the scorer waits for an unavailable Kafka before it exits."
    )
    store_cache_mb: int = Field(
        default=64, ge=8, description="RocksDB's block cache for all partitions together, in MB."
    )
    web_port: WebPort = 6067

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.keep < self.window:
            raise ValueError("keep is shorter than window: the window under way would be forgotten")
        return self


class StreamSettings(RootSettings):
    """What `stream-app` reads."""

    kafka: KafkaConnection = KafkaConnection()
    topics: TopicSettings = TopicSettings()
    clicks: ClickSettings = ClickSettings()
    bundles: BundleSettings = BundleSettings()
    schema_registry: SchemaRegistrySettings = SchemaRegistrySettings()
    worker: WorkerSettings = WorkerSettings()
    scores: ScoreSettings = ScoreSettings()
    api: ApiSettings = ApiSettings()
    sink: SinkSettings = SinkSettings()
    telemetry: TelemetrySettings = TelemetrySettings()

    @model_validator(mode="after")
    def _rows_outlive_sessions(self) -> Self:
        if self.worker.session_ttl < self.clicks.idle_gap:
            raise ValueError(
                f"worker.session_ttl {self.worker.session_ttl:g} is below clicks.idle_gap {self.clicks.idle_gap:g}: "
                "rows of open sessions would be lost"
            )
        return self

    @property
    def app_id(self) -> str:
        """What the names of consumer groups, transactional ids and the changelog begin with."""
        return f"{self.topics.prefix}{self.worker.app_id}"

    def topic_specs(self) -> tuple[TopicSpec, ...]:
        """Every topic of this deployment as it should be."""
        return topic_table(
            self.topics,
            self.app_id,
            session_ttl_ms=int(self.worker.session_ttl * 1000),
            idle_gap_ms=self.clicks.idle_gap_ms,
            items=self.worker.items,
            rules=self.worker.rules,
            splits=self.worker.splits,
        )
