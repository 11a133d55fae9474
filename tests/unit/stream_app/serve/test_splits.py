"""The follower of splits, on records that a test makes, and what it has the models' watchers do."""

from pathlib import Path
from typing import Any, cast

from structlog.testing import capture_logs

from schemas.messages.split import Split, Variant, encode_split
from stream_app.serve.hot_swap import LiveModel
from stream_app.serve.metrics import Metrics
from stream_app.serve.shadow_process import ShadowModels
from stream_app.serve.splits import Copies, LiveSplit, SplitFollower, Watch
from tests.unit.models import exact_model
from tests.unit.stream_app.serve.test_live_catalogue import Record

CHAMPION = exact_model("v1", ("a",))


class Watcher:
    """Loads its model when the test says so."""

    def __init__(self, alias: str, live: LiveModel) -> None:
        self.alias, self.live = alias, live
        self.runs = self.is_settled = False
        self.waiting_for = "is being loaded"

    def start(self) -> None:
        self.runs = True

    def stop(self) -> None:
        self.runs = False

    def load(self, version: str) -> None:
        self.live.replace(exact_model(version, ("a",)))
        self.is_settled = True


class Following:
    """A follower, and all watchers that there ever were."""

    def __init__(self, copies: Copies | None = None) -> None:
        self.watchers: list[Watcher] = []
        self.metrics, champion = Metrics(), LiveModel()
        champion.replace(CHAMPION)
        self.live = LiveSplit(
            "champion", champion, self._watch, self.metrics, want_shadows=self._want_shadows, copies=copies
        )
        self.follower = SplitFollower(
            consumer_config={},
            topic="splits",
            app_id="shop",
            live=self.live,
            metrics=self.metrics,
            on_fatal=lambda _: None,
        )
        self.offset = 0

    def _watch(self, alias: str, live: LiveModel) -> Any:
        self.watchers.append(Watcher(alias, live))
        return self.watchers[-1]

    def _want_shadows(self, wanted: bool) -> None:
        self.wants_shadows = wanted

    def take_in(self, *values: bytes | None, key: bytes = b"shop") -> None:
        self.offset += 1
        self.follower._take_in([Record("splits", self.offset, key, value) for value in values])

    def serve(self) -> list[tuple[str, str | None]]:
        return [(serves.model.version, serves.variant) for serves in self.live.serving().models]


def split(**shares: float) -> bytes:
    return encode_split(Split(app_id="shop", variants=tuple(Variant(*one) for one in shares.items())))


def test_a_variant_serves_as_soon_as_its_model_is_there_and_as_long_as_the_split_names_it() -> None:
    one = Following()
    assert one.serve() == [("v1", None)]
    one.take_in(split(champion=90, b=10))
    [watcher] = one.watchers
    assert watcher.runs
    assert one.serve() == [("v1", "champion")]
    assert one.live.serving().owners == (0, None)
    assert one.follower._missing() == "b: is being loaded"  # a worker that starts waits for it
    watcher.load("v2")
    assert one.follower._missing() is None
    assert one.serve() == [("v1", "champion"), ("v2", "b")]
    assert (one.live.serving().ends, one.live.serving().owners) == ((9000, 10_000), (0, 1))
    one.take_in(split(champion=50, b=50))
    assert len(one.watchers) == 1  # the same goes on
    one.take_in(split(c=100))
    assert not watcher.runs
    assert one.serve() == [("v1", "champion")]
    one.take_in(None)
    assert [other.runs for other in one.watchers] == [False, False]
    assert one.serve() == [("v1", None)]
    assert one.metrics.registry.get_sample_value("nextclick_variant_share", {"variant": "c"}) is None
    one.take_in(split(champion=90, b=10))  # what it was is not what is announced now
    assert [other.runs for other in one.watchers] == [False, False, True]
    assert one.serve() == [("v1", "champion")]
    one.follower.stop()
    assert [other.runs for other in one.watchers] == [False, False, False]


def test_sessions_are_drawn_by_the_salt_of_their_split() -> None:
    one = Following()
    one.take_in(encode_split(Split(app_id="shop", variants=(Variant("champion", 50.0), Variant("b", 50.0)), salt="x")))
    assert one.live.serving().salt == "x"


def test_a_shadow_serves_nobody_and_is_another_process_to_follow() -> None:
    one = Following()
    one.take_in(encode_split(Split(app_id="shop", shadow=("b",))))
    assert (one.wants_shadows, one.watchers, one.follower._missing()) == (True, [], None)
    assert one.serve() == [("v1", None)]
    one.take_in(split(champion=50, b=50))
    assert (one.wants_shadows, len(one.watchers)) == (False, 1)


