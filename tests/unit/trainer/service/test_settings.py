"""The table [trainer]: durations, what does not fit together, and that the documentation names every setting."""

import re
from pathlib import Path
from typing import Any

import pytest

from schemas.config.duration import parse_duration
from schemas.config.settings import load_settings
from schemas.errors import SettingsError
from trainer.service.settings import TrainerRoot, TrainerSettings

PAGE = Path(__file__).resolve().parents[4] / "docs" / "retraining.md"


def load(**environ: str) -> TrainerSettings:
    variables = {f"NEXTCLICK_TRAINER__{name}": value for name, value in environ.items()}
    return load_settings(TrainerRoot, config=None, environ=variables).trainer


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("90s", 90), ("15m", 900), ("1h", 3600), ("1.5 h", 5400), ("30d", 2_592_000), ("250ms", 0.25)],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds
    assert load(EVERY=text).every == seconds


@pytest.mark.parametrize("text", ["1 week", "h", "-1h", "1h30m", "1e3"])
def test_what_is_no_duration_is_told_with_an_example(text: str) -> None:
    with pytest.raises(SettingsError, match="is no duration; write a number and a unit"):
        load(EVERY=text)


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"EVERY": "0s"}, "greater than 0"),
        ({"LOG_KEEP": "1d", "WINDOW": "2d"}, "log_keep is shorter than window"),
        ({"LOG_KEEP": "1d", "WINDOW": "0"}, "log_keep is shorter than window"),
        ({"GATE_K": "30"}, "gate_k is 30, and a model ranks training.list_length = 30 items"),
        ({"GATE_K": "20", "TRAINING__LIST_LENGTH": "20"}, "raise that, or lower gate_k"),
        ({"TRAINING__LAYERS": "8", "TRAINING__INPUT_DECAY": "0.5"}, "state of 9 rows"),
        ({"BASELINES": "[]"}, "gate_beats names pop, not among baselines"),
        ({"BASELINES": '["pop", "knn"]'}, "item-knn"),
        ({"MODEL_ALIAS": "../x"}, "pattern"),
        ({"COLLECT_GROUP": "nextclick"}, "trainer.collect_group is 'nextclick', the group of the workers"),
        ({"TRAINING__TARGET_WEIGHTS": "purchase=-1"}, "'purchase=-1' is not of the form type=weight"),
        ({"TRAINING__TARGET_WEIGHTS": "purchase=5,purchase=6"}, "the type purchase is named twice"),
        ({"DEVICE": "gpu"}, "pattern"),
        ({"TRAINING__EPOCHS": "0"}, "greater than or equal to 1"),
        ({"TRAINING__EPOCH": "5"}, "did you mean NEXTCLICK_TRAINER__TRAINING__EPOCHS"),
    ],
)
def test_what_does_not_fit_refuses_to_start(environ: dict[str, str], message: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(message)):
        load(**environ)


def test_a_weight_for_a_type_that_does_not_move_sessions_on_refuses_to_start() -> None:
    weights = {"NEXTCLICK_TRAINER__TRAINING__TARGET_WEIGHTS": "purchase=5,impression=0"}
    moving = {"NEXTCLICK_CLICKS__ADVANCE_ON": '["view", "cart"]'}
    with pytest.raises(SettingsError, match=r"target_weights names purchase, and clicks\.advance_on does not"):
        load_settings(TrainerRoot, config=None, environ=weights | moving)
    both = load_settings(
        TrainerRoot, config=None, environ=weights | {"NEXTCLICK_CLICKS__ADVANCE_ON": '["view", "purchase"]'}
    )
    assert both.clicks.moving == frozenset({"view", "purchase"})
    assert load_settings(TrainerRoot, config=None, environ=weights).clicks.moving is None


def test_metrics_of_longer_lists_are_a_matter_of_settings() -> None:
    settings = load(GATE_K="100", TRAINING__LIST_LENGTH="101")
    assert (settings.gate_k, settings.training.list_length) == (100, 101)


def test_a_loop_without_baselines_is_possible() -> None:
    settings = load(BASELINES="[]", GATE_BEATS="[]")
    assert settings.baselines == settings.gate_beats == ()


def test_the_documentation_has_every_setting_with_its_default() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| `?([^|`]*)`? \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE))
    fields = TrainerSettings.model_fields
    assert rows.keys() == fields.keys()
    for name, field in fields.items():
        if name != "training":
            assert same(name, rows[name], field.default), name


def same(name: str, documented: str, default: Any) -> bool:
    """Whether a cell, read as an environment variable would be, is the default."""
    if documented == "not set":
        return default in (None, "")
    if isinstance(default, tuple):
        return [one for one in documented.strip("[]").split(", ") if one] == list(default)
    read = load(**{name.upper(): documented}) if name not in ("baselines", "gate_beats") else None
    return read is not None and getattr(read, name) == default
