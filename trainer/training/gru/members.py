"""Several networks as one: each trained from a seed of its own, and their scores added up.

What one network gets wrong by the luck of its start, others do not. No new kind of model is needed for it: with the
states side by side, the gates' matrices block by block along the diagonal and the item rows one behind the other, N
networks of H units are one of N H units whose scores are the sum of theirs. That one is exported, served and
remembered like any other.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from trainer.models.gru4rec import GruLayer, Weights, initial_weights
from trainer.models.settings import Gru4RecSettings

_GATES = 3


def initial_members(items: int, settings: Gru4RecSettings, generator: torch.Generator) -> Weights:
    """What :func:`trainer.training.fit.fit` would begin with, as one network: drawn one member after the other."""
    return joined([initial_weights(items, settings, generator) for _ in range(settings.members)])


def joined(members: Sequence[Weights]) -> Weights:
    """N networks of the same sizes as one whose scores are the sum of theirs."""
    if len(members) == 1:
        return members[0]
    first = members[0]
    layers = []
    for depth, layer in enumerate(first.layers):
        parts = [member.layers[depth] for member in members]
        w = None if layer.w is None else _diagonal([part.w for part in parts if part.w is not None], first.hidden_size)
        u = _diagonal([part.u for part in parts], first.hidden_size)  # [3 N H, N H]
        layers.append(GruLayer(w, u, _by_gate([part.b for part in parts])))
    embedding = None
    if first.embedding is not None:
        tables = [member.embedding for member in members if member.embedding is not None]
        embedding = _by_gate([t.T for t in tables]).T.contiguous() if first.one_hot else torch.cat(tables, dim=1)
    return Weights(
        embedding,
        tuple(layers),
        torch.cat([member.output for member in members], dim=1),  # [I, N H]
        torch.stack([member.output_bias for member in members]).sum(0),
        first.input_decay,
    )


def split(weights: Weights, members: int) -> list[Weights]:
    """The inverse of :func:`joined`, but for the bias: each member gets an equal share."""
    if members == 1:
        return [weights]
    size = weights.hidden_size // members
    return [_member(weights, slice(m * size, (m + 1) * size), members) for m in range(members)]


def _member(weights: Weights, own: slice, members: int) -> Weights:
    whole, size = weights.hidden_size, own.stop - own.start

    def rows(tensor: Tensor) -> Tensor:
        """[3 N H, ..] -> [3 H, ..]"""
        return tensor.view(_GATES, whole, *tensor.shape[1:])[:, own].reshape(_GATES * size, *tensor.shape[1:])

    def columns(tensor: Tensor) -> Tensor:
        """[.., K N H] -> [.., K H]"""
        return tensor.view(len(tensor), -1, whole)[:, :, own].reshape(len(tensor), -1)

    layers = tuple(
        GruLayer(None if layer.w is None else columns(rows(layer.w)), columns(rows(layer.u)), rows(layer.b))
        for layer in weights.layers
    )
    embedding = None if weights.embedding is None else columns(weights.embedding)
    return Weights(
        embedding, layers, weights.output[:, own].clone(), weights.output_bias / members, weights.input_decay
    )


def _by_gate(parts: Sequence[Tensor]) -> Tensor:
    """[3 H, ..] of each -> [3 N H, ..]: a gate's rows of all members together."""
    return torch.cat([part.view(_GATES, -1, *part.shape[1:]) for part in parts], dim=1).flatten(0, 1)


def _diagonal(parts: Sequence[Tensor], size: int) -> Tensor:
    """[3 H, K H] of each -> [3 N H, K N H]: a member's gates see its own inputs only, each of the K a diagonal."""
    count, inputs = len(parts), parts[0].shape[1] // size
    whole = parts[0].new_zeros(_GATES, count, size, inputs, count, size)
    for m, part in enumerate(parts):
        whole[:, m, :, :, m] = part.view(_GATES, size, inputs, size)
    return whole.view(_GATES * count * size, inputs * count * size)
