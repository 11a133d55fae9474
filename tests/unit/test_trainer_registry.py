"""The registry in a local folder and in an object store: whole versions or none, whenever the writer dies."""

import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from schemas.announcement import ModelAnnouncement
from schemas.bundle import manifest_digest
from schemas.errors import BundleError
from tests.contract.tiny_model import TinyModel
from trainer.champion import Championship
from trainer.history import Entry
from trainer.registry import Registry, version_name
from trainer.service_errors import AnnounceError, RegistryError

TINY = TinyModel()


@pytest.fixture(params=["local", "memory"])
def registry(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Registry]:
    url = str(tmp_path / "registry") if request.param == "local" else f"memory://{uuid.uuid4().hex}/models"
    yield Registry(url, cache_dir=tmp_path / "cache")
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]


@pytest.fixture
def staging(tmp_path: Path) -> Path:
    return tmp_path / "staging"


def published(registry: Registry) -> list[str]:
    return [model.version for model in registry.versions()]


def test_a_new_registry_is_empty(registry: Registry) -> None:
    assert registry.versions() == []
    assert registry.find("v1") is None
    with pytest.raises(RegistryError, match="has no version v1"):
        registry.get("v1")


def test_a_published_version_opens_as_a_worker_opens_it(registry: Registry, staging: Path) -> None:
    bundle = TINY.write(staging, "v1")
    model = registry.publish(bundle)
    assert model.manifest_sha256 == manifest_digest(bundle)
    assert registry.open(model).version == "v1"
    assert (registry.announced_folder(announcement_of(model.uri, model.manifest_sha256)) / "rank.onnx").is_file()
    assert published(registry) == ["v1"]


def test_a_version_is_published_once(registry: Registry, staging: Path) -> None:
    bundle = TINY.write(staging, "v1")
    registry.publish(bundle)
    with pytest.raises(RegistryError, match="versions are immutable"):
        registry.publish(bundle)


def test_names_of_versions_sort_by_time() -> None:
    early, late = version_name(1_767_225_600_000, b"x"), version_name(1_767_225_600_001, b"a")
    assert early < late
    assert early == "20260101T000000000Z-2d711642"


class Killed(BaseException):
    """Stands for kill -9: nothing after it runs."""


