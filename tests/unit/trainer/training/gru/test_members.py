"""Several networks as one: the same scores, a session's whole way, for every kind of network."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.unit.trainer.builders import random_sessions
from tests.unit.trainer.networks import gru
from trainer.errors import TrainingSettingsError
from trainer.evaluation.protocol import NetworkScorer, evaluate
from trainer.models import gru4rec
from trainer.models.gru4rec import Weights, initial_weights
from trainer.models.settings import Gru4RecSettings
from trainer.training.early_stopping import EarlyStopping
from trainer.training.fit import fit
from trainer.training.gru.members import initial_members, joined, split
from trainer.training.networks import seed_of
from trainer.training.shrink import shrink_and_perturb
from trainer.training.train import train, transitions_to_fit, transitions_to_learn
from trainer.training.warm_start import fits, warm_start

SESSIONS = random_sessions(400, items=40)
SMALL = {"hidden_size": 6, "n_sample": 10, "batch_size": 16, "epochs": 2, "memory_holdout": 0.4}
KINDS: tuple[dict[str, object], ...] = (
    {},
    {"embedding": "separate"},
    {"embedding": "one-hot"},
    {"embedding": "one-hot", "input_decay": 0.5},
    {"layers": 2},
    {"layers": 3, "deep_input": True, "input_decay": 0.3},
    {"layers": 0, "input_decay": 0.7},
)


def settings(**changed: object) -> Gru4RecSettings:
    return Gru4RecSettings.parse({**SMALL, **changed})


def random_members(count: int, chosen: Gru4RecSettings) -> list[Weights]:
    generator = torch.Generator().manual_seed(1)
    members = [initial_weights(40, chosen, generator) for _ in range(count)]
    for member in members:  # biases begin at 0, which would hide one that got lost
        for tensor in (member.output_bias, *(layer.b for layer in member.layers)):
            tensor.normal_(generator=generator)
    return members


def scores_along(weights: Weights, clicks: Tensor) -> list[Tensor]:
    """Scores after each of the clicks int64[T, B]."""
    hidden, found = torch.zeros(weights.state_rows, clicks.shape[1], weights.hidden_size), []
    for items in clicks:
        hidden = gru4rec.advance(weights, items, hidden)
        found.append(weights.scores(hidden[-1]))
    return found


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_the_whole_scores_the_sum_of_its_members(kind: dict[str, object], count: int) -> None:
    members = random_members(count, settings(**kind))
    clicks = torch.randint(40, (5, 7), generator=torch.Generator().manual_seed(2))
    whole = scores_along(joined(members), clicks)
    alone = [scores_along(member, clicks) for member in members]
    for step, found in enumerate(whole):
        torch.testing.assert_close(found, torch.stack([one[step] for one in alone]).sum(0))


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_whole_comes_apart_into_its_members(kind: dict[str, object]) -> None:
    members = random_members(3, settings(**kind))
    share = torch.stack([member.output_bias for member in members]).sum(0) / 3
    for member, part in zip(members, split(joined(members), 3), strict=True):
        for name, tensor in part.tensors().items():
            expected = share if name == "output_bias" else member.tensors()[name]
            assert torch.equal(tensor, expected), name


def test_members_are_fits_of_their_own_seeds() -> None:
    whole = fit(SESSIONS, settings(members=3))
    seeds = [seed_of(42, number) for number in range(3)]
    assert len(set(seeds)) == 3
    members = [gru(fit(SESSIONS, settings(seed=seed)).network) for seed in seeds]
    for name, tensor in joined(members).tensors().items():
        assert torch.equal(whole.network.tensors()[name], tensor)
    assert seeds[0] == 42
    assert not {seed_of(1, 1), seed_of(1, 2)} & {seed_of(2, 0), seed_of(2, 1), seed_of(2, 2)}


def test_the_others_train_for_as_many_epochs_as_were_the_firsts_best(tmp_path: Path) -> None:
    # Sessions that lead elsewhere: the first epoch is the best, or nearly.
    stopping = EarlyStopping(random_sessions(50, items=40, seed=3), patience=1)
    whole = fit(SESSIONS, settings(members=2, epochs=6), early_stopping=stopping)
    second = fit(SESSIONS, settings(seed=seed_of(42, 1), epochs=whole.best_epoch)).network
    assert torch.equal(split(gru(whole.network), 2)[1].output, second.output)


def test_each_member_resumes(tmp_path: Path) -> None:
    checkpoint, chosen = tmp_path / "run.safetensors", settings(members=2)
    heard: list[int] = []
    whole = train(SESSIONS, chosen, checkpoint=checkpoint, progress=heard.append)
    assert sum(heard) == transitions_to_fit(SESSIONS, chosen) + transitions_to_learn(SESSIONS, chosen)
    assert {path.name for path in tmp_path.iterdir()} == {
        "run.safetensors", "run.safetensors.member1", "run.safetensors.memory", "run.safetensors.memory.member1",
    }  # fmt: skip
    again = train(SESSIONS, chosen, checkpoint=checkpoint)
    assert torch.equal(whole.network.output, again.network.output)


def test_a_whole_starts_the_next_one() -> None:
    chosen = settings(members=2)
    old = fit(SESSIONS, chosen)
    assert fits(old.network, chosen)
    assert not fits(old.network, settings(members=3))
    assert not fits(old.network, settings())
    longer = (*SESSIONS.item_ids, "new")
    carried = warm_start(old.network, SESSIONS.item_ids, longer, chosen)
    assert torch.equal(carried.output[:40], old.network.output)
    shrunk = gru(shrink_and_perturb(old.network, chosen, keep=0.5))
    kept = split(shrunk, 2)
    off = shrunk.layers[0].u[:6, 6:]
    assert not off.any()  # no member sees another's state
    assert not torch.equal(kept[0].output, kept[1].output)
    untrained = fit(SESSIONS, settings(members=2, learning_rate=1e-9, epochs=1), warm_start=old.network)
    torch.testing.assert_close(untrained.network.output, old.network.output)


def test_several_rank_better_than_one() -> None:
    """Little training of small networks leaves them much that luck decides."""
    older, newer = random_sessions(300, items=40), random_sessions(300, items=40, seed=9)
    recall = [
        evaluate(NetworkScorer(fit(older, settings(members=members, epochs=1)).network), newer, ks=(1,)).recall[1]
        for members in (1, 8)
    ]
    assert all(a < b for a, b in pairwise(recall))


def test_what_begins_is_as_large_as_what_ends() -> None:
    chosen = settings(members=3, embedding="one-hot")
    begun, ended = initial_members(40, chosen, torch.Generator()), fit(SESSIONS, chosen).network
    shapes = [{name: tensor.shape for name, tensor in weights.tensors().items()} for weights in (begun, ended)]
    assert shapes[0] == shapes[1]
    assert np.isfinite(ended.output.numpy()).all()


def test_no_more_units_than_a_bundle_may_have() -> None:
    with pytest.raises(TrainingSettingsError, match="4096"):
        settings(members=4, hidden_size=1025)
