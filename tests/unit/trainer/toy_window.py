"""The smallest of window families, for tests of what all of them share."""

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from trainer.models.base import Encoder, valid
from trainer.models.settings import WindowSettings

Kind = Literal["tied", "causal", "untied"]


class ToySettings(WindowSettings):
    family: Literal["toy"] = "toy"
    kind: Kind = "tied"
    hidden_size: int = 8
    batch_size: int = 4
    n_sample: int = 6
    window: int = 5
    epochs: int = 3
    dropout: float = 0.0
    learning_rate: float = 0.05

    def encoder(self) -> Encoder:
        return {"tied": Mean, "causal": RunningMean, "untied": Untied}[self.kind](self)


class Mean(Encoder):
    """The mean of the rows, and the last one, through a linear map."""

    def __init__(self, settings: WindowSettings) -> None:
        super().__init__(settings)
        self.linear = nn.Linear(2 * self.input_size, self.query_size)
        self.dropout = nn.Dropout(settings.dropout)

    def forward(self, rows: Tensor, items: Tensor, length: Tensor) -> Tensor:
        mean = (rows * valid(items)[:, :, None]).sum(1) / length[:, None]  # [B, E]
        end = rows[torch.arange(len(rows)), length - 1]  # [B, E]
        return self.linear(self.dropout(torch.cat([mean, end], dim=1)))  # type: ignore[no-any-return]


class RunningMean(Mean):
    """The same, all prefixes at once."""

    causal: ClassVar[bool] = True

    def prefixes(self, rows: Tensor, items: Tensor, length: Tensor) -> Tensor:
        mean = rows.cumsum(1) / torch.arange(1, rows.shape[1] + 1)[:, None]  # [B, T, E]
        return self.linear(self.dropout(torch.cat([mean, rows], dim=2)))  # type: ignore[no-any-return]


class Untied(Mean):
    """With input rows and queries of sizes of their own, and a bias of each item."""

    tied = False
    bias: ClassVar[bool] = True

    def __init__(self, settings: WindowSettings) -> None:
        super().__init__(settings)
        self.input_size, self.query_size = 5, 7
        self.linear = nn.Linear(10, 7)
