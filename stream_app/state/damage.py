"""A local store that is damaged: how that is known, and where it goes. The changelog has all that was in it."""

import shutil
import struct
from pathlib import Path
from typing import Final

from schemas import durable

_MARK: Final = "DAMAGED"
"""A file in a store's folder: damage was found in service, the next start must not open it."""

_TOLD: Final = ("Corruption", "IO error", "Is a directory")
# Not the message of a lock file that cannot be made: the disk is full then, or read-only.
_HELD_LOCK: Final = ("While lock file", "lock hold by current process")
_NOT_THE_STORES_FAULT: Final = (
    *_HELD_LOCK,
    "No space left",
    "Disk quota exceeded",
    "File too large",  # than the process, or the file system, may write
    "Permission denied",
    "Read-only file system",
    "Too many open files",
    "Cannot allocate memory",
)
# RocksDB's log format: blocks with records in them, each behind a checksum, its length and its kind.
_BLOCK: Final = 32 * 1024
_HEADER: Final = struct.Struct("<IHB")
# Whole, first, middle and last part; those above are of reused files, of which there are none here.
_KINDS: Final = range(1, 5)


def is_damage(error: BaseException, path: Path) -> bool:
    """Whether an error of RocksDB's says that the store in this folder is damaged, and not that the disk is full."""
    text = str(error).replace(str(path), "")
    return any(word in text for word in _TOLD) and not any(word in text for word in _NOT_THE_STORES_FAULT)


def is_held(error: BaseException) -> bool:
    """Whether RocksDB says that another process has the store, or this one in another place."""
    return any(text in str(error) for text in _HELD_LOCK)


def known_damage(path: Path) -> str | None:
    """What is known of a store's damage before it is opened; None where nothing is.

    RocksDB takes a record of its logs that ends behind the file's end, or is of a kind that only a reused file has, for
    one that a crash cut short: a flipped bit there makes it forget whole files of rows, and keep the changelog offset.
    """
    if (path / _MARK).exists():
        return (path / _MARK).read_text(errors="replace")
    try:
        logs = [path / (path / "CURRENT").read_text().strip()]
        logs += sorted(path.glob("*.log"))[:-1]  # the newest one may be cut short, offset and rows alike
        for log in logs:
            if not _is_whole(log.read_bytes()):
                return f"{log.name} is cut short or changed"
    except (OSError, ValueError):  # no text, or no name of a file
        return None  # RocksDB says it better
    return None


def mark(path: Path, reason: str) -> None:
    """Let the next start know, however far the damage is from what it opens. Raises OSError."""
    durable.replace(path / _MARK, reason.encode())


def set_aside(path: Path) -> Path:
    """Move a damaged store out of the way, in place of the last one of its partition; returns where. Raises OSError."""
    aside = path.with_name(f"{path.name}.damaged")
    if aside.exists():
        shutil.rmtree(aside)
    durable.rename(path, aside)
    return aside


def _is_whole(log: bytes) -> bool:
    at = 0
    while at < len(log):
        left = _BLOCK - at % _BLOCK
        if left < _HEADER.size:
            at += left
            continue
        if at + _HEADER.size > len(log):
            return False
        _, length, kind = _HEADER.unpack_from(log, at)
        if kind not in _KINDS or _HEADER.size + length > left:
            return False
        at += _HEADER.size + length
    return at == len(log)
