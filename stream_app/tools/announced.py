"""Models as the `models` topic names them, for tools beside the workers."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from schemas.bundle.files import open_files, read_bundle
from schemas.bundle.manifest import RANK
from schemas.bundle.runtime import Model
from schemas.bundle.signature import TrustedKeys, trusted_keys
from schemas.bundle.store import lies_within
from schemas.bundle.trial import try_bundle
from schemas.errors import AnnouncementError, BundleError
from schemas.messages.announcement import ModelAnnouncement, decode_announcement
from stream_app.errors import StreamError
from stream_app.kafka.plain_consumer import plain_consumer
from stream_app.settings import StreamSettings, WorkerSettings


class ModelError(StreamError):
    """No model can be opened for what was asked."""


class Bundles:
    """The bundles of a deployment: the announced one, and those that lie beside it.

    `worker` says where they may lie, and how much they may take.
    """

    def __init__(
        self, announcement: ModelAnnouncement, worker: WorkerSettings, cache: Path, trusted: TrustedKeys | None
    ) -> None:
        self.announcement = announcement
        self._worker = worker
        self._trusted = trusted
        self._cache = cache
        self._opened: dict[str, Model] = {}

    def open(self, version: str) -> Model:
        """Verified. Raises ModelError."""
        if version not in self._opened:
            uri, digest = self._place(version)
            try:
                files = read_bundle(uri, manifest_sha256=digest, trusted=self._trusted, cache_dir=self._cache)
                if self._worker.bundle_memory_mb:
                    try_bundle(
                        uri,
                        manifest_sha256=digest,
                        cache_dir=self._cache,
                        adjusts=False,
                        rows=False,
                        batches=(1,),
                        memory_mb=self._worker.bundle_memory_mb,
                        seconds=self._worker.bundle_timeout,
                    )
                self._opened[version] = open_files(files)
            except BundleError as error:
                raise ModelError(f"the bundle of {version} cannot be opened: {error}") from error
        return self._opened[version]

    def rank_graph(self, version: str) -> bytes:
        """The bytes of its rank graph. Raises ModelError."""
        uri, digest = self._place(version)
        try:
            files = read_bundle(uri, manifest_sha256=digest, trusted=self._trusted, cache_dir=self._cache)
        except BundleError as error:
            raise ModelError(f"the bundle of {version} cannot be read: {error}") from error
        return files.data[RANK]

    def _place(self, version: str) -> tuple[str, str | None]:
        announced = self.announcement
        if version == announced.version:
            uri, digest = announced.uri, announced.manifest_sha256
        else:  # a registry has a folder a version
            uri, digest = f"{announced.uri.rstrip('/').rsplit('/', 1)[0]}/{version}", None
        locations = self._worker.bundle_locations
        if locations and not lies_within(uri, locations):
            raise ModelError(f"{uri} lies in none of worker.bundle_locations")
        return uri, digest


@contextmanager
def bundles(settings: StreamSettings) -> Iterator[Bundles]:
    """Those of the alias that workers serve. Raises ModelError, ReadError and SettingsError."""
    topic, alias = settings.topics.models, settings.worker.model_alias
    trusted = trusted_keys(settings.bundles.trusted_keys)
    newest: ModelAnnouncement | None = None
    with plain_consumer(settings.kafka, topic, name=f"{settings.app_id}-announced") as models:
        for partition in models.partitions:
            for record in models.history(partition):
                try:
                    found = decode_announcement(record.value(), record.key())
                except AnnouncementError:
                    continue  # no worker uses it either, and says so
                newest = found if found.alias == alias else newest
    if newest is None:
        raise ModelError(f"no {alias!r} is announced on the topic {topic}")
    # A folder of its own: a worker removes copies of bundles that it does not serve.
    with TemporaryDirectory(prefix="nextclick-bundles-") as cache:
        yield Bundles(newest, settings.worker, Path(cache), trusted)
