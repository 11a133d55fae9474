"""A cycle over a click log and a registry on the disk, and a models topic in memory: what it judges by and leaves."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from deploy.demo.shop import Shop, ShopSettings
from schemas.bundle.files import open_bundle
from schemas.config.settings import TopicSettings
from schemas.messages.announcement import ModelAnnouncement
from schemas.messages.click import Click
from tests.unit.announcements import TopicInMemory
from tests.unit.trainer.service.outages import store_is_away
from trainer.errors import AnnounceError, LeaseError, RegistryError
from trainer.service.champion import Championship
from trainer.service.click_log import ClickLogFolder, Rows, TopicIdentity
from trainer.service.cycle import Cycle
from trainer.service.publish import stage
from trainer.service.registry import Registry
from trainer.service.settings import TrainerRoot, TrainerSettings

NOW = 1_767_225_600_000
SHOP = Shop(ShopSettings(departments=2, brands=3, items_per_line=6))
TOPIC = TopicIdentity(TopicSettings().clicks, "id-1")
SMALL: dict[str, Any] = {"hidden_size": 8, "epochs": 1, "n_sample": 16, "memory": "none"}


class Trainer:
    """Everything that a cycle works on, in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = ClickLogFolder(folder / "log")
        self.log.folder.mkdir(parents=True)
        self.topic = TopicInMemory()
        self.registry = Registry(str(folder / "registry"), cache_dir=folder / "work" / "cache", writer="0" * 32)
        self.allowed = True

    def collect(self, clicks: list[Click]) -> None:
        first = self.log.scan().next_offsets.get(0, 0)
        clicks = sorted(clicks, key=lambda click: click.timestamp)
        rows = Rows(
            [click.session_id for click in clicks], [click.item_id for click in clicks],
            [click.timestamp for click in clicks], list(range(first, first + len(clicks))),
            [click.type for click in clicks],
        )  # fmt: skip
        self.log.write(0, first, first + len(clicks) - 1, rows, topic=TOPIC, expected=first)

    def may_write(self) -> None:
        if not self.allowed:
            raise LeaseError("another trainer")

    def cycle(self, training: dict[str, Any] | None = None, **settings: Any) -> Cycle:
        trainer = TrainerSettings(
            work_dir=self.folder / "work", min_new_sessions=10, gate_predictions=10, gate_beats=(),
            baselines=("pop",), training=SMALL | (training or {}), **{"refit": False, "gate_margin": 1, **settings},
        )  # fmt: skip
        championship = Championship(self.registry, self.topic)
        return Cycle(TrainerRoot(trainer=trainer), self.log, self.registry, championship, may_write=self.may_write)


@pytest.fixture
def trainer(tmp_path: Path) -> Trainer:
    return Trainer(tmp_path)


def history(sessions: int, *, until: int) -> list[Click]:
    return list(SHOP.history(sessions, before_ms=until))


def test_a_champion_of_trainer_fit_is_judged_on_what_came_after_its_files(trainer: Trainer) -> None:
    """It has no positions in the click log, which holds the very clicks that it learned."""
    trainer.collect(history(200, until=NOW))
    made = trainer.cycle().run()
    # As `trainer fit` would have made it: the same sessions, no positions; and by a name that sorts after every date.
    manifest = trainer.registry.get(made.version or "").manifest
    path = f"{made.version}/manifest.json"
    data = trainer.registry.store.read(path) or b""
    assert b'"positions"' in data
    trainer.registry.store.write(
        path, data.replace(b'"positions"', b'"no positions"').replace(b'"topic_id"', b'"none"')
    )
    Championship(trainer.registry, trainer.topic).promote(trainer.registry.get(made.version or ""), "by hand")

    learned = manifest.training["window"]["to"]
    second = trainer.cycle().run()
    judged = trainer.registry.get(second.version or "").manifest
    assert judged.metrics["champion"]["version"] == made.version
    assert judged.metrics["holdout"]["from"] > learned


