"""What does a tail spare, on trained weights? A ranking with it, and with all items in integers, in turn.

A GRU4Rec is trained for an epoch on generated clicks of RSC15's shape; ITEMS (default 1000000) is how many items they
are drawn from, SESSIONS (default 1400000) how many sessions there are. Items without a click are no part of the model.
Queries come from the last sessions, which are not trained on. Processor time, lists of 20, with `adjust` off and on.
Call :func:`measure` for other weights.

    ITEMS=1000000 make bench BENCH=tail
"""

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any, Final

import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray

from bench.errors import BenchmarkError
from bench.generated_clicks import generated_sessions
from bench.report import Report, console
from schemas.bundle.adjust import ADJUSTS
from schemas.bundle.golden import same_ranking
from schemas.bundle.manifest import RANK
from schemas.bundle.onnx_file import turned_on
from schemas.bundle.runtime import open_graph
from trainer.data.lanes import follow
from trainer.data.sessions import SessionSet, encode, vocabulary_of
from trainer.export.bundle import catalogue_of, rank_graph
from trainer.memory.terms import NO_MEMORY, RECENT
from trainer.memory.trained import TrainedModel
from trainer.models.settings import Gru4RecSettings
from trainer.training.device import Hardware
from trainer.training.train import train

BATCHES: Final = (1, 16, 64)
ROUNDS: Final = 15
PUBLISHED: Final = 20
_JUDGED: Final = 4_000

Inputs = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Trained:
    """A model of a large catalogue, and the log that it learned.

    Attributes:
        clicks: of each item in the log, int64[n_items].
        unseen: the log's last sessions, which it did not learn.
    """

    model: TrainedModel
    clicks: NDArray[np.int64]
    unseen: SessionSet


def main() -> None:
    """Train once, then every case."""
    Hardware(1, "cpu").set_up()
    found = trained()
    Report("tail", list(measure(found.model, found.unseen, rounds=ROUNDS))).show("A ranking with a tail and without")


def trained() -> Trained:
    """A GRU4Rec after one epoch on the log that ITEMS and SESSIONS (environment) ask for."""
    drawn_from, count = (
        int(os.environ.get(name, usual)) for name, usual in (("ITEMS", 1_000_000), ("SESSIONS", 1_400_000))
    )
    sessions = generated_sessions(count, items=drawn_from)
    older = np.arange(len(sessions)) < len(sessions) - _JUDGED
    trained_on = encode(sessions.select(older), vocabulary_of(sessions.select(older)))
    with console.status(f"training on {len(trained_on):,} sessions of {len(trained_on.item_ids):,} items"):
        model = train(trained_on, Gru4RecSettings(batch_size=512, n_sample=2048, hidden_size=100, epochs=1))
    return Trained(model, trained_on.support(), encode(sessions.select(~older), trained_on.item_ids))


def measure(model: TrainedModel, sessions: SessionSet, *, rounds: int) -> Iterator[dict[str, Any]]:
    """A row a case: without the model's session memory and with it, `adjust` off and on, by batch."""
    k = model.settings.list_length
    for memory in (NO_MEMORY, model.memory) if model.memory else (NO_MEMORY,):
        recent_size = RECENT if memory else 1
        catalogue = catalogue_of(model.network, memory, k=k, prune=True, seed=0)
        rankings = _rankings(model, sessions, BATCHES[-1] * rounds, recent_size)
        kinds = {"without": replace(catalogue, tail=None), "with": catalogue}
        graphs = {kind: rank_graph(one, memory, k, recent_size) for kind, one in kinds.items()}
        for adjusts in (False, True):
            opened, megabytes = {}, {}
            for kind, graph in graphs.items():
                before = _resident_mb()
                opened[kind] = open_graph(RANK, turned_on(RANK, graph, ADJUSTS) or graph if adjusts else graph)
                megabytes[f"MB {kind}"] = round(_resident_mb() - before)
            for batch in BATCHES:
                spent = _in_turn(opened, rankings, batch, rounds, catalogue.items)
                yield {
                    "items": catalogue.items,
                    "pruned": catalogue.items - catalogue.front,
                    "memory": bool(memory),
                    "adjust": adjusts,
                    "batch": batch,
                    **{f"us {kind}": round(1e6 * median(times), 1) for kind, times in spent.items()},
                    "ratio of medians": round(median(spent["with"]) / median(spent["without"]), 3),
                    "ratio of sums": round(sum(spent["with"]) / sum(spent["without"]), 3),
                    **megabytes,
                }


def _resident_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1024**2


def _rankings(model: TrainedModel, sessions: SessionSet, count: int, recent_size: int) -> Inputs:
    """Inputs of so many rankings, from all places of the sessions."""
    parts: list[tuple[NDArray[Any], ...]] = []
    state: object = None
    with torch.inference_mode():
        for step, lanes in enumerate(follow(sessions)):
            state = model.network.advance(state if step else model.network.start(len(lanes.position)), lanes)
            parts.append((model.network.queries(state, lanes).numpy(), *lanes.recent(recent_size)))
    chosen = np.random.default_rng(1).permutation(sum(len(part[0]) for part in parts))[:count]
    names = ("query", "recent", "counts", "clicks")
    return {
        name: np.concatenate(columns)[chosen] for name, columns in zip(names, zip(*parts, strict=True), strict=True)
    }


def _in_turn(
    opened: dict[str, ort.InferenceSession], rankings: Inputs, batch: int, rounds: int, items: int
) -> dict[str, list[float]]:
    """Seconds of processor time a ranking, each round; both must answer alike."""
    spent: dict[str, list[float]] = {kind: [] for kind in opened}
    adjust = np.zeros(items, np.float32)
    for number in range(rounds):
        answers = {}
        for kind in sorted(opened, reverse=number % 2 == 1):
            names = {given.name for given in (*opened[kind].get_inputs(), *opened[kind].get_overridable_initializers())}
            given = {
                name: rows[number * batch : (number + 1) * batch] for name, rows in rankings.items() if name in names
            }
            more = {"k": np.array([PUBLISHED])} | ({"adjust": adjust} if "adjust" in names else {})
            began = time.process_time()
            answers[kind] = opened[kind].run(["top_index", "top_score"], given | more)
            spent[kind].append((time.process_time() - began) / batch)
        if not same_ranking(*(tuple(answers[kind]) for kind in ("without", "with"))):
            raise BenchmarkError(f"round {number}, batches of {batch}: the rankings differ")
    return spent
