"""The search: trials in processes of their own, a study that survives its process, and what comes out."""

import multiprocessing
import sqlite3
import threading
from multiprocessing.connection import Connection
from pathlib import Path

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState

from tests.unit.trainer.builders import random_sessions
from trainer.data.sessions import train_and_test
from trainer.errors import TuningError
from trainer.evaluation.baselines import BaselineSpec
from trainer.evaluation.protocol import NetworkScorer, evaluate
from trainer.models.settings import Gru4RecSettings, TrainingSettings
from trainer.search.searches import Search, model_search
from trainer.search.trial_worker import Judging, work
from trainer.search.tuning import best, finished, opened_study, tune
from trainer.search.tuning_report import tuned_settings
from trainer.training.early_stopping import EarlyStopping, Measure
from trainer.training.fit import fit
from trainer.training.train import train

TRAIN, HOLDOUT = train_and_test(random_sessions(120, items=30), random_sessions(40, items=30, seed=1))
JUDGING = Judging(TRAIN, HOLDOUT, "mrr", patience=2)
SMALL = ["hidden_size=8", "n_sample=10", "epochs=4", "batch_size=8"]


class ThreadedWorker:
    """A worker in this process: it takes no seconds to start, and does the same."""

    def __init__(self, connection: Connection, judging: Judging) -> None:
        self._thread = threading.Thread(target=self._work, args=(connection, judging))
        self._thread.start()

    @staticmethod
    def _work(connection: Connection, judging: Judging) -> None:
        with connection:
            work(connection, judging)

    def terminate(self) -> None:
        """The other end is closed by now: it stops at its next message."""

    def join(self) -> None:
        self._thread.join()


@pytest.fixture
def processes() -> None:
    """Asked for by tests that want real ones."""


