"""`trainer presets` and `trainer reproduce` as their user meets them."""

import json
import statistics
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from tests.unit.trainer.builders import random_sessions
from trainer.__main__ import app
from trainer.presets import preset_names

SMALL = [f"--set={s}" for s in ("hidden_size=8", "epochs=1")]
DAY = 86_400


def run(command: str, *arguments: object) -> Result:
    return CliRunner().invoke(app, [command, *map(str, arguments)])


def written(path: Path, *, seed: int = 1) -> Path:
    """A hundred sessions, ten a day, with an item of one click in each."""
    sessions = random_sessions(100, items=30, seed=seed)
    rows = ["session_id\titem_id\ttimestamp"]
    for n, (s, i) in enumerate(zip(sessions.session_of_click().tolist(), sessions.items.tolist(), strict=True)):
        rows.append(f"{s}\titem{i}\t{DAY * (s // 10) + n}")
    rows += [f"{s}\tonce{s}\t{DAY * (s // 10) + 9000 + s}" for s in range(100)]
    path.write_text("\n".join(rows) + "\n")
    return path


def test_the_presets_are_listed_with_their_figures() -> None:
    result = run("presets")
    assert result.exit_code == 0
    assert all(name in result.stdout for name in preset_names())
    assert "0.6206" in result.stdout
    listed = json.loads(run("presets", "--json").stdout)
    assert [one["preset"] for one in listed] == list(preset_names())
    assert all(one["settings"]["batch_size"] and one["source"] and one["published"] for one in listed)


def test_the_whole_log_is_filtered_and_split_as_published(tmp_path: Path) -> None:
    out = tmp_path / "reports" / "report.json"
    result = run("reproduce", "rsc15", "--train", written(tmp_path / "a.tsv"), "--out", out, "--ties", "median", *SMALL)
    assert result.exit_code == 0, result.output
    report = json.loads(out.read_text())
    ours = report["ours"]
    assert (ours["items"], ours["train"]["sessions"], ours["test"]["sessions"]) == (30, 90, 10)
    assert report["ties"] == "median"
    assert (report["preset"], report["settings"]["batch_size"]) == ("rsc15", 32)
    # With other settings nothing is published.
    assert report["published"] is None
    assert "nothing is published for these settings: hidden_size=8, epochs=1" in result.stderr
    assert f"{ours['recall']['20']:.4f}" in result.stdout


def test_two_files_are_taken_as_they_are(tmp_path: Path) -> None:
    files = ["--train", written(tmp_path / "a.tsv"), "--test", written(tmp_path / "b.tsv", seed=2)]
    preset = tmp_path / "mine.toml"
    preset.write_text(
        'title = "Mine"\nsource = "me"\n[data]\ncore = 5\n[settings]\nhidden_size = 8\nepochs = 1\n'
        "[[published]]\nrecall = { 20 = 0.5 }\nmrr = { 20 = 0.25 }\n"
    )
    report = json.loads(run("reproduce", preset, *files, "--json").stdout)
    assert report["ours"]["items"] == 130
    assert report["published"] == {"recall": {"20": 0.5}, "mrr": {"20": 0.25}}
    shown = run("reproduce", preset, *files, "--set", "seed=3")
    assert "nothing is published" not in shown.stderr
    (row,) = [line.split() for line in shown.stdout.splitlines() if " Recall@20 " in line]
    published, ours, difference = row[3], row[5], row[7]
    assert published == "0.5000"
    assert float(difference) == pytest.approx(float(ours) - 0.5, abs=1e-4)


