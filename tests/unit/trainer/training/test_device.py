"""Training on another device: by make-believe (see far_device.py), and on a GPU where there is one."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.unit.trainer.builders import random_sessions, sessions_of
from tests.unit.trainer.far_device import FAR, FarDevice, FarTensor, MixedDevicesError
from tests.unit.trainer.training.test_checkpoint import KilledError, assert_same_run
from tests.unit.trainer.training.test_known_mistakes import rewritten
from trainer.errors import TrainingDivergedError, TrainingSettingsError
from trainer.models.settings import Gru4RecSettings
from trainer.training import dropout, engine
from trainer.training.checkpoint import CheckpointError
from trainer.training.device import CPU, LEAST_TRANSITIONS, Hardware
from trainer.training.early_stopping import EarlyStopping
from trainer.training.fit import FitResult, fit
from trainer.training.gru import optimizer, step
from trainer.training.gru.device_steps import DeviceSteps
from trainer.training.gru.engine import engine_of
from trainer.training.gru.reference_steps import ReferenceSteps

SESSIONS = random_sessions(14, items=12, longest=6)
HOLDOUT = random_sessions(8, items=12, seed=9)
SMALL = {
    "engine": "torch",
    "hidden_size": 8,
    "batch_size": 6,
    "n_sample": 10,
    "epochs": 2,
    "dropout_input": 0.2,
    "dropout_hidden": 0.3,
}
CHOICES: tuple[dict[str, object], ...] = (
    {},
    {"momentum": 0.2, "logq": 0, "averaging": 0},
    {"optimizer": "sgd"},
    {"optimizer": "sgd", "momentum": 0.3, "n_sample": 0},
    {"loss": "bpr", "embedding": "separate", "embedding_l2": 0.02},
    {"loss": "top1", "embedding": "one-hot", "momentum": 0.1, "activation": "tanh"},
    {"loss": "bpr-max", "layers": 2, "input_decay": 0.5},
    {"loss": "bpr-max", "n_sample": 0, "batch_size": 1000, "activation": "relu"},
    {"loss": "top1-max", "layers": 3, "deep_input": True},
    {"embedding": "one-hot", "layers": 2, "input_decay": 0.5, "embedding_l2": 0.02},
    {"layers": 0, "embedding": "separate"},
    {"dropout_input": 0, "dropout_hidden": 0},
    {"n_sample": 100_000, "epochs": 1},  # the sampler's pool ends within an epoch, again and again
)


def settings_of(change: dict[str, object]) -> Gru4RecSettings:
    return Gru4RecSettings.parse(SMALL | change)


@pytest.fixture
def far(monkeypatch: pytest.MonkeyPatch) -> Iterator[FarDevice]:
    """Every fit trains on the make-believe device."""
    monkeypatch.setattr(Hardware, "device_of", lambda *_: FAR)
    monkeypatch.setattr(engine, "device_identity", lambda device: {"device": str(device)})
    with FarDevice() as device:
        yield device


def on_host(*arguments: Any, **named: Any) -> FitResult:
    """The same by the plain steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Hardware, "device_of", lambda *_: CPU)
        return fit(*arguments, **named)


