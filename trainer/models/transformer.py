"""Transformers4Rec: language models read sessions (de Souza Pereira Moreira et al. 2021, RecSys, doi
10.1145/3460231.3474255). Four ways to learn, of five architectures (:mod:`trainer.models.transformer_body`).

With m_t the item row of click t, m_? a row learned for a hidden item and O the tied table, score of item i =
query · O_i:

    clm   causal: query = body(m_1 .. m_T)_T. Each click is to be found from those before it.
    mlm   masked: query = body(m_1 .. m_T, m_?)_(T+1). In training some clicks are hidden, and each is to be found from
          those that are not, before and behind it.
    plm   permuted (XLNet): the hidden clicks have an order that is drawn. Two streams: content h and query g,

              h_t <- layer(asks h_t, sees h_s of s not hidden, and if t is hidden, of hidden ones up to it in the order)
              g_t <- layer(asks g_t, sees h_s of s not hidden, and of hidden ones before t in the order),  g_t = m_?

          A hidden click is to be found from its g. query = g_(T+1), which sees all clicks.
    rtd   replaced (ELECTRA): as mlm; and in the place of each hidden item one is drawn from the softmax of its scores.
          With z = body(session so changed), of each click σ(w · z_t + c) is the probability that it was replaced:
          loss = mlm + λ times the mean cross-entropy of that. Head (w, c) and draws are of the training alone.

What differs from the paper: rows are of items alone, without features beside them; generator and discriminator of rtd
are one body; hidden clicks of plm are drawn one by one, not in spans; never the first click of a session is hidden;
a share of the sessions (``last_rate``) ends at a hidden click, as in BERT4Rec's file; GPT-2's gelu is exact. A pair
that is not in the paper's table 2 is refused.

Shapes: B sessions of T clicks, D units, N hidden items, C columns.
"""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Final, Literal, Self

import torch
from pydantic import BeforeValidator, Field, model_validator
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, dropout, embedding

from trainer.models.attention import SPREAD, AttentionSettings, Sight, sight, sight_from
from trainer.models.base import Clicks, Encoder, ItemTables, Ranking, valid
from trainer.models.bert4rec import HidingSettings, drawn_to_hide, hidden_behind
from trainer.models.settings import canonical
from trainer.models.transformer_body import Architecture, Body

Objective = Literal["clm", "mlm", "plm", "rtd"]


class Causal(Encoder):
    """clm."""

    causal: ClassVar[bool] = True

    def __init__(self, settings: "TransformerSettings") -> None:
        super().__init__(settings)
        self.body = Body(settings.architecture, settings, causal=True)

    def forward(self, rows: Tensor, items: Tensor, length: Tensor) -> Tensor:
        return self.body.last(rows, length)  # [B, D]

    def prefixes(self, rows: Tensor, items: Tensor, length: Tensor) -> Tensor:
        return self.body(rows, length)  # type: ignore[no-any-return]  # [B, T, D]


class Masked(Encoder):
    """mlm."""

    def __init__(self, settings: "TransformerSettings") -> None:
        super().__init__(settings)
        self.mask_rate, self.last_rate = settings.mask_rate, settings.last_rate
        self.mask = nn.Parameter(SPREAD * torch.randn(settings.hidden_size))
        self.body = Body(settings.architecture, settings, causal=False)

    def forward(self, rows: Tensor, items: Tensor, length: Tensor) -> Tensor:
        return self.body.last(hidden_behind(rows, length, self.mask), length + 1)  # [B, D]

    def loss(self, clicks: Clicks, tables: ItemTables, ranking: Ranking) -> Tensor:
        clicks, hidden = drawn_to_hide(clicks, self.mask_rate, self.last_rate)  # bool[B, T]
        rows = embedding(clicks.items.clamp(min=0), tables.input)  # [B, T, D]
        return ranking(self.found(rows, hidden, clicks), clicks.items[hidden], clicks.weights(hidden))

    def found(self, rows: Tensor, hidden: Tensor, clicks: Clicks) -> Tensor:
        """The queries of the hidden clicks, bool[B, T]: [N, D]."""
        x = self.body(rows.where(~hidden[:, :, None], self.mask), clicks.length)  # [B, T, D]
        return x[hidden]  # type: ignore[no-any-return]


