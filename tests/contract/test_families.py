"""Every family, from a few sessions to what a worker answers: one contract for all."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from pydantic import BaseModel

from schemas.bundle.checks import check_answers
from schemas.bundle.files import Model, open_bundle, read_bundle
from schemas.config.settings_keys import section_of
from schemas.errors import BundleError
from stream_app.core.session import SessionRules
from tests.contract.test_evaluation_is_serving import ITEMS, served, sessions_to_serve
from tests.unit.trainer.builders import random_sessions
from tests.unit.trainer.models.test_encoders import SESSIONS
from trainer.data.lanes import follow
from trainer.errors import TrainingSettingsError
from trainer.evaluation.model_scorer import ModelScorer
from trainer.evaluation.protocol import NetworkScorer, evaluate, ranks_of
from trainer.export.bundle import golden_of, read_network, save_bundle
from trainer.export.encoders import encoder_graph
from trainer.export.parity import check_parity
from trainer.memory.terms import NO_MEMORY
from trainer.models.registry import FAMILIES, settings_class
from trainer.models.settings import LearnedSettings, NetworkSettings, TrainingSettings, WindowSettings
from trainer.models.transformer import PAIRS
from trainer.models.window import WindowNetwork
from trainer.training.fit import FitResult
from trainer.training.networks import initial_network
from trainer.training.train import train
from trainer.training.warm_start import fits, warm_start

LEARNED, NEWER = random_sessions(300, ITEMS), random_sessions(60, ITEMS, seed=7)
SMALL: dict[str, Any] = {
    "hidden_size": 8, "n_sample": 20, "batch_size": 32, "epochs": 1, "window": 7, "memory_holdout": 0.4,
}  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> None:
    torch.set_num_threads(1)


MIXED = ("gru4rec+sasrec", "caser+gff+gru4rec")
"""Families as one model: all of a kind that ties its tables, and not."""


def settings_of(family: str, **more: Any) -> TrainingSettings:
    kind = settings_class(family)
    tables = {name: section_of(info.annotation) for name, info in kind.model_fields.items()}
    of_families = {name: small(table) for name, table in tables.items() if table is not None}
    return TrainingSettings.parse({"family": family, **small(kind), **of_families, **more})


def small(kind: type[BaseModel]) -> dict[str, Any]:
    return {name: value for name, value in SMALL.items() if name in kind.model_fields}


@cache
def trained(family: str) -> FitResult:
    return train(LEARNED, settings_of(family, memory="all"))


@pytest.fixture(scope="module")
def bundle_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The bundle of a trained family, written once."""
    folder = tmp_path_factory.mktemp("bundles")
    return cache(lambda family: saved(folder / family, trained(family)))


def saved(folder: Path, result: FitResult, settings: dict[str, Any] | None = None) -> Path:
    return save_bundle(
        folder,
        "v1",
        result,
        popularity=LEARNED.support(),
        training={"settings": settings or result.settings.model_dump()},
        metrics={},
        created_at=0,
    )


@pytest.mark.parametrize("family", [*FAMILIES, *MIXED])
def test_a_family_is_trained_exported_judged_and_served_alike(bundle_of: Callable[[str], Path], family: str) -> None:
    assert_alike(trained(family), open_bundle(bundle_of(family)), family)


OTHER_PAIRS = [(name, by) for name, some in PAIRS.items() for by in some if (name, by) != ("xlnet", "mlm")]


@pytest.mark.parametrize(("architecture", "objective"), OTHER_PAIRS)
def test_so_is_each_pair_of_a_transformer(tmp_path: Path, architecture: str, objective: str) -> None:
    settings = settings_of("transformer", memory="all", architecture=architecture, objective=objective)
    result = train(LEARNED, settings)
    assert_alike(result, open_bundle(saved(tmp_path, result)), "transformer")


def assert_alike(result: FitResult, model: Model, family: str) -> None:
    assert result.memory
    assert model.manifest.family == family
    assert check_parity(result.weights, model, NEWER, memory=result.memory) > 100
    # Torch and the bundle; then the bundle in the evaluation and in the worker: longer than the window and than rows,
    # repeats, unknown items.
    own, bundle = (
        evaluate(scorer, NEWER, ks=(1, 5))
        for scorer in (NetworkScorer(result.weights, result.memory), ModelScorer(model, NEWER))
    )
    assert own.recall[5] == pytest.approx(bundle.recall[5], abs=0.01)
    sessions = sessions_to_serve()
    judged = ranks_of(ModelScorer(model, sessions), sessions)
    answered = served(model, sessions, follow(sessions), SessionRules(recent_items=30))
    np.testing.assert_array_equal(judged <= model.k, answered <= model.k)
    listed = judged <= model.k
    # Equal scores count against the target in the evaluation, and have no order in a list.
    assert (answered[listed] <= judged[listed]).all()
    assert (answered == judged).mean() > (0.9 if result.epochs else 0)


@pytest.mark.parametrize("position", [0, 7, 8, 19])
def test_a_bundle_of_another_position_anywhere_in_its_window_is_refused(tmp_path: Path, position: int) -> None:
    result = train(LEARNED, settings_of("sasrec", window=20, memory="none"))
    golden = golden_of(result.network, NO_MEMORY, k=30, recent_size=1, seed=0)
    with torch.no_grad():
        result.network.tensors()["encoder.positions"][position] = torch.linspace(-1, 1, 8)
    model = open_bundle(saved(tmp_path, result))
    with pytest.raises(BundleError, match=r"encode\.onnx: its answer to golden\.json"):
        check_answers(model, golden)


