"""The network in torch and the exported graphs in ONNX Runtime are one model, click by click."""

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from schemas.bundle.files import Model, open_bundle, read_bundle, recent_items, write_bundle
from schemas.bundle.golden import same_ranking
from schemas.bundle.vocabulary import Vocabulary
from schemas.click_files.read import read_log
from schemas.errors import BundleError
from tests.unit.trainer.builders import random_sessions
from tests.unit.trainer.networks import gru
from trainer.data.sessions import SessionSet, drop_short, encode, group_sessions, vocabulary_of
from trainer.errors import ParityError
from trainer.export.bundle import export, read_network, save_bundle
from trainer.export.parity import check_parity
from trainer.memory.terms import NO_MEMORY, RECENT, remember
from trainer.models import gru4rec
from trainer.models.settings import Gru4RecSettings
from trainer.training.fit import FitResult, fit
from trainer.training.train import train

# (embedding, layers, deep_input, input_decay)
ARCHITECTURES = [
    ("shared", 1, False, 0.0),
    ("shared", 3, False, 0.0),
    ("shared", 3, True, 0.0),
    ("separate", 1, False, 0.0),
    ("separate", 2, True, 0.0),
    ("one-hot", 1, False, 0.0),
    ("one-hot", 2, False, 0.0),
    ("shared", 1, False, 0.5),
    ("separate", 2, True, 0.9),
    ("one-hot", 2, False, 0.7),
    ("shared", 0, False, 0.0),
    ("separate", 0, False, 0.8),
]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> None:
    torch.set_num_threads(1)


def opened(result: FitResult, sessions: SessionSet, folder: Path) -> Model:
    bundle = save_bundle(folder, "v1", result, popularity=sessions.support(), training={}, metrics={}, created_at=0)
    return open_bundle(bundle)


def assert_same_answers(result: FitResult, model: Model, sessions: SessionSet, lanes: int) -> int:
    """Follow whole sessions in both, ``lanes`` at a time; returns the clicks compared."""
    compared = 0
    bounds = sessions.offsets.tolist()
    for first in range(0, len(sessions), lanes):
        group = [sessions.items[bounds[i] : bounds[i + 1]] for i in range(first, min(first + lanes, len(sessions)))]
        group.sort(key=len, reverse=True)
        hidden = torch.zeros(model.layers, len(group), model.hidden_size)
        served = model.initial_hidden(len(group))
        for step in range(len(group[0])):
            n = sum(len(session) > step for session in group)
            items = np.array([session[step] for session in group[:n]])
            hidden = gru4rec.advance(gru(result.network), torch.from_numpy(items), hidden[:, :n])
            served, query = model.advance(
                items, np.ascontiguousarray(served[:, :n])
            )  # its own state: errors may add up
            np.testing.assert_allclose(served, hidden.numpy(), rtol=1e-4, atol=1e-5)
            so_far = np.stack([session[: step + 1] for session in group[:n]], axis=1)
            view = recent_items(so_far, model.recent_size)
            z = result.weights.scores(hidden[-1])
            told = remember(result.memory, z, *map(torch.from_numpy, view)).numpy()
            index, score = model.rank(query, *view)
            assert index.shape == (n, model.k)
            # Each listed item has the score that torch gives it, and the list is the best of all.
            np.testing.assert_allclose(score, np.take_along_axis(told, index, axis=1), rtol=1e-3, atol=1e-4)
            np.testing.assert_allclose(score, -np.sort(-told, axis=1)[:, : model.k], rtol=1e-3, atol=1e-4)
            assert all(len(set(row)) == model.k for row in index.tolist())
            compared += n
    return compared


def assert_same_alone_and_together(result: FitResult, model: Model, sessions: SessionSet) -> None:
    """Every click in batches; alone, which takes seven times as many calls, those of every fifth session."""
    for lanes, some in ((7, sessions), (1, sessions.select(np.arange(len(sessions)) % 5 == 0))):
        assert assert_same_answers(result, model, some, lanes) == some.clicks > 60


@pytest.mark.parametrize(("embedding", "layers", "deep_input", "input_decay"), ARCHITECTURES)
def test_whole_sessions(tmp_path: Path, *, embedding: str, layers: int, deep_input: bool, input_decay: float) -> None:
    sessions = random_sessions(40, items=60, longest=30)
    chosen = {"embedding": embedding, "layers": layers, "hidden_size": 10, "n_sample": 20, "batch_size": 8, "epochs": 2}
    result = fit(sessions, Gru4RecSettings.parse(chosen | {"deep_input": deep_input, "input_decay": input_decay}))
    model = opened(result, sessions, tmp_path)
    read = read_network(read_bundle(tmp_path / "v1"))
    assert {name: t.tolist() for name, t in read.tensors().items()} == {
        name: t.tolist() for name, t in result.network.tensors().items()
    }
    assert_same_alone_and_together(result, model, sessions)


def test_a_catalogue_smaller_than_the_list(tmp_path: Path) -> None:
    sessions = random_sessions(20, items=5)
    result = fit(sessions, Gru4RecSettings.parse({"hidden_size": 4, "n_sample": 3, "epochs": 1}))
    model = opened(result, sessions, tmp_path)
    assert model.k == 5
    assert_same_answers(result, model, sessions, lanes=3)


