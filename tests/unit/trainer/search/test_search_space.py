import math

import optuna
import pytest

from trainer.errors import TrainingSettingsError
from trainer.models.registry import FAMILIES
from trainer.models.settings import Gru4RecSettings, TrainingSettings
from trainer.search.search_space import Choice, Range, changed, model_space, parse_dimensions
from trainer.search.searches import model_search


def test_ranges_and_choices_as_texts() -> None:
    texts = ["hidden_size=64..512:32", "learning_rate=0.01..0.3:log", "dropout_input=0..0.5:0.05", "layers=1..3"]
    texts += ["loss=cross-entropy|bpr-max", "deep_input=true|false", "elu=0|0.5"]
    found = parse_dimensions(texts)
    assert found == (
        Range("hidden_size", 64, 512, 32),
        Range("learning_rate", 0.01, 0.3, log=True),
        Range("dropout_input", 0, 0.5, 0.05),
        Range("layers", 1, 3),
        Choice("loss", ("cross-entropy", "bpr-max")),
        Choice("deep_input", (True, False)),
        Choice("elu", (0, 0.5)),
    )
    assert [str(one) for one in found] == texts


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("layers", "not of the form name=value"),
        ("layers=a..b", "is not a range of numbers"),
        ("layers=3..1", "a range goes up"),
        ("layers=1..1", "a range goes up"),
        ("learning_rate=0..1:log", "begins above 0"),
        ("layers=1..3:lin", "'lin' is neither log nor a step"),
        ("layers=1..3:0", "'0' is neither log nor a step"),
        ("layers=1..3:0.5", "whole numbers have whole steps"),
    ],
)
def test_a_wrong_range_is_named(text: str, message: str) -> None:
    with pytest.raises(TrainingSettingsError, match=message):
        parse_dimensions([text])


@pytest.mark.parametrize(
    ("dimension", "held", "not_held"),
    [
        (Range("a", 32, 256, 4), [32, 100, 256], [31, 33, 260, "32", True]),
        (Range("a", 0.0, 0.6, 0.05), [0, 0.1, 0.35, 0.6], [0.12, -0.05, 0.65, None]),
        (Range("a", 0.01, 0.3, log=True), [0.01, 0.123], [0.009]),
        (Choice("a", ("x", False)), ["x", False], ["y", None]),
    ],
)
def test_what_a_search_may_come_upon(dimension: Range | Choice, held: list[object], not_held: list[object]) -> None:
    assert [dimension.holds(value) for value in held] == [True] * len(held)
    assert [dimension.holds(value) for value in not_held] == [False] * len(not_held)


@pytest.mark.parametrize(
    "dimension", [Range("a", 32, 256, 4), Range("a", 0.0, 0.6, 0.05), Range("a", 0.01, 0.3, log=True), Range("a", 1, 9)]
)
def test_draws_lie_in_the_range_and_are_short_numbers(dimension: Range) -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    for _ in range(30):
        value = dimension.suggest(study.ask())
        assert isinstance(value, int | float)
        assert dimension.holds(value) or math.isclose(value, dimension.low, rel_tol=0.01)
        assert len(str(value)) <= 7
        assert isinstance(value, int) == dimension.whole


def test_what_is_set_is_not_searched_and_what_is_asked_for_replaces_the_usual() -> None:
    space = model_space(Gru4RecSettings(), {"bpr-max"})
    own = Range("momentum", 0.1, 0.9)
    found = {one.name: one for one in changed(space, {"batch_size"}, [own, Range("layers", 1, 2)])}
    assert "batch_size" not in found
    assert found["momentum"] is own
    assert {"layers", "bpreg", "sample_alpha"} <= found.keys()
    with pytest.raises(TrainingSettingsError, match="layers: is set and searched"):
        changed(space, {"layers"}, [Range("layers", 1, 2)])


