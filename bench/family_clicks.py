"""What does a click cost in the worker, by family, beside GRU4Rec's in the same run?

`recommend` over batches of clicks of sessions as long as RSC15's, a bundle of random weights each (of made-up sessions
for those that count), 100 units. Processor time, the families in turn. FAMILIES (with commas) chooses others than all,
several as one among them.

    FAMILIES=gru4rec,gru4rec+sasrec python -m bench family_clicks
"""

import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import numpy as np
import torch

from bench.generated_clicks import generated_sessions, popularity, session_lengths
from bench.report import Report, console
from schemas.bundle.files import open_bundle
from schemas.bundle.runtime import Model
from schemas.messages.click import Click
from stream_app.core.plan import SourcedClick
from stream_app.core.recommend import recommend
from stream_app.core.session import SessionRules, SessionState
from trainer.export.bundle import save_bundle
from trainer.memory.trained import TrainedModel
from trainer.models.base import SessionModel
from trainer.models.counting import CountingSettings, RowModel
from trainer.models.registry import FAMILIES
from trainer.models.settings import LearnedSettings, TrainingSettings
from trainer.training.networks import initial_network

CATALOGUES, BATCH, BATCHES, PUBLISHED = (5_000, 37_000), 1_000, 15, 20
BESIDE = "gru4rec"


def main() -> None:
    """Every family at each size."""
    families = os.environ.get("FAMILIES", ",".join(FAMILIES)).split(",")
    rows, ratios = [], {}
    for items in CATALOGUES:
        with tempfile.TemporaryDirectory(prefix="nextclick-bench-") as folder:
            models = {family: _model(Path(folder), family, items) for family in families}
        taken: dict[str, list[float]] = {family: [] for family in models}
        states: dict[str, dict[str, SessionState]] = {family: {} for family in models}
        for number, clicks in enumerate(_batches(items)):
            for family, model in models.items():
                with console.status(f"{items:,} items, batch {number + 1} of {BATCHES}, {family}"):
                    began = time.process_time()
                    answer = recommend(states[family], clicks, model, SessionRules())
                    taken[family].append(time.process_time() - began)
                states[family].update(answer.rows)
        for family, seconds in taken.items():
            us = median(seconds) / BATCH * 1e6
            rows.append({"items": items, "family": family, "us_per_click": us})
            ratios[f"{family}_to_{BESIDE}_{items}_items"] = median(seconds) / median(taken[BESIDE])
    Report("family_clicks", rows, ratios).show("A click in the worker, by family")


def _batches(items: int) -> Iterator[list[SourcedClick]]:
    """The next click of each of BATCH sessions; where one ends another begins."""
    rng = np.random.default_rng(1)
    p, left = popularity(items), np.zeros(BATCH, dtype=np.int64)
    number = np.arange(BATCH)
    for batch in range(BATCHES):
        ended = left == 0
        number[ended] += BATCH
        left[ended] = session_lengths(int(ended.sum()), rng)
        left -= 1
        clicked = rng.choice(items, BATCH, p=p).tolist()
        yield [
            SourcedClick(Click(str(session), str(item), 1_700_000_000_000 + batch), batch * BATCH + at)
            for at, (session, item) in enumerate(zip(number.tolist(), clicked, strict=True))
        ]


def _model(folder: Path, family: str, items: int) -> Model:
    settings = TrainingSettings.parse({"family": family})
    sessions = generated_sessions(20_000, items=items)
    match settings:
        case LearnedSettings():
            made: SessionModel = initial_network(items, settings, torch.Generator().manual_seed(1))
        case CountingSettings():
            counted = settings.count(sessions)
            made = RowModel(counted, counted.recent_size)
        case _:
            raise TypeError(f"no model of {family}")
    bundle = save_bundle(
        folder,
        family.replace("+", "-"),
        TrainedModel(weights=made, item_ids=sessions.item_ids, settings=settings),
        popularity=sessions.support(),
        training={"settings": settings.model_dump()},
        metrics={},
        created_at=0,
    )
    return open_bundle(bundle).ranking(PUBLISHED)
