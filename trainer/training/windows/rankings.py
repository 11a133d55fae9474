"""The mean loss of queries against the columns of a step, for autograd, its gradients written out where that is faster.

Shapes: N queries of D numbers, C columns, S samples.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from trainer.models.base import ItemTables, Ranking
from trainer.training.losses import Loss


def cross_entropy(tables: ItemTables, offset: Tensor | None = None, own_offset: Tensor | None = None) -> Ranking:
    """-log softmax of the column to predict, its scores raised by ``own_offset`` [C], the others' by ``offset`` [C]."""

    def ranking(queries: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
        bias = tables.bias
        if offset is not None:
            bias = offset if bias is None else bias + offset
        if bias is None:
            bias = tables.output.new_zeros(len(tables.output))
        change = None if offset is None or own_offset is None else own_offset - offset  # [C]
        mean: Tensor = _CrossEntropy.apply(queries, (targets, change, weights), tables.output, bias)
        return mean

    return ranking


def among_targets_and_samples(tables: ItemTables, samples: Tensor, loss: Loss) -> Ranking:
    """A loss of :mod:`trainer.training.losses`: each query's negatives are the others' targets and the samples [S]."""

    def ranking(queries: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
        columns = torch.cat([targets, samples])  # [N + S]
        scores = queries @ torch.nn.functional.embedding(columns, tables.output).T  # [N, N + S]
        if tables.bias is not None:
            scores = scores + tables.bias[columns]
        mean: Tensor = _OnDiagonal.apply(scores, loss, weights)
        return mean

    return ranking


class _CrossEntropy(torch.autograd.Function):
    """Holds one matrix [N, C], where autograd's own steps hold three."""

    @staticmethod
    def forward(
        ctx: Any, queries: Tensor, own: tuple[Tensor, Tensor | None, Tensor | None], rows: Tensor, bias: Tensor
    ) -> Tensor:
        scores = torch.addmm(bias, queries, rows.T)  # [N, C]
        at, change, weights = own[0][:, None], own[1], own[2]  # [N, 1], [C], [N]
        if change is not None:
            scores.scatter_add_(1, at, change[at])
        log_p = torch.log_softmax(scores, dim=1)
        of_target = log_p.gather(1, at)  # [N, 1]
        mean = -(of_target if weights is None else of_target * weights[:, None]).mean()
        gradient = log_p.exp_()  # [N, C]
        gradient.scatter_add_(1, at, gradient.new_full((), -1.0).expand_as(at))
        if weights is not None:
            gradient.mul_(weights[:, None])
        ctx.save_for_backward(queries, rows, gradient)
        return mean

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_mean: Tensor) -> tuple[Tensor | None, ...]:
        queries, rows, gradient = ctx.saved_tensors
        share = of_mean / len(queries)
        of_bias = gradient.sum(0).mul_(share) if ctx.needs_input_grad[3] else None  # [C]
        return (gradient @ rows).mul_(share), None, gradient.T @ (queries * share), of_bias


class _OnDiagonal(torch.autograd.Function):
    """A loss with its own gradient, of scores whose diagonal are the targets."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, loss: Loss, weights: Tensor | None) -> Tensor:
        total, gradient = loss(scores.clone(), weights)  # [], [N, C]
        ctx.save_for_backward(gradient)
        return total / len(scores)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_mean: Tensor) -> tuple[Tensor | None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * (of_mean / len(gradient)), None, None
