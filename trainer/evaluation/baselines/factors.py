"""The family of :mod:`trainer.models.bpr_mf` as a baseline."""

from trainer.data.sessions import SessionSet
from trainer.evaluation.baselines.scorer import Baseline, baseline_of
from trainer.models import bpr_mf as family
from trainer.models.counting import LONGEST


def bpr_mf(
    train: SessionSet,
    *,
    factors: int = 100,
    epochs: int = 20,
    batch_size: int = 512,
    learning_rate: float = 0.1,
    regularisation: float = 0.002,
    seed: int = 42,
) -> Baseline:
    """See :func:`trainer.models.bpr_mf.bpr_mf`."""
    model = family.bpr_mf(
        train,
        factors=factors,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        regularisation=regularisation,
        seed=seed,
        window=LONGEST,
    )
    return baseline_of("bpr-mf", model)