def test_a_log_as_papers_prepare_it_has_figures_for_each_of_their_models(tmp_path: Path) -> None:
    train = written(tmp_path / "a.tsv")
    preset = tmp_path / "mine.toml"
    preset.write_text(
        'title = "Mine"\nsource = "several"\ndiffers = ["the clicks are made up"]\n'
        "[data]\ncore = 5\ntest_days = 1\ntrain_share = 0.5\n[settings]\nmemory = []\n"
        '[[published]]\nmodel = "S-POP"\nsettings = { family = "s-pop" }\nsource = "hers"\n'
        "recall = { 20 = 0.5 }\nndcg = { 20 = 0.25 }\n"
    )
    result = run("reproduce", preset, "--train", train, "--set", "family=s-pop", "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["published"] == {"model": "S-POP", "source": "hers", "recall": {"20": 0.5}, "ndcg": {"20": 0.25}}
    assert report["differs"] == ["the clicks are made up"]
    whole = json.loads(run("reproduce", "rsc15", "--train", train, *SMALL, "--json").stdout)
    assert report["ours"]["train"]["transitions"] <= 0.5 * whole["ours"]["train"]["transitions"]
    shown = run("reproduce", preset, "--train", train, "--set", "family=s-pop").stdout
    (row,) = [line.split() for line in shown.splitlines() if " NDCG@20 " in line]
    assert (row[3], row[5]) == ("0.2500", f"{report['ours']['ndcg']['20']:.4f}")
    assert "published: S-POP, hers" in shown
    assert "differs: the clicks are made up" in shown
    other = run("reproduce", preset, "--train", train, "--set", "family=pop")
    assert "nothing is published for these settings: family=pop" in other.stderr


def test_a_preset_of_the_windows_protocol_is_judged_window_by_window(tmp_path: Path) -> None:
    train = written(tmp_path / "a.tsv")
    arguments = ["yoochoose-daily", "--train", train, "--set", "family=stan"]
    report = json.loads(run("reproduce", *arguments, "--json").stdout)
    assert report["published"]["model"] == "STAN"
    days, judged = report["ours"]["windows"], report["runs"][0]["windows"]
    assert len(days) == len(judged) + 1
    assert report["ours"]["ndcg"]["20"] == pytest.approx(statistics.mean(one["ndcg"]["20"] for one in judged))
    assert [one["predictions"] for one in judged] == [one["sessions"] for one in days[1:]]
    halves = json.loads(run("reproduce", *arguments, "--window-hours", 12, "--json").stdout)
    assert len(halves["ours"]["windows"]) > 1
    for wrong in (["--test", train], ["--checkpoint", "run"]):
        result = run("reproduce", *arguments, *wrong)
        assert (result.exit_code, f"error: {wrong[0]}: " in result.stderr) == (2, True)


def test_goes_on_from_a_checkpoint(tmp_path: Path) -> None:
    checkpoint = tmp_path / "run.safetensors"
    arguments = ["rsc15", "--train", written(tmp_path / "a.tsv"), "--set", "hidden_size=8", "--json"]
    first = json.loads(run("reproduce", *arguments, "--set", "epochs=2", "--checkpoint", checkpoint).stdout)
    more = json.loads(run("reproduce", *arguments, "--set", "epochs=3", "--checkpoint", checkpoint).stdout)
    losses = more["runs"][0]["losses"]
    assert losses[:2] == first["runs"][0]["losses"]
    assert losses == json.loads(run("reproduce", *arguments, "--set", "epochs=3").stdout)["runs"][0]["losses"]


def test_several_seeds_are_averaged(tmp_path: Path) -> None:
    train, checkpoint = written(tmp_path / "a.tsv"), tmp_path / "run.safetensors"
    result = run("reproduce", "rsc15", "--train", train, "--seeds", 3, *SMALL, "--json", "--checkpoint", checkpoint)
    report = json.loads(result.stdout)
    assert [one["seed"] for one in report["runs"]] == [42, 43, 44]
    found = [one["mrr"]["20"] for one in report["runs"]]
    assert len(set(found)) > 1
    assert report["ours"]["mrr"]["20"] == pytest.approx(statistics.mean(found))
    assert report["spread"]["mrr"]["20"] == pytest.approx(statistics.stdev(found))
    assert {f"run.safetensors.{seed}" for seed in (42, 43, 44)} <= {path.name for path in tmp_path.iterdir()}
    (only,) = json.loads(run("reproduce", "rsc15", "--train", train, *SMALL, "--set=seed=43", "--json").stdout)["runs"]
    assert only["losses"] == report["runs"][1]["losses"]
    shown = run("reproduce", "rsc15", "--train", train, "--seeds", 2, *SMALL).stdout
    assert "± over seeds" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rsc16"], "no preset 'rsc16'"),
        (["rsc15", "--set", "momentum=2"], "momentum=2"),
        (["rsc15", "--test", "missing.tsv"], "missing.tsv: no such file"),
        (
            ["rsc15", "--retrain", "0"],
            "--retrain: it is for presets of the protocol transformers4rec, and rsc15 is none",
        ),
    ],
)
def test_mistakes_are_answered_in_one_line(tmp_path: Path, arguments: list[str], message: str) -> None:
    result = run("reproduce", *arguments, "--train", written(tmp_path / "a.tsv"))
    assert (result.exit_code, message in result.stderr) == (2, True)
    assert "Traceback" not in result.output
