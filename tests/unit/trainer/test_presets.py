"""The presets as documentation that runs: every file loads, is complete, and is compared with the right figures."""

from pathlib import Path

import pytest

from trainer.errors import PresetError, TrainingSettingsError
from trainer.models.settings import Gru4RecSettings, TrainingSettings
from trainer.presets import Split, load_preset, preset_names, preset_text

LATER = ("rsc15", "retailrocket", "diginetica", "coveo", "rees46")
FIRST = [f"rsc15-2016-{loss}" for loss in ("top1", "bpr", "cross-entropy")]
OF_DATA = ("diginetica-timeframe", "yoochoose-1-4", "yoochoose-1-64", "yoochoose-daily")
"""Presets of a log as several papers prepare it, with figures of several models."""
OF_SETTINGS = sorted({*preset_names()} - {*OF_DATA})


def test_every_setting_that_was_published_has_a_preset() -> None:
    assert {*LATER, *FIRST} <= set(preset_names())


@pytest.mark.parametrize("name", OF_SETTINGS)
def test_a_preset_says_what_it_is_and_what_to_compare_it_with(name: str) -> None:
    preset = load_preset(name)
    assert preset.name == name
    assert preset.title
    assert preset.source
    assert preset.data.test_days is not None
    published = preset.published_for(preset.training)
    assert published is not None
    for figures in preset.published:
        assert set(figures.recall) == set(figures.mrr) >= {20}
        assert 0 < figures.mrr[20] < figures.recall[20] < 1
        assert sorted(figures.recall.values()) == list(figures.recall.values())
    # What a file leaves out would change with a default.
    needed = {"loss", "embedding", "hidden_size", "n_sample", "epochs", "batch_size", "learning_rate", "momentum"}
    assert needed | {"dropout_hidden"} <= set(preset.settings)
    training = preset.training.model_dump()
    if training["n_sample"]:
        assert {"sample_alpha", "dropout_input"} <= set(preset.settings)
    assert ("logq" in preset.settings) == (training["loss"] == "cross-entropy")


@pytest.mark.parametrize("name", OF_DATA)
def test_a_preset_of_data_has_figures_of_models_that_are_here(name: str) -> None:
    preset = load_preset(name)
    assert preset.title
    assert preset.source
    assert preset.differs
    assert preset.data.test_days is not None or preset.data.protocol == "transformers4rec"
    # No other setting: it has to go with every family.
    assert set(preset.settings) <= {"family", "memory"}
    for figures in preset.published:
        assert figures.model == preset.name_of(figures)
        assert 0 < figures.mrr.get(20, 0.1) < figures.ndcg.get(20, 0.2) or not figures.ndcg
        assert figures.ndcg.get(20, 0.0) < figures.recall[20] < 1
        told = [f"{setting}={value}" for setting, value in figures.settings.items()]
        # However the model is trained: its figures are found.
        assert preset.published_for(preset.with_changes([*told, "seed=3", "table_width=7"])) == figures
    names = [figures.model for figures in preset.published]
    assert len(set(names)) == len(names)


def test_figures_of_a_model_are_for_all_its_settings_but_those_named() -> None:
    papers = load_preset("yoochoose-daily")
    masked = papers.published_for(papers.with_changes(["architecture=bert", "hidden_size=32"]))
    assert masked is not None
    assert (masked.model, masked.ndcg) == ("BERT MLM", {20: 0.375})
    assert papers.published_for(papers.with_changes(["family=caser"])) is None
    split = load_preset("yoochoose-1-64").data
    assert (split.core, split.test_days, split.train_share) == (5, 1, 1 / 64)


@pytest.mark.parametrize("name", FIRST)
def test_the_first_papers_network_has_one_hot_items_and_the_batchs_negatives_alone(name: str) -> None:
    settings = Gru4RecSettings.parse(load_preset(name).settings)
    assert (settings.embedding, settings.n_sample, settings.logq, settings.dropout_input) == ("one-hot", 0, 0, 0)
    assert settings.activation == ("softmax" if settings.loss == "cross-entropy" else "tanh")


def test_changes_go_on_top_and_find_their_own_figures() -> None:
    preset = load_preset("rsc15-2016-top1")
    large = preset.with_changes(["hidden_size=1000", "seed=7", "engine=torch"])
    assert large == preset.training.model_copy(update={"hidden_size": 1000, "seed": 7, "engine": "torch"})
    published = preset.published_for(large)
    assert published is not None
    assert published.recall == {20: 0.6206}
    assert preset.published_for(preset.with_changes(["epochs=3"])) is None
    with pytest.raises(TrainingSettingsError, match="unknown training setting 'hidden'"):
        preset.with_changes(["hidden=3"])


def test_a_preset_of_ones_own_is_a_file(tmp_path: Path) -> None:
    settings = Gru4RecSettings.parse({"loss": "bpr-max", "learning_rate": 0.07, "deep_input": True})
    path = tmp_path / "mine.toml"
    text = preset_text('"Mine"', "a \\ b", settings, data=Split(core=5, test_days=2), comments=["Found by looking."])
    path.write_text(text)
    preset = load_preset(str(path))
    assert (preset.name, preset.title, preset.source) == ("mine", '"Mine"', "a \\ b")
    assert preset.training == settings
    assert preset.data == Split(core=5, test_days=2)
    assert text.startswith("# Found by looking.\n")
    assert preset.published == ()


def test_a_preset_of_several_families_is_a_file_too(tmp_path: Path) -> None:
    settings = TrainingSettings.parse({"family": "gru4rec+sr-gnn", "gru4rec.layers": 2, "sr_gnn.weight": 0.5})
    path = tmp_path / "mine.toml"
    path.write_text(preset_text("a", "b", settings, data=Split()))
    preset = load_preset(str(path))
    assert preset.training == settings
    changed = preset.with_changes(["gru4rec.layers=1"]).model_dump()
    assert (changed["gru4rec"]["layers"], changed["sr_gnn"]["weight"]) == (1, 0.5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("title = a", r"mine\.toml: not TOML: .*line 1"),
        (f"title = 0x{'f' * 5000}", r"mine\.toml: not TOML: an integer of more"),
        ('title = "a"\nsource = "b"\n', "mine.toml: settings: .*required"),
        ('title = "a"\nsource = "b"\nsize = 3\n[settings]\n', "mine.toml: size: .*not permitted"),
        ('title = "a"\nsource = "b"\n[settings]\nepochs = 0\n', "mine.toml: epochs=0"),
        ('title = "a"\nsource = "b"\n[settings]\n[data]\ncore = 0\n', "mine.toml: data.core"),
    ],
)
def test_a_wrong_file_is_named_with_the_place(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(PresetError, match=message):
        load_preset(str(path))


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    with pytest.raises(PresetError, match=r"no preset 'rsc16'; there are coveo, .*yoochoose"):
        load_preset("rsc16")
    with pytest.raises(PresetError, match=r"nowhere\.toml: cannot be read"):
        load_preset("nowhere.toml")
