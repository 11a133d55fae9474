"""The process that tries one set of values after another; its parent decides which, and whether to go on."""

import sys
import time
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from typing import Any

import msgspec

from trainer.data.sessions import SessionSet
from trainer.errors import NonFiniteScoresError, TrainingDivergedError, TrainingSettingsError
from trainer.evaluation.protocol import Metrics, NetworkScorer, evaluate
from trainer.models.settings import LearnedSettings, NetworkSettings, TrainingSettings
from trainer.training.device import Hardware
from trainer.training.early_stopping import EarlyStopping, Epoch, Measure
from trainer.training.fit import fit
from trainer.training.train import check_size, learn_memory, tables_of

K = 20  # of the measures that a search goes by


class Task(msgspec.Struct, frozen=True, tag=True):
    """Values to try, of a family's model."""

    values: dict[str, Any]


class Judged(msgspec.Struct, frozen=True, tag=True):
    """An epoch's score. The parent answers whether to go on."""

    epoch: int
    score: float


class Done(msgspec.Struct, frozen=True, tag=True):
    """A trial's end: the figures of its best epoch. Without figures it was given up, and ``why`` says for what."""

    recall: float = 0.0
    mrr: float = 0.0
    epoch: int = 0
    seconds: float = 0.0
    why: str | None = None


Message = Judged | Done


@dataclass(frozen=True)
class Judging:
    """How trials are judged: trained on the one part, measured on the newer one."""

    train: SessionSet
    holdout: SessionSet
    measure: Measure
    patience: int


class _GivenUpError(Exception):
    """The parent does not want more epochs."""


def work(connection: Connection, judging: Judging) -> None:
    """Try what comes through the connection until it closes."""
    hardware = Hardware(device="cpu").set_up()  # a core for each of the trials that run side by side
    try:
        while True:
            task = msgspec.json.decode(connection.recv_bytes(), type=Task)
            began = time.perf_counter()
            done = _try(task, judging, connection, hardware)
            _send(connection, msgspec.structs.replace(done, seconds=time.perf_counter() - began))
    except (EOFError, BrokenPipeError, ConnectionResetError):  # the parent is gone, or wants nothing more
        return


def _send(connection: Connection, message: Message) -> None:
    connection.send_bytes(msgspec.json.encode(message))


def _try(task: Task, judging: Judging, connection: Connection, hardware: Hardware) -> Done:
    try:
        settings = TrainingSettings.parse(task.values)
        check_size(judging.train, settings)
    except TrainingSettingsError as error:  # values that do not go together, or too large a model
        return Done(why=str(error))
    stopping = EarlyStopping(judging.holdout, patience=judging.patience, measure=judging.measure, k=K)
    if isinstance(settings, LearnedSettings) and settings.epochs_planned:
        # A model of so many epochs is judged, not one that stops sooner: it would be none that a fit can make.
        first = first_told(settings.epochs) if isinstance(settings, NetworkSettings) else sys.maxsize
        stopping = replace(stopping, stops=False, first=first)

    def ask(epoch: Epoch) -> None:
        if epoch.number < stopping.first:
            return
        _send(connection, Judged(epoch.number, epoch.score or 0.0))
        if not msgspec.json.decode(connection.recv_bytes(), type=bool):
            raise _GivenUpError

    try:
        result = fit(judging.train, settings, early_stopping=stopping, on_epoch=ask, hardware=hardware)
        memory = learn_memory(judging.train, result.again, hardware=hardware)
        memory = memory.with_tables(tables_of(judging.train, settings))
        metrics = evaluate(NetworkScorer(result.weights, memory), judging.holdout, ks=(K,))
    except _GivenUpError:
        return Done(why="pruned")
    except (TrainingDivergedError, NonFiniteScoresError) as error:
        return Done(why=str(error))
    # Several families have each their own number, which is as it is set.
    return _done(metrics, result.best_epoch if isinstance(settings, NetworkSettings) else 0)


def first_told(epochs: int) -> int:
    """Of a plan over so many epochs, the first that tells: before, the learning rate is high and scores say little."""
    return max(2, epochs // 2)


def _done(metrics: Metrics, epoch: int) -> Done:
    return Done(metrics.recall[K], metrics.mrr[K], epoch)
