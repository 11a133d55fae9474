import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.trainer.builders import sessions_of
from trainer.data.batches import schedule
from trainer.data.sessions import SessionSet

lengths = st.lists(st.integers(1, 12), min_size=1, max_size=40)


def sessions_of_lengths(of: list[int]) -> SessionSet:
    return sessions_of([[0] * length for length in of])


@given(of=lengths, lanes=st.integers(1, 10))
def test_every_transition_is_trained_once_and_every_session_starts_fresh_once(of: list[int], lanes: int) -> None:
    sessions = sessions_of_lengths(of)
    plan = schedule(sessions, lanes)
    used = np.arange(plan.position.shape[1])[None, :] < plan.alive[:, None]
    expected = [
        int(start) + i for start, length in zip(sessions.offsets[:-1], of, strict=True) for i in range(length - 1)
    ]
    assert sorted(plan.position[used].tolist()) == expected
    assert plan.transitions == sessions.transitions
    starts = [int(start) for start, length in zip(sessions.offsets[:-1], of, strict=True) if length > 1]
    assert sorted(plan.position[plan.fresh].tolist()) == starts
    assert not plan.fresh[~used].any()


@given(of=lengths, lanes=st.integers(1, 10))
def test_a_lane_goes_through_a_session_click_by_click(of: list[int], lanes: int) -> None:
    plan = schedule(sessions_of_lengths(of), lanes)
    for lane in range(plan.position.shape[1]):
        alive = plan.alive > lane
        assert (np.diff(alive.astype(int)) <= 0).all()  # once gone, a lane stays away
        steps = plan.position[alive, lane]
        follows = ~plan.fresh[alive, lane]
        assert (steps[1:][follows[1:]] == steps[:-1][follows[1:]] + 1).all()
        assert not follows[0]


@given(of=lengths, lanes=st.integers(1, 10))
def test_lanes_shrink_only_when_no_session_is_left(of: list[int], lanes: int) -> None:
    plan = schedule(sessions_of_lengths(of), lanes)
    waiting = plan.fresh[1:].any(axis=1)  # a session starts later than step 0: until then every lane is busy
    last_start = int(np.flatnonzero(waiting).max(initial=-1)) + 1
    full = plan.position.shape[1]
    assert (plan.alive[:last_start] == full).all()
    assert plan.steps == 0 or plan.alive[-1] >= 1


def test_the_oldest_sessions_go_first_to_whichever_lane_is_free() -> None:
    # Sessions of 3, 1, 2 and 4 transitions: the second lane takes the third session, then the first the fourth.
    plan = schedule(sessions_of_lengths([4, 2, 3, 5]), 2)
    by_step = [sorted(row[:n].tolist()) for row, n in zip(plan.position, plan.alive.tolist(), strict=True)]
    assert by_step == [[0, 4], [1, 6], [2, 7], [9], [10], [11], [12]]
    assert sorted(plan.position[plan.fresh].tolist()) == [0, 4, 6, 9]
    assert plan.alive.tolist() == [2, 2, 2, 1, 1, 1, 1]


def test_fewer_sessions_than_lanes_make_fewer_lanes() -> None:
    plan = schedule(sessions_of_lengths([3, 2]), 100)
    assert plan.position.shape == (2, 2)
    assert plan.alive.tolist() == [2, 1]


def test_sessions_of_one_click_have_nothing_to_train() -> None:
    assert schedule(sessions_of_lengths([1, 1]), 4).steps == 0
