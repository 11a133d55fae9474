"""The demo goes on until the new model has shown something, at the machine's own pace, and says how long that takes."""

import pytest

from deploy.demo.progress import Plan, Progress
from deploy.demo.tempo import Tempo
from schemas.messages.score import Totals

PLAN = Plan(live=100, patience=500, retrain_every=50, predictions=2000)


def served(*predictions: int) -> dict[str, Totals]:
    return {f"v{n}": Totals(predictions=count) for n, count in enumerate(predictions)}


@pytest.mark.parametrize(
    ("elapsed", "predictions", "over"),
    [
        (99, (9000, 9000), False),  # its time is not up
        (101, (9000, 2000), True),
        (101, (9000, 2500, 10), True),  # the second of three models was seen at work
        (101, (9000,), False),
        (101, (9000, 0), False),  # the swap came just now: a slow machine
        (599, (9000, 1999), False),
        (601, (9000, 1999), True),  # patience is at its end
        (601, (9000,), True),
    ],
)
def test_when_it_is_over(elapsed: float, predictions: tuple[int, ...], over: bool) -> None:
    progress = Progress(PLAN, trained_in=20)
    progress.update(elapsed, served(*predictions))
    assert progress.is_over == over


def test_it_is_not_over_before_the_story_is_told_and_says_what_comes_next() -> None:
    progress = Progress(PLAN, trained_in=20)
    progress.update(110, served(9000, 2500), "the guard to promote the canary")
    assert (progress.is_over, progress.outlook) == (False, "waiting for the guard to promote the canary")
    progress.update(601, served(9000, 2500), "the guard to promote the canary")
    assert progress.is_over  # patience is at its end
    progress.update(110, served(9000, 2500))
    assert progress.is_over


def test_it_says_what_it_waits_for_and_how_long_that_takes() -> None:
    progress, told = Progress(PLAN, trained_in=20), []
    for elapsed, predictions in [
        (10, (9,)),
        (90, (9,)),
        (110, (9, 0)),
        (130, (9, 500)),
        (200, (9, 2000)),
        (80, (9, 2000)),
    ]:
        progress.update(elapsed, served(*predictions))
        told.append(progress.outlook)
    assert told == [
        "a new model in about 60 s",
        "still no new model; waiting for 510 s more at most",
        "0 of 2,000 predictions of the new model",
        "500 of 2,000 predictions of the new model; about 60 s left",
        "about 0 s left",
        "about 20 s left",
    ]


class Machine:
    """Ranks so many clicks a second of a shop that sends 1,000 a second of its time."""

    def __init__(self) -> None:
        self.at = self.sent = self.ranked = 0.0
        self.tempo = Tempo(lambda: self.at, self.pass_by)

    def pass_by(self, seconds: float) -> None:
        self.at += seconds

    def run(self, seconds: float, capacity: float) -> list[float]:
        """How many clicks wait, at each tenth of a second."""
        waiting = []
        for _ in range(round(seconds * 10)):
            before = self.tempo.now()
            self.pass_by(0.1)
            self.sent += (self.tempo.now() - before) * 1000
            self.ranked = min(self.sent, self.ranked + capacity / 10)
            self.tempo.adapt(round(self.sent), round(self.ranked))
            waiting.append(self.sent - self.ranked)
        return waiting


def test_on_a_machine_that_is_fast_enough_time_goes_by_as_ours() -> None:
    machine = Machine()
    machine.run(60, capacity=3000)
    assert machine.tempo.speed == 1.0
    assert machine.tempo.lost == 0.0


def test_on_a_slow_machine_time_goes_slower_and_nothing_heaps_up() -> None:
    machine = Machine()
    machine.run(30, capacity=300)
    assert max(machine.run(300, capacity=300)) < 2 * 300  # for less than two seconds a click waits
    assert machine.sent > 300 * 250  # and the machine is at work
    assert machine.tempo.lost == pytest.approx(330 - machine.sent / 1000)
    machine.run(120, capacity=3000)  # whatever else it did is over
    assert machine.tempo.speed == 1.0


def test_a_machine_that_ranks_nothing_is_not_sent_more_and_more() -> None:
    machine = Machine()
    machine.run(120, capacity=0)
    assert machine.tempo.speed == pytest.approx(0.05)


def test_a_sleep_is_of_the_shops_seconds() -> None:
    machine = Machine()
    machine.tempo.speed = 0.25
    machine.tempo.sleep(2)
    assert machine.at == 8
