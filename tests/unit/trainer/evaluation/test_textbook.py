"""What the benchmark measures against must learn what we learn."""

import pytest
import torch

from bench.textbook_gru4rec import TextbookTraining
from tests.unit.trainer.builders import random_sessions
from tests.unit.trainer.networks import gru
from trainer.models.gru4rec import initial_weights
from trainer.models.settings import Gru4RecSettings
from trainer.training.fit import fit
from trainer.training.sampling import NegativeSampler


@pytest.mark.parametrize(("batch_size", "n_sample", "logq"), [(6, 12, 1.0), (6, 0, 1.0), (1, 5, 0.0)])
def test_the_textbook_version_learns_the_same_weights(batch_size: int, n_sample: int, logq: float) -> None:
    settings = Gru4RecSettings(
        hidden_size=8,
        batch_size=batch_size,
        n_sample=n_sample,
        logq=logq,
        dropout_hidden=0,
        epochs=2,
        averaging=0,
        seed=5,
    )
    sessions = random_sessions(40, items=25, seed=3)
    found = fit(sessions, settings)
    start = initial_weights(25, settings, torch.Generator().manual_seed(settings.seed))
    sampler = NegativeSampler(sessions.support(), n_sample=n_sample, alpha=settings.sample_alpha, seed=settings.seed)
    textbook = TextbookTraining(sessions, settings, start, lambda: torch.from_numpy(sampler.draw_steps(1)[0]))
    for epoch in found.epochs:
        assert textbook.epoch() == pytest.approx(epoch.loss, rel=1e-4)
    model, (layer,) = textbook.model, gru(found.network).layers
    assert layer.w is not None
    for ours, theirs in (
        (found.network.output, model.items.weight),
        (found.network.output_bias, model.bias.weight.squeeze(1)),
        (layer.w, model.cell.weight_ih),
        (layer.u, model.cell.weight_hh),
        (layer.b, model.cell.bias_ih),
    ):
        torch.testing.assert_close(ours, theirs.detach(), rtol=2e-3, atol=2e-4)


def test_its_dropout_is_on() -> None:
    settings = Gru4RecSettings(hidden_size=8, batch_size=6, n_sample=12, dropout_hidden=0.9)
    sessions = random_sessions(40, items=25, seed=3)
    start = initial_weights(25, settings, torch.Generator().manual_seed(settings.seed))
    dropped = TextbookTraining(sessions, settings, start).epoch()
    assert dropped > TextbookTraining(sessions, settings.model_copy(update={"dropout_hidden": 0.0}), start).epoch()
