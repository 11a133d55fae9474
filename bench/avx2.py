"""An older processor than this one: benchmarks, workers, peers and trainers that see AVX2 and nothing newer.

    INSTRUCTIONS=avx2 python -m bench rank

ONNX Runtime, OpenBLAS, oneDNN and LLVM ask the processor what it can, and have no common switch. On Intel processors
under Linux that question can be answered by somebody else: `avx2.c`, preloaded into every process. The clock, caches
and memory stay those of the newer machine.
"""

import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from bench.errors import BenchmarkError

_SOURCE: Final = Path(__file__).with_suffix(".c")
_GLIBC: Final = "GLIBC_TUNABLES"
_OWN_COPIES: Final = "glibc.cpu.hwcaps=-AVX512F,-AVX512VL,-AVX512BW,-AVX512CD,-AVX512DQ"
"""The C library looks before anything can be preloaded."""


def wanted() -> bool:
    """What INSTRUCTIONS says; False without it. Raises BenchmarkError for what is no choice."""
    match os.environ.get("INSTRUCTIONS"):
        case None:
            return False
        case "avx2":
            return True
        case other:
            raise BenchmarkError(f"INSTRUCTIONS is {other!r}; it takes avx2, or is not set: all that the processor has")


def environment(folder: Path) -> dict[str, str]:
    """What makes a process see AVX2 only, with the library that is built into `folder`.

    Raises BenchmarkError where there is no compiler, or the processor does not let its CPUID be answered.
    """
    library = folder / "avx2.so"
    command = ["cc", "-shared", "-fPIC", "-O2", "-o", str(library), str(_SOURCE), "-ldl"]
    told: Mapping[str, str] = {"LD_PRELOAD": str(library), _GLIBC: _OWN_COPIES}
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        raise BenchmarkError("INSTRUCTIONS=avx2 needs Linux on an x86-64 processor")
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
        subprocess.run(["/bin/true"], env=os.environ | told, check=True, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise BenchmarkError(f"INSTRUCTIONS=avx2 needs a C compiler: {error}") from error
    except subprocess.CalledProcessError as error:
        raise BenchmarkError(f"INSTRUCTIONS=avx2 cannot be had here: {error.stderr.strip()}") from error
    return dict(told)


def again(names: list[str]) -> int:
    """Run these benchmarks in a process that sees AVX2 only; its exit code. Whatever it starts sees that, too."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "bench", *names]
        return subprocess.run(command, env=os.environ | environment(Path(folder)), check=False).returncode


def hidden() -> bool:
    """Whether this process sees AVX2 only."""
    return "avx2.so" in os.environ.get("LD_PRELOAD", "")
