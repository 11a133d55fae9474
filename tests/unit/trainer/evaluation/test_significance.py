import math

import numpy as np
import pytest

from tests.unit.trainer.builders import sessions_of
from trainer.evaluation.significance import judge

RNG = np.random.default_rng(7)
SESSIONS = sessions_of([[0] * length for length in RNG.integers(2, 6, size=400).tolist()])
GOOD = RNG.choice([1.0, 3.0, 50.0], size=SESSIONS.transitions, p=[0.4, 0.3, 0.3])


def test_the_interval_is_that_of_the_binomial_where_predictions_are_independent() -> None:
    sessions = sessions_of([[0, 0]] * 900)
    ranks = np.where(np.arange(900) < 630, 1.0, 99.0)
    (model,) = judge({"model": ranks}, sessions)
    expected = 1.96 * math.sqrt(0.7 * 0.3 / 900)
    assert model.metrics.recall[20] == pytest.approx(0.7)
    assert model.intervals["recall@20"].low == pytest.approx(0.7 - expected, abs=0.003)
    assert model.intervals["recall@20"].high == pytest.approx(0.7 + expected, abs=0.003)
    assert not model.against_first


def test_predictions_that_hang_together_widen_the_interval() -> None:
    # Sessions of nine predictions, all hit or all missed: as much evidence as the sessions, not the predictions.
    sessions = sessions_of([[0] * 10] * 100)
    ranks = np.repeat(np.where(np.arange(100) < 50, 1.0, 99.0), 9)
    (model,) = judge({"model": ranks}, sessions)
    width = model.intervals["recall@20"].high - model.intervals["recall@20"].low
    assert width == pytest.approx(2 * 1.96 * math.sqrt(0.25 / 100), abs=0.02)


def test_the_same_model_twice_differs_in_nothing() -> None:
    _, again = judge({"first": GOOD, "again": GOOD}, SESSIONS)
    for difference in again.against_first.values():
        assert (difference.value, difference.error, difference.p) == (0, 0, 1)


def test_a_worse_model_is_found_out_and_an_equal_one_is_not() -> None:
    rng = np.random.default_rng(3)
    worse = np.where(rng.random(len(GOOD)) < 0.1, 99.0, GOOD)
    shuffled = rng.permutation(GOOD)  # other hits, as many of them
    _, found, equal = judge({"good": GOOD, "worse": worse, "equal": shuffled}, SESSIONS)
    for measure, metric in (("recall@20", "recall"), ("mrr@20", "mrr")):
        lost = found.against_first[measure]
        expected = getattr(found.metrics, metric)[20] - getattr(judge({"g": GOOD}, SESSIONS)[0].metrics, metric)[20]
        assert lost.value == pytest.approx(expected)
        assert lost.interval.low < lost.value < lost.interval.high < 0
        assert lost.p == pytest.approx(1 / 2001)
        assert lost.p_adjusted == pytest.approx(2 / 2001)
        assert equal.against_first[measure].p > 0.05
        assert equal.against_first[measure].interval.low < 0 < equal.against_first[measure].interval.high


def test_pairing_sees_what_separate_intervals_cannot() -> None:
    worse = GOOD.copy()
    worse[np.flatnonzero(GOOD < 20)[:30]] = 99.0
    good, found = judge({"good": GOOD, "worse": worse}, SESSIONS)
    assert found.intervals["recall@20"].high > good.intervals["recall@20"].low  # they overlap
    assert found.against_first["recall@20"].p < 0.01


def test_the_exchange_test_keeps_its_promise_when_nothing_differs() -> None:
    sessions = sessions_of([[0, 0, 0]] * 60)
    small = []
    for seed in range(100):
        rng = np.random.default_rng(seed)
        a, b = (np.where(rng.random(120) < 0.5, 1.0, 99.0) for _ in range(2))
        small.append(judge({"a": a, "b": b}, sessions, resamples=100, seed=seed)[1].against_first["recall@20"].p < 0.05)
    assert 0.01 <= np.mean(small) <= 0.11


def test_models_need_the_same_predictions() -> None:
    with pytest.raises(ValueError, match="predictions"):
        judge({"first": GOOD, "short": GOOD[1:]}, SESSIONS)


def test_a_seed_repeats_the_draws() -> None:
    ranks = {"good": GOOD, "other": GOOD[::-1].copy()}
    assert judge(ranks, SESSIONS, resamples=50) == judge(ranks, SESSIONS, resamples=50)
