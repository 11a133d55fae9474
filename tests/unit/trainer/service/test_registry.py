"""The registry in a local folder and in an object store: whole versions or none, whenever the writer dies."""

import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import fsspec
import pytest
import structlog
from fsspec.implementations.memory import MemoryFileSystem

from schemas.bundle.files import manifest_digest
from schemas.bundle.signature import trusted_keys
from schemas.errors import BundleError
from schemas.messages.announcement import ModelAnnouncement, version_name
from tests.bundle_keys import new_keys
from tests.contract.tiny_model import TinyModel, TinyNone, TinyWindow
from tests.unit.announcements import TopicInMemory
from tests.unit.trainer.service.outages import store_is_away
from trainer.errors import AnnounceError, RegistryError
from trainer.service.champion import Championship
from trainer.service.history import Entry
from trainer.service.registry import Registry
from trainer.service.store import Store

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
    files = registry.read_announced(announcement_of(model.uri, model.manifest_sha256))
    assert files.data["rank.onnx"] == (bundle / "rank.onnx").read_bytes()
    assert published(registry) == ["v1"]


def test_what_is_published_is_signed_and_what_is_not_signed_is_not_opened(
    registry: Registry, staging: Path, tmp_path: Path
) -> None:
    ours, theirs = (new_keys(tmp_path, name) for name in ("ours", "theirs"))
    signing = Registry(
        registry.url, cache_dir=tmp_path / "signing", signing=ours.signing, trusted=trusted_keys([ours.public])
    )
    signed, unsigned = (registry_.publish(TINY.write(staging, name))
                        for registry_, name in ((signing, "v1"), (registry, "v2")))  # fmt: skip
    assert signing.open(signed).version == "v1"
    for open_ in (
        lambda: signing.open(unsigned),
        lambda: signing.open_announced(announcement_of(unsigned.uri, unsigned.manifest_sha256)),
        lambda: signing.read_announced(announcement_of(unsigned.uri, unsigned.manifest_sha256)),
    ):
        with pytest.raises(BundleError, match="allows no unsigned bundle"):
            open_()
    for key, is_trusted in ((theirs, False), (ours, True)):
        signing.sign("v2", key.signing)
        with nullcontext() if is_trusted else pytest.raises(BundleError, match="is no signature of this manifest"):
            signing.open(unsigned)
    assert signing.remove("v1")
    assert registry.remove("v2")
    assert tree(registry) == {}


def test_a_damaged_version_is_not_signed(registry: Registry, staging: Path, tmp_path: Path) -> None:
    registry.publish(TINY.write(staging, "v1"))
    registry.store.write("v1/rank.onnx", b"damaged")
    with pytest.raises(BundleError, match=r"^rank\.onnx"):
        registry.sign("v1", new_keys(tmp_path, "ours").signing)
    with pytest.raises(RegistryError, match="has no version v2"):
        registry.sign("v2", new_keys(tmp_path, "other").signing)
    assert "v1/manifest.sig" not in tree(registry)


@pytest.mark.parametrize("tiny", [TinyWindow(), TinyNone()], ids=["window", "none"])
def test_a_version_of_any_encoder_is_published_and_removed(registry: Registry, staging: Path, tiny: TinyModel) -> None:
    bundle = tiny.write(staging, "v1")
    model = registry.publish(bundle)
    assert registry.open(model).encoder == model.manifest.encoder
    assert {path.removeprefix("v1/") for path in tree(registry)} == {path.name for path in bundle.iterdir()}
    assert registry.remove("v1")
    assert tree(registry) == {}


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


def die_at_call(number: int, patched: pytest.MonkeyPatch) -> None:
    """Die before the `number`-th change of the store."""
    calls = iter(range(1, 1000))

    def dying(change: Callable[..., None]) -> Callable[..., None]:
        def wrapped(*arguments: Any) -> None:
            if next(calls) == number:
                raise Killed
            change(*arguments)

        return wrapped

    for name in ("write", "upload", "remove", "remove_empty"):
        patched.setattr(Store, name, dying(getattr(Store, name)))


