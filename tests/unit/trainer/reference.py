"""GRU4Rec as the papers write it, slow and differentiated by autograd: what the trainer's mathematics must equal."""

import torch
from torch import Tensor

from trainer.models.gru4rec import Weights
from trainer.models.settings import Gru4RecSettings


def double(weights: Weights) -> Weights:
    """The weights in float64, as leaves of autograd."""
    return Weights.of_tensors(
        {name: t.double().requires_grad_(name != "input_decay") for name, t in weights.tensors().items()}
    )


def gru(weights: Weights, layer: int, x: Tensor, h: Tensor) -> Tensor:
    """torch's own GRU cell; its second bias, which the papers do not have, is zero."""
    of = weights.layers[layer]
    w = torch.eye(x.shape[1], dtype=x.dtype) if of.w is None else of.w  # one-hot: x is the gates' input already
    cell = torch.nn.GRUCell(w.shape[1], of.u.shape[1], dtype=x.dtype)
    given = {"weight_ih": w, "weight_hh": of.u, "bias_ih": of.b, "bias_hh": torch.zeros_like(of.b)}
    result: Tensor = torch.func.functional_call(cell, given, (x, h))
    return result


def loss(
    weights: Weights,
    settings: Gru4RecSettings,
    *,
    inputs: Tensor,
    targets: Tensor,
    samples: Tensor,
    hidden: Tensor,
    support: Tensor,
    input_mask: Tensor | None = None,
    hidden_masks: list[Tensor] | None = None,
    target_weights: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(loss summed over the lanes, each times its weight, the state that they carry on [L, n, H])."""
    x = weights.input_table[inputs]
    states = []
    if weights.input_decay is not None:
        rows = x.shape[1] // weights.hidden_size
        x = x + settings.input_decay * torch.cat(list(hidden[:rows].to(x.dtype)), dim=1)
        states, hidden = list(torch.chunk(x, rows, dim=1)), hidden[rows:]
    if input_mask is not None:
        x = x * input_mask
    item = x
    for layer in range(len(weights.layers)):
        if layer > 0 and settings.deep_input:
            x = torch.cat([x, item], 1)
        x = gru(weights, layer, x, hidden[layer].to(x.dtype))
        if hidden_masks is not None:
            x = x * hidden_masks[layer]
        states.append(x)
    columns = torch.cat([targets, samples])
    share = (torch.ones(len(targets)) if target_weights is None else target_weights).to(x.dtype)
    r = x @ weights.output[columns].T + weights.output_bias[columns]
    if settings.loss == "cross-entropy":
        count = support.to(x.dtype)
        expected = torch.cat([count[targets], count[samples] ** settings.sample_alpha])
        lanes = -torch.log_softmax(r - settings.logq * torch.log(expected), 1).diagonal()
        return lanes @ share, torch.stack(states)
    match settings.activation:
        case "elu" if settings.elu:
            r = torch.nn.functional.elu(r, alpha=settings.elu)
        case "tanh":
            r = torch.tanh(r)
        case "relu":
            r = torch.relu(r)
    others = 1 - torch.eye(*r.shape, dtype=r.dtype)
    mean = others / others.sum(1, keepdim=True)
    s = torch.exp(r) * others / (torch.exp(r) * others).sum(1, keepdim=True)
    win = torch.sigmoid(r.diagonal().unsqueeze(1) - r)
    total = {
        "bpr": lambda: -(mean * torch.log(win)),
        "top1": lambda: mean * (1 - win + torch.sigmoid(r * r)),
        "top1-max": lambda: s * (1 - win + torch.sigmoid(r * r)),
        "bpr-max": lambda: (
            -torch.log((s * win).sum(1, keepdim=True)) + settings.bpreg * (s * r * r).sum(1, keepdim=True)
        ),
    }[settings.loss]()
    return share @ total.sum(1), torch.stack(states)
