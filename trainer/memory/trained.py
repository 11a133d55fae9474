"""What training makes and everything behind it takes: a network, its session memory, and what they were told."""

from dataclasses import dataclass

from trainer.memory.terms import NO_MEMORY, SessionMemory
from trainer.models.gru4rec import Weights
from trainer.models.settings import TrainingSettings


@dataclass(frozen=True, kw_only=True)
class TrainedModel:
    """A model as it is evaluated and exported.

    Attributes:
        weights: on the CPU, for items in the order of ``item_ids``.
        item_ids: the vocabulary.
        settings: of the training.
        memory: the session memory beside the network.
    """

    weights: Weights
    item_ids: tuple[str, ...]
    settings: TrainingSettings
    memory: SessionMemory = NO_MEMORY
