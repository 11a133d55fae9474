"""`trainer fit` as its user meets it."""

import gzip
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import get_args

import pytest
import torch
from safetensors import safe_open
from typer.testing import CliRunner, Result

from schemas.bundle.files import open_bundle
from tests.unit.trainer.builders import random_sessions
from trainer.__main__ import app
from trainer.models.settings import MemoryTerm

SMALL = [f"--set={s}" for s in ("hidden_size=8", "n_sample=10", "epochs=2", "batch_size=8")]
WINDOW = [*SMALL, "--set=window=7"]  # of tests/contract/test_families.py, where such graphs are traced as well


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["fit", *map(str, arguments)])


def write(path: Path, count: int, seed: int, *, timed: bool) -> Path:
    sessions = random_sessions(count, items=30, seed=seed)
    rows = ["session_id\titem_id" + ("\ttimestamp" if timed else "")]
    of = sessions.session_of_click()
    for i, (session, item) in enumerate(zip(of.tolist(), sessions.items.tolist(), strict=True)):
        rows.append(f"{seed}-{session}\titem{item}" + (f"\t{1000 + i}.5" if timed else ""))
    path.write_bytes(gzip.compress("\n".join(rows).encode() + b"\n"))
    return path


@pytest.fixture
def train(tmp_path: Path) -> Path:
    return write(tmp_path / "train.tsv.gz", 80, 1, timed=True)


def test_trains_evaluates_and_writes_a_bundle_and_a_report(tmp_path: Path) -> None:
    train = write(tmp_path / "train.tsv.gz", 80, 1, timed=False)
    test = write(tmp_path / "test.tsv.gz", 20, 2, timed=False)
    report = tmp_path / "out" / "report.json"
    result = run("--train", train, "--test", test, "--out", tmp_path / "out", "--report", report, *SMALL)
    assert result.exit_code == 0, result.output
    found = json.loads(report.read_text())
    expected = random_sessions(20, items=30, seed=2)
    assert found["predictions"] == expected.transitions
    assert found["recall"].keys() == found["mrr"].keys() == {"1", "5", "10", "20"}
    assert 0 < found["mrr"]["20"] <= found["recall"]["20"] <= 1
    assert found["transitions_per_second"] > 0
    assert (found["engine"], found["device"]) == ("torch", "cpu")  # so few sessions
    assert found["epochs"] == 2
    assert found["settings"]["hidden_size"] == 8
    assert found["baselines"].keys() == {"pop", "s-pop", "markov-chain", "item-knn"}
    assert all(of["recall"]["20"] >= of["mrr"]["20"] for of in found["baselines"].values())
    (bundle,) = (path for path in (tmp_path / "out").iterdir() if path.is_dir())
    assert found["bundle"] == str(bundle)
    manifest = open_bundle(bundle).manifest
    # What was not asked for of these stays out of manifests: a trainer of before does not know their names.
    younger = {"target_weights": "", "prune": False}
    assert manifest.training["settings"] | younger == found["settings"]
    assert not manifest.training["settings"].keys() & younger.keys()
    assert manifest.metrics["model"]["recall@20"] == found["recall"]["20"]
    assert manifest.metrics["baselines"].keys() == found["baselines"].keys()
    assert "gru4rec" in result.stdout


def test_without_a_test_file_the_newest_sessions_are_held_out(tmp_path: Path, train: Path) -> None:
    result = run(
        "--train", train, "--out", tmp_path / "out", "--valid-fraction", "0.25", "--no-baselines", "--json", *SMALL
    )
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["data"]["train"]["sessions"] == 60
    assert found["predictions"] == int((random_sessions(80, items=30, seed=1).lengths[60:] - 1).sum())
    assert found["baselines"] == {}


def test_the_session_memory_goes_into_the_bundle_where_there_is_enough_to_learn_it_from(tmp_path: Path) -> None:
    train = write(tmp_path / "train.tsv.gz", 900, 1, timed=True)
    for memory, has in (("all", True), ("none", False)):
        chosen = [*SMALL, f"--set=memory={memory}", "--set=memory_holdout=0.2", "--no-baselines", f"--version={memory}"]
        result = run("--train", train, "--out", tmp_path, "--json", *chosen)
        assert result.exit_code == 0, result.output
        assert json.loads(result.stdout)["settings"]["memory"] == (list(get_args(MemoryTerm)) if has else [])
        assert (b"memory.repeat" in (tmp_path / memory / "rank.onnx").read_bytes()) is has
        assert "session memory" not in result.stderr


