"""Whoever reads a folder of click files meanwhile keeps the files of a click log from being joined or removed.

A reader would else find a file gone that it has just listed, or the clicks of a joined file twice.
"""

import fcntl
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

LOCK: Final = ".files"
"""In the folder of every click log; in no other."""


@contextmanager
def keeping_files(folder: Path) -> Iterator[None]:
    """Inside, a click log's files stay as they are, but for new ones; waits while files are being joined."""
    with ExitStack() as held:
        try:
            lock = held.enter_context((folder / LOCK).open())
            fcntl.flock(lock, fcntl.LOCK_SH)
        except OSError:
            pass  # no click log, or a copy where there are no locks: nobody joins files. Or the reader will tell why.
        yield


@contextmanager
def rearranging(folder: Path) -> Iterator[bool]:
    """Whether files may be joined and removed inside: not while somebody reads, or another process does the same."""
    with (folder / LOCK).open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True
