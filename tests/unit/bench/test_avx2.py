"""Processes that are told that their processor has AVX2 and nothing newer."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bench import avx2
from bench.errors import BenchmarkError
from bench.report import machine

CPUINFO = Path("/proc/cpuinfo")
FLAGS = set(CPUINFO.read_text().split()) if CPUINFO.exists() else set[str]()
WHAT_LLVM_SEES = """
import subprocess, sys, threading
import llvmlite.binding as llvm

def look():
    seen = llvm.get_host_cpu_features()
    print(seen["avx2"], any(there for name, there in seen.items() if name.startswith(("avx512", "avxvnni", "amx"))))

look()
thread = threading.Thread(target=look)
thread.start()
thread.join()
if len(sys.argv) > 1:
    subprocess.run([sys.executable, "-c", sys.argv[1]], check=True)
"""

needs_faulting = pytest.mark.skipif(
    "cpuid_fault" not in FLAGS or shutil.which("cc") is None, reason="needs a processor with CPUID faulting, and cc"
)


@pytest.mark.parametrize(("given", "asked"), [(None, False), ("avx2", True)])
def test_it_is_asked_for_by_name(monkeypatch: pytest.MonkeyPatch, given: str | None, asked: bool) -> None:
    monkeypatch.delenv("INSTRUCTIONS", raising=False)
    if given is not None:
        monkeypatch.setenv("INSTRUCTIONS", given)
    assert avx2.wanted() is asked


@pytest.mark.parametrize("given", ["", "avx512", "AVX2"])
def test_what_is_no_choice_is_refused(monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    monkeypatch.setenv("INSTRUCTIONS", given)
    with pytest.raises(BenchmarkError, match="it takes avx2"):
        avx2.wanted()


@needs_faulting
def test_a_process_its_threads_and_its_children_see_avx2_alone(tmp_path: Path) -> None:
    told = os.environ | avx2.environment(tmp_path)
    command = [sys.executable, "-c", WHAT_LLVM_SEES, WHAT_LLVM_SEES]
    seen = subprocess.run(command, env=told, check=True, capture_output=True, text=True).stdout
    assert seen.splitlines() == ["True False"] * 4


@needs_faulting
@pytest.mark.parametrize("before", ["", "import faulthandler; faulthandler.enable(); "])
def test_a_fault_of_the_programs_own_ends_it_as_ever(tmp_path: Path, before: str) -> None:
    command = [sys.executable, "-c", before + "import ctypes; ctypes.string_at(0)"]
    ended = subprocess.run(
        command, env=os.environ | avx2.environment(tmp_path), check=False, capture_output=True, text=True
    )
    assert ended.returncode == -signal.SIGSEGV
    assert ("string_at" in ended.stderr) is bool(before)


@needs_faulting
def test_a_report_tells_what_was_seen(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "from bench.report import machine; print(machine())"]
    told = os.environ | avx2.environment(tmp_path)
    [seen] = subprocess.run(command, env=told, check=True, capture_output=True, text=True).stdout.splitlines()
    assert "avx2" in seen
    assert "avx512" not in seen
    assert ("avx512f" in machine()) is ("avx512f" in FLAGS)


def test_without_a_compiler_it_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("platform.system", lambda: "Linux")
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BenchmarkError, match="needs a C compiler"):
        avx2.environment(tmp_path)


def test_elsewhere_it_says_what_it_needs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("platform.machine", lambda: "arm64")
    with pytest.raises(BenchmarkError, match="needs Linux on an x86-64 processor"):
        avx2.environment(tmp_path)
