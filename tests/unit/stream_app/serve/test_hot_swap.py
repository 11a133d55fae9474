"""Announcements in, served versions out."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fsspec
import msgspec
import pytest
from confluent_kafka import KafkaError, KafkaException
from fsspec.spec import AbstractFileSystem

from schemas.bundle.files import manifest_digest, open_bundle
from schemas.errors import BundleError
from schemas.messages.announcement import ModelAnnouncement, decode_announcement, encode_announcement
from stream_app.serve import hot_swap
from stream_app.serve.hot_swap import LiveModel, ModelWatcher
from stream_app.serve.metrics import Metrics
from tests.contract.tiny_model import TinyModel, TinyNone, TinyWindow
from tests.patience import PATIENCE

IDLE = None  # the topic has nothing new: time to load, and to look at what serves


def POLLED() -> None:  # noqa: N802
    """The watcher polls, and takes what was loaded."""


class Hanging(AbstractFileSystem):
    """A store that takes requests and never answers, until the test lets it go."""

    protocol = "hangs"
    cachable = False
    let_go = threading.Event()

    def _open(self, *_: Any, **__: Any) -> Any:
        assert self.let_go.wait(PATIENCE)
        raise OSError("the store was away")


fsspec.register_implementation("hangs", Hanging)


@dataclass
class Record:
    """What librdkafka hands out: a record, the end of a partition, or an error."""

    alias: str = "champion"
    content: bytes | None = None
    at: int = 0
    problem: KafkaError | None = None

    def key(self) -> bytes:
        return self.alias.encode()

    def value(self) -> bytes | None:
        return self.content

    def topic(self) -> str:
        return "models"

    def partition(self) -> int:
        return self.at

    def offset(self) -> int:
        return 0

    def error(self) -> KafkaError | None:
        return self.problem


END = Record(problem=KafkaError(KafkaError._PARTITION_EOF))
AWAY = Record(problem=KafkaError(KafkaError._ALL_BROKERS_DOWN))
Event = Record | Callable[[], object] | None


@dataclass
class FakeConsumer:
    """Tells a story; at each IDLE it notes what serves by then. At the story's end the watcher stops."""

    watcher: ModelWatcher
    live: LiveModel
    story: list[Event]
    metadata: list[Any]
    served: list[str | None] = field(default_factory=list)
    waited_for: list[str] = field(default_factory=list)
    settled: list[bool] = field(default_factory=list)

    def list_topics(self, *_: Any, **__: Any) -> Any:
        answer = self.metadata.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def get_watermark_offsets(self, *_: Any, **__: Any) -> tuple[int, int]:
        return 0, 1_000  # so that the end is where the story tells it

    def assign(self, partitions: Sequence[Any]) -> None:
        self.assigned = [(one.topic, one.partition) for one in partitions]

    def poll(self, _: float) -> Record | None:
        while self.story:
            event = self.story.pop(0)
            if isinstance(event, Record):
                return event
            if event is POLLED:
                return None
            if event is not IDLE:
                event()
                continue
            # The end of a load under way, and begin and end of another.
            self.story[:0] = [self.wait_for_loads, POLLED] * 3 + [self.note]
        self.watcher._stopping.set()
        return None

    def wait_for_loads(self) -> None:
        """All but those that hang."""
        for load in self.watcher._loads:
            assert load.announcement.uri.startswith("hangs://") or load.ended.wait(PATIENCE)

    def note(self) -> None:
        self.settled.append(self.watcher.is_settled)
        self.served.append(self.live.current.version if self.live.current else None)
        self.waited_for.append(self.watcher.waiting_for)

    def close(self) -> None:
        self.closed = True


@dataclass
class Topic:
    partitions: dict[int, object]
    error: KafkaError | None = None


def metadata(partitions: int = 1, error: KafkaError | None = None) -> Any:
    return type("Metadata", (), {"topics": {"models": Topic(dict.fromkeys(range(partitions)), error)}})()


