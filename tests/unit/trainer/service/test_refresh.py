"""Refreshes over a click log and a registry on the disk: what they publish, and what cycles make of it."""

from pathlib import Path
from typing import Any

import pytest

from schemas.bundle.files import Model
from schemas.messages.announcement import ModelAnnouncement
from tests.unit.trainer.service import test_cycle
from tests.unit.trainer.service.test_cycle import NOW, Trainer, history
from trainer.errors import AnnounceError, LeaseError, RegistryError
from trainer.service.champion import Championship
from trainer.service.click_log import ClickLogFolder, TopicIdentity
from trainer.service.cycle import Cycle, CycleResult
from trainer.service.guarding import Trained
from trainer.service.refresh import Refresh
from trainer.service.registry import REFRESHED_KEPT, PublishedModel
from trainer.service.settings import TrainerRoot, TrainerSettings, root_of

DAY_MS = 86_400_000


@pytest.fixture
def trainer(tmp_path: Path) -> Trainer:
    return Trainer(tmp_path)


def championship(trainer: Trainer) -> Championship:
    return Championship(trainer.registry, trainer.topic)


def refresh(trainer: Trainer, **settings: Any) -> CycleResult:
    root = TrainerRoot(trainer=TrainerSettings(work_dir=trainer.folder / "work", **settings))
    return Refresh(root, trainer.log, trainer.registry, championship(trainer), may_write=trainer.may_write).run()


def champion(trainer: Trainer) -> ModelAnnouncement:
    return trainer.topic.announced()["champion"]


def opened(trainer: Trainer, version: str | None) -> Model:
    return trainer.registry.open(trainer.registry.get(version or ""))


def trained(trainer: Trainer, *, memory: str = "none") -> str:
    """A first champion of a part of the catalogue: what comes later has items that it does not know."""
    trainer.collect([click for click in history(300, until=NOW) if hash_of(click.item_id) % 4])
    result = trainer.cycle({"memory": memory}).run()
    assert result.version is not None
    return result.version


def hash_of(item_id: str) -> int:
    return sum(item_id.encode())


def test_a_refresh_is_a_version_of_its_own_in_the_champion_s_place(trainer: Trainer) -> None:
    first = trained(trainer)
    trainer.collect(history(200, until=NOW + DAY_MS))
    result = refresh(trainer)
    assert (result.outcome, champion(trainer).version) == ("announced", result.version)
    assert result.version != first
    old, new = opened(trainer, first), opened(trainer, result.version)
    known = len(old.vocabulary)
    assert new.vocabulary.items[:known] == old.vocabulary.items
    assert len(new.vocabulary) > known
    assert new.popularity[known:].min() > 0
    assert (old.states_of, new.states_of) == (first, first)
    said = new.manifest.training.pop("refreshed")
    assert (said["from"], said["trained"], said["trained_items"]) == (first, first, known)
    assert new.manifest.training == old.manifest.training
    assert new.manifest.metrics["model"] == old.manifest.metrics["model"]
    assert new.manifest.metrics["evaluated_weights"] == f"those of {first}, before it was refreshed"
    assert f"refreshed {first}" in champion(trainer).why


def test_without_new_clicks_nothing_is_published(trainer: Trainer) -> None:
    trained(trainer)
    assert refresh(trainer).reasons == ("no session has new clicks",)
    trainer.collect(history(50, until=NOW + DAY_MS))
    assert refresh(trainer).outcome == "announced"
    assert refresh(trainer).reasons == ("no session has new clicks",)
    assert len(trainer.registry.versions()) == 2