@pytest.mark.parametrize("refit", [False, True])
def test_a_champion_of_shorter_lists_is_judged_by_them(trainer: Trainer, refit: bool) -> None:
    """It was trained when list_length was smaller; to compare at gate_k failed every later cycle."""
    trainer.collect(history(200, until=NOW))
    first = trainer.cycle({"list_length": 8}, gate_k=5).run()
    trainer.collect(history(200, until=NOW + 86_400_000))
    second = trainer.cycle(gate_k=20, refit=refit).run()
    assert (first.outcome, second.outcome) == ("announced", "announced")
    assert "judged at 7 in place of trainer.gate_k: the champion ranks 8 items only" in second.reasons
    metrics = trainer.registry.get(second.version or "").manifest.metrics
    assert metrics["gate"]["k"] == 7
    assert "recall@7" in metrics["champion"]
    assert "recall@10" not in metrics["champion"]  # of which it has no list


def test_a_champion_whose_store_is_away_keeps_its_place(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    """An outage of a second is no reason to announce a model that was compared with nothing."""
    trainer.collect(history(200, until=NOW))
    first = trainer.cycle().run().version
    trainer.collect(history(200, until=NOW + 86_400_000))
    with monkeypatch.context() as outage:
        store_is_away(outage, f"{first}/rank.onnx")
        with pytest.raises(RegistryError, match="out of reach"):
            trainer.cycle().run()
    assert [one.version for one in trainer.topic.log] == [first]
    second = trainer.registry.get(trainer.cycle().run().version or "")
    assert second.manifest.metrics["champion"]["version"] == first


def test_a_registry_that_is_not_mounted_gets_no_model(trainer: Trainer) -> None:
    """It looked as if the champion had been removed: the next model was compared with nothing, and gone with the mount.

    Where somebody emptied it, a model that is promoted by hand is the first one.
    """
    trainer.collect(history(200, until=NOW))
    first = trainer.cycle().run().version
    trainer.collect(history(200, until=NOW + 86_400_000))
    mounted, away = trainer.folder / "registry", trainer.folder / "elsewhere"
    mounted.rename(away)
    mounted.mkdir()
    with pytest.raises(RegistryError, match="is its file system mounted"):
        trainer.cycle().run()
    assert [one.version for one in trainer.topic.log] == [first]

    shutil.copytree(away / (first or ""), mounted / "by-hand")
    manifest = mounted / "by-hand" / "manifest.json"
    manifest.write_bytes(manifest.read_bytes().replace((first or "").encode(), b"by-hand"))
    Championship(trainer.registry, trainer.topic).promote(trainer.registry.get("by-hand"), "emptied on purpose")
    second = trainer.registry.get(trainer.cycle().run().version or "")
    assert second.manifest.metrics["champion"]["version"] == "by-hand"


def test_a_catalogue_of_fewer_items_than_gate_k_is_judged(trainer: Trainer) -> None:
    few = [click for click in history(400, until=NOW) if int(click.item_id.encode()[-1]) % 4 == 0]
    assert len({click.item_id for click in few}) < 100
    trainer.collect(few)
    result = trainer.cycle({"list_length": 101}, gate_k=100).run()
    assert result.outcome == "announced"


def test_all_models_are_evaluated_with_as_many_threads(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The challenger, which is evaluated in each cycle, had one, whatever trainer.threads says."""
    used: list[int] = []

    def opened(folder: Path, *, threads: int = 1) -> Any:
        used.append(threads)
        return open_bundle(folder, threads=threads)

    monkeypatch.setattr("trainer.service.publish.open_bundle", opened)
    trainer.collect(history(200, until=NOW))
    trainer.cycle(threads=2, refit=True).run()
    assert used == [2, 2]  # before the refit and after it


def test_predecessors_of_a_catalogue_of_fewer_items_than_gate_k_are_judged(trainer: Trainer) -> None:
    """They list all that there is. Without them quality would sink cycle by cycle."""
    versions = []
    for day in range(3):
        clicks = history(200, until=NOW + day * 86_400_000)
        trainer.collect([replace(click, item_id=f"item-{at % 9}") for at, click in enumerate(clicks)])
        versions.append(trainer.cycle(gate_k=20).run().version)
    judged = trainer.registry.get(versions[-1] or "").manifest.metrics
    assert judged["champion"]["version"] == versions[1]
    assert list(judged["predecessors"]) == versions[:1]


def test_a_model_of_another_kind_that_is_newer_makes_no_cycle_train_anew(trainer: Trainer) -> None:
    trainer.collect(history(200, until=NOW))
    made = trainer.cycle().run()
    assert made.outcome == "announced"
    data = trainer.registry.store.read(f"{made.version}/manifest.json") or b""
    for name in ("advance.onnx", "rank.onnx", "vocabulary.json", "popularity.npy", "golden.json"):
        trainer.registry.store.write(f"v1/{name}", trainer.registry.store.read(f"{made.version}/{name}") or b"")
    created_at = trainer.registry.get(made.version or "").manifest.created_at
    ours = data.replace(b'"positions"', b'"no positions"').replace((made.version or "").encode(), b"v1")
    trainer.registry.store.write("v1/manifest.json", ours.replace(b"%d" % created_at, b"%d" % (created_at + 1)))
    assert [model.version for model in trainer.registry.versions()] == [made.version, "v1"]
    assert trainer.cycle().run().outcome == "skipped"


def test_a_clock_that_is_set_back_makes_no_cycle_train_anew(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    for day, hour in enumerate((1, 0)):
        monkeypatch.setattr("trainer.service.publish.time.time_ns", lambda hour=hour: (NOW + hour * 3_600_000) * 10**6)
        trainer.collect(history(200, until=NOW + day * 86_400_000))
        assert trainer.cycle().run().outcome == "announced"
    assert [one.version for one in trainer.registry.versions()] == [one.version for one in trainer.topic.log]
    assert trainer.cycle().run().outcome == "skipped"


def test_trainers_of_two_aliases_share_a_registry_and_nothing_else(trainer: Trainer) -> None:
    """The newest version may be the other's: it is not announced unjudged, and its clicks are still new to us."""
    other = Trainer(trainer.folder / "other")
    other.registry = Registry(trainer.registry.url, cache_dir=other.folder / "cache", writer="1" * 32)
    other.topic = TopicInMemory("canary")
    for day in range(2):
        made = []
        for one in (trainer, other):
            one.collect(history(200, until=NOW + day * 86_400_000))
            made.append(one.cycle(model_alias=one.topic.alias).run())
        assert [(result.outcome, "later" in str(result.reasons)) for result in made] == [("announced", False)] * 2
        assert made[0].version != made[1].version
    assert [len(one.topic.log) for one in (trainer, other)] == [2, 2]


def test_the_first_model_of_another_alias_is_judged_against_the_champion(trainer: Trainer) -> None:
    """Else a canary's trainer trains at once, on what the champion knows already, and visitors get it unjudged."""
    trainer.collect(history(200, until=NOW))
    champion = trainer.cycle().run().version
    trainer.topic.alias = "challenger"
    assert trainer.cycle(model_alias="challenger").run().outcome == "skipped"
    trainer.collect(history(200, until=NOW + 86_400_000))
    made = trainer.cycle(model_alias="challenger").run()
    assert made.outcome == "announced"
    manifest = trainer.registry.get(made.version or "").manifest
    assert manifest.metrics["champion"]["version"] == manifest.training["started_from"] == champion
    assert [announced.alias for announced in trainer.topic.log] == ["champion", "challenger"]


def test_a_rival_of_the_champion_of_another_alias_is_kept(trainer: Trainer) -> None:
    trainer.collect(history(200, until=NOW))
    first = trainer.cycle().run().version or ""
    path, old = f"{first}/manifest.json", "20250101T000000000Z-00000000"
    manifest = json.loads(trainer.registry.store.read(path) or b"")
    for name in manifest["files"]:
        trainer.registry.store.write(f"{old}/{name}", trainer.registry.store.read(f"{first}/{name}") or b"")
    theirs = json.dumps(manifest | {"version": old, "created_at": 1}).encode()
    trainer.registry.store.write(f"{old}/manifest.json", theirs)
    manifest["metrics"]["predecessors"] = {old: {"recall@20": 1.0}}
    trainer.registry.store.write(path, json.dumps(manifest).encode())
    (champion,) = trainer.topic.log
    trainer.topic.log = [replace(champion, alias="canary")]
    trainer.cycle(keep_versions=1).tidy()
    assert [model.version for model in trainer.registry.versions()] == [old, first]


def test_what_could_not_be_announced_is_announced_by_the_next_cycle(trainer: Trainer) -> None:
    trainer.collect(history(200, until=NOW))
    trainer.topic.down = True
    with pytest.raises(AnnounceError):
        trainer.cycle().run()
    (published,) = trainer.registry.versions()
    trainer.topic.down = False
    finished = trainer.cycle().run()
    assert (finished.outcome, finished.version) == ("announced", published.version)
    assert [one.version for one in trainer.topic.log] == [published.version]
    assert trainer.cycle().run().outcome == "skipped"


def test_after_an_upgrade_the_next_cycle_makes_a_champion_that_fits(trainer: Trainer) -> None:
    """What is in the registry is of another format: it stops nothing, neither judging nor tidying, and stays."""
    trainer.collect(history(200, until=NOW))
    before = trainer.cycle().run().version
    path = f"{before}/manifest.json"
    data = (trainer.registry.store.read(path) or b"").replace(b'"format_version": ', b'"format_version": 9')
    trainer.registry.store.write(path, data)
    cycle = trainer.cycle(keep_versions=1)
    cycle.tidy()
    after = cycle.run()
    assert after.outcome == "announced"
    assert trainer.topic.announced()["champion"].version == after.version != before
    cycle.tidy()
    assert trainer.registry.store.read(path) == data


def test_a_trainer_whose_lease_is_taken_during_training_publishes_nothing(
    trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer.collect(history(200, until=NOW))
    cycle = trainer.cycle()

    def taken_meanwhile(*arguments: Any, **options: Any) -> Any:
        trainer.allowed = False
        return stage(*arguments, **options)

    monkeypatch.setattr("trainer.service.cycle.stage", taken_meanwhile)
    with pytest.raises(LeaseError):
        cycle.run()
    assert trainer.registry.store.list() == {}
    assert trainer.topic.log == []


def test_a_model_that_is_promoted_by_hand_during_the_first_cycle_stays(
    trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first cycle's model was compared with no champion, for there was none."""
    trainer.collect(history(200, until=NOW))
    by_hand = ModelAnnouncement("champion", "v1", "elsewhere/v1", "0" * 64, NOW, "by hand")

    def promoted_meanwhile(*arguments: Any, **options: Any) -> Any:
        trainer.topic.announce(by_hand)
        return stage(*arguments, **options)

    monkeypatch.setattr("trainer.service.cycle.stage", promoted_meanwhile)
    with pytest.raises(RegistryError, match="v1 has become the champion meanwhile; nothing is announced"):
        trainer.cycle().run()
    assert trainer.topic.log == [by_hand]


def test_a_work_folder_that_holds_other_things_keeps_them(trainer: Trainer) -> None:
    theirs = ["staging/thesis.odt", "candidate/x", "cache/photo.jpg", ".nextclick-staging-other/y"]
    for name in theirs:
        (trainer.folder / "work" / name).parent.mkdir(parents=True)
        (trainer.folder / "work" / name).write_text("theirs")
    trainer.collect(history(200, until=NOW))
    assert trainer.cycle().run().outcome == "announced"
    assert all((trainer.folder / "work" / name).read_text() == "theirs" for name in theirs)


def test_a_window_without_a_type_to_predict_is_waited_out(trainer: Trainer) -> None:
    trainer.collect(history(200, until=NOW))
    waiting = trainer.cycle({"target_weights": "view=0,purchase=1"}).run()
    assert waiting.outcome == "skipped"
    assert "nothing to predict: target_weights gives 0 to every type that sessions have (view)" in waiting.reasons[0]
    trainer.collect([replace(click, type="purchase") for click in history(200, until=NOW + 86_400_000)])
    assert trainer.cycle({"target_weights": "view=0,purchase=1"}).run().outcome == "announced"
