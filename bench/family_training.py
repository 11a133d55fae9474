"""What does an epoch of training take, by family, and one of a well-known library's implementation of the same?

Yoochoose 1/64 (LOGS names its folder), 100 units, one thread, processor time, the defaults otherwise. Both are reckoned
from a part of an epoch: ours from one of every PART-th session, the library's from STEPS steps of its own loop, right
after ours (:mod:`bench.libraries.recbole` says how it is run). RESULTS and FAMILIES are as for `families`.

    LOGS=../shared/data make bench BENCH=family_training
"""

import sys
import time
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch

from bench.families import log_folder, logs
from bench.kept import Kept, chosen
from bench.libraries import recbole
from bench.report import console
from trainer.data.datasets import load
from trainer.data.sessions import SessionSet
from trainer.models.registry import FAMILIES, settings_class
from trainer.models.settings import NetworkSettings, TrainingSettings
from trainer.training.device import CPU, Hardware
from trainer.training.networks import engine_for, training_of

LOG = "rsc15_64"
PART, WARM_UP, STEPS = 5, 50, 20


def main() -> None:
    """Every family with a network that has no result yet; then the table of all."""
    kept = Kept("family_training")
    options = dict(logs(log_folder())).get(LOG)
    if options is None:
        sys.exit(f"LOGS: there is no {LOG}_train.tsv.gz and {LOG}_test.tsv.gz")
    Hardware().set_up()
    networks = [family for family in FAMILIES if issubclass(settings_class(family), NetworkSettings)]
    data, folder = load(options), None
    with ExitStack() as stack:
        for family in chosen("FAMILIES", ",".join(networks)):
            case = {"log": LOG, "family": family, "units": recbole.UNITS}
            if kept.has(case):
                continue
            with console.status(family):
                row: dict[str, Any] = {**case, **_ours(data.train, family)}
                if family in recbole.FAMILIES:
                    folder = folder or stack.enter_context(recbole.written(data))
                    seconds = recbole.epoch_cpu_seconds(folder, family, STEPS)
                    row |= {"library": recbole.NAME, "library_epoch_cpu_seconds": seconds}
            kept.add(row)
    kept.show("An epoch of training, one thread")


def _ours(sessions: SessionSet, family: str) -> dict[str, Any]:
    """Seconds of processor time of an epoch, from one of every PART-th session, behind a shorter one."""
    settings = TrainingSettings.parse({"family": family, "hidden_size": recbole.UNITS})
    assert isinstance(settings, NetworkSettings)
    engine = engine_for(settings, sessions.transitions, CPU)
    for share in (WARM_UP, PART):
        some = sessions.select(np.arange(len(sessions)) % share == 0)
        with torch.inference_mode():
            training = training_of(some, settings, None, engine=engine, device=CPU, threads=1)
            began = time.process_time()
            training.epoch(1, lambda _: None)
            seconds = time.process_time() - began
    return {"transitions": sessions.transitions, "epoch_cpu_seconds": seconds * sessions.transitions / some.transitions}