class Permuted(Masked):
    """plm."""

    def forward(self, rows: Tensor, items: Tensor, length: Tensor) -> Tensor:
        width = rows.shape[1]
        asking = self.mask.expand(rows.shape[0], 1, -1)  # [B, 1, D]
        g = self.streams(rows, asking, sight(length, width, causal=False), sight_from(length, length, width))
        return g.squeeze(1)  # [B, D]

    def found(self, rows: Tensor, hidden: Tensor, clicks: Clicks) -> Tensor:
        batch, width = hidden.shape
        steps = torch.arange(width, device=rows.device)  # [T]
        distance = (steps[:, None] - steps)[None]  # [1, T, T]
        # Places in the order: all that is not hidden is first, and seen by all.
        order = torch.rand(batch, width, device=rows.device).where(hidden, -1.0)  # [B, T]
        before, up_to = order[:, None] < order[:, :, None], order[:, None] <= order[:, :, None]  # bool[B, T, T]
        real = valid(clicks.items)[:, None]  # bool[B, 1, T]
        itself = distance == 0  # bool[1, T, T]; what is not hidden asks nothing, and a softmax of nothing is no number
        content = Sight(((up_to & real) | itself)[:, None], distance)
        query = Sight(torch.where(hidden[:, :, None], before & real, itself)[:, None], distance)
        return self.streams(rows, self.mask.expand_as(rows), content, query)[hidden]  # [N, D]

    def streams(self, rows: Tensor, asking: Tensor, content: Sight, query: Sight) -> Tensor:
        """Rows [B, T, D], and those that ask [B, Q, D] -> g after all layers, [B, Q, D]."""
        h = self.body.at_positions(rows)  # [B, T, D]
        g = dropout(asking, self.body.rate, self.training)  # [B, Q, D]
        layers = list(self.body.layers.layers)
        for layer in layers[:-1]:
            g, h = layer(g, h, query), layer(h, h, content)
        return layers[-1](g, h, query)  # type: ignore[no-any-return]


class Replaced(Masked):
    """rtd."""

    def __init__(self, settings: "TransformerSettings") -> None:
        super().__init__(settings)
        self.weight = settings.detection
        self.detect = nn.Linear(settings.hidden_size, 1)

    def loss(self, clicks: Clicks, tables: ItemTables, ranking: Ranking) -> Tensor:
        clicks, hidden = drawn_to_hide(clicks, self.mask_rate, self.last_rate)  # bool[B, T]
        items, real = clicks.items, valid(clicks.items)  # [B, T]
        rows = embedding(items.clamp(min=0), tables.input)  # [B, T, D]
        queries = self.found(rows, hidden, clicks)  # [N, D]
        with torch.no_grad():
            drawn = (queries @ tables.output.T).softmax(1).multinomial(1)  # int64[N, 1]
        changed = items.masked_scatter(hidden, drawn)  # int64[B, T]
        z = self.body(embedding(changed.clamp(min=0), tables.input), clicks.length)  # [B, T, D]
        logits = self.detect(z).squeeze(2)[real]  # one a click
        detection = binary_cross_entropy_with_logits(logits, (changed != items)[real].to(logits.dtype))
        return ranking(queries, items[hidden], clicks.weights(hidden)) + self.weight * detection


PAIRS: Final[Mapping[str, tuple[Objective, ...]]] = {
    "gpt2": ("clm",),
    "transformer-xl": ("clm",),
    "bert": ("mlm",),
    "electra": ("rtd",),
    "xlnet": ("mlm", "clm", "plm", "rtd"),
}
"""The pairs of the paper's table 2; the first of an architecture is its usual one."""
_WHY: Final[Mapping[str, str]] = {
    "gpt2": "GPT-2 sees the clicks before alone",
    "transformer-xl": "Transformer-XL sees the clicks before alone",
    "bert": "BERT finds hidden items: its rtd is architecture=electra, and for clm or plm take xlnet",
    "electra": "ELECTRA is BERT that finds replaced items: its mlm is architecture=bert",
}
_ENCODERS: Final[dict[Objective, type[Causal] | type[Masked]]] = {
    "clm": Causal,
    "mlm": Masked,
    "plm": Permuted,
    "rtd": Replaced,
}


class TransformerSettings(HidingSettings):
    """Settings of one Transformers4Rec fit."""

    family: Literal["transformer"] = "transformer"
    architecture: Annotated[Architecture, BeforeValidator(canonical)] = Field(
        "xlnet", description="the language model's architecture"
    )
    objective: Annotated[Objective, BeforeValidator(canonical)] = Field(
        "mlm",
        description="what is learned: clm (next item), mlm (hidden items), plm (hidden items in an order that is "
        "drawn), rtd (hidden items, and which were replaced); by default the architecture's usual one",
    )
    detection: float = Field(1.0, gt=0, le=100, description="weight of telling replaced items from others (rtd)")

    @model_validator(mode="before")
    @classmethod
    def _usual_objective(cls, values: object) -> object:
        if not isinstance(values, dict):
            return values
        usual = PAIRS.get(str(canonical(values.get("architecture", "xlnet"))), ())
        return {"objective": usual[0], **values} if usual else values

    @model_validator(mode="after")
    def _pair_makes_sense(self) -> Self:
        known = PAIRS[self.architecture]
        if self.objective not in known:
            raise ValueError(
                f"objective={self.objective} does not go with architecture={self.architecture} "
                f"({_WHY[self.architecture]}): set objective={' or '.join(known)}, or leave it out"
            )
        return self

    @property
    def searched(self) -> tuple[str, ...]:
        return AttentionSettings.search if self.objective == "clm" else self.search  # which hides nothing

    def encoder(self) -> Encoder:
        return _ENCODERS[self.objective](self)
