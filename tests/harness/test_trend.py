"""What grows is found, what wavers is not."""

import numpy as np
import pytest

from tests.harness.trend import trend

AT = np.arange(0, 7200, 5.0)


def wavering(seed: int) -> "np.ndarray[tuple[int], np.dtype[np.float64]]":
    """Noise that is like its neighbours, as memory is."""
    steps = np.random.default_rng(seed).normal(size=len(AT))
    values = np.zeros(len(AT))
    for n in range(1, len(AT)):
        values[n] = 0.9 * values[n - 1] + steps[n]
    return values


@pytest.mark.parametrize("seed", range(20))
def test_noise_has_no_trend(seed: int) -> None:
    assert trend(AT, 200 + wavering(seed)).grows is False


@pytest.mark.parametrize("seed", range(20))
def test_a_leak_has_one(seed: int) -> None:
    found = trend(AT, 200 + wavering(seed) + 20 * AT / 3600)
    assert found.grows
    assert found.per_hour == pytest.approx(20, rel=0.3)


def test_what_grows_at_first_and_then_no_more_has_none() -> None:
    assert trend(AT, np.minimum(AT / 10, 200)).grows is False


def test_a_steady_growth_that_matters_to_nobody_is_none() -> None:
    assert trend(AT, 200 + AT / 7200).grows is False


def test_few_values_tell_nothing() -> None:
    assert trend(AT[:10], AT[:10]).grows is None
