"""What trains every window family, tried with the smallest ones."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.unit.trainer.builders import random_sessions, sessions_of
from tests.unit.trainer.toy_window import Kind, ToySettings
from trainer.errors import TrainingDivergedError
from trainer.evaluation.protocol import NetworkScorer, evaluate
from trainer.models.base import Clicks, ItemTables, Network
from trainer.models.settings import WindowSettings
from trainer.models.window import WindowNetwork, initial_network
from trainer.training.checkpoint import CheckpointError
from trainer.training.early_stopping import EarlyStopping, Epoch
from trainer.training.fit import FitResult, fit
from trainer.training.losses import loss_of
from trainer.training.windows.batches import Batch, batches, pieces_of, steps_of
from trainer.training.windows.columns import ColumnMap
from trainer.training.windows.optimizers import ModuleAdam, RowAdam, one_cycle
from trainer.training.windows.rankings import among_targets_and_samples, cross_entropy
from trainer.training.windows.training import WindowTraining

KINDS: list[Kind] = ["tied", "causal", "untied"]
SESSIONS = random_sessions(40, items=30, longest=14)
HOLDOUT = random_sessions(20, items=30, seed=9)


def same(a: Network, b: Network) -> bool:
    other = b.tensors()
    return all(tensor.numpy().tobytes() == other[name].numpy().tobytes() for name, tensor in a.tensors().items())


# Batches


@pytest.mark.parametrize("window", [1, 2, 3, 4, 7, 30])
def test_every_click_after_the_first_is_predicted_once_from_a_window_at_most(window: int) -> None:
    lengths = [2, 3, 1, window + 1, window + 2, 3 * window + 5, 40]
    sessions = sessions_of([list(range(length)) for length in lengths])
    pieces = pieces_of(sessions, window)
    assert pieces.transitions == sessions.transitions
    predicted = []
    for start, length, first in zip(pieces.start, pieces.length, pieces.first, strict=True):
        begin = sessions.offsets[np.searchsorted(sessions.offsets, start, side="right") - 1]
        assert 2 <= length <= window + 1
        for place in range(first, length):
            predicted.append(start + place)
            assert min(start + place - begin, (window + 1) // 2) <= place <= window
    starts = set(sessions.offsets[:-1].tolist())
    assert sorted(predicted) == [at for at in range(sessions.clicks) if at not in starts]


def test_batches_are_of_all_lengths_in_an_order_of_the_seed() -> None:
    pieces = pieces_of(SESSIONS, 5)

    def epoch(seed: int) -> list[Batch]:
        return list(batches(SESSIONS.items, pieces, 4, np.random.default_rng(seed)))

    first, again, other = epoch(1), epoch(1), epoch(2)
    assert len(first) == steps_of(pieces, 4) == -(-len(pieces) // 4)
    assert all(np.array_equal(a.items, b.items) for a, b in zip(first, again, strict=True))
    assert [batch.items.tolist() for batch in first] != [batch.items.tolist() for batch in other]
    assert sum(np.ptp(batch.length) for batch in first) > 8  # sorted by length it would be 4: 2 to 6, once
    seen = []
    for batch in first:
        assert batch.items.shape[1] == batch.length.max()
        for items, length, target in zip(batch.items, batch.length, batch.target, strict=True):
            assert (items[:length] >= 0).all()
            assert (items[length:] == -1).all()
            assert not target[0]
            assert not target[length:].any()
            seen += [(int(items[at - 1]), int(items[at])) for at in np.flatnonzero(target)]
    pairs = [
        (int(a), int(b))
        for begin, end in zip(SESSIONS.offsets[:-1], SESSIONS.offsets[1:], strict=True)
        for a, b in zip(SESSIONS.items[begin : end - 1], SESSIONS.items[begin + 1 : end], strict=True)
    ]
    assert sorted(seen) == sorted(pairs)


@pytest.mark.parametrize("longest", [2, 5, 6, 9, 31])
def test_a_batch_is_worked_off_in_groups_of_about_the_same_length(longest: int) -> None:
    length = np.sort(np.random.default_rng(1).integers(2, longest + 1, size=50))
    length[-1] = longest
    batch = Batch(np.zeros((50, longest), np.int64), length, np.ones((50, longest), np.bool_))
    rows = []
    for some, width in batch.groups():
        inside = length[some]
        rows += list(range(50))[some]
        assert width == inside.max()
        assert inside.min() > 5 or width <= 5  # up to four clicks are seen, and one more is predicted
        assert width - 1 <= max(4, 2 * (inside.min() - 1))
    assert rows == list(range(50))


@pytest.mark.parametrize("kind", KINDS)
def test_groups_change_nothing_of_a_step(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    sessions = random_sessions(40, items=30, longest=25)
    settings = ToySettings(kind=kind, batch_size=16, n_sample=8, epochs=2, dropout=0)
    in_groups = fit(sessions, settings)
    monkeypatch.setattr(Batch, "groups", lambda batch: [(slice(None), int(batch.length[-1]))])
    at_once = fit(sessions, settings)
    for name, tensor in in_groups.network.tensors().items():
        torch.testing.assert_close(tensor, at_once.network.tensors()[name], rtol=1e-3, atol=1e-4)


# Columns and losses


def test_each_item_of_a_step_is_one_column() -> None:
    support = np.array([5, 1, 0, 7, 2, 9])
    columns_of = ColumnMap(support, ToySettings(logq=0.5, sample_alpha=0.4))
    for items, samples in [([[3, 4, 3], [5, 3, -1]], [1, 5, 5, 0]), ([[0, 1]], [])]:  # the second after the first
        columns = columns_of(np.array(items), np.array(samples, dtype=np.int64))
        met = [item for session in items for item in session if item >= 0]
        assert sorted(columns.index.tolist()) == sorted(set(met) | set(samples))
        assert np.where(columns.clicks >= 0, columns.index[columns.clicks], -1).tolist() == items
        assert columns.index[columns.samples].tolist() == samples
        for item, offset, own in zip(columns.index, columns.offset, columns.own_offset, strict=True):
            s = max(1, support[item])
            share = met.count(item) * s**-0.5 + samples.count(item) * s**-0.2
            assert offset == pytest.approx(np.log(share), abs=1e-6)
            assert own == pytest.approx(-0.5 * np.log(s), abs=1e-6)


def step_of(
    kind: Kind, settings: WindowSettings
) -> tuple[WindowNetwork, Batch, np.ndarray[tuple[int], np.dtype[np.int64]]]:
    network = initial_network(12, settings, torch.Generator().manual_seed(1))
    for tensor in network.tensors().values():
        tensor.normal_(generator=torch.Generator().manual_seed(2))
    items = np.array([[3, 4, 3, 9], [5, 3, 11, -1], [7, 7, -1, -1]])
    target = np.array([[0, 1, 1, 1], [0, 0, 1, 0], [0, 1, 0, 0]], dtype=bool)
    return network, Batch(items, np.array([4, 3, 2]), target), np.array([3, 3, 8, 11, 7])


def prefixes_of(batch: Batch) -> list[tuple[list[int], int]]:
    return [
        (items[:at].tolist(), int(items[at]))
        for items, target in zip(batch.items, batch.target, strict=True)
        for at in np.flatnonzero(target)
    ]


def whole_tables(network: WindowNetwork) -> dict[str, Tensor]:
    tables = {"output": network.output, "input": network.input, "output_bias": network.output_bias}
    leaves = {name: table.clone().requires_grad_() for name, table in tables.items()}
    return leaves | ({"input": leaves["output"]} if network.encoder.tied else {})


def dense_scores(network: WindowNetwork, batch: Batch, tables: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Scores [N, I] of the whole catalogue by one prefix at a time, and the targets [N]."""
    rows = []
    for seen, _ in prefixes_of(batch):
        items = torch.tensor([seen])
        rows.append(network.encoder(tables["input"][items], items, torch.tensor([len(seen)]))[0])
    found = torch.stack(rows) @ tables["output"].T
    if network.encoder.bias:
        found = found + tables["output_bias"]
    return found, torch.tensor([target for _, target in prefixes_of(batch)])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("loss", ["cross-entropy", "bpr-max", "top1"])
