"""`trainer tune` as its user meets it."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from tests.unit.trainer.builders import random_sessions
from tests.unit.trainer.search.test_tuning import ThreadedWorker
from trainer.__main__ import app
from trainer.presets import load_preset

SMALL = [f"--set={s}" for s in ("hidden_size=8", "n_sample=10", "epochs=3", "batch_size=8")]
DAY = 86_400


def run(command: str, *arguments: object) -> Result:
    return CliRunner().invoke(app, [command, *map(str, arguments)])


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trials in this process: a worker of its own takes seconds to start."""
    monkeypatch.setattr("trainer.search.tuning.start_worker", ThreadedWorker)


@pytest.fixture
def clicks(tmp_path: Path) -> Path:
    """Two hundred sessions, twenty a day."""
    sessions = random_sessions(200, items=30, seed=1)
    of = sessions.session_of_click().tolist()
    rows = [
        f"{s}\titem{i}\t{DAY * (s // 20) + n}" for n, (s, i) in enumerate(zip(of, sessions.items.tolist(), strict=True))
    ]
    path = tmp_path / "clicks.tsv"
    path.write_text("\n".join(["session_id\titem_id\ttimestamp", *rows]) + "\n")
    return path


def test_the_result_is_a_preset_to_train_with(clicks: Path, tmp_path: Path) -> None:
    out, report = tmp_path / "new" / "tuned.toml", tmp_path / "new" / "report.json"
    result = run(
        "tune",
        *("--train", clicks, "--study", tmp_path / "study.db", "--trials", 2, "--jobs", 1, "--out", out),
        *("--report", report, "--valid-days", 1, "--test-days", 2, "--search", "layers=0..1", *SMALL),
    )
    assert result.exit_code == 0, result.output
    found = json.loads(report.read_text())
    # Day 8 and 9 are nobody's, and day 7 is the validation.
    sizes = {part: found["data"][part]["sessions"] for part in ("train", "validation")}
    assert sizes["train"] + sizes["validation"] == pytest.approx(160, abs=3)
    assert 17 <= sizes["validation"] <= 23
    preset = load_preset(str(out))
    assert preset.training.model_dump(mode="json") == found["best"]["settings"]
    chosen = preset.training.model_dump()
    assert (chosen["hidden_size"], chosen["epochs"]) == (8, found["best"]["epoch"])
    assert f"{found['best']['mrr@20']:.4f}" in out.read_text()
    assert str(tmp_path) not in out.read_text()
    assert f"{found['best']['recall@20']:.4f}" in result.stdout
    best = max(found["trials"], key=lambda trial: trial["mrr@20"] or 0)
    assert best["trial"] == found["best"]["trial"]
    fitted = run("fit", "--train", clicks, "--out", tmp_path / "models", "--preset", out, "--no-baselines", "--json")
    assert json.loads(fitted.stdout)["settings"] == found["best"]["settings"]


@pytest.mark.usefixtures("threads")
def test_a_baseline_s_options_can_be_handed_to_evaluate(clicks: Path, tmp_path: Path) -> None:
    study = ["--train", clicks, "--study", tmp_path / "study.db", "--jobs", 1]
    found = json.loads(
        run("tune", *study, "--set", "family=item-knn", "--trials", 2, "--by", "recall", "--json").stdout
    )
    assert found["by"] == "recall@20"
    spec = found["best"]["baselines"]
    assert spec.startswith("item-knn:neighbours=")
    judged = json.loads(run("evaluate", "--train", clicks, "--baselines", spec, "--json").stdout)
    assert judged["models"][spec]["recall"]["20"] == found["best"]["recall@20"]


@pytest.mark.long
def test_ctrl_c_leaves_a_search_that_goes_on(clicks: Path, tmp_path: Path) -> None:
    study = tmp_path / "study.db"
    arguments = ["--train", clicks, "--study", study, "--jobs", 2, "--trials", 500, *SMALL]
    program = subprocess.Popen(
        [sys.executable, "-m", "trainer", "tune", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        while trials_in(study) < 2:
            assert program.poll() is None, program.stderr.read() if program.stderr else ""
            time.sleep(0.1)
    finally:
        # As a terminal does: to the workers as well.
        os.killpg(program.pid, signal.SIGINT)
        _, errors = program.communicate()
    assert program.returncode == 130
    assert "of 500 trials; the same command goes on" in errors
    assert "Traceback" not in errors
    done = trials_in(study)
    again = [*arguments, "--trials", done + 1, "--jobs", 1]
    found = json.loads(run("tune", *again, "--json").stdout)
    assert len(found["trials"]) == done + 1


def trials_in(study: Path) -> int:
    """Finished trials; 0 while there is no study yet."""
    if not study.exists():
        return 0
    try:
        with closing(sqlite3.connect(f"file:{study}?mode=ro", uri=True)) as database:
            (count,) = database.execute("SELECT count(*) FROM trials WHERE state IN ('COMPLETE', 'PRUNED')").fetchone()
    except sqlite3.OperationalError:  # its tables are just being made
        return 0
    return int(count)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--search", "units=1..2"], "unknown training setting 'units'"),
        (["--set", "epochs=0"], "epochs=0"),
        (["--set", "family=pop"], "pop: has nothing to tune"),
        (["--out", "a.json"], "a preset's name ends with .toml"),
        (["--preset", "rsc16"], "no preset 'rsc16'"),
        (["--valid-fraction", "0"], "holdout"),
    ],
)
def test_mistakes_are_answered_in_one_line(clicks: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    result = run("tune", "--train", clicks, "--study", tmp_path / "study.db", *arguments)
    assert (result.exit_code, message in result.stderr) == (2, True), result.output
    assert not (tmp_path / "study.db").exists()


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize(("family", "told"), [("stamp", [*SMALL, "--set=window=7"]), ("item-knn", [])])
def test_another_family_is_searched_and_its_preset_can_be_trained(
    clicks: Path, tmp_path: Path, family: str, told: list[str]
) -> None:
    out = tmp_path / "tuned.toml"
    chosen = [f"--set=family={family}", "--set=memory=none", *told]
    result = run(
        "tune", "--train", clicks, "--study", tmp_path / "study.db", "--trials", 2, "--jobs", 1, "--out", out, *chosen
    )
    assert result.exit_code == 0, result.output
    assert "early stopping" not in result.stdout
    settings = load_preset(str(out)).training.model_dump()
    assert settings["family"] == family
    if told:
        assert settings["epochs"] == 3
    fitted = run("fit", "--train", clicks, "--out", tmp_path / "models", "--preset", out, "--no-baselines", "--json")
    assert fitted.exit_code == 0, fitted.output
    assert json.loads(fitted.stdout)["settings"]["family"] == family
