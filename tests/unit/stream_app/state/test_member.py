"""Folders in, identities out."""

import shutil
from pathlib import Path

import pytest

from stream_app.state.member import _FILE, member_id


def test_a_folder_keeps_its_identity_and_others_have_others(tmp_path: Path) -> None:
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
    first, second = map(member_id, folders)
    assert first != second
    assert member_id(folders[0]) == first
    assert member_id(folders[0].rename(tmp_path / "c")) == first


def test_a_copy_gets_an_identity_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    first = member_id(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert member_id(tmp_path / "b") != first
    assert member_id(tmp_path / "a") == first


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"id": "x"}', b"\xff", b'{"folder": 1}'])
def test_a_damaged_file_is_replaced(tmp_path: Path, content: bytes) -> None:
    (tmp_path / _FILE).write_bytes(content)
    made = member_id(tmp_path)
    assert len(made) == 32
    assert member_id(tmp_path) == made


def test_a_file_without_an_identity_is_replaced(tmp_path: Path) -> None:
    (tmp_path / _FILE).write_text(f'{{"folder": {tmp_path.stat().st_ino}}}')
    assert len(member_id(tmp_path)) == 32
