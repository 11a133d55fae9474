"""A disk or an object store that does not give a file."""

import errno
import os
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem


def store_is_away(monkeypatch: pytest.MonkeyPatch, file: str) -> None:
    """From now on paths that end so cannot be opened, as a bundle's reader does it."""
    opened, opened_remotely = os.open, MemoryFileSystem.open

    def locally(path: Any, *arguments: Any, **options: Any) -> int:
        if str(path).endswith(file):
            raise OSError(errno.EIO, "Input/output error")
        return opened(path, *arguments, **options)

    def remotely(self: MemoryFileSystem, path: str, *arguments: Any, **options: Any) -> Any:
        if path.endswith(file):
            raise TimeoutError("the store does not answer")
        return opened_remotely(self, path, *arguments, **options)

    monkeypatch.setattr(os, "open", locally)
    monkeypatch.setattr(MemoryFileSystem, "open", remotely)
