"""Hyper-parameter search on a temporal holdout: an Optuna study in an SQLite file, trials in processes of their own.

The study belongs to this process alone. Workers get values, report each epoch's score, and are told whether to go
on; so a kill costs the trials that were running, and the next start tries their values again.
"""

import fcntl
import hashlib
import json
import multiprocessing
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Final, Protocol

import msgspec
import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState

from trainer.errors import StopRequested, TuningError
from trainer.search.searches import Search
from trainer.search.trial_worker import Done, Judged, Judging, Message, Task, first_told, work
from trainer.training.early_stopping import Measure, value_of

_FINISHED: Final = (TrialState.COMPLETE, TrialState.PRUNED)
_NAME: Final = "tuning"
_IDENTITY: Final = "identity"
_LOOK_SECONDS: Final = 0.2  # between looks at whether to stop
_DIVERGED: Final = 0.0  # the score of values with which training broke down: the search learns to stay away


@dataclass(frozen=True)
class Found:
    """A finished trial. ``epoch`` is the best one, 0 for one that counts."""

    number: int
    values: dict[str, Any]
    recall: float
    mrr: float
    epoch: int


@contextmanager
def opened_study(path: Path, search: Search, judging: Judging) -> Iterator[optuna.Study]:
    """The study in the file, new or gone on with. Raises :class:`TuningError`: in use, or of another search."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f"{path.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise TuningError(f"{path}: another process searches with it; wait for it, or name another file") from None
        try:
            study = optuna.create_study(
                storage=f"sqlite:///{path}",
                study_name=_NAME,
                direction="maximize",
                load_if_exists=True,
                pruner=_pruner(search),
            )
        except Exception as error:  # of SQLAlchemy, many kinds; what the operator can do is the same
            raise TuningError(f"{path}: holds no study ({error}); name another file") from error
        identity = _identity(search, judging)
        if study.user_attrs.setdefault(_IDENTITY, identity) != identity:
            raise TuningError(
                f"{path}: is of another search (other sessions, settings or ranges); name another file, or remove it"
            )
        study.set_user_attr(_IDENTITY, identity)
        # Another seed after each restart: the same one would draw the same values again.
        study.sampler = optuna.samplers.TPESampler(
            seed=search.seed + len(study.trials), constant_liar=True, n_startup_trials=8
        )
        _begin(study, search)
        yield study


def _pruner(search: Search) -> optuna.pruners.BasePruner:
    """When to give up a trial: below the median of the others after as many epochs.

    Fewer than two epochs tell little, and with fewer than five trials there is nothing to compare with. Where epochs
    are planned, scores say little while the learning rate is high, the less the higher it is: half of the epochs are
    waited for, and where their number is searched as well, no two trials are equally far and none is given up.
    """
    if not search.epochs_planned:
        return optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=2)
    if search.epochs is None:
        return optuna.pruners.NopPruner()
    return optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=first_told(search.epochs))


def _begin(study: optuna.Study, search: Search) -> None:
    """What was running when the last process died is tried again; a new study begins where it is told to."""
    if not study.trials:
        start = search.start
        study.enqueue_trial({one.name: start[one.name] for one in search.dimensions if one.holds(start.get(one.name))})
    for trial in study.get_trials(states=(TrialState.RUNNING,)):
        study.enqueue_trial(trial.params)
        study.tell(trial.number, state=TrialState.FAIL)


def _identity(search: Search, judging: Judging) -> str:
    """Digest of what makes trials comparable."""
    digest = hashlib.sha256()
    facts = {
        "dimensions": [str(one) for one in search.dimensions],
        "fixed": {name: str(value) for name, value in search.fixed.items()},
        "measure": judging.measure,
        "patience": judging.patience,
        "item_ids": judging.train.item_ids,
    }
    digest.update(json.dumps(facts, sort_keys=True).encode())
    for sessions in (judging.train, judging.holdout):
        for array in (sessions.items, sessions.offsets):
            digest.update(f"{array.shape} {array.dtype}".encode())
            digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def finished(study: optuna.Study) -> list[FrozenTrial]:
    """The trials that came to an end, pruned ones among them."""
    return study.get_trials(states=_FINISHED)


def best(study: optuna.Study, search: Search) -> Found:
    """The best trial, the earlier one of equals. Raises :class:`TuningError` when none came to its end."""
    trials = [trial for trial in study.get_trials(states=(TrialState.COMPLETE,)) if "recall" in trial.user_attrs]
    if not trials:
        raise TuningError("no trial came to its end: lower learning_rate in --search, or try more")
    leader = max(trials, key=lambda trial: (trial.value or 0.0, -trial.number))
    of = leader.user_attrs
    return Found(leader.number, search.values(of["values"]), of["recall"], of["mrr"], of["epoch"])


def tune(
    study: optuna.Study,
    search: Search,
    judging: Judging,
    *,
    trials: int,
    jobs: int,
    on_trial: Callable[[FrozenTrial], None] = lambda _: None,
    stopping: Callable[[], bool] = lambda: False,
) -> None:
    """Try until the study has so many finished trials, ``jobs`` of them at a time.

    To be called in the main thread. Raises :class:`TuningError` when a worker dies, and StopRequested soon after
    ``stopping`` says so. Whatever ends this, the study can be gone on with.
    """
    running: dict[Connection, optuna.Trial] = {}
    with _workers(max(1, min(jobs, trials - len(finished(study)))), judging) as idle:
        while True:
            while idle and len(finished(study)) + len(running) < trials:
                connection = idle.pop()
                running[connection] = trial = study.ask()
                drawn = {one.name: one.suggest(trial) for one in search.dimensions}
                trial.set_user_attr("values", drawn)
                _send(connection, Task(search.values(drawn)))
            if not running:
                return
            if stopping():
                raise StopRequested
            for ready in wait(list(running), timeout=_LOOK_SECONDS):
                assert isinstance(ready, Connection)
                if _heard(ready, running[ready], study, judging.measure):
                    on_trial(study.trials[running.pop(ready).number])
                    idle.append(ready)


def _heard(connection: Connection, trial: optuna.Trial, study: optuna.Study, measure: Measure) -> bool:
    """Take a worker's message into the study; whether the trial has ended by it."""
    try:
        message: Message = msgspec.json.decode(connection.recv_bytes(), type=Judged | Done)
    except (EOFError, ConnectionResetError):
        raise TuningError(
            "a process that trained has died; out of memory? The same command goes on from here, with fewer --jobs"
        ) from None
    if isinstance(message, Judged):
        trial.report(message.score, message.epoch)
        _send(connection, not trial.should_prune())
        return False
    if message.why is None:
        for name in ("recall", "mrr", "epoch", "seconds"):
            trial.set_user_attr(name, getattr(message, name))
        study.tell(trial, value_of(measure, recall=message.recall, mrr=message.mrr))
    elif message.why == "pruned":
        study.tell(trial, state=TrialState.PRUNED)
    else:
        trial.set_user_attr("diverged", message.why)
        study.tell(trial, _DIVERGED)
    return True


