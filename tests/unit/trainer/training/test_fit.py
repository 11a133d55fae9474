import numpy as np
import pytest
import torch
from torch import Tensor

from tests.unit.trainer import reference
from tests.unit.trainer.builders import random_sessions, sessions_of
from tests.unit.trainer.networks import gru
from trainer.data.batches import schedule
from trainer.errors import TrainingDivergedError
from trainer.evaluation.protocol import NetworkScorer, evaluate
from trainer.models.base import Network
from trainer.models.gru4rec import initial_weights
from trainer.models.settings import Gru4RecSettings
from trainer.training.dropout import keys, mask
from trainer.training.early_stopping import Epoch
from trainer.training.fit import fit
from trainer.training.sampling import NegativeSampler

# By torch: the compiled steps are held equal to these in test_compiled.py.
SMALL = {"engine": "torch", "hidden_size": 8, "batch_size": 4, "n_sample": 6, "epochs": 2, "dropout_hidden": 0}


def same_bits(a: Network, b: Network) -> bool:
    return all(torch.equal(t, b.tensors()[name]) for name, t in a.tensors().items())


LOSSES = ["cross-entropy", "bpr-max", "top1"]
TABLES = [("shared", 0.0), ("shared", 0.02), ("separate", 0.02), ("one-hot", 0)]
OPTIMIZERS = [("adagrad", 0.0), ("adagrad", 0.3), ("sgd", 0.3)]
PAIRS = [
    (loss, *tables, *OPTIMIZERS[(i + j) % len(OPTIMIZERS)])
    for i, loss in enumerate(LOSSES)
    for j, tables in enumerate(TABLES)
]
"""Each loss with each kind of tables, and either with each optimizer."""


@pytest.mark.parametrize(("loss", "embedding", "embedding_l2", "optimizer", "momentum"), PAIRS)
def test_an_epoch_is_that_of_the_papers(
    loss: str, embedding: str, embedding_l2: float, optimizer: str, momentum: float
) -> None:
    """The whole fit against a plain one: autograd, dense gradients, the state zeroed at a session's start only."""
    chosen = {"loss": loss, "embedding": embedding, "optimizer": optimizer, "momentum": momentum, "layers": 2}
    chosen |= {"embedding_l2": embedding_l2, "input_decay": 0.5 if embedding_l2 else 0.0, "averaging": 0}
    settings = Gru4RecSettings.parse(SMALL | chosen)
    sessions = random_sessions(13, items=15, seed=4)
    found = fit(sessions, settings)

    leaves = reference.double(initial_weights(15, settings, torch.Generator().manual_seed(settings.seed)))
    state = {name: (torch.zeros_like(t), torch.zeros_like(t)) for name, t in leaves.tensors().items()}
    sampler = NegativeSampler(
        sessions.support(), n_sample=settings.n_sample, alpha=settings.sample_alpha, seed=settings.seed
    )
    items, plan = torch.from_numpy(sessions.items), schedule(sessions, settings.batch_size)
    tables = {"output", "embedding"}
    for epoch in range(settings.epochs):
        hidden = torch.zeros(gru(found.network).state_rows, 4, 8, dtype=torch.float64)
        total = 0.0
        for step, n in enumerate(plan.alive.tolist()):
            at = torch.from_numpy(plan.position[step, :n])
            inputs, targets = items[at], items[at + 1]
            samples = torch.from_numpy(sampler.draw_steps(1)[0])
            hidden = hidden[:, :n].clone()
            hidden[:, torch.from_numpy(plan.fresh[step, :n])] = 0
            value, hidden = reference.loss(
                leaves,
                settings,
                inputs=inputs,
                targets=targets,
                samples=samples,
                hidden=hidden,
                support=torch.from_numpy(sessions.support()),
            )
            hidden = hidden.detach()
            touched = {"output": torch.cat([targets, samples]), "output_bias": torch.cat([targets, samples])}
            input_table = "output" if embedding == "shared" else "embedding"
            touched[input_table] = torch.cat([touched.get(input_table, inputs), inputs])
            # Each item row that the step touches once, and no bias.
            penalty = sum(
                (leaves.tensors()[name][torch.unique(touched[name])] ** 2).sum() for name in (tables & touched.keys())
            )
            whole = value / settings.batch_size + settings.embedding_l2 / 2 * penalty
            learned = {name: leaf for name, leaf in leaves.tensors().items() if name != "input_decay"}
            gradients = torch.autograd.grad(whole, list(learned.values()))
            with torch.no_grad():
                for (name, weight), gradient in zip(learned.items(), gradients, strict=True):
                    update(weight, gradient, state[name], settings, touched.get(name))
            total += float(value.detach())
        assert found.epochs[epoch].loss == pytest.approx(total / plan.transitions, rel=1e-4)
    for name, weight in found.network.tensors().items():
        torch.testing.assert_close(weight.double(), leaves.tensors()[name].detach(), rtol=2e-3, atol=2e-4)


def update(
    weight: Tensor, gradient: Tensor, state: tuple[Tensor, Tensor], settings: Gru4RecSettings, touched: Tensor | None
) -> None:
    a, v = state
    rows = torch.arange(len(weight)) if touched is None else torch.unique(touched)
    a[rows] += gradient[rows] ** 2
    scale = torch.sqrt(a[rows] + 1e-6) if settings.optimizer == "adagrad" else 1.0
    v[rows] = settings.momentum * v[rows] - settings.learning_rate * gradient[rows] / scale
    weight[rows] += v[rows]


