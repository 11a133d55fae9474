"""Do the ONNX graphs compute what the network computes? Whole sessions, step by step, real clicks."""

import numpy as np
import torch

from schemas.bundle.files import Model
from schemas.bundle.golden import close, same_ranking
from trainer.data.batches import schedule
from trainer.data.lanes import Lanes
from trainer.data.sessions import SessionSet
from trainer.errors import ParityError
from trainer.memory.terms import NO_MEMORY, SessionMemory, remember
from trainer.models import gru4rec
from trainer.models.gru4rec import Weights

SESSIONS = 200
_LANES = 50


def check_parity(weights: Weights, model: Model, sessions: SessionSet, *, memory: SessionMemory = NO_MEMORY) -> int:
    """Walk both through the newest sessions (in the model's vocabulary); returns how many steps were compared.

    Each graph is compared on its own: the hidden states along the whole session, and the ranking that follows from the
    same hidden state. Raises ParityError at the first step that differs.
    """
    walked = sessions.select(np.arange(len(sessions)) >= len(sessions) - SESSIONS)
    plan = schedule(walked, _LANES)
    starts = np.repeat(walked.offsets[:-1], walked.lengths)
    torch_hidden = torch.zeros(len(weights.layers), plan.position.shape[1], weights.hidden_size)
    onnx_hidden = model.initial_hidden(plan.position.shape[1])
    with torch.inference_mode():
        for step, n in enumerate(plan.alive.tolist()):
            position = plan.position[step, :n].astype(np.int64)
            carried = (~plan.fresh[step, :n]).astype(np.float32)
            items = walked.items[position]
            torch_hidden = gru4rec.advance(
                weights, torch.from_numpy(items), torch_hidden[:, :n] * torch.from_numpy(carried)[:, None]
            )
            onnx_hidden = model.advance(items, onnx_hidden[:, :n] * carried[:, None])
            if not close(torch_hidden.numpy(), onnx_hidden):
                raise _differs("advance.onnx", model, step)
            scores = gru4rec.scores(weights, torch_hidden[-1])  # [n, I]
            view = Lanes(walked, position, starts[position]).recent(model.recent_size)
            if memory:
                scores = remember(memory, scores, *map(torch.from_numpy, view))
            top = np.argsort(-scores.numpy(), axis=1, kind="stable")[:, : model.k]
            ranked = model.rank(torch_hidden[-1].numpy(), *view)
            if not same_ranking((top, np.take_along_axis(scores.numpy(), top, axis=1)), ranked):
                raise _differs("rank.onnx", model, step)
    return plan.transitions


def _differs(graph: str, model: Model, step: int) -> ParityError:
    return ParityError(
        f"{graph} of {model.version} computes something else than the network from step {step + 1} of the newest "
        "sessions on: this export must not be served; report it with the training settings"
    )
