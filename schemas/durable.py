"""Files that survive a power cut: whoever opens one sees the old content or the new one, whole.

Without fsync before the rename, a file system may keep the rename and lose the bytes: the file is empty or torn at the
next start. Without fsync of the folder, it may forget the rename.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final

PRIVATE_FOLDER: Final = 0o750
"""Mode of a folder that is made for what visitors did. One that is there already keeps its own."""
UNFINISHED: Final = ".unfinished"
"""End of the name of a file that a killed writer may leave; it begins with a dot and is overwritten by the next one."""


def unfinished(name: str) -> str:
    """Where the new content of a file of that name is written, beside it."""
    return f".{name}{UNFINISHED}"


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write into; it takes the place of `path` when the block ends, and is removed when the block raises.

    One writer a path: two at once would write into the same unfinished file.

    Raises:
        OSError: it cannot be written; `path` is as it was.
    """
    part = path.with_name(unfinished(path.name))
    try:
        with part.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        rename(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def replace(path: Path, content: bytes) -> None:
    """Give the file `path` this content, see `replacing`. Raises OSError."""
    with replacing(path) as file:
        file.write(content)


def rename(source: Path, target: Path) -> None:
    """Rename a file, or a folder of which everything inside is durable (`sync`), in one folder. Raises OSError."""
    source.rename(target)
    sync(target.parent)


def sync(path: Path) -> None:
    """Make a file's content durable, or which names a folder holds; not what lies in the folder. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