def test_too_few_sessions_for_a_memory_are_told(tmp_path: Path, train: Path) -> None:
    result = run("--train", train, "--out", tmp_path, "--no-baselines", *SMALL)
    assert result.exit_code == 0, result.output
    assert "too few sessions to learn the session memory from" in result.stderr


def test_one_wrong_clock_is_told_and_so_is_what_is_left_to_evaluate_on(tmp_path: Path) -> None:
    rows = [f"s{n // 4},i{n % 9},{1_700_000_000 + n}" for n in range(400)] + [f"s999,i{n},1740000000" for n in range(2)]
    train = tmp_path / "clicks.csv"
    train.write_text("\n".join(["session_id,item_id,timestamp", *rows, "s998,i1,4102444800\n"]))
    options: list[str | Path] = ["--out", tmp_path, "--valid-days", "1", "--no-baselines", *SMALL]
    refused = run("--train", train, *options)
    assert refused.exit_code == 2
    assert "1 bad row (line 404: timestamp '4102444800' (2100-01-01) is not between 1995 and tomorrow" in refused.stderr
    fitted = run("--train", train, *options, "--skip-bad-rows", "--report", tmp_path / "report.json")
    assert fitted.exit_code == 0, fitted.output
    assert f"{train}: click-file: text with commas; session session_id, item item_id, time timestamp" in fitted.stderr
    assert "2 of 402 clicks lie 463 days after all others (first: session 's999'): a wrong clock?" in fitted.stderr
    assert "only 1 prediction in 1 session to evaluate on" in fitted.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["predictions"], report["data"]["bad_rows"]) == (1, {str(train): 1})
    assert "wrong clock" in report["data"]["warnings"][str(train)][0]
    assert "in seconds" in report["data"]["read_as"][str(train)]


@pytest.mark.parametrize("option", ["--valid-days", "--test-days", "--idle-gap", "--valid-fraction"])
@pytest.mark.parametrize("number", ["inf", "nan", "-1", "1e300"])
def test_numbers_that_are_none_are_refused(tmp_path: Path, train: Path, option: str, number: str) -> None:
    result = run("--train", train, "--out", tmp_path, option, number)
    assert (result.exit_code, isinstance(result.exception, SystemExit)) == (2, True), result.output


def test_a_column_that_is_named(tmp_path: Path, train: Path) -> None:
    text = gzip.decompress(train.read_bytes()).decode().replace("session_id", "visit").replace("\t", ";")
    train.write_text(text)
    refused = run("--train", train, "--out", tmp_path, *SMALL)
    assert (refused.exit_code, "has no column session_id; it has visit, item_id" in refused.stderr) == (2, True)
    named = run("--train", train, "--out", tmp_path, "--session-column", "visit", "--no-baselines", *SMALL)
    assert named.exit_code == 0, named.output
    wrong = run("--train", train, "--out", tmp_path, "--delimiter", "||")
    assert (wrong.exit_code, "must be one ASCII character" in wrong.output) == (2, True)


def test_quiet_prints_nothing_and_a_version_can_be_named(tmp_path: Path, train: Path) -> None:
    first = run("--train", train, "--out", tmp_path, "--version", "v1", "--no-baselines", "--quiet", *SMALL)
    assert (first.exit_code, first.output) == (0, "")
    again = run("--train", train, "--out", tmp_path, "--version", "v1", *SMALL)
    assert again.exit_code == 2
    assert "immutable" in again.output


def test_starts_from_a_bundle(tmp_path: Path, train: Path) -> None:
    cold: list[str | Path] = ["--train", train, "--out", tmp_path, "--no-baselines", "--json", *SMALL]
    first = json.loads(run(*cold, "--version", "v1").stdout)
    second = json.loads(run(*cold, "--version", "v2", "--warm-start", tmp_path / "v1").stdout)
    assert second["losses"][0] < first["losses"][0]


