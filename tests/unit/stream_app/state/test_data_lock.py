"""A data folder: one process at a time, and nobody else's to look into."""

from pathlib import Path

import pytest

from stream_app.errors import StoreError
from stream_app.state.data_lock import DataLock


def test_a_folder_is_made_for_its_user_and_their_group_alone(tmp_path: Path) -> None:
    lock = DataLock(tmp_path / "state" / "a")
    assert (tmp_path / "state" / "a").stat().st_mode & 0o007 == 0
    with pytest.raises(StoreError, match=r"give each process a worker\.data_dir of its own"):
        DataLock(tmp_path / "state" / "a")
    lock.release()


def test_a_folder_that_is_there_keeps_its_mode(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    DataLock(tmp_path).release()
    assert tmp_path.stat().st_mode & 0o777 == 0o755