@dataclass
class Watched:
    """A watcher, and a registry to announce from."""

    registry: Path
    monkeypatch: pytest.MonkeyPatch
    live: LiveModel = field(default_factory=LiveModel)
    metrics: Metrics = field(default_factory=Metrics)
    fatal: list[BaseException] = field(default_factory=list)
    bundle_timeout: float = 3600.0
    bundle_locations: tuple[str, ...] = ()
    bundle_memory_mb: int = 0
    rows: bool = False
    is_variant: bool = False
    incarnation: Callable[[], int] = lambda: 1

    def bundle(self, version: str, seed: int = 0, k: int = 5, recent_size: int = 6) -> Path:
        return TinyModel(seed=seed, k=k, recent_size=recent_size).write(self.registry, version)

    def announce(self, version: str, alias: str = "champion", /, **changed: str) -> Record:
        folder = self.registry / version
        digest = manifest_digest(folder) if folder.exists() else "0" * 64
        announcement = ModelAnnouncement(alias, version, str(folder), digest, 0, "test")
        return Record(alias, encode_announcement(msgspec.structs.replace(announcement, **changed)))

    def follow(self, *story: Event, topics: Sequence[Any] | None = None) -> FakeConsumer:
        watcher = ModelWatcher(
            consumer_config={},
            topic="models",
            alias="champion",
            live=self.live,
            metrics=self.metrics,
            cache_dir=self.registry / "cache",
            threads=1,
            published=4,
            recent_items=6,
            bundle_timeout=self.bundle_timeout,
            bundle_locations=self.bundle_locations,
            bundle_memory_mb=self.bundle_memory_mb,
            warm_up_batches=(1, 3),
            on_fatal=self.fatal.append,
            rows=self.rows,
            is_variant=self.is_variant,
            incarnation=self.incarnation,
        )
        told = FakeConsumer(watcher, self.live, list(story), list(topics or [metadata()]))
        self.monkeypatch.setattr(hot_swap, "Consumer", lambda *_, **__: told)
        self.monkeypatch.setattr(hot_swap, "_RETRY_SECONDS", 0.0)
        watcher._run()
        assert told.closed
        return told

    def count(self, name: str) -> float | None:
        return self.metrics.registry.get_sample_value(name)


@pytest.fixture
def watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Watched:
    return Watched(tmp_path, monkeypatch)


def test_nothing_announced(watched: Watched) -> None:
    told = watched.follow(END, IDLE)
    assert told.served == [None]
    assert told.settled == [True]  # nothing is on its way
    assert told.waited_for == ["no 'champion' is announced on the topic models"]
    assert not watched.live.is_loaded


def test_a_topic_that_is_created_anew_is_read_from_its_beginning_while_the_model_serves(watched: Watched) -> None:
    watched.bundle("v1")
    watched.bundle("v2", seed=1)
    watched.incarnation = lambda: 2 if watched.live.is_loaded else 1
    story = watched.announce("v1"), END, IDLE, IDLE, watched.announce("v2"), END, IDLE
    asked = [metadata(), metadata()]
    told = watched.follow(*story, topics=asked)
    assert told.metadata == []
    assert told.served == ["v1", "v1", "v2"]


def test_a_first_model_and_a_swap(watched: Watched) -> None:
    watched.bundle("v1")
    watched.bundle("v2", seed=1)
    told = watched.follow(watched.announce("v1"), END, IDLE, IDLE, watched.announce("v2"), IDLE)
    assert told.served == ["v1", "v1", "v2"]
    assert watched.count("nextclick_swaps_total") == 2
    assert watched.metrics.registry.get_sample_value("nextclick_model_info", {"version": "v2"}) == 1
    assert watched.metrics.registry.get_sample_value("nextclick_model_info", {"version": "v1"}) is None
    assert watched.live.current is not None
    assert watched.live.current.k == 4  # no more than is published
    age = time.time() - watched.live.current.manifest.created_at / 1000
    assert watched.count("nextclick_model_age_seconds") == pytest.approx(age, abs=PATIENCE)


