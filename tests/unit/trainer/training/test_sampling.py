import numpy as np
import pytest

from trainer.training.sampling import NegativeSampler

SUPPORT = np.array([1, 4, 16, 100, 3], dtype=np.int64)


def drawn(
    alpha: float, steps: int, n_sample: int = 1000, seed: int = 1
) -> "np.ndarray[tuple[int], np.dtype[np.int64]]":
    sampler = NegativeSampler(SUPPORT, n_sample=n_sample, alpha=alpha, seed=seed)
    return np.concatenate([sampler.draw_steps(1)[0] for _ in range(steps)])


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_items_are_drawn_by_their_support_to_the_alpha(alpha: float) -> None:
    from scipy.stats import chisquare  # here: a second's import, which every process that collects the tests would pay

    ids = drawn(alpha, steps=600)  # more than one pool
    p = SUPPORT**alpha / (SUPPORT**alpha).sum()
    test = chisquare(np.bincount(ids, minlength=len(SUPPORT)), p * len(ids))
    assert test.pvalue > 1e-3


def test_a_seed_decides_the_samples_and_no_slice_comes_twice() -> None:
    assert (drawn(0.5, 5) == drawn(0.5, 5)).all()
    assert (drawn(0.5, 5) != drawn(0.5, 5, seed=2)).any()
    steps = drawn(0.5, 600).reshape(600, -1)
    assert len(np.unique(steps, axis=0)) == 600


def test_none_and_more_than_a_pool_can_be_asked_for() -> None:
    assert len(drawn(0.5, 3, n_sample=0)) == 0
    assert len(drawn(0.5, 2, n_sample=300_000)) == 600_000
