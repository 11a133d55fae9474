"""The counting families of :mod:`trainer.models.counting` as baselines."""

from collections.abc import Callable

from trainer.data.sessions import SessionSet
from trainer.evaluation.baselines.scorer import Baseline, baseline_of
from trainer.models import counting
from trainer.models.counting import LONGEST, NEIGHBOURS, REGULARISATION, RULE_STEPS


def all_baselines(train: SessionSet) -> tuple[Callable[[], Baseline], ...]:
    """Every baseline that a fit reports, not built yet: those that are built and evaluated in seconds."""
    return (lambda: pop(train), lambda: s_pop(train), lambda: markov_chain(train), lambda: item_knn(train))


def pop(train: SessionSet) -> Baseline:
    """See :func:`trainer.models.counting.pop`."""
    return baseline_of("pop", counting.pop(train))


def s_pop(train: SessionSet) -> Baseline:
    """See :func:`trainer.models.counting.s_pop`."""
    return baseline_of("s-pop", counting.s_pop(train, window=LONGEST))


# Of the next three the last item decides: a longer window would change nothing.


def markov_chain(train: SessionSet) -> Baseline:
    """See :func:`trainer.models.counting.markov_chain`."""
    return baseline_of("markov-chain", counting.markov_chain(train, window=1))


def sequential_rules(train: SessionSet, *, steps: int = RULE_STEPS, repeats: bool = True) -> Baseline:
    """See :func:`trainer.models.counting.sequential_rules`."""
    return baseline_of("sequential-rules", counting.sequential_rules(train, steps=steps, repeats=repeats, window=1))


def item_knn(train: SessionSet, *, neighbours: int = NEIGHBOURS, regularisation: float = REGULARISATION) -> Baseline:
    """See :func:`trainer.models.counting.item_knn`."""
    model = counting.item_knn(train, neighbours=neighbours, regularisation=regularisation, window=1)
    return baseline_of("item-knn", model)
