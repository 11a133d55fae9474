"""Several families as one model: each is trained as it is alone."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.unit.trainer.builders import random_sessions
from trainer.models.base import Network
from trainer.models.mixed import MixedSettings
from trainer.models.settings import NetworkSettings, TrainingSettings
from trainer.training.early_stopping import EarlyStopping
from trainer.training.fit import fit
from trainer.training.networks import seed_of, split
from trainer.training.shrink import shrink_and_perturb
from trainer.training.train import train, transitions_to_fit
from trainer.training.warm_start import fits, is_whole, warm_start

SESSIONS = random_sessions(80, items=30)
SMALL: dict[str, object] = {"hidden_size": 6, "batch_size": 8, "n_sample": 10, "epochs": 2}
WINDOW = 6


def settings(**changed: object) -> MixedSettings:
    tables = {"gru4rec": {**SMALL, "members": 2}, "stamp": {**SMALL, "epochs": 3, "weight": 0.5}}
    values = {"family": "gru4rec+stamp", "window": WINDOW, "memory": "none", **tables}
    return MixedSettings.parse({**values, **changed})


def same(a: Network, b: Network, *, but: str = "") -> bool:
    one, two = a.tensors(), b.tensors()
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one if name != but)


def test_every_member_is_what_its_family_makes_alone() -> None:
    result = fit(SESSIONS, settings())
    found = split(result.network, settings())
    assert result.settings == settings()
    assert result.kept == {"gru4rec": 2, "stamp": 3}
    assert result.again == settings()
    for number, member in enumerate(found):
        told = {"family": "gru4rec", **SMALL} if number < 2 else {"family": "stamp", **SMALL, "epochs": 3}
        alone = TrainingSettings.parse({**told, "seed": seed_of(42, number), **({"window": 6} if number == 2 else {})})
        assert same(fit(SESSIONS, alone).network, member, but="output_bias")
    assert transitions_to_fit(SESSIONS, settings()) == SESSIONS.transitions * (2 + 2 + 3)


def test_a_run_that_was_stopped_goes_on_member_by_member(tmp_path: Path) -> None:
    heard: list[int] = []
    whole = fit(SESSIONS, settings(), progress=heard.append).network
    for stop in (2, len(heard) // 2, len(heard) - 1):
        calls = iter(range(stop))

        def stopping(_: int, calls: Iterator[int] = calls) -> None:
            next(calls)

        path = tmp_path / f"{stop}.safetensors"
        with pytest.raises(StopIteration):
            fit(SESSIONS, settings(), checkpoint=path, progress=stopping)
        assert same(fit(SESSIONS, settings(), checkpoint=path).network, whole)
        assert {one.name for one in tmp_path.glob(f"{stop}.*")} == {
            f"{stop}.safetensors", f"{stop}.safetensors.member1", f"{stop}.safetensors.member2",
        }  # fmt: skip


def test_every_family_stops_when_it_is_at_its_best() -> None:
    stopping = EarlyStopping(random_sessions(20, items=30, seed=9), patience=1)
    many = settings(gru4rec={**SMALL, "epochs": 20, "members": 2}, stamp={**SMALL, "epochs": 20, "learning_rate": 0.05})
    heard: list[int] = []
    result = fit(SESSIONS, many, early_stopping=stopping, on_epoch=lambda epoch: heard.append(epoch.number))
    assert heard == [epoch.number for epoch in result.epochs]
    again = result.again
    assert isinstance(again, MixedSettings)
    assert {part.family: part.epochs for part in again.parts.values()} == result.kept
    assert result.kept["gru4rec"] == result.best_epoch < 20
    alone = NetworkSettings.parse(
        {"family": "stamp", **SMALL, "window": 6, "epochs": 20, "learning_rate": 0.05, "seed": seed_of(42, 2)}
    )
    assert result.kept["stamp"] == fit(SESSIONS, alone, early_stopping=stopping).best_epoch


def test_a_whole_starts_the_next_one() -> None:
    old = fit(SESSIONS, settings()).network
    assert is_whole(old, settings())
    assert not fits(old, settings(gru4rec=SMALL))  # a member less
    ids = (*SESSIONS.item_ids[3:], "new")
    carried = warm_start(old, SESSIONS.item_ids, ids, settings())
    for name, tensor in carried.tensors().items():
        before = old.tensors()[name]
        if name in ("input", "output", "output_bias"):
            assert torch.equal(tensor[:-1], before[3:])
        else:
            assert torch.equal(tensor, before)
    # A step that moves nothing shows that every member begins where its predecessor ended.
    still = {**SMALL, "learning_rate": 1e-9, "averaging": 0}
    slow = settings(gru4rec={**still, "members": 2}, stamp={**still, "weight": 0.5})
    found = fit(SESSIONS, slow, warm_start=old).network
    for name, tensor in found.tensors().items():
        torch.testing.assert_close(tensor, old.tensors()[name])
    shrunk = shrink_and_perturb(old, settings(), keep=0.5)
    assert shrunk.tensors().keys() == old.tensors().keys()


def test_the_memory_learns_from_the_whole() -> None:
    many = random_sessions(300, items=30)
    result = train(many, settings(memory="repeat", memory_holdout=0.5))
    assert result.memory
    assert result.memory.repeat is not None