def test_the_model_that_metrics_tell_of_is_no_variants(watched: Watched) -> None:
    watched.bundle("v1")
    watched.bundle("v2", seed=1)
    watched.follow(watched.announce("v1"), END, IDLE)
    watched.is_variant = True
    assert watched.follow(watched.announce("v2"), END, IDLE).served == ["v2"]
    serving = [watched.metrics.registry.get_sample_value("nextclick_model_info", {"version": v}) for v in ("v1", "v2")]
    assert serving == [1, None]


def test_a_bundle_is_tried_elsewhere_first_if_memory_is_limited(watched: Watched) -> None:
    tried: list[str] = []

    def try_bundle(uri: str, **limits: Any) -> None:
        tried.append(uri)
        assert (limits["memory_mb"], limits["seconds"], limits["batches"]) == (300, 3600.0, (1, 3))
        if uri.endswith("v2"):
            raise BundleError("rank.onnx: takes more")

    watched.monkeypatch.setattr(hot_swap, "try_bundle", try_bundle)
    watched.bundle("v1")
    watched.bundle("v2", seed=1)
    watched.follow(watched.announce("v1"), END, IDLE)
    assert tried == [], "it is off"
    watched.bundle_memory_mb = 300
    told = watched.follow(watched.announce("v2"), END, IDLE)
    assert told.waited_for[-1] == "v2 was refused: rank.onnx: takes more"
    assert watched.live.current is not None
    assert watched.live.current.version == "v1"


def test_a_model_that_ranks_too_few_items_is_refused(watched: Watched) -> None:
    watched.bundle("v1")
    watched.bundle("v2", k=3)
    told = watched.follow(watched.announce("v1"), END, IDLE, watched.announce("v2"), IDLE)
    assert told.served == ["v1", "v1"]
    assert watched.count("nextclick_refused_bundles_total") == 1
    assert "worker.published asks for 4" in told.waited_for[-1]


def test_a_model_that_ranks_as_many_items_as_are_published_or_all_it_has_is_served(watched: Watched) -> None:
    watched.bundle("v1", k=4)
    TinyModel(items=("a", "b", "c"), k=3, recent_size=6).write(watched.registry, "v2")
    told = watched.follow(watched.announce("v1"), END, IDLE, watched.announce("v2"), IDLE)
    assert told.served == ["v1", "v2"]


def test_a_model_without_rows_of_items_is_refused_where_they_are_compared(watched: Watched) -> None:
    watched.rows = True
    watched.bundle("v1")
    told = watched.follow(watched.announce("v1"), END, IDLE)
    assert told.served == [None]
    assert "Set worker.mmr_lambda to 1" in told.waited_for[-1]


def test_a_model_that_looks_at_more_clicks_than_rows_keep_is_refused(watched: Watched) -> None:
    watched.bundle("v1", recent_size=1)
    watched.bundle("v2", recent_size=7)
    told = watched.follow(watched.announce("v1"), END, IDLE, watched.announce("v2"), IDLE)
    assert told.served == ["v1", "v1"]
    assert watched.count("nextclick_refused_bundles_total") == 1
    assert "set worker.recent_items to 7 or more" in told.waited_for[-1]


def test_a_window_longer_than_rows_is_refused_and_one_as_long_is_served(watched: Watched) -> None:
    TinyWindow(window=6).write(watched.registry, "v1")
    TinyWindow(window=7).write(watched.registry, "v2")
    TinyNone(recent_size=6).write(watched.registry, "v3")
    told = watched.follow(watched.announce("v1"), END, IDLE, watched.announce("v2"), IDLE, watched.announce("v3"), IDLE)
    assert told.served == ["v1", "v1", "v3"]
    assert watched.count("nextclick_refused_bundles_total") == 1
    assert "looks at the last 7 clicks" in told.waited_for[1]
    assert "set worker.recent_items to 7 or more" in told.waited_for[1]


