"""The registry: published model bundles, one folder a version, in a local folder or any object store that fsspec knows.

    <registry>/20251122T093000123Z-1a2b3c4d/manifest.json, advance.onnx, ...
    <registry>/_history/champion/<announced at>-<action>-<version>.json
    <registry>/_unfinished/<version>.json     while that version is being written or removed: by whom, since when

A version is published when its manifest is there: it is written last and removed first.

The folder belongs to whoever made it, and may hold other things. What is removed is proved to be ours first: a
published version by its manifest, half of one by the entry in `_unfinished`, which was there before its first file.
Only the files that a bundle has go, by name, and then the folder if nothing else is in it.
"""

import time
import uuid
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
import structlog

from schemas import durable
from schemas.bundle.files import BundleFiles, Model, manifest_digest, open_bundle, read_bundle, read_manifest
from schemas.bundle.manifest import FILES, MANIFEST, SIGNATURE, BundleLimits, Manifest, decode_manifest
from schemas.bundle.signature import SigningKey, TrustedKeys
from schemas.bundle.store import check_manifest_sha256, sha256
from schemas.errors import AnnouncementError, BundleAwayError, BundleError
from schemas.messages.announcement import ModelAnnouncement, decode_announcement, encode_announcement, is_version
from trainer.errors import RegistryError
from trainer.service.history import Entry
from trainer.service.store import Store

log = structlog.get_logger(__name__)

_HISTORY: Final = "_history"  # no version's name begins so
_UNFINISHED: Final = "_unfinished"
_ABANDONED_MS: Final = 24 * 3_600_000
"""Another writer's half of a version is taken for abandoned after that: far more than any upload takes."""
_OURS: Final = (MANIFEST, SIGNATURE, *FILES, durable.unfinished(MANIFEST), durable.unfinished(SIGNATURE))
"""What a version's folder may hold, the manifest first."""
_LIMITS: Final = BundleLimits()


REFRESHED_KEPT: Final = 3
"""Of the refreshed versions, the newest: a worker may still be loading the one before."""


class _Unfinished(msgspec.Struct, frozen=True):
    """An entry in `_unfinished`."""

    version: str
    writer: str
    since: int  # milliseconds since the epoch


@dataclass(frozen=True)
class PublishedModel:
    """A version as an announcement names it, and what its manifest says."""

    version: str
    uri: str
    manifest_sha256: str
    manifest: Manifest

    @property
    def refreshed(self) -> bool:
        """Whether it is another version's model with newer counts, and not trained itself."""
        return self.manifest.states_of is not None


