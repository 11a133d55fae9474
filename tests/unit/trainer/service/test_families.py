"""Cycles whose models are of other families than the default: from the click log to an announced version, and back."""

from pathlib import Path
from typing import Any

import pytest

from schemas.bundle.files import Model
from tests.unit.announcements import TopicInMemory
from tests.unit.trainer.service.test_cycle import NOW, SMALL, Trainer, history
from trainer.models.settings import TrainingSettings
from trainer.service.champion import Championship
from trainer.service.cycle import Cycle, CycleResult
from trainer.service.settings import root_of

NETWORK = SMALL | {"batch_size": 16}
WINDOW = NETWORK | {"window": 7}  # of tests/contract/test_families.py, where such graphs are traced as well
DAY = 86_400_000
FAMILIES: dict[str, dict[str, Any]] = {
    "gru4rec": NETWORK,
    "stamp": WINDOW,
    "sasrec": WINDOW,
    "item-knn": {},
    "vs-knn": {"memory": "repeat"},
    "gru4rec+stamp": {"memory": "none", "gru4rec": NETWORK, "stamp": NETWORK},
}


class Service:
    """One click log, registry and topic, on which trainers of one family after another work."""

    def __init__(self, folder: Path) -> None:
        self.trainer = Trainer(folder)
        self.topic: TopicInMemory = self.trainer.topic
        self.championship = Championship(self.trainer.registry, self.topic)
        self.days = 0

    def cycle(self, family: str, **settings: Any) -> Cycle:
        root = root_of(family).model_validate(
            {
                "trainer": {
                    "work_dir": self.trainer.folder / "work",
                    **{"min_new_sessions": 10, "gate_predictions": 10, "gate_margin": 1, "gate_beats": ()},
                    **{"baselines": ("pop",), "training": {"family": family, **FAMILIES[family]}},
                    **settings,
                }
            }
        )
        return Cycle(root, self.trainer.log, self.trainer.registry, self.championship)

    def a_day_later(self, family: str, **settings: Any) -> CycleResult:
        self.trainer.collect(history(200, until=NOW + self.days * DAY))
        self.days += 1
        return self.cycle(family, **settings).run()

    def opened(self, version: str | None) -> Model:
        return self.trainer.registry.open(self.trainer.registry.get(version or ""))


@pytest.fixture
def service(tmp_path: Path) -> Service:
    return Service(tmp_path)


@pytest.mark.parametrize(
    ("family", "encoder"), [("stamp", "window"), ("gru4rec+stamp", "window"), ("item-knn", "none"), ("vs-knn", "none")]
)
def test_two_cycles_make_two_champions(service: Service, family: str, encoder: str) -> None:
    """The second one is judged against the first, and starts from it where the family can; both are refitted."""
    first, second = service.a_day_later(family), service.a_day_later(family)
    assert (first.outcome, second.outcome) == ("announced", "announced")
    manifest = service.opened(second.version).manifest
    assert (manifest.family, manifest.encoder) == (family, encoder)
    assert manifest.metrics["champion"]["version"] == first.version
    assert manifest.training["started_from"] == (first.version if encoder == "window" else None)
    assert manifest.training["refitted"]
    # What a manifest keeps of the settings can be read back: a warm start needs it.
    assert TrainingSettings.parse(manifest.training["settings"]).family == family


@pytest.mark.parametrize(
    "families",
    [("gru4rec", "sasrec"), ("stamp", "gru4rec"), ("gru4rec", "item-knn"), ("gru4rec", "gru4rec+stamp")],
    ids="-".join,
)
def test_a_challenger_of_another_family_is_judged_and_rolled_back(service: Service, families: tuple[str, str]) -> None:
    before, after = (service.a_day_later(family, refit=False) for family in families)
    assert after.outcome == "announced"
    metrics = service.opened(after.version).manifest.metrics
    assert metrics["champion"]["version"] == before.version
    back = service.championship.roll_back()
    assert back.version == before.version
    # And on from there, whichever family the trainer is set to.
    assert service.a_day_later(families[1], refit=False).outcome == "announced"
    service.cycle(families[0]).tidy()


def test_the_first_model_after_a_counted_one_starts_from_nothing(service: Service) -> None:
    service.a_day_later("item-knn", refit=False)
    made = service.a_day_later("stamp", refit=False)
    assert service.opened(made.version).manifest.training["started_from"] is None


def test_items_rows_of_another_family_are_trained_as_long_as_from_nothing(service: Service) -> None:
    """Three epochs at half the learning rate are for a network that has learned already."""
    service.a_day_later("gru4rec", refit=False)
    made = service.a_day_later("sasrec", refit=False, warm_epochs=7)
    manifest = service.opened(made.version).manifest
    assert manifest.training["started_from"] is not None
    assert manifest.training["settings"]["epochs"] == SMALL["epochs"]
    again = service.opened(service.a_day_later("sasrec", refit=False, warm_epochs=7).version).manifest
    assert again.training["settings"]["epochs"] == 7


def test_every_family_of_one_model_goes_on_from_its_own(service: Service) -> None:
    service.a_day_later("gru4rec+stamp", refit=False)
    made = service.a_day_later("gru4rec+stamp", refit=False, warm_epochs=7)
    manifest = service.opened(made.version).manifest
    tables = [manifest.training["settings"][name] for name in ("gru4rec", "stamp")]
    # Half of the usual rate, of each family's own.
    assert [(table["epochs"], table["learning_rate"]) for table in tables] == [(7, 0.05), (7, 0.0025)]


def test_each_of_several_families_has_the_samples_of_periodic_training() -> None:
    training = root_of("gru4rec+stamp")().trainer.training.model_dump()
    assert (training["gru4rec"]["n_sample"], training["stamp"]["n_sample"]) == (512, 512)


def test_a_champion_that_nothing_can_start_from_ends_no_cycle(service: Service) -> None:
    """It was made by settings that this trainer does not know."""
    made = service.a_day_later("stamp", refit=False)
    path = f"{made.version}/manifest.json"
    data = service.trainer.registry.store.read(path) or b""
    assert b'"weight_decay"' in data
    service.trainer.registry.store.write(path, data.replace(b'"weight_decay"', b'"weight_delay"'))
    service.championship.promote(service.trainer.registry.get(made.version or ""), "by hand")
    after = service.a_day_later("stamp", refit=False)
    manifest = service.opened(after.version).manifest
    assert (manifest.metrics["champion"]["version"], manifest.training["started_from"]) == (made.version, None)
