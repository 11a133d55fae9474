"""A cluster's folder: made, held by one process at a time, and removed."""

import contextlib
import fcntl
import shutil
import tempfile
from pathlib import Path
from typing import IO

from deploy.kafka.errors import LocalKafkaError

LOGS = "logs"
_PREFIX = "nextclick-kafka-"


def new_temporary_folder() -> Path:
    """A new folder of a cluster without a name."""
    return Path(tempfile.mkdtemp(prefix=_PREFIX))


def lock_folder(folder: Path) -> IO[str]:
    """Hold the folder until the file is closed; the system closes it when the process ends, however it ends.

    Raises LocalKafkaError when another process, or another cluster of this one, holds it.
    """
    lock = (folder / "lock").open("a")  # `w` would empty a file of that name of whoever owns the folder
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        lock.close()
        raise LocalKafkaError(f"{folder} is in use by another local Kafka; stop it, or name another folder") from error
    return lock


def remove_folder(folder: Path, *, keep_logs: bool) -> None:
    """Remove a folder, but for its logs (if there are any) when they are to be kept.

    What goes meanwhile is no error: a broker that ends removes its own temporary files.
    """
    for entry in folder.iterdir():
        if keep_logs and entry.name == LOGS and any(entry.iterdir()):
            continue
        if entry.is_dir():
            shutil.rmtree(entry, onerror=_raise_unless_gone)
        else:
            entry.unlink(missing_ok=True)
    if not any(folder.iterdir()):
        folder.rmdir()


def _raise_unless_gone(_function: object, _path: str, error: tuple[type[BaseException], BaseException, object]) -> None:
    if not isinstance(error[1], FileNotFoundError):
        raise error[1]


def remove_leftovers() -> None:
    """Remove the temporary folders with brokers' data whose process was killed: nobody holds their locks."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        # Without data it is another process's that was made just now, or logs that were kept to be read. Somebody
        # else's folder, or one that another process is removing as well, is left as it is.
        if any(folder.glob("broker-*")):
            with contextlib.suppress(LocalKafkaError, OSError), lock_folder(folder):
                remove_folder(folder, keep_logs=False)
