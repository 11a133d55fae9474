import pytest
import torch

from trainer.models.gru4rec import initial_weights
from trainer.models.settings import TrainingSettings
from trainer.training.warm_start import fits, warm_start

SMALL = {"hidden_size": 3, "layers": 2}


@pytest.mark.parametrize("embedding", ["shared", "separate"])
def test_items_that_stay_keep_their_rows_and_new_ones_are_drawn(embedding: str) -> None:
    settings = TrainingSettings.parse(SMALL | {"embedding": embedding})
    old = initial_weights(3, settings, torch.Generator().manual_seed(5))
    old.output_bias.copy_(torch.tensor([1.0, 2.0, 3.0]))
    new = warm_start(old, ("a", "gone", "b"), ("new", "b", "a", "newer"), settings)
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
    old = initial_weights(3, TrainingSettings.parse(SMALL), torch.Generator())
    other = TrainingSettings.parse(SMALL | change)
    assert fits(old, TrainingSettings.parse(SMALL))
    assert not fits(old, other)
    with pytest.raises(ValueError, match="no start"):
        warm_start(old, ("a", "b", "c"), ("a",), other)


@pytest.mark.parametrize("change", [{"embedding": "one-hot"}, {"deep_input": True}])
def test_other_inputs_are_no_start_for_a_separate_embedding(change: dict[str, object]) -> None:
    separate = SMALL | {"embedding": "separate"}
    old = initial_weights(3, TrainingSettings.parse(separate), torch.Generator())
    assert fits(old, TrainingSettings.parse(separate | {"input_decay": 0.5}))
    assert not fits(old, TrainingSettings.parse(separate | change))


def test_no_item_may_stay() -> None:
    settings = TrainingSettings.parse(SMALL)
    new = warm_start(initial_weights(1, settings, torch.Generator()), ("a",), ("b", "c"), settings)
    assert new.items == 2
