"""The registry: published model bundles, one folder a version, in a local folder or any object store that fsspec knows.

    <registry>/20251122T093000123Z-1a2b3c4d/manifest.json, advance.onnx, ...
    <registry>/_history/champion/<announced at>-<action>-<version>.json

A version is published when its manifest is there. A local one appears by one rename; in an object store, where nothing
can be renamed, the manifest is written last and removed first. One trainer writes to a registry; readers are free.
"""

import os
import shutil
import tempfile
from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import fsspec

from schemas.announcement import ModelAnnouncement, encode_announcement, is_version
from schemas.bundle import Model, manifest_digest, open_bundle
from schemas.bundle_store import fetch, local_path, sha256
from schemas.errors import BundleError
from schemas.manifest import FILES, MANIFEST, BundleLimits, Manifest, decode_manifest
from trainer.history import Entry
from trainer.service_errors import RegistryError

_HISTORY: Final = "_history"  # no version's name begins so
_UNFINISHED: Final = ".unfinished-"
_LIMITS: Final = BundleLimits()


@dataclass(frozen=True)
class PublishedModel:
    """A version as an announcement names it, and what its manifest says."""

    version: str
    uri: str
    manifest_sha256: str
    manifest: Manifest


def version_name(created_at: int, content: bytes) -> str:
    """A version's name: its time (milliseconds since the epoch), so that names sort, and a bit of its content."""
    moment = datetime.fromtimestamp(created_at / 1000, UTC)
    return f"{moment:%Y%m%dT%H%M%S}{created_at % 1000:03d}Z-{sha256(content)[:8]}"


