"""Settings of the trainer's Kafka side: the table [trainer], read once at the command line and frozen from then on."""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, NonNegativeInt, model_validator

from schemas.config.duration import Duration
from schemas.config.settings import ClickSettings, KafkaConnection, RootSettings, Section, TopicSettings
from schemas.messages.announcement import CHAMPION
from trainer.models.settings import TrainingSettings

BaselineName = Literal["pop", "s-pop", "markov-chain", "item-knn"]


class PeriodicTraining(TrainingSettings):
    """[trainer.training]: as `trainer fit --set`, with a default that suits a model that is trained every hour."""

    # A quarter of the samples trains twice as fast and costs a fraction of a point (docs/retraining.md).
    n_sample: int = Field(512, ge=0, le=1_000_000, description="negatives beside those of the batch, a step")


class TrainerSettings(Section):
    """[trainer]: what is collected, how a model is trained, judged and published. Durations are seconds or `1h`."""

    log_dir: Path = Field(default=Path("click-log"), description="The click log: Parquet files, one writer.")
    registry: str = Field(
        default="registry",
        min_length=1,
        description="Where models are published: a folder that the workers see too, or an fsspec URL (s3://...).",
    )
    work_dir: Path = Field(
        default=Path("trainer-work"), description="Local scratch: models being written, copies of remote ones."
    )
    model_alias: str = Field(
        default=CHAMPION, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$", description="The alias that is announced."
    )

    every: Duration = Field(default=3600.0, gt=0, description="Time from the start of one cycle to the next.")
    min_new_sessions: int = Field(
        default=500, ge=0, description="A cycle trains only with so many sessions that the last model has not seen."
    )
    max_failures: int = Field(
        default=3, ge=1, description="`trainer run` gives up after so many failed cycles in a row."
    )

    collect_partitions: tuple[NonNegativeInt, ...] = Field(
        default=(), description="Partitions of the clicks topic that are collected; empty: all of them."
    )
    flush_clicks: int = Field(default=250_000, ge=1, description="Clicks held in memory before they are written.")
    flush_interval: Duration = Field(default=600.0, gt=0, description="Clicks are written at least so often.")
    log_keep: Duration = Field(
        default=0.0, ge=0, description="Log files of clicks older than this, before the newest, are removed; 0: never."
    )

    window: Duration = Field(
        default=30 * 86_400.0,
        ge=0,
        description="Sessions that ended within this before the newest click are trained on; 0: all.",
    )
    window_clicks: int = Field(
        default=20_000_000,
        ge=1_000,
        description="Of more clicks in the window the newest are trained on: a cycle's memory grows with them.",
    )
    session_clicks: int = Field(
        default=200,
        ge=2,
        description="Of a session's clicks the newest count: one robot must not weigh as much as thousands of people.",
    )
    min_support: int = Field(default=1, ge=1, description="Clicks that an item needs to enter the catalogue.")
    holdout: float = Field(default=0.1, gt=0, lt=1, description="Share of the sessions, the newest, held out to judge.")
    holdout_sessions: int = Field(default=20_000, ge=1, description="Most sessions held out.")

    warm_start: bool = Field(default=True, description="Start from the champion's weights for the items that stay.")
    warm_keep: float = Field(
        default=0.5, gt=0, le=1, description="Share of the champion's weights in the start; the rest is random."
    )
    warm_epochs: int = Field(default=3, ge=1, le=10_000, description="Epochs of a warm start, in place of training's.")
    warm_rate: float = Field(
        default=0.5, gt=0, le=10, description="A warm start's learning rate, as a share of training's."
    )
    refit: bool = Field(
        default=True, description="Train on the holdout too before publishing a model that passed the gate."
    )
    baselines: tuple[BaselineName, ...] = Field(
        default=("pop", "s-pop", "markov-chain", "item-knn"), description="Evaluated beside the models."
    )
    gate_k: int = Field(default=20, ge=1, le=100, description="Recall and MRR are compared at this length.")
    gate_margin: float = Field(
        default=0.005,
        ge=-1,
        le=1,
        description="How far a challenger's Recall and MRR may lie below the champion's and its best predecessors'.",
    )
    gate_predecessors: int = Field(
        default=2, ge=0, le=20, description="Earlier champions, the best ones, that a challenger is compared with too."
    )
    gate_beats: tuple[BaselineName, ...] = Field(
        default=("pop",), description="Baselines that a challenger must beat in Recall, with a champion or without."
    )
    gate_predictions: int = Field(
        default=500, ge=1, description="On fewer predictions no champion is replaced; a first model needs none."
    )
    keep_versions: int = Field(default=10, ge=1, description="Newest versions kept beside champion and predecessors.")

    delivery_timeout: Duration = Field(default=60.0, ge=1, description="Kafka must confirm an announcement within it.")
    threads: int = Field(default=1, ge=1, le=256, description="Threads of the arithmetic.")
    device: str = Field(
        default="auto",
        pattern=r"^(auto|cpu|cuda(:[0-9]+)?)$",
        description="Where the network is trained: `cpu`, `cuda`, `cuda:1` and so on; "
        "`auto` takes a GPU where torch has one and it pays.",
    )
    log_format: Literal["human", "json"] = Field(default="human", description="For people, or a JSON object a line.")
    log_level: Literal["debug", "info", "warning", "error"] = Field(default="info", description="The least told.")
    training: PeriodicTraining = PeriodicTraining()

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.log_keep and (not self.window or self.log_keep < self.window):
            raise ValueError("log_keep is shorter than window: clicks of the training window would be removed")
        if self.gate_k >= self.training.list_length:
            raise ValueError(
                f"gate_k is {self.gate_k}, and a model ranks training.list_length = {self.training.list_length} items, "
                "of which there must be more: raise that, or lower gate_k"
            )
        if unknown := sorted(set(self.gate_beats) - set(self.baselines)):
            raise ValueError(f"gate_beats names {', '.join(unknown)}, not among baselines: they would not be evaluated")
        return self


class TrainerRoot(RootSettings):
    """What `trainer` reads."""

    kafka: KafkaConnection = KafkaConnection()
    topics: TopicSettings = TopicSettings()
    clicks: ClickSettings = ClickSettings()
    trainer: TrainerSettings = TrainerSettings()
