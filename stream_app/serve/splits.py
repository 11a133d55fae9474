"""The split of a running experiment: the thread that follows its topic, and the models of its variants.

A variant's model is followed as that of `worker.model_alias` is, by a watcher of its own, which ends with its part in
the split.
"""

import threading
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Protocol

import structlog
from confluent_kafka import Message

from schemas.bundle.store import remove_copies
from schemas.messages.refused import RecordRefusedError
from schemas.messages.split import Split, decode_split, places_of, shares_of
from stream_app.serve.following import TopicFollower
from stream_app.serve.hot_swap import LiveModel, ModelWatcher
from stream_app.serve.metrics import Metrics
from stream_app.serve.serving import Serves, Serving

log = structlog.get_logger(__name__)

Watch = Callable[[str, LiveModel], ModelWatcher]


class Copies:
    """Copies of bundles, in a folder for each alias: a watcher removes those in its own that it does not serve."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def of(self, alias: str) -> Path:
        """The folder of an alias."""
        return self._folder / alias

    def keep(self, aliases: Collection[str]) -> None:
        """Remove those of all other aliases, which no watcher may use any more."""
        try:
            for path in self._folder.iterdir() if self._folder.is_dir() else ():
                if path.name not in aliases:
                    remove_copies(path)
        except OSError as error:
            log.warning("copies of bundles that nobody needs cannot be removed", error=str(error))


class LiveSplit:
    """Who serves which sessions now. The follower changes it; whoever begins a batch asks."""

    def __init__(
        self,
        alias: str,
        live: LiveModel,
        watch: Watch,
        metrics: Metrics,
        *,
        want_shadows: Callable[[bool], None] = lambda _: None,
        copies: Copies | None = None,
    ) -> None:
        """`live` is the model of `alias`, which serves whatever is nobody else's; `watch` makes a variant's watcher.

        `want_shadows` is told whether a split names any. `copies` are where the watchers have them.
        """
        self._want_shadows = want_shadows
        self._copies = copies
        self._alias = alias
        self._watch = watch
        self._metrics = metrics
        self._live = {alias: live}
        self._watchers: dict[str, ModelWatcher] = {}
        self._split: Split | None = None
        self._lock = threading.Lock()

    def put(self, split: Split | None) -> None:
        """Serve by this split from the next batch on; None is none. Waits for the watchers that it ends."""
        shares = {} if split is None else shares_of(split.variants)
        added = {alias: LiveModel() for alias in shares if alias not in self._live}
        with self._lock:
            gone = [alias for alias in self._watchers if alias not in shares]
            ended = [self._watchers.pop(alias) for alias in gone]
            self._live = {alias: live for alias, live in self._live.items() if alias not in gone} | added
            self._watchers |= {alias: self._watch(alias, live) for alias, live in added.items()}
            self._split = split
        for alias in added:
            self._watchers[alias].start()
        for watcher in ended:
            watcher.stop()
        if self._copies is not None:
            self._copies.keep(shares)
        self._metrics.variant_share.clear()
        for alias, places in shares.items():
            self._metrics.variant_share.labels(variant=alias).set(places / 100)
        log.info("split of the sessions", percent={alias: places / 100 for alias, places in shares.items()})
        self._want_shadows(split is not None and bool(split.shadow))

    def serving(self) -> Serving:
        """A snapshot; `worker.model_alias` must have a model by now."""
        with self._lock:
            split, live = self._split, self._live
        model = live[self._alias].current
        assert model is not None, "the app does not start before there is a model"
        if split is None or not split.variants:
            return Serving((Serves(model),))
        models = [Serves(model, self._alias)]
        place: dict[str, int] = {self._alias: 0}
        ends, owners, end = [], [], 0
        for variant in split.variants:
            end += places_of(variant)
            ends.append(end)
            if variant.alias not in place and (other := live[variant.alias].current) is not None:
                place[variant.alias] = len(models)
                models.append(Serves(other, variant.alias))
            owners.append(place.get(variant.alias))
        return Serving(tuple(models), tuple(ends), tuple(owners), split.salt)

    @property
    def aliases(self) -> tuple[Collection[str], Collection[str]]:
        """Those of the variants, and those of the shadows."""
        split = self._split
        return ((), ()) if split is None else (shares_of(split.variants), split.shadow)

    def withdraw(self, failed: Serves, error: Exception) -> None:
        """Take a variant's model that cannot rank out of service, until one is announced for its alias again.

        Told once, though several batches may have begun with the model.
        """
        with self._lock:
            live = self._live.get(failed.variant or self._alias)
        if live is not None and live.withdraw(failed.model):
            self._metrics.refused_bundles.inc()
            log.error(
                "the model of a variant cannot rank; its sessions are ranked by worker.model_alias until a model is "
                "announced for its alias again",
                variant=failed.variant,
                version=failed.model.version,
                error=str(error) or repr(error),
            )

    @property
    def waiting_for(self) -> str | None:
        """Why a variant has no model that may have one in a moment; None when all have, or will not have soon."""
        with self._lock:
            watchers = dict(self._watchers)
        waits = (f"{alias}: {watcher.waiting_for}" for alias, watcher in watchers.items() if not watcher.is_settled)
        return next(waits, None)

    def stop(self) -> None:
        """Stop the watchers."""
        for watcher in self._watchers.values():
            watcher.stop()


class TakesSplits(Protocol):
    """Who serves, or ranks, by the split that counts."""

    @property
    def waiting_for(self) -> str | None: ...

    def put(self, split: Split | None) -> None: ...

    def stop(self) -> None: ...


class SplitFollower(TopicFollower):
    """Follows the topic of splits; records of other applications are passed over."""

    def __init__(
        self,
        *,
        consumer_config: Mapping[str, Any],
        topic: str,
        app_id: str,
        live: "TakesSplits",
        metrics: Metrics,
        on_fatal: Callable[[BaseException], None],
    ) -> None:
        super().__init__(
            consumer_config=consumer_config, what="splits", topics=[topic], metrics=metrics, on_fatal=on_fatal
        )
        self._key = app_id.encode()
        self._live = live

    def _take_in(self, records: list[Message]) -> None:
        newest: list[Split | None] = []
        for message in records:
            self._applied[message.topic()] = message.offset()
            if message.key() != self._key:
                continue
            value = message.value()
            try:
                newest = [None if value is None else decode_split(self._key, value)]
            except RecordRefusedError as error:
                self._refuse(message, error)
        for split in newest:
            self._live.put(split)

    def _missing(self) -> str | None:
        # Its sessions would be rebuilt for worker.model_alias, and once more a moment later.
        return self._live.waiting_for

    def stop(self) -> None:
        """Stop following, and the watchers of the variants."""
        super().stop()
        self._live.stop()
