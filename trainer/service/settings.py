"""Settings of the trainer's Kafka side: the table [trainer], read once at the command line and frozen from then on."""

from pathlib import Path
from typing import Any, Self, get_args

from pydantic import Field, NonNegativeInt, create_model, model_validator

from schemas.config.application import Application
from schemas.config.duration import Duration
from schemas.config.process_settings import LogSettings
from schemas.config.settings import (
    BundleSettings,
    ClickSettings,
    KafkaConnection,
    RootSettings,
    SchemaRegistrySettings,
    Section,
    TopicSettings,
)
from schemas.config.settings_keys import section_of
from schemas.messages.announcement import CHAMPION
from schemas.plain_url import PlainUrl
from trainer.models.registry import SIMPLEST, QuickFamily, settings_class
from trainer.models.settings import DEFAULT_FAMILY, DefaultSettings, TrainingSettings


class PeriodicTraining(DefaultSettings):
    """[trainer.training]: as `trainer fit --set`, with a default that suits a model that is trained every hour."""

    # A quarter of the samples trains twice as fast and costs a fraction of a point (docs/retraining.md).
    n_sample: int = Field(512, ge=0, le=1_000_000, description="sampled negatives per step, besides those of the batch")


class TrainerSettings(LogSettings):
    """[trainer]: what is collected, how a model is trained, judged and published. Durations are seconds or `1h`."""

    log_dir: Path = Field(default=Path("click-log"), description="Folder of the click log (Parquet files).")
    registry: PlainUrl = Field(
        default="registry",
        min_length=1,
        description="Where models are published: a folder shared with the workers, or an fsspec URL (s3://...).",
    )
    signing_key: Path | None = Field(
        default=None, description="File with the private Ed25519 key (PEM) that signs what is published."
    )
    work_dir: Path = Field(
        default=Path("trainer-work"),
        description="Local scratch folder for models being written and copies of remote ones.",
    )
    model_alias: str = Field(
        default=CHAMPION,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$",
        description="Alias under which models are announced.",
    )

    every: Duration = Field(default=3600.0, gt=0, description="Time from the start of one cycle to the next.")
    refresh_every: Duration = Field(
        default=0.0,
        ge=0,
        description="How often `trainer run` refreshes the champion between two cycles, so less than `every`; "
        "0: never.",
    )
    min_new_sessions: int = Field(
        default=500, ge=0, description="A cycle needs this many sessions that the last model has not seen."
    )
    max_failures: int = Field(
        default=3, ge=1, description="`trainer run` exits after this many failed cycles in a row."
    )

    collect_partitions: tuple[NonNegativeInt, ...] = Field(
        default=(), description="Partitions of the clicks topic to collect; empty: all."
    )
    collect_group: str = Field(
        default="",
        pattern=r"^[A-Za-z0-9._-]{0,200}$",
        description="Consumer group in which several `trainer collect` share the partitions and write one log. "
        "`trainer run` then only reads it. Empty: one process collects.",
    )
    flush_clicks: int = Field(
        default=250_000, ge=1, description="Clicks kept in memory before they are written to the log."
    )
    flush_interval: Duration = Field(
        default=600.0, gt=0, description="Clicks are written to the log at least this often."
    )
    log_keep: Duration = Field(
        default=0.0, ge=0, description="Log files whose clicks are older than this are removed; 0: never."
    )

    window: Duration = Field(
        default=30 * 86_400.0,
        ge=0,
        description="Train on sessions that ended within this time before the newest click; 0: all.",
    )
    window_clicks: int = Field(
        default=20_000_000,
        ge=1_000,
        description="Most clicks to train on, newest first; a cycle's memory grows with them.",
    )
    session_clicks: int = Field(
        default=200,
        ge=2,
        description="Most clicks used of one session, newest first, so that a robot does not outweigh thousands of "
        "people.",
    )
    min_support: int = Field(default=1, ge=1, description="Items with fewer clicks are left out of the catalogue.")
    holdout: float = Field(
        default=0.1, gt=0, lt=1, description="Share of the sessions, the newest, that is held out for evaluation."
    )
    holdout_sessions: int = Field(default=20_000, ge=1, description="Most sessions that are held out.")

    warm_start: bool = Field(default=True, description="Start training from the champion's weights.")
    warm_keep: float = Field(
        default=0.5,
        gt=0,
        le=1,
        description="How much of the champion's weights a warm start keeps; the rest is random.",
    )
    warm_epochs: int = Field(default=3, ge=1, le=10_000, description="Epochs of a warm start.")
    warm_rate: float = Field(
        default=0.5, gt=0, le=10, description="Learning rate of a warm start, relative to the usual one."
    )
    refit: bool = Field(
        default=True, description="Train again, including the holdout, before publishing a model that passed the gate."
    )
    baselines: tuple[QuickFamily, ...] = Field(
        default=get_args(QuickFamily), description="Baselines that are evaluated in each cycle."
    )
    gate_k: int = Field(default=20, ge=1, le=100, description="The gate compares Recall and MRR at this k.")
    gate_margin: float = Field(
        default=0.005,
        ge=-1,
        le=1,
        description="How far a challenger's Recall and MRR may be below the champion's and its best predecessors'.",
    )
    gate_predecessors: int = Field(
        default=2, ge=0, le=20, description="Number of best earlier champions that a challenger is also compared with."
    )
    gate_beats: tuple[QuickFamily, ...] = Field(
        default=(SIMPLEST,), description="Baselines that a challenger must beat in Recall."
    )
    gate_predictions: int = Field(
        default=500,
        ge=1,
        description="With fewer predictions no champion is replaced; does not apply to a first model.",
    )
    keep_versions: int = Field(
        default=10, ge=1, description="Number of newest versions to keep, besides champions and predecessors."
    )

    delivery_timeout: Duration = Field(
        default=60.0, ge=1, description="How long to wait for Kafka to confirm an announcement."
    )
    threads: int = Field(default=1, ge=1, le=256, description="Threads for training and evaluation.")
    device: str = Field(
        default="auto",
        pattern=r"^(auto|cpu|cuda(:[0-9]+)?)$",
        description="Where the network is trained: `cpu`, `cuda`, `cuda:1` and so on; "
        "`auto` takes a GPU where torch has one and it pays.",
    )
    training: PeriodicTraining = PeriodicTraining()

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.collect_group and self.collect_partitions:
            raise ValueError(
                "collect_group and collect_partitions are both set: either a consumer group shares the partitions, or "
                "you name them; remove one of the two"
            )
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


