"""A network whose queries come from a session's last items at once: an encoder, and the tables of items beside it.

Several networks are one as well, be they of one family or of several: rows and queries of the members stand side by
side, their encoders are one that hands each its part, and the scores are the sum of the members' scores.

Shapes: I items, B sessions of T clicks, E numbers of an item's input row, D of its output row and of a query.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol, Self

import numpy as np
import torch
from torch import Tensor, nn

from trainer.data.lanes import Lanes
from trainer.models.base import Encoder
from trainer.models.settings import WindowSettings

_ENCODER = "encoder."
SHORTEST = 4
"""Sessions of up to so many clicks are encoded together, those of up to twice as many, and so on."""


class OfFamily(Protocol):
    """What a network is told of the settings that it was made by."""

    @property
    def family(self) -> str: ...


@dataclass(frozen=True, eq=False)
class WindowNetwork:
    """A network of a window family (:class:`trainer.models.base.Network`). Its encoder is in evaluation mode."""

    settings: OfFamily
    window: int
    encoder: Encoder
    input: Tensor  # [I, E]; the output table itself where the family ties the two
    output: Tensor  # [I, D]
    output_bias: Tensor  # [I], zeros where the family learns none

    @property
    def family(self) -> str:
        return self.settings.family

    @property
    def items(self) -> int:
        return self.output.shape[0]

    @property
    def query_size(self) -> int:
        """D."""
        return self.output.shape[1]

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor by name, not copied; ``input`` is not there where it is the output table."""
        named = {"output": self.output, "output_bias": self.output_bias}
        if not self.encoder.tied:
            named["input"] = self.input
        return named | {_ENCODER + name: tensor for name, tensor in self.encoder.state_dict().items()}

    def with_tensors(self, named: dict[str, Tensor]) -> Self:
        """The same network with other numbers, those of the encoder copied. KeyError when one is missing."""
        output = named["output"]
        return replace(
            self,
            encoder=_encoder_with(self.encoder, {name: named[_ENCODER + name] for name in self.encoder.state_dict()}),
            input=output if self.encoder.tied else named["input"],
            output=output,
            output_bias=named["output_bias"],
        )

    def clone(self) -> Self:
        return self.with_tensors({name: tensor.clone() for name, tensor in self.tensors().items()})

    def to(self, device: torch.device) -> Self:
        """On another device; itself where it is there already."""
        if self.output.device == device:
            return self
        output = self.output.to(device)
        return replace(
            self,
            encoder=copy.deepcopy(self.encoder).to(device),
            input=output if self.encoder.tied else self.input.to(device),
            output=output,
            output_bias=self.output_bias.to(device),
        )

    def query(self, items: Tensor, length: Tensor) -> Tensor:
        """Items int64[B, T] oldest first, -1 behind a session's length int64[B] -> [B, D]. T is at most the window."""
        with torch.inference_mode():
            rows = nn.functional.embedding(items.clamp(min=0), self.input)  # [B, T, E]
            found: Tensor = self.encoder(rows, items, length)  # [B, D]
            return found

    def scores(self, query: Tensor) -> Tensor:
        """Scores of the whole catalogue: [B, D] -> [B, I]."""
        return torch.addmm(self.output_bias, query, self.output.T)

    def start(self, lanes: int) -> None:
        """Nothing is carried from click to click."""

    def advance(self, state: object, lanes: Lanes) -> None:
        """A click changes no more than the lane's history."""

    def queries(self, state: object, lanes: Lanes) -> Tensor:
        """Of the lanes' last clicks: [n, D]. Sessions of about the same length are encoded together."""
        window = self.window
        newest_first = lanes.history(window)  # [n, window]
        length = np.minimum(lanes.clicks, window)
        found = torch.empty(len(length), self.query_size)
        shorter, width = 0, min(SHORTEST, window)
        while shorter < window:
            some = np.flatnonzero((length > shorter) & (length <= width))
            if len(some):
                back = length[some, None] - 1 - np.arange(length[some].max())  # [b, T] clicks before the last one
                items = np.where(back >= 0, np.take_along_axis(newest_first[some], np.maximum(back, 0), axis=1), -1)
                found[some] = self.query(torch.from_numpy(items), torch.from_numpy(length[some]))
            shorter, width = width, min(2 * width, window)
        return found