@pytest.mark.parametrize("threads", [0, 2])
def test_no_more_threads_than_processors(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Numba's own refusal came with a traceback, from deep within the first step."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    with pytest.raises(TrainingSettingsError, match=f"threads={threads}: this process may use 1 to 1 processors"):
        Hardware(threads=threads)


@pytest.mark.parametrize("change", CHOICES, ids=str)
def test_the_device_learns_the_hosts_bits(change: dict[str, object], far: FarDevice) -> None:
    found = fit(SESSIONS, settings_of(change))
    assert far.operations > 100
    assert found.device == FAR
    assert not any(isinstance(tensor, FarTensor) for tensor in found.network.tensors().values())
    assert_same_run(found, on_host(SESSIONS, settings_of(change)))


@pytest.mark.parametrize("change", CHOICES[:5], ids=str)
def test_copies_on_the_host_learn_its_bits_too(change: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    expected = fit(SESSIONS, settings_of(change))
    made: list[DeviceSteps] = []

    def steps_of(_engine: str, *arguments: Any, threads: int, **named: Any) -> DeviceSteps:
        made.append(DeviceSteps(*arguments, **named))
        return made[-1]

    monkeypatch.setattr("trainer.training.gru.training.steps_of", steps_of)
    assert_same_run(fit(SESSIONS, settings_of(change)), expected)
    assert len(made) == 1


@pytest.mark.parametrize("change", [{"momentum": 0.2}, {"optimizer": "sgd", "momentum": 0.2, "averaging": 0}], ids=str)
def test_killed_after_an_epoch_it_goes_on_from_there(tmp_path: Path, change: dict[str, object], far: FarDevice) -> None:
    """Weights, their mean, the best of them and the optimizers' state: all are at home between two epochs."""
    path = tmp_path / "checkpoint.safetensors"
    stopping = EarlyStopping(HOLDOUT, patience=4)
    settings = settings_of(change | {"epochs": 3})

    def killed(_: object) -> None:
        raise KilledError

    for _ in range(2):
        with pytest.raises(KilledError):
            fit(SESSIONS, settings, early_stopping=stopping, checkpoint=path, on_epoch=killed)
    found = fit(SESSIONS, settings, early_stopping=stopping, checkpoint=path)
    assert_same_run(found, on_host(SESSIONS, settings, early_stopping=stopping))
    assert far.operations > 0
    with pytest.raises(CheckpointError, match=r"of another run.*device"):
        on_host(SESSIONS, settings, early_stopping=stopping, checkpoint=path)


def test_a_warm_start_is_where_it_starts(far: FarDevice) -> None:
    settings = settings_of({})
    start = on_host(SESSIONS, settings).network
    assert_same_run(fit(SESSIONS, settings, warm_start=start), on_host(SESSIONS, settings, warm_start=start))
    start.output[0, 0] = float("nan")
    with pytest.raises(TrainingDivergedError):
        fit(SESSIONS, settings, warm_start=start)


def test_the_host_neither_sends_nor_waits_within_its_64_steps(far: FarDevice) -> None:
    """Of an epoch of twice the steps, all with as many lanes: twice the work there, and no more traffic."""
    settings, counts = settings_of({"batch_size": 4, "epochs": 1}), []
    for steps in (30, 60):
        before = far.sent, far.waits, far.operations
        fit(sessions_of([[i % 7 for i in range(lane, lane + steps + 1)] for lane in range(4)]), settings)
        counts.append([now - then for now, then in zip((far.sent, far.waits, far.operations), before, strict=True)])
    (sent, waits, operations), more = counts
    assert more[:2] == [sent, waits]
    assert more[2] > 1.8 * operations


# -- the make-believe can tell ----------------------------------------------------------------------------------------


def _of(owner: Any, name: str, old: str, new: str) -> Callable[[pytest.MonkeyPatch], None]:
    def make(patch: pytest.MonkeyPatch) -> None:
        patch.setattr(owner, name, rewritten(getattr(owner, name), old, new))

    return make


LEFT_BEHIND = {
    "clicks": _of(ReferenceSteps, "begin", "from_numpy(items).to(self._device)", "from_numpy(items)"),
    "positions": _of(
        ReferenceSteps, "begin", "from_numpy(plan.position).to(self._device)", "from_numpy(plan.position)"
    ),
    "fresh": _of(ReferenceSteps, "begin", "from_numpy(plan.fresh).to(self._device)", "from_numpy(plan.fresh)"),
    "hidden": _of(ReferenceSteps, "begin", "torch.zeros(size, device=self._device)", "torch.zeros(size)"),
    "samples": _of(ReferenceSteps, "_touched", "draw_steps(steps)).to(self._device)", "draw_steps(steps))"),
    "masks": _of(
        dropout, "mask", "torch.arange(shape[0] * shape[1], device=device)", "torch.arange(shape[0] * shape[1])"
    ),
    "first rows": _of(optimizer.Rows, "sum", "self.start", "self.start.cpu()"),
    "support": _of(step, "logq_correction", "support.clamp", "support.cpu().clamp"),
}


@pytest.mark.parametrize("what", LEFT_BEHIND)
def test_what_stays_on_the_host_is_found(what: str, far: FarDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    LEFT_BEHIND[what](monkeypatch)
    with pytest.raises(MixedDevicesError):
        fit(SESSIONS, settings_of({"epochs": 1}))


# -- which device -----------------------------------------------------------------------------------------------------


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Lets torch have so many; the choice of the process is undone at the end."""

    def there_are(count: int) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)

    return there_are


@pytest.mark.parametrize("name", ["cuda", "cuda:1", "gpu", "mps", "cuda:", "cuda:-1", "CPU", ""])
def test_a_device_that_torch_has_not_is_refused(name: str, gpus: Callable[[int], None]) -> None:
    gpus(0)
    expected = "finds no GPU here; set cpu or auto" if name in ("cuda", "cuda:1") else "must be auto, cpu, cuda"
    with pytest.raises(TrainingSettingsError, match=f"^device={name}: .*{expected}"):
        Hardware(device=name)


def test_a_gpu_that_is_not_there_is_refused(gpus: Callable[[int], None]) -> None:
    gpus(2)
    assert Hardware(device="cuda:1").device_of(Gru4RecSettings(), 1) == torch.device("cuda:1")
    with pytest.raises(TrainingSettingsError, match=r"device=cuda:2: there is no such GPU, the last one is cuda:1"):
        Hardware(device="cuda:2")


def test_auto_takes_a_gpu_where_it_pays(gpus: Callable[[int], None]) -> None:
    gpus(1)
    many, gpu = LEAST_TRANSITIONS, torch.device("cuda")
    device_of = Hardware().device_of
    assert device_of(Gru4RecSettings(), many) == gpu
    assert device_of(Gru4RecSettings(), many - 1) == CPU
    assert device_of(Gru4RecSettings(n_sample=0), many) == CPU  # a step is too small
    assert device_of(Gru4RecSettings(n_sample=0, hidden_size=1000), many) == gpu
    assert device_of(Gru4RecSettings(engine="compiled"), many) == CPU
    gpus(0)
    assert device_of(Gru4RecSettings(), many) == CPU
    gpus(1)
    assert Hardware(device="cpu").device_of(Gru4RecSettings(), many) == CPU


def test_compiled_code_does_not_run_on_a_gpu(gpus: Callable[[int], None]) -> None:
    gpus(1)
    gpu = Hardware().device_of(Gru4RecSettings(), 10**9)  # auto chooses it
    assert engine_of(Gru4RecSettings(), 10**9, gpu) == "torch"
    with pytest.raises(TrainingSettingsError, match=r"engine=compiled: .*runs on the CPU, and device=cuda was chosen"):
        engine_of(Gru4RecSettings(engine="compiled"), 10**9, gpu)


# -- a real one -------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch has no GPU here: what one computes is not compared")
@pytest.mark.parametrize("change", CHOICES, ids=str)
def test_a_gpu_learns_the_same(change: dict[str, object], gpus: Callable[[int], None]) -> None:
    settings = settings_of(change)
    expected = fit(SESSIONS, settings, hardware=Hardware(device="cpu"))
    found = fit(SESSIONS, settings, hardware=Hardware(device="cuda"))
    assert found.device.type == "cuda"
    for name, tensor in expected.network.tensors().items():
        torch.testing.assert_close(found.network.tensors()[name], tensor, rtol=1e-3, atol=3e-4, msg=name)
    losses = [[epoch.loss for epoch in result.epochs] for result in (found, expected)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4, abs=1e-6)