class Registry:
    """Published versions. Every method raises RegistryError when the registry cannot be used."""

    def __init__(self, url: str, *, cache_dir: Path) -> None:
        """`cache_dir` is a local folder for copies of remote bundles."""
        local = local_path(url)
        self._local = None if local is None else local.resolve()
        self.url = url.rstrip("/") if self._local is None else str(self._local)
        self._cache_dir = cache_dir
        try:
            self._fs, root = fsspec.core.url_to_fs(self.url)
        except (ImportError, ValueError) as error:
            raise RegistryError(
                f"{url}: {error}; set trainer.registry to a folder or a URL that fsspec knows"
            ) from error
        self._root: str = root.rstrip("/")

    # -- reading ------------------------------------------------------------------------------------------------------

    def versions(self) -> list[PublishedModel]:
        """Every published version, oldest first."""
        return [found for name in self._version_folders() if (found := self._read(name)) is not None]

    def find(self, version: str) -> PublishedModel | None:
        """A published version, None when there is none of that name. BundleError when its manifest is damaged."""
        return self._read(version) if is_version(version) else None

    def get(self, version: str) -> PublishedModel:
        """A published version. RegistryError when there is none of that name."""
        found = self.find(version)
        if found is None:
            raise RegistryError(f"{self.url}: has no version {version}; see `trainer models`")
        return found

    def open(self, model: PublishedModel, *, threads: int = 1) -> Model:
        """The model as a worker would open it: verified to the last file. Raises BundleError."""
        return open_bundle(model.uri, manifest_sha256=model.manifest_sha256, cache_dir=self._cache_dir, threads=threads)

    def open_announced(self, announcement: ModelAnnouncement, *, threads: int = 1) -> Model:
        """The same for an announced model, which may lie elsewhere. Raises BundleError."""
        return open_bundle(
            announcement.uri,
            manifest_sha256=announcement.manifest_sha256,
            cache_dir=self._cache_dir,
            threads=threads,
        )

    def announced_folder(self, announcement: ModelAnnouncement) -> Path:
        """A local folder with the announced bundle's files; a copy where it lies elsewhere. Raises BundleError."""
        local = local_path(announcement.uri)
        return (
            local
            if local is not None
            else fetch(announcement.uri, announcement.manifest_sha256, self._cache_dir, _LIMITS)
        )

    # -- writing ------------------------------------------------------------------------------------------------------

    def publish(self, bundle: Path) -> PublishedModel:
        """Publish a local, verified bundle under the name of its folder. All or nothing."""
        version = bundle.name
        if self._exists(f"{version}/{MANIFEST}"):
            raise RegistryError(f"{self.url}: has a version {version} already; versions are immutable")
        try:
            if self._local is not None:
                self._publish_locally(bundle, self._local)
            else:
                self._upload(bundle)
        except OSError as error:
            raise RegistryError(f"{self.url}: {version} cannot be published: {error}") from error
        published = self.get(version)
        if published.manifest_sha256 != manifest_digest(bundle):
            raise RegistryError(f"{self.url}: {version} did not arrive as it was written; do not announce it")
        return published

    def remove(self, version: str) -> None:
        """Unpublish a version, then remove its files."""
        try:
            if self._fs.exists(f"{self._root}/{version}/{MANIFEST}"):
                self._fs.rm_file(f"{self._root}/{version}/{MANIFEST}")
            self._fs.rm(f"{self._root}/{version}", recursive=True)
        except FileNotFoundError:
            pass  # in an object store a folder goes with its last file
        except OSError as error:
            raise RegistryError(f"{self.url}: {version} cannot be removed: {error}") from error

    def prune(self, *, keep: int, protected: Collection[str]) -> list[str]:
        """Remove all but the newest `keep` versions and the protected ones; returns the names removed."""
        published = [name for name in self._version_folders() if self._exists(f"{name}/{MANIFEST}")]
        removed = [name for name in published[:-keep] if name not in protected]
        for name in removed:
            self.remove(name)
        return removed

    def remove_leftovers(self) -> list[str]:
        """Remove what a killed trainer left half-published. Only while no other trainer publishes here."""
        left = [name for name in self._version_folders() if not self._exists(f"{name}/{MANIFEST}")]
        for name in left:
            self.remove(name)
        if self._local is not None and self._local.is_dir():
            for path in self._local.glob(f"{_UNFINISHED}*"):
                shutil.rmtree(path)
                left.append(path.name)
        return left

    # -- history ------------------------------------------------------------------------------------------------------

    def history(self, alias: str) -> list[Entry]:
        """The entries of an alias, oldest first; see `trainer.history`."""
        return sorted(entry for name in self._list(f"{_HISTORY}/{alias}") if (entry := Entry.of_name(name)) is not None)

    def add_history(self, alias: str, entry: Entry, announcement: ModelAnnouncement) -> None:
        """Write an entry; its content is for people, its name says all that is needed."""
        folder = f"{self._root}/{_HISTORY}/{alias}"
        try:
            self._fs.makedirs(folder, exist_ok=True)
            self._fs.pipe_file(f"{folder}/{entry.name}", encode_announcement(announcement) + b"\n")
        except OSError as error:
            raise RegistryError(f"{self.url}: the history cannot be written: {error}") from error

    def remove_history(self, alias: str, entry: Entry) -> None:
        try:
            self._fs.rm_file(f"{self._root}/{_HISTORY}/{alias}/{entry.name}")
        except OSError as error:
            raise RegistryError(f"{self.url}: the history cannot be written: {error}") from error

    # -- the file system ----------------------------------------------------------------------------------------------

    def _read(self, version: str) -> PublishedModel | None:
        try:
            data: bytes = self._fs.cat_file(f"{self._root}/{version}/{MANIFEST}")
        except FileNotFoundError:
            return None
        except OSError as error:
            raise RegistryError(f"{self.url}: {version} cannot be read: {error}") from error
        try:
            manifest = decode_manifest(data, _LIMITS)
        except BundleError as error:
            raise BundleError(f"{self.url}/{version}: {error}") from error
        if manifest.version != version:
            raise BundleError(f"{self.url}/{version}: its manifest is that of {manifest.version}")
        return PublishedModel(version, f"{self.url}/{version}", sha256(data), manifest)

    def _version_folders(self) -> list[str]:
        return sorted(name for name in self._list("") if is_version(name))

    def _list(self, folder: str) -> list[str]:
        path = f"{self._root}/{folder}".rstrip("/")
        self._fs.invalidate_cache()
        try:
            return [str(entry).rstrip("/").rsplit("/", 1)[-1] for entry in self._fs.ls(path, detail=False)]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise RegistryError(f"{self.url}: cannot be listed: {error}") from error

    def _exists(self, path: str) -> bool:
        try:
            return bool(self._fs.exists(f"{self._root}/{path}"))
        except OSError as error:
            raise RegistryError(f"{self.url}: cannot be read: {error}") from error

    def _publish_locally(self, bundle: Path, root: Path) -> None:
        root.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(dir=root, prefix=f"{_UNFINISHED}{bundle.name}-"))
        try:
            for name in (*FILES, MANIFEST):
                shutil.copyfile(bundle / name, unfinished / name)
                _sync(unfinished / name)
            unfinished.chmod(0o755)  # mkdtemp makes it private; the worker may be another user
            _sync(unfinished)
            unfinished.rename(root / bundle.name)
            _sync(root)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)

    def _upload(self, bundle: Path) -> None:
        target = f"{self._root}/{bundle.name}"
        self._fs.makedirs(target, exist_ok=True)
        for name in (*FILES, MANIFEST):  # the manifest last: it is what publishes
            self._fs.pipe_file(f"{target}/{name}", (bundle / name).read_bytes())


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
