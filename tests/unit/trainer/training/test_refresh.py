"""A refresh: rows for items that were not trained, counts anew, and nothing else that changes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from schemas.bundle.files import Model, open_bundle, read_bundle
from tests.unit.trainer.builders import random_sessions, sessions_of
from trainer.data.sessions import SessionSet, encode
from trainer.errors import TooFewSessionsError
from trainer.export.bundle import read_trained, save_bundle
from trainer.memory.terms import SCALES, RepeatTerm, SessionMemory, TableTerm
from trainer.memory.trained import TrainedModel
from trainer.models.base import ITEM_TABLES
from trainer.models.registry import FAMILIES, settings_class
from trainer.models.settings import LearnedSettings, TrainingSettings
from trainer.training.networks import initial_network
from trainer.training.refresh import as_trained, refreshed
from trainer.training.train import tables_of

LEARNED = [family for family in FAMILIES if issubclass(settings_class(family), LearnedSettings)]
KINDS: list[dict[str, object]] = [
    *[dict[str, object](family=family) for family in LEARNED],
    {"family": "gru4rec", "embedding": "separate"},
    {"family": "gru4rec", "embedding": "one-hot"},
    {"family": "gru4rec", "members": 2},
    {"family": "gru4rec+sasrec", "gru4rec": {"hidden_size": 8}, "sasrec": {"hidden_size": 8}},
]
WRITTEN = [kind for kind in KINDS if kind["family"] in ("gru4rec", "sasrec", "caser", "gru4rec+sasrec")]
"""Each encoder, and tables of items of every kind: to write a bundle of a window family takes seconds."""
SMALL: dict[str, object] = {"hidden_size": 8, "list_length": 8, "window": 7}  # of tests/contract/test_families.py
KNOWN = 12


def model_of(values: dict[str, object], items: int, *, memory: bool = False) -> TrainedModel:
    """A network as it is drawn, with biases that differ, and perhaps a memory with weights of its own."""
    small = {name: value for name, value in SMALL.items() if name in settings_class(values["family"]).model_fields}
    settings = TrainingSettings.parse(small | values)
    assert isinstance(settings, LearnedSettings)
    generator = torch.Generator().manual_seed(1)
    network = initial_network(items, settings, generator)
    named = network.tensors()
    network = network.with_tensors(named | {"output_bias": torch.rand(items, generator=generator)})
    model = TrainedModel(weights=network, item_ids=tuple(f"i{i}" for i in range(items)), settings=settings)
    return model if not memory else TrainedModel(**vars(model) | {"memory": memory_of(items, settings, generator)})


def memory_of(items: int, settings: TrainingSettings, generator: torch.Generator) -> SessionMemory:
    def drawn(*shape: int) -> torch.Tensor:
        return torch.rand(shape, generator=generator)

    tables = tables_of(random_sessions(50, items), settings)
    return SessionMemory(
        RepeatTerm(place=drawn(7), count=drawn(), score=drawn(), length=drawn()),
        TableTerm(tables["cooccurrence"], drawn(8, len(SCALES))),
        TableTerm(tables["transitions"], drawn(1, len(SCALES))),
    )


def written(folder: Path, version: str, model: TrainedModel, sessions: SessionSet, **more: object) -> Path:
    training = {"settings": model.settings.model_dump(), **more}
    return save_bundle(
        folder, version, model, popularity=sessions.support(), training=training, metrics={}, created_at=0,
        states_of="v1" if more else None,
    )  # fmt: skip


@pytest.mark.parametrize("values", KINDS, ids=lambda values: " ".join(map(str, list(values.values())[:2])))
def test_a_new_item_has_the_mean_of_the_rows_that_it_shares_sessions_with(values: dict[str, object]) -> None:
    """In every table of items that the family has, its bias as well; and no other row changes."""
    model = model_of(values, 3)
    # i3 shares two sessions with i0 and one with i2; i4 one with i1, and i3 does not count for it.
    sessions = sessions_of([[0, 3], [3, 0, 2], [1, 4], [4, 3]])
    made, found = refreshed(model, sessions)
    assert made.item_ids == ("i0", "i1", "i2", "i3", "i4")
    assert found.item_ids == made.item_ids
    before, after = model.network.tensors(), made.network.tensors()
    assert after.keys() == before.keys()
    for name, tensor in after.items():
        old = before[name]
        if name not in ITEM_TABLES:
            assert torch.equal(tensor, old)
            continue
        assert torch.equal(tensor[:3], old)
        torch.testing.assert_close(tensor[3], (2 * old[0] + old[2]) / 3)
        torch.testing.assert_close(tensor[4], old[1])


def test_an_item_without_a_known_one_beside_it_stays_unknown() -> None:
    made, found = refreshed(model_of({"family": "gru4rec"}, 2), sessions_of([[0, 1], [2, 3], [3, 2, 3], [0, 4]]))
    assert made.item_ids == ("i0", "i1", "i4")
    assert found.items.tolist() == [0, 1, 0, 2]


def test_an_item_with_fewer_clicks_than_asked_for_stays_unknown() -> None:
    sessions = sessions_of([[0, 1], [0, 2], [1, 3], [3, 0]])
    assert refreshed(model_of({"family": "gru4rec"}, 2), sessions, min_support=2)[0].item_ids == ("i0", "i1", "i3")


def test_items_that_nobody_clicks_any_more_stay() -> None:
    made, found = refreshed(model_of({"family": "gru4rec"}, 5), sessions_of([[0, 1]]))
    assert made.item_ids == ("i0", "i1", "i2", "i3", "i4")
    assert found.support().tolist() == [1, 1, 0, 0, 0]


def test_sessions_without_any_item_of_enough_clicks_say_so() -> None:
    with pytest.raises(TooFewSessionsError):
        refreshed(model_of({"family": "gru4rec"}, 2), sessions_of([[0, 1]]), min_support=3)


def test_the_tables_are_counted_anew_and_their_weights_stay() -> None:
    model = model_of({"family": "gru4rec"}, KNOWN, memory=True)
    sessions = random_sessions(80, KNOWN + 3, seed=3)
    made, found = refreshed(model, sessions)
    assert len(made.item_ids) == KNOWN + 3
    for name, term in made.memory.tables.items():
        expected = tables_of(found, model.settings)[name]
        assert torch.equal(term.weights, model.memory.tables[name].weights)
        assert np.array_equal(term.table.starts, expected.starts)
        assert np.array_equal(term.table.items, expected.items)
        assert np.array_equal(term.table.counts, expected.counts)
    assert made.memory.repeat is model.memory.repeat


@pytest.mark.parametrize("values", WRITTEN, ids=lambda values: " ".join(map(str, list(values.values())[:2])))
def test_a_bundle_gives_back_what_was_trained_to_the_bit(values: dict[str, object], tmp_path: Path) -> None:
    """Network and memory, whatever was refreshed in between: a refresh of a refresh drifts nowhere."""
    model = model_of(values, KNOWN, memory=True)
    sessions = random_sessions(80, KNOWN + 3, seed=3)
    made, found = refreshed(model, sessions)
    folder = written(tmp_path, "v2", made, found, refreshed={"trained_items": KNOWN})
    assert_equal(as_trained(read_bundle(folder)), model)
    assert_equal(read_trained(read_bundle(folder)), made)


def assert_equal(found: TrainedModel, expected: TrainedModel) -> None:
    assert found.item_ids == expected.item_ids
    assert found.settings == expected.settings
    tensors = expected.network.tensors()
    assert found.network.tensors().keys() == tensors.keys()
    for name, tensor in found.network.tensors().items():
        assert torch.equal(tensor, tensors[name]), name
    for name in ("place", "count", "score", "length"):
        assert torch.equal(getattr(found.memory.repeat, name), getattr(expected.memory.repeat, name))
    for name, term in found.memory.tables.items():
        assert torch.equal(term.weights, expected.memory.tables[name].weights)


@pytest.mark.parametrize("values", WRITTEN, ids=lambda values: " ".join(map(str, list(values.values())[:2])))
def test_sessions_of_known_items_go_on_to_the_bit(values: dict[str, object], tmp_path: Path) -> None:
    """Their states and queries are equal, and so is every score of a known item but for what the memory counts."""
    model = model_of(values, KNOWN)
    sessions = random_sessions(80, KNOWN + 3, seed=3)
    made, found = refreshed(model, sessions)
    old = open_bundle(written(tmp_path, "v1", model, encode(sessions, model.item_ids)))
    new = open_bundle(written(tmp_path, "v2", made, found, refreshed={"trained_items": KNOWN}))
    assert (old.states_of, new.states_of) == ("v1", "v1")
    items = np.random.default_rng(0).integers(KNOWN, size=(5, 4))  # [T, B]
    asked = [queries(one, items) for one in (old, new)]
    for before, after in zip(*asked, strict=True):
        assert np.array_equal(before, after)
    scores = [all_scores(one, query[-1]) for one, query in zip((old, new), asked, strict=True)]
    assert np.array_equal(scores[0], scores[1][:, :KNOWN])


def queries(model: Model, items: NDArray[np.int64]) -> list[NDArray[np.float32]]:
    """After each click, the query; of a recurrent model the state as well, first."""
    found = []
    hidden = model.initial_hidden(items.shape[1])
    for click in range(len(items)):
        if model.encoder == "recurrent":
            hidden, query, _ = model.step(items[click], hidden)
            found.append(hidden)
        else:
            length = np.full(items.shape[1], click + 1)
            query = model.encode_all(np.ascontiguousarray(items[: click + 1].T), length)
        found.append(query)
    return found


def all_scores(model: Model, query: NDArray[np.float32]) -> NDArray[np.float32]:
    """Of the whole catalogue in its order, as `rank` lists them: [B, I]."""
    whole = Model(model.manifest, model.vocabulary, model.popularity, model._graphs, k=len(model.vocabulary))
    nothing = np.full((len(query), model.recent_size), -1), np.zeros((len(query), model.recent_size), np.float32)
    index, score = whole.rank(query, *nothing, np.ones(len(query), np.float32))
    return np.take_along_axis(score, np.argsort(index, axis=1), axis=1)
