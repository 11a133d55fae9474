"""Where a registry lies: a local folder, or any object store that fsspec knows. A handful of calls, and no more.

Nothing here removes recursively: a file goes by its name, and a folder only once it is empty.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, Literal

import fsspec

from schemas import durable
from schemas.bundle.store import local_path
from trainer.errors import RegistryError

Kind = Literal["file", "folder", "other"]
"""`other` is a link or a device: never ours."""

_KINDS: Final[dict[str, Kind]] = {"file": "file", "directory": "folder"}


class Store:
    """Files below a URL, by paths relative to it. Every method raises RegistryError when the store cannot be used."""

    def __init__(self, url: str) -> None:
        local = local_path(url)
        self._local = None if local is None else local.resolve()
        self.url = url.rstrip("/") if self._local is None else str(self._local)
        try:
            self._fs, root = fsspec.core.url_to_fs(self.url)
        except (ImportError, ValueError) as error:
            raise RegistryError(
                f"{url}: {error}; set trainer.registry to a folder or a URL that fsspec knows"
            ) from error
        self._root: str = root.rstrip("/")

    def list(self, folder: str = "") -> dict[str, Kind]:
        """What lies in a folder, by name; nothing when there is no such folder."""
        path = self._path(folder)
        with self._asked(f"{folder or 'it'} cannot be listed"):
            self._fs.invalidate_cache()
            try:
                entries = self._fs.ls(path, detail=True)
            except FileNotFoundError:
                return {}
        # A store may list the folder itself too: an empty object under its name makes it look like a folder.
        named = {str(entry["name"]).rstrip("/"): entry for entry in entries}
        return {
            name.rsplit("/", 1)[-1]: "other" if entry.get("islink") else _KINDS.get(entry["type"], "other")
            for name, entry in sorted(named.items())
            if name != path
        }

    def read(self, path: str) -> bytes | None:
        """A file's content, None when there is no such file."""
        with self._asked(f"{path} cannot be read"):
            try:
                data: bytes = self._fs.cat_file(self._path(path))
            except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
                return None
            return data

    def write(self, path: str, data: bytes) -> None:
        """Whoever reads the file sees the old content or the new one, whole. Durable when this returns."""
        with self._asked(f"{path} cannot be written"):
            if self._local is None:
                self._fs.pipe_file(self._path(path), data)
            else:
                (self._local / path).parent.mkdir(parents=True, exist_ok=True)
                durable.replace(self._local / path, data)

    def upload(self, source: Path, path: str) -> None:
        """Copy a local file to a path where nothing lies yet. Durable when this returns."""
        with self._asked(f"{path} cannot be written"):
            if self._local is None:
                self._fs.pipe_file(self._path(path), source.read_bytes())  # put_file would make a folder object too
            else:
                (self._local / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, self._local / path)
                durable.sync(self._local / path)

    def sync(self, folder: str = "") -> None:
        """Make the names in a local folder durable; an object store keeps what it has confirmed."""
        if self._local is not None:
            with self._asked(f"{folder or 'it'} cannot be written"):
                durable.sync(self._local / folder)

    def remove(self, path: str) -> None:
        """Remove a file, if it is there."""
        with self._asked(f"{path} cannot be removed"), suppress(FileNotFoundError):
            self._fs.rm_file(self._path(path))

    def remove_empty(self, folder: str) -> None:
        """Remove a folder, if it is there; in an object store it went with its last file. It must be empty."""
        if self._local is not None:
            with self._asked(f"{folder} cannot be removed"), suppress(FileNotFoundError):
                (self._local / folder).rmdir()

    def _path(self, path: str) -> str:
        return f"{self._root}/{path}".rstrip("/")

    @contextmanager
    def _asked(self, problem: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # every object store has errors of its own
            raise RegistryError(f"{self.url}: {problem}: {error or type(error).__name__}") from error
