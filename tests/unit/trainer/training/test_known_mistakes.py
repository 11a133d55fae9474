"""The mistakes of other implementations, made on purpose: for each of them a test of ours must fail.

Each entry makes one mistake in the code under test and names the test that catches it. The test runs twice: as it is,
where it must pass, and with the mistake, where it must fail. So a guard cannot rot unseen. docs/method.md lists them.
"""

import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.doc_pages import REPOSITORY, table
from tests.unit.trainer.data import test_sessions
from tests.unit.trainer.evaluation import test_protocol as test_evaluate
from tests.unit.trainer.models import test_gru4rec
from tests.unit.trainer.training import test_fit, test_losses
from tests.unit.trainer.training.gru import test_optimizer
from trainer.data import batches, sessions
from trainer.data import lanes as followed
from trainer.evaluation import protocol as evaluate
from trainer.models import gru4rec
from trainer.models.settings import Gru4RecSettings
from trainer.training import dropout, losses, sampling
from trainer.training.gru import optimizer, step
from trainer.training.gru.optimizer import Rows, optimizer_of

Patch = pytest.MonkeyPatch


@dataclass(frozen=True)
class Mistake:
    """``make`` commits it; ``guard`` is the test that must fail then."""

    name: str
    make: Callable[[Patch], None]
    guard: Callable[[], None]

    @property
    def caught_by(self) -> str:
        """File and name of the guard."""
        function = self.guard.func if isinstance(self.guard, partial) else self.guard
        return f"{Path(inspect.getfile(function)).name}::{function.__name__}"


def exchange(patch: Patch, original: Any, new: Any) -> None:
    """Put ``new`` in the place of ``original`` wherever a module of ours knows it, the tests' own among them."""
    places = [
        (module, name)
        for key, module in list(sys.modules.items())
        if key.startswith(("trainer", "tests.unit.trainer"))
        for name, value in list(vars(module).items())
        if value is original
    ]
    assert places
    for module, name in places:
        patch.setattr(module, name, new)


def rewritten(function: Any, old: str, new: str) -> Any:
    """The function with a line of its source exchanged."""
    source = inspect.cleandoc("\n" + inspect.getsource(function))
    assert source.count(old) == 1, f"{function.__qualname__} no longer says {old!r}: make the mistake anew"
    scope = dict(vars(sys.modules[function.__module__]))
    exec(compile(source.replace(old, new), inspect.getfile(function), "exec"), scope)
    return scope[function.__name__]


# -- evaluation -------------------------------------------------------------------------------------------------------


def keep_the_state_between_sessions(patch: Patch) -> None:
    patch.setattr(followed.Lanes, "fresh", property(lambda lanes: np.zeros(len(lanes.position), np.bool_)))


def average_batches(patch: Patch) -> None:
    """Means of the steps' means: a step at the end, with few lanes, weighs as much as a full one."""

    def wrong(scorer: Any, of: sessions.SessionSet, *, ks: Any = (20,), ties: Any = "conservative") -> evaluate.Metrics:
        found, state = [], None
        for number, lanes in enumerate(followed.follow(of)):
            state = scorer.advance(state if number else scorer.start(len(lanes.position)), lanes)
            ranks = scorer.ranks(state, lanes, of.items[lanes.position + 1], ties)
            found.append(evaluate.Metrics.of_ranks(ranks, ks))
        recall = {k: float(np.mean([one.recall[k] for one in found])) for k in ks}
        return evaluate.Metrics(recall, recall, recall, of.transitions)

    exchange(patch, evaluate.evaluate, wrong)


def rank_among_a_sample(patch: Patch) -> None:
    """The target against ten items drawn at random, in place of all."""
    right = evaluate.ranks_among

    def wrong(scores: Tensor, targets: Any, ties: Any, name: str) -> Any:
        generator = torch.Generator().manual_seed(1)
        drawn = torch.randint(scores.shape[1], (len(scores), 10), generator=generator)
        columns = torch.cat([torch.from_numpy(targets).unsqueeze(1), drawn], 1)
        return right(scores.gather(1, columns), np.zeros(len(targets), np.int64), ties, name)

    exchange(patch, right, wrong)


def let_ties_count_for_the_model(patch: Patch) -> None:
    right = evaluate.ranks_among
    exchange(patch, right, lambda scores, targets, _, name: right(scores, targets, "standard", name))


