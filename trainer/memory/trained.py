"""What training makes and everything behind it takes: a network, its session memory, and what they were told."""

from dataclasses import dataclass
from typing import cast

from trainer.memory.terms import NO_MEMORY, SessionMemory
from trainer.models.base import Network, SessionModel
from trainer.models.counting import RowModel
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

    weights: SessionModel
    item_ids: tuple[str, ...]
    settings: TrainingSettings
    memory: SessionMemory = NO_MEMORY

    @property
    def network(self) -> Network:
        """What another training may start from. Raises TypeError for a model that counts."""
        if isinstance(self.weights, RowModel):
            raise TypeError(f"a model of the family {self.settings.family} counts anew, and is no start for another")
        return cast(Network, self.weights)
