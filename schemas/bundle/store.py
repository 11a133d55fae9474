"""Where bundles lie: a local folder is read in place, any other fsspec URL through a cache on the local disk.

The cache is content-addressed: a folder is named by the SHA-256 of the manifest in it, which vouches for every file.
Whatever else lies beside those folders is not ours, and stays.
"""

import errno
import hashlib
import os
import re
import stat
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote

import fsspec

from schemas.bundle.manifest import FILES, MANIFEST, SIGNATURE, BundleLimits, Manifest, decode_manifest
from schemas.bundle.signature import SIGNATURE_BYTES, TrustedKeys
from schemas.errors import BundleAwayError, BundleError

CACHED_BUNDLES: Final = 4
"""How many bundles a cache keeps: the one in service, the one before it to roll back to, and some for other workers."""

_CACHED: Final = re.compile(r"[0-9a-f]{64}")
_UNFINISHED: Final = ".unfinished-"
_ABANDONED_SECONDS: Final = 3_600


def local_path(uri: str | Path) -> Path | None:
    """The local folder that a URI names (plain path or `file:` URL), None when it lies elsewhere."""
    if isinstance(uri, Path):
        return uri
    if uri.startswith("file:"):
        return Path(unquote(uri.removeprefix("file://").removeprefix("file:")))
    return None if "://" in uri or "::" in uri else Path(uri)


def lies_within(uri: str, locations: Sequence[str]) -> bool:
    """Whether a bundle's URI lies in one of the locations, each a folder or the beginning of URLs.

    A chain of file systems (`::`) lies in none, nor does a URL with a step up.
    """
    local, path = local_path(uri), unquote(uri).rstrip("/") + "/"
    if "::" in path or (local is None and ".." in path.split("/")):
        return False
    for location in locations:
        folder = local_path(location)
        if local is not None and folder is not None:
            within = local.resolve().is_relative_to(folder.resolve())
        else:
            within = local is folder and path.startswith(unquote(location).rstrip("/") + "/")
        if within:
            return True
    return False


def read_file(folder: Path, name: str, limit: int) -> bytes:
    """A file of a bundle, at most `limit` bytes. Raises BundleError."""
    data = _begin_of(folder, name, limit + 1)
    if len(data) > limit:
        raise BundleError(f"{name}: more than {limit} bytes")
    return data


def read_listed(folder: Path, name: str, manifest: Manifest) -> bytes:
    """A file that is what the manifest says, of which no more is read. Raises BundleError."""
    return check_file(name, _begin_of(folder, name, manifest.files[name].size + 1), manifest)


def _begin_of(folder: Path, name: str, most: int) -> bytes:
    try:
        # What was opened is looked at, not what the name stood for before: no link is followed, no pipe waited for.
        descriptor = os.open(folder / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise BundleError(f"{name}: is no plain file in {folder}")
            return file.read(most)
    except FileNotFoundError as error:
        raise BundleError(f"{name}: missing in {folder}") from error
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO, errno.EISDIR):  # a link, a socket, a folder
            raise BundleError(f"{name}: is no plain file in {folder}") from error
        raise BundleAwayError(f"{name}: cannot be read: {error}") from error


def check_manifest_sha256(data: bytes, expected: str | None) -> str:
    """The SHA-256 of a manifest's bytes. Raises BundleError when another one was announced."""
    found = sha256(data)
    if expected is not None and found != expected:
        raise BundleError(f"{MANIFEST}: SHA-256 is {found}, announced was {expected}; the bundle was changed since")
    return found


def check_signature(folder: Path, manifest: bytes, trusted: TrustedKeys | None) -> None:
    """Raise BundleError unless a trusted key signed the manifest in this folder. Without keys any will do."""
    if trusted is not None:
        if not (folder / SIGNATURE).exists():
            raise BundleError(_unsigned(folder))
        trusted.check(manifest, read_file(folder, SIGNATURE, SIGNATURE_BYTES))


def check_file(name: str, data: bytes, manifest: Manifest) -> bytes:
    """The data, when they are what the manifest says. Raises BundleError."""
    entry = manifest.files[name]
    if len(data) != entry.size:
        raise BundleError(f"{name}: {len(data)} bytes, the manifest says {entry.size}; truncated or changed")
    if sha256(data) != entry.sha256:
        raise BundleError(f"{name}: its SHA-256 is not the manifest's; damaged or changed")
    return data


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def remove_bundle(folder: Path) -> None:
    """Remove a local folder that holds a bundle or a part of one. Other things in it stay, and so does it then.

    Raises OSError.
    """
    if folder.is_symlink():
        return
    for name in (MANIFEST, SIGNATURE, *FILES):
        (folder / name).unlink(missing_ok=True)
    with suppress(FileNotFoundError):
        if not any(folder.iterdir()):
            folder.rmdir()


def remove_copies(cache_dir: Path) -> None:
    """Remove a cache that nobody uses any more. Where other things are in its folder, they stay. Raises OSError."""
    if not cache_dir.is_dir():
        return
    for path in cache_dir.iterdir():
        if path.is_dir() and (_CACHED.fullmatch(path.name) or path.name.startswith(_UNFINISHED)):
            remove_bundle(path)
    if not any(cache_dir.iterdir()):
        cache_dir.rmdir()


