"""The compiled steps against the plain ones of torch, which other tests hold to the papers."""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import REPOSITORY
from tests.unit.examples import at_most
from tests.unit.trainer.builders import random_sessions
from tests.unit.trainer.networks import gru
from trainer.compilation import sources
from trainer.errors import TrainingDivergedError, TrainingSettingsError
from trainer.models.settings import Gru4RecSettings
from trainer.training import dropout
from trainer.training.device import CPU, LEAST_TRANSITIONS, Hardware
from trainer.training.fit import FitResult, fit
from trainer.training.gru.compiled import arithmetic
from trainer.training.gru.compiled.arithmetic import ONE, ZERO
from trainer.training.gru.compiled.gru import scrambled
from trainer.training.gru.compiled.losses import cross_entropy
from trainer.training.gru.engine import engine_of

SESSIONS = random_sessions(40, items=25, seed=3)
TYPED = replace(SESSIONS, types=(SESSIONS.items % 3).astype(np.int32), type_names=("view", "cart", "purchase"))

# Few items: columns that are drawn several times, hit a target, or are input as well.
CHOICES = st.fixed_dictionaries(
    {
        "loss": st.sampled_from(["cross-entropy", "bpr", "top1", "bpr-max", "top1-max"]),
        "embedding": st.sampled_from(["shared", "separate", "one-hot"]),
        "optimizer": st.sampled_from(["adagrad", "sgd"]),
        "momentum": st.sampled_from([0.0, 0.3]),
        "hidden_size": st.sampled_from([1, 7, 16, 21]),
        "batch_size": st.sampled_from([1, 5, 64]),
        "n_sample": st.sampled_from([1, 30, 150]),
        "dropout_input": st.sampled_from([0.0, 0.3]),
        "dropout_hidden": st.sampled_from([0.0, 0.4]),
        "embedding_l2": st.sampled_from([0.0, 0.05]),
        "input_decay": st.sampled_from([0.0, 0.6]),
        "seed": st.integers(0, 2**40),
        "target_weights": st.sampled_from(["", "cart=2,purchase=5", "view=0"]),
    }
)
OF_LOSSES = st.fixed_dictionaries(
    {
        "activation": st.sampled_from(["linear", "elu", "tanh", "relu"]),
        "logq": st.sampled_from([0.0, 0.5, 1.0]),
        "bpreg": st.sampled_from([0.0, 1.95]),
    }
)


def both(values: dict[str, object]) -> tuple[FitResult, FitResult]:
    settings = Gru4RecSettings.parse({"learning_rate": 0.05, "epochs": 2} | values)
    plain = fit(TYPED, settings.model_copy(update={"engine": "torch"}))
    fast = fit(TYPED, settings.model_copy(update={"engine": "compiled"}))
    assert (plain.engine, fast.engine) == ("torch", "compiled")
    return plain, fast


def assert_same(plain: FitResult, fast: FitResult) -> None:
    for name, tensor in plain.network.tensors().items():
        torch.testing.assert_close(fast.network.tensors()[name], tensor, rtol=1e-3, atol=3e-4, msg=name)
    losses = [[epoch.loss for epoch in result.epochs] for result in (fast, plain)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4, abs=1e-6)


@given(values=CHOICES, more=OF_LOSSES)
@at_most(60)
def test_they_learn_the_same(values: dict[str, object], more: dict[str, object]) -> None:
    if values["loss"] == "cross-entropy":
        values |= {"logq": more["logq"]}
    else:
        values |= {"activation": more["activation"], "bpreg": more["bpreg"]}
    assert_same(*both(values))


@pytest.mark.parametrize("loss", ["cross-entropy", "bpr-max"])
def test_without_samples(loss: str) -> None:
    assert_same(*both({"loss": loss, "n_sample": 0, "batch_size": 6, "hidden_size": 8}))


@pytest.mark.parametrize("loss", ["cross-entropy", "bpr", "top1", "bpr-max", "top1-max"])
def test_one_step_of_plain_descent_is_the_gradient(loss: str) -> None:
    """A step of size 1: what the weights changed by is the gradient, with nothing in between to hide behind."""
    values: dict[str, object] = {"loss": loss, "optimizer": "sgd", "learning_rate": 1.0, "batch_size": 40}
    values |= {"hidden_size": 16, "n_sample": 50, "epochs": 1, "dropout_hidden": 0.2}
    one = random_sessions(40, items=25, longest=2, seed=5)  # one transition each: one step
    settings = Gru4RecSettings.parse(values)
    plain = fit(one, settings.model_copy(update={"engine": "torch"})).network
    fast = fit(one, settings.model_copy(update={"engine": "compiled"})).network
    for name, tensor in plain.tensors().items():
        torch.testing.assert_close(fast.tensors()[name], tensor, rtol=1e-5, atol=2e-6, msg=name)


