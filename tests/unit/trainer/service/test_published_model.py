"""What a cycle does to a model besides training it: the parity check of its export, and the start of the next one."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from schemas.bundle.files import Model
from trainer.data.sessions import SessionSet
from trainer.errors import ParityError
from trainer.export.parity import check_parity
from trainer.models.gru4rec import GruLayer, Weights, initial_weights
from trainer.models.settings import Gru4RecSettings
from trainer.service.publish import stage
from trainer.training.fit import FitResult
from trainer.training.shrink import shrink_and_perturb

SETTINGS = Gru4RecSettings(hidden_size=8, layers=2, n_sample=4)
ITEMS = tuple(f"item-{index}" for index in range(40))


def weights(seed: int = 1) -> Weights:
    return initial_weights(len(ITEMS), SETTINGS, torch.Generator().manual_seed(seed))


def sessions(count: int = 30) -> SessionSet:
    """Of lengths 2 to 7."""
    lengths = 2 + np.arange(count) % 6
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    items = np.random.default_rng(0).integers(len(ITEMS), size=int(lengths.sum()))
    return SessionSet(items, offsets, ITEMS, np.arange(count), timed=True)


@pytest.fixture
def exported(tmp_path: Path) -> Model:
    return stage(tmp_path, FitResult(weights=weights(), item_ids=ITEMS, settings=SETTINGS, epochs=()), sessions())


def test_an_export_computes_what_the_network_computes(exported: Model) -> None:
    assert check_parity(weights(), exported, sessions()) == sessions().transitions


def test_another_gate_is_found_in_the_hidden_state(exported: Model) -> None:
    first, second = weights().layers
    assert second.w is not None
    turned = GruLayer(second.w.neg(), second.u, second.b)
    with pytest.raises(ParityError, match=r"advance\.onnx .* from step 1 of"):
        check_parity(replace(weights(), layers=(first, turned)), exported, sessions())


def test_another_bias_is_found_in_the_ranking(exported: Model) -> None:
    ours = weights()
    bias = ours.output_bias.clone()
    bias[7] += 10.0
    with pytest.raises(ParityError, match=r"rank\.onnx"):
        check_parity(replace(ours, output_bias=bias), exported, sessions())


def test_a_start_is_part_old_part_drawn_and_leaves_the_old_alone() -> None:
    old, before = weights(), weights().tensors()
    start = shrink_and_perturb(old, SETTINGS, keep=0.5).tensors()
    drawn = shrink_and_perturb(old, SETTINGS, keep=1e-9).tensors()
    for name, tensor in start.items():
        assert torch.equal(old.tensors()[name], before[name])
        assert torch.allclose(tensor, (before[name] + drawn[name]) / 2, atol=1e-6)
    assert not torch.equal(drawn["output"], before["output"])
    kept = shrink_and_perturb(old, SETTINGS, keep=1.0).tensors()
    assert all(torch.equal(kept[name], before[name]) for name in before)
