"""Durable files: what is done in which order, and what is left when it breaks off."""

import os
from pathlib import Path

import pytest

from schemas import durable


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The system calls that durability depends on, in order."""
    told: list[str] = []
    fsync, rename = os.fsync, Path.rename

    def observed_fsync(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        told.append(f"fsync {path.name} of {path.stat().st_size}" if path.is_file() else f"fsync {path.name}/")
        fsync(descriptor)

    def observed_rename(self: Path, target: Path) -> Path:
        told.append(f"rename {self.name} {target.name}")
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", observed_fsync)
    monkeypatch.setattr(Path, "rename", observed_rename)
    return told


def test_content_is_durable_before_it_has_its_name_and_then_the_name_is(tmp_path: Path, steps: list[str]) -> None:
    file = tmp_path / "state.json"
    durable.replace(file, b"first")
    durable.replace(file, b"the second")
    assert file.read_bytes() == b"the second"
    assert list(tmp_path.iterdir()) == [file]
    unfinished = ".state.json.unfinished"
    assert steps == [
        f"fsync {unfinished} of 5",
        f"rename {unfinished} state.json",
        f"fsync {tmp_path.name}/",
        f"fsync {unfinished} of 10",
        f"rename {unfinished} state.json",
        f"fsync {tmp_path.name}/",
    ]


def test_a_writer_that_fails_leaves_the_old_content_and_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "state.json"
    durable.replace(file, b"old")

    def write() -> None:
        with durable.replacing(file) as sink:
            sink.write(b"ne")
            raise RuntimeError("halfway")

    with pytest.raises(RuntimeError, match="halfway"):
        write()
    assert file.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [file]


def test_a_full_disk_is_told_and_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "state.json"
    durable.replace(file, b"old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        durable.replace(file, b"new")
    assert file.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [file]


def test_what_a_killed_writer_left_does_not_matter(tmp_path: Path) -> None:
    (tmp_path / ".state.json.unfinished").write_bytes(b"much more than is written now")
    durable.replace(tmp_path / "state.json", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["state.json"]
    assert (tmp_path / "state.json").read_bytes() == b"new"


def test_a_folder_gets_its_name_durably(tmp_path: Path, steps: list[str]) -> None:
    (tmp_path / ".unfinished").mkdir()
    durable.replace(tmp_path / ".unfinished" / "a", b"1")
    steps.clear()
    durable.sync(tmp_path / ".unfinished")
    durable.rename(tmp_path / ".unfinished", tmp_path / "folder")
    assert steps == ["fsync .unfinished/", "rename .unfinished folder", f"fsync {tmp_path.name}/"]
    assert (tmp_path / "folder" / "a").read_bytes() == b"1"
