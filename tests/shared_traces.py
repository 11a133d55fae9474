"""Encoders' graphs, each traced once for all processes of a test run: a process's first trace takes six seconds.

What is kept is what :mod:`trainer.export.encoders` keeps in a process, under the same key, as a file. The key has all
sizes: where a test's model has those of tests/contract/test_families.py, nothing is traced for it.
"""

import fcntl
import hashlib
import re
from pathlib import Path

import onnx_ir as ir
import pytest

from trainer.export import encoders
from trainer.models.window import WindowNetwork


def share_traces(folder: Path, patched: pytest.MonkeyPatch) -> None:
    """Let this process look in the folder before it traces, and keep there what it traced."""
    folder.mkdir(exist_ok=True)
    trace = encoders._trace

    def traced_by_anyone(network: WindowNetwork) -> ir.Model:
        structure = re.sub(r" at 0x\w+", "", encoders._structure(network))  # a function is elsewhere in each process
        kept = folder / f"{hashlib.sha256(structure.encode()).hexdigest()}.onnx"
        with kept.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # who needs it at the same time waits for it
            if not kept.exists():
                ir.save(trace(network), kept.with_suffix(".unfinished"))
                kept.with_suffix(".unfinished").rename(kept)
        return ir.load(kept)

    patched.setattr(encoders, "_trace", traced_by_anyone)
