"""`trainer evaluate` as its user meets it."""

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from tests.unit.trainer.builders import random_sessions
from trainer.__main__ import app
from trainer.evaluation.baselines import BASELINES

SMALL = [f"--set={s}" for s in ("hidden_size=8", "n_sample=10", "epochs=1", "batch_size=8")]


def run(command: str, *arguments: object) -> Result:
    return CliRunner().invoke(app, [command, *map(str, arguments)])


@pytest.fixture
def clicks(tmp_path: Path) -> Path:
    return written(tmp_path / "clicks.tsv", items=30)


def written(path: Path, *, items: int) -> Path:
    sessions = random_sessions(100, items=items, seed=1)
    of = sessions.session_of_click().tolist()
    rows = [f"{s}\titem{i}\t{1000 + n}" for n, (s, i) in enumerate(zip(of, sessions.items.tolist(), strict=True))]
    path.write_text("\n".join(["session_id\titem_id\ttimestamp", *rows]) + "\n")
    return path


def fitted(clicks: Path, models: Path, version: str, fraction: float) -> Path:
    result = run(
        "fit",
        *("--train", clicks, "--out", models, "--version", version, "--valid-fraction", str(fraction)),
        *("--no-baselines", *SMALL),
    )
    assert result.exit_code == 0, result.output
    return models / version


def test_every_baseline_and_a_model_on_the_same_predictions(clicks: Path, tmp_path: Path) -> None:
    bundle = fitted(clicks, tmp_path / "models", "v1", 0.3)
    out = tmp_path / "reports" / "report.json"
    result = run(
        "evaluate",
        *(
            "--train",
            clicks,
            "--valid-fraction",
            "0.3",
            "--model",
            bundle,
            "--out",
            out,
            "--resamples",
            "100",
            "--k",
            "5",
        ),
    )
    assert result.exit_code == 0, result.output
    assert "flatter" not in result.stderr
    assert "only 144 predictions in 30 sessions to evaluate on" in result.stderr
    report = json.loads(out.read_text())
    assert list(report["models"]) == ["v1", *BASELINES]
    assert report["first"] == "v1"
    assert report["predictions"] == report["data"]["test"]["transitions"]
    for name, found in report["models"].items():
        assert found["recall"].keys() == {"1", "5"}
        low, high = found["intervals"]["mrr@5"]
        assert low <= found["mrr"]["5"] <= high
        assert not found["trained_on_test"]
        assert name in result.stdout
    first, chain = report["models"]["v1"], report["models"]["markov-chain"]
    assert first["against_first"] == {}
    lead = chain["against_first"]["recall@5"]
    assert lead["value"] == pytest.approx(chain["recall"]["5"] - first["recall"]["5"])
    assert lead["value"] > 0  # these sessions are a Markov chain
    assert lead["p"] <= lead["p_adjusted"] < 0.1


def test_a_model_that_has_seen_the_test_sessions_is_marked(clicks: Path, tmp_path: Path) -> None:
    bundle = fitted(clicks, tmp_path / "models", "v1", 0.1)
    result = run(
        "evaluate",
        *("--train", clicks, "--valid-fraction", "0.3", "--model", bundle, "--baselines", "none", "--k", "5", "--json"),
    )
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["models"]["v1"]["trained_on_test"]
    assert "warning: v1 was trained on sessions as late" in result.stderr


def test_the_baselines_asked_for_in_their_order(clicks: Path) -> None:
    result = run("evaluate", "--train", clicks, "--baselines", "stan, pop,stan", "--json", "--resamples", "100")
    assert list(json.loads(result.stdout)["models"]) == ["stan", "pop"]