@pytest.fixture(autouse=True)
def workers(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "processes" not in request.fixturenames:
        monkeypatch.setattr("trainer.search.tuning.start_worker", ThreadedWorker)


def network(*ranges: str, seed: int = 1) -> Search:
    return model_search({}, SMALL, ranges, seed=seed)


def searched(path: Path, search: Search, trials: int, jobs: int = 1, judging: Judging = JUDGING) -> list[FrozenTrial]:
    with opened_study(path, search, judging) as study:
        tune(study, search, judging, trials=trials, jobs=jobs)
        return finished(study)


def drawn(trials: list[FrozenTrial]) -> list[object]:
    return [(trial.user_attrs["values"], trial.value) for trial in trials]


def test_the_first_trial_is_the_defaults_and_scores_what_a_fit_scores(tmp_path: Path) -> None:
    (trial,) = searched(tmp_path / "study.db", network(), 1)
    settings = Gru4RecSettings.from_assignments(SMALL)
    assert {name: settings.model_dump()[name] for name in trial.user_attrs["values"]} == trial.user_attrs["values"]
    result = fit(TRAIN, settings, early_stopping=EarlyStopping(HOLDOUT, patience=2))
    assert trial.value == pytest.approx(max(epoch.score or 0 for epoch in result.epochs))
    assert trial.user_attrs["epoch"] == result.best_epoch
    assert trial.intermediate_values == {epoch.number: epoch.score for epoch in result.epochs}


def test_a_model_with_a_memory_is_judged_with_it(tmp_path: Path) -> None:
    sessions, holdout = train_and_test(random_sessions(1300, items=30), random_sessions(60, items=30, seed=1))
    judging = Judging(sessions, holdout, "mrr", patience=1)
    search = model_search({}, ["hidden_size=8", "n_sample=10", "epochs=1"], ["batch_size=64..65"], seed=1)
    (trial,) = searched(tmp_path / "study.db", search, 1, judging=judging)
    settings = Gru4RecSettings.parse(search.values(trial.user_attrs["values"]))
    whole = train(sessions, settings, early_stopping=EarlyStopping(holdout, patience=1))
    assert whole.memory
    expected = evaluate(NetworkScorer(whole.weights, whole.memory), holdout, ks=(20,)).mrr[20]
    assert trial.value == pytest.approx(expected)
    assert expected > trial.intermediate_values[1]  # of the network alone


@pytest.mark.usefixtures("processes")
def test_trials_side_by_side_and_the_best_of_them(tmp_path: Path) -> None:
    search = network("learning_rate=0.001..1:log", "layers=0..1")
    trials = searched(tmp_path / "study.db", search, 5, jobs=2)
    assert len(trials) == 5
    assert len({str(trial.user_attrs["values"]) for trial in trials}) == 5
    with opened_study(tmp_path / "study.db", search, JUDGING) as study:
        winner = best(study, search)
    assert winner.mrr == max(trial.value or 0 for trial in trials)
    settings = Gru4RecSettings.parse(winner.values)
    assert (settings.hidden_size, settings.layers) == (8, winner.values["layers"])


def test_a_search_repeats_with_one_job(tmp_path: Path) -> None:
    first, again = (drawn(searched(tmp_path / name, network(), 3)) for name in ("a.db", "b.db"))
    assert first == again


def test_a_study_is_gone_on_with_and_does_not_draw_the_same_again(tmp_path: Path) -> None:
    path = tmp_path / "study.db"
    before = searched(path, network(), 2)
    after = searched(path, network(), 4)
    assert drawn(after)[:2] == drawn(before)
    assert len({str(trial.user_attrs["values"]) for trial in after}) == 4
    assert len(searched(path, network(), 3)) == 4  # enough already


class KilledError(Exception):
    """What stands for a kill of the process that searches."""


def test_what_ran_when_the_process_died_is_tried_again(tmp_path: Path) -> None:
    path, search = tmp_path / "study.db", network()

    def killed(_: FrozenTrial) -> None:
        raise KilledError

    with pytest.raises(KilledError), opened_study(path, search, JUDGING) as study:
        tune(study, search, JUDGING, trials=6, jobs=2, on_trial=killed)
    with opened_study(path, search, JUDGING) as study:
        (lost,) = study.get_trials(states=(TrialState.FAIL,))
        tune(study, search, JUDGING, trials=2, jobs=1)
        done = finished(study)
    assert len(done) == 2
    assert done[1].params == lost.params


@pytest.mark.usefixtures("processes")
def test_a_worker_that_dies_ends_the_search_with_a_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, search = tmp_path / "study.db", network()
    report = optuna.Trial.report

    def killing(trial: optuna.Trial, value: float, step: int) -> None:
        (worker,) = multiprocessing.active_children()
        worker.kill()
        worker.join()
        report(trial, value, step)

    with opened_study(path, search, JUDGING) as study, monkeypatch.context() as patched:
        patched.setattr(optuna.Trial, "report", killing)
        with pytest.raises(TuningError, match=r"has died; out of memory\?"):
            tune(study, search, JUDGING, trials=3, jobs=1)
    assert len(searched(path, search, 1)) == 1


def test_values_that_break_training_down_score_nothing_and_do_not_end_the_search(tmp_path: Path) -> None:
    ranges = ["learning_rate=0.1|10", "layers=0|1", "embedding=shared|one-hot", "momentum=0.0|0.9"]
    search = model_search({"loss": "bpr-max", "optimizer": "sgd", "bpreg": 2}, SMALL, ranges, seed=1)
    with opened_study(tmp_path / "study.db", search, JUDGING) as study:
        for values in ((10, 1, "shared", 0.9), (0.1, 0, "one-hot", 0.0)):
            study.enqueue_trial(dict(zip(("learning_rate", "layers", "embedding", "momentum"), values, strict=True)))
        tune(study, search, JUDGING, trials=3, jobs=1)
        usual, diverged, impossible = finished(study)
        assert best(study, search).number == usual.number
    assert (diverged.value, impossible.value) == (0.0, 0.0)
    assert "the loss is" in diverged.user_attrs["diverged"]
    assert "one-hot has none" in impossible.user_attrs["diverged"]


def test_a_trial_that_lags_behind_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def after_the_first(trial: optuna.Trial) -> bool:
        asked.append(trial.number)
        return trial.number == 1

    monkeypatch.setattr(optuna.Trial, "should_prune", after_the_first)
    trials = searched(tmp_path / "study.db", network(), 3)
    assert [trial.state for trial in trials] == [TrialState.COMPLETE, TrialState.PRUNED, TrialState.COMPLETE]
    assert asked.count(1) == 1  # its first epoch was its last
    with opened_study(tmp_path / "study.db", network(), JUDGING) as study:
        assert best(study, network()).number != 1


@pytest.mark.parametrize("family", ["item-knn", "sequential-rules"])
def test_a_family_that_counts_is_judged_as_its_baseline_is(tmp_path: Path, family: str) -> None:
    search = model_search({}, [f"family={family}"], [], seed=1)
    trials = searched(tmp_path / "study.db", search, 4, jobs=2)
    for trial in trials:
        baseline = BaselineSpec.of(family, trial.user_attrs["values"]).build(TRAIN)
        assert trial.value == pytest.approx(evaluate(baseline, HOLDOUT, ks=(20,)).mrr[20])
    with opened_study(tmp_path / "study.db", search, JUDGING) as study:
        assert tuned_settings(best(study, search)).family == family


@pytest.mark.parametrize("measure", ["recall", "both"])
def test_the_measure_can_be_recall_or_both(tmp_path: Path, measure: Measure) -> None:
    judging = Judging(TRAIN, HOLDOUT, measure, patience=2)
    search = model_search({}, ["family=stan"], [], seed=1)
    (trial,) = searched(tmp_path / "study.db", search, 1, judging=judging)
    recall, mrr = trial.user_attrs["recall"], trial.user_attrs["mrr"]
    assert recall > mrr > 0
    assert trial.value == {"recall": recall, "both": recall + mrr}[measure]


@pytest.mark.parametrize(
    ("search", "judging"),
    [
        (network("layers=1..2"), JUDGING),
        (model_search({}, [*SMALL, "seed=1"], [], seed=1), JUDGING),
        (network(), Judging(TRAIN, HOLDOUT, "recall", 2)),
        (network(), Judging(TRAIN, HOLDOUT, "mrr", 3)),
        (network(), Judging(HOLDOUT, HOLDOUT, "mrr", 2)),
        (network(), Judging(TRAIN, TRAIN, "mrr", 2)),
        (model_search({}, ["family=stan"], [], seed=1), JUDGING),
    ],
)
def test_a_study_of_another_search_is_refused(tmp_path: Path, search: Search, judging: Judging) -> None:
    path = tmp_path / "study.db"
    with opened_study(path, network(), JUDGING):
        pass
    with opened_study(path, network(seed=9), JUDGING):
        pass  # another seed is the same search
    with pytest.raises(TuningError, match=r"study\.db: is of another search"), opened_study(path, search, judging):
        pass


def test_a_study_in_use_or_damaged_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "study.db"
    with (
        opened_study(path, network(), JUDGING),
        pytest.raises(TuningError, match="another process searches with it"),
        opened_study(path, network(), JUDGING),
    ):
        pass
    path.write_text("no database, but long enough to look at" * 100)
    with pytest.raises(TuningError, match=r"study\.db: holds no study"), opened_study(path, network(), JUDGING):
        pass
    with sqlite3.connect(tmp_path / "empty.db"):
        pass
    with opened_study(tmp_path / "empty.db", network(), JUDGING) as study, pytest.raises(TuningError, match="no trial"):
        best(study, network())


def test_a_trial_of_planned_epochs_is_what_a_fit_of_as_many_makes(tmp_path: Path) -> None:
    """Stopped in the middle of its learning rate's plan it would be a model that no fit can make again."""
    judging = Judging(TRAIN, HOLDOUT, "mrr", patience=1)
    search = model_search({}, ["family=stamp", *SMALL, "epochs=6"], ["learning_rate=0.3..0.9:log"], seed=1)
    trials = searched(tmp_path / "study.db", search, 2, judging=judging)
    for trial in trials:
        assert sorted(trial.intermediate_values) == [3, 4, 5, 6]
        assert trial.user_attrs["epoch"] == 6
        fitted = train(TRAIN, TrainingSettings.parse(search.values(trial.user_attrs["values"])))
        assert trial.value == pytest.approx(evaluate(NetworkScorer(fitted.weights), HOLDOUT, ks=(20,)).mrr[20])
    # The last epoch was not the best of all, or this would not tell the two apart.
    assert any(max(trial.intermediate_values.values()) > trial.intermediate_values[6] for trial in trials)
    with opened_study(tmp_path / "study.db", search, judging) as study:
        assert tuned_settings(best(study, search)).model_dump()["epochs"] == 6


@pytest.mark.parametrize(
    ("given", "ranges", "first"),
    [
        (["family=stamp", "epochs=12"], [], 6),
        (["family=stamp", "epochs=2"], [], 2),
        (["family=stamp"], ["epochs=4..9"], None),
        ([], ["epochs=4..9"], 2),
    ],
)
def test_trials_are_given_up_only_where_they_can_be_compared(
    tmp_path: Path, given: list[str], ranges: list[str], first: int | None
) -> None:
    with opened_study(tmp_path / "study.db", model_search({}, given, ranges, seed=1), JUDGING) as study:
        for score in (1.0, 1.0, 1.0, 1.0, 1.0, 0.0):
            trial, given_up = study.ask(), []
            for epoch in range(1, 13):
                trial.report(score, epoch)
                if trial.should_prune():
                    given_up.append(epoch)
            study.tell(trial, score)
    assert (given_up[0] if given_up else None) == first


def test_several_families_as_one_are_tuned(tmp_path: Path) -> None:
    small = [f"{family}.{one}" for family in ("gru4rec", "stamp") for one in SMALL]
    told = ["family=gru4rec+stamp", "memory=none", *(one for one in small if "memory" not in one)]
    search = model_search({}, told, ["stamp.weight=0.5|2"], seed=1)
    (trial,) = searched(tmp_path / "study.db", search, 1)
    with opened_study(tmp_path / "study.db", search, JUDGING) as study:
        settings = tuned_settings(best(study, search))
    fitted = train(TRAIN, settings)
    assert trial.value == pytest.approx(evaluate(NetworkScorer(fitted.weights), HOLDOUT, ks=(20,)).mrr[20])
