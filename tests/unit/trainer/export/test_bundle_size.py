"""What no bundle could hold is refused before it is trained, and what one can is not."""

from dataclasses import replace

import numpy as np
import pytest

from schemas.bundle.manifest import RANK, BundleLimits
from tests.unit.trainer.builders import random_sessions
from tests.unit.trainer.export.test_tail import split
from trainer.data.sessions import SessionSet
from trainer.errors import TrainingSettingsError
from trainer.export import bundle_size, tail
from trainer.export.blocks import Blocks
from trainer.export.bundle import export, rank_graph
from trainer.export.bundle_size import graph_bytes
from trainer.export.shortlist_catalogue import LEAST_ITEMS, TALL
from trainer.memory.terms import RepeatTerm, SessionMemory, TableTerm
from trainer.models.settings import Gru4RecSettings, WindowSettings
from trainer.training.gru.members import initial_members
from trainer.training.networks import initial_network
from trainer.training.train import check_size, tables_of, train

torch = pytest.importorskip("torch")


def memory_of(sessions: SessionSet, settings: Gru4RecSettings) -> SessionMemory:
    tables = {name: TableTerm(table, torch.zeros(8, 3)) for name, table in tables_of(sessions, settings).items()}
    repeat = RepeatTerm(torch.zeros(7), torch.tensor(0.1), torch.tensor(0.1), torch.tensor(0.1))
    return SessionMemory(repeat, **tables)


@pytest.mark.parametrize("items", [300, LEAST_ITEMS + 77, 5 * LEAST_ITEMS + 7])
@pytest.mark.parametrize(
    "chosen",
    [
        {"hidden_size": 6, "memory": "all"},
        {"hidden_size": 20, "memory": "none", "embedding": "one-hot", "layers": 2, "input_decay": 0.5},
        {"hidden_size": 4, "members": 3, "memory": "transitions", "embedding": "separate", "deep_input": True},
    ],
)
def test_the_size_is_what_the_graphs_take(items: int, chosen: dict[str, object]) -> None:
    settings = Gru4RecSettings.parse(chosen)
    sessions = random_sessions(400, items)
    weights = initial_members(items, settings, torch.Generator().manual_seed(1))
    # A bias as large as training makes it, which takes the most components of the shortlist.
    weights = replace(weights, output_bias=torch.linspace(-9, 9, items))
    assert weights.state_rows == settings.state_rows
    memory = memory_of(sessions, settings) if settings.memory else SessionMemory()
    exported = export(weights, memory)
    blocks = [len(Blocks.of(term.table).items) - 1 for term in memory.tables.values()]
    for name, size in graph_bytes(items, settings, blocks).items():
        taken = len((exported.encoder.advance or b"") if name == "advance.onnx" else exported.rank)
        assert taken <= size < taken * 1.01 + 1024**2


def test_a_tail_takes_no_more_than_it_saves() -> None:
    """The shortest that is worth it, of the narrowest rows: little is saved."""
    items = 300_000
    output = np.random.default_rng(1).standard_normal((items, 1)).astype(np.float32)
    bias = np.linspace(-900, 900, items, dtype=np.float32)
    catalogue = split(output, bias, np.arange(items), int(tail._MOST_COST * items), size=8 * TALL, usual=1.0)
    size = graph_bytes(items, Gru4RecSettings(hidden_size=1, prune=True), [])[RANK]
    assert len(rank_graph(catalogue, SessionMemory(), 10, 1)) <= size - bundle_size._NODES


@pytest.mark.parametrize(
    "chosen",
    [
        {"family": "stamp", "hidden_size": 200, "members": 2},
        {"family": "caser", "hidden_size": 96, "horizontal": 32},
        {"family": "sasrec", "hidden_size": 128, "layers": 2},
        {
            "family": "transformer",
            "architecture": "transformer-xl",
            "objective": "clm",
            "hidden_size": 128,
            "layers": 1,
        },
    ],
    ids=str,
)
def test_the_size_of_a_window_network_is_what_its_graphs_take(chosen: dict[str, object]) -> None:
    settings = WindowSettings.parse({"memory": "none", "window": 20, **chosen})
    exported = export(initial_network(700, settings, torch.Generator().manual_seed(1)))
    sizes = graph_bytes(700, settings, [])
    assert sizes.keys() == {"encode.onnx", "rank.onnx"}
    for graph, size in ((exported.encoder.encode or b"", sizes["encode.onnx"]), (exported.rank, sizes["rank.onnx"])):
        assert len(graph) <= size < 2.2 * len(graph) + 1024**2


def limited(monkeypatch: pytest.MonkeyPatch, **limits: int) -> None:
    monkeypatch.setattr(bundle_size, "_LIMITS", BundleLimits(**limits))
    monkeypatch.setattr(bundle_size, "_NODES", 0)


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"catalogue_size": 59}, "60 items are more than the 59 of a bundle: keep fewer items"),
        ({"data_bytes": 100}, r"60 item ids take .* in vocabulary\.json"),
        ({"graph_bytes": 60 * 9 * 4 - 1}, r"60 items at 8 units with a session memory take .* in rank\.onnx"),
    ],
)
def test_what_no_bundle_can_hold_is_refused_before_it_is_trained(
    monkeypatch: pytest.MonkeyPatch, limits: dict[str, int], message: str
) -> None:
    limited(monkeypatch, **limits)
    told: list[int] = []
    with pytest.raises(TrainingSettingsError, match=message):
        train(random_sessions(300, 60), Gru4RecSettings.parse({"hidden_size": 8, "epochs": 1}), progress=told.append)
    assert told == []


def test_the_tables_are_made_where_they_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    """As wide as they might be they would be too large; they are not, or they are."""
    sessions, settings = random_sessions(300, 60), Gru4RecSettings.parse({"hidden_size": 8})
    blocks = [len(Blocks.of(table).items) - 1 for table in tables_of(sessions, settings).values()]
    monkeypatch.setattr(bundle_size, "_NODES", 0)
    needed = graph_bytes(60, settings, blocks)["rank.onnx"]
    assert needed < graph_bytes(60, settings, [60 * 13, 60 * 13])["rank.onnx"]
    limited(monkeypatch, graph_bytes=needed)
    check_size(sessions, settings)
    limited(monkeypatch, graph_bytes=needed - 1)
    with pytest.raises(TrainingSettingsError, match="or set memory=none"):
        check_size(sessions, settings)


def test_as_many_items_as_the_pages_say() -> None:
    """docs/capacity.md has these figures, in millions of items."""
    limit = BundleLimits().graph_bytes

    def most(chosen: dict[str, object], blocks_an_item: int) -> float:
        settings = Gru4RecSettings.parse(chosen)
        sizes = np.arange(100_000, 5_000_001, 100_000)
        tables = len([term for term in settings.memory if term != "repeat"])
        fit = [
            items
            for items in sizes.tolist()
            if max(graph_bytes(items, settings, [blocks_an_item * items] * tables).values()) <= limit
        ]
        return float(max(fit) / 1e6)

    assert most({"memory": "none"}, 0) == 3.9
    assert most({}, 2) == 2.8
    assert most({"hidden_size": 50, "memory": "none"}, 0) == 5.0
    assert most({"hidden_size": 224, "memory": "none"}, 0) == 1.8
    assert most({"hidden_size": 512, "memory": "none"}, 0) == 0.8