def test_what_is_kept_is_the_mean_over_the_epochs() -> None:
    sessions = random_sessions(60, items=30)
    one, two, three = (
        fit(sessions, Gru4RecSettings.parse(SMALL | {"averaging": 0, "epochs": epochs})).network for epochs in (1, 2, 3)
    )
    kept = fit(sessions, Gru4RecSettings.parse(SMALL | {"averaging": 3, "epochs": 3})).network
    # By the recursion's closed form: (η + 1) / (3 + η) of the third, the rest of it shared in the same way.
    weight = {3: 4 / 6, 2: 2 / 6 * 4 / 5, 1: 2 / 6 * 1 / 5}
    for name, found in kept.tensors().items():
        expected = sum(share * {1: one, 2: two, 3: three}[epoch].tensors()[name] for epoch, share in weight.items())
        torch.testing.assert_close(found, torch.as_tensor(expected))


def test_runs_of_the_same_seed_are_equal_to_the_bit() -> None:
    settings = Gru4RecSettings.parse(SMALL | {"dropout_hidden": 0.3, "dropout_input": 0.2})
    sessions = random_sessions(60, items=30)
    first, second = fit(sessions, settings), fit(sessions, settings)
    assert same_bits(first.network, second.network)
    assert [e.loss for e in first.epochs] == [e.loss for e in second.epochs]
    other = fit(sessions, settings.model_copy(update={"seed": 7}))
    assert not same_bits(first.network, other.network)


@pytest.mark.parametrize("layers", [0, 1])  # what follows the last item alone: that needs no GRU
def test_learns_what_follows_what(layers: int) -> None:
    chosen = {"hidden_size": 24, "epochs": 5, "n_sample": 16, "batch_size": 16, "layers": layers}
    settings = Gru4RecSettings.parse(SMALL | chosen | {"embedding": "separate"})
    sessions = random_sessions(400, items=40, seed=1)
    metrics = evaluate(NetworkScorer(fit(sessions, settings).network), random_sessions(80, items=40, seed=2), ks=(1, 2))
    assert metrics.recall[1] > 0.6  # one successor in eight of ten cases,
    assert metrics.recall[2] > 0.9  # the one after it in the others


@pytest.mark.parametrize("which", ["dropout_input", "dropout_hidden"])
def test_dropout_acts_with_a_single_layer(which: str) -> None:
    sessions = random_sessions(60, items=30)
    settings = Gru4RecSettings.parse(SMALL)
    without, with_dropout = fit(sessions, settings), fit(sessions, settings.model_copy(update={which: 0.9}))
    assert not same_bits(without.network, with_dropout.network)
    assert with_dropout.epochs[-1].loss > without.epochs[-1].loss


def test_the_rate_is_the_share_that_is_dropped_and_the_rest_makes_up_for_it() -> None:
    (row,) = keys(seed=0, first_step=0, steps=1, masks=1)
    found = mask((200, 100), 0.2, row[0])
    assert float((found == 0).double().mean()) == pytest.approx(0.2, abs=0.01)
    assert torch.unique(found).tolist() == pytest.approx([0.0, 1.25])


def test_every_transition_counts_once_an_epoch() -> None:
    heard: list[int] = []
    epochs: list[Epoch] = []
    sessions = random_sessions(50, items=20)
    result = fit(sessions, Gru4RecSettings.parse(SMALL), progress=heard.append, on_epoch=epochs.append)
    assert [e.transitions for e in result.epochs] == [sessions.transitions] * 2
    assert sum(heard) == 2 * sessions.transitions
    assert tuple(epochs) == result.epochs
    assert [e.number for e in epochs] == [1, 2]
    assert result.transitions_per_second > 0


def test_items_that_no_step_touches_keep_their_weights() -> None:
    sessions = sessions_of([[0, 1, 2], [2, 1]] * 5, items=4)  # item 3 is in no session
    settings = Gru4RecSettings.parse(SMALL | {"n_sample": 0, "momentum": 0.5})
    start = initial_weights(4, settings, torch.Generator().manual_seed(settings.seed))
    found = fit(sessions, settings).network
    assert torch.equal(found.output[3], start.output[3])
    assert float(found.output_bias[3]) == 0.0
    assert not torch.equal(found.output[:3], start.output[:3])


def test_extra_samples_train_the_items_they_hit() -> None:
    sessions = sessions_of([[0, 1, 2], [2, 1]] * 5, items=4)
    found = fit(sessions, Gru4RecSettings.parse(SMALL | {"n_sample": 50})).network
    assert float(found.output_bias[3]) < 0.0  # met as a negative alone


def test_a_warm_start_is_where_training_begins_and_stays_as_it_is() -> None:
    settings = Gru4RecSettings.parse(SMALL | {"epochs": 1})
    sessions = random_sessions(60, items=30)
    first = fit(sessions, settings).network
    before = first.clone()
    second = fit(sessions, settings, warm_start=first)
    assert same_bits(first, before)
    assert second.epochs[0].loss < fit(sessions, settings).epochs[0].loss
    with pytest.raises(ValueError, match="do not fit"):
        fit(sessions, settings.model_copy(update={"hidden_size": 9}), warm_start=first)


def test_a_loss_that_is_no_number_stops_the_run() -> None:
    settings = Gru4RecSettings.parse(SMALL)
    sessions = random_sessions(60, items=30)
    broken = gru(fit(sessions, settings).network)
    broken.layers[0].u[0, 0] = np.nan
    with pytest.raises(TrainingDivergedError, match=r"epoch 1.*learning_rate"):
        fit(sessions, settings, warm_start=broken)


def test_one_session_in_one_lane_trains() -> None:
    result = fit(sessions_of([[0, 1, 2, 0]]), Gru4RecSettings.parse(SMALL | {"batch_size": 1, "n_sample": 3}))
    assert np.isfinite(result.epochs[-1].loss)
