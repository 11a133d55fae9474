import pytest

from tests.unit.trainer.builders import random_sessions
from trainer.errors import TrainingSettingsError
from trainer.evaluation.baselines import BASELINES, BaselineSpec, baseline_of, options_of, parse_baselines
from trainer.evaluation.protocol import evaluate
from trainer.models.counting import LONGEST, CountingSettings


def test_names_and_options() -> None:
    specs = parse_baselines("stan:neighbours=200,days=5, pop,vs-knn:idf=false,weighting=division,pop")
    assert specs == (
        BaselineSpec("stan", {"neighbours": 200, "days": 5.0}),
        BaselineSpec("pop"),
        BaselineSpec("vs-knn", {"idf": False, "weighting": "division"}),
    )
    assert [str(spec) for spec in specs] == [
        "stan:neighbours=200,days=5.0",
        "pop",
        "vs-knn:idf=false,weighting=division",
    ]
    assert parse_baselines(",".join(map(str, specs))) == specs


def test_all_and_none() -> None:
    assert [spec.name for spec in parse_baselines("all")] == list(BASELINES)
    assert parse_baselines("none") == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("best", "no best; there are pop"),
        ("stan:k=5", "stan has no option k; it has neighbours, newest"),
        ("pop:k=5", "pop has no option k; it has window"),
        ("days=5,stan", "'days=5' belongs to no baseline"),
        ("stan:days", "'days' is not of the form"),
        ("stan:neighbours=2.5", "stan: neighbours=2.5: .* valid integer"),
        ("stan:days=soon", "stan: days=soon: .* valid number"),
        ("stan:neighbours=0", "stan: neighbours=0: .* greater than or equal to 1"),
        ("stan:days=nan", "days=nan: .* finite number"),
        ("stan:days=inf", "days=inf: .* finite number"),
        ("vs-knn:idf=perhaps", "vs-knn: idf=perhaps: .* valid boolean"),
        ("vs-knn:weighting=odd", "weighting=odd: .* 'linear', 'quadratic'"),
    ],
)
def test_a_mistake_is_named(text: str, message: str) -> None:
    with pytest.raises(TrainingSettingsError, match=message):
        parse_baselines(text)


def test_options_reach_the_baseline_and_name_it() -> None:
    sessions = random_sessions(60, items=20, seed=3)
    found = {}
    for text in ("vs-knn", "vs-knn:neighbours=1", "vs-knn:weighting=same", "item-knn", "item-knn:neighbours=1"):
        (spec,) = parse_baselines(text)
        baseline = spec.build(sessions)
        assert baseline.name == text
        found[text] = evaluate(baseline, random_sessions(30, items=20, seed=4), ks=(5,)).mrr[5]
    assert len(set(found.values())) == len(found)


@pytest.mark.parametrize("name", list(BASELINES))
def test_every_option_is_of_a_type_that_can_be_given(name: str) -> None:
    for option, default in options_of(name).items():
        text = str(default).lower() if isinstance(default, bool) else str(default)
        assert parse_baselines(f"{name}:{option}={text}") == (BaselineSpec(name, {option: default}),)


@pytest.mark.parametrize("name", list(BASELINES))
def test_window_and_seed_are_options_of_every_baseline(name: str) -> None:
    assert parse_baselines(f"{name}:window=5,seed=7") == (BaselineSpec(name, {"window": 5, "seed": 7}),)


@pytest.mark.parametrize("name", list(BASELINES))
def test_the_baseline_of_a_model_is_told_all_that_the_model_was(name: str) -> None:
    cases: list[dict[str, int]] = [{}, {"window": LONGEST}, {"window": 5, "seed": 7}]
    for told in cases:
        settings = CountingSettings.parse({"family": name, **told})
        spec = baseline_of(settings)
        assert parse_baselines(str(spec)) == (spec,)
        assert CountingSettings.parse({"family": name, "window": LONGEST, **spec.options}) == settings
