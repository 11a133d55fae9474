"""The protocol of windows: which sessions are learned from, and which are judged, when; all by hand."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.unit.trainer.builders import random_sessions, sessions_of
from trainer.data.lanes import Lanes
from trainer.data.options import DataOptions
from trainer.data.sessions import Ints, SessionSet
from trainer.errors import TooFewSessionsError
from trainer.evaluation.protocol import Floats, Metrics, Ties
from trainer.models.registry import FAMILIES, settings_class
from trainer.models.settings import NetworkSettings, TrainingSettings
from trainer.search.windows import (
    FamilyLearner,
    Learned,
    OverTime,
    judged,
    over_time,
    read_windows,
    windows_of,
)
from trainer.training.train import LEAST_PREDICTIONS, memory_beside

HOUR = 3_600_000


def timed(clicks: Sequence[Sequence[int]], hours: Sequence[float], items: int | None = None) -> SessionSet:
    ends = np.array([round(hour * HOUR) for hour in hours], dtype=np.int64)
    return replace(sessions_of(clicks, items), ends=ends, timed=True)


def clicks_of(sessions: SessionSet) -> list[list[str]]:
    bounds = zip(sessions.offsets[:-1].tolist(), sessions.offsets[1:].tolist(), strict=True)
    return [[sessions.item_ids[i] for i in sessions.items[start:stop].tolist()] for start, stop in bounds]


@dataclass
class Told:
    """A model that puts every target at rank 2, and remembers what it is asked."""

    vocabulary: tuple[str, ...]
    asked: list[tuple[list[str], str]] = field(default_factory=list)
    name: str = "told"
    depth: int = 1000

    def start(self, lanes: int) -> None:
        return None

    def advance(self, state: object, lanes: Lanes) -> None:
        return None

    def ranks(self, state: object, lanes: Lanes, targets: Ints, ties: Ties) -> Floats:
        for row, target in zip(lanes.history(30).tolist(), targets.tolist(), strict=True):
            before = [self.vocabulary[i] for i in reversed(row) if i >= 0]
            self.asked.append((before, self.vocabulary[target]))
        return np.full(len(targets), 2.0)


# Windows of a day, counted from the first session: hours 5 to 29, 29 to 53 (none), 53 to 77, 77 to 101.
DAYS = timed([[0, 1], [1, 2], [0, 2, 1], [3, 0], [0, 3, 9], [9, 4]], [5, 28.99, 29 + 24, 76, 77, 78], items=10)


def test_windows_are_counted_from_the_first_session_and_empty_ones_are_left_out() -> None:
    found = windows_of(DAYS, 24)
    assert [clicks_of(one) for one in found] == [
        [["i0", "i1"], ["i1", "i2"]],
        [["i0", "i2", "i1"], ["i3", "i0"]],
        [["i0", "i3", "i9"], ["i9", "i4"]],
    ]
    assert [len(one) for one in windows_of(DAYS, 1)] == [1, 1, 1, 1, 1, 1]
    with pytest.raises(TooFewSessionsError, match="take shorter windows"):
        windows_of(DAYS, 100)
    with pytest.raises(ValueError, match="timestamps"):
        windows_of(sessions_of([[0, 1], [1, 2]]), 24)


def test_a_window_is_judged_by_what_was_learned_before_it_begins() -> None:
    learned: list[list[list[list[str]]]] = []
    models: list[Told] = []

    def learn(past: Sequence[SessionSet]) -> Learned:
        learned.append([clicks_of(one) for one in past])
        seen = tuple(dict.fromkeys(item for window in learned[-1] for session in window for item in session))
        models.append(Told(seen))
        return models[-1], seen

    found = over_time(windows_of(DAYS, 24), learn, ks=(1, 20))
    first, second = [["i0", "i1"], ["i1", "i2"]], [["i0", "i2", "i1"], ["i3", "i0"]]
    assert learned == [[first], [first, second]]
    # Window 2: i3 is new. [i0, i2, i1] is asked prefix by prefix, and counts for its last click; [i3, i0] has nothing
    # known before i0: a miss.
    assert models[0].asked == [(["i0"], "i2"), (["i0", "i2"], "i1")]
    assert found.windows[0].predictions == 2
    assert found.windows[0].recall == {1: 0.0, 20: 0.5}
    assert found.windows[0].ndcg[20] == pytest.approx(0.5 * 0.6309298)
    # Window 3: i9 and i4 are new, so both last clicks are misses, and nobody is asked.
    assert models[1].asked == []
    assert found.windows[1].recall == {1: 0.0, 20: 0.0}
    assert (found.mean.recall[20], found.mean.predictions) == (0.25, 4)


def test_nothing_that_is_learned_from_ends_after_a_judged_window_has_begun() -> None:
    sessions = random_sessions(60, items=9)
    ends = np.sort(np.random.default_rng(1).integers(0, 90 * HOUR, size=60))
    whole = replace(sessions, ends=ends, timed=True)
    begins = [int(one.ends[0]) for one in windows_of(whole, 7)]

    def learn(past: Sequence[SessionSet]) -> Learned:
        assert max(int(one.ends[-1]) for one in past) < begins[len(past)]
        return Told(whole.item_ids), whole.item_ids

    assert len(over_time(windows_of(whole, 7), learn).windows) == len(begins) - 1


def test_each_window_weighs_the_same() -> None:
    few, many = Metrics.of_ranks(np.array([1.0])), Metrics.of_ranks(np.array([99.0] * 9))
    mean = OverTime((few, many)).mean
    assert (mean.recall[20], mean.mrr[20], mean.ndcg[20], mean.predictions) == (0.5, 0.5, 0.5, 10)


def test_clicks_on_unknown_items_are_no_clicks() -> None:
    model = Told(("i1", "i2"))
    window = sessions_of([[1, 0, 2], [1, 2, 0], [0, 1]])  # i0 is unknown: in the middle, as a target, as all before it
    metrics = judged(model, model.vocabulary, window, ks=(20,), ties="conservative")
    assert model.asked == [(["i1"], "i2")]
    assert metrics.recall[20] == pytest.approx(1 / 3)


def test_repeats_in_a_row_go_and_the_first_twenty_clicks_stay(tmp_path: Path) -> None:
    path = tmp_path / "clicks.csv"
    rows = [("a", "x", 0), ("a", "x", 1), ("b", "x", 2), ("b", "x", 3), ("b", "y", 4)]
    rows += [("c", f"i{n}", 90_000 + n) for n in range(25)]
    path.write_text("\n".join(["session_id,item_id,timestamp", *(f"{s},{i},{t}" for s, i, t in rows)]) + "\n")
    first, second = read_windows(DataOptions([path]), 24)[0]
    assert clicks_of(first) == [["x", "y"]]  # a has one click without its repeat
    assert clicks_of(second) == [[f"i{n}" for n in range(20)]]
    assert second.ends.tolist() == [90_024_000]  # it is over when its last click came, not its twentieth


SMALL: dict[str, Any] = {"hidden_size": 8, "n_sample": 20, "batch_size": 32, "epochs": 1, "window": 7}


def settings_of(family: str, **more: Any) -> TrainingSettings:
    fields = settings_class(family).model_fields
    small = {name: value for name, value in SMALL.items() if name in fields}
    return TrainingSettings.parse({"family": family, "memory": "none", **small, **more})


def three_days(sessions: int = 90, catalogue: Sequence[int] = (12, 15, 18)) -> list[SessionSet]:
    """A catalogue that grows: of the last items of a day, the days before know nothing."""
    parts = [random_sessions(sessions, items, seed=items) for items in catalogue]
    clicks = [one.items[a:b].tolist() for one in parts for a, b in zip(one.offsets[:-1], one.offsets[1:], strict=True)]
    hours = [24 * day + 20 * n / sessions for day in range(len(parts)) for n in range(sessions)]
    return windows_of(timed(clicks, hours, items=max(catalogue)), 24)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_goes_through_the_windows(family: str) -> None:
    days = three_days()
    learner = FamilyLearner(settings_of(family))
    found = over_time(days, learner, ks=(5,))
    assert [one.predictions for one in found.windows] == [90, 90]
    result = learner.result
    assert result is not None
    assert sorted(result.item_ids) == sorted(f"i{n}" for n in range(15))  # of the first two days
    if isinstance(result.settings, NetworkSettings):
        # The last training was on the second day alone.
        assert result.epochs[0].transitions == days[1].transitions
    assert found.windows[-1].recall[5] > 0


def test_a_network_goes_on_from_its_weights() -> None:
    days = three_days()
    learner = FamilyLearner(settings_of("gru4rec", learning_rate=1e-9, averaging=0))
    learner(days[:1])
    first = learner.result
    learner(days[:2])
    second = learner.result
    assert first is not None
    assert second is not None
    rows = dict(zip(first.item_ids, first.network.tensors()["output"], strict=True))
    went_on = dict(zip(second.item_ids, second.network.tensors()["output"], strict=True))
    assert all(torch.allclose(went_on[item], row, atol=1e-5) for item, row in rows.items())
    anew = FamilyLearner(settings_of("gru4rec", learning_rate=1e-9, averaging=0, seed=7), retrain=0)
    anew(days[:2])
    assert anew.result is not None
    other = dict(zip(anew.result.item_ids, anew.result.network.tensors()["output"], strict=True))
    assert not torch.allclose(other["i0"], rows["i0"], atol=1e-2)


@pytest.mark.parametrize(("retrain", "days"), [(0, [0, 1, 2]), (1, [2]), (2, [1, 2]), (9, [0, 1, 2])])
def test_a_retrained_model_learns_from_so_many_windows(retrain: int, days: list[int]) -> None:
    windows = three_days()
    learner = FamilyLearner(settings_of("gru4rec"), retrain=retrain)
    learner(windows)
    assert learner.result is not None
    assert learner.result.epochs[0].transitions == sum(windows[day].transitions for day in days)


def test_the_memory_is_fitted_on_a_window_that_neither_network_nor_tables_have_seen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    days = three_days(200)
    assert days[1].transitions > LEAST_PREDICTIONS
    fitted: list[tuple[Any, SessionSet, SessionSet]] = []

    def watched(network: Any, newest: SessionSet, older: SessionSet, *others: Any, **more: Any) -> Any:
        fitted.append((network, newest, older))
        return memory_beside(network, newest, older, *others, **more)

    monkeypatch.setattr("trainer.search.windows.memory_beside", watched)
    learner = FamilyLearner(settings_of("sasrec", memory="all"))
    learner(days[:1])
    before = learner.result
    learner(days[:2])
    assert before is not None
    assert learner.result is not None
    ((network, newest, older),) = fitted
    assert network is before.weights
    assert (clicks_of(older), older.item_ids) == (clicks_of(days[0]), before.item_ids)
    assert newest.clicks < days[1].clicks  # of the second day what the first knows
    memory = learner.result.memory
    assert memory.cooccurrence is not None
    assert len(memory.cooccurrence.table) == len(learner.result.item_ids)  # its tables know the second day