def test_the_spaces_follow_the_loss_and_the_samples() -> None:
    names = {one.name for one in model_space(Gru4RecSettings(n_sample=0), {"cross-entropy"})}
    assert not names & {"bpreg", "elu", "sample_alpha"}
    assert names < {one.name for one in model_space(Gru4RecSettings(), {"bpr-max", "cross-entropy"})}


def test_every_usual_value_is_one_that_the_setting_can_have() -> None:
    for loss in ("cross-entropy", "bpr-max", "top1"):
        search = model_search({"loss": loss}, ["n_sample=64"], [], seed=1)
        assert search.fixed == {"loss": loss, "n_sample": "64"}
        defaults = Gru4RecSettings.parse({"loss": loss}).model_dump()
        assert search.start == defaults | {"n_sample": 64}


@pytest.mark.parametrize(
    ("ranges", "message"),
    [
        (["units=1..3"], "unknown training setting 'units'"),
        (["dropout_input=0..2"], "dropout_input=2"),
        (["embedding=shared|none"], "embedding=none"),
    ],
)
def test_a_range_that_a_setting_cannot_have_is_refused_before_the_search(ranges: list[str], message: str) -> None:
    with pytest.raises(TrainingSettingsError, match=message):
        model_search({}, [], ranges, seed=1)


def test_losses_can_be_searched_each_with_its_own_defaults() -> None:
    search = model_search({"logq": 1}, ["hidden_size=8"], ["loss=cross-entropy|bpr-max|top1"], seed=1)
    assert "bpreg" in {one.name for one in search.dimensions}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_a_space_whose_ends_it_can_have(family: str) -> None:
    """Three of those that count have nothing to tune."""
    given = [f"family={family}"]
    if family in {"pop", "s-pop", "markov-chain"}:
        with pytest.raises(TrainingSettingsError, match=f"family={family}: has nothing to tune"):
            model_search({}, given, [], seed=1)
        return
    search = model_search({}, given, [], seed=1)  # it tries every end
    assert search.fixed == {"family": family}
    # The defaults are the first trial: they lie in every range.
    assert [one.name for one in search.dimensions if not one.holds(search.start[one.name])] == []
    for name in {one.name for one in search.dimensions} & {"learning_rate", "dropout", "neighbours", "steps"}:
        for value in next(one for one in search.dimensions if one.name == name).ends:
            assert TrainingSettings.parse({"family": family, name: value}).model_dump()[name] == value


def test_what_has_no_effect_is_not_searched() -> None:
    causal, masked = (
        {one.name for one in model_search({}, ["family=transformer", f"objective={by}"], [], seed=1).dimensions}
        for by in ("clm", "mlm")
    )
    assert masked - causal == {"mask_rate", "last_rate"}


def test_a_family_is_not_searched() -> None:
    with pytest.raises(TrainingSettingsError, match="--search family"):
        model_search({}, [], ["family=stamp|narm"], seed=1)


def test_the_epochs_of_a_plan_are_those_of_every_trial() -> None:
    search = model_search({}, ["family=stamp", "epochs=7"], [], seed=1)
    assert (search.epochs_planned, search.epochs) == (True, 7)
    assert model_search({}, ["family=stamp"], ["epochs=5..9"], seed=1).epochs is None
    assert not model_search({}, [], [], seed=1).epochs_planned


def test_each_of_several_families_has_the_space_that_it_has_alone() -> None:
    search = model_search({}, ["family=gru4rec+sr-gnn", "sr-gnn.dropout=0.1"], ["gru4rec.layers=1|2"], seed=1)
    names = {one.name for one in search.dimensions}
    assert {"gru4rec.momentum", "gru4rec.layers", "sr_gnn.initial_spread", "sr_gnn.sample_alpha"} <= names
    assert "sr_gnn.dropout" not in names
    assert [one.name for one in search.dimensions if not one.holds(search.start[one.name])] == []
    assert (search.epochs_planned, search.epochs) == (True, None)
    drawn = TrainingSettings.parse(search.values({"gru4rec.layers": 2})).model_dump()
    assert (drawn["gru4rec"]["layers"], drawn["sr_gnn"]["dropout"]) == (2, 0.1)
