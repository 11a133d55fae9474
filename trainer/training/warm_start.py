"""Starting a fit from an earlier model whose vocabulary was another one."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from trainer.models.gru4rec import Weights
from trainer.models.settings import TrainingSettings
from trainer.training.gru.members import initial_members


def fits(weights: Weights, settings: TrainingSettings) -> bool:
    """Whether a model of these settings can start from the weights: same sizes, depth, embedding and inputs."""
    return _learned_shapes(weights) == _learned_shapes(initial_members(1, settings, torch.Generator()))


def _learned_shapes(weights: Weights) -> dict[str, tuple[int, ...]]:
    """Shapes of what is learned, whatever the number of items: name -> sizes."""
    # An item's row leads every tensor of the catalogue; the decay is set, not learned.
    catalogue = ("output", "output_bias", "embedding")
    return {
        name: tuple(tensor.shape[1:] if name in catalogue else tensor.shape)
        for name, tensor in weights.tensors().items()
        if name != "input_decay"
    }


def warm_start(weights: Weights, old_ids: Sequence[str], new_ids: Sequence[str], settings: TrainingSettings) -> Weights:
    """Weights for the vocabulary ``new_ids``: items that stay keep their rows, new ones are drawn, others leave.

    Raises ValueError when the weights do not fit the settings (see :func:`fits`).
    """
    if not fits(weights, settings):
        raise ValueError(
            f"a model of {len(weights.layers)} layers with {weights.hidden_size} units, "
            f"and tensors {_learned_shapes(weights)}, is no start for other settings"
        )
    # A seed apart from the fit's own, whose random numbers must not repeat these.
    fresh = initial_members(len(new_ids), settings, torch.Generator().manual_seed(settings.seed ^ 0x5EED))
    place = {item: i for i, item in enumerate(old_ids)}
    kept = [(new, place[item]) for new, item in enumerate(new_ids) if item in place]
    rows = torch.tensor(kept, dtype=torch.int64).reshape(-1, 2)

    def carry(old: Tensor, new: Tensor) -> Tensor:
        return new.index_copy(0, rows[:, 0], old.index_select(0, rows[:, 1]))

    embedding = None
    if weights.embedding is not None and fresh.embedding is not None:
        embedding = carry(weights.embedding, fresh.embedding)
    return replace(
        fresh,
        embedding=embedding,
        layers=weights.layers,
        output=carry(weights.output, fresh.output),
        output_bias=carry(weights.output_bias, fresh.output_bias),
    )