class Registry:
    """Published versions. Every method raises RegistryError when the registry cannot be used."""

    def __init__(
        self,
        url: str,
        *,
        cache_dir: Path,
        writer: str | None = None,
        signing: SigningKey | None = None,
        trusted: TrustedKeys | None = None,
    ) -> None:
        """`cache_dir` is a local folder for copies of remote bundles.

        `writer` names who publishes: a restarted process by the name of before knows its own leftovers at once.
        What is published is signed with `signing`, what is opened must be signed by one of `trusted`.
        """
        self.store = Store(url)
        self.url = self.store.url
        self.writer = writer or uuid.uuid4().hex
        self._cache_dir = cache_dir
        self._signing = signing
        self._trusted = trusted
        self._told: set[str] = set()

    # -- reading ------------------------------------------------------------------------------------------------------

    def versions(self) -> list[PublishedModel]:
        """Every published version that this program can read, in the order of their making, oldest first.

        Others, of another release or damaged, are warned of once and left alone.
        """
        folders = [name for name, kind in self.store.list().items() if kind != "file" and is_version(name)]
        found = [model for name in folders if (model := self.find_readable(name)) is not None]
        return sorted(found, key=lambda model: (model.manifest.created_at, model.version))

    def find(self, version: str) -> PublishedModel | None:
        """A published version, None when there is none of that name. BundleError when its manifest is damaged."""
        return self._read(version) if is_version(version) else None

    def find_readable(self, version: str) -> PublishedModel | None:
        """A published version; None, and a warning once, when its manifest cannot be read by this program."""
        try:
            return self.find(version)
        except BundleError as error:
            self._tell(version, f"cannot be used, and is not removed either: {error}")
            return None

    def get(self, version: str) -> PublishedModel:
        """A published version. RegistryError when there is none of that name."""
        found = self.find(version)
        if found is None:
            raise RegistryError(f"{self.url}: has no version {version}; see `trainer models`")
        return found

    def open(self, model: PublishedModel, *, threads: int = 1) -> Model:
        """The model as a worker would open it: verified to the last file. Raises BundleError and RegistryError."""
        return self._open(model.uri, model.manifest_sha256, threads)

    def open_announced(self, announcement: ModelAnnouncement, *, threads: int = 1) -> Model:
        """The same for an announced model, which may lie elsewhere."""
        return self._open(announcement.uri, announcement.manifest_sha256, threads)

    def _open(self, uri: str, manifest_sha256: str, threads: int) -> Model:
        with _within_reach():
            return open_bundle(
                uri,
                manifest_sha256=manifest_sha256,
                trusted=self._trusted,
                cache_dir=self._cache_dir,
                threads=threads,
            )

    def check_mounted(self, announcement: ModelAnnouncement) -> None:
        """Raise RegistryError where nothing is left of the registry in which this model was announced.

        So looks a folder whose file system is not mounted: what is published into it is gone once it is.
        """
        if announcement.uri.startswith(f"{self.url}/") and not self.aliases() and not self.versions():
            raise RegistryError(
                f"{self.url}: holds no model and no history, but {announcement.version} was announced there: is its "
                "file system mounted? Where it was emptied on purpose, make its first model by hand: trainer fit, "
                "trainer promote"
            )

    def read_announced(self, announcement: ModelAnnouncement) -> BundleFiles:
        """The files of an announced model, which may lie elsewhere. Raises BundleError."""
        with _within_reach():
            return read_bundle(
                announcement.uri,
                manifest_sha256=announcement.manifest_sha256,
                trusted=self._trusted,
                cache_dir=self._cache_dir,
            )

    # -- writing ------------------------------------------------------------------------------------------------------

    def publish(self, bundle: Path) -> PublishedModel:
        """Publish a local, verified bundle under the name of its folder. All or nothing."""
        version = bundle.name
        if self.store.list(version):
            raise RegistryError(f"{self.url}: has a {version} already; versions are immutable")
        self._begin(version)
        for name in read_manifest(bundle).files:
            self.store.upload(bundle / name, f"{version}/{name}")
        self.store.sync(version)
        self.store.sync()
        manifest = (bundle / MANIFEST).read_bytes()
        if self._signing is not None:
            self.store.write(f"{version}/{SIGNATURE}", self._signing.sign(manifest))
        self.store.write(f"{version}/{MANIFEST}", manifest)  # the last: it is what publishes
        self._end(version)
        published = self.get(version)
        if published.manifest_sha256 != manifest_digest(bundle):
            raise RegistryError(f"{self.url}: {version} did not arrive as it was written; do not announce it")
        return published

    def sign(self, version: str, key: SigningKey) -> None:
        """Sign a published version with this key, in place of the signature that it may have.

        It is opened first, by whomever it is signed. Raises BundleError.
        """
        model = self.get(version)
        open_bundle(model.uri, manifest_sha256=model.manifest_sha256, cache_dir=self._cache_dir)
        manifest = self.store.read(f"{version}/{MANIFEST}") or b""
        check_manifest_sha256(manifest, model.manifest_sha256)
        self.store.write(f"{version}/{SIGNATURE}", key.sign(manifest))

    def remove(self, version: str) -> bool:
        """Unpublish a version and remove its files; what else lies in its folder stays there, and False is returned.

        Raises BundleError when the manifest in that folder is not the version's.
        """
        if self.find(version) is None:
            return False
        if self.store.list()[version] != "folder":
            self._tell(version, "is a link, so it is not removed")
            return False
        self._begin(version)
        return self._finish_removing(version)

    def prune(self, *, keep: int, protected: Collection[str]) -> list[str]:
        """Remove all but the newest `keep` versions and the protected ones; returns the names removed.

        Of refreshed versions, which count for themselves, the newest `REFRESHED_KEPT` stay.
        """
        trained: list[str] = []
        refreshed: list[str] = []
        for model in self.versions():
            (refreshed if model.refreshed else trained).append(model.version)
        old = [*trained[:-keep], *refreshed[:-REFRESHED_KEPT]]
        return [name for name in old if name not in protected and self.remove(name)]

    def remove_leftovers(self) -> list[str]:
        """Remove the halves of versions that this writer left when it was killed, and others' of long ago."""
        removed = []
        for name in self.store.list(_UNFINISHED):
            found = self._unfinished(name)
            if found is None:
                continue
            if self.store.read(f"{found.version}/{MANIFEST}") is not None:
                self._end(found.version)  # it was published, or its removal had not begun
            elif foreign := self._foreign(found.version):
                self._tell(found.version, f"was left half-published, and holds what is not ours: {', '.join(foreign)}")
            elif self._finish_removing(found.version):
                removed.append(found.version)
        return removed

    def _unfinished(self, name: str) -> _Unfinished | None:
        """What an entry of that name says; None when it is nobody's, or another writer's who may still be at work."""
        data = self.store.read(f"{_UNFINISHED}/{name}")
        if name.startswith("."):
            return None  # a writer was killed before its first word
        try:
            found = msgspec.json.decode(data or b"", type=_Unfinished)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            self._tell(f"{_UNFINISHED}/{name}", f"is no entry of ours: {error}")
            return None
        if name != f"{found.version}.json" or not is_version(found.version):
            self._tell(f"{_UNFINISHED}/{name}", f"speaks of {found.version!r}")
            return None
        abandoned = found.since < _now_ms() - _ABANDONED_MS
        return found if found.writer == self.writer or abandoned else None

    def _begin(self, version: str) -> None:
        """From now on this version's files are known to be ours, whether its manifest is there or not."""
        entry = _Unfinished(version, self.writer, _now_ms())
        self.store.write(f"{_UNFINISHED}/{version}.json", msgspec.json.encode(entry) + b"\n")

    def _end(self, version: str) -> None:
        self.store.remove(f"{_UNFINISHED}/{version}.json")

    def _finish_removing(self, version: str) -> bool:
        """Remove the files of a version that was begun, and its folder, unless that holds other things."""
        for name in _OURS:
            self.store.remove(f"{version}/{name}")
        if foreign := self._foreign(version):
            self._tell(version, f"the model in it is removed, what is not ours is not: {', '.join(foreign)}")
        else:
            self.store.remove_empty(version)
        self._end(version)
        return not foreign

    def _foreign(self, version: str) -> list[str]:
        """What lies in a version's folder and is no file of a bundle."""
        return [name for name, kind in self.store.list(version).items() if kind != "file" or name not in _OURS]

    # -- history ------------------------------------------------------------------------------------------------------

    def history(self, alias: str) -> list[Entry]:
        """The entries of an alias, oldest first; see `trainer.history`."""
        names = self.store.list(f"{_HISTORY}/{alias}")
        return sorted(entry for name in names if (entry := Entry.of_name(name)) is not None)

    def aliases(self) -> list[str]:
        """Those that have a history here."""
        return [name for name, kind in self.store.list(_HISTORY).items() if kind == "folder"]

    def add_history(self, alias: str, entry: Entry, announcement: ModelAnnouncement) -> None:
        """Write an entry; its content is for people, its name says all that is needed."""
        self.store.write(f"{_HISTORY}/{alias}/{entry.name}", encode_announcement(announcement) + b"\n")

    def announced_as(self, alias: str, entry: Entry) -> ModelAnnouncement | None:
        """What an entry announced; None where that cannot be read."""
        data = self.store.read(f"{_HISTORY}/{alias}/{entry.name}")
        try:
            return decode_announcement(data)
        except AnnouncementError:
            return None

    def remove_history(self, alias: str, entry: Entry) -> None:
        self.store.remove(f"{_HISTORY}/{alias}/{entry.name}")

    # -- manifests ----------------------------------------------------------------------------------------------------

    def _read(self, version: str) -> PublishedModel | None:
        data = self.store.read(f"{version}/{MANIFEST}")
        if data is None:
            return None
        try:
            manifest = decode_manifest(data, _LIMITS)
        except BundleError as error:
            raise BundleError(f"{self.url}/{version}: {error}") from error
        if manifest.version != version:
            raise BundleError(f"{self.url}/{version}: its manifest is that of {manifest.version}")
        return PublishedModel(version, f"{self.url}/{version}", sha256(data), manifest)

    def _tell(self, path: str, problem: str) -> None:
        """Warn of something in the registry, once."""
        if (told := f"{path}: {problem}") not in self._told:
            self._told.add(told)
            log.warning("something in the registry is left alone", path=f"{self.url}/{path}", problem=problem)


def refreshes_before(manifest: Manifest) -> list[str]:
    """The versions that were the same trained model, refreshed, before this one."""
    refreshed = manifest.training.get("refreshed")
    before = refreshed.get("before") if isinstance(refreshed, dict) else None
    return [version for version in before if isinstance(version, str)] if isinstance(before, list) else []


@contextmanager
def _within_reach() -> Iterator[None]:
    """RegistryError where a model's files cannot be reached: it may be a good one, that serves in every worker."""
    try:
        yield
    except BundleAwayError as error:
        raise RegistryError(f"a model is out of reach: {error}") from error


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
