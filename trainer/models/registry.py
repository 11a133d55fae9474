"""The families by name."""

from collections import Counter
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from typing import Final, Literal

from trainer.errors import TrainingSettingsError
from trainer.models.settings import NetworkSettings, TrainingSettings, family_name

_NETWORKS: Final = {
    "gru4rec": "trainer.models.settings:Gru4RecSettings",
    "sasrec": "trainer.models.sasrec:SasRecSettings",
    "narm": "trainer.models.narm:NarmSettings",
    "stamp": "trainer.models.stamp:StampSettings",
    "sr-gnn": "trainer.models.sr_gnn:SrGnnSettings",
    "caser": "trainer.models.caser:CaserSettings",
    "gff": "trainer.models.gff:GffSettings",
    "rbm": "trainer.models.rbm:RbmSettings",
    "cl4srec": "trainer.models.cl4srec:Cl4SRecSettings",
    "bert4rec": "trainer.models.bert4rec:Bert4RecSettings",
    "transformer": "trainer.models.transformer:TransformerSettings",
}
COUNTING: Final = {
    "pop": "trainer.models.counting:PopSettings",
    "s-pop": "trainer.models.counting:SPopSettings",
    "markov-chain": "trainer.models.counting:MarkovChainSettings",
    "sequential-rules": "trainer.models.counting:SequentialRulesSettings",
    "item-knn": "trainer.models.counting:ItemKnnSettings",
    "bpr-mf": "trainer.models.bpr_mf:BprMfSettings",
    "vs-knn": "trainer.models.neighbours:VsKnnSettings",
    "stan": "trainer.models.neighbours:StanSettings",
}
"""The families that count. They are what networks are compared with, too: see :mod:`trainer.evaluation.baselines`."""
FAMILIES: Final[Mapping[str, str]] = _NETWORKS | COUNTING
"""Family -> where its settings are; a family's network is named by its settings."""

QuickFamily = Literal["pop", "s-pop", "markov-chain", "item-knn"]
"""Those that are counted and judged in seconds."""
SIMPLEST: Final[QuickFamily] = "pop"
"""What is no better than this is no model."""


def settings_class(family: object) -> type[TrainingSettings]:
    """The class of a family's settings, or of those of several families with + between them.

    Raises :class:`TrainingSettingsError`.
    """
    return _settings_class(family_name(str(family)))


@cache
def _settings_class(family: str) -> type[TrainingSettings]:
    names = family.split("+")
    kinds = {name: _of_one(name, family) for name in names}
    if len(names) == 1:
        return kinds[family]
    for name, times in Counter(names).items():
        if times > 1:
            setting = "members" if len(kinds) == 1 else f"{name}.members".replace("-", "_")
            raise TrainingSettingsError(f"family={family}: name each once; for {times} of {name} set {setting}={times}")
    networks = {name: kind for name, kind in kinds.items() if issubclass(kind, NetworkSettings)}
    if counting := [name for name in names if name not in networks]:
        raise TrainingSettingsError(
            f"family={family}: {counting[0]} counts, and only networks can be one model; leave it out"
        )
    from trainer.models.mixed import mixed_settings

    return mixed_settings(networks)


def _of_one(name: str, family: str) -> type[TrainingSettings]:
    if name not in FAMILIES:
        raise TrainingSettingsError(f"family={family}: there is none of this name; there are {', '.join(FAMILIES)}")
    module, _, kind = FAMILIES[name].partition(":")
    found: type[TrainingSettings] = getattr(import_module(module), kind)
    return found
