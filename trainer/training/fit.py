"""Training: sessions and settings in, weights out."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import torch

from trainer.data.sessions import SessionSet
from trainer.memory.terms import RECENT
from trainer.memory.trained import TrainedModel
from trainer.models.base import Network
from trainer.models.counting import CountingSettings, RowModel
from trainer.models.settings import LearnedSettings, NetworkSettings, TrainingSettings
from trainer.training import checkpoint as checkpoints
from trainer.training.averaging import averaged
from trainer.training.device import CPU, Hardware
from trainer.training.early_stopping import EarlyStopping, Epoch, best_epoch
from trainer.training.engine import EngineName
from trainer.training.networks import engine_for, joined, seed_of, split, training_of

DEFAULT_HARDWARE: Final = Hardware()


@dataclass(frozen=True, kw_only=True)
class FitResult(TrainedModel):
    """``weights`` are those after the epoch ``best_epoch``: the last one, or with early stopping the best one.

    With ``settings.averaging`` they are the mean over the epochs up to it (see :mod:`trainer.training.averaging`).

    Attributes:
        epochs: of the first member; none of a model that counts.
        kept: the epoch by family whose weights are kept, where it may not be the last one.
        engine: what computed the steps.
        device: where they were computed.
    """

    epochs: tuple[Epoch, ...]
    engine: EngineName = "torch"
    device: torch.device = CPU
    kept: Mapping[str, int] = field(default_factory=dict)

    @property
    def again(self) -> TrainingSettings:
        """What trains such a model anew, for as many epochs as were kept."""
        if not isinstance(self.settings, LearnedSettings):
            return self.settings
        return self.settings.changed(lambda part: {"epochs": self.kept.get(part.family, part.epochs)})

    @property
    def best_epoch(self) -> int:
        return best_epoch(self.epochs) if self.epochs else 0

    @property
    def transitions_per_second(self) -> float:
        """True transitions (no padding, no samples) over the wall time of whole epochs."""
        return sum(e.transitions for e in self.epochs) / max(sum(e.seconds for e in self.epochs), 1e-9)


def fit(
    sessions: SessionSet,
    settings: TrainingSettings,
    *,
    warm_start: Network | None = None,
    early_stopping: EarlyStopping | None = None,
    checkpoint: Path | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
    progress: Callable[[int], None] | None = None,
    hardware: Hardware = DEFAULT_HARDWARE,
) -> FitResult:
    """Train the networks that the settings ask for, without a session memory; several are joined into one.

    A family that counts has no epochs, and starts from nothing.

    ``sessions`` have a vocabulary of their own (see :func:`trainer.data.sessions.train_and_test`). ``warm_start`` are
    weights in it to start from (see :mod:`trainer.training.warm_start`), of all members; they are copied, not changed.
    With ``early_stopping`` every epoch of a family's first member is judged, and the best one's weights are kept; its
    others train for as many epochs. The file ``checkpoint`` is written after each epoch; where it exists already, the
    run goes on from it. Each further member has a file beside it. ``progress`` hears the number of transitions done
    since it last heard (of a resumed run's earlier epochs at once), ``on_epoch`` of every epoch of the first member
    that is trained. Runs with equal inputs and the same engine give equal bits on the CPU, interrupted or not.

    Raises :class:`TrainingDivergedError`, NonFiniteScoresError from the judging of a diverged model, and
    :class:`trainer.training.checkpoint.CheckpointError` for a checkpoint that is damaged or of another run.
    """
    if isinstance(settings, CountingSettings):
        counted = settings.count(sessions)
        model = RowModel(counted, max(counted.recent_size, RECENT if settings.memory else 1))
        return FitResult(weights=model, item_ids=sessions.item_ids, settings=settings, epochs=())
    assert isinstance(settings, LearnedSettings)
    starts = split(warm_start, settings) if warm_start else None
    found: list[FitResult] = []
    kept: dict[str, int] = {}
    for part in settings.parts.values():
        for _ in range(part.members):
            number = len(found)
            first = part.family not in kept
            own = {"seed": seed_of(settings.seed, number), "epochs": kept.get(part.family, part.epochs)}
            beside = checkpoint.with_name(f"{checkpoint.name}.member{number}") if checkpoint and number else checkpoint
            one = _fit_one(
                sessions,
                part.model_copy(update=own),
                warm_start=starts[number] if starts else None,
                checkpoint=beside,
                progress=progress,
                hardware=hardware,
                early_stopping=early_stopping if first else None,
                on_epoch=None if number else on_epoch,
            )
            found.append(one)
            kept[part.family] = one.best_epoch
    whole = joined([one.network for one in found], settings)
    return replace(found[0], weights=whole, settings=settings, kept=kept)


def _fit_one(
    sessions: SessionSet,
    settings: NetworkSettings,
    *,
    warm_start: Network | None,
    checkpoint: Path | None,
    progress: Callable[[int], None] | None,
    hardware: Hardware,
    early_stopping: EarlyStopping | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
) -> FitResult:
    """One network, whatever ``settings.members`` says."""
    progress = progress or (lambda _: None)
    device = hardware.device_of(settings, sessions.transitions)
    runs = engine_for(settings, sessions.transitions, device)
    identity = ""
    if checkpoint:
        identity = checkpoints.identity(
            sessions, settings, warm_start, early_stopping, engine=runs, device=device, threads=hardware.threads
        )
    with torch.inference_mode():
        training = training_of(sessions, settings, warm_start, engine=runs, device=device, threads=hardware.threads)
        epochs: list[Epoch] = []
        best: Network | None = None
        mean: Network | None = None
        saved = checkpoints.load(checkpoint, identity, training.weights.with_tensors) if checkpoint else None
        if saved is not None:
            if len(saved.epochs) > settings.epochs:
                raise checkpoints.CheckpointError(
                    f"{checkpoint}: is of a run of {len(saved.epochs)} epochs, and epochs={settings.epochs} is asked "
                    "for; ask for as many or more, or name another file"
                )
            training.restore(saved)
            epochs, best, mean = list(saved.epochs), saved.best, saved.mean
            progress(sum(epoch.transitions for epoch in epochs))
        while len(epochs) < settings.epochs and not (early_stopping and early_stopping.is_over(epochs)):
            epoch = training.epoch(len(epochs) + 1, progress)
            if settings.averaging:
                mean = averaged(mean, training.weights, epoch.number, settings.averaging)
            judged = epoch
            if early_stopping and epoch.number >= early_stopping.first:
                judged = replace(epoch, score=early_stopping.score(mean or training.weights))
            stops = early_stopping is not None and early_stopping.stops
            epochs.append(judged if stops else epoch)
            if stops and best_epoch(epochs) == epoch.number:
                best = (mean or training.weights).clone()
            if checkpoint:
                checkpoints.save(checkpoint, training.state(identity, tuple(epochs), best, mean))
            if on_epoch:
                on_epoch(judged)
        kept = best or mean or training.weights
    return FitResult(
        weights=kept.clone(),
        item_ids=sessions.item_ids,
        settings=settings,
        epochs=tuple(epochs),
        engine=runs,
        device=device,
    )
