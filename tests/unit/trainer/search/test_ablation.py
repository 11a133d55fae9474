"""Ablations: what each row changes, and the command that runs them."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from tests.unit.trainer.builders import random_sessions
from trainer.__main__ import app
from trainer.errors import TrainingSettingsError
from trainer.models.registry import FAMILIES, settings_class
from trainer.models.settings import Gru4RecSettings, NetworkSettings, TrainingSettings, WindowSettings
from trainer.presets import load_preset
from trainer.search.ablation import BASE, ROWS, planned, rows_of

SMALL = [f"--set={s}" for s in ("hidden_size=8", "n_sample=10", "epochs=1", "batch_size=8")]


def settings_of(base: dict[str, object], name: str) -> TrainingSettings:
    return {one.row.name: one.settings for one in planned(base)}[name]


def differences(base: dict[str, object], name: str) -> dict[str, object]:
    usual = Gru4RecSettings.parse(base).model_dump()
    return {key: value for key, value in settings_of(base, name).model_dump().items() if value != usual[key]}


def test_every_row_changes_what_it_says_and_nothing_else() -> None:
    base: dict[str, object] = {"hidden_size": 64, "dropout_input": 0.1, "embedding_l2": 0.01, "logq": 0.5}
    assert differences(base, "no-gru") == {"layers": 0}
    assert differences(base, "no-memory") == {"memory": ()}
    assert differences(base, "memory-repeat") == {"memory": ("repeat",)}
    assert differences(base, "no-regularisation") == {"dropout_input": 0, "dropout_hidden": 0, "embedding_l2": 0}
    assert differences(base, "units-1000") == {"hidden_size": 1000}
    # Another loss does not take over what only the base's loss can have.
    assert differences(base, "loss-bpr-max") == {"loss": "bpr-max", "activation": "elu", "logq": 0}
    assert differences(base, "loss-top1") == {"loss": "top1", "activation": "linear", "logq": 0}


def test_rows_that_change_nothing_are_left_out_and_the_base_is_the_first() -> None:
    names = [one.row.name for one in planned({})]
    assert names == [row.name for row in ROWS if row.name not in {"loss-cross-entropy", "one-member", "units-100"}]
    assert names[0] == BASE
    assert "loss-cross-entropy" in [one.row.name for one in planned({"loss": "bpr"})]


def test_a_row_that_the_settings_cannot_have_is_left_out_and_told_to_whoever_asks_for_it() -> None:
    base: dict[str, object] = {"members": 5, "hidden_size": 64}
    names = [one.row.name for one in planned({"hidden_size": 64})]
    assert "units-1000" in names
    assert [one.row.name for one in planned(base)] == [
        name for row in ROWS if (name := row.name) in {*names, "one-member"} - {"units-1000"}
    ]
    with pytest.raises(TrainingSettingsError, match="members=5 of hidden_size=1000"):
        planned(base, ["no-gru", "units-1000"])


@pytest.mark.parametrize("name", ["rsc15-2016-top1", "retailrocket", "rees46"])
def test_every_preset_can_be_ablated(name: str) -> None:
    preset = load_preset(name)
    rows = {one.row.name: one.settings for one in planned(dict(preset.settings))}
    assert rows[BASE] == preset.training
    if preset.settings.get("embedding") == "one-hot":
        assert rows["no-gru"].model_dump()["embedding"] == "separate"


def test_some_of_the_rows() -> None:
    assert [one.row.name for one in planned({}, ["no-gru", "units-1000"])] == [BASE, "no-gru", "units-1000"]
    with pytest.raises(TrainingSettingsError, match="--only: no gru; there are base, no-memory"):
        planned({}, ["gru"])
    with pytest.raises(TrainingSettingsError, match="change nothing"):
        planned({}, ["units-100"])


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_rows_that_it_can_have(family: str) -> None:
    base: dict[str, object] = {"family": family}
    if is_network(family):
        base |= {"memory": "all", "members": 2}
    if issubclass(settings_class(family), WindowSettings):
        base |= {"weight_decay": 0.01}  # some have no other regularisation by default
    names = [one.row.name for one in planned(base)]
    own = [row.name for row in settings_class(family).ablations]
    assert set(own) - set(names) <= ({"two-clicks", "two-clicks-no-memory"} if family == "caser" else set())
    assert names[0] == BASE
    assert {"memory-repeat", *(["no-regularisation", "one-member"] if is_network(family) else [])} <= set(names)
    assert ("loss-bpr" in names) == (is_network(family) and family != "rbm")
    assert len(names) == len(set(names))
    for one in planned(base):
        assert one.settings.family == family
    with pytest.raises(TrainingSettingsError, match="--only: no gru; there are base, no-memory"):
        planned(base, ["gru"])
    assert len({row.name for row in rows_of(settings_class(family))}) == len(rows_of(settings_class(family)))


def is_network(family: str) -> bool:
    return issubclass(settings_class(family), NetworkSettings)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["ablate", *map(str, arguments)])


def written(path: Path, seed: int) -> Path:
    sessions = random_sessions(100, items=30, seed=seed)
    of = sessions.session_of_click().tolist()
    rows = [f"{s}\titem{i}" for s, i in zip(of, sessions.items.tolist(), strict=True)]
    path.write_text("\n".join(["session_id\titem_id", *rows]) + "\n")
    return path


def test_rows_are_compared_with_the_base(tmp_path: Path) -> None:
    files = ["--train", written(tmp_path / "a.tsv", 1), "--test", written(tmp_path / "b.tsv", 2)]
    out, plot = tmp_path / "new" / "report.json", tmp_path / "new" / "plot.svg"
    arguments = [*files, *SMALL, "--only", "no-gru", "--only", "units-100", "--checkpoints", tmp_path / "runs"]
    result = run(*arguments, "--out", out, "--plot", plot, "--resamples", 100)
    assert result.exit_code == 0, result.output
    report = json.loads(out.read_text())
    assert list(report["models"]) == ["base", "no-gru", "units-100"]
    assert report["first"] == "base"
    row = report["models"]["no-gru"]
    assert (row["changes"], row["settings"]["layers"], len(row["losses"])) == ({"layers": 0}, 0, 1)
    lead = row["against_first"]["recall@20"]["value"]
    assert lead == pytest.approx(row["recall"]["20"] - report["models"]["base"]["recall"]["20"])
    assert all(name in result.stdout for name in report["models"])
    assert "</svg>" in plot.read_text()
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {
        "base.safetensors",
        "no-gru.safetensors",
        "units-100.safetensors",
    }
    again = json.loads(run(*arguments, "--json", "--resamples", 100).stdout)
    assert again["models"] == {
        name: {**of, "transitions_per_second": again["models"][name]["transitions_per_second"]}
        for name, of in report["models"].items()
    }


@pytest.mark.parametrize(
    ("family", "row", "told"), [("stamp", "no-regularisation", SMALL), ("item-knn", "memory-repeat", [])]
)
def test_another_family_is_compared_with_itself(tmp_path: Path, family: str, row: str, told: list[str]) -> None:
    files = ["--train", written(tmp_path / "a.tsv", 1), "--test", written(tmp_path / "b.tsv", 2)]
    arguments = [*files, f"--set=family={family}", *(["--set=dropout=0.5"] if told else []), *told, "--only", row]
    result = run(*arguments, "--json", "--resamples", 100, "--checkpoints", tmp_path / "runs")
    assert result.exit_code == 0, result.output
    models = json.loads(result.stdout)["models"]
    assert list(models) == ["base", row]
    assert {of["settings"]["family"] for of in models.values()} == {family}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--only", "gru"], "--only: no gru"), (["--set", "epochs=0"], "epochs=0"), (["--plot", "a.bmp"], "--plot a.bmp")],
)
def test_mistakes_are_answered_in_one_line(tmp_path: Path, arguments: list[str], message: str) -> None:
    result = run("--train", written(tmp_path / "a.tsv", 1), *arguments)
    assert (result.exit_code, message in result.stderr) == (2, True), result.output
