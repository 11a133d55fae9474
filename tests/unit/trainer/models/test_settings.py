import pytest

from trainer.errors import TrainingSettingsError
from trainer.models.settings import Gru4RecSettings, TrainingSettings


def test_assignments_are_converted_and_a_later_one_wins() -> None:
    settings = Gru4RecSettings.from_assignments(["hidden_size=64", "learning_rate=.05", "epochs=1", "epochs = 3"])
    assert (settings.hidden_size, settings.learning_rate, settings.epochs) == (64, 0.05, 3)


@pytest.mark.parametrize(
    ("name", "value", "canonical"),
    [
        ("loss", "xe", "cross-entropy"),
        ("loss", "cross_entropy", "cross-entropy"),
        ("loss", "BPR-max", "bpr-max"),
        ("loss", "TOP1_max", "top1-max"),
        ("embedding", "constrained", "shared"),
        ("embedding", "one_hot", "one-hot"),
    ],
)
def test_names_in_use_elsewhere_are_known(name: str, value: str, canonical: str) -> None:
    assert getattr(Gru4RecSettings.from_assignments([f"{name}={value}"]), name) == canonical


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("learning_rat=1", "unknown training setting 'learning_rat' .*learning_rate"),
        ("epochs", "not of the form name=value"),
        ("epochs=many", "epochs=many: .*integer"),
        ("epochs=0", "epochs=0: .*greater than or equal to 1"),
        ("dropout_hidden=1", "dropout_hidden=1: .*less than 1"),
        ("learning_rate=nan", "learning_rate=nan: .*finite"),
        ("loss=mse", "loss=mse: .*'cross-entropy'.*'bpr-max'"),
        ("target_weights=purchase", "'purchase' is not of the form type=weight"),
        ("target_weights=cart=2,purchase=nan", "'purchase=nan' is not of the form type=weight, with a weight from 0"),
        ("target_weights=cart=2,cart=3", "the type cart is named twice"),
    ],
)
def test_a_mistake_is_named(assignment: str, message: str) -> None:
    with pytest.raises(TrainingSettingsError, match=message):
        Gru4RecSettings.from_assignments([assignment])


def test_settings_that_do_not_go_together_are_refused() -> None:
    with pytest.raises(TrainingSettingsError, match="no negatives"):
        Gru4RecSettings.parse({"batch_size": 1, "n_sample": 0})
    with pytest.raises(TrainingSettingsError, match="logq"):
        Gru4RecSettings.parse({"loss": "bpr-max", "logq": 0.5})
    with pytest.raises(TrainingSettingsError, match=r"layers=0 .* one-hot has none"):
        Gru4RecSettings.parse({"layers": 0, "embedding": "one-hot"})


@pytest.mark.parametrize(
    ("chosen", "rows"),
    [
        ({"layers": 8, "input_decay": 0.5}, 9),
        ({"layers": 6, "input_decay": 0.5, "embedding": "one-hot"}, 9),
    ],
)
def test_a_state_that_no_bundle_can_have_is_refused(chosen: dict[str, object], rows: int) -> None:
    with pytest.raises(TrainingSettingsError, match=f"state of {rows} rows, and a bundle has 8 at most: lower layers"):
        Gru4RecSettings.parse(chosen)
    Gru4RecSettings.parse({**chosen, "layers": int(str(chosen["layers"])) - 1})


@pytest.mark.parametrize(
    ("loss", "activation"),
    [("cross-entropy", "softmax"), ("bpr-max", "elu"), ("bpr", "linear"), ("top1", "linear"), ("top1-max", "linear")],
)
def test_each_loss_has_its_usual_activation(loss: str, activation: str) -> None:
    assert Gru4RecSettings.parse({"loss": loss}).activation == activation


@pytest.mark.parametrize(("loss", "activation"), [("cross-entropy", "tanh"), ("bpr", "softmax")])
def test_softmax_belongs_to_cross_entropy(loss: str, activation: str) -> None:
    with pytest.raises(TrainingSettingsError, match=f"activation={activation} does not go with loss={loss}"):
        Gru4RecSettings.parse({"loss": loss, "activation": activation})


def test_a_one_hot_input_has_no_embedding_for_deeper_layers() -> None:
    with pytest.raises(TrainingSettingsError, match="deep_input needs an embedding"):
        Gru4RecSettings.parse({"embedding": "one-hot", "layers": 2, "deep_input": True})


def test_logq_is_for_cross_entropy_alone() -> None:
    assert Gru4RecSettings().logq == 1.0
    assert Gru4RecSettings.parse({"loss": "bpr-max"}).logq == 0.0


def test_settings_survive_their_own_record() -> None:
    for loss in ("cross-entropy", "bpr", "top1", "bpr-max", "top1-max"):
        settings = Gru4RecSettings.parse({"loss": loss, "elu": 1})
        assert Gru4RecSettings.parse(settings.model_dump()) == settings


def test_weights_of_targets_are_written_in_one_way() -> None:
    settings = Gru4RecSettings.from_assignments(["target_weights= purchase=5.0, cart = 2.5,"])
    assert settings.target_weights == "cart=2.5,purchase=5"
    assert settings.weight_of_type == {"cart": 2.5, "purchase": 5.0}
    assert Gru4RecSettings().weight_of_type == {}


def test_a_record_holds_what_older_trainers_do_not_know_only_where_it_is_set() -> None:
    """They refuse settings that they do not know, and with them a bundle."""
    for family in ("gru4rec", "sasrec", "gru4rec+sasrec"):
        settings = TrainingSettings.parse({"family": family})
        assert "target_weights" not in str(settings.record())
        assert "prune" not in str(settings.record())
        assert TrainingSettings.parse(settings.record()) == settings
        weighed = TrainingSettings.parse({"family": family, "target_weights": "purchase=5", "prune": True})
        assert TrainingSettings.parse(weighed.record()) == weighed
        assert weighed.record()["target_weights"] == "purchase=5"
        assert weighed.record()["prune"] is True


@pytest.mark.parametrize("family", ["rbm", "pop", "stan", "bpr-mf"])
def test_families_that_predict_no_click_refuse_weights_of_targets(family: str) -> None:
    with pytest.raises(TrainingSettingsError, match=r"target_weights: .* leave it out"):
        TrainingSettings.parse({"family": family, "target_weights": "purchase=5"})
