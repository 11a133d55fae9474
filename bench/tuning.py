"""What are the best settings of each family on real click logs, by the same number of trials for each?

Judged on the newest part of the training sessions. The test part, on which :mod:`bench.families` measures, is not
looked at. Logs are read from the folder that LOGS names (environment); one that is not there is left out. A search
that is finished is kept in RESULTS (default bench/results/tuning.json), the trials of one that was stopped in the
folder STUDIES; the same command goes on from both. FAMILIES and ONLY (logs), with commas, choose some.

    LOGS=../shared/data python -m bench tuning
"""

import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from bench.families import TRIALS, log_folder, logs
from bench.kept import Kept, chosen
from bench.report import Report, console
from trainer.data.datasets import Dataset, load
from trainer.data.options import DataOptions
from trainer.models.registry import FAMILIES, settings_class
from trainer.search.search_space import model_space
from trainer.search.searches import Search, model_search
from trainer.search.trial_worker import Judging
from trainer.search.tuning import best, finished, opened_study, tune
from trainer.search.tuning_report import tuning_report

MEASURE: Final = "both"


def main() -> None:
    """Every log and family that has no result yet; then what was found."""
    kept = Kept("tuning")
    studies = Path(os.environ.get("STUDIES", Path(tempfile.gettempdir()) / "nextclick-tuning"))
    for log, options in logs(log_folder()):
        data: Dataset | None = None
        for family, search in searches(log, chosen("FAMILIES", ",".join(FAMILIES))):
            if kept.has({"log": log, "family": family}):
                continue
            data = data or training_part(options)
            with console.status(f"{family} on {log}"):
                kept.add({"log": log, "family": family, **found(search, data, studies / f"{log}-{family}.db", log)})
    Report("tuning", [shown(row) for row in kept.rows]).show("The best of the trials, on the newest training sessions")


def searches(log: str, families: list[str]) -> Iterator[tuple[str, Search]]:
    """Of each family that has something to tune."""
    for family in families:
        kind = settings_class(family)
        fixed = {"family": family, "memory": "none"}  # the memory costs a second training, and is the same for all
        if TRIALS[log].epochs and "epochs" in kind.model_fields:
            fixed["epochs"] = str(TRIALS[log].epochs)
        if model_space(kind.parse(fixed), ()):
            yield family, model_search({}, [f"{name}={value}" for name, value in fixed.items()], [], seed=1)


def training_part(options: DataOptions) -> Dataset:
    """Judged on its newest sessions: of as many days as the test part has, or a tenth where there are no times."""
    if options.test:
        return load(replace(options, test=None))
    return load(replace(options, test_days=options.valid_days))


def found(search: Search, data: Dataset, study: Path, log: str) -> dict[str, Any]:
    """The best trial and all others."""
    judging = Judging(data.train, data.test, MEASURE, patience=2)
    with opened_study(study, search, judging) as opened:
        tune(opened, search, judging, trials=TRIALS[log].count, jobs=1)
        report = tuning_report(search, best(opened, search), finished(opened), data, measure=MEASURE)
    return {"predictions": data.test.transitions, "best": report["best"], "trials": report["trials"]}


def shown(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of the table."""
    best, first = row["best"], row["trials"][0]
    values = row["trials"][[one["trial"] for one in row["trials"]].index(best["trial"])]["values"]
    return {
        "log": row["log"],
        "family": row["family"],
        "default recall@20": first["recall@20"],
        "default mrr@20": first["mrr@20"],
        "recall@20": best["recall@20"],
        "mrr@20": best["mrr@20"],
        "values": " ".join(f"{name}={value}" for name, value in values.items()),
    }


if __name__ == "__main__":
    main()
