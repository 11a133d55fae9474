"""What does a refresh give, on clicks whose target was first seen after the last training, and what on the rest?

A log with times is cut at TRAINED (share of its sessions, default 0.5): a model is trained on the older part. The rest
goes by in steps of EVERY hours (default 2). The sessions of a step are judged by the model as it was trained, and by
the same refreshed with all sessions that ended before the step. Every click is judged: a target that a model does not
know is a miss. FAMILIES names the families (default gru4rec). The log is rsc15_100k, read from the folder LOGS.

    LOGS=../shared/data python -m bench refresh
"""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from bench.families import log_folder, logs
from bench.kept import chosen
from bench.report import Report, console
from schemas.bundle.files import Model, open_bundle
from trainer.data.datasets import read_sessions
from trainer.data.sessions import SessionSet, encode, vocabulary_of
from trainer.evaluation.model_scorer import ModelScorer
from trainer.evaluation.protocol import Floats, Metrics, ranks_of
from trainer.export.bundle import save_bundle
from trainer.memory.trained import TrainedModel
from trainer.models.settings import TrainingSettings
from trainer.training.device import Hardware
from trainer.training.refresh import refreshed
from trainer.training.train import train

LOG: Final = "rsc15_100k"
K: Final = 20
_HOUR_MS: Final = 3_600_000


def main() -> None:
    """Each family, a model trained once, by all steps together."""
    Hardware().set_up()
    options = dict(logs(log_folder()))[LOG]
    sessions, _ = read_sessions(options.train, options)
    rows = [row for family in chosen("FAMILIES", "gru4rec") for row in measured(sessions, family)]
    Report("refresh", rows).show(
        "Refreshed in time, and not: clicks on items first seen after the training, and others"
    )


def measured(sessions: SessionSet, family: str) -> Iterator[dict[str, Any]]:
    """A row a kind of target."""
    share, hours = float(os.environ.get("TRAINED", "0.5")), float(os.environ.get("EVERY", "2"))
    older = np.arange(len(sessions)) < round(share * len(sessions))
    trained_on = sessions.select(older)
    known = encode(trained_on, vocabulary_of(trained_on))
    with console.status(f"training {family} on {len(known):,} sessions"):
        model = train(known, TrainingSettings.parse({"family": family}))
    is_known = np.isin(sessions.item_ids, known.item_ids)  # bool[items]
    without, with_refresh, targets = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        as_it_was = _opened(Path(folder), "trained", model, known)
        for number, (before, step) in enumerate(steps(sessions, first=int(older.sum()), hours=hours)):
            newer, counted = refreshed(model, before)
            without.append(_ranks(as_it_was, step))
            with_refresh.append(_ranks(_opened(Path(folder), f"step{number}", newer, counted), step))
            targets.append(is_known[_targets(step)])
    old_target = np.concatenate(targets)
    for name, chosen_ones in (("first seen after the training", ~old_target), ("the rest", old_target)):
        row: dict[str, Any] = {"log": LOG, "family": family, "targets": name, "predictions": int(chosen_ones.sum())}
        for kind, found in (("trained", without), ("refreshed", with_refresh)):
            metrics = Metrics.of_ranks(np.concatenate(found)[chosen_ones], [K])
            row |= {f"recall@20 {kind}": metrics.recall[K], f"mrr@20 {kind}": metrics.mrr[K]}
        yield row | {"items": int((~is_known).sum()) if name.startswith("first") else int(is_known.sum())}


def steps(sessions: SessionSet, *, first: int, hours: float) -> Iterator[tuple[SessionSet, SessionSet]]:
    """All sessions that ended before a step, and those that end in it; the first step begins with session `first`."""
    size = round(hours * _HOUR_MS)
    begin = int(sessions.ends[first])
    while begin <= sessions.ends[-1]:
        before, inside = sessions.ends < begin, (sessions.ends >= begin) & (sessions.ends < begin + size)
        if inside.any():
            yield sessions.select(before), sessions.select(inside)
        begin += size


def _opened(folder: Path, name: str, model: TrainedModel, sessions: SessionSet) -> Model:
    popularity = sessions.support()
    return open_bundle(save_bundle(folder, name, model, popularity=popularity, training={}, metrics={}, created_at=0))


def _ranks(model: Model, sessions: SessionSet) -> Floats:
    return ranks_of(ModelScorer(model, sessions), sessions)


def _targets(sessions: SessionSet) -> npt.NDArray[np.int64]:
    """The item of each prediction."""
    first = np.zeros(sessions.clicks, np.bool_)
    first[sessions.offsets[:-1]] = True
    return sessions.items[~first]


if __name__ == "__main__":
    main()