class JoinedEncoder(Encoder):
    """Encoders side by side, each with its part of the rows; its scores count as much as its weight says."""

    def __init__(self, members: Sequence[Encoder], weights: Sequence[float]) -> None:
        nn.Module.__init__(self)  # sizes are the members'
        self.members = nn.ModuleList(members)
        self.weights = tuple(weights)
        self.input_sizes = [member.input_size for member in members]
        self.query_sizes = [member.query_size for member in members]
        self.input_size, self.query_size = sum(self.input_sizes), sum(self.query_sizes)
        self.tied = all(member.tied for member in members)
        self.bias = any(member.bias for member in members)  # type: ignore[misc]  # of a class everywhere else
        self.causal = all(member.causal for member in members)  # type: ignore[misc]

    def forward(self, rows: Tensor, items: Tensor, length: Tensor) -> Tensor:
        """Rows [B, T, sum of E] -> queries [B, sum of D]."""
        parts = torch.split(rows, self.input_sizes, dim=2)  # [B, T, E] each
        queries = [member(part, items, length) for member, part in zip(self.members, parts, strict=True)]
        # In the query, because an output row may be an input row as well.
        weighted = [q if weight == 1 else q * weight for q, weight in zip(queries, self.weights, strict=True)]
        return torch.cat(weighted, dim=1)


def initial_network(items: int, settings: WindowSettings, generator: torch.Generator) -> WindowNetwork:
    """A network before training: the encoder as it draws itself, item rows N(0, `initial_spread`), biases 0."""
    seed = int(torch.randint(2**62, (), generator=generator))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # not torch.manual_seed, which would seed GPUs as well
        encoder = settings.encoder()
    encoder.eval()

    def rows(size: int) -> Tensor:
        return torch.empty(items, size).normal_(std=settings.initial_spread, generator=generator)

    output = rows(encoder.query_size)
    table = output if encoder.tied else rows(encoder.input_size)
    return WindowNetwork(settings, settings.window, encoder, table, output, torch.zeros(items))


def initial_windows(items: int, settings: WindowSettings, generator: torch.Generator) -> WindowNetwork:
    """All members that the settings ask for, as one network: drawn one after the other."""
    return joined([initial_network(items, settings, generator) for _ in range(settings.members)])


def joined(
    members: Sequence[WindowNetwork], settings: OfFamily | None = None, weights: Sequence[float] = ()
) -> WindowNetwork:
    """N networks of one window as one whose scores are the sum of theirs, each times its weight: 1 without.

    ``settings`` are those of the whole, where the members are of several families.
    """
    if len(members) == 1:
        return members[0]
    weights = weights or [1.0] * len(members)
    encoder = JoinedEncoder([copy.deepcopy(member.encoder) for member in members], weights).eval()
    output = torch.cat([member.output for member in members], dim=1)  # [I, sum of D]
    table = output if encoder.tied else torch.cat([member.input for member in members], dim=1)  # [I, sum of E]
    biases = [member.output_bias * weight for member, weight in zip(members, weights, strict=True)]
    bias = torch.stack(biases).sum(0)  # [I]
    return WindowNetwork(settings or members[0].settings, members[0].window, encoder, table, output, bias)


def split(network: WindowNetwork) -> list[WindowNetwork]:
    """The inverse of :func:`joined`, but for settings and bias: members that learn one get equal shares of it."""
    whole = network.encoder
    if not isinstance(whole, JoinedEncoder):
        return [network]
    inputs = torch.split(network.input, whole.input_sizes, dim=1)
    outputs = torch.split(network.output, whole.query_sizes, dim=1)
    biased = [not whole.bias or getattr(member, "bias", False) for member in whole.members]
    share = network.output_bias / sum(weight for weight, has in zip(whole.weights, biased, strict=True) if has)
    found = []
    for encoder, own_input, own_output, has in zip(whole.members, inputs, outputs, biased, strict=True):
        assert isinstance(encoder, Encoder)
        output = own_output.clone()
        table = output if encoder.tied else own_input.clone()
        bias = share.clone() if has else torch.zeros_like(share)
        found.append(WindowNetwork(network.settings, network.window, copy.deepcopy(encoder), table, output, bias))
    return found


def _encoder_with(encoder: Encoder, named: dict[str, Tensor]) -> Encoder:
    """A copy of the encoder with other numbers, which can be trained whatever mode of torch's it was made in."""
    with torch.inference_mode(False), torch.no_grad():
        made = copy.deepcopy(encoder)
        for name, tensor in made.state_dict().items():
            tensor.copy_(named[name])
        return made.eval()
