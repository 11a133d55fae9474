"""Starting a fit from an earlier model, whose vocabulary was another one and whose family may have been."""

from collections.abc import Sequence

import torch
from torch import Tensor

from trainer.models.base import ITEM_TABLES, NOT_LEARNED, Network
from trainer.models.settings import LearnedSettings
from trainer.training.networks import initial_network


def fits(network: Network, settings: LearnedSettings) -> bool:
    """Whether a model of these settings can start from the network: from all of it, or, where it is of another family,
    from its items' output rows.
    """
    old, new = _learned_shapes(network), _learned_shapes(initial_network(1, settings, torch.Generator()))
    return old == new if is_whole(network, settings) else old["output"] == new["output"]


def is_whole(network: Network, settings: LearnedSettings) -> bool:
    """Whether such a start is the network itself, not its items' rows alone: whether both are of one family."""
    return network.family == settings.family


def _learned_shapes(network: Network) -> dict[str, tuple[int, ...]]:
    """Shapes of what is learned, whatever the number of items: name -> sizes."""
    return {
        name: tuple(tensor.shape[1:] if name in ITEM_TABLES else tensor.shape)
        for name, tensor in network.tensors().items()
        if name not in NOT_LEARNED
    }


def warm_start(network: Network, old_ids: Sequence[str], new_ids: Sequence[str], settings: LearnedSettings) -> Network:
    """A network for the vocabulary ``new_ids``: items that stay keep their rows, new ones are drawn, others leave.

    Of another family's network only the items' rows are taken. Raises ValueError when the network does not fit the
    settings (see :func:`fits`).
    """
    old = network.tensors()
    if not fits(network, settings):
        raise ValueError(f"a model with the tensors {_learned_shapes(network)} is no start for other settings")
    # A seed apart from the fit's own, whose random numbers must not repeat these.
    fresh = initial_network(len(new_ids), settings, torch.Generator().manual_seed(settings.seed ^ 0x5EED))
    place = {item: i for i, item in enumerate(old_ids)}
    kept = [(new, place[item]) for new, item in enumerate(new_ids) if item in place]
    rows = torch.tensor(kept, dtype=torch.int64).reshape(-1, 2)
    whole = is_whole(network, settings)

    def begun(name: str, new: Tensor) -> Tensor:
        # Not another family's bias: where a family learns none it would stay as it is.
        if name in NOT_LEARNED or not (whole or name == "output"):
            return new
        if name in ITEM_TABLES:
            return new.index_copy(0, rows[:, 0], old[name].index_select(0, rows[:, 1]))
        return old[name]

    return fresh.with_tensors({name: begun(name, new) for name, new in fresh.tensors().items()})