def test_the_other_process_follows_shadows_alone() -> None:
    watchers: list[Watcher] = []

    def watch(alias: str, live: LiveModel) -> Any:
        watchers.append(Watcher(alias, live))
        return watchers[-1]

    models = ShadowModels(watch)
    models.put(Split(app_id="shop", variants=(Variant("a", 100.0),), shadow=("b", "c")))
    assert [(one.alias, one.runs) for one in watchers] == [("b", True), ("c", True)]
    watchers[1].load("v3")
    assert [(serves.model.version, serves.variant) for serves in models.serving()] == [("v3", "shadow:c")]
    models.put(Split(app_id="shop", shadow=("c",)))
    assert [(one.alias, one.runs) for one in watchers] == [("b", False), ("c", True)]
    models.stop()
    assert (models.serving(), watchers[1].runs) == ([], False)


def test_a_bad_record_is_counted_and_the_last_good_split_stays() -> None:
    one = Following()
    one.take_in(split(champion=50, b=50), b"{", b'{"app_id":"shop","variants":[{"alias":"b","share":50}]}')
    one.take_in(None, key=b"another shop")
    [watcher] = one.watchers
    watcher.load("v2")
    assert one.serve() == [("v1", "champion"), ("v2", "b")]
    sample = one.metrics.registry.get_sample_value
    for reason in ("not-json", "bad-split"):
        assert sample("nextclick_refused_records_total", {"topic": "splits", "reason": reason}) == 1
    assert sample("nextclick_variant_share", {"variant": "b"}) == 50


def test_of_records_that_come_together_the_newest_counts_alone() -> None:
    one = Following()
    one.take_in(split(champion=50, b=50), split(champion=50, c=50), None, split(d=100))
    assert [watcher.alias for watcher in one.watchers] == ["d"]


def test_a_model_that_cannot_rank_is_out_of_service_until_another_comes_and_told_of_once() -> None:
    one = Following()
    one.take_in(split(champion=50, b=50))
    [watcher] = one.watchers
    watcher.load("v2")
    batches = [one.live.serving(), one.live.serving()]
    with capture_logs() as told:
        for batch in batches:
            one.live.withdraw(batch.models[1], RuntimeError("an index is out of bounds"))
    assert [(line["variant"], line["version"], line["error"]) for line in told] == [
        ("b", "v2", "an index is out of bounds")
    ]
    assert one.metrics.registry.get_sample_value("nextclick_refused_bundles_total") == 1
    assert one.serve() == [("v1", "champion")]
    assert one.live.serving().owners == (0, None)
    watcher.load("v3")
    one.live.withdraw(batches[0].models[1], RuntimeError("of a batch that had begun before"))
    assert one.serve() == [("v1", "champion"), ("v3", "b")]


def test_copies_of_bundles_go_with_their_alias_and_what_else_lies_there_stays(tmp_path: Path) -> None:
    def cached(alias: str, name: str = "0" * 64) -> Path:
        (folder := tmp_path / alias / name).mkdir(parents=True)
        (folder / "manifest.json").touch()
        return folder

    champions, ends, begins, unfinished = cached("a"), cached("b"), cached("c"), cached("b", ".unfinished-x")
    (mine := tmp_path / "b" / "notes.txt").touch()
    one = Following(Copies(tmp_path))
    one.take_in(split(a=50, b=50))
    assert [path.exists() for path in (champions, ends, begins.parent)] == [True, True, False]
    one.take_in(split(a=100))
    assert [path.exists() for path in (champions, ends, unfinished, mine)] == [True, False, False, True]
    mine.unlink()
    one.take_in(None)
    assert list(tmp_path.iterdir()) == []
    one.take_in(split(a=100))  # a folder that is not there is none to tidy


def test_the_other_process_removes_copies_of_shadows_that_ended(tmp_path: Path) -> None:
    models = ShadowModels(cast(Watch, Watcher), Copies(tmp_path))
    for alias in ("b", "c"):
        (tmp_path / alias / ("0" * 64)).mkdir(parents=True)
    models.put(Split(app_id="shop", shadow=("b", "c")))
    models.put(Split(app_id="shop", shadow=("c",)))
    models.stop()
    assert [path.name for path in tmp_path.iterdir()] == ["c"]