@pytest.mark.parametrize(
    "family", [name for name in (*FAMILIES, *MIXED) if issubclass(settings_class(name), LearnedSettings)]
)
def test_a_network_starts_the_next_one(bundle_of: Callable[[str], Path], family: str) -> None:
    result = trained(family)
    read = read_network(read_bundle(bundle_of(family)))
    tensors = result.network.tensors()
    assert {name: torch.equal(tensor, tensors[name]) for name, tensor in read.tensors().items()} == dict.fromkeys(
        tensors, True
    )
    settings = settings_of(family)
    assert isinstance(settings, LearnedSettings)
    carried = warm_start(read, LEARNED.item_ids, (*LEARNED.item_ids, "new"), settings)
    assert torch.equal(carried.output[:ITEMS], result.network.output)
    assert not fits(read, settings.changed(lambda _: {"hidden_size": 10}))


def test_a_network_of_other_tensors_than_its_settings_say_starts_none(tmp_path: Path) -> None:
    """As one of a version whose default was another: half of its numbers would be left out without a word."""
    result = train(LEARNED, settings_of("caser", embedding="separate", memory="none"))
    own = read_network(read_bundle(saved(tmp_path / "own", result))).tensors()
    assert torch.equal(own["input"], result.network.tensors()["input"])
    told = result.settings.model_dump(exclude={"embedding"})
    with pytest.raises(BundleError, match="family=caser: its items have input rows of their own"):
        read_network(read_bundle(saved(tmp_path / "older", result, told)))


WINDOWS = [name for name in FAMILIES if issubclass(settings_class(name), WindowSettings)]
# Of a transformer's kinds the one that has the parts of all others.
ALL_PARTS = ("transformer", {"architecture": "xlnet", "objective": "plm"})


@pytest.mark.parametrize(("family", "told"), [*((name, {}) for name in (*WINDOWS, *MIXED)), ALL_PARTS])
def test_the_graph_of_a_window_network_is_plain_and_has_its_own_numbers(family: str, told: dict[str, Any]) -> None:
    """It is traced and optimised once for all networks of its kind, whatever their numbers and their catalogue."""
    settings = settings_of(family, memory="none", **told)
    assert isinstance(settings, LearnedSettings)
    generator = torch.Generator().manual_seed(3)
    drawn, other = (initial_network(items, settings, generator) for items in (12, 20))
    shaken = other.with_tensors(
        {
            name: tensor + 0.3 * torch.randn(tensor.shape, generator=generator)
            for name, tensor in other.tensors().items()
        }
    )
    # The zeros and ones of the start are what an optimiser takes away first.
    for network in (drawn, shaken, drawn):
        assert isinstance(network, WindowNetwork)
        graph = encoder_graph(network)
        model = onnx.load_from_string(graph.encode or b"")
        assert {entry.domain: entry.version for entry in model.opset_import} == {"": 18}
        assert {node.op_type for node in model.graph.node}.isdisjoint({"If", "Loop", "Scan"})
        assert not model.functions
        session = onnxruntime.InferenceSession(graph.encode, providers=["CPUExecutionProvider"])
        for sessions in (*([one] for one in SESSIONS), SESSIONS):
            for width in {max(map(len, sessions)), network.window}:
                padded = torch.tensor([[*one, *[-1] * (width - len(one))] for one in sessions])
                length = torch.tensor([len(one) for one in sessions])
                (found,) = session.run(None, {"items": padded.numpy(), "length": length.numpy()})
                np.testing.assert_allclose(found, network.query(padded, length).numpy(), rtol=1e-3, atol=1e-4)


def test_another_familys_items_are_a_start() -> None:
    old, settings = trained("gru4rec").network, settings_of("sasrec")
    assert isinstance(settings, NetworkSettings)
    assert fits(old, settings)
    carried = warm_start(old, LEARNED.item_ids, LEARNED.item_ids, settings)
    assert torch.equal(carried.output, old.output)


def test_the_shortest_window_is_served(tmp_path: Path) -> None:
    result = train(LEARNED, settings_of("sasrec", window=2, memory="none"))
    model = open_bundle(saved(tmp_path, result))
    assert model.window == 2
    assert check_parity(result.weights, model, NEWER) > 100


def test_members_of_a_window_family_are_one_bundle(tmp_path: Path) -> None:
    result = train(LEARNED, settings_of("stamp", members=2, memory="none"))
    model = open_bundle(saved(tmp_path, result))
    assert model.query_size == 2 * SMALL["hidden_size"]
    assert check_parity(result.weights, model, NEWER) > 100


@pytest.mark.parametrize("family", ["gru5rec", "", "7"])
def test_a_family_that_does_not_exist(family: str) -> None:
    with pytest.raises(TrainingSettingsError, match="there is none of this name; there are gru4rec, sasrec"):
        TrainingSettings.parse({"family": family})


def test_a_family_has_its_own_settings() -> None:
    with pytest.raises(TrainingSettingsError, match="unknown training setting 'momentum'"):
        TrainingSettings.parse({"family": "sasrec", "momentum": 0.5})
    with pytest.raises(TrainingSettingsError, match="unknown training setting 'window'"):
        TrainingSettings.parse({"window": 5})
