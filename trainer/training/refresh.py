"""A trained model brought up to date without training: its counts made anew, and a row for every item that it lacks.

An item that the model was not trained on gets the mean of the rows of the items that it shares sessions with, each as
often as they share one, and its bias likewise. Such rows stand behind all others: no row of an item that was trained
changes, so sessions go on from the hidden states that they have.
"""

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
from scipy import sparse

from schemas.bundle.files import BundleFiles
from schemas.bundle.manifest import MANIFEST
from schemas.errors import BundleError
from trainer.data.sessions import SessionSet, encode, vocabulary_of
from trainer.data.shared_sessions import shared_sessions
from trainer.export.bundle import read_trained
from trainer.memory.terms import RECENT
from trainer.memory.trained import TrainedModel
from trainer.models.base import ITEM_TABLES, Network
from trainer.training.train import tables_of


def refreshed(model: TrainedModel, sessions: SessionSet, *, min_support: int = 1) -> tuple[TrainedModel, SessionSet]:
    """The model with the items and the counts of these sessions, and the sessions in its vocabulary.

    An item gets a row if it has ``min_support`` clicks and shares a session with one that was trained. Raises
    :class:`TooFewSessionsError` where the sessions hold no item with that many clicks.
    """
    known = set(model.item_ids)
    new = [item for item in vocabulary_of(sessions, min_support=min_support) if item not in known]
    found = encode(sessions, (*model.item_ids, *new))
    shares = _shares(found, len(known))  # [new, known]
    placed = np.diff(shares.indptr) > 0  # bool[new]
    item_ids = (*model.item_ids, *(item for item, has in zip(new, placed.tolist(), strict=True) if has))
    if not placed.all():
        found = encode(found, item_ids)
    memory = model.memory.with_tables(tables_of(found, model.settings)) if model.memory else model.memory
    network = _with_rows(model.network, shares[placed])
    return replace(model, weights=network, item_ids=item_ids, memory=memory), found


def as_trained(files: BundleFiles) -> TrainedModel:
    """The model of a bundle of ours to refresh, without what a refresh has added. Raises :class:`BundleError`."""
    model, manifest = read_trained(files), files.manifest
    if manifest.states_of is None:
        return model
    try:
        items = int(manifest.training["refreshed"]["trained_items"])
    except (KeyError, TypeError, ValueError) as error:
        raise BundleError(
            f"{MANIFEST}: of a refreshed model, and does not tell what was trained ({error!r})"
        ) from error
    tensors = model.network.tensors()
    first = {name: tensor[:items] if name in ITEM_TABLES else tensor for name, tensor in tensors.items()}
    return replace(model, weights=model.network.with_tensors(first), item_ids=model.item_ids[:items])


def _shares(sessions: SessionSet, known: int) -> "sparse.csr_array":
    """Which part of the sessions that a new item shares with known ones it shares with each: f32[new, known].

    A row without any holds nothing. New items are those from ``known`` on.
    """
    starts = sessions.offsets[:-1]
    has_new = np.maximum.reduceat(sessions.items, starts) >= known if len(sessions) else np.zeros(0, np.bool_)
    rows: list[npt.NDArray[np.int64]] = []
    columns: list[npt.NDArray[np.int64]] = []
    counts: list[npt.NDArray[np.float64]] = []
    for item, other, count in shared_sessions(sessions.select(has_new).newest(RECENT)):
        wanted = (item >= known) & (other < known)
        rows.append(item[wanted] - known)
        columns.append(other[wanted])
        counts.append(count[wanted])
    shape = (len(sessions.item_ids) - known, known)
    at = (np.concatenate(rows), np.concatenate(columns)) if rows else (np.zeros(0, np.int64),) * 2
    found = sparse.csr_array((np.concatenate(counts) if counts else np.zeros(0), at), shape=shape)
    total = np.maximum(found.sum(axis=1), 1.0)
    return sparse.csr_array(sparse.diags_array(1 / total) @ found).astype(np.float32)


def _with_rows(network: Network, shares: "sparse.csr_array") -> Network:
    """The network with a row more in each table of items for each row of ``shares`` [new, I]."""

    def longer(table: torch.Tensor) -> torch.Tensor:
        return torch.cat([table, torch.from_numpy(np.asarray(shares @ table.numpy(), dtype=np.float32))])

    tensors = network.tensors()
    return network.with_tensors({name: longer(t) if name in ITEM_TABLES else t for name, t in tensors.items()})
