"""How good are a well-known library's own implementations of our families, on the same sessions and predictions?

Each is trained for EPOCHS epochs at 100 units, as ours are by default, with each of two learning rates and otherwise
the library's defaults (:mod:`bench.libraries.recbole` says which are not). Every prefix of every test session is a
prediction, all items are ranked, nothing is filtered, and ties count against the model, as in the benchmark `families`,
whose figures these stand beside.

LOGS, RESULTS, FAMILIES and SEEDS are as there; RATES (with commas) are the learning rates, BATCHES `own` or `alike`.

    LOGS=../shared/data make bench BENCH=libraries
"""

from bench.families import K, log_folder, logs
from bench.kept import Kept, chosen
from bench.libraries import recbole
from bench.report import console
from trainer.data.datasets import load

EPOCHS = 10
RATES = "0.001,0.005"  # the library's own, and ours


def main() -> None:
    """Every log, seed, learning rate and family that has no result yet; then the table of all."""
    kept = Kept("libraries")
    runs = [
        recbole.Run(family, batches, rate, seed, EPOCHS)
        for batches in chosen("BATCHES", "own")
        for seed in map(int, chosen("SEEDS", "1"))
        for rate in map(float, chosen("RATES", RATES))
        for family in chosen("FAMILIES", ",".join(recbole.FAMILIES))
    ]
    for log, options in logs(log_folder()):
        cases = [({"log": log, "library": recbole.NAME, **run.parameters}, run) for run in runs]
        missing = [(case, run) for case, run in cases if not kept.has(case)]
        if not missing:
            continue
        data = load(options)
        with recbole.written(data) as folder:
            for case, run in missing:
                with console.status(", ".join(map(str, case.values()))):
                    found = recbole.quality(folder, data, run, K)
                kept.add({**case, **found})
    kept.show("A library's implementations")