def test_a_kill_while_publishing_leaves_nothing_half_published(
    registry: Registry, staging: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The writer dies at its n-th write, for every n; its clean-up does not run either."""
    bundle = TINY.write(staging, "v1")
    writes = 0
    while True:
        writes += 1
        with monkeypatch.context() as patched:
            die_at_write(writes, patched)
            try:
                registry.publish(bundle)
            except Killed:
                assert published(registry) == []
            else:
                break
        registry.remove_leftovers()
        assert registry.remove_leftovers() == []
    assert writes > 6  # every file was a place to die at
    assert published(registry) == ["v1"]


def die_at_write(number: int, patched: pytest.MonkeyPatch) -> None:
    """Die at the `number`-th file copied or uploaded, and let no `finally` tidy up."""
    count = 0

    def dying(write: Any) -> Any:
        def wrapped(*arguments: Any, **options: Any) -> Any:
            nonlocal count
            count += 1
            if count == number:
                raise Killed
            return write(*arguments, **options)

        return wrapped

    patched.setattr("trainer.registry.shutil.copyfile", dying(shutil.copyfile))
    patched.setattr("trainer.registry.shutil.rmtree", lambda *_, **__: None)
    patched.setattr(MemoryFileSystem, "pipe_file", dying(MemoryFileSystem.pipe_file))


def test_a_kill_while_removing_leaves_the_version_unpublished(
    registry: Registry, staging: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.publish(TINY.write(staging, "v1"))

    def die(*_: Any, **__: Any) -> None:
        raise Killed

    filesystem = type(fsspec.core.url_to_fs(registry.url)[0])
    with monkeypatch.context() as patched:
        patched.setattr(filesystem, "rm", die)
        with pytest.raises(Killed):
            registry.remove("v1")
    assert published(registry) == []
    assert registry.remove_leftovers() == ["v1"]
    assert registry.remove_leftovers() == []


def test_pruning_keeps_the_newest_and_the_protected(registry: Registry, staging: Path) -> None:
    for number in range(6):
        registry.publish(TINY.write(staging, f"v{number}"))
    assert registry.prune(keep=2, protected=["v1"]) == ["v0", "v2", "v3"]
    assert published(registry) == ["v1", "v4", "v5"]
    assert registry.prune(keep=2, protected=["v1"]) == []


def test_a_damaged_manifest_is_told_and_not_taken_for_absent(registry: Registry, staging: Path) -> None:
    model = registry.publish(TINY.write(staging, "v1"))
    filesystem, root = fsspec.core.url_to_fs(model.uri)
    filesystem.pipe_file(f"{root}/manifest.json", b"{")
    with pytest.raises(BundleError, match=r"v1: manifest\.json"):
        registry.versions()


def test_an_unknown_protocol_names_the_setting(tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match=r"set trainer\.registry"):
        Registry("nosuch://bucket", cache_dir=tmp_path)


# -- promote and roll back, with a models topic in memory -------------------------------------------------------------


class TopicInMemory:
    """The models topic: the newest announcement, and none when Kafka is down."""

    alias = "champion"

    def __init__(self) -> None:
        self.announced: list[ModelAnnouncement] = []
        self.down = False

    def current(self) -> ModelAnnouncement | None:
        return self.announced[-1] if self.announced else None

    def announce(self, announcement: ModelAnnouncement) -> None:
        if self.down:
            raise AnnounceError("Kafka is down")
        self.announced.append(announcement)


@pytest.fixture
def topic() -> TopicInMemory:
    return TopicInMemory()


@pytest.fixture
def championship(registry: Registry, topic: TopicInMemory, staging: Path) -> Championship:
    for version in ("A", "B", "C"):
        registry.publish(TINY.write(staging, version))
    return Championship(registry, topic)


def announcement_of(uri: str, sha256: str) -> ModelAnnouncement:
    return ModelAnnouncement("champion", uri.rsplit("/", 1)[-1], uri, sha256, 1, "test")


def told(topic: TopicInMemory) -> str:
    return " ".join(announcement.version for announcement in topic.announced)


def test_rolling_back_twice_goes_back_two_champions(
    championship: Championship, registry: Registry, topic: TopicInMemory
) -> None:
    for version in ("A", "B", "C"):
        championship.promote(registry.get(version), "test")
    championship.roll_back()
    announced = championship.roll_back()
    assert told(topic) == "A B C B A"
    assert announced.why == "rolled back from B"
    with pytest.raises(RegistryError, match="A has no published predecessor"):
        championship.roll_back()


def test_times_of_announcements_grow_even_when_the_clock_does_not(
    championship: Championship, registry: Registry, topic: TopicInMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.champion.time.time_ns", lambda: 1_767_225_600_000_000_000)
    for version in ("A", "B", "C"):
        championship.promote(registry.get(version), "test")
    times = [announcement.announced_at for announcement in topic.announced]
    assert times == [1_767_225_600_000, 1_767_225_600_001, 1_767_225_600_002]
    assert championship.standing().line == ["A", "B", "C"]


def test_an_announcement_that_never_arrived_leaves_no_trace(
    championship: Championship, registry: Registry, topic: TopicInMemory
) -> None:
    championship.promote(registry.get("A"), "test")
    championship.promote(registry.get("B"), "test")
    topic.down = True
    with pytest.raises(AnnounceError):
        championship.promote(registry.get("C"), "test")
    topic.down = False
    assert championship.standing().line == ["A", "B"]
    assert championship.roll_back().version == "A"
    assert [entry.version for entry in registry.history("champion")] == ["A", "B", "A"]


def test_a_predecessor_that_is_gone_is_passed_over(
    championship: Championship, registry: Registry, topic: TopicInMemory
) -> None:
    for version in ("A", "B", "C"):
        championship.promote(registry.get(version), "test")
    registry.remove("B")
    assert championship.roll_back().version == "A"


def test_an_announcement_by_hand_becomes_history(
    championship: Championship, registry: Registry, topic: TopicInMemory
) -> None:
    championship.promote(registry.get("A"), "test")
    by_hand = registry.get("B")
    topic.announced.append(
        ModelAnnouncement("champion", "B", by_hand.uri, by_hand.manifest_sha256, 9_999_999_999_999, "by hand")
    )
    championship.promote(registry.get("C"), "test")
    assert championship.standing().line == ["A", "B", "C"]
    assert championship.roll_back().version == "B"


def test_a_bundle_that_would_be_refused_is_not_announced(
    championship: Championship, registry: Registry, topic: TopicInMemory
) -> None:
    championship.promote(registry.get("A"), "test")
    model = registry.get("B")
    filesystem, root = fsspec.core.url_to_fs(model.uri)
    filesystem.pipe_file(f"{root}/rank.onnx", b"damaged")
    with pytest.raises(BundleError, match=r"rank\.onnx"):
        championship.promote(model, "test")
    assert told(topic) == "A"
    assert [entry.version for entry in registry.history("champion")] == ["A"]


def test_there_is_nothing_to_roll_back_without_a_champion(championship: Championship) -> None:
    with pytest.raises(RegistryError, match="no champion"):
        championship.roll_back()


def test_old_history_is_forgotten(championship: Championship, registry: Registry, topic: TopicInMemory) -> None:
    old = [Entry(at, "promoted", "A") for at in range(1, 210)]
    for entry in old:
        registry.add_history("champion", entry, announcement_of("x/A", "0" * 64))
    championship.promote(registry.get("B"), "test")
    history = registry.history("champion")
    assert len(history) == 201
    assert history[-1].version == "B"
