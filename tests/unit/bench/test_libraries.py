"""How a library is measured beside us: the same sessions, the same predictions, and no row twice."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from bench import families, libraries
from bench.errors import BenchmarkError
from bench.libraries import recbole
from tests.conftest import REPOSITORY
from trainer.data.datasets import Dataset
from trainer.data.options import DataOptions
from trainer.data.sessions import SessionSet
from trainer.evaluation.protocol import ranks_among


def sessions(*lists: list[int]) -> SessionSet:
    offsets = np.cumsum([0, *map(len, lists)])
    ids = tuple(f"i{n}" for n in range(40))
    return SessionSet(np.concatenate([*map(np.array, lists)]), offsets, ids, np.arange(len(lists)), False)


def test_the_library_is_given_every_prefix_cut_to_its_last_clicks() -> None:
    long = list(range(30))
    with recbole.written(Dataset(sessions([7, 8, 7], long), sessions([3, 5]), ())) as folder:
        train = (folder / "clicks-20" / "clicks-20.train.inter").read_text().splitlines()
        test = (folder / "clicks-20" / "clicks-20.test.inter").read_text().splitlines()
        short = (folder / "clicks-10" / "clicks-10.train.inter").read_text().splitlines()
    head = "session_id:token\titem_id_list:token_seq\titem_id:token"
    assert train[:3] == [head, "anybody\t7\t8", "anybody\t7 8\t7"]
    assert len(train) == 1 + 2 + 29
    for rows, longest in ((train, recbole.LONGEST), (short, recbole.SHORT)):
        last = list(map(str, long[-longest - 1 :]))
        assert rows[-1] == f"anybody\t{' '.join(last[:-1])}\t{last[-1]}"
    assert test == [head, "anybody\t3\t5"]


def test_the_library_is_ranked_as_we_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """All items but its padding, ties against the model."""
    scores = torch.tensor([[9.0, 1.0, 2.0, 2.0, 0.0], [9.0, 3.0, 1.0, 2.0, 2.5], [9.0, 0.0, 0.0, 0.0, 0.0]])
    targets = torch.tensor([2, 0, 3])  # as we number items; the library's begin at 1, behind padding

    class Rows(dict[str, Any]):
        def __len__(self) -> int:
            return len(self["item_id"])

        def __getitem__(self, key: Any) -> Any:
            return Rows(item_id=dict.__getitem__(self, "item_id")[key]) if isinstance(key, slice) else super().get(key)

    class Test:
        inter_feat = Rows(item_id=targets + 1)

        def __len__(self) -> int:
            return len(targets)

    class Model:
        def eval(self) -> None: ...

        def full_sort_predict(self, some: Rows) -> torch.Tensor:
            return scores.flatten()

    found = _job(monkeypatch).ranks(Model(), Test(), "item_id")
    assert found.tolist() == ranks_among(scores[:, 1:].contiguous(), targets.numpy(), "conservative", "x").tolist()
    assert found.tolist() == [2, 1, 4]
    scores[1, 1] = torch.nan
    with pytest.raises(SystemExit, match="not finite"):
        _job(monkeypatch).ranks(Model(), Test(), "item_id")


def _job(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The job with nothing of the library's, which is installed elsewhere."""
    for name, parts in {
        "recbole": (),
        "recbole.config": ("Config",),
        "recbole.data": ("create_dataset",),
        "recbole.data.dataloader": ("TrainDataLoader",),
        "recbole.utils": ("get_model", "get_trainer", "init_seed"),
    }.items():
        module = ModuleType(name)
        for part in parts:
            setattr(module, part, None)
        monkeypatch.setitem(sys.modules, name, module)
    spec = importlib.util.spec_from_file_location("job", REPOSITORY / "bench/libraries/jobs/recbole_model.py")
    assert spec
    assert spec.loader
    job = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(job)
    return job


def test_a_run_that_was_stopped_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rsc15_100k.tsv.gz").touch()
    results = tmp_path / "libraries.json"
    monkeypatch.setenv("LOGS", str(tmp_path))
    monkeypatch.setenv("RESULTS", str(results))
    monkeypatch.setenv("FAMILIES", "stamp,narm")
    monkeypatch.setenv("RATES", "0.001,0.005")
    data = Dataset(sessions([1, 2]), sessions([1, 2]), ())
    done: list[recbole.Run] = []

    def quality(folder: Path, data: Dataset, run: recbole.Run, k: int) -> dict[str, Any]:
        if len(done) == 3 and run.family == "narm":
            raise KeyboardInterrupt
        done.append(run)
        return {"recall@20": 0.5}

    def load(options: DataOptions) -> Dataset:
        return data

    monkeypatch.setattr(libraries, "load", load)
    monkeypatch.setattr(recbole, "quality", quality)
    with pytest.raises(KeyboardInterrupt):
        libraries.main()
    assert len(json.loads(results.read_text())["rows"]) == 3
    done.clear()
    libraries.main()
    assert [(run.family, run.learning_rate) for run in done] == [("narm", 0.005)]
    rows = json.loads(results.read_text())["rows"]
    assert [(row["family"], row["learning_rate"], row["recall@20"]) for row in rows] == [
        ("stamp", 0.001, 0.5),
        ("narm", 0.001, 0.5),
        ("stamp", 0.005, 0.5),
        ("narm", 0.005, 0.5),
    ]


def test_batches_that_a_family_does_not_have_are_refused() -> None:
    with pytest.raises(BenchmarkError, match="bert4rec has no 'alike' batches"):
        recbole.Run("bert4rec", "alike", 0.001, 1, 10)


def test_without_logs_a_benchmark_says_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOGS", raising=False)
    with pytest.raises(SystemExit, match="LOGS"):
        families.log_folder()
