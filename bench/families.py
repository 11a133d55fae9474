"""How good is every family on real click logs, and what does its training take?

With its defaults, and with the settings that `bench tuning` found for it on the log (bench/results/tuning.json).
Logs are read from the folder that LOGS names (environment); one that is not there is left out. What is finished is kept
in RESULTS (default bench/results/families.json), so a run that was stopped goes on from there. FAMILIES, SEEDS,
SETTINGS (`defaults`, `tuned`) and ONLY (logs), with commas, choose some.

    LOGS=../shared/data python -m bench families
"""

import functools
import itertools
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.kept import FOLDER, Kept, chosen
from bench.report import console
from trainer.data.datasets import Dataset, load
from trainer.data.options import DataOptions
from trainer.data.sessions import SessionSet
from trainer.evaluation.protocol import Floats, Metrics, NetworkScorer, ranks_of
from trainer.evaluation.significance import judge
from trainer.models.registry import FAMILIES, settings_class
from trainer.models.settings import DEFAULT_FAMILY, TrainingSettings
from trainer.training.device import Hardware
from trainer.training.fit import FitResult
from trainer.training.train import train

TUNED = FOLDER / "tuning.json"
K = 20


@dataclass(frozen=True)
class Trials:
    """How many a family has on a log, and of how many epochs where they are to be short."""

    count: int
    epochs: int | None = None


TRIALS = {"rsc15_100k": Trials(10), "serenade_example": Trials(10), "rsc15_64": Trials(4, epochs=3)}


def logs(folder: Path) -> Iterator[tuple[str, DataOptions]]:
    """By name, those that are there."""
    for name, options in {
        "rsc15_100k": DataOptions([folder / "rsc15_100k.tsv.gz"], valid_days=1),
        "serenade_example": DataOptions([folder / "serenade_example.tsv.gz"], valid_days=5),
        "rsc15_64": DataOptions([folder / "rsc15_64_train.tsv.gz"], [folder / "rsc15_64_test.tsv.gz"]),
    }.items():
        if name in chosen("ONLY", name) and all(path.exists() for path in (*options.train, *(options.test or ()))):
            yield name, options


def log_folder() -> Path:
    """What LOGS names."""
    folder = os.environ.get("LOGS")
    if not folder:
        sys.exit("LOGS names no folder: set it to the one with the click logs")
    return Path(folder)


@dataclass(frozen=True)
class Trained:
    """A model, and the rank of every prediction of the test part, alone and with the session memory."""

    result: FitResult
    cpu_seconds: float
    seconds: float
    alone: Floats
    whole: Floats


def main() -> None:
    """Every case that has no result yet; then the table of all."""
    kept, hardware = Kept("families"), Hardware().set_up()
    for log, options in logs(log_folder()):
        data: Dataset | None = None
        reference: tuple[tuple[int, str], Trained] | None = None
        for seed, kind, family in cases(log):
            case = {"log": log, "family": family, "seed": seed, "settings": kind}
            if kept.has(case):
                continue
            data = data or load(options)
            with console.status(f"{family} on {log}, seed {seed}, {kind}"):
                if reference is None or reference[0] != (seed, kind):
                    reference = (seed, kind), trained(data, settings_of(log, DEFAULT_FAMILY, seed, kind), hardware)
                same = family == DEFAULT_FAMILY
                found = reference[1] if same else trained(data, settings_of(log, family, seed, kind), hardware)
            kept.add(case | figures(found, reference[1], data.test))
    kept.show("Families")


def cases(log: str) -> Iterator[tuple[int, str, str]]:
    """Seed, kind of settings and family."""
    for seed, kind in itertools.product(chosen("SEEDS", "1"), chosen("SETTINGS", "defaults,tuned")):
        for family in chosen("FAMILIES", ",".join(FAMILIES)):
            if kind == "defaults" or (log, family) in tuned():
                yield int(seed), kind, family


@functools.cache
def tuned() -> Mapping[tuple[str, str], Mapping[str, Any]]:
    """What was found for a log and family."""
    rows = json.loads(TUNED.read_text())["rows"] if TUNED.exists() else []
    return {(row["log"], row["family"]): row["best"]["settings"] for row in rows}


def settings_of(log: str, family: str, seed: int, kind: str) -> TrainingSettings:
    """Of a case; always with the session memory. The defaults where nothing was found, as the reference may need."""
    values = {"family": family, **(tuned().get((log, family), {}) if kind == "tuned" else {}), "memory": "all"}
    if "epochs" in values and TRIALS[log].epochs:
        del values["epochs"]  # the trials' were few, to be short
    if "seed" in settings_class(family).model_fields:
        values["seed"] = seed
    return TrainingSettings.parse(values)


def trained(data: Dataset, settings: TrainingSettings, hardware: Hardware) -> Trained:
    """A model of the training part, judged on the test part."""
    began, cpu = time.perf_counter(), time.process_time()
    result = train(data.train, settings, hardware=hardware)
    cpu, seconds = time.process_time() - cpu, time.perf_counter() - began
    alone = ranks_of(NetworkScorer(result.weights), data.test)
    return Trained(result, cpu, seconds, alone, ranks_of(NetworkScorer(result.weights, result.memory), data.test))


def figures(found: Trained, reference: Trained, test: SessionSet) -> dict[str, Any]:
    """Quality; how often chance makes such a difference to the reference (p, paired by session); and seconds."""
    alone, whole = (Metrics.of_ranks(ranks, [K]) for ranks in (found.alone, found.whole))
    against = judge({"reference": reference.alone, "model": found.alone}, test, ks=[K])[1].against_first
    epochs = found.result.epochs
    return {
        "recall@20": alone.recall[K],
        "mrr@20": alone.mrr[K],
        "with memory recall@20": whole.recall[K],
        "with memory mrr@20": whole.mrr[K],
        **({f"p {name}": one.p for name, one in against.items()} if found is not reference else {}),
        "predictions": alone.predictions,
        "epochs": len(epochs),
        "epoch_seconds": sum(epoch.seconds for epoch in epochs) / max(len(epochs), 1),
        "training_cpu_seconds": found.cpu_seconds,
        "training_seconds": found.seconds,
    }