def _send(connection: Connection, message: object) -> None:
    try:
        connection.send_bytes(msgspec.json.encode(message))
    except BrokenPipeError:
        return  # the worker has died: reading from it says so


class Worker(Protocol):
    """Something that runs :func:`trainer.search.trial_worker.work`."""

    def terminate(self) -> None: ...

    def join(self) -> None: ...


def start_worker(connection: Connection, judging: Judging) -> Worker:
    """A process that works for the other end of the connection."""
    # Not forked: torch's threads and locks would be copied in whatever state they are.
    process = multiprocessing.get_context("spawn").Process(target=work, args=(connection, judging), daemon=True)
    with _interrupts_ignored():
        process.start()
    connection.close()  # ours; or the end of the worker would not be the end of the pipe
    return process


@contextmanager
def _workers(count: int, judging: Judging) -> Iterator[list[Connection]]:
    """So many workers, by the connections to them. They end with the block, in the middle of their work if need be."""
    workers: list[Worker] = []
    with ExitStack() as stack:
        connections = []
        stack.callback(_end, workers)
        for _ in range(count):
            ours, theirs = multiprocessing.Pipe()
            workers.append(start_worker(theirs, judging))
            connections.append(ours)
            stack.callback(ours.close)
        yield connections


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """A process that is started meanwhile ignores Ctrl-C from its first moment; its parent decides for both."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _end(workers: list[Worker]) -> None:
    for worker in workers:
        worker.terminate()
    for worker in workers:
        worker.join()
