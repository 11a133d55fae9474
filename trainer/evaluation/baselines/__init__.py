"""What a network has to beat, all under its own protocol: counting, neighbours and factors.

``BASELINES`` makes any of them by name, of training sessions and options; ``all_baselines`` are those that only count,
cheap enough for every fit.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

from trainer.evaluation.baselines.counting import all_baselines, item_knn, markov_chain, pop, s_pop, sequential_rules
from trainer.evaluation.baselines.factors import bpr_mf
from trainer.evaluation.baselines.neighbours import stan, vs_knn
from trainer.evaluation.baselines.scorer import Baseline
from trainer.evaluation.baselines.spec import BaselineSpec, parse_baselines

BASELINES: Final[Mapping[str, Callable[..., Baseline]]] = MappingProxyType(
    {
        "pop": pop,
        "s-pop": s_pop,
        "markov-chain": markov_chain,
        "sequential-rules": sequential_rules,
        "item-knn": item_knn,
        "bpr-mf": bpr_mf,
        "vs-knn": vs_knn,
        "stan": stan,
    }
)

__all__ = [
    "BASELINES",
    "Baseline",
    "BaselineSpec",
    "all_baselines",
    "bpr_mf",
    "item_knn",
    "markov_chain",
    "parse_baselines",
    "pop",
    "s_pop",
    "sequential_rules",
    "stan",
    "vs_knn",
]