@pytest.mark.parametrize("weighed", [False, True])
def test_gradients_are_those_over_whole_tables(kind: Kind, loss: str, weighed: bool) -> None:
    settings = ToySettings.model_validate({"kind": kind, "loss": loss})
    network, batch, samples = step_of(kind, settings)
    support = np.arange(1, 13)
    each = torch.tensor(np.random.default_rng(4).uniform(0, 3, batch.items.shape).astype(np.float32))  # [B, T]
    share = each[torch.from_numpy(batch.target)] if weighed else torch.ones(int(batch.target.sum()))  # [N]

    whole = whole_tables(network)
    scores, targets = dense_scores(network, batch, whole)
    if loss == "cross-entropy":
        met = batch.items[batch.items >= 0].tolist()
        rows = []
        for row, target in zip(scores, targets.tolist(), strict=True):
            log_support = torch.from_numpy(np.log(support)).float()
            others = [row[item] - log_support[item] for item in met if item != target]
            others += [row[item] - 0.5 * log_support[item] for item in samples.tolist() if item != target]
            own = row[target] - log_support[target]
            rows.append(torch.logsumexp(torch.stack([own, *others]), 0) - own)
        expected = (share * torch.stack(rows)).mean()
        torch.autograd.backward(expected)
    else:
        columns = torch.cat([targets, torch.from_numpy(samples)])
        total, slope = loss_of(settings)(scores[:, columns].detach(), share if weighed else None)
        expected = total / len(targets)
        torch.autograd.backward(scores[:, columns], slope / len(targets))
    wanted = {name: leaf.grad for name, leaf in whole.items()}
    of_encoder = [parameter.grad.clone() for parameter in network.encoder.parameters() if parameter.grad is not None]
    network.encoder.zero_grad()

    made = ColumnMap(support, settings)(batch.items, samples)
    rows_of = torch.from_numpy(made.index)
    leaves = {name: table.detach()[rows_of].requires_grad_() for name, table in whole.items()}
    bias = leaves["output_bias"] if network.encoder.bias else None
    local = ItemTables(leaves["output"] if network.encoder.tied else leaves["input"], leaves["output"], bias)
    if loss == "cross-entropy":
        ranking = cross_entropy(local, torch.from_numpy(made.offset), torch.from_numpy(made.own_offset))
    else:
        ranking = among_targets_and_samples(local, torch.from_numpy(made.samples), loss_of(settings))
    of_batch = (torch.from_numpy(array) for array in (made.clicks, batch.length, batch.target))
    clicks = replace(Clicks(*of_batch), weight=each if weighed else None)
    found = network.encoder.loss(clicks, local, ranking)
    torch.autograd.backward(found)

    torch.testing.assert_close(found, expected)
    for name, leaf in {"input": local.input, "output": local.output, "output_bias": local.bias}.items():
        if leaf is not None:
            assert leaf.grad is not None
            dense = torch.zeros_like(whole[name]).index_copy(0, rows_of, leaf.grad)
            torch.testing.assert_close(dense, wanted[name], rtol=1e-4, atol=1e-5)
    for parameter, gradient in zip(network.encoder.parameters(), of_encoder, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("weights", [None, (1.0, 0.0, 2.5, 1.0, 1.0, 0.5)])
def test_cross_entropy_over_all_items_is_torchs(biased: bool, weights: tuple[float, ...] | None) -> None:
    generator = torch.Generator().manual_seed(3)
    shapes = [(6, 4), (9, 4), (9,)]
    found, expected = (
        [torch.randn(shape, generator=generator.manual_seed(1)).requires_grad_() for shape in shapes] for _ in range(2)
    )
    targets = torch.tensor([0, 8, 3, 3, 2, 1])
    tables = ItemTables(found[1], found[1], found[2] if biased else None)
    share = torch.ones(6) if weights is None else torch.tensor(weights)
    ours = cross_entropy(tables)(found[0], targets, None if weights is None else share)
    scores = expected[0] @ expected[1].T + (expected[2] if biased else 0)
    theirs = (share * torch.nn.functional.cross_entropy(scores, targets, reduction="none")).mean()
    torch.testing.assert_close(ours, theirs)
    torch.autograd.backward([3 * ours, 3 * theirs])
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.grad, other.grad)


