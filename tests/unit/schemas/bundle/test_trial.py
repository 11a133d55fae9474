"""What is told of a trial that something ended, and how much time it has."""

import resource
import sys
from pathlib import Path

import pytest

from schemas.bundle import trial
from schemas.errors import BundleError

NO_LIMIT = resource.RLIM_INFINITY


@pytest.mark.parametrize(
    ("signal", "hard", "problem"),
    [
        ("XCPU", NO_LIMIT, r"used up 20 s of processor time \(worker\.bundle_timeout\)$"),
        ("XCPU", 10, r"used up 9 s of processor time \(a limit of this system, .* below worker\.bundle_timeout\)$"),
        ("KILL", NO_LIMIT, r"^its process ended with SIGKILL \(.*worker\.bundle_memory_mb = 512\)$"),
    ],
)
def test_which_limit_a_bundle_has_passed_is_told(
    signal: str, hard: int, problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = tmp_path / "python"
    ended.write_text(f"#!/bin/sh\nkill -{signal} $$\n")
    ended.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(ended))
    monkeypatch.setattr(resource, "getrlimit", lambda _: (NO_LIMIT, hard))
    with pytest.raises(BundleError, match=problem):
        trial.try_bundle(
            "v1", manifest_sha256=None, cache_dir=tmp_path, adjusts=False, rows=False, batches=(1,), memory_mb=512,
            seconds=20.0,
        )  # fmt: skip


@pytest.mark.parametrize(("hard", "most"), [(NO_LIMIT, 20), (60, 20), (20, 19), (5, 4), (1, 1)])
def test_a_system_that_allows_less_time_refuses_no_bundle_for_that(
    hard: int, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[int, tuple[int, int]]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (most, hard))
    monkeypatch.setattr(resource, "setrlimit", lambda *limit: told.append(limit))
    trial._limit_time(19.5)
    assert told == [(resource.RLIMIT_CPU, (most, hard))]
