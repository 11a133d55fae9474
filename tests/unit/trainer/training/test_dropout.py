import numpy as np
import pytest

from trainer.training.dropout import keys, mask, threshold


def test_components_are_dropped_one_by_one() -> None:
    """Neighbours, lanes, masks and steps have nothing to do with each other."""
    rate, shape = 0.3, (64, 64)
    of_steps = keys(seed=1, first_step=0, steps=200, masks=2)
    dropped = np.stack([[(mask(shape, rate, key) == 0).numpy() for key in step] for step in of_steps])
    assert dropped.mean() == pytest.approx(rate, abs=0.002)
    both = rate * rate
    assert (dropped[:, :, :, 1:] & dropped[:, :, :, :-1]).mean() == pytest.approx(both, abs=0.002)
    assert (dropped[:, :, 1:] & dropped[:, :, :-1]).mean() == pytest.approx(both, abs=0.002)
    assert (dropped[:, 0] & dropped[:, 1]).mean() == pytest.approx(both, abs=0.002)
    assert (dropped[1:] & dropped[:-1]).mean() == pytest.approx(both, abs=0.002)


def test_steps_have_the_keys_of_their_number_whoever_asks() -> None:
    whole = keys(seed=9, first_step=0, steps=10, masks=2)
    assert (keys(seed=9, first_step=4, steps=3, masks=2) == whole[4:7]).all()
    assert len(np.unique(whole)) == 20
    assert not (keys(seed=10, first_step=0, steps=10, masks=2) == whole).any()
    assert len(keys(seed=2**63 - 1, first_step=2**40, steps=1, masks=2)) == 1


@pytest.mark.parametrize("rate", [0.0, 0.5, 1 - 1e-12])
def test_every_rate_has_a_threshold(rate: float) -> None:
    assert int(threshold(rate)) == pytest.approx(rate * 2**32, abs=1)
