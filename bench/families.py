"""How good is every family on real click logs, with its defaults, and what does its training take?

Logs are read from the folder that LOGS names (environment); one that is not there is left out. What is finished is kept
in RESULTS (default bench/results/families.json), so a run that was stopped goes on from there; a case is measured
again once its line is deleted. FAMILIES and SEEDS (with commas) choose some.

    LOGS=../shared/data python -m bench families
"""

import dataclasses
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.kept import Kept, chosen
from bench.report import console
from trainer.data.datasets import Dataset, load
from trainer.data.options import DataOptions
from trainer.evaluation.protocol import NetworkScorer, evaluate
from trainer.models.registry import FAMILIES, settings_class
from trainer.models.settings import TrainingSettings
from trainer.training.device import Hardware
from trainer.training.train import train

K = 20


def logs(folder: Path) -> Iterator[tuple[str, DataOptions]]:
    """By name, those that are there."""
    for name, options in {
        "rsc15_100k": DataOptions([folder / "rsc15_100k.tsv.gz"], valid_days=1),
        "serenade_example": DataOptions([folder / "serenade_example.tsv.gz"], valid_days=5),
        "rsc15_64": DataOptions([folder / "rsc15_64_train.tsv.gz"], [folder / "rsc15_64_test.tsv.gz"]),
    }.items():
        if all(path.exists() for path in (*options.train, *(options.test or ()))):
            yield name, options


def log_folder() -> Path:
    """What LOGS names."""
    folder = os.environ.get("LOGS")
    if not folder:
        sys.exit("LOGS names no folder: set it to the one with the click logs")
    return Path(folder)


def main() -> None:
    """Every log, family and seed that has no result yet; then the table of all."""
    kept, hardware = Kept("families"), Hardware().set_up()
    for log, options in logs(log_folder()):
        data: Dataset | None = None
        for seed in map(int, chosen("SEEDS", "1")):
            for family in chosen("FAMILIES", ",".join(FAMILIES)):
                case = {"log": log, "family": family, "seed": seed}
                if kept.has(case):
                    continue
                data = data or load(options)
                with console.status(f"{family} on {log}, seed {seed}"):
                    row = {**case, **measured(data, family, seed, hardware)}
                kept.add(row)
    kept.show("Families with their defaults")


def measured(data: Dataset, family: str, seed: int, hardware: Hardware) -> dict[str, Any]:
    """Quality alone and with the session memory, and seconds of processor time."""
    fields = settings_class(family).model_fields
    settings = TrainingSettings.parse(
        {"family": family, "memory": "all"} | ({"seed": seed} if "seed" in fields else {})
    )
    began, cpu = time.perf_counter(), time.process_time()
    result = train(data.train, settings, hardware=hardware)
    cpu, seconds = time.process_time() - cpu, time.perf_counter() - began
    alone = evaluate(NetworkScorer(result.weights), data.test, ks=(K,))
    whole = evaluate(NetworkScorer(result.weights, result.memory), data.test, ks=(K,))
    epochs = [dataclasses.asdict(epoch) for epoch in result.epochs]
    return {
        "recall@20": alone.recall[K],
        "mrr@20": alone.mrr[K],
        "with memory recall@20": whole.recall[K],
        "with memory mrr@20": whole.mrr[K],
        "predictions": alone.predictions,
        "epochs": len(epochs),
        "epoch_seconds": sum(epoch["seconds"] for epoch in epochs) / max(len(epochs), 1),
        "training_cpu_seconds": cpu,
        "training_seconds": seconds,
    }
