"""Several families as one model, from a few sessions to what a worker answers: what `test_families` does not ask."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from schemas.bundle.files import open_bundle
from tests.unit.trainer.builders import random_sessions
from tests.unit.trainer.models.test_unrolled import ITEMS, KINDS, WINDOW, drawn
from trainer.export.bundle import export, save_bundle
from trainer.export.encoders import encoder_graph
from trainer.export.parity import check_parity
from trainer.export.shortlist_catalogue import LEAST_ITEMS
from trainer.memory.trained import TrainedModel
from trainer.models.mixed import MixedSettings, initial_mixed
from trainer.models.unrolled import unrolled


@pytest.mark.parametrize("kind", [KINDS[n] for n in (3, 4, 5, 7)], ids=str)  # with the parts of all others
def test_a_gru_exported_both_ways_is_one(kind: dict[str, object]) -> None:
    """`advance.onnx` click by click, and `encode.onnx` over the window, padded and not."""
    weights, settings = drawn(kind)
    advance, encode = encoder_graph(weights), encoder_graph(unrolled(weights, settings, WINDOW))
    step, at_once = (
        onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
        for graph in (advance.advance, encode.encode)
    )
    clicks = np.random.default_rng(1).integers(ITEMS, size=(WINDOW, 4))  # [T, B]
    hidden = np.zeros((advance.layers, 4, advance.hidden_size), np.float32)
    for number, items in enumerate(clicks, start=1):
        (hidden,) = step.run(None, {"item_index": items, "hidden": hidden})
        seen, length = clicks[:number].T, np.full(4, number)
        padded = np.concatenate([seen, np.full((4, WINDOW - number), -1)], axis=1)
        for given in (seen, padded):
            (query,) = at_once.run(None, {"items": np.ascontiguousarray(given), "length": length})
            np.testing.assert_allclose(query, hidden[-1], rtol=1e-5, atol=1e-6)


def test_a_large_catalogue_has_one_shortlist_for_all_members(tmp_path: Path) -> None:
    items = LEAST_ITEMS + 77
    settings = MixedSettings.parse(
        {"family": "gru4rec+sasrec", "memory": "none", "window": 5, "gru4rec.hidden_size": 8, "sasrec.hidden_size": 12}
    )
    network = initial_mixed(items, settings, torch.Generator().manual_seed(1))
    # Rows of one family are fifty times as large as the other's: steps of one size must serve both.
    scale = torch.tensor([5.0] * 8 + [0.1] * 12)
    network = network.with_tensors({**network.tensors(), "output": scale * torch.randn(items, 20)})
    sessions = random_sessions(60, items, seed=7)
    model = TrainedModel(weights=network, item_ids=sessions.item_ids, settings=settings)
    folder = save_bundle(
        tmp_path, "v1", model, popularity=np.ones(items, np.int64), training={}, metrics={}, created_at=0
    )
    opened = open_bundle(folder)
    assert (opened.query_size, opened.window, opened.manifest.family) == (20, 5, "gru4rec+sasrec")
    assert check_parity(network, opened, sessions) > 100


def test_the_size_is_told_before_there_is_a_model() -> None:
    settings = MixedSettings.parse(
        {"family": "gru4rec+caser", "memory": "none", "gru4rec.embedding": "one-hot", "gru4rec.members": 2}
    )
    exported = export(initial_mixed(700, settings, torch.Generator().manual_seed(1)))
    taken, told = len(exported.encoder.encode or b""), 4 * settings.encoder_numbers(700)
    assert taken <= told + 1024**2 < 2.2 * taken + 1024**2
    assert settings.units == exported.query_size == 300