# Optimizers


def test_row_adam_of_all_rows_is_adam() -> None:
    generator = torch.Generator().manual_seed(1)
    ours = torch.randn(7, 3, generator=generator)
    by_rows, theirs = ours.clone(), ours.clone().requires_grad_()
    whole, rows = RowAdam(ours), RowAdam(by_rows)
    adam = torch.optim.Adam([theirs], lr=0.1)
    order = torch.tensor([3, 0, 6, 1, 2, 5, 4])
    for step in range(20):
        gradient = torch.randn(7, 3, generator=generator) * 10.0 ** -(step % 5)
        theirs.grad = gradient.clone()
        adam.param_groups[0]["lr"] = 0.1 / (step + 1)
        adam.step()
        whole.step(gradient, 0.1 / (step + 1))
        rows.step(gradient[order], 0.1 / (step + 1), order)
    torch.testing.assert_close(ours, theirs.detach())
    assert torch.equal(by_rows, ours)


def test_row_adam_leaves_other_rows_alone() -> None:
    table = torch.randn(5, 2)
    before = table.clone()
    adam = RowAdam(table)
    for _ in range(3):
        adam.step(torch.ones(2, 2), 0.1, torch.tensor([4, 1]))
    assert torch.equal(table[[0, 2, 3]], before[[0, 2, 3]])
    assert (table[[1, 4]] != before[[1, 4]]).all()
    assert all(not adam.tensors()[name][[0, 2, 3]].any() for name in ("mean", "square"))


