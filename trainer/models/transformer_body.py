"""The bodies of Transformers4Rec: what five architectures of language models make of a session's rows.

                    layers          positions           norm of the input   norm at the end
    gpt2            normed before   learned, added      no                  yes
    bert, electra   normed after    learned, added      yes                 no
    transformer-xl  normed after    relative, by waves  no                  no
    xlnet           normed after    relative, by waves  no                  no

The feed-forward networks are four times as wide as the rows, of gelu, or relu in Transformer-XL. ELECTRA is BERT's
body: it differs in how it learns. A Transformer-XL or XLNet keeps rows of the text before; a session has none before.

GPT-2: Radford et al. 2019. Transformer-XL: Dai et al. 2019, arXiv:1901.02860. BERT: Devlin et al. 2019,
arXiv:1810.04805. ELECTRA: Clark et al. 2020, arXiv:2003.10555. XLNet: Yang et al. 2019, arXiv:1906.08237.

Shapes: B sessions of T clicks, D units.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, gelu, relu

from trainer.models.attention import SPREAD, Attention, AttentionSettings, Layer, Layers, RelativeAttention

Architecture = Literal["gpt2", "transformer-xl", "bert", "electra", "xlnet"]


class Body(nn.Module):
    """From input rows to rows after all layers, for one click more than a window has: the hidden one behind it."""

    def __init__(self, architecture: Architecture, settings: AttentionSettings, *, causal: bool) -> None:
        super().__init__()
        size, heads, self.rate = settings.hidden_size, settings.heads, settings.dropout
        places = settings.window + 1
        relative = architecture in ("transformer-xl", "xlnet")
        self.positions = None if relative else nn.Parameter(SPREAD * torch.randn(places, size))
        self.norm_input = nn.LayerNorm(size) if architecture in ("bert", "electra") else nn.Identity()
        self.norm = nn.LayerNorm(size) if architecture == "gpt2" else nn.Identity()

        def layer() -> Layer:
            attention = (
                RelativeAttention(size, heads, self.rate, reach=places)
                if relative
                else Attention(size, heads, self.rate)
            )
            activation = relu if architecture == "transformer-xl" else gelu
            return Layer(attention, 4 * size, activation, norm_first=architecture == "gpt2")

        self.layers = Layers([layer() for _ in range(settings.layers)], causal=causal)

    def forward(self, rows: Tensor, length: Tensor) -> Tensor:
        """All positions: [B, T, D] and int64[B] -> [B, T, D]."""
        return self.norm(self.layers(self.at_positions(rows), length))  # type: ignore[no-any-return]

    def last(self, rows: Tensor, length: Tensor) -> Tensor:
        """The last position of each session: [B, T, D] and int64[B] -> [B, D]."""
        return self.norm(self.layers.last(self.at_positions(rows), length))  # type: ignore[no-any-return]

    def at_positions(self, rows: Tensor) -> Tensor:
        """What the first layer is given: [B, T, D] -> [B, T, D]."""
        x = rows if self.positions is None else rows + self.positions[: rows.shape[1]]  # [B, T, D]
        return dropout(self.norm_input(x), self.rate, self.training)