@pytest.mark.parametrize(("is_variant", "counted"), [(False, 1), (True, 0)])
def test_of_the_watchers_of_a_worker_one_counts_what_is_no_announcement(
    watched: Watched, is_variant: bool, counted: int
) -> None:
    watched.is_variant = is_variant
    watched.follow(Record("champion", b"{"), END, IDLE)
    assert watched.count("nextclick_refused_bundles_total") == counted


def test_history_is_read_to_its_end_and_only_the_newest_is_loaded(watched: Watched) -> None:
    watched.bundle("v3")
    # The older bundles are gone from the registry, as a clean-up leaves it.
    told = watched.follow(watched.announce("v1"), IDLE, watched.announce("v2"), IDLE, watched.announce("v3"), END, IDLE)
    assert told.served == [None, None, "v3"]
    assert told.settled == [False, False, True]
    assert watched.count("nextclick_refused_bundles_total") == 0


def test_all_partitions_are_read_before_the_first_load(watched: Watched) -> None:
    watched.bundle("v1")
    other_end = Record(at=1, problem=END.problem)
    told = watched.follow(watched.announce("v1"), END, IDLE, other_end, IDLE, topics=[metadata(partitions=2)])
    assert told.served == [None, "v1"]
    assert told.assigned == [("models", 0), ("models", 1)]


def test_a_rollback_is_an_announcement_of_an_older_version(watched: Watched) -> None:
    watched.bundle("v1")
    watched.bundle("v2", seed=1)
    v1, v2 = watched.announce("v1"), watched.announce("v2")
    assert watched.follow(v1, END, IDLE, v2, IDLE, v1, IDLE).served == ["v1", "v2", "v1"]


def test_the_serving_version_is_not_loaded_again(watched: Watched) -> None:
    folder = watched.bundle("v1")
    v1 = watched.announce("v1")

    def lose() -> None:
        (folder / "rank.onnx").unlink()

    assert watched.follow(v1, END, IDLE, lose, v1, IDLE).served == ["v1", "v1"]
    assert watched.count("nextclick_swaps_total") == 1
    assert watched.count("nextclick_refused_bundles_total") == 0


def test_other_aliases_and_withdrawals_change_nothing(watched: Watched) -> None:
    watched.bundle("v1")
    watched.bundle("v2", seed=1)
    told = watched.follow(watched.announce("v1"), END, watched.announce("v2", "challenger"), Record(content=None), IDLE)
    assert told.served == ["v1"]


def damaged(watched: Watched) -> Record:
    folder = watched.bundle("v2", seed=1)
    announced = watched.announce("v2")
    (folder / "rank.onnx").write_bytes(b"")
    return announced


def changed_manifest(watched: Watched) -> Record:
    watched.bundle("v2", seed=1)
    return watched.announce("v2", manifest_sha256="1" * 64)


def another_version(watched: Watched) -> Record:
    watched.bundle("v2", seed=1)
    return watched.announce("v2", version="v9")


def nowhere(watched: Watched) -> Record:
    return watched.announce("v2")


def unknown_store(watched: Watched) -> Record:
    return watched.announce("v2", uri="carrier-pigeon://v2")


def cannot_run(watched: Watched) -> Record:
    watched.bundle("v2", seed=1)

    def warm_up(*_: Any) -> None:
        raise RuntimeError("ONNX Runtime is out of memory at this batch size")

    watched.monkeypatch.setattr("schemas.bundle.runtime.Model.warm_up", warm_up)
    return watched.announce("v2")