def test_a_preset_with_changes_on_top(tmp_path: Path, train: Path) -> None:
    arguments = ["--preset", "retailrocket", *SMALL[:2], "--set", "epochs=1", "--no-baselines", "--json"]
    settings = json.loads(run("--train", train, "--out", tmp_path, *arguments).stdout)["settings"]
    assert (settings["loss"], settings["bpreg"], settings["batch_size"]) == ("bpr-max", 1.95, 80)
    assert (settings["hidden_size"], settings["epochs"]) == (8, 1)


def test_stops_early_by_sessions_that_are_neither_trained_on_nor_evaluated(tmp_path: Path, train: Path) -> None:
    result = run(
        *("--train", train, "--out", tmp_path / "out", "--valid-fraction", "0.25", "--no-baselines", "--json"),
        *("--early-stopping", "1", "--stop-by", "recall", *SMALL, "--set", "epochs=40", "--set", "learning_rate=0.5"),
    )
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    parts = [found["data"][part]["sessions"] for part in ("train", "holdout", "test")]
    assert parts == [45, 15, 20]
    assert len(found["scores"]) == found["epochs"] < 40
    assert found["best_epoch"] == found["epochs"] - 1
    assert max(found["scores"]) == found["scores"][found["best_epoch"] - 1]


def test_killed_and_started_again_it_ends_with_the_same_bits(tmp_path: Path) -> None:
    """kill -9 of the program itself, between two epochs or within one: wherever it is when a checkpoint appears."""
    train = write(tmp_path / "train.tsv.gz", 600, 1, timed=True)
    checkpoint = tmp_path / "run.safetensors"
    arguments = ["--train", str(train), "--no-baselines", "--json", *SMALL, "--set", "epochs=8"]
    checked = [*arguments, "--out", str(tmp_path / "killed"), "--checkpoint", str(checkpoint), "--version", "v1"]
    program = subprocess.Popen(
        [sys.executable, "-m", "trainer", "fit", *checked], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        while not checkpoint.exists():
            assert program.poll() is None, program.stderr.read() if program.stderr else ""
            time.sleep(0.01)
    finally:
        program.kill()
        program.communicate()
    assert program.returncode == -signal.SIGKILL
    assert not (tmp_path / "killed" / "v1").exists()
    with safe_open(checkpoint, framework="numpy") as stored:
        assert 1 <= len(json.loads(stored.metadata()["about"])["epochs"]) < 8
    resumed = json.loads(run(*checked).stdout)
    whole = json.loads(run(*arguments, "--out", tmp_path / "whole", "--version", "v1").stdout)
    assert resumed["losses"] == whole["losses"]
    for name in ("advance.onnx", "rank.onnx"):
        assert (tmp_path / "killed" / "v1" / name).read_bytes() == (tmp_path / "whole" / "v1" / name).read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--preset", "rsc16"], "no preset 'rsc16'; there are"),
        (["--set", "learning_rat=1"], "unknown training setting"),
        (["--set", "epochs=0"], "epochs=0"),
        (["--version", "../v1"], "--version"),
        (["--test", "missing.tsv"], "missing.tsv: no such file"),
        (["--valid-fraction", "0"], "holdout"),
        (["--warm-start", "missing"], "missing"),
    ],
)
def test_a_mistake_is_explained_and_exits_with_2(
    tmp_path: Path, train: Path, arguments: list[str], message: str
) -> None:
    result = run("--train", train, "--out", tmp_path / "out", *SMALL, *arguments)
    assert result.exit_code == 2
    assert message in result.output
    assert "Traceback" not in result.output
    assert not (tmp_path / "out").exists()


def test_bad_rows_stop_the_run_or_are_counted(tmp_path: Path, train: Path) -> None:
    train.write_bytes(gzip.compress(gzip.decompress(train.read_bytes()) + b"x\t\t5\n"))
    lines = gzip.decompress(train.read_bytes()).count(b"\n")
    arguments: list[str | Path] = ["--train", train, "--out", tmp_path / "out", "--no-baselines", "--json", *SMALL]
    refused = run(*arguments)
    assert refused.exit_code == 2
    assert f"line {lines}: item_id is empty" in refused.output
    skipped = run(*arguments, "--skip-bad-rows")
    found = json.loads(skipped.stdout)["data"]
    assert found["bad_rows"] == {str(train): 1}
    assert found["bad_examples"] == {str(train): [{"place": f"line {lines}", "reason": "item_id is empty"}]}
    assert f"{train}: left out 1 bad row (line {lines}: item_id is empty)" in skipped.stderr


