"""A run that was killed and resumed is the run that was not, to the bit."""

import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unit.trainer.builders import random_sessions
from trainer.models.gru4rec import Weights
from trainer.models.settings import Gru4RecSettings
from trainer.training import checkpoint as checkpoints
from trainer.training.checkpoint import CheckpointError
from trainer.training.early_stopping import EarlyStopping, Epoch
from trainer.training.fit import FitResult, fit

SESSIONS = random_sessions(40, items=30)
HOLDOUT = random_sessions(20, items=30, seed=9)
# A pool that is not used up at an epoch's end, two optimizer states, and random masks: all must be carried over.
SMALL = {
    "hidden_size": 8,
    "batch_size": 4,
    "n_sample": 6,
    "epochs": 4,
    "momentum": 0.2,
    "dropout_input": 0.2,
    "dropout_hidden": 0.3,
}


class KilledError(Exception):
    """What stands for the kill in these tests."""


def assert_same_run(found: FitResult, expected: FitResult) -> None:
    for name, tensor in expected.network.tensors().items():
        assert found.network.tensors()[name].numpy().tobytes() == tensor.numpy().tobytes(), name
    assert [(e.number, e.loss, e.score) for e in found.epochs] == [(e.number, e.loss, e.score) for e in expected.epochs]


def _kill_after(number: int) -> Callable[[Epoch], None]:
    """Of an ``on_epoch``; epochs after the number must not come about."""

    def hear(epoch: Epoch) -> None:
        assert epoch.number <= number
        if epoch.number == number:
            raise KilledError

    return hear


@pytest.mark.parametrize("judged", [False, True])
@pytest.mark.parametrize(
    "change",
    [
        {},
        {"engine": "compiled"},
        {"optimizer": "sgd"},
        {"embedding": "separate", "layers": 2, "input_decay": 0.5},
        {"n_sample": 0},
    ],
)
def test_killed_after_any_epoch(tmp_path: Path, change: dict[str, object], judged: bool) -> None:
    settings = Gru4RecSettings.parse(SMALL | change)
    stopping = EarlyStopping(HOLDOUT, patience=4) if judged else None
    expected = fit(SESSIONS, settings, early_stopping=stopping)
    path = tmp_path / "run" / "checkpoint.safetensors"
    for number in range(1, settings.epochs):  # one process an epoch
        with pytest.raises(KilledError):
            fit(SESSIONS, settings, early_stopping=stopping, checkpoint=path, on_epoch=_kill_after(number))
    heard: list[int] = []
    found = fit(SESSIONS, settings, early_stopping=stopping, checkpoint=path, progress=heard.append)
    assert_same_run(found, expected)
    assert sum(heard) == settings.epochs * SESSIONS.transitions
    assert [path.name for path in path.parent.iterdir()] == ["checkpoint.safetensors"]


def test_killed_within_an_epoch(tmp_path: Path) -> None:
    settings = Gru4RecSettings.parse(SMALL)
    path = tmp_path / "checkpoint.safetensors"
    with pytest.raises(KilledError):
        fit(SESSIONS, settings, checkpoint=path, on_epoch=_kill_after(2))

    def killed(done: int) -> None:
        if done < 2 * SESSIONS.transitions:  # the third epoch's first report, not that of the epochs resumed
            raise KilledError

    with pytest.raises(KilledError):
        fit(SESSIONS, settings, checkpoint=path, progress=killed)
    assert_same_run(fit(SESSIONS, settings, checkpoint=path), fit(SESSIONS, settings))