def split_at_random(patch: Patch) -> None:
    right = sessions.temporal_holdout

    def wrong(of: sessions.SessionSet, **how: Any) -> tuple[sessions.SessionSet, sessions.SessionSet]:
        count = len(right(of, **how)[1])
        chosen = np.zeros(len(of), np.bool_)
        chosen[np.random.default_rng(1).permutation(len(of))[:count]] = True
        return of.select(~chosen), of.select(chosen)

    exchange(patch, right, wrong)


# -- losses -----------------------------------------------------------------------------------------------------------


def by_autograd(loss: Callable[[Tensor], Tensor]) -> losses.Loss:
    def of_scores(r: Tensor, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        with torch.inference_mode(False), torch.enable_grad():
            variable = r.clone().requires_grad_()
            value = loss(variable)
            (gradient,) = torch.autograd.grad(value, variable)
        return value.detach(), gradient

    return of_scores


def softmax_before_cross_entropy(patch: Patch) -> None:
    exchange(
        patch,
        losses.cross_entropy,
        by_autograd(lambda r: -torch.log_softmax(torch.softmax(r, 1), 1).diagonal().sum()),
    )


def target_in_the_softmax(patch: Patch) -> None:
    exchange(patch, losses._negative_softmax, lambda r: torch.softmax(r, 1))


def no_score_regulariser(patch: Patch) -> None:
    right = losses.bpr_max
    exchange(patch, right, lambda r, weights=None, *, bpreg: right(r, weights, bpreg=0.0))


def top1_with_the_target(patch: Patch) -> None:
    def uncorrected(r: Tensor) -> Tensor:
        target = r.diagonal().unsqueeze(1)
        return (torch.sigmoid(r - target) + torch.sigmoid(r * r)).mean(1).sum()

    exchange(patch, losses.top1, by_autograd(uncorrected))


# -- training ---------------------------------------------------------------------------------------------------------


def reset_in_every_step(patch: Patch) -> None:
    """The mask of the lanes that start is applied again in each step after."""
    right = batches.schedule

    def wrong(of: sessions.SessionSet, lanes: int) -> batches.Schedule:
        plan = right(of, lanes)
        return replace(plan, fresh=np.logical_or.accumulate(plan.fresh, axis=0))

    patch.setattr("trainer.training.gru.training.schedule", wrong)  # the guard goes by the right one


def stop_at_the_first_exhausted_lane(patch: Patch) -> None:
    right = batches.schedule

    def wrong(of: sessions.SessionSet, lanes: int) -> batches.Schedule:
        plan = right(of, lanes)
        last = int((plan.alive == plan.position.shape[1]).sum())
        return batches.Schedule(plan.position[:last], plan.fresh[:last], plan.alive[:last])

    exchange(patch, right, wrong)


def no_extra_samples(patch: Patch) -> None:
    patch.setattr(sampling.NegativeSampler, "draw_steps", lambda _, steps: np.empty((steps, 0), dtype=np.int64))


def dropout_between_layers_only(patch: Patch) -> None:
    line = "self._drop((n, x.shape[1]), settings.dropout_hidden)"
    wrong = rewritten(step.StepMath.__call__, line, f"{line} if len(masks) + 1 < len(weights.layers) else None")
    patch.setattr(step.StepMath, "__call__", wrong)


def keep_for_drop(patch: Patch) -> None:
    right = dropout.mask
    exchange(patch, right, lambda shape, rate, *which: right(shape, 1 - rate, *which))


def bounds_of_torchs_gru(patch: Patch) -> None:
    """U(±1/sqrt(hidden)), what torch.nn.GRU starts with."""
    right = gru4rec.initial_weights
    exchange(patch, right, rewritten(right, "math.sqrt(6.0 / (rows + columns))", "1.0 / math.sqrt(columns)"))


def bounds_of_the_stacked_gates(patch: Patch) -> None:
    right = gru4rec.initial_weights
    gates = "torch.cat([uniform(h, h) for _ in range(3)])"
    exchange(patch, right, rewritten(right, gates, "uniform(3 * h, h)"))


def score_everything_then_slice(patch: Patch) -> None:
    line = "self._loss(torch.addmm(bias, x, w.T), target_weights)"
    wrong = rewritten(
        step.StepMath.__call__, line, "self._loss((x @ weights.output.T)[:, columns] + bias, target_weights)"
    )
    patch.setattr(step.StepMath, "__call__", wrong)


def dense_gradients(patch: Patch) -> None:
    """Rows that a step does not touch get a gradient of zero, and with it the decay of their momentum."""

    def wrong(self: optimizer.Adagrad, rows: Rows, gradient: Tensor) -> None:
        self.step(torch.zeros_like(self._weight).index_copy_(0, rows.index, gradient))

    patch.setattr(optimizer.Adagrad, "step_rows", wrong)


def adam(patch: Patch) -> None:
    def wrong(self: Any, rows: Rows, gradient: Tensor) -> None:
        if not hasattr(self, "m"):
            self.m, self.v, self.t = torch.zeros_like(self._weight), torch.zeros_like(self._weight), 0
        self.t += 1
        m = self.m[rows.index] * 0.9 + 0.1 * gradient
        v = self.v[rows.index] * 0.999 + 0.001 * gradient**2
        self.m[rows.index], self.v[rows.index] = m, v
        change = (m / (1 - 0.9**self.t)) / ((v / (1 - 0.999**self.t)).sqrt() + 1e-8)
        self._weight[rows.index] -= self._lr * change

    patch.setattr(optimizer.Adagrad, "step_rows", wrong)


def accumulator_begins_above_zero(patch: Patch) -> None:
    right = optimizer.Adagrad.__init__

    def wrong(self: optimizer.Adagrad, weight: Tensor, *, learning_rate: float, momentum: float) -> None:
        right(self, weight, learning_rate=learning_rate, momentum=momentum)
        self.accumulator.fill_(0.1)  # as other libraries have it

    patch.setattr(optimizer.Adagrad, "__init__", wrong)


# -- guards that other files do not have ------------------------------------------------------------------------------


class Sizes(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's own is untyped
    """Remembers the sizes of all tensors that are made while it is on."""

    def __init__(self, given: list[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._given = {tensor.untyped_storage().data_ptr() for tensor in given}
        self.made: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for one in result if isinstance(result, tuple | list) else [result]:
            # What is moved in place, and views of it, are not new.
            if isinstance(one, Tensor) and one.untyped_storage().data_ptr() not in self._given:
                self.made.update(one.shape)
        return result


def test_a_step_makes_nothing_of_the_catalogues_size() -> None:
    """Neither scores of all items nor a dense gradient nor an optimizer's dense step: a step costs what it touches."""
    catalogue = 9973
    settings = Gru4RecSettings.parse({"hidden_size": 4, "batch_size": 3, "n_sample": 5, "momentum": 0.1})
    weights = gru4rec.initial_weights(catalogue, settings, torch.Generator().manual_seed(1))
    support = torch.ones(catalogue)
    math_of_step = step.StepMath(settings, support, lambda *_: None)
    mover = optimizer_of(settings, weights.output)
    inputs, targets, samples = torch.tensor([0, 1]), torch.tensor([2, 3]), torch.tensor([4, 5, 6, 7, 8])
    with Sizes([*weights.tensors().values(), *mover.tensors().values(), support]) as sizes:
        found = math_of_step(weights, inputs, targets, samples, torch.zeros(1, 2, 4))
        (rows,) = Rows.of_steps(torch.cat([targets, samples]).unsqueeze(0))
        mover.step_rows(rows, rows.sum(found.columns))
    assert catalogue not in sizes.made
    assert len(targets) + len(samples) in sizes.made  # it has seen the columns


# -- the list ---------------------------------------------------------------------------------------------------------

_EPOCH = partial(
    test_fit.test_an_epoch_is_that_of_the_papers,
    loss="cross-entropy",
    embedding="shared",
    embedding_l2=0.0,
    optimizer="adagrad",
    momentum=0.0,
)
_RANKING = partial(test_losses.test_ranking_losses_are_those_of_the_papers, shape=(3, 9))
_GRADIENT = partial(
    test_gru4rec.test_the_gradient_is_that_of_autograd,
    embedding="shared",
    layers=1,
    deep_input=False,
    input_decay=0.0,
    dropout=0.0,
    target_weights=None,
)
_ROWS = partial(test_optimizer.test_rows_follow_the_formula, kind="adagrad")

MISTAKES = (
    Mistake(
        "the state is not reset between the sessions of the evaluation",
        keep_the_state_between_sessions,
        partial(
            test_evaluate.test_every_prefix_of_every_session_is_a_prediction_from_a_state_of_zero,
            layers=1,
            ties="conservative",
        ),
    ),
    Mistake("the reset mask is applied again in each step", reset_in_every_step, _EPOCH),
    Mistake("softmax before cross-entropy", softmax_before_cross_entropy, partial(_GRADIENT, loss="cross-entropy")),
    Mistake(
        "BPR-max's softmax has the target in it",
        target_in_the_softmax,
        partial(_RANKING, loss="bpr-max", activation="elu"),
    ),
    Mistake(
        "BPR-max without its regulariser", no_score_regulariser, partial(_RANKING, loss="bpr-max", activation="linear")
    ),
    Mistake(
        "TOP1 without the target's correction",
        top1_with_the_target,
        partial(_RANKING, loss="top1", activation="linear"),
    ),
    Mistake(
        "all items are scored, then a slice is taken",
        score_everything_then_slice,
        test_a_step_makes_nothing_of_the_catalogues_size,
    ),
    Mistake("gradients of the embedding are dense", dense_gradients, test_a_step_makes_nothing_of_the_catalogues_size),
    Mistake("dense gradients move rows that no step touches", dense_gradients, partial(_ROWS, momentum=0.4)),
    Mistake("no samples beside the batch", no_extra_samples, test_fit.test_extra_samples_train_the_items_they_hit),
    Mistake(
        "no dropout with one layer",
        dropout_between_layers_only,
        partial(test_fit.test_dropout_acts_with_a_single_layer, which="dropout_hidden"),
    ),
    Mistake(
        "the rate of dropout is that of keeping",
        keep_for_drop,
        test_fit.test_the_rate_is_the_share_that_is_dropped_and_the_rest_makes_up_for_it,
    ),
    Mistake(
        "weights start as those of torch's GRU",
        bounds_of_torchs_gru,
        test_gru4rec.test_weights_start_uniform_a_gate_at_a_time_and_biases_at_zero,
    ),
    Mistake(
        "weights start by the size of the stacked gates",
        bounds_of_the_stacked_gates,
        test_gru4rec.test_weights_start_uniform_a_gate_at_a_time_and_biases_at_zero,
    ),
    Mistake("Adam in Adagrad's place", adam, partial(_ROWS, momentum=0.0)),
    Mistake(
        "Adagrad's accumulator begins above zero",
        accumulator_begins_above_zero,
        test_optimizer.test_the_accumulator_starts_at_zero_and_epsilon_is_inside_the_root,
    ),
    Mistake(
        "an epoch ends with the first exhausted lane",
        stop_at_the_first_exhausted_lane,
        test_fit.test_every_transition_counts_once_an_epoch,
    ),
    Mistake(
        "metrics are means of batches",
        average_batches,
        test_evaluate.test_a_long_session_weighs_by_its_predictions,
    ),
    Mistake(
        "the target is ranked among a sample of items",
        rank_among_a_sample,
        partial(
            test_evaluate.test_every_prefix_of_every_session_is_a_prediction_from_a_state_of_zero,
            layers=1,
            ties="standard",
        ),
    ),
    Mistake("the split is random", split_at_random, test_sessions.test_the_holdout_is_the_newest_sessions),
    Mistake(
        "ties count for the model",
        let_ties_count_for_the_model,
        test_evaluate.test_a_constant_model_hits_nothing_by_default,
    ),
)


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.name)
def test_a_mistake_is_caught(mistake: Mistake, monkeypatch: pytest.MonkeyPatch) -> None:
    mistake.guard()
    with monkeypatch.context() as patch:
        mistake.make(patch)
        with pytest.raises(AssertionError):
            mistake.guard()
    mistake.guard()  # nothing of it is left


def test_the_page_on_the_method_has_every_mistake_and_its_guard() -> None:
    rows = [[mistake.name, f"`{mistake.caught_by}`"] for mistake in MISTAKES]
    assert table(REPOSITORY / "docs" / "method.md", "| mistake | caught by |") == rows
