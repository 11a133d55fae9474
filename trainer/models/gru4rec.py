"""The network of GRU4Rec (Hidasi et al. 2016, arXiv:1511.06939), its gradient written out.

One click of B sessions at a time. With x the item's input row, h the hidden state before the click, and the gates r
(reset), z (update) and n (candidate):

    r = σ(W_r x + b_r + U_r h)      z = σ(W_z x + b_z + U_z h)
    n = tanh(W_n x + b_n + r ∘ U_n h)
    h' = (1 - z) ∘ n + z ∘ h        score of item i = o_i · h' + c_i

With several layers, the h' of one is the x of the next; with deep input, x and the item's input row side by side.
One-hot items need no multiplication: the item's row of the input weights, [3H], is W x itself.

With input decay d the input row is the session's sum s' = d s + x in place of x. s is carried in front of the layers'
hidden states, as one more row of H numbers, or three where the input is one-hot: what serves a session needs to know
nothing of it. The gradient stops at s as it does at h. Without layers s alone is the state, and takes the place of h'.

The gradient stops at h (1-step back-propagation through time), which is what makes writing it out so short. I items,
H hidden units, L layers, B sessions. Here float32 everywhere.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.data.lanes import Lanes
from trainer.models.settings import Gru4RecSettings


@dataclass(frozen=True)
class GruLayer:
    """Gates stacked in the order r, z, n."""

    w: Tensor | None  # [3H, D] for the input; None where the input is [B, 3H] and added as it is (one-hot)
    u: Tensor  # [3H, H] for the hidden state
    b: Tensor  # [3H]


@dataclass(frozen=True)
class Weights:
    """All weights of a model. ``embedding`` is None in shared mode, where ``output`` is the input table as well."""

    embedding: Tensor | None  # [I, H]; one-hot [I, 3H]: the first layer's input weights, an item a row
    layers: tuple[GruLayer, ...]
    output: Tensor  # [I, H]
    output_bias: Tensor  # [I]
    input_decay: Tensor | None = None  # [1], not learned; None for inputs of the last item alone

    @property
    def family(self) -> str:
        return "gru4rec"

    @property
    def input_table(self) -> Tensor:
        return self.output if self.embedding is None else self.embedding

    @property
    def one_hot(self) -> bool:
        return bool(self.layers) and self.layers[0].w is None

    @property
    def sum_rows(self) -> int:
        """Rows of the carried state [S + L, B, H] that the decayed sum takes; 0 without one."""
        return 0 if self.input_decay is None else self.input_table.shape[1] // self.hidden_size

    @property
    def state_rows(self) -> int:
        """S + L."""
        return self.sum_rows + len(self.layers)

    @property
    def items(self) -> int:
        return self.output.shape[0]

    @property
    def hidden_size(self) -> int:
        return self.output.shape[1]

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor by name; the names under which a bundle's graphs hold them."""
        named = {"output": self.output, "output_bias": self.output_bias}
        if self.embedding is not None:
            named["embedding"] = self.embedding
        if self.input_decay is not None:
            named["input_decay"] = self.input_decay
        for i, layer in enumerate(self.layers):
            named |= {
                f"layer{i}.{part}": t for part, t in (("w", layer.w), ("u", layer.u), ("b", layer.b)) if t is not None
            }
        return named

    @classmethod
    def of_tensors(cls, named: dict[str, Tensor]) -> "Weights":
        """The inverse of :meth:`tensors`. KeyError when one is missing."""
        depth = sum(name.endswith(".u") for name in named)
        embedding, output = named.get("embedding"), named["output"]
        one_hot = embedding is not None and embedding.shape[1] != output.shape[1]
        layers = tuple(
            GruLayer(None if one_hot and i == 0 else named[f"layer{i}.w"], named[f"layer{i}.u"], named[f"layer{i}.b"])
            for i in range(depth)
        )
        return cls(embedding, layers, output, named["output_bias"], named.get("input_decay"))

    def with_tensors(self, named: dict[str, Tensor]) -> "Weights":
        """As :meth:`of_tensors`: their names and shapes tell all there is."""
        return Weights.of_tensors(named)

    def clone(self) -> "Weights":
        return Weights.of_tensors({name: tensor.clone() for name, tensor in self.tensors().items()})

    def start(self, lanes: int) -> Tensor:
        """The state of sessions before their first click: [L, lanes, H]."""
        return torch.zeros(len(self.layers), lanes, self.hidden_size)

    def advance(self, state: object, lanes: Lanes) -> Tensor:
        """Apply each lane's click to its state [S + L, n or more, H]; a fresh lane's begins at zero: [S + L, n, H]."""
        assert isinstance(state, Tensor)
        carried = torch.from_numpy(~lanes.fresh).float()
        return advance(self, torch.from_numpy(lanes.items), state[:, : len(carried)] * carried[:, None])

    def queries(self, state: object, lanes: Lanes) -> Tensor:
        """The top layer's hidden state: [n, H]."""
        assert isinstance(state, Tensor)
        return state[-1]

    def scores(self, query: Tensor) -> Tensor:
        """Scores of the whole catalogue: [B, H] -> [B, I]."""
        return torch.addmm(self.output_bias, query, self.output.T)


