"""What a family of models is: how a session's last items become a query.

Every family scores item i by a dot product, query · output_i + bias_i. What it has of its own is the encoder, from the
last items to the query; tables of items, losses, negatives, session memory, members and export are shared.

Shapes: B sessions of T clicks, D numbers of a query, E of an item's input row (often D), C columns: the items at hand.
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Final, Protocol, Self, TypeVar

import torch
from torch import Tensor, nn

from trainer.data.lanes import Lanes
from trainer.models.settings import NetworkSettings


class Ranking(Protocol):
    """The mean loss of queries [N, D] whose next items are the columns int64[N]; each times its weight [N], if any."""

    def __call__(self, queries: Tensor, targets: Tensor, weights: Tensor | None = None, /) -> Tensor: ...


class SessionModel(Protocol):
    """A trained model, whatever its family: what is evaluated, remembered and exported, on the CPU.

    ``state`` is what it carries from click to click of the sessions that are followed side by side.
    """

    @property
    def items(self) -> int:
        """I."""
        ...

    def start(self, lanes: int) -> object:
        """The state before any click."""
        ...

    def advance(self, state: object, lanes: Lanes) -> object:
        """The state after each lane's click. Lanes only ever fall away at the end; a fresh lane starts from nothing."""
        ...

    def queries(self, state: object, lanes: Lanes) -> Tensor:
        """What the next item is looked up by, after the clicks that :meth:`advance` was told: [n, D]."""
        ...

    def scores(self, query: Tensor) -> Tensor:
        """Scores of the whole catalogue: [B, D] -> [B, I]."""
        ...


N = TypeVar("N", bound="Network")


class Network(SessionModel, Protocol):
    """A model that learned by gradients, and from which another fit may start."""

    @property
    def family(self) -> str:
        """By its name in :mod:`trainer.models.registry`."""
        ...

    @property
    def output(self) -> Tensor:
        """[I, D]: an item's score is its row times the query, and its bias."""
        ...

    @property
    def output_bias(self) -> Tensor:
        """[I]."""
        ...

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor by name; the names under which a bundle's graphs hold them. Those of :data:`ITEM_TABLES` have a
        row an item.
        """
        ...

    def with_tensors(self, named: dict[str, Tensor]) -> Self:
        """The same network with other numbers. KeyError when one is missing."""
        ...

    def clone(self) -> Self: ...


ITEM_TABLES: Final = ("input", "embedding", "output", "output_bias")
"""The tensors of a network with a row an item."""
NOT_LEARNED: Final = ("input_decay",)
"""The tensors that settings set."""


@dataclass(frozen=True)
class ItemTables:
    """Rows of the items at hand: the whole catalogue's, or those that a training step looks at."""

    input: Tensor  # [C, E]
    output: Tensor  # [C, D]; the same tensor where the family ties the two
    bias: Tensor | None = None  # [C]; None where the family's items have none


@dataclass(frozen=True)
class Clicks:
    """Sessions of a training step, or their last clicks where they are longer than a window.

    items   int64[B, T]  columns, oldest first, -1 behind a session's end
    length  int64[B]     clicks of each session, 2 and more
    target  bool[B, T]   the clicks to predict from those before them: never the first
    weight  [B, T]       how much the loss of each of these counts; None for all alike
    """

    items: Tensor
    length: Tensor
    target: Tensor
    weight: Tensor | None = None

    def weights(self, chosen: Tensor) -> Tensor | None:
        """Of the clicks that a mask bool[B, T] names: [N], or None."""
        return None if self.weight is None else self.weight[chosen]


class Encoder(nn.Module):
    """The network of a family but for the item tables. It draws its parameters from torch's global random numbers."""

    tied: bool = True
    """Whether an item's input row is its output row as well."""
    bias: ClassVar[bool] = False
    """Whether an item has a number of its own, learned and added to its score."""
    causal: ClassVar[bool] = False
    """Whether :meth:`prefixes` goes through a session once, each query blind to the clicks after it."""

    def __init__(self, settings: NetworkSettings) -> None:
        super().__init__()
        self.input_size = settings.hidden_size
        """E."""
        self.query_size = settings.hidden_size
        """D."""

    @abstractmethod
    def forward(self, rows: Tensor, items: Tensor, length: Tensor) -> Tensor:
        """Input rows [B, T, E] of the items int64[B, T], oldest first -> queries [B, D].

        Behind a session's ``length`` int64[B], 1 to T, items are -1 and rows are any item's: neither may change the
        answer. ``items`` are for comparing, as in a session graph; two equal numbers are one item. T is at most the
        settings' window. What is exported is this method in evaluation mode.
        """

    def prefixes(self, rows: Tensor, items: Tensor, length: Tensor) -> Tensor:
        """The query after each click: [B, T, D], anything behind a session's length.

        Here by one call for all prefixes; a causal family goes through the sessions once.
        """
        batch, width = items.shape
        steps = torch.arange(width, device=items.device)
        session, last = (steps < length[:, None]).nonzero(as_tuple=True)  # [N]
        seen = steps <= last[:, None]  # bool[N, T]
        queries: Tensor = self(rows[session], items[session].where(seen, -1), last + 1)  # [N, D]
        whole = queries.new_zeros(batch, width, queries.shape[1])
        return whole.index_put((session, last), queries)

    def loss(self, clicks: Clicks, tables: ItemTables, ranking: Ranking) -> Tensor:
        """The mean loss over the clicks to predict, []: here of each from the clicks before it."""
        items, after = clicks.items[:, :-1], clicks.items[:, 1:]
        rows = nn.functional.embedding(items.clamp(min=0), tables.input)  # [B, T - 1, E]
        queries: Tensor = self.prefixes(rows, items, clicks.length - 1)
        wanted = clicks.target[:, 1:]
        return ranking(queries[wanted], after[wanted], clicks.weights(clicks.target))


def valid(items: Tensor) -> Tensor:
    """Where there is an item: bool[B, T]."""
    return items >= 0


def first(items: Tensor) -> Tensor:
    """Where an item stands for the first time in its session: bool[B, T]."""
    steps = torch.arange(items.shape[1], device=items.device)
    same = items[:, :, None] == items[:, None, :]  # bool[B, T, T]
    before = steps[:, None] > steps  # bool[T, T]
    return valid(items) & ~(same & before).any(2)


def last(values: Tensor, length: Tensor) -> Tensor:
    """[B, T, D] at each session's last click: [B, D]."""
    at = (length - 1)[:, None, None].expand(-1, 1, values.shape[2])
    return values.gather(1, at).squeeze(1)