def test_runs_of_the_same_seed_are_equal_to_the_bit() -> None:
    settings = Gru4RecSettings.parse({"engine": "compiled", "hidden_size": 16, "batch_size": 8, "n_sample": 40})
    first, second = fit(SESSIONS, settings), fit(SESSIONS, settings)
    for name, tensor in first.network.tensors().items():
        assert torch.equal(tensor, second.network.tensors()[name])
    assert [e.loss for e in first.epochs] == [e.loss for e in second.epochs]
    other = fit(SESSIONS, settings.model_copy(update={"seed": 7}))
    assert not torch.equal(first.network.output, other.network.output)


@pytest.mark.parametrize("loss", ["cross-entropy", "bpr-max"])
@pytest.mark.parametrize("engine", ["compiled", "torch"])
def test_equal_weights_of_targets_are_none_to_the_bit(engine: str, loss: str) -> None:
    values = {"engine": engine, "loss": loss, "hidden_size": 16, "batch_size": 8, "n_sample": 40, "epochs": 1}
    plain = fit(SESSIONS, Gru4RecSettings.parse(values))
    equal = fit(TYPED, Gru4RecSettings.parse(values | {"target_weights": "view=5,cart=5,purchase=5"}))
    other = fit(TYPED, Gru4RecSettings.parse(values | {"target_weights": "purchase=5"}))
    for name, tensor in plain.network.tensors().items():
        assert torch.equal(tensor, equal.network.tensors()[name])
    assert plain.epochs[0].loss == equal.epochs[0].loss
    assert not torch.equal(plain.network.output, other.network.output)


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="two threads need two processors")
def test_two_threads_learn_the_same_and_repeat_to_the_bit() -> None:
    # More lanes than parts at first, fewer at the end.
    settings = Gru4RecSettings.parse(
        {"hidden_size": 16, "batch_size": 7, "n_sample": 40, "epochs": 2, "engine": "compiled"}
    )
    one = fit(SESSIONS, settings)
    two = Hardware(threads=2)
    first, second = fit(SESSIONS, settings, hardware=two), fit(SESSIONS, settings, hardware=two)
    separate = fit(SESSIONS, settings.model_copy(update={"embedding": "separate", "momentum": 0.2}), hardware=two)
    assert_same(one, first)
    assert_same(fit(SESSIONS, separate.settings), separate)
    for name, tensor in first.network.tensors().items():
        assert torch.equal(tensor, second.network.tensors()[name])


@pytest.mark.parametrize(
    "chosen",
    [{}, {"loss": "bpr"}, {"loss": "top1"}, {"loss": "top1-max"}]
    + [{"loss": "bpr-max", "activation": of} for of in ("linear", "elu", "tanh", "relu")],
    ids=str,
)
def test_a_loss_that_is_no_number_stops_the_run(chosen: dict[str, object]) -> None:
    small = {"engine": "compiled", "hidden_size": 8, "batch_size": 4, "n_sample": 6}
    settings = Gru4RecSettings.parse(small | chosen)
    broken = gru(fit(SESSIONS, settings).network)
    broken.layers[0].u[0, 0] = np.nan
    with pytest.raises(TrainingDivergedError, match=r"epoch 1.*learning_rate"):
        fit(SESSIONS, settings, warm_start=broken)


# -- which one runs ---------------------------------------------------------------------------------------------------


def test_the_compiled_steps_run_where_they_pay() -> None:
    assert engine_of(Gru4RecSettings(), LEAST_TRANSITIONS, CPU) == "compiled"
    assert engine_of(Gru4RecSettings(), LEAST_TRANSITIONS - 1, CPU) == "torch"
    assert engine_of(Gru4RecSettings(engine="compiled"), 1, CPU) == "compiled"
    assert engine_of(Gru4RecSettings(engine="torch"), 10**9, CPU) == "torch"