def fetch(
    uri: str,
    manifest_sha256: str | None,
    cache_dir: Path | None,
    limits: BundleLimits,
    trusted: TrustedKeys | None = None,
) -> Path:
    """Copy a remote bundle into the cache, or find it there; returns its local folder. Raises BundleError.

    Each file is checked on its way, the signature first. Processes may share a cache: a folder appears whole, by one
    rename.
    """
    if cache_dir is None:
        raise BundleError(f"{uri}: is not on this machine; name a cache folder to copy it to")
    try:
        if manifest_sha256 is not None and _cached(cache_dir / manifest_sha256, manifest_sha256, limits, trusted):
            return cache_dir / manifest_sha256
        filesystem, root = fsspec.core.url_to_fs(uri)
        root = root.rstrip("/")
        manifest_bytes = _download(filesystem, f"{root}/{MANIFEST}", MANIFEST, limits.manifest_bytes)
        digest = check_manifest_sha256(manifest_bytes, manifest_sha256)
        target = cache_dir / digest
        if _cached(target, digest, limits, trusted):
            return target
        signature = None if trusted is None else _signature(filesystem, root, manifest_bytes, trusted)
        manifest = decode_manifest(manifest_bytes, limits)
        cache_dir.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(dir=cache_dir, prefix=_UNFINISHED))
        try:
            for name in manifest.files:
                data = _download(filesystem, f"{root}/{name}", name, manifest.files[name].size)
                (unfinished / name).write_bytes(check_file(name, data, manifest))
            (unfinished / MANIFEST).write_bytes(manifest_bytes)
            if signature is not None:
                (unfinished / SIGNATURE).write_bytes(signature)
            _move_into_place(unfinished, target, digest, limits, trusted)
        finally:
            remove_bundle(unfinished)
        _forget_old(cache_dir, keep=target)
    except BundleError:
        raise
    except Exception as error:  # every object store has errors of its own
        raise BundleAwayError(f"{uri}: cannot be fetched: {type(error).__name__}: {error}") from error
    return target


def _download(filesystem: Any, path: str, name: str, limit: int) -> bytes:
    try:
        with filesystem.open(path, "rb") as file:
            data: bytes = file.read(limit + 1)
    except FileNotFoundError as error:
        raise BundleError(f"{name}: missing at {path}") from error
    if len(data) > limit:
        raise BundleError(f"{name}: more than {limit} bytes at {path}")
    return data


def _signature(filesystem: Any, root: str, manifest: bytes, trusted: TrustedKeys) -> bytes:
    """A remote bundle's signature, verified. Raises BundleError."""
    if not filesystem.exists(f"{root}/{SIGNATURE}"):
        raise BundleError(_unsigned(root))
    signature = _download(filesystem, f"{root}/{SIGNATURE}", SIGNATURE, SIGNATURE_BYTES)
    trusted.check(manifest, signature)
    return signature


def _unsigned(where: str | Path) -> str:
    return f"{SIGNATURE}: missing in {where}; bundles.trusted_keys allows no unsigned bundle: `trainer sign` it"


def _cached(folder: Path, manifest_sha256: str, limits: BundleLimits, trusted: TrustedKeys | None) -> bool:
    """Whether the cache holds this bundle undamaged, and signed if it has to be; its age is renewed if so."""
    if not folder.is_dir():
        return False
    try:
        data = read_file(folder, MANIFEST, limits.manifest_bytes)
        check_manifest_sha256(data, manifest_sha256)
        check_signature(folder, data, trusted)
        manifest = decode_manifest(data, limits)
        for name in manifest.files:
            read_listed(folder, name, manifest)
    except BundleError:
        return False  # fetched anew, over this one
    os.utime(folder)
    return True


def _move_into_place(
    unfinished: Path, target: Path, digest: str, limits: BundleLimits, trusted: TrustedKeys | None
) -> None:
    try:
        unfinished.rename(target)
    except OSError:
        if _cached(target, digest, limits, trusted):  # another process was faster
            return
        remove_bundle(target)
        unfinished.rename(target)


def _forget_old(cache_dir: Path, *, keep: Path) -> None:
    """Keep the newest bundles, and drop what killed processes left half fetched."""
    bundles: list[tuple[float, Path]] = []
    old: list[Path] = []
    for path in cache_dir.iterdir():
        try:
            age = path.stat().st_mtime
        except FileNotFoundError:
            continue  # another process tidies up, too
        if _CACHED.fullmatch(path.name) and path.is_dir():
            bundles.append((age, path))
        elif path.name.startswith(_UNFINISHED) and path.is_dir() and age < time.time() - _ABANDONED_SECONDS:
            old.append(path)
    old += [path for _, path in sorted(bundles, reverse=True)[CACHED_BUNDLES:] if path != keep]
    for path in old:
        with suppress(OSError):  # another process tidies up too, perhaps under another user
            remove_bundle(path)