def test_module_adam_is_adamw() -> None:
    ours, theirs = (torch.nn.Linear(3, 2) for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    adam = ModuleAdam(ours, weight_decay=0.3)
    adamw = torch.optim.AdamW(theirs.parameters(), lr=0.1, weight_decay=0.3)
    for step in range(10):
        x = torch.randn(4, 3, generator=torch.Generator().manual_seed(step))
        for module in (ours, theirs):
            torch.autograd.backward((module(x) ** 2).sum())
        adam.step(0.1)
        adamw.step()
        adamw.zero_grad()
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_the_rate_goes_up_and_down_once() -> None:
    for steps in (1, 2, 7, 1000):
        rates = [one_cycle(step, steps) for step in range(steps)]
        top = rates.index(max(rates))
        assert max(rates) == 1
        assert rates[: top + 1] == sorted(rates[: top + 1])
        assert rates[top:] == sorted(rates[top:], reverse=True)
        assert all(rate > 0 for rate in rates)
    assert rates[0] == pytest.approx(1 / 200)
    assert rates[-1] < 1e-4


# Whole fits


@pytest.mark.parametrize("loss", ["cross-entropy", "bpr-max"])
def test_weights_of_targets_count_in_a_fit_unless_they_are_equal(loss: str) -> None:
    names = ("view", "cart", "purchase")
    typed = replace(SESSIONS, types=(SESSIONS.items % 3).astype(np.int32), type_names=names)
    settings = ToySettings(loss=loss, dropout=0.3)
    plain = fit(SESSIONS, settings)

    def weighed(text: str) -> FitResult:
        return fit(typed, ToySettings(loss=loss, dropout=0.3, target_weights=text))

    equal = weighed("view=2,cart=2,purchase=2")
    assert same(plain.network, equal.network)
    assert [epoch.loss for epoch in plain.epochs] == [epoch.loss for epoch in equal.epochs]
    assert not same(plain.network, weighed("purchase=4").network)


@pytest.mark.parametrize("kind", KINDS)
def test_runs_of_the_same_seed_are_equal_to_the_bit(kind: Kind) -> None:
    settings = ToySettings(kind=kind, dropout=0.3)
    torch.manual_seed(1)
    first = fit(SESSIONS, settings)
    torch.manual_seed(2)
    expected = torch.rand(3)
    torch.manual_seed(2)
    second = fit(SESSIONS, settings)
    assert torch.equal(torch.rand(3), expected)  # torch's own random numbers are where they were
    assert same(first.network, second.network)
    assert [e.loss for e in first.epochs] == [e.loss for e in second.epochs]
    assert not same(first.network, fit(SESSIONS, settings.model_copy(update={"seed": 7})).network)
    assert fit(SESSIONS, settings.model_copy(update={"dropout": 0.0})).epochs[-1].loss < first.epochs[-1].loss


class KilledError(Exception):
    """What stands for the kill in these tests."""


def _kill_after(number: int) -> Callable[[Epoch], None]:
    def hear(epoch: Epoch) -> None:
        if epoch.number == number:
            raise KilledError

    return hear


@pytest.mark.parametrize("judged", [False, True])
@pytest.mark.parametrize(
    "change",
    [
        {"kind": "untied", "averaging": 2},
        {"kind": "causal", "loss": "bpr-max"},
        {"n_sample": 50},
        {"members": 2, "n_sample": 0},
    ],
)
def test_killed_after_any_epoch(tmp_path: Path, change: dict[str, object], judged: bool) -> None:
    settings = ToySettings.model_validate({"dropout": 0.3, "weight_decay": 0.1, **change})
    stopping = EarlyStopping(HOLDOUT, patience=4) if judged else None
    expected = fit(SESSIONS, settings, early_stopping=stopping)
    path = tmp_path / "checkpoint.safetensors"
    for number in range(1, settings.epochs):  # one process an epoch
        with pytest.raises(KilledError):
            fit(SESSIONS, settings, early_stopping=stopping, checkpoint=path, on_epoch=_kill_after(number))
    found = fit(SESSIONS, settings, early_stopping=stopping, checkpoint=path)
    assert same(found.network, expected.network)
    assert [(e.number, e.loss, e.score) for e in found.epochs] == [(e.number, e.loss, e.score) for e in expected.epochs]


def test_a_run_of_another_length_has_another_pace(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    fit(SESSIONS, ToySettings(epochs=2), checkpoint=path)
    with pytest.raises(CheckpointError, match="another run"):
        fit(SESSIONS, ToySettings(epochs=3), checkpoint=path)


def learned(settings: WindowSettings, *, seed: int = 1) -> tuple[FitResult, float]:
    """A fit to sessions in which the last item tells the next one, eight times of ten; and how often it does then."""
    result = fit(random_sessions(300, items=40, seed=seed), settings)
    newer = random_sessions(80, items=40, seed=2)
    return result, evaluate(NetworkScorer(result.weights), newer, ks=(1,)).recall[1]


LEARNABLE: dict[str, object] = {"hidden_size": 24, "epochs": 6, "batch_size": 16, "n_sample": 16}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("change", [{}, {"n_sample": 50}, {"n_sample": 0}, {"window": 2}, {"members": 2}])
def test_learns_what_follows_what(kind: Kind, change: dict[str, object]) -> None:
    _, recall = learned(ToySettings.model_validate({**LEARNABLE, "kind": kind, **change}))
    assert recall > 0.6


@pytest.mark.parametrize("loss", ["bpr", "top1", "bpr-max", "top1-max"])
def test_every_loss_is_learned_by(loss: str) -> None:
    result, recall = learned(ToySettings.model_validate({**LEARNABLE, "kind": "causal", "loss": loss, "bpreg": 0.1}))
    losses = [epoch.loss for epoch in result.epochs]
    assert losses[-1] < 0.9 * losses[0]
    assert recall > 0.3


def test_items_that_no_step_touches_keep_their_numbers() -> None:
    sessions = sessions_of([[0, 1, 2], [2, 1]], items=9)
    settings = ToySettings(kind="untied", n_sample=0)
    start = initial_network(9, settings, torch.Generator().manual_seed(settings.seed))
    found = fit(sessions, settings, warm_start=start).network.tensors()
    for name in ("input", "output", "output_bias"):
        assert torch.equal(found[name][3:], start.tensors()[name][3:])
        assert not torch.equal(found[name][:3], start.tensors()[name][:3])


def test_a_warm_start_is_where_training_begins_and_stays_as_it_is() -> None:
    settings = ToySettings(members=2, learning_rate=1e-9)
    start = fit(SESSIONS, settings.model_copy(update={"seed": 3, "learning_rate": 0.1})).network
    before = start.clone()
    found = fit(SESSIONS, settings, warm_start=start).network
    assert same(start, before)
    for name, tensor in found.tensors().items():
        torch.testing.assert_close(tensor, start.tensors()[name])
    with pytest.raises(ValueError, match="do not fit"):
        fit(SESSIONS, settings.model_copy(update={"hidden_size": 9}), warm_start=start)


def test_progress_hears_of_every_transition() -> None:
    heard: list[int] = []
    result = fit(SESSIONS, ToySettings(), progress=heard.append)
    assert sum(heard) == 3 * SESSIONS.transitions
    assert [epoch.transitions for epoch in result.epochs] == [SESSIONS.transitions] * 3


def test_a_loss_that_is_no_number_stops_the_run() -> None:
    settings = ToySettings()
    start = initial_network(30, settings, torch.Generator().manual_seed(1))
    start.output.fill_(torch.inf)
    with pytest.raises(TrainingDivergedError, match="lower learning_rate"):
        fit(SESSIONS, settings, warm_start=start)


def test_between_epochs_the_network_answers_without_dropout() -> None:
    training = WindowTraining(SESSIONS, ToySettings(dropout=0.5))
    training.epoch(1, lambda _: None)
    items, length = torch.tensor([[3, 4]]), torch.tensor([2])
    assert torch.equal(training.weights.query(items, length), training.weights.query(items, length))