@pytest.mark.parametrize(("embedding", "layers"), [("shared", 1), ("separate", 2)])
def test_real_sessions(shared_data: Path, tmp_path: Path, embedding: str, layers: int) -> None:
    sessions = drop_short(group_sessions(read_log([shared_data / "rsc15_100k.tsv.gz"])))
    sessions = encode(sessions, vocabulary_of(sessions))
    chosen = {"embedding": embedding, "layers": layers, "epochs": 1, "n_sample": 256}
    result = fit(sessions, Gru4RecSettings.parse(chosen))
    some = sessions.select(np.arange(len(sessions)) % 40 == 0)
    assert assert_same_answers(result, opened(result, sessions, tmp_path), some, lanes=64) == some.clicks


TERMS = ("repeat", "cooccurrence", "transitions")


REMEMBERED = random_sessions(150, items=90, longest=30)


@cache
def trained(*terms: str, longest: int = 30) -> FitResult:
    """A model with some of the memory's terms, on sessions enough that their weights are learned."""
    sessions = random_sessions(150, items=90, longest=longest)
    settings = {
        "hidden_size": 8,
        "n_sample": 20,
        "batch_size": 32,
        "epochs": 1,
        "memory_holdout": 0.4,
        "table_width": 12,
    }
    return train(sessions, Gru4RecSettings.parse({**settings, "memory": terms}))


@pytest.mark.parametrize("terms", [("repeat",), ("cooccurrence",), ("transitions",), TERMS])
def test_the_session_memory_over_whole_sessions(tmp_path: Path, terms: tuple[str, ...]) -> None:
    sessions = random_sessions(150, items=90, longest=75)
    assert sessions.lengths.max() > 2 * RECENT  # more than a row keeps
    result = trained(*terms, longest=75)
    assert [term for term in TERMS if getattr(result.memory, term)] == [term for term in TERMS if term in terms]
    model = opened(result, sessions, tmp_path)
    some = sessions.select(np.arange(len(sessions)) % 4 == 0)
    assert_same_alone_and_together(result, model, some)
    assert check_parity(result.weights, model, sessions, memory=result.memory) == sessions.transitions


def test_the_session_memory_decides(tmp_path: Path) -> None:
    """Parity would hold as well where no term did anything."""
    sessions, result = REMEMBERED, trained(*TERMS)
    model = opened(result, sessions, tmp_path / "whole")
    plain = opened(replace(result, memory=NO_MEMORY), sessions, tmp_path / "plain")
    hidden = np.zeros((1, model.hidden_size), np.float32)
    with_memory, without = (
        one.rank(hidden, *recent_items(np.array([[3], [4], [3]]), one.recent_size)) for one in (model, plain)
    )
    assert (model.recent_size, plain.recent_size) == (RECENT, 1)  # which asks for nothing that it does not look at
    assert with_memory[0].tolist() != without[0].tolist()
    with pytest.raises(ParityError):
        check_parity(result.weights, plain, sessions, memory=result.memory)


def test_sessions_of_a_batch_do_not_see_each_other(tmp_path: Path) -> None:
    model = opened(trained(*TERMS), REMEMBERED, tmp_path)
    hidden = np.random.default_rng(0).normal(size=(9, model.hidden_size)).astype(np.float32)
    # Of none to eight clicks; -1 is padding.
    clicks = np.where(np.arange(8)[:, None] < np.arange(9), np.random.default_rng(1).integers(90, size=(8, 9)), -1)
    recent, counts, lengths = recent_items(clicks, model.recent_size)
    index, score = model.rank(hidden, recent, counts, lengths)
    for row in range(9):
        one = slice(row, row + 1)
        alone_index, alone_score = model.rank(hidden[one], recent[one], counts[one], lengths[one])
        assert same_ranking((index[one], score[one]), (alone_index, alone_score))


def test_a_damaged_memory_is_refused(tmp_path: Path) -> None:
    """The golden pair's sessions go where the tables lead, so that it tells of them too."""
    sessions, result = REMEMBERED, trained(*TERMS)
    tables = {name: term.table for name, term in result.memory.tables.items()}
    for name, table in tables.items():
        wrong = replace(table, items=(table.items + 1) % 90)
        exported = export(result.weights, result.memory.with_tables({**tables, name: wrong}))
        with pytest.raises(BundleError, match=r"rank\.onnx"):
            write_bundle(
                tmp_path, version=name, family="gru4rec", advance=exported.encoder.advance, rank=exported.rank,
                vocabulary=Vocabulary(result.item_ids), popularity=sessions.support(),
                golden=export(result.weights, result.memory).golden, layers=exported.encoder.layers,
                hidden_size=exported.encoder.hidden_size, query_size=exported.query_size,
                k=exported.k, recent_size=exported.recent_size,
                training={}, metrics={}, created_at=0,
            )  # fmt: skip


def test_weights_are_read_back_from_a_bundle_with_a_memory(tmp_path: Path) -> None:
    sessions, result = REMEMBERED, trained(*TERMS)
    opened(result, sessions, tmp_path)
    read = read_network(read_bundle(tmp_path / "v1")).tensors()
    assert {name: t.tolist() for name, t in read.items()} == {
        name: t.tolist() for name, t in result.network.tensors().items()
    }
