"""A data folder: one process at a time, and nobody else's to look into."""

import os
from contextlib import suppress
from pathlib import Path

import pytest

from stream_app.errors import StoreError
from stream_app.state.data_lock import DataLock


def opened(folder: Path) -> list[str]:
    """Files of a folder that this process has open; threads of other tests may open and close others meanwhile."""
    found = []
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):
            found.append(str(descriptor.readlink()))
    return [name for name in found if name.startswith(f"{folder}/")]


def test_a_folder_is_made_for_its_user_and_their_group_alone(tmp_path: Path) -> None:
    lock = DataLock(tmp_path / "state" / "a")
    assert (tmp_path / "state" / "a").stat().st_mode & 0o007 == 0
    with pytest.raises(StoreError, match=r"give each process a worker\.data_dir of its own"):
        DataLock(tmp_path / "state" / "a")
    lock.release()


def test_who_is_refused_is_told_which_process_has_the_folder_and_keeps_nothing_of_it(tmp_path: Path) -> None:
    (tmp_path / "worker.lock").write_text("12345678901234567890")  # of one that was killed
    lock = DataLock(tmp_path)
    assert len(opened(tmp_path)) == 1
    for _ in range(3):
        with pytest.raises(StoreError, match=rf"^the process {os.getpid()} is using {tmp_path}:"):
            DataLock(tmp_path)
    assert len(opened(tmp_path)) == 1
    lock.release()
    DataLock(tmp_path).release()


def test_a_folder_that_is_there_keeps_its_mode(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    DataLock(tmp_path).release()
    assert tmp_path.stat().st_mode & 0o777 == 0o755
