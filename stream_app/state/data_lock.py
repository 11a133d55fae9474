"""One worker, one data folder. RocksDB would notice two only when a partition moves from one to the other.

What lies there tells what visitors clicked: nobody but the process's user and their group is to look into it.
"""

import fcntl
import os
from pathlib import Path
from typing import Final

from schemas.durable import PRIVATE_FOLDER
from stream_app.errors import StoreError

_FILE: Final = "worker.lock"


class DataLock:
    """Makes a data folder where there is none, and holds it until it is released or the process ends, however it ends.

    Raises:
        StoreError: another process holds it.
        OSError: it cannot be made, or written to.
    """

    def __init__(self, data_dir: Path, *, setting: str = "worker.data_dir") -> None:
        data_dir.mkdir(mode=PRIVATE_FOLDER, parents=True, exist_ok=True)
        self._descriptor = os.open(data_dir / _FILE, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.read(self._descriptor, 20).decode(errors="replace") or "of unknown id"
            self.release()
            raise StoreError(
                f"the process {holder} is using {data_dir.resolve()}: give each process a {setting} of its own, or "
                f"stop the other one"
            ) from error
        os.truncate(self._descriptor, 0)
        os.write(self._descriptor, str(os.getpid()).encode())

    def release(self) -> None:
        """Let another process have the folder."""
        os.close(self._descriptor)