def initial_weights(items: int, settings: Gru4RecSettings, generator: torch.Generator) -> Weights:
    """U(±sqrt(6 / (rows + columns))), for the gates' matrices a gate at a time; biases 0."""
    h = settings.hidden_size

    def uniform(rows: int, columns: int) -> Tensor:
        bound = math.sqrt(6.0 / (rows + columns))
        return torch.empty(rows, columns).uniform_(-bound, bound, generator=generator)

    output = uniform(items, h)
    embedding = None
    if settings.embedding == "separate":
        embedding = uniform(items, h)
    elif settings.embedding == "one-hot":
        embedding = torch.cat([uniform(items, h) for _ in range(3)], dim=1)
    layers = []
    for i in range(settings.layers):
        width = 2 * h if i > 0 and settings.deep_input else h
        w = None if i == 0 and settings.embedding == "one-hot" else torch.cat([uniform(h, width) for _ in range(3)])
        layers.append(GruLayer(w, torch.cat([uniform(h, h) for _ in range(3)]), torch.zeros(3 * h)))
    # Without layers the sum is the state: of a decay of 0, the last item's row.
    decay = torch.tensor([settings.input_decay]) if settings.input_decay or not settings.layers else None
    return Weights(embedding, tuple(layers), output, torch.zeros(items), decay)


@dataclass(frozen=True)
class CellTrace:
    """What the backward pass of one GRU step needs of its forward pass; all [B, H] but x [B, D]."""

    x: Tensor
    h: Tensor
    r: Tensor
    z: Tensor
    n: Tensor
    un: Tensor  # U_n h


def cell(layer: GruLayer, x: Tensor, h: Tensor) -> tuple[Tensor, CellTrace]:
    """One GRU step: x [B, D], h [B, H] -> h' [B, H], and what :func:`cell_gradient` needs."""
    size = h.shape[1]
    from_x = x + layer.b if layer.w is None else torch.addmm(layer.b, x, layer.w.T)  # [B, 3H]
    from_h = h @ layer.u.T  # [B, 3H]
    rz = torch.sigmoid(from_x[:, : 2 * size] + from_h[:, : 2 * size])  # [B, 2H]
    r, z = rz[:, :size], rz[:, size:]
    un = from_h[:, 2 * size :]
    n = torch.tanh(torch.addcmul(from_x[:, 2 * size :], r, un))  # [B, H]
    return torch.lerp(n, h, z), CellTrace(x, h, r, z, n, un)


def cell_gradient(layer: GruLayer, trace: CellTrace, d_out: Tensor) -> tuple[Tensor, GruLayer]:
    """d loss/dh' [B, H] -> (d loss/dx [B, D], d loss/d layer). Nothing flows on to h."""
    x, h, r, z, n, un = trace.x, trace.h, trace.r, trace.z, trace.n, trace.un
    d_n = d_out * (1 - z) * (1 - n * n)  # before the tanh
    d_z = d_out * (h - n) * z * (1 - z)  # before the σ
    d_r = d_n * un * r * (1 - r)
    d_from_x = torch.cat([d_r, d_z, d_n], dim=1)  # [B, 3H]
    d_from_h = torch.cat([d_r, d_z, d_n * r], dim=1)  # [B, 3H]
    d_u, d_b = d_from_h.T @ h, d_from_x.sum(0)
    if layer.w is None:
        return d_from_x, GruLayer(None, d_u, d_b)
    return d_from_x @ layer.w, GruLayer(d_from_x.T @ x, d_u, d_b)


def layer_input(layer: GruLayer, below: Tensor, item: Tensor) -> Tensor:
    """What a layer sees of the state below [B, H] (the item's row itself below the first) and that row: [B, D]."""
    if layer.w is None or layer.w.shape[1] == below.shape[1]:
        return below
    return torch.cat([below, item], dim=1)


def item_input(weights: Weights, items: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """Items int64[B], state [S + L, B, H] -> (input [B, D], the state's new rows of the sum [S, B, H])."""
    item = weights.input_table.index_select(0, items)  # [B, D]
    rows = weights.sum_rows
    if weights.input_decay is None:
        return item, hidden[:0]
    before = hidden[:rows].transpose(0, 1).reshape(item.shape)  # [B, D]
    item = torch.addcmul(item, before, weights.input_decay)
    return item, item.view(len(items), rows, weights.hidden_size).transpose(0, 1)


def advance(weights: Weights, items: Tensor, hidden: Tensor) -> Tensor:
    """Apply a click to each session, without dropout: items int64[B], hidden [S + L, B, H] -> the same shape.

    S is :attr:`Weights.sum_rows`. A hidden of [L, B, H], all zero, will do for sessions that begin.
    """
    if weights.sum_rows and len(hidden) == len(weights.layers):
        hidden = torch.cat([hidden.new_zeros(weights.sum_rows, *hidden.shape[1:]), hidden])
    item, of_sum = item_input(weights, items, hidden)
    x, states = item, list(of_sum)
    for layer, h in zip(weights.layers, hidden[weights.sum_rows :], strict=True):
        x, _ = cell(layer, layer_input(layer, x, item), h)
        states.append(x)
    return torch.stack(states)
