"""A network whose queries come from a session's last items at once: an encoder, and the tables of items beside it.

Several networks of one family are one as well: rows and queries of the members stand side by side, their encoders are
one that hands each its part, and the scores are the sum of the members' scores.

Shapes: I items, B sessions of T clicks, E numbers of an item's input row, D of its output row and of a query.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn

from trainer.data.lanes import Lanes
from trainer.models.base import Encoder
from trainer.models.settings import WindowSettings

SPREAD = 0.02
"""Standard deviation of item rows before training."""
_ENCODER = "encoder."
_SHORTEST = 4  # sessions of up to so many clicks are encoded together; those of up to twice as many; and so on


@dataclass(frozen=True, eq=False)
class WindowNetwork:
    """A network of a window family (:class:`trainer.models.base.Network`). Its encoder is in evaluation mode."""

    settings: WindowSettings
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
        window = self.settings.window
        newest_first = lanes.history(window)  # [n, window]
        length = np.minimum(lanes.clicks, window)
        found = torch.empty(len(length), self.query_size)
        shorter, width = 0, min(_SHORTEST, window)
        while shorter < window:
            some = np.flatnonzero((length > shorter) & (length <= width))
            if len(some):
                back = length[some, None] - 1 - np.arange(length[some].max())  # [b, T] clicks before the last one
                items = np.where(back >= 0, np.take_along_axis(newest_first[some], np.maximum(back, 0), axis=1), -1)
                found[some] = self.query(torch.from_numpy(items), torch.from_numpy(length[some]))
            shorter, width = width, min(2 * width, window)
        return found


class JoinedEncoder(Encoder):
    """Encoders of one family side by side, each with its part of the rows."""

    members: nn.ModuleList

    def __init__(self, settings: WindowSettings, members: Sequence[Encoder]) -> None:
        super().__init__(settings)
        self.members = nn.ModuleList(members)
        self.input_size = sum(member.input_size for member in members)
        self.query_size = sum(member.query_size for member in members)
        self.tied = members[0].tied  # type: ignore[misc]  # of a class everywhere else
        self.bias = members[0].bias  # type: ignore[misc]
        self.causal = members[0].causal  # type: ignore[misc]

    def forward(self, rows: Tensor, items: Tensor, length: Tensor) -> Tensor:
        """Rows [B, T, N E] -> queries [B, N D]."""
        parts = rows.chunk(len(self.members), dim=2)  # N of [B, T, E]
        return torch.cat([member(part, items, length) for member, part in zip(self.members, parts, strict=True)], dim=1)


def initial_network(items: int, settings: WindowSettings, generator: torch.Generator) -> WindowNetwork:
    """A network before training: the encoder as it draws itself, item rows N(0, :data:`SPREAD`), biases 0."""
    seed = int(torch.randint(2**62, (), generator=generator))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # not torch.manual_seed, which would seed GPUs as well
        encoder = settings.encoder()
    encoder.eval()

    def rows(size: int) -> Tensor:
        return torch.empty(items, size).normal_(std=SPREAD, generator=generator)

    output = rows(encoder.query_size)
    table = output if encoder.tied else rows(encoder.input_size)
    return WindowNetwork(settings, encoder, table, output, torch.zeros(items))


def initial_windows(items: int, settings: WindowSettings, generator: torch.Generator) -> WindowNetwork:
    """All members that the settings ask for, as one network: drawn one after the other."""
    return joined([initial_network(items, settings, generator) for _ in range(settings.members)])


def joined(members: Sequence[WindowNetwork]) -> WindowNetwork:
    """N networks of the same sizes as one whose scores are the sum of theirs."""
    if len(members) == 1:
        return members[0]
    first = members[0]
    encoder = JoinedEncoder(first.settings, [copy.deepcopy(member.encoder) for member in members]).eval()
    output = torch.cat([member.output for member in members], dim=1)  # [I, N D]
    table = output if encoder.tied else torch.cat([member.input for member in members], dim=1)  # [I, N E]
    bias = torch.stack([member.output_bias for member in members]).sum(0)  # [I]
    return WindowNetwork(first.settings, encoder, table, output, bias)


def split(network: WindowNetwork, members: int) -> list[WindowNetwork]:
    """The inverse of :func:`joined`, but for the bias: each member gets an equal share."""
    if members == 1:
        return [network]
    assert isinstance(network.encoder, JoinedEncoder)
    inputs, outputs = (table.chunk(members, dim=1) for table in (network.input, network.output))
    found = []
    for encoder, own_input, own_output in zip(network.encoder.members, inputs, outputs, strict=True):
        assert isinstance(encoder, Encoder)
        output = own_output.clone()
        table = output if encoder.tied else own_input.clone()
        found.append(
            WindowNetwork(network.settings, copy.deepcopy(encoder), table, output, network.output_bias / members)
        )
    return found


def _encoder_with(encoder: Encoder, named: dict[str, Tensor]) -> Encoder:
    """A copy of the encoder with other numbers, which can be trained whatever mode of torch's it was made in."""
    with torch.inference_mode(False), torch.no_grad():
        made = copy.deepcopy(encoder)
        for name, tensor in made.state_dict().items():
            tensor.copy_(named[name])
        return made.eval()
