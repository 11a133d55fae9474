"""Do the ONNX graphs compute what the network computes? Whole sessions, step by step, real clicks."""

import numpy as np
import torch
from numpy.typing import NDArray

from schemas.bundle.files import Model
from schemas.bundle.golden import close, same_ranking
from schemas.bundle.manifest import ADVANCE, ENCODE, RANK
from trainer.data.lanes import Lanes, follow
from trainer.data.sessions import SessionSet
from trainer.errors import ParityError
from trainer.memory.terms import NO_MEMORY, SessionMemory, remember
from trainer.models.base import SessionModel

SESSIONS = 200


def check_parity(
    network: SessionModel, model: Model, sessions: SessionSet, *, memory: SessionMemory = NO_MEMORY
) -> int:
    """Walk both through the newest sessions (in the model's vocabulary); returns how many steps were compared.

    Each graph is compared on its own: the queries along the whole session, and the ranking that follows from the same
    query. Raises ParityError at the first step that differs.
    """
    walked = sessions.select(np.arange(len(sessions)) >= len(sessions) - SESSIONS)
    state: object = None
    found, compared = Served(model), 0
    with torch.inference_mode():
        for step, lanes in enumerate(follow(walked)):
            state = network.advance(state if step else network.start(len(lanes.position)), lanes)
            query = network.queries(state, lanes)
            if model.encoder != "none" and not close(query.numpy(), found.queries(lanes)):
                raise _differs(found.graph, model, step)
            z = network.scores(query)  # [n, I]
            view = lanes.recent(model.recent_size)
            if memory:
                z = remember(memory, z, *map(torch.from_numpy, view))
            top = np.argsort(-z.numpy(), axis=1, kind="stable")[:, : model.k]
            ranked = model.rank(None if model.encoder == "none" else query.numpy(), *view)
            if not same_ranking((top, np.take_along_axis(z.numpy(), top, axis=1)), ranked):
                raise _differs(RANK, model, step)
            compared += len(lanes.position)
    return compared


class Served:
    """The queries of a bundle's first graph along sessions in its vocabulary, neither rounded nor checked."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._hidden: NDArray[np.float32] | None = None
        self.graph = ADVANCE if model.encoder == "recurrent" else ENCODE

    def queries(self, lanes: Lanes) -> NDArray[np.float32]:
        """After each lane's next click: f32[n, D]."""
        model, n = self._model, len(lanes.position)
        if model.encoder == "window":
            history = lanes.history(model.window)[:, ::-1]
            order = np.argsort(history < 0, axis=1, kind="stable")
            return model.encode_all(np.take_along_axis(history, order, axis=1), (history >= 0).sum(axis=1))
        if self._hidden is None:
            self._hidden = model.initial_hidden(n)
        self._hidden, query = model.advance(lanes.items, self._hidden[:, :n] * ~lanes.fresh[:, None])
        return query


def _differs(graph: str, model: Model, step: int) -> ParityError:
    return ParityError(
        f"{graph} of {model.version} computes something else than the network from step {step + 1} of the newest "
        "sessions on: this export must not be served; report it with the training settings"
    )
