"""Types of clicks in sessions, and what each click weighs as a target."""

from dataclasses import replace

import numpy as np
import pytest

from tests.unit.trainer.builders import random_sessions, sessions_of
from tests.unit.trainer.data.test_sessions import log_of
from trainer.data.preprocessing import collapse_repeats, core
from trainer.data.sessions import SessionSet, drop_short, encode, group_sessions, joined, newest_share, temporal_holdout
from trainer.data.targets import check_types, target_types, target_weights, targets, weighing
from trainer.errors import TooFewSessionsError, TrainingSettingsError

NAMES = ("view", "cart", "purchase")


def typed(sessions: SessionSet) -> SessionSet:
    """Each click's type follows from its item."""
    return replace(sessions, types=(sessions.items % 3).astype(np.int32), type_names=NAMES)


def assert_types_went_along(sessions: SessionSet) -> None:
    assert sessions.types is not None
    assert sessions.types.dtype == np.int32
    numbers = [int(item_id[1:]) for item_id in sessions.item_ids]
    assert sessions.types.tolist() == [numbers[item] % 3 for item in sessions.items.tolist()]


def test_types_go_where_their_clicks_go() -> None:
    sessions = typed(random_sessions(80, items=30))
    older, newest = temporal_holdout(sessions, fraction=0.3)
    for some in (
        older,
        newest,
        joined([older, newest]),
        drop_short(sessions),
        sessions.oldest(3),
        sessions.newest(3),
        newest_share(sessions, 0.5),
        encode(sessions, [f"i{item}" for item in range(29, 4, -1)]),
        collapse_repeats(sessions),
        core(sessions, 12),
    ):
        assert 0 < some.clicks <= sessions.clicks
        assert_types_went_along(some)
    assert joined([older, newest]).types is not None


def test_grouped_clicks_keep_their_types() -> None:
    log = log_of(("s", "i5", 50), ("t", "i1", 20), ("s", "i4", 10), ("t", "i2", 30), ("s", "i3", 40))
    log = replace(
        log, types=np.array([int(log.item_ids[item][1:]) % 3 for item in log.item], np.int32), type_names=NAMES
    )
    for gap in (None, 15):
        assert_types_went_along(group_sessions(log, idle_gap_ms=gap))


def test_the_first_click_of_a_session_is_no_target() -> None:
    sessions = typed(sessions_of([[0, 1], [2], [3, 4, 5]]))
    assert targets(sessions).tolist() == [False, True, False, False, True, True]
    assert target_types(sessions).tolist() == [1, 1, 2]
    assert target_types(replace(sessions, types=None)).tolist() == [0, 0, 0]


def test_weights_are_1_on_average_over_the_targets() -> None:
    sessions = typed(sessions_of([[0, 1], [2, 3, 4, 5]]))  # targets: cart, view, cart, purchase
    weights = target_weights(sessions, {"cart": 2.0, "purchase": 5.0})
    assert weights is not None
    assert weights.dtype == np.float32
    np.testing.assert_allclose(weights[targets(sessions)], np.array([2, 1, 2, 5]) / 2.5)
    none = target_weights(sessions, {"view": 0.0})
    assert none is not None
    np.testing.assert_allclose(none[targets(sessions)], np.array([1, 0, 1, 1]) / 0.75)


@pytest.mark.parametrize("by_type", [{}, {"view": 3.0, "cart": 3.0, "purchase": 3.0}, {"wishlist": 7.0}])
def test_equal_weights_are_none(by_type: dict[str, float]) -> None:
    assert target_weights(typed(random_sessions(9, items=9)), by_type) is None
    assert target_weights(random_sessions(9, items=9), {"view": 3.0}) is None


def test_the_types_of_targets_decide_not_those_of_first_clicks() -> None:
    sessions = typed(sessions_of([[2, 0, 3], [2, 0]]))  # no purchase is predicted
    assert target_weights(sessions, {"purchase": 9.0}) is None


def test_nothing_to_predict_is_told() -> None:
    sessions = typed(sessions_of([[0, 1, 4], [2, 1]]))
    with pytest.raises(TooFewSessionsError, match=r"gives 0 to every type that sessions have \(cart, purchase, view\)"):
        target_weights(sessions, {"cart": 0.0})
    with pytest.raises(TooFewSessionsError, match="nothing to predict"):
        target_weights(sessions_of([[0, 1]]), {"view": 0.0})
    assert weighing(sessions, {"cart": 0.0}) == 0
    assert weighing(sessions, {"purchase": 0.0}) == 3


def test_a_weight_for_a_type_that_nobody_has_is_refused() -> None:
    check_types(typed(sessions_of([[0, 1, 2]])), {"purchase": 2.0})
    with pytest.raises(
        TrainingSettingsError, match="names purchase, and the sessions have clicks of the types cart, view"
    ):
        check_types(typed(sessions_of([[0, 1]])), {"purchase": 2.0})
    with pytest.raises(TrainingSettingsError, match="names cart, and the sessions have clicks of the types view"):
        check_types(sessions_of([[0, 1]]), {"cart": 2.0})