def test_several_files_are_one_log(clicks: Path, tmp_path: Path) -> None:
    header, *rows = clicks.read_text().splitlines(keepends=True)
    middle = next(n for n in range(len(rows) // 2, len(rows)) if rows[n].split()[0] == rows[n - 1].split()[0])
    parts = [tmp_path / "first.tsv", tmp_path / "second.tsv"]  # cut within a session
    parts[0].write_text("".join([header, *rows[:middle]]))
    parts[1].write_text("".join([header, *rows[middle:]]))
    whole = run("evaluate", "--train", clicks, "--test", clicks, "--baselines", "stan", "--json")
    files = [argument for option in ("--train", "--test") for part in parts for argument in (option, part)]
    joined = run("evaluate", *files, "--baselines", "stan", "--json")
    assert joined.exit_code == 0, joined.output
    report, expected = json.loads(joined.stdout), json.loads(whole.stdout)
    assert report["data"].pop("bad_rows") == {str(part): 0 for part in parts}
    assert expected["data"].pop("bad_rows") == {str(clicks): 0}
    for found in (report, expected):
        told = found["data"].pop("read_as").values()
        assert all(one.startswith("click-file: text with tabs; session session_id, item item_id") for one in told)
        found["data"].pop("warnings")
    assert report == expected


def test_every_command_that_trains_takes_several_files() -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    several = {
        name: [option.name for option in command.params if option.name in ("train", "test") and option.multiple]
        for name, command in commands.items()
    }
    assert {name: options for name, options in several.items() if options} == {
        **{name: ["train", "test"] for name in ("fit", "evaluate", "reproduce", "ablate")},
        "tune": ["train"],
    }


def test_last_clicks_are_one_prediction_a_session(clicks: Path) -> None:
    arguments = ["--train", clicks, "--baselines", "markov-chain,pop", "--valid-fraction", "0.3", "--json"]
    report = json.loads(run("evaluate", *arguments, "--protocol", "last-click").stdout)
    assert (report["protocol"], report["predictions"], report["data"]["test"]["sessions"]) == ("last-click", 30, 30)
    every = json.loads(run("evaluate", *arguments).stdout)
    assert (every["protocol"], every["predictions"]) == ("every-prefix", 144)
    assert every["models"]["pop"]["ndcg"].keys() == {"1", "5", "10", "20"}
    assert every["models"]["pop"]["ndcg"]["1"] == every["models"]["pop"]["mrr"]["1"]


def of_days(path: Path) -> Path:
    """The sessions of a day after another, 25 a day."""
    sessions = random_sessions(100, items=30, seed=1)
    of = sessions.session_of_click().tolist()
    rows = [f"{s}\titem{i}\t{86_400 * (s // 25) + n}" for n, (s, i) in enumerate(zip(of, sessions.items, strict=True))]
    path.write_text("\n".join(["session_id\titem_id\ttimestamp", *rows]) + "\n")
    return path


def test_models_are_trained_and_judged_window_after_window(tmp_path: Path) -> None:
    train, out = of_days(tmp_path / "days.tsv"), tmp_path / "report.json"
    windows = ["--protocol", "transformers4rec", "--train", train, "--baselines", "markov-chain,stan:days=2"]
    result = run("evaluate", *windows, *SMALL, "--set=family=stamp", "--out", out, "--k", "5")
    assert result.exit_code == 0, result.output
    report = json.loads(out.read_text())
    assert list(report["models"]) == ["stamp", "markov-chain", "stan:days=2.0"]
    assert [one["sessions"] for one in report["data"]["windows"]] == [25, 25, 25, 25]
    for name, found in report["models"].items():
        assert [one["predictions"] for one in found["windows"]] == [25, 25, 25]
        assert found["ndcg"]["5"] == pytest.approx(sum(one["ndcg"]["5"] for one in found["windows"]) / 3)
        (row,) = [line.split() for line in result.stdout.splitlines() if name in line]
        assert row[3] == f"{found['ndcg']['5']:.4f}"
    assert "75 last clicks in 3 windows" in result.stdout
    anew = run("evaluate", *windows, *SMALL, "--set=family=stamp", "--retrain", "2", "--json", "--k", "5")
    other = json.loads(anew.stdout)
    assert other["data"]["retrain"] == 2
    assert other["models"]["stamp"]["windows"][0] == report["models"]["stamp"]["windows"][0]  # one window before it
    assert other["models"]["stamp"]["windows"][1:] != report["models"]["stamp"]["windows"][1:]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--protocol", "transformers4rec", "--model", "v1"], "--model: this protocol trains its models"),
        (
            ["--protocol", "transformers4rec", "--test", "a.tsv"],
            "--test: the protocol transformers4rec takes a whole log",
        ),
        (["--protocol", "transformers4rec", "--valid-days", "1"], "--valid-days: the protocol transformers4rec takes"),
        (["--protocol", "transformers4rec", "--baselines", "stan", "--set", "family=stan"], "name it once"),
        (["--protocol", "transformers4rec"], "all sessions end within 24 hours"),
        (["--set", "family=sasrec"], "--set: bundles are trained already"),
        (["--retrain", "0", "--protocol", "last-click"], "--retrain: bundles are trained already"),
        (["--window-hours", "24"], "--window-hours: bundles are trained already"),
    ],
)
def test_options_of_another_protocol_are_refused(clicks: Path, arguments: list[str], message: str) -> None:
    result = run("evaluate", "--train", clicks, *arguments)
    assert (result.exit_code, message in result.stderr) == (2, True), result.output