@pytest.mark.parametrize("refused", [damaged, changed_manifest, another_version, nowhere, unknown_store, cannot_run])
def test_what_cannot_serve_is_refused_and_the_old_model_serves_on(
    watched: Watched, refused: Callable[[Watched], Record]
) -> None:
    watched.bundle("v1")
    watched.live.replace(open_bundle(watched.registry / "v1"))
    told = watched.follow(END, IDLE, refused(watched), IDLE, IDLE, IDLE)
    assert told.served == ["v1"] * 4
    assert told.settled[-1]
    assert " was refused: " in told.waited_for[-1]
    assert watched.count("nextclick_refused_bundles_total") == 1  # however often it is tried again
    assert watched.fatal == []


@pytest.mark.parametrize("content", [b"", b"{}", b"not json"])
def test_what_is_no_announcement_is_refused(watched: Watched, content: bytes) -> None:
    watched.bundle("v1")
    told = watched.follow(watched.announce("v1"), END, Record(content=content), IDLE)
    assert told.served == ["v1"]  # the one before it counts
    assert watched.count("nextclick_refused_bundles_total") == 1


def test_why_there_is_no_model_is_still_told_later(watched: Watched) -> None:
    told = watched.follow(watched.announce("v1"), END, IDLE, IDLE, IDLE)
    assert told.served == [None] * 3
    assert told.settled == [True] * 3  # a split does not wait for a variant that may never have a model
    assert all(reason.startswith("v1 was refused: ") for reason in told.waited_for)


def test_a_store_that_was_away_is_asked_again(watched: Watched) -> None:
    elsewhere = Watched(watched.registry / "elsewhere", watched.monkeypatch)
    folder = elsewhere.bundle("v1")
    announced = watched.announce("v1", manifest_sha256=manifest_digest(folder))

    def come_back() -> None:
        folder.rename(watched.registry / "v1")

    told = watched.follow(announced, END, IDLE, IDLE, come_back, IDLE)
    assert told.served == [None, None, "v1"]
    assert watched.count("nextclick_refused_bundles_total") == 1


def test_a_store_is_asked_again_after_a_second_and_by_and_by_once_a_minute(watched: Watched) -> None:
    watcher = watched.follow(END).watcher
    watched.monkeypatch.setattr(hot_swap, "_RETRY_SECONDS", 1.0)
    watched.monkeypatch.setattr(hot_swap, "time", SimpleNamespace(monotonic=lambda: 100.0))
    announced = watched.announce("v1")
    pending = hot_swap._Pending(decode_announcement(announced.content or b"", announced.key()))
    pauses = []
    for _ in range(8):
        pending = watcher._refuse(pending, "it is away")
        pauses.append(pending.due - 100.0)
        assert watcher._attempt(pending) is pending
        assert watcher._loads == []
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60]


def test_a_newer_announcement_takes_the_place_of_a_refused_one(watched: Watched) -> None:
    watched.bundle("v3")
    told = watched.follow(watched.announce("v2"), END, IDLE, watched.announce("v3"), IDLE, IDLE)
    assert told.served == [None, "v3", "v3"]


def test_brokers_and_topics_that_are_away_are_waited_for(watched: Watched) -> None:
    watched.bundle("v1")
    topics = [
        KafkaException(KafkaError(KafkaError._TRANSPORT)),
        metadata(partitions=0, error=KafkaError(KafkaError.UNKNOWN_TOPIC_OR_PART)),
        metadata(partitions=0, error=KafkaError(KafkaError.TOPIC_AUTHORIZATION_FAILED)),
        metadata(),
    ]
    told = watched.follow(AWAY, IDLE, watched.announce("v1"), AWAY, END, IDLE, AWAY, IDLE, topics=topics)
    assert told.served == [None, "v1", "v1"]
    assert told.waited_for[0] == "the topic models does not exist, or this login has no right to it"
    assert watched.fatal == []


def test_a_watcher_that_cannot_go_on_ends_the_worker(watched: Watched) -> None:
    broken = RuntimeError("librdkafka is gone")

    def fail() -> None:
        raise broken

    watched.follow(END, fail)
    assert watched.fatal == [broken]


def test_a_bundle_error_names_the_version(watched: Watched) -> None:
    told = watched.follow(another_version(watched), END, IDLE)
    assert told.waited_for == ["v9 was refused: manifest.json: holds version v2, announced was v9"]