def test_a_gpu_that_is_not_there_is_refused_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    result = run("--train", tmp_path / "none.tsv", "--out", tmp_path / "out", "--device", "cuda")
    assert result.exit_code == 2
    assert "error: device=cuda: torch" in result.output


@pytest.mark.parametrize(
    ("family", "told", "encoder"),
    [("stamp", WINDOW, "window"), ("STAMP", [*WINDOW, "--set=members=2"], "window"), ("item_knn", [], "none")],
)
def test_every_family_is_a_word(tmp_path: Path, train: Path, family: str, told: list[str], encoder: str) -> None:
    result = run("--train", train, "--out", tmp_path, "--no-baselines", f"--set=family={family}", *told)
    assert result.exit_code == 0, result.output
    name = family.lower().replace("_", "-")
    assert name in result.stdout
    assert "gru4rec" not in result.stdout
    assert ("transitions/s" in result.stdout) == (encoder == "window")
    (bundle,) = (path for path in tmp_path.iterdir() if path.is_dir())
    manifest = open_bundle(bundle).manifest
    assert (manifest.family, manifest.encoder, manifest.training["settings"]["family"]) == (name, encoder, name)


def test_one_family_starts_from_another_and_from_itself(tmp_path: Path, train: Path) -> None:
    here: list[str | Path] = ["--train", train, "--out", tmp_path, "--no-baselines", "--quiet", *SMALL]
    assert run(*here, "--version", "gru").exit_code == 0
    for version, start in (("first", "gru"), ("second", "first")):
        result = run(*here, "--version", version, "--warm-start", tmp_path / start, "--set=family=stamp", *WINDOW)
        assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--early-stopping", "2"], "--early-stopping: a model of family=item-knn is made in one go"),
        (["--checkpoint", "run.safetensors"], "--checkpoint: a model of family=item-knn"),
        (["--warm-start", "models/x"], "--warm-start: a model of family=item-knn"),
        (["--set", "members=2"], "unknown training setting 'members' of family=item-knn (known: family, memory,"),
        (["--preset", "rsc15"], "unknown training setting 'loss'"),
    ],
)
def test_a_family_that_counts_refuses_what_it_has_no_use_for(
    tmp_path: Path, train: Path, arguments: list[str], message: str
) -> None:
    result = run("--train", train, "--out", tmp_path / "out", "--set=family=item-knn", *arguments)
    assert (result.exit_code, message in result.stderr) == (2, True), result.output
    assert not (tmp_path / "out").exists()


def test_a_training_by_a_plan_does_not_stop_in_its_middle(tmp_path: Path, train: Path) -> None:
    result = run("--train", train, "--out", tmp_path / "out", "--set=family=sasrec", "--early-stopping", "2")
    assert (result.exit_code, "--early-stopping: the learning rate of family=sasrec" in result.stderr) == (2, True)


def test_a_bundle_that_is_no_start_is_refused_in_one_line(tmp_path: Path, train: Path) -> None:
    here: list[str | Path] = ["--train", train, "--out", tmp_path, "--no-baselines", "--quiet"]
    assert run(*here, "--version", "counted", "--set=family=pop").exit_code == 0
    assert run(*here, "--version", "stamp", "--set=family=stamp", *WINDOW).exit_code == 0
    refused = run(*here, "--warm-start", tmp_path / "counted", *SMALL)
    assert (refused.exit_code, "holds no network: its family, pop, counts" in refused.stderr) == (2, True)
    refused = run(*here, "--warm-start", tmp_path / "stamp", *WINDOW, "--set=family=stamp", "--set=hidden_size=9")
    assert (refused.exit_code, "its stamp has other sizes than these settings" in refused.stderr) == (2, True)