def test_options_and_a_plot(clicks: Path, tmp_path: Path) -> None:
    plot = tmp_path / "table.svg"
    result = run(
        "evaluate",
        *("--train", clicks, "--baselines", "stan:neighbours=9,days=3,pop,stan", "--plot", plot, "--json"),
    )
    assert list(json.loads(result.stdout)["models"]) == ["stan:neighbours=9,days=3.0", "pop", "stan"]
    assert "</svg>" in plot.read_text()


def test_seventy_ten_twenty(clicks: Path) -> None:
    result = run("evaluate", "--train", clicks, "--test-fraction", "0.2", "--baselines", "pop", "--json")
    data = json.loads(result.stdout)["data"]
    assert (data["train"]["sessions"], data["test"]["sessions"]) == (70, 20)


def test_a_model_is_trained_on_what_the_evaluation_leaves_of_the_same_log(clicks: Path, tmp_path: Path) -> None:
    split = ["--train", clicks, "--test-fraction", "0.2", "--core", "3", "--collapse-repeats", "--json"]
    fit = run("fit", *split, "--out", tmp_path, "--version", "v1", "--no-baselines", *SMALL)
    assert fit.exit_code == 0, fit.output
    result = run("evaluate", *split, "--model", tmp_path / "v1", "--baselines", "none", "--k", "5")
    data = json.loads(result.stdout)["data"]
    assert data["train"] == json.loads(fit.stdout)["data"]["train"]
    assert (data["train"]["sessions"], data["test"]["sessions"]) == (70, 20)
    assert not json.loads(result.stdout)["models"]["v1"]["trained_on_test"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--baselines", "pop,best"], "no best; there are pop, s-pop"),
        (["--baselines", "none"], "nothing to evaluate"),
        (["--model", "nowhere"], "nowhere: no such folder"),
        (["--baselines", "pop", "--plot", "table.bmp"], "--plot table.bmp: ends with none of"),
    ],
)
def test_mistakes_are_answered_in_one_line(clicks: Path, arguments: list[str], message: str) -> None:
    result = run("evaluate", "--train", clicks, *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.output


def test_more_places_than_a_bundle_ranks_are_refused(tmp_path: Path) -> None:
    clicks = written(tmp_path / "many.tsv", items=200)
    bundle = fitted(clicks, tmp_path / "models", "v1", 0.1)
    result = run("evaluate", "--train", clicks, "--model", bundle, "--k", "150", "--baselines", "none")
    assert (result.exit_code, "--k 150: v1 ranks" in result.stderr) == (2, True)
    twice = run("evaluate", "--train", clicks, "--model", bundle, "--model", bundle, "--k", "5", "--baselines", "none")
    assert (twice.exit_code, "v1 is named twice" in twice.stderr) == (2, True)


def test_models_of_every_encoder_are_compared(clicks: Path, tmp_path: Path) -> None:
    told = {"gru4rec": SMALL, "stamp": [*SMALL, "--set=window=7"], "item-knn": []}
    for family, settings in told.items():
        files = ["--train", clicks, "--out", tmp_path, "--version", f"of-{family}", "--valid-fraction", "0.3"]
        result = run("fit", *files, "--no-baselines", "--quiet", f"--set=family={family}", *settings)
        assert result.exit_code == 0, result.output
    models = [argument for family in told for argument in ("--model", tmp_path / f"of-{family}")]
    result = run("evaluate", "--train", clicks, *models, "--baselines", "item-knn", "--valid-fraction", "0.3", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)["models"]
    assert list(found) == [*(f"of-{family}" for family in told), "item-knn"]
    assert found["of-item-knn"]["recall"]["20"] == pytest.approx(found["item-knn"]["recall"]["20"], abs=0.02)