def test_killed_while_the_checkpoint_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Gru4RecSettings.parse(SMALL)
    path = tmp_path / "checkpoint.safetensors"
    with pytest.raises(KilledError):
        fit(SESSIONS, settings, checkpoint=path, on_epoch=_kill_after(1))
    before = path.read_bytes()

    def killed(file: int) -> None:
        os.truncate(file, os.fstat(file).st_size // 2)
        raise KilledError

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", killed)
        with pytest.raises(KilledError):
            fit(SESSIONS, settings, checkpoint=path)
    assert path.read_bytes() == before
    assert_same_run(fit(SESSIONS, settings, checkpoint=path), fit(SESSIONS, settings))


def test_a_finished_run_is_not_trained_again_and_can_be_made_longer(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    settings = Gru4RecSettings.parse(SMALL)
    shorter = settings.model_copy(update={"epochs": 2})
    first = fit(SESSIONS, shorter, checkpoint=path)
    assert_same_run(fit(SESSIONS, shorter, checkpoint=path, on_epoch=_kill_after(0)), first)
    again: list[Epoch] = []
    longer = fit(SESSIONS, settings, checkpoint=path, on_epoch=again.append)
    assert [epoch.number for epoch in again] == [3, 4]
    assert_same_run(longer, fit(SESSIONS, settings))


def test_a_run_that_went_further_than_is_asked_for_is_refused(tmp_path: Path) -> None:
    """Its weights are those of more epochs than the settings, and so the manifest, would say."""
    path = tmp_path / "checkpoint.safetensors"
    settings = Gru4RecSettings.parse(SMALL)
    fit(SESSIONS, settings, checkpoint=path)
    before = path.read_bytes()
    with pytest.raises(CheckpointError, match=r"of a run of 4 epochs, and epochs=3 is asked for"):
        fit(SESSIONS, settings.model_copy(update={"epochs": 3}), checkpoint=path)
    assert path.read_bytes() == before


def test_a_warm_start_is_part_of_the_run(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    settings = Gru4RecSettings.parse(SMALL)
    start = fit(SESSIONS, settings.model_copy(update={"epochs": 1})).network
    with pytest.raises(KilledError):
        fit(SESSIONS, settings, warm_start=start, checkpoint=path, on_epoch=_kill_after(1))
    found = fit(SESSIONS, settings, warm_start=start, checkpoint=path)
    assert_same_run(found, fit(SESSIONS, settings, warm_start=start))
    with pytest.raises(CheckpointError, match="another run"):
        fit(SESSIONS, settings, checkpoint=path)


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    settings = Gru4RecSettings.parse(SMALL)
    fit(SESSIONS, settings, checkpoint=path)
    for sessions, other, stopping in [
        (random_sessions(40, items=30, seed=2), settings, None),
        (SESSIONS, settings.model_copy(update={"learning_rate": 0.2}), None),
        (SESSIONS, settings, EarlyStopping(HOLDOUT)),
    ]:
        with pytest.raises(CheckpointError, match=r"checkpoint\.safetensors: is of another run.*remove it"):
            fit(sessions, other, early_stopping=stopping, checkpoint=path)


@pytest.mark.parametrize("damage", ["empty", "half", "text", "pickle", "flipped"])
def test_a_damaged_checkpoint_is_refused(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "checkpoint.safetensors"
    settings = Gru4RecSettings.parse(SMALL)
    fit(SESSIONS, settings.model_copy(update={"epochs": 1}), checkpoint=path)
    whole = path.read_bytes()
    match damage:
        case "empty":
            path.write_bytes(b"")
        case "half":
            path.write_bytes(whole[: len(whole) // 2])
        case "text":
            path.write_text("not a checkpoint")
        case "pickle":
            path.write_bytes(pickle.dumps({"about": 1}))
        case "flipped":
            middle = len(whole) // 2
            path.write_bytes(whole[:middle] + bytes([whole[middle] ^ 0xFF]) + whole[middle + 1 :])
    with pytest.raises(CheckpointError, match=r"checkpoint\.safetensors: no whole checkpoint.*remove it"):
        fit(SESSIONS, settings, checkpoint=path)


def test_no_file_is_no_checkpoint(tmp_path: Path) -> None:
    assert checkpoints.load(tmp_path / "none.safetensors", "any", Weights.of_tensors) is None
