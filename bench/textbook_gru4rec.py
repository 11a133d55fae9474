"""GRU4Rec as PyTorch's documentation suggests to write it: modules, autograd, sparse embeddings, an optimizer.

What our training is measured against. It is the default model (cross-entropy with logQ, shared embedding, one layer),
learns the same weights (a test holds it to that, with the same negatives), and is given what it would otherwise lose
time on: the schedule of the session-parallel batches comes from the trainer.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainer.data.batches import schedule
from trainer.data.sessions import SessionSet
from trainer.models.gru4rec import Weights
from trainer.models.settings import Gru4RecSettings
from trainer.training.gru.optimizer import EPSILON
from trainer.training.losses import logq_correction


class TextbookGru4Rec(nn.Module):
    """Scores of some items after a click of each session."""

    def __init__(self, items: int, hidden_size: int, dropout: float) -> None:
        super().__init__()
        self.items = nn.Embedding(items, hidden_size, sparse=True)  # input and output alike
        self.bias = nn.Embedding(items, 1, sparse=True)
        self.cell = nn.GRUCell(hidden_size, hidden_size)
        self.dropout = nn.Dropout(dropout)
        nn.init.zeros_(self.bias.weight)
        nn.init.zeros_(self.cell.bias_ih)
        self.cell.bias_hh = nn.Parameter(torch.zeros(3 * hidden_size), requires_grad=False)  # the papers have one bias

    def load(self, weights: Weights) -> None:
        """Take over weights of the trainer's, so that both start from the same ones."""
        (layer,) = weights.layers
        with torch.no_grad():
            self.items.weight.copy_(weights.output)
            self.bias.weight.copy_(weights.output_bias.unsqueeze(1))
            if layer.w is not None:
                self.cell.weight_ih.copy_(layer.w)
            self.cell.weight_hh.copy_(layer.u)
            self.cell.bias_ih.copy_(layer.b)

    def forward(self, clicked: Tensor, columns: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """clicked int64[n], columns int64[C], hidden [n, H] -> (scores [n, C], hidden [n, H])."""
        hidden = self.dropout(self.cell(self.items(clicked), hidden))
        return functional.linear(hidden, self.items(columns), self.bias(columns).squeeze(1)), hidden


class TextbookTraining:
    """A model, its optimizer and the data of an epoch."""

    def __init__(
        self,
        sessions: SessionSet,
        settings: Gru4RecSettings,
        start: Weights,
        negatives: Callable[[], Tensor] | None = None,
    ) -> None:
        torch.sparse.check_sparse_tensor_invariants.disable()  # type: ignore[no-untyped-call]  # or the optimizer warns
        self.model = TextbookGru4Rec(len(sessions.item_ids), settings.hidden_size, settings.dropout_hidden)
        self.model.load(start)
        # lr g / sqrt(A + epsilon): PyTorch has its own epsilon outside the root, and lets A start where one wants.
        self._optimizer = torch.optim.Adagrad(
            [p for p in self.model.parameters() if p.requires_grad],
            lr=settings.learning_rate,
            initial_accumulator_value=EPSILON,
            eps=0.0,
        )
        self._settings = settings
        self._items = torch.from_numpy(sessions.items)
        self._plan = schedule(sessions, settings.batch_size)
        support = sessions.support()
        self._logq = logq_correction(torch.from_numpy(support), settings)
        self._popularity = torch.from_numpy(support).clamp(min=1).float() ** settings.sample_alpha
        self._negatives = negatives or self._draw

    def _draw(self) -> Tensor:
        """A step's negatives, int64[n_sample]."""
        if not self._settings.n_sample:
            return torch.empty(0, dtype=torch.int64)
        return torch.multinomial(self._popularity, self._settings.n_sample, replacement=True)

    def epoch(self) -> float:
        """Train on every transition once; the mean loss."""
        position, fresh = torch.from_numpy(self._plan.position), torch.from_numpy(self._plan.fresh)
        hidden = torch.zeros(position.shape[1], self._settings.hidden_size)
        total = torch.zeros(())
        for step, n in enumerate(self._plan.alive.tolist()):
            at = position[step, :n]
            targets, samples = self._items[at + 1], self._negatives()
            hidden = hidden[:n].masked_fill(fresh[step, :n, None], 0.0)
            scores, hidden = self.model(self._items[at], torch.cat([targets, samples]), hidden)
            if self._logq is not None:
                as_target, as_sample = self._logq
                scores = scores - torch.cat([as_target[targets], as_sample[samples]])
            loss = functional.cross_entropy(scores, torch.arange(n), reduction="sum")
            self._optimizer.zero_grad()
            (loss / self._settings.batch_size).backward()  # type: ignore[no-untyped-call]
            self._optimizer.step()
            hidden = hidden.detach()
            total += loss.detach()
        return float(total) / self._plan.transitions