def test_what_they_do_not_know_torch_does() -> None:
    settings = Gru4RecSettings(layers=2)
    assert engine_of(settings, 10**9, CPU) == "torch"
    with pytest.raises(TrainingSettingsError, match=r"one layer, and these settings have 2.*engine=torch"):
        engine_of(settings.model_copy(update={"engine": "compiled"}), 10**9, CPU)


# -- parts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "exact"),
    [
        ("exp", np.exp),
        ("sigmoid", lambda x: 1 / (1 + np.exp(-x))),
        ("tanh", np.tanh),
        ("softplus", lambda x: np.logaddexp(0, x)),
    ],
)
def test_elementary_functions(name: str, exact: np.ufunc) -> None:
    x = np.concatenate([np.linspace(-85, 85, 4001), np.linspace(-2, 2, 4001)]).astype(np.float32)
    found = np.array([getattr(arithmetic, name)(number) for number in x])
    np.testing.assert_allclose(found, exact(x.astype(np.float64)), rtol=5e-7, atol=2e-7)
    assert np.isnan(getattr(arithmetic, name)(np.float32(np.nan)))
    assert np.isfinite([getattr(arithmetic, name)(np.float32(number)) for number in (-1e30, 1e30)]).all()


def callable_from_here(compiled: Callable[..., Any]) -> Callable[..., Any]:
    """A compiled function has no entry for the interpreter: one that calls it."""
    entry: Callable[..., Any] = numba.njit(lambda *arguments: compiled(*arguments))  # noqa: PLW0108
    return entry


@pytest.mark.parametrize("own", [-3.0, 0.0, 200.0, -200.0, -1e6])
def test_cross_entropy_wherever_the_target_stands(own: float) -> None:
    """Exponentials of the distance to a target that others tower over are no numbers of float32."""
    r = np.linspace(-4, 5, 150, dtype=np.float32)
    bias = np.cos(r)
    r[40] = own
    scores = torch.from_numpy((r + bias).astype(np.float64)).requires_grad_()
    loss = torch.nn.functional.cross_entropy(scores, torch.tensor(40))
    (gradient,) = torch.autograd.grad(loss, scores)
    d_bias = np.ones_like(r)
    found = callable_from_here(cross_entropy)(r, bias, d_bias, 40, ZERO, ONE, np.empty_like(r))
    assert found == pytest.approx(float(loss.detach()), rel=1e-5, abs=1e-6)
    np.testing.assert_allclose(r, gradient, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(d_bias, 1 + r, atol=1e-6)


def test_masks_are_those_of_the_plain_step() -> None:
    (key,) = dropout.keys(seed=3, first_step=5, steps=1, masks=1)[0]
    places, alone = torch.arange(1000), callable_from_here(scrambled)
    assert [alone(place, key) for place in range(1000)] == dropout.scrambled(places, int(key)).tolist()


def test_another_code_is_kept_under_another_number(tmp_path: Path) -> None:
    """Numba itself looks at one file only, and would run yesterday's code after a change in another."""
    copy = tmp_path / "steps.py"
    copy.write_text("x = 1\n")
    (tmp_path / "other.py").write_text("x = 1\n")
    before = sources(str(copy))
    assert before == sources(str(copy)) != 0
    (tmp_path / "other.py").write_text("x = 2\n")
    assert sources(str(copy)) != before


def test_of_processes_that_start_together_one_compiles(tmp_path: Path) -> None:
    (tmp_path / "kept_here.py").write_text(
        "from trainer.compilation import kept\ndef double(x):\n    return x + x\nof_two = kept(double)\n"
    )
    program = (
        "import kept_here, numba.core.event as event, pathlib, sys, time\n"
        "compiled = event.RecordingListener(); event.register('numba:compile', compiled)\n"
        "pathlib.Path(sys.argv[1]).touch()\n"
        "while not pathlib.Path(sys.argv[2]).exists(): time.sleep(0.001)\n"
        "assert kept_here.of_two(2.5) == 5\n"
        "print(len(compiled.buffer) > 0)\n"
    )
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}:{REPOSITORY}", "NUMBA_CACHE_DIR": str(tmp_path)}
    processes = [
        subprocess.Popen([sys.executable, "-c", program, *ready], cwd=tmp_path, env=environment, stdout=subprocess.PIPE)
        for ready in (("a", "b"), ("b", "a"))
    ]
    assert sorted(process.communicate()[0].strip() for process in processes) == [b"False", b"True"]
