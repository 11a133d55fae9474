"""What CORE_SHARE asks of the kernel."""

import os
from pathlib import Path

import pytest

from bench import slow
from bench.errors import BenchmarkError
from bench.slow import SlowCore, core_share


@pytest.mark.parametrize(("given", "share"), [(None, None), ("0.4", 0.4), ("1", 1.0)])
def test_a_share_is_a_number(monkeypatch: pytest.MonkeyPatch, given: str | None, share: float | None) -> None:
    monkeypatch.delenv("CORE_SHARE", raising=False)
    if given is not None:
        monkeypatch.setenv("CORE_SHARE", given)
    assert core_share() == share


@pytest.mark.parametrize("given", ["half", "0", "0.1", "2", ""])
def test_what_is_no_share_is_refused(monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    monkeypatch.setenv("CORE_SHARE", given)
    with pytest.raises(BenchmarkError, match=r"a number from 0\.2 to 1"):
        core_share()


def test_a_group_with_a_quota_and_one_core(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pinned: list[tuple[int, set[int]]] = []
    monkeypatch.setattr(slow, "_ROOT", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    monkeypatch.setattr(os, "sched_setaffinity", lambda pid, cores: pinned.append((pid, cores)))
    (tmp_path / "cpu").mkdir()
    SlowCore("ours", 0.4).add(123)
    group = tmp_path / "cpu" / "ours"
    assert [(group / name).read_text() for name in ("cpu.cfs_period_us", "cpu.cfs_quota_us", "cgroup.procs")] == [
        "5000",
        "2000",
        "123",
    ]
    assert pinned == [(123, {1})]


def test_without_the_right_to_make_one_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(slow, "_ROOT", tmp_path / "none")
    with pytest.raises(BenchmarkError, match="Run as root, or unset CORE_SHARE"):
        SlowCore("ours", 0.4)
