"""RecBole (Zhao et al. 2021, arXiv:2011.01731) as its example of session-based recommendation runs it.

Every click but a session's first is a row of its own: the clicks before it, and it as the target. RecBole pads all rows
to one length and scores the whole catalogue for each. It has a virtual environment of its own
(`requirements/libraries.txt`), as its dependencies exclude ours; one thread.

Its own batches are of rows drawn at random. Batches that are "alike" have rows of about the same length, as ours do,
and less padding: the loss of a row is the same and the training takes a fifth of the time, but not every model learns
as much from them (STAMP at .005: Recall@20 of .508 in place of .674 on the first 100k clicks of RSC15).
"""

import dataclasses
import json
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from bench.errors import BenchmarkError
from trainer.data.datasets import Dataset
from trainer.data.sessions import SessionSet
from trainer.evaluation.protocol import Metrics

NAME: Final = "RecBole 1.2.1"
_JOB: Final = Path(__file__).parent / "jobs" / "recbole_model.py"
PYTHON: Final = _JOB.parents[3] / ".venv-libraries" / "bin" / "python"

UNITS: Final = 100
BATCH: Final = 512
"""Rows of a step, about what 128 of our sessions have. With RecBole's 2,048 ten epochs would be 260 steps."""
LONGEST: Final = 20
"""Clicks of a row, the last ones; RecBole's default of 50 costs more than twice as much. Ours look back on 30."""
SHORT: Final = 10
"""The same where RecBole advises to keep rows short."""
_SIZES: Final[Mapping[str, tuple[str, dict[str, int]]]] = {
    "gru4rec": ("GRU4Rec", {"embedding_size": UNITS, "hidden_size": UNITS}),
    "narm": ("NARM", {"embedding_size": UNITS, "hidden_size": UNITS}),
    "stamp": ("STAMP", {"embedding_size": UNITS}),
    "sr-gnn": ("SRGNN", {"embedding_size": UNITS}),
    "caser": ("Caser", {"embedding_size": UNITS, "MAX_ITEM_LIST_LENGTH": SHORT}),
    "sasrec": ("SASRec", {"hidden_size": UNITS}),
    "bert4rec": ("BERT4Rec", {"hidden_size": UNITS}),
}
_NEVER_ALIKE: Final = ("caser", "bert4rec")
"""Those that take no shorter rows, or learn nothing from batches of single clicks."""
FAMILIES: Final = tuple(_SIZES)
"""Ours that RecBole has for sessions of nobody in particular."""


@dataclass(frozen=True)
class Run:
    """A training. ``batches`` are its `own`, or `alike`."""

    family: str
    batches: str
    learning_rate: float
    seed: int
    epochs: int

    def __post_init__(self) -> None:
        if self.batches not in {"own", "alike"} or (self.batches == "alike" and self.family in _NEVER_ALIKE):
            raise BenchmarkError(f"BATCHES: {self.family} has no {self.batches!r} batches; there are own and alike")

    @property
    def parameters(self) -> dict[str, Any]:
        """As a row of results has them."""
        return dataclasses.asdict(self)


@contextmanager
def written(data: Dataset) -> Iterator[Path]:
    """A folder for as long as it is used, with a folder of all rows for each of the two lengths."""
    with tempfile.TemporaryDirectory(prefix="nextclick-bench-") as name:
        for longest in (LONGEST, SHORT):
            folder = Path(name) / f"clicks-{longest}"
            folder.mkdir()
            for part, sessions in (("train", data.train), ("test", data.test)):
                (folder / f"{folder.name}.{part}.inter").write_text("\n".join(_rows(sessions, longest)))
        yield Path(name)


def _rows(sessions: SessionSet, longest: int) -> Iterator[str]:
    yield "session_id:token\titem_id_list:token_seq\titem_id:token"
    items = list(map(str, sessions.items.tolist()))
    for begin, end in zip(sessions.offsets[:-1].tolist(), sessions.offsets[1:].tolist(), strict=True):
        for at in range(begin + 1, end):
            # Sessions are nobody's: for one of the test Caser would add a user's row that was never trained.
            yield f"anybody\t{' '.join(items[max(begin, at - longest) : at])}\t{items[at]}"


def quality(folder: Path, data: Dataset, run: Run, k: int) -> dict[str, Any]:
    """Recall and MRR at k, and the mean loss of each epoch."""
    ranks = folder / "ranks.npy"
    config = {"epochs": run.epochs, "learning_rate": run.learning_rate, "seed": run.seed}
    told = _run(folder, run.family, config, alike=run.batches == "alike", ranks=str(ranks))
    if told["items"] != len(data.train.item_ids):
        raise BenchmarkError(f"{NAME} ranks {told['items']} items, and there are {len(data.train.item_ids)}")
    metrics = Metrics.of_ranks(np.load(ranks).astype(np.float64), (k,))
    if metrics.predictions != data.test.transitions:
        raise BenchmarkError(f"{NAME} ranked {metrics.predictions} targets of {data.test.transitions}")
    return {
        f"recall@{k}": metrics.recall[k],
        f"mrr@{k}": metrics.mrr[k],
        "predictions": metrics.predictions,
        "steps_an_epoch": told["steps"],
        "losses": told["losses"],
    }


def epoch_cpu_seconds(folder: Path, family: str, steps: int) -> float:
    """Processor time of an epoch, from that of so many of its steps."""
    told = _run(folder, family, {"epochs": 1, "seed": 1}, steps=steps)
    return float(told["cpu_seconds_per_step"] * told["steps"])


def _run(
    folder: Path, family: str, config: dict[str, Any], *, alike: bool = False, ranks: str = "", steps: int = 0
) -> dict[str, Any]:
    """What the job tells (`bench/libraries/jobs/recbole_model.py`)."""
    if not PYTHON.exists():
        raise BenchmarkError(f"{PYTHON} is missing; `make bench BENCH=libraries` makes it")
    model, sizes = _SIZES[family]
    config = {
        "data_path": str(folder),
        "benchmark_filename": ["train", "test"],
        "USER_ID_FIELD": "session_id",
        "load_col": None,
        "alias_of_item_id": ["item_id_list"],
        "train_neg_sample_args": None,
        "train_batch_size": BATCH,
        "MAX_ITEM_LIST_LENGTH": LONGEST,
        "use_gpu": False,
        "show_progress": False,
        "state": "WARNING",
        **sizes,
        **config,
    }
    dataset = f"clicks-{config['MAX_ITEM_LIST_LENGTH']}"
    task = {"model": model, "dataset": dataset, "config": config, "alike": alike, "ranks": ranks, "steps": steps}
    done = subprocess.run(
        [str(PYTHON), "-W", "ignore", str(_JOB)],
        input=json.dumps(task),
        cwd=folder,  # it leaves folders of its own there
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise BenchmarkError(f"{NAME}, {model}: ended with {done.returncode}\n{done.stderr[-3000:]}")
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told
