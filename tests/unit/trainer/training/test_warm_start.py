import pytest
import torch

from tests.unit.trainer.networks import gru
from trainer.models.gru4rec import initial_weights
from trainer.models.settings import Gru4RecSettings, NetworkSettings
from trainer.training.networks import initial_network
from trainer.training.warm_start import fits, warm_start

SMALL = {"hidden_size": 3, "layers": 2}


@pytest.mark.parametrize("embedding", ["shared", "separate"])
def test_items_that_stay_keep_their_rows_and_new_ones_are_drawn(embedding: str) -> None:
    settings = Gru4RecSettings.parse(SMALL | {"embedding": embedding})
    old = initial_weights(3, settings, torch.Generator().manual_seed(5))
    old.output_bias.copy_(torch.tensor([1.0, 2.0, 3.0]))
    new = gru(warm_start(old, ("a", "gone", "b"), ("new", "b", "a", "newer"), settings))
    assert torch.equal(new.output[[2, 1]], old.output[[0, 2]])
    assert new.output_bias.tolist() == [0.0, 3.0, 1.0, 0.0]
    assert new.output[[0, 3]].abs().min() > 0
    assert not torch.equal(new.output[0], new.output[3])
    assert all(torch.equal(a.u, b.u) for a, b in zip(new.layers, old.layers, strict=True))
    if embedding == "separate":
        assert old.embedding is not None
        assert new.embedding is not None
        assert torch.equal(new.embedding[[2, 1]], old.embedding[[0, 2]])
    else:
        assert new.embedding is None


@pytest.mark.parametrize("change", [{"hidden_size": 4}, {"layers": 1}, {"embedding": "separate"}])
def test_another_architecture_is_no_start(change: dict[str, object]) -> None:
    old = initial_weights(3, Gru4RecSettings.parse(SMALL), torch.Generator())
    other = Gru4RecSettings.parse(SMALL | change)
    assert fits(old, Gru4RecSettings.parse(SMALL))
    assert not fits(old, other)
    with pytest.raises(ValueError, match="no start"):
        warm_start(old, ("a", "b", "c"), ("a",), other)


@pytest.mark.parametrize("change", [{"embedding": "one-hot"}, {"deep_input": True}])
def test_other_inputs_are_no_start_for_a_separate_embedding(change: dict[str, object]) -> None:
    separate = SMALL | {"embedding": "separate"}
    old = initial_weights(3, Gru4RecSettings.parse(separate), torch.Generator())
    assert fits(old, Gru4RecSettings.parse(separate | {"input_decay": 0.5}))
    assert not fits(old, Gru4RecSettings.parse(separate | change))


def test_no_item_may_stay() -> None:
    settings = Gru4RecSettings.parse(SMALL)
    new = warm_start(initial_weights(1, settings, torch.Generator()), ("a",), ("b", "c"), settings)
    assert len(new.output) == 2


@pytest.mark.parametrize("embedding", ["shared", "separate", "one-hot"])
def test_of_another_family_only_the_output_rows_are_taken(embedding: str) -> None:
    """Not the biases: a family that learns none would keep them as they are for ever."""
    old = initial_weights(2, Gru4RecSettings.parse({"hidden_size": 4, "embedding": embedding}), torch.Generator())
    old.output_bias.copy_(torch.tensor([1.0, 2.0]))
    settings = NetworkSettings.parse({"family": "stamp", "hidden_size": 4})
    assert fits(old, settings)
    new = warm_start(old, ("a", "b"), ("b", "c"), settings)
    assert torch.equal(new.output[0], old.output[1])
    assert not new.output_bias.any()
    fresh = initial_network(2, settings, torch.Generator().manual_seed(settings.seed ^ 0x5EED)).tensors()
    assert all(torch.equal(of, fresh[name]) for name, of in new.tensors().items() if name.startswith("encoder."))
    assert not fits(old, NetworkSettings.parse({"family": "stamp", "hidden_size": 5}))