class GuardSettings(Section):
    """[guard]: when `trainer guard` rolls back, promotes and raises an alarm. Durations are seconds or `1h`."""

    every: Duration = Field(default=5.0, gt=0, description="Time from one look at the scores to the next.")
    alpha: float = Field(
        default=0.01,
        gt=0,
        lt=1,
        description="Chance at most that a champion as good as its predecessor is ever rolled back.",
    )
    tolerance: float = Field(
        default=0.02, ge=0, lt=1, description="Relative loss of Recall or MRR that is no reason to roll back."
    )
    effect: float = Field(
        default=0.05, gt=0, lt=1, description="Relative loss at which the test needs the fewest sessions."
    )
    min_sessions: int = Field(
        default=500, ge=100, description="Scored sessions of each of two models before they are compared."
    )
    reference: Duration = Field(
        default=7200.0, gt=0, description="A champion is compared with its predecessor's scores of so long before."
    )
    watch: Duration = Field(
        default=86_400.0, gt=0, description="For how long after its announcement a champion is compared."
    )
    max_unknown: float = Field(
        default=0.3, gt=0, le=1, description="Share of clicks on unknown items above which an alarm is raised."
    )
    min_online: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="An alarm is raised when online Recall is below this part of the offline one.",
    )
    metrics_host: str = Field(default="127.0.0.1", description="Address of the metrics page.")
    metrics_port: int | None = Field(
        default=None, ge=1, le=65_535, description="Port of the metrics page; without one there is none."
    )


class TrainerRoot(RootSettings):
    """What `trainer` reads."""

    kafka: KafkaConnection = KafkaConnection()
    topics: TopicSettings = TopicSettings()
    clicks: ClickSettings = ClickSettings()
    schema_registry: SchemaRegistrySettings = SchemaRegistrySettings()
    bundles: BundleSettings = BundleSettings()
    worker: Application = Application()
    trainer: TrainerSettings = TrainerSettings()
    guard: GuardSettings = GuardSettings()

    @property
    def group(self) -> str:
        """What consumers name as their group, which they do not join."""
        return f"{self.topics.prefix}{self.worker.app_id}-trainer"

    @model_validator(mode="after")
    def _targets_move_sessions_on(self) -> Self:
        moving = self.clicks.moving
        weighed = [name for name, weight in self.trainer.training.weight_of_type.items() if weight]
        if moving is not None and (others := [name for name in weighed if name not in moving]):
            raise ValueError(
                f"trainer.training.target_weights names {', '.join(others)}, and clicks.advance_on does not: a click "
                "that does not move its session on is no target; name it in both, or in none"
            )
        return self

    @model_validator(mode="after")
    def _collects_in_a_group_of_its_own(self) -> Self:
        if self.trainer.collect_group == self.worker.app_id:
            raise ValueError(
                f"trainer.collect_group is {self.worker.app_id!r}, the group of the workers (worker.app_id), whom that "
                "keeps out of it: give collectors another, such as 'nextclick-collect'"
            )
        return self


def root_of(family: str) -> type[TrainerRoot]:
    """What `trainer` reads where [trainer.training] names this family. Raises :class:`TrainingSettingsError`."""
    kind = settings_class(family)
    if kind.model_fields["family"].default == DEFAULT_FAMILY:
        return TrainerRoot
    periodic = _periodic(kind)
    trainer = create_model(
        "TrainerSettings", __base__=TrainerSettings, training=(periodic, periodic.model_validate({}))
    )
    return create_model("TrainerRoot", __base__=TrainerRoot, trainer=(trainer, trainer()))


def _periodic(kind: type[TrainingSettings]) -> type[TrainingSettings]:
    """The same with what :class:`PeriodicTraining` changes, where the family has it, or each of several families."""
    changed: dict[str, Any] = {}
    for name, info in kind.model_fields.items():
        table = section_of(info.annotation)
        if name == "n_sample":
            changed[name] = (int, PeriodicTraining.model_fields[name])
        elif table is not None and issubclass(table, TrainingSettings):
            of_family = _periodic(table)
            changed[name] = (of_family, Field(default_factory=of_family))
    return create_model(kind.__name__, __base__=kind, **changed) if changed else kind
