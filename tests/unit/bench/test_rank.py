"""`TRAINED=` names a bundle of any size, and every method ranks by its weights."""

from pathlib import Path

import pytest

from bench.random_model import random_bundle
from bench.rank import measure


def test_any_number_of_units_can_be_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = random_bundle(tmp_path, "small", [str(n) for n in range(300)], units=24, seed=1)
    monkeypatch.setenv("TRAINED", str(folder))

    report = measure((), (1, 4), (1,), seconds=0.0)

    assert [(row["items"], row["batch"]) for row in report.rows] == [(300, 1)] * 5 + [(300, 4)] * 5
    assert [row["recall_at_20"] for row in report.rows if row["method"] == "bundle"] == [1.0, 1.0]
