"""The families by name."""

from collections.abc import Mapping
from importlib import import_module
from typing import Final

from trainer.errors import TrainingSettingsError
from trainer.models.settings import TrainingSettings

FAMILIES: Final[Mapping[str, str]] = {
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
    "pop": "trainer.models.counting:PopSettings",
    "s-pop": "trainer.models.counting:SPopSettings",
    "markov-chain": "trainer.models.counting:MarkovChainSettings",
    "sequential-rules": "trainer.models.counting:SequentialRulesSettings",
    "item-knn": "trainer.models.counting:ItemKnnSettings",
    "bpr-mf": "trainer.models.bpr_mf:BprMfSettings",
    "vs-knn": "trainer.models.neighbours:VsKnnSettings",
    "stan": "trainer.models.neighbours:StanSettings",
}
"""Family -> where its settings are; a family's network is named by its settings."""


def settings_class(family: object) -> type[TrainingSettings]:
    """The class of a family's settings. Raises :class:`TrainingSettingsError`."""
    name = str(family).strip().lower().replace("_", "-")
    if name not in FAMILIES:
        raise TrainingSettingsError(f"family={family}: there is none of this name; there are {', '.join(FAMILIES)}")
    module, _, kind = FAMILIES[name].partition(":")
    found: type[TrainingSettings] = getattr(import_module(module), kind)
    return found
