"""What does diversity cost in Recall? A trained model serves real sessions, with more and more of it.

    MODEL=models/v1 CLICKS=clicks.tsv.gz make bench BENCH=diversity

The model of the bundle MODEL was trained with `trainer fit --train CLICKS --valid-days 1`; each click of the held-out
day is ranked as a worker ranks it. Click files have no categories: what stands in for them are 100 groups of items
whose rows are alike, so a cap costs more than one on categories that a shop has.

What diversity costs in time, BENCH=rules tells.
"""

import os
import time
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.vq import kmeans2

from bench.errors import BenchmarkError
from bench.report import Report, console
from schemas.bundle.files import open_bundle
from schemas.bundle.runtime import Model
from schemas.messages.click import Click
from schemas.messages.item import Item
from stream_app.core.catalogue import Catalogue
from stream_app.core.diversity import DiversityRules
from stream_app.core.plan import SourcedClick
from stream_app.core.recommend import recommend
from stream_app.core.session import SessionRules
from stream_app.serve.live_catalogue import LiveCatalogue
from trainer.data.datasets import load
from trainer.data.options import DataOptions
from trainer.data.sessions import SessionSet

PUBLISHED: Final = 20
GROUPS: Final = 100
SESSIONS_TOGETHER: Final = 64
CASES: Final = (
    DiversityRules(),
    *(DiversityRules(max_per_category=most) for most in (10, 5, 3, 2)),
    *(DiversityRules(mmr_lambda=of_relevance) for of_relevance in (0.9, 0.8, 0.7, 0.5, 0.3)),
    *(DiversityRules(mmr_lambda=0.8, mmr_candidates=candidates) for candidates in (30, 300)),
    DiversityRules(max_per_category=5, mmr_lambda=0.8),
)


def main() -> None:
    """Recall, MRR, and how alike the items of a list are, by settings."""
    try:
        folder, clicks = Path(os.environ["MODEL"]), Path(os.environ["CLICKS"])
    except KeyError as error:
        raise BenchmarkError(
            f"set {error.args[0]}: MODEL is a bundle's folder, CLICKS the file it was trained on"
        ) from error
    model = open_bundle(folder, adjusts=True, rows=True).ranking(PUBLISHED)
    sessions = load(DataOptions(train=[clicks], valid_days=1)).test
    measure(model, sessions).show("Recall@20 and MRR@20, by diversity")


def measure(model: Model, sessions: SessionSet) -> Report:
    """Every case over all sessions."""
    assert model.rows is not None
    _, group = kmeans2(model.rows, GROUPS, minit="++", seed=0)
    catalogue = Catalogue()
    catalogue.put_items(
        [
            (item_id, Item(item_id=item_id, categories=(f"group-{own}",)))
            for item_id, own in zip(model.vocabulary.items, group.tolist(), strict=True)
        ]
    )
    rows = []
    for rules in CASES:
        with console.status(f"{rules}"):
            rows.append(_served(model, sessions, LiveCatalogue(catalogue, rules), rules, group))
    return Report("diversity", rows)


def _served(
    model: Model, sessions: SessionSet, live: LiveCatalogue, rules: DiversityRules, group: NDArray[np.int32]
) -> dict[str, Any]:
    assert model.rows is not None
    places: list[int] = []
    alike, groups, changed = [], [], 0
    for begin in range(0, len(sessions), SESSIONS_TOGETHER):
        offsets = sessions.offsets[begin : begin + SESSIONS_TOGETHER + 1].tolist()
        chunk: list[SourcedClick] = []
        following = []
        for start, end in pairwise(offsets):
            for at in range(start, end - 1):
                item_id = sessions.item_ids[sessions.items[at]]
                chunk.append(SourcedClick(Click(f"s{start}", item_id, 1 + at), len(chunk)))
                following.append(model.vocabulary.index(sessions.item_ids[sessions.items[at + 1]]))
        offered = live.offered(model, {None}, time.time_ns() // 1_000_000)
        ranked = recommend({}, chunk, model, SessionRules(), offered.by_market).ranked
        for one, target in zip(ranked, following, strict=True):
            top = list(one.top_index)
            places.append(top.index(target) + 1 if target in top else 0)
            of_list = model.rows[top]
            cosines = of_list @ of_list.T
            alike.append(float((cosines.sum() - len(top)) / max(len(top) * (len(top) - 1), 1)))
            groups.append(len(set(group[top].tolist())))
            changed += bool(one.diversity)
    hit = np.array(places)
    return {
        "max_per_category": rules.max_per_category,
        "mmr_lambda": rules.mmr_lambda,
        "mmr_candidates": rules.mmr_candidates if rules.uses_rows else None,
        "predictions": len(hit),
        "recall@20": float((hit > 0).mean()),
        "mrr@20": float(np.where(hit > 0, 1 / np.maximum(hit, 1), 0).mean()),
        "mean_cosine_in_list": float(np.mean(alike)),
        "groups_in_list": float(np.mean(groups)),
        "lists_changed": changed / len(hit),
    }