def test_a_log_that_has_only_begun_replaces_no_counts(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    """As behind a champion of `trainer fit`: its files were years, the click log is minutes."""
    first = trained(trainer)
    trainer.log = ClickLogFolder(trainer.folder / "another log")
    trainer.log.folder.mkdir()
    monkeypatch.setattr(test_cycle, "TOPIC", TopicIdentity("clicks", "another"))
    trainer.collect(history(20, until=NOW + DAY_MS))
    assert "a refresh needs half as many" in refresh(trainer).reasons[0]
    assert champion(trainer).version == first
    trainer.collect(history(300, until=NOW + 2 * DAY_MS))
    assert refresh(trainer).outcome == "announced"


def test_a_refresh_of_a_refresh_goes_on_from_what_was_trained(trainer: Trainer) -> None:
    first = trained(trainer)
    known = len(opened(trainer, first).vocabulary)
    for day in (1, 2):
        trainer.collect(history(100, until=NOW + day * DAY_MS))
        last = refresh(trainer)
    new = opened(trainer, last.version)
    assert new.states_of == first
    assert new.manifest.training["refreshed"]["trained_items"] == known
    assert new.manifest.training["refreshed"]["from"] != first


def test_a_guard_that_starts_later_knows_whose_the_removed_refreshes_were(trainer: Trainer) -> None:
    first = trained(trainer)
    made = []
    for day in range(1, REFRESHED_KEPT + 3):
        trainer.collect(history(20, until=NOW + day * DAY_MS))
        made.append(refresh(trainer).version or "")
        trainer.cycle().tidy()
    assert trainer.registry.find(made[0]) is None
    whose = Trained(trainer.registry)
    whose.learn([made[0], champion(trainer).version, "elsewhere"])
    assert [whose(version) for version in (*made, first, "elsewhere")] == [*[first] * len(made), first, "elsewhere"]


def test_to_roll_back_is_to_return_to_another_model(trainer: Trainer) -> None:
    """Not to the same one with older counts, of which there are dozens a day."""
    first = trained(trainer)
    trainer.collect(history(100, until=NOW + DAY_MS))
    refreshed = refresh(trainer).version
    trainer.collect(history(300, until=NOW + 2 * DAY_MS))
    second = trainer.cycle().run().version
    for day in (3, 4):
        trainer.collect(history(100, until=NOW + day * DAY_MS))
        assert refresh(trainer).outcome == "announced"
    standing = championship(trainer).standing()
    assert standing.line == [refreshed, champion(trainer).version]
    # Each refresh takes the place of the one before, in the history too.
    assert [entry.action for entry in standing.entries] == ["promoted", "refreshed", "promoted", "refreshed"]
    assert {first, second} < {entry.version for entry in standing.entries}
    assert championship(trainer).roll_back().version == refreshed


def test_a_model_that_was_rolled_back_during_its_refresh_stays_rolled_back(
    trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the guard, which waits for no trainer."""
    first = trained(trainer)
    trainer.collect(history(300, until=NOW + DAY_MS))
    second = trainer.cycle().run().version
    trainer.collect(history(100, until=NOW + 2 * DAY_MS))
    publish = trainer.registry.publish

    def meanwhile(bundle: Path) -> PublishedModel:
        rolled_back_once(trainer, second)
        return publish(bundle)

    monkeypatch.setattr(trainer.registry, "publish", meanwhile)
    with pytest.raises(RegistryError, match=f"{second} is no longer the champion, {first} is; nothing is announced"):
        refresh(trainer)
    assert championship(trainer).standing().line == [first]


def test_a_challenger_of_a_champion_that_was_rolled_back_meanwhile_is_not_announced(
    trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was judged against the bad model and started from it."""
    first = trained(trainer)
    trainer.collect(history(300, until=NOW + DAY_MS))
    second = trainer.cycle().run().version
    trainer.collect(history(300, until=NOW + 2 * DAY_MS))
    fit = Cycle._fit

    def meanwhile(self: Cycle, *args: Any) -> Any:
        rolled_back_once(trainer, second)
        return fit(self, *args)

    monkeypatch.setattr(Cycle, "_fit", meanwhile)
    with pytest.raises(RegistryError, match=f"{second} is no longer the champion, {first} is; nothing is announced"):
        trainer.cycle().run()
    assert champion(trainer).version == first
    assert "new sessions, a cycle needs" in trainer.cycle().run().reasons[0]  # nor by the next one


def rolled_back_once(trainer: Trainer, version: str | None) -> None:
    if champion(trainer).version == version:
        championship(trainer).roll_back("the guard: worse")


def test_the_newest_refreshed_versions_stay_and_count_for_themselves(trainer: Trainer) -> None:
    first = trained(trainer)
    made = []
    for day in range(1, REFRESHED_KEPT + 3):
        trainer.collect(history(20, until=NOW + day * DAY_MS))
        made.append(refresh(trainer).version)
        trainer.cycle(keep_versions=1).tidy()
    assert [model.version for model in trainer.registry.versions()] == [first, *made[-REFRESHED_KEPT:]]
    assert champion(trainer).version == made[-1]


def test_a_cycle_after_refreshes_has_their_sessions_to_learn_from(
    trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The champion has counted them, and would look better than it is: it is judged with the counts of the training
    part alone."""
    trained(trainer, memory="all")
    trainer.collect(history(300, until=NOW + DAY_MS))
    counted = refresh(trainer)
    judged: list[Model] = []
    evaluate = Cycle._evaluate

    def watched(self: Cycle, candidate: Model, rival: Model, *others: Any) -> Any:
        judged.extend((candidate, rival))
        return evaluate(self, candidate, rival, *others)

    monkeypatch.setattr(Cycle, "_evaluate", watched)
    result = trainer.cycle().run()
    assert result.outcome == "announced"
    candidate, rival = judged
    assert rival.version == counted.version
    assert rival.popularity.sum() == candidate.popularity.sum() < opened(trainer, counted.version).popularity.sum()
    made = trainer.registry.get(result.version or "").manifest
    assert made.metrics["champion"]["version"] == counted.version
    assert made.training["started_from"] == counted.version


def test_what_was_refused_is_not_trained_again_because_of_a_refresh(trainer: Trainer) -> None:
    trained(trainer)
    trainer.collect(history(300, until=NOW + DAY_MS))
    assert trainer.cycle(gate_margin=-1).run().outcome == "refused"
    assert refresh(trainer).outcome == "announced"
    assert "new sessions, a cycle needs" in trainer.cycle(gate_margin=-1).run().reasons[0]


def test_a_challenger_that_could_not_be_announced_is_announced_after_a_refresh(trainer: Trainer) -> None:
    trained(trainer)
    trainer.collect(history(100, until=NOW + DAY_MS))
    assert refresh(trainer).outcome == "announced"
    trainer.collect(history(300, until=NOW + 2 * DAY_MS))
    trainer.topic.down = True
    with pytest.raises(AnnounceError):
        trainer.cycle().run()
    trainer.topic.down = False
    passed = trainer.registry.versions()[-1].version
    assert refresh(trainer).outcome == "announced"
    assert trainer.cycle().run().version == passed == champion(trainer).version


def test_nothing_is_refreshed_without_a_champion_and_no_family_that_counts(trainer: Trainer) -> None:
    trainer.collect(history(200, until=NOW))
    assert "no champion is announced yet" in refresh(trainer).reasons[0]
    assert counting_cycle(trainer).outcome == "announced"
    trainer.collect(history(200, until=NOW + DAY_MS))
    assert "markov-chain, counts" in refresh(trainer).reasons[0]


def counting_cycle(trainer: Trainer) -> CycleResult:
    root = root_of("markov-chain").model_validate(
        {
            "trainer": {
                "work_dir": trainer.folder / "work", "min_new_sessions": 10, "gate_predictions": 10, "gate_margin": 1,
                "gate_beats": (), "baselines": ("pop",), "refit": False,
                "training": {"family": "markov-chain", "memory": "none"},
            }
        }
    )  # fmt: skip
    return Cycle(root, trainer.log, trainer.registry, championship(trainer)).run()


def test_a_trainer_whose_lease_is_taken_refreshes_nothing(trainer: Trainer) -> None:
    first = trained(trainer)
    trainer.collect(history(100, until=NOW + DAY_MS))
    trainer.allowed = False
    with pytest.raises(LeaseError):
        refresh(trainer)
    assert champion(trainer).version == first
