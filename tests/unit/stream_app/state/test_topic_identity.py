"""What a worker does with a data folder whose topics were created anew since, or that a power cut has damaged."""

import os
import shutil
from pathlib import Path

import pytest

from stream_app.errors import StoreError
from stream_app.state.topic_identity import check_identity


def start(data_dir: Path, *, clicks: str = "clicks-1", changelog: str = "changelog-1") -> bool:
    """A start with topics of these ids; whether the tables of the last one are still there."""
    tables = data_dir / "v1" / "tables"
    check_identity(data_dir, clicks=("clicks", clicks), changelog=("sessions", changelog), tables=tables)
    kept = (tables / "sessions-0.db").exists()
    (tables / "sessions-0.db").mkdir(parents=True, exist_ok=True)
    return kept


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """Of a worker that has served, with the topics that `start` names by default."""
    assert not start(tmp_path)
    return tmp_path


def test_the_same_topics_keep_the_tables(data_dir: Path) -> None:
    assert start(data_dir)
    assert start(data_dir)


def test_a_new_changelog_removes_the_tables_once(data_dir: Path) -> None:
    assert not start(data_dir, changelog="changelog-2")
    assert start(data_dir, changelog="changelog-2")


def test_new_clicks_with_the_old_changelog_are_refused_until_it_is_new_too(data_dir: Path) -> None:
    for _ in range(2):  # a refusal changes nothing
        with pytest.raises(StoreError, match=r"the topic clicks was created anew.*delete the topic sessions"):
            start(data_dir, clicks="clicks-2")
    assert not start(data_dir, clicks="clicks-2", changelog="changelog-2")
    assert start(data_dir, clicks="clicks-2", changelog="changelog-2")


@pytest.mark.parametrize(
    "content", [b"", b'{"clicks": "cli', b"\0" * 64, b"\xff\xfe", b"[]", b"{}", b'{"clicks": 1, "changelog": "c"}']
)
def test_a_damaged_file_removes_the_tables_and_is_written_anew(data_dir: Path, content: bytes) -> None:
    """They may be of any topics."""
    (data_dir / "topics.json").write_bytes(content)
    assert not start(data_dir)
    assert start(data_dir)


def test_the_tables_are_gone_for_good_before_the_new_ids_are_there(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut in between must not leave old tables beside new ids."""
    done: list[str] = []
    fsync, rmtree = os.fsync, shutil.rmtree

    def observed_fsync(descriptor: int) -> None:
        done.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        fsync(descriptor)

    def observed_rmtree(path: Path) -> None:
        done.append(f"remove {path.name}")
        rmtree(path)

    monkeypatch.setattr(os, "fsync", observed_fsync)
    monkeypatch.setattr(shutil, "rmtree", observed_rmtree)
    start(data_dir, changelog="changelog-2")
    assert done == ["remove tables", "v1", ".topics.json.unfinished", data_dir.name]


def test_tables_that_cannot_be_removed_are_told(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(shutil, "rmtree", refuse)
    for _ in range(2):  # the ids stay those of the tables
        with pytest.raises(PermissionError):
            start(data_dir, changelog="changelog-2")
