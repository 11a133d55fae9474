"""What does the session memory add to ranking? The same network with and without it, in turn, on one core.

Tables are as full as they come: every item has ENTRIES items in each. Sessions have 1 to 8 distinct items, as nearly
all of them do. Figures are medians over the rounds, of processor time: one thread, whatever else the machine does.

    python -m bench memory
"""

import statistics
import time
from typing import Any

import numpy as np
import onnxruntime as ort
import torch

from bench.report import Report, console
from trainer.export.bundle import export
from trainer.memory.tables import ItemTable
from trainer.memory.terms import NO_MEMORY, PLACES, RECENT, SCALES, RepeatTerm, SessionMemory, TableTerm
from trainer.models.gru4rec import initial_weights
from trainer.models.settings import Gru4RecSettings

CATALOGUES = (5_000, 37_000, 330_000)
BATCHES = (1, 16, 64)
ENTRIES = 40
UNITS = 100
ROUNDS = 40
"""Fewer where a round takes longer than a tenth of a second."""


def main() -> None:
    """All catalogues and batches."""
    measure(CATALOGUES, BATCHES, ROUNDS).show("Ranking with and without the session memory, one core")


def measure(catalogues: tuple[int, ...], batches: tuple[int, ...], rounds: int) -> Report:
    """Each catalogue's three graphs in turn."""
    rows: list[dict[str, Any]] = []
    for items in catalogues:
        with console.status(f"{items:,} items"):
            rows += _measured(items, batches, rounds)
    ratios = {
        f"{name}_to_alone_{row['items']}_items_batch_{row['batch']}": row[f"{name}_us_per_row"]
        / row["alone_us_per_row"]
        for row in rows
        for name in ("repeat", "all")
    }
    return Report("memory", rows, ratios)


def _measured(items: int, batches: tuple[int, ...], most_rounds: int) -> list[dict[str, Any]]:
    weights = initial_weights(items, Gru4RecSettings(hidden_size=UNITS), torch.Generator().manual_seed(0))
    whole = _memory(items)
    graphs = {
        name: export(weights, memory).rank
        for name, memory in (("alone", NO_MEMORY), ("repeat", SessionMemory(repeat=whole.repeat)), ("all", whole))
    }
    sessions = {name: _session(graph) for name, graph in graphs.items()}
    rows = []
    for batch in batches:
        inputs = _inputs(items, batch)
        took: dict[str, list[float]] = {name: [] for name in sessions}
        rounds = max(5, min(most_rounds, 10_000_000 // (items * batch) * 10))
        for _ in range(rounds):
            for name, session in sessions.items():
                began = time.process_time()
                session.run(["top_index", "top_score"], inputs)
                took[name].append((time.process_time() - began) / batch * 1e6)
        rows.append(
            {"items": items, "batch": batch}
            | {f"{name}_us_per_row": statistics.median(times[1:]) for name, times in took.items()}
            | {"rank_onnx_mb": len(graphs["all"]) / 1e6}
        )
    return rows


def _memory(items: int) -> SessionMemory:
    """Random weights and tables."""
    rng, generator = np.random.default_rng(0), torch.Generator().manual_seed(0)

    def table() -> ItemTable:
        starts = np.arange(items + 1, dtype=np.int64) * ENTRIES
        others = rng.integers(items, size=items * ENTRIES).astype(np.int32)
        return ItemTable(starts, others, rng.integers(1, 50, size=len(others)).astype(np.float32), ENTRIES)

    own = torch.randn(PLACES + 3, generator=generator)
    return SessionMemory(
        RepeatTerm(own[:PLACES], own[PLACES], own[PLACES + 1], own[PLACES + 2]),
        TableTerm(table(), torch.randn(8, len(SCALES), generator=generator)),
        TableTerm(table(), torch.randn(1, len(SCALES), generator=generator)),
    )


def _session(graph: bytes) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.enable_mem_pattern = False
    return ort.InferenceSession(graph, sess_options=options, providers=["CPUExecutionProvider"])


def _inputs(items: int, batch: int) -> dict[str, Any]:
    rng = np.random.default_rng(batch)
    recent = np.full((batch, RECENT), -1, dtype=np.int64)
    for row in recent:
        distinct = int(rng.integers(1, 9))
        row[:distinct] = rng.choice(items, distinct, replace=False)
    return {
        "query": np.tanh(rng.normal(size=(batch, UNITS)) / 2).astype(np.float32),  # as a GRU's are
        "recent": recent,
        "counts": (recent >= 0).astype(np.float32),
        "clicks": (recent >= 0).sum(axis=1).astype(np.float32),
    }
