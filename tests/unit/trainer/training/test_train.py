"""Which sessions a model's parts are learned from, and what the settings leave out."""

from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.unit.trainer.builders import random_sessions, sessions_of
from trainer.data.sessions import SessionSet
from trainer.evaluation.protocol import NetworkScorer, evaluate, ranks_of
from trainer.memory.terms import NO_MEMORY
from trainer.models.settings import Gru4RecSettings
from trainer.training import train as training
from trainer.training.early_stopping import EarlyStopping
from trainer.training.fit import fit
from trainer.training.train import learn_memory, train, transitions_to_learn

SESSIONS = random_sessions(400, items=40)
SMALL = {"hidden_size": 6, "n_sample": 10, "batch_size": 16, "epochs": 2, "memory_holdout": 0.4}


def settings(**changed: object) -> Gru4RecSettings:
    return Gru4RecSettings.parse({**SMALL, **changed})


def named(sessions: SessionSet) -> list[tuple[str, ...]]:
    """The sessions by their items' names, whatever the vocabulary."""
    names = [sessions.item_ids[item] for item in sessions.items.tolist()]
    bounds = sessions.offsets.tolist()
    return [tuple(names[a:b]) for a, b in pairwise(bounds)]


@dataclass
class Spy:
    """Notes the sessions that each step is given, and lets it do its work."""

    given: dict[str, list[SessionSet]] = field(default_factory=dict)

    def on(self, monkeypatch: pytest.MonkeyPatch, name: str, place: int) -> None:
        real = getattr(training, name)

        def noting(*arguments: Any, **options: Any) -> Any:
            self.given.setdefault(name, []).append(arguments[place])
            return real(*arguments, **options)

        monkeypatch.setattr(training, name, noting)


def test_the_weights_are_learned_on_sessions_that_nothing_else_has_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    spy = Spy()
    for name, place in (("fit", 0), ("cooccurrence", 0), ("transitions", 0), ("fit_memory", 1)):
        spy.on(monkeypatch, name, place)
    train(SESSIONS, settings())
    everything, held_out = named(SESSIONS), named(spy.given["fit_memory"][0])
    assert held_out == everything[-160:]
    for step in ("fit", "cooccurrence", "transitions"):
        seen = [named(sessions) for sessions in spy.given[step]]
        assert sorted(map(len, seen)) == [240, 400]
        assert min(seen, key=len) == everything[:240]


@pytest.mark.parametrize("warm", [False, True])
def test_without_terms_the_model_is_the_network_alone(*, warm: bool) -> None:
    start = fit(SESSIONS, settings(epochs=1)).network if warm else None
    plain = fit(SESSIONS, settings(), warm_start=start)
    for chosen in (settings(memory="none"), settings(memory="repeat")):
        result = train(SESSIONS, chosen, warm_start=start)
        for name, tensor in plain.network.tensors().items():
            assert torch.equal(result.network.tensors()[name], tensor)
        assert bool(result.memory) == bool(chosen.memory)
    without = train(SESSIONS, settings(memory="none"))
    assert without.memory == NO_MEMORY
    assert np.array_equal(
        ranks_of(NetworkScorer(without.network), SESSIONS),
        ranks_of(NetworkScorer(without.network, without.memory), SESSIONS),
    )


@pytest.mark.parametrize("terms", ["repeat", "cooccurrence", "transitions", "repeat,transitions", "all"])
def test_only_the_terms_that_are_asked_for(terms: str) -> None:
    chosen = settings(memory=terms)
    memory = train(SESSIONS, chosen).memory
    assert tuple(name for name in ("repeat", "cooccurrence", "transitions") if getattr(memory, name)) == chosen.memory


def test_a_memory_that_is_given_keeps_its_weights_over_new_tables() -> None:
    first = train(SESSIONS, settings()).memory
    longer = random_sessions(500, items=40)
    again = train(longer, settings(), memory=first).memory
    assert again.repeat is first.repeat
    for name, term in again.tables.items():
        assert torch.equal(term.weights, first.tables[name].weights)
        assert term.table.counts.sum() > first.tables[name].table.counts.sum()
    assert train(SESSIONS, settings(), memory=NO_MEMORY).memory == NO_MEMORY  # and learns none


def test_too_few_sessions_leave_the_memory_out() -> None:
    few = random_sessions(30, items=20)
    assert train(few, settings()).memory == NO_MEMORY
    assert transitions_to_learn(few, settings()) == 0
    assert learn_memory(random_sessions(1, items=20), settings()) == NO_MEMORY


def test_a_type_of_click_that_is_new_leaves_the_memory_out() -> None:
    """All purchases are among the newest sessions, that its weights would be learned from: the rest teaches nothing."""
    bought = replace(
        SESSIONS, types=(SESSIONS.session_of_click() >= 240).astype(np.int32), type_names=("view", "purchase")
    )
    chosen = settings(target_weights="view=0,purchase=1")
    assert transitions_to_learn(bought, chosen) == 0
    assert learn_memory(bought, chosen) == NO_MEMORY


def test_progress_hears_of_every_transition() -> None:
    heard: list[int] = []
    train(SESSIONS, settings(), progress=heard.append)
    assert sum(heard) == SESSIONS.transitions * 2 + transitions_to_learn(SESSIONS, settings())


def test_the_memory_learns_beside_a_network_as_old_as_the_one_it_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    spied: list[int] = []

    def noting(sessions: SessionSet, chosen: Gru4RecSettings, **options: Any) -> Any:
        spied.append(chosen.epochs)
        return fit(sessions, chosen, **options)

    monkeypatch.setattr(training, "fit", noting)
    holdout = random_sessions(50, items=40, seed=3)
    result = train(SESSIONS, settings(epochs=6), early_stopping=EarlyStopping(holdout, patience=1))
    assert spied == [6, result.best_epoch]


def test_both_networks_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = tmp_path / "run.safetensors"
    whole = train(SESSIONS, settings(), checkpoint=checkpoint)
    heard: list[int] = []
    again = train(SESSIONS, settings(), checkpoint=checkpoint, progress=heard.append)
    assert whole.memory.repeat is not None
    assert again.memory.repeat is not None
    assert torch.equal(again.memory.repeat.place, whole.memory.repeat.place)
    assert {path.name for path in tmp_path.iterdir()} == {"run.safetensors", "run.safetensors.memory"}


def test_it_finds_what_the_network_cannot_know() -> None:
    """New sessions that go back to an item they began with."""
    rng = np.random.default_rng(1)
    clicks = [[first, *rng.integers(60, size=2).tolist(), first] for first in rng.integers(60, size=900).tolist()]
    older, newer = sessions_of(clicks[:700], 60), sessions_of(clicks[700:], 60)
    result = train(older, settings())
    plain, whole = (
        evaluate(NetworkScorer(result.network, memory), newer, ks=(1,)) for memory in (NO_MEMORY, result.memory)
    )
    assert whole.recall[1] > plain.recall[1] + 0.2


def test_whoever_listens_can_stop_while_the_weights_of_the_memory_are_found() -> None:
    """Scoring and L-BFGS take a minute on a busy machine; a service must be able to stop meanwhile."""
    asked = settings()
    to_learn = transitions_to_learn(SESSIONS, asked)
    heard = stops = 0

    def progress(done: int) -> None:
        nonlocal heard, stops
        if heard == to_learn:
            stops += 1
            if stops == 3:  # the network is trained, and its last report is behind us
                raise KeyboardInterrupt
        heard += done

    with pytest.raises(KeyboardInterrupt):
        learn_memory(SESSIONS, asked, progress=progress)
