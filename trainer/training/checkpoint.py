"""A training run on disk, so that a kill costs the epoch it falls into and nothing else.

One safetensors file: the arrays, and a JSON text for the rest in its metadata. It is replaced atomically, so that at
any moment the file is a whole checkpoint or not there, and a digest of the arrays tells a damaged one. It names the run
it belongs to by a digest of everything that decides the run's bits; ``epochs`` is not part of it where the first epochs
do not depend on their number, so that a run can be made longer.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as as_safetensors
from torch import Tensor

from schemas import durable
from trainer.data.sessions import SessionSet
from trainer.data.targets import target_weights
from trainer.errors import TrainerError
from trainer.models.base import Network
from trainer.models.settings import NetworkSettings
from trainer.training.early_stopping import EarlyStopping, Epoch
from trainer.training.engine import EngineName, engine_identity
from trainer.training.sampling import SamplerState

Arrays = dict[str, npt.NDArray[Any]]
_FORMAT = 4


class CheckpointError(TrainerError):
    """A checkpoint that this run cannot go on from."""


@dataclass(frozen=True)
class Checkpoint:
    """A run after some epochs: ``best`` are the weights to keep, where epochs are judged, ``mean`` those averaged."""

    identity: str
    epochs: tuple[Epoch, ...]
    weights: Network
    best: Network | None
    mean: Network | None
    optimizers: Arrays  # by "<weight>.<state>"
    sampler: SamplerState


def identity(
    sessions: SessionSet,
    settings: NetworkSettings,
    warm_start: Network | None,
    early_stopping: EarlyStopping | None,
    *,
    engine: EngineName,
    device: torch.device,
    threads: int,
) -> str:
    """Digest of what decides a run's bits (with the versions of the libraries), SHA-256 in hex."""
    facts: dict[str, Any] = {
        "format": _FORMAT,
        "numpy": np.__version__,
        "engine": engine_identity(engine, device, threads),
        "settings": settings.model_dump(exclude=set() if settings.epochs_planned else {"epochs"}),
        "item_ids": sessions.item_ids,
    }
    arrays: dict[str, npt.NDArray[Any]] = {"items": sessions.items, "offsets": sessions.offsets}
    weights = target_weights(sessions, settings.weight_of_type)
    if weights is not None:
        arrays["target weights"] = weights
    if early_stopping is not None:
        facts["judged by"] = f"{early_stopping.measure}@{early_stopping.k}"
        arrays |= {"holdout items": early_stopping.holdout.items, "holdout offsets": early_stopping.holdout.offsets}
    if warm_start is not None:
        arrays |= {f"start {name}": tensor.numpy() for name, tensor in warm_start.tensors().items()}
    return _digest(json.dumps(facts, sort_keys=True), arrays)


def save(path: Path, checkpoint: Checkpoint) -> None:
    """Replace the file by this checkpoint; whoever reads it meanwhile sees the old one or the new one, whole."""
    about = {
        "identity": checkpoint.identity,
        "epochs": [asdict(epoch) for epoch in checkpoint.epochs],
        "sampler": {"rng": checkpoint.sampler.rng, "position": checkpoint.sampler.position},
    }
    arrays = {
        "pool": checkpoint.sampler.pool,
        **_prefixed("weights.", _arrays_of(checkpoint.weights)),
        **_prefixed("best.", _arrays_of(checkpoint.best) if checkpoint.best else {}),
        **_prefixed("mean.", _arrays_of(checkpoint.mean) if checkpoint.mean else {}),
        **_prefixed("optimizer.", checkpoint.optimizers),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    told = json.dumps(about)
    durable.replace(path, as_safetensors(arrays, metadata={"about": told, "sha256": _digest(told, arrays)}))


def load(path: Path, identity: str, network_of: Callable[[dict[str, Tensor]], Network]) -> Checkpoint | None:
    """The checkpoint in the file, None where there is no file. ``network_of`` makes a network of its tensors by name.

    Raises :class:`CheckpointError` when it is damaged, or of a run with another identity.
    """
    try:
        with safe_open(path, framework="numpy") as stored:
            arrays: Arrays = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 - not a mapping
            metadata = stored.metadata()
        if metadata["sha256"] != _digest(metadata["about"], arrays):
            raise ValueError("its digest is another")
        about = json.loads(metadata["about"])
        if about["identity"] != identity:
            raise CheckpointError(
                f"{path}: is of another run (other sessions, settings, start, device or library versions); "
                "remove it to start over, or name another file"
            )
        best, mean = _under("best.", arrays), _under("mean.", arrays)
        return Checkpoint(
            identity=identity,
            epochs=tuple(Epoch(**epoch) for epoch in about["epochs"]),
            weights=network_of(_tensors(_under("weights.", arrays))),
            best=network_of(_tensors(best)) if best else None,
            mean=network_of(_tensors(mean)) if mean else None,
            optimizers=_under("optimizer.", arrays),
            sampler=SamplerState(about["sampler"]["rng"], arrays["pool"], about["sampler"]["position"]),
        )
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, RecursionError, SafetensorError) as error:
        raise CheckpointError(f"{path}: no whole checkpoint ({error}); remove it to start over") from error


def _digest(text: str, arrays: Mapping[str, npt.NDArray[Any]]) -> str:
    digest = hashlib.sha256(text.encode())
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.shape} {array.dtype}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _prefixed(prefix: str, arrays: Mapping[str, npt.NDArray[Any]]) -> Arrays:
    return {prefix + name: array for name, array in arrays.items()}


def _under(prefix: str, arrays: Mapping[str, npt.NDArray[Any]]) -> Arrays:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def _arrays_of(network: Network) -> Arrays:
    return {name: tensor.numpy() for name, tensor in network.tensors().items()}


def _tensors(arrays: Mapping[str, npt.NDArray[Any]]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(array) for name, array in arrays.items()}