@pytest.fixture
def store_hangs() -> Iterator[threading.Event]:
    Hanging.let_go = threading.Event()
    yield Hanging.let_go
    Hanging.let_go.set()


def threads_of(version: str) -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == f"load {version}"]


def test_a_rollback_does_not_wait_for_a_store_that_hangs(watched: Watched, store_hangs: threading.Event) -> None:
    watched.bundle("v1")
    watched.bundle("v2", seed=1)
    v1, v2 = watched.announce("v1"), watched.announce("v2")
    dead = watched.announce("v3", uri="hangs://v3")
    told = watched.follow(v1, END, IDLE, v2, IDLE, dead, IDLE, v1, IDLE)
    assert told.served == ["v1", "v2", "v2", "v1"]
    assert told.waited_for[2] == "v3 is being loaded"
    assert watched.count("nextclick_refused_bundles_total") == 0


def test_what_a_store_answers_too_late_does_not_replace_what_was_announced_since(
    watched: Watched, store_hangs: threading.Event
) -> None:
    """The bundle came back by itself, and the thread that waited for it loads it to its end."""
    elsewhere = Watched(watched.registry / "elsewhere", watched.monkeypatch)
    folder = elsewhere.bundle("v3", seed=2)
    late, load = threading.Event(), ModelWatcher._load

    def load_late(watcher: ModelWatcher, announcement: ModelAnnouncement) -> Any:
        if announcement.version != "v3":
            return load(watcher, announcement)
        store_hangs.wait(PATIENCE)
        try:
            return open_bundle(folder)
        finally:
            late.set()

    watched.monkeypatch.setattr(ModelWatcher, "_load", load_late)
    watched.bundle("v1")
    dead = watched.announce("v3", uri="hangs://v3")

    def answer() -> None:
        store_hangs.set()
        assert late.wait(PATIENCE)
        for thread in threads_of("v3"):
            thread.join(PATIENCE)

    told = watched.follow(dead, END, IDLE, watched.announce("v1"), IDLE, answer, IDLE, IDLE)
    assert told.served == [None, "v1", "v1", "v1"]
    assert told.watcher._loads == [], "a model that never serves stays in memory"


def test_a_store_that_hangs_is_refused_at_its_deadline_and_asked_by_few_threads(
    watched: Watched, store_hangs: threading.Event
) -> None:
    watched.bundle_timeout = 0.0
    told = watched.follow(watched.announce("v3", uri="hangs://v3"), END, *[IDLE] * 20)
    assert told.waited_for[0] == "v3 was refused: it was not loaded within 0 s; does its store answer?"
    assert len(threads_of("v3")) == hot_swap._MOST_LOADS_EACH
    assert watched.count("nextclick_refused_bundles_total") == 1


def test_many_stores_that_hang_do_not_take_all_threads(watched: Watched, store_hangs: threading.Event) -> None:
    watched.bundle_timeout = 0.0
    many = [event for n in range(20) for event in (watched.announce(f"d{n}", uri=f"hangs://d{n}"), IDLE)]
    told = watched.follow(END, *many, store_hangs.set, IDLE)
    assert sum(len(threads_of(f"d{n}")) for n in range(20)) <= hot_swap._MOST_LOADS
    assert "not answered for too long" in told.waited_for[-2]


def test_only_bundles_of_the_set_locations_are_loaded(watched: Watched) -> None:
    watched.bundle("v1")
    watched.bundle("v2", seed=1)
    watched.bundle_locations = (str(watched.registry / "v1"), "s3://ours")
    foreign = watched.announce("v3", uri="hangs://v3")
    told = watched.follow(watched.announce("v1"), END, IDLE, watched.announce("v2"), IDLE, foreign, IDLE)
    assert told.served == ["v1"] * 3
    assert watched.count("nextclick_refused_bundles_total") == 2