def tree(registry: Registry) -> dict[str, bytes]:
    """Every file of the registry but the history; and every folder that holds none, as `name/`."""
    store = registry.store

    def below(folder: str) -> Iterator[tuple[str, bytes]]:
        for name, kind in store.list(folder).items():
            path = f"{folder}/{name}".lstrip("/")
            if kind == "folder":
                yield from below(path)
                yield from [] if store.list(path) else [(f"{path}/", b"")]
            else:
                yield path, store.read(path) or b""

    return {path: data for path, data in below("") if path != "_unfinished/"}


@pytest.mark.parametrize("change", ["publish", "remove"])
def test_a_kill_anywhere_leaves_a_whole_version_or_what_the_next_start_removes(
    registry: Registry, staging: Path, change: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The writer dies before its n-th change, for every n."""
    keys = new_keys(tmp_path, "ours")
    registry._signing, registry._trusted = keys.signing, trusted_keys([keys.public])
    bundle = TINY.write(staging, "v1")
    places = 0
    while True:
        places += 1
        if change == "remove" and not published(registry):
            registry.publish(bundle)
        with monkeypatch.context() as patched:
            die_at_call(places, patched)
            try:
                registry.publish(bundle) if change == "publish" else registry.remove("v1")
            except Killed:
                pass
            else:
                break
        whole = published(registry)  # what is listed is whole, whatever else lies there
        assert all(registry.open(registry.get(version)) for version in whole)
        registry.remove_leftovers()
        assert published(registry) == whole
        assert {path.split("/")[0] for path in tree(registry)} == set(whole)
        if change == "publish" and whole:
            registry.remove("v1")
    assert places > 8  # every file was a place to die at
    assert published(registry) == (["v1"] if change == "publish" else [])


# -- what is not ours --------------------------------------------------------------------------------------------------


def put_foreign(registry: Registry, staging: Path) -> None:
    """Things of the folder's owner: files, folders named like versions, parts of bundles, folders within folders."""
    model = TINY.write(staging / "foreign", "theirs")
    for path in (
        "README.md",
        "v0",
        "backup/2025/model.bin",
        "other-project/src/main.py",
        "20260101T000000000Z-2d711642/notes.txt",
        ".unfinished-v7-abc/rank.onnx",
        "_unfinished/not-ours.json",
        "_unfinished/v9.txt",
    ):
        registry.store.write(path, b"theirs")
    for name in ("advance.onnx", "rank.onnx", "vocabulary.json"):  # an upload of somebody's, by other means
        registry.store.upload(model / name, f"half/{name}")
    registry.store.upload(model / "manifest.json", "copied/manifest.json")  # says that it is `theirs`
    registry.store.upload(model / "rank.onnx", "copied/rank.onnx")


def test_what_is_not_ours_is_never_removed(registry: Registry, staging: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_foreign(registry, staging)
    before = tree(registry)
    for number in range(3):
        registry.publish(TINY.write(staging, f"v{number + 1}"))
    with monkeypatch.context() as patched:
        die_at_call(3, patched)
        with pytest.raises(Killed):
            registry.publish(TINY.write(staging, "v4"))
    assert registry.remove_leftovers() == ["v4"]
    assert registry.prune(keep=1, protected=[]) == ["v1", "v2"]
    assert registry.remove("v3")
    assert tree(registry) == before
    assert registry.remove_leftovers() == []
    with pytest.raises(BundleError, match="its manifest is that of theirs"):
        registry.remove("copied")
    assert not registry.remove("half")
    assert tree(registry) == before


def test_what_somebody_put_into_a_version_stays_when_the_version_goes(registry: Registry, staging: Path) -> None:
    registry.publish(TINY.write(staging, "v1"))
    registry.store.write("v1/notes/today.txt", b"theirs")
    assert not registry.remove("v1")
    assert tree(registry) == {"v1/notes/today.txt": b"theirs"}
    assert published(registry) == []


def test_half_a_version_with_something_else_in_it_is_left_as_it_is(
    registry: Registry, staging: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        die_at_call(4, patched)
        with pytest.raises(Killed):
            registry.publish(TINY.write(staging, "v1"))
    registry.store.write("v1/notes.txt", b"theirs")
    before = tree(registry)
    assert registry.remove_leftovers() == []
    assert tree(registry) == before


def test_what_another_writer_has_begun_is_left_to_it_for_a_day(
    registry: Registry, staging: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        die_at_call(4, patched)
        with pytest.raises(Killed):
            registry.publish(TINY.write(staging, "v1"))
    before = tree(registry)
    another = Registry(registry.url, cache_dir=tmp_path / "another")
    assert another.remove_leftovers() == []
    assert tree(registry) == before
    tomorrow = time.time_ns() + 25 * 3_600 * 1_000_000_000
    monkeypatch.setattr("trainer.service.registry.time.time_ns", lambda: tomorrow)
    assert another.remove_leftovers() == ["v1"]
    assert tree(registry) == {}


def test_nothing_is_published_over_what_lies_there(registry: Registry, staging: Path) -> None:
    registry.store.write("v1/notes.txt", b"theirs")
    with pytest.raises(RegistryError, match="has a v1 already"):
        registry.publish(TINY.write(staging, "v1"))
    assert tree(registry) == {"v1/notes.txt": b"theirs"}


def test_a_version_that_is_a_link_is_served_and_not_removed(tmp_path: Path, staging: Path) -> None:
    registry = Registry(str(tmp_path / "registry"), cache_dir=tmp_path / "cache")
    registry.publish(TINY.write(staging, "v2"))
    elsewhere = TINY.write(tmp_path / "elsewhere", "v1")
    (tmp_path / "registry" / "v1").symlink_to(elsewhere)
    assert registry.prune(keep=1, protected=[]) == []
    assert published(registry) == ["v1", "v2"]
    assert len(list(elsewhere.iterdir())) == 6


def test_pruning_keeps_the_newest_and_the_protected(registry: Registry, staging: Path) -> None:
    for number in range(6):
        registry.publish(TINY.write(staging, f"v{number}"))
    assert registry.prune(keep=2, protected=["v1"]) == ["v0", "v2", "v3"]
    assert published(registry) == ["v1", "v4", "v5"]
    assert registry.prune(keep=2, protected=["v1"]) == []


def test_what_cannot_be_read_is_warned_of_once_and_neither_stops_nor_goes(registry: Registry, staging: Path) -> None:
    for version in ("damaged", "other", "newer", "renamed", "v1"):
        registry.publish(TINY.write(staging, version))
    manifest = registry.store.read("v1/manifest.json") or b""
    for version, data in (
        ("damaged", b"{"),
        ("other", manifest.replace(b'"format_version": ', b'"format_version": 9').replace(b"v1", b"other")),
        ("newer", b'{"format_version": 99, "who": "knows"}'),
        ("renamed", manifest),
    ):
        registry.store.write(f"{version}/manifest.json", data)
    with structlog.testing.capture_logs() as told:
        for _ in range(2):
            assert published(registry) == ["v1"]
            assert registry.prune(keep=1, protected=[]) == []
            assert registry.remove_leftovers() == []
    assert [line["path"].rsplit("/", 1)[-1] for line in told] == ["damaged", "newer", "other", "renamed"]
    assert "format version 99, this program reads" in told[1]["problem"]
    assert set(registry.store.list()) >= {"damaged", "newer", "other", "renamed", "v1"}
    with pytest.raises(BundleError, match=r"damaged: manifest\.json"):
        registry.get("damaged")


def test_versions_come_in_the_order_of_their_making_whatever_their_names(registry: Registry, staging: Path) -> None:
    made = {"v1": 3, "20260101T000000000Z-2d711642": 1, "a": 4, "20251122T093000.123Z": 2}
    for version, created_at in made.items():
        registry.publish(TINY.write(staging, version, created_at=created_at))
    assert published(registry) == ["20260101T000000000Z-2d711642", "20251122T093000.123Z", "v1", "a"]
    assert registry.prune(keep=2, protected=[]) == ["20260101T000000000Z-2d711642", "20251122T093000.123Z"]
    assert published(registry) == ["v1", "a"]


def test_an_unknown_protocol_names_the_setting(tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match=r"set trainer\.registry"):
        Registry("nosuch://bucket", cache_dir=tmp_path)


# -- promote and roll back, with a models topic in memory -------------------------------------------------------------


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
    return " ".join(announcement.version for announcement in topic.log)


def test_rolling_back_twice_goes_back_two_champions(
    championship: Championship, registry: Registry, topic: TopicInMemory
) -> None:
    for version in ("A", "B", "C"):
        championship.promote(registry.get(version), "test")
    championship.roll_back()
    announced = championship.roll_back()
    assert told(topic) == "A B C B A"
    assert announced.why == "rolled back from B"
    with pytest.raises(RegistryError, match="A has no predecessor that can be served"):
        championship.roll_back()


def test_times_of_announcements_grow_even_when_the_clock_does_not(
    championship: Championship, registry: Registry, topic: TopicInMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.service.champion.time.time_ns", lambda: 1_767_225_600_000_000_000)
    for version in ("A", "B", "C"):
        championship.promote(registry.get(version), "test")
    times = [announcement.announced_at for announcement in topic.log]
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


def test_a_predecessor_whose_store_is_away_is_not_passed_over(
    championship: Championship,
    registry: Registry,
    topic: TopicInMemory,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for version in ("A", "B", "C"):
        championship.promote(registry.get(version), "test")
    shutil.rmtree(tmp_path / "cache", ignore_errors=True)
    with monkeypatch.context() as outage:
        store_is_away(outage, "B/rank.onnx")
        with pytest.raises(RegistryError, match="out of reach"):
            championship.roll_back()
    assert told(topic) == "A B C"
    assert championship.roll_back().version == "B"


def test_an_announcement_by_hand_becomes_history(
    championship: Championship, registry: Registry, topic: TopicInMemory
) -> None:
    championship.promote(registry.get("A"), "test")
    by_hand = registry.get("B")
    topic.log.append(
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


def test_pruning_spares_what_every_alias_means_and_its_predecessors(
    championship: Championship, registry: Registry, topic: TopicInMemory, staging: Path
) -> None:
    """Another alias in the same registry, and one that is announced on the topic without a history here."""
    for number in range(12):
        registry.publish(TINY.write(staging, f"v{number:02}", created_at=1_767_225_600_001 + number))
    other = TopicInMemory("canary")
    other.log = topic.log  # the same topic
    for version in ("v00", "v01", "v02", "v03", "v04"):
        Championship(registry, other).promote(registry.get(version), "test")
    championship.promote(registry.get("v05"), "test")
    by_hand = registry.get("v06")
    topic.log.append(ModelAnnouncement("by-hand", "v06", by_hand.uri, by_hand.manifest_sha256, 1, "by hand"))
    protected = championship.protected()
    assert protected == {"v01", "v02", "v03", "v04", "v05", "v06"}
    assert registry.prune(keep=1, protected=protected) == ["A", "B", "C", "v00", *(f"v{n:02}" for n in range(7, 11))]
    # The topic was made anew: histories alone tell.
    topic.log.clear()
    assert championship.protected() == {"v01", "v02", "v03", "v04", "v05"}


def test_a_damaged_predecessor_is_passed_over(
    championship: Championship, registry: Registry, topic: TopicInMemory
) -> None:
    for version in ("A", "B", "C"):
        championship.promote(registry.get(version), "test")
    registry.store.write("B/manifest.json", b"{")
    assert championship.roll_back().version == "A"
