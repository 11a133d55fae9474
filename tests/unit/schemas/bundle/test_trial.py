"""What is told of a trial that something ended, and how much time it has."""

import json
import os
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
        ("36", NO_LIMIT, r"^its process ended with signal 36 "),
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


def test_a_trial_does_what_it_is_told_with_its_limits_set_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    echo = tmp_path / "python"
    echo.write_text('#!/bin/sh\nfor last; do :; done\necho "$last"\nexit 1\n')
    echo.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(echo))
    how = {"manifest_sha256": "a" * 64, "cache_dir": tmp_path, "adjusts": True, "rows": True}
    with pytest.raises(BundleError) as refused:
        trial.try_bundle("v1", **how, batches=(1, 8), memory_mb=512, seconds=20.0)  # type: ignore[arg-type]
    about, _ = json.JSONDecoder().raw_decode(str(refused.value))
    done: list[object] = []

    class Opened:
        warm_up = staticmethod(done.append)

    def open_bundle(uri: str, **how: object) -> Opened:
        done.append((uri, how))
        return Opened()

    monkeypatch.setattr(trial, "open_bundle", open_bundle)
    monkeypatch.setattr(trial, "_limit_time", done.append)
    monkeypatch.setattr(trial, "_limit_memory", done.append)
    monkeypatch.setattr(trial, "_end_with_parent", lambda: None)
    monkeypatch.setattr(os, "nice", lambda _: 0)
    trial._try(about)
    assert done == [20.0, 512, ("v1", how), [1, 8]]


def test_files_of_the_folder_that_a_worker_runs_in_are_no_modules_of_its_trials(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As they are none of a worker's: an installed command looks for modules beside itself."""
    (tmp_path / "numpy.py").write_text("raise SystemExit('taken for a module')")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BundleError, match="no such folder"):
        trial.try_bundle(
            str(tmp_path / "v1"), manifest_sha256=None, cache_dir=tmp_path, adjusts=False, rows=False, batches=(1,),
            memory_mb=2048, seconds=60.0,
        )  # fmt: skip
