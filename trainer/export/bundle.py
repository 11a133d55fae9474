"""From weights to the two ONNX graphs of a bundle, and back from a bundle to weights.

Graphs are built operator by operator from the equations in :mod:`trainer.models.gru4rec`; every tensor of
:meth:`Weights.tensors` is an initializer under its own name, so a bundle needs no second copy to warm-start from.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import torch
from onnx import numpy_helper
from onnx_ir import DataType

from schemas.bundle.files import Golden, open_bundle, recent_items, write_bundle
from schemas.bundle.manifest import ADVANCE, RANK
from schemas.bundle.vocabulary import Vocabulary
from schemas.errors import BundleError
from trainer.export.graph import constant, new_graph, serialized
from trainer.export.memory_graph import Sessions, add_memory
from trainer.export.shortlist import LEAST_ITEMS, Catalogue, Head, best_of_shortlist
from trainer.export.shortlist_memory import ListedMemory
from trainer.memory.terms import NO_MEMORY, RECENT, SessionMemory, remember
from trainer.memory.trained import TrainedModel
from trainer.models import gru4rec
from trainer.models.gru4rec import Weights
from trainer.models.settings import TrainingSettings

_GOLDEN_SESSIONS, _GOLDEN_CLICKS = 4, 8


@dataclass(frozen=True)
class Exported:
    """The two ONNX files, what they must answer, and the sizes that a manifest states."""

    advance: bytes
    rank: bytes
    golden: Golden
    layers: int
    hidden_size: int
    k: int
    recent_size: int


def export(
    weights: Weights,
    memory: SessionMemory = NO_MEMORY,
    *,
    k: int = TrainingSettings.model_fields["list_length"].default,
    recent_size: int = RECENT,
    seed: int = 0,
) -> Exported:
    """Build both graphs. ``k`` is lowered to the catalogue's size where that is smaller.

    ``recent_size`` clicks are what the memory looks at; without one the bundle asks for as few as there can be.
    """
    k, recent_size = min(k, weights.items), recent_size if memory else 1
    return Exported(
        advance=_advance_graph(weights),
        rank=_rank_graph(weights, memory, k, recent_size),
        golden=golden_of(weights, memory, k=k, recent_size=recent_size, seed=seed),
        layers=weights.state_rows,
        hidden_size=weights.hidden_size,
        k=k,
        recent_size=recent_size,
    )


def golden_of(weights: Weights, memory: SessionMemory, *, k: int, recent_size: int, seed: int) -> Golden:
    """A few made-up sessions and the answers of the network itself (not of the graphs) to them."""
    item_index = _golden_sessions(weights.items, memory, np.random.default_rng(seed))
    recent, counts, clicks = recent_items(item_index, recent_size)
    with torch.inference_mode():
        hidden = torch.zeros(weights.state_rows, _GOLDEN_SESSIONS, weights.hidden_size)
        for items in torch.from_numpy(item_index):
            hidden = gru4rec.advance(weights, items, hidden)
        z = gru4rec.scores(weights, hidden[-1])
        if memory:
            z = remember(memory, z, *map(torch.from_numpy, (recent, counts, clicks)))
        scores = z.numpy()
    top = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return Golden(
        item_index=item_index,
        hidden=hidden.numpy(),
        recent=recent,
        counts=counts,
        clicks=clicks,
        top_index=top.astype(np.int64),
        top_score=np.take_along_axis(scores, top, axis=1),
    )


def _golden_sessions(items: int, memory: SessionMemory, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """int64[clicks, sessions]: at random, but with a memory often along its tables, and back to an earlier item."""
    sessions = rng.integers(items, size=(_GOLDEN_CLICKS, _GOLDEN_SESSIONS))
    tables = [term.table for term in memory.tables.values()]
    for table in tables:
        filled = np.flatnonzero(np.diff(table.starts))
        if len(filled):
            sessions[0] = rng.choice(filled, size=_GOLDEN_SESSIONS)
    for click in range(1, _GOLDEN_CLICKS if memory else 0):
        for session in range(_GOLDEN_SESSIONS):
            related = [table.row(int(sessions[click - 1, session])) for table in tables]
            choice = int(rng.integers(3))
            if choice == 0:
                sessions[click, session] = rng.choice(sessions[:click, session])
            elif choice == 1 and any(map(np.size, related)):
                sessions[click, session] = rng.choice(np.concatenate(related))
    return sessions


def _advance_graph(weights: Weights) -> bytes:
    depth, size, rows = len(weights.layers), weights.hidden_size, weights.sum_rows
    named = weights.tensors()
    with new_graph("advance") as op:
        item_index = op.builder.input("item_index", DataType.INT64, ["batch"])
        hidden = op.builder.input("hidden", DataType.FLOAT, [rows + depth, "batch", size])

        def weight(name: str) -> ir.Value:
            return constant(op, name, named[name].numpy())

        table = constant(op, "output" if weights.embedding is None else "embedding", weights.input_table.numpy())
        seen = x = op.Gather(table, item_index)  # [B, D]
        state = op.Split(hidden, axis=0, _outputs=rows + depth)  # [1, B, H] each
        state = [state] if rows + depth == 1 else list(state)
        out = []
        if rows:
            total = op.Squeeze(op.Concat(*state[:rows], axis=2), [0])  # [B, D]
            seen = x = x + total * weight("input_decay")
            wide = op.Split(op.Unsqueeze(x, [0]), axis=2, _outputs=rows)  # [1, B, H] each
            out = [wide] if rows == 1 else list(wide)
        for i, layer in enumerate(weights.layers):
            h = op.Squeeze(state[rows + i], [0])  # [B, H]
            if layer.w is None:
                from_x = x + weight(f"layer{i}.b")  # [B, 3H]
            else:
                given = op.Concat(x, seen, axis=1) if i > 0 and layer.w.shape[1] > size else x  # [B, 2H] or [B, H]
                from_x = op.Gemm(given, weight(f"layer{i}.w"), weight(f"layer{i}.b"), transB=1)  # [B, 3H]
            from_h = op.Gemm(h, weight(f"layer{i}.u"), transB=1)  # [B, 3H]
            x_rz, x_n = op.Split(from_x, [2 * size, size], axis=1, _outputs=2)
            h_rz, h_n = op.Split(from_h, [2 * size, size], axis=1, _outputs=2)
            r, z = op.Split(op.Sigmoid(x_rz + h_rz), axis=1, _outputs=2)
            n = op.Tanh(x_n + r * h_n)
            x = n + z * (h - n)  # (1 - z) n + z h, [B, H]
            out.append(op.Unsqueeze(x, [0]))
        hidden_out = op.Concat(*out, axis=0)
        hidden_out.shape = hidden.shape
        return serialized(op, {"hidden_out": hidden_out})


def _rank_graph(weights: Weights, memory: SessionMemory, k: int, recent_size: int) -> bytes:
    with new_graph("rank") as op:
        hidden = op.builder.input("hidden", DataType.FLOAT, ["batch", weights.hidden_size])
        # Part of every bundle's interface; without a session memory they are not looked at.
        sessions = Sessions(
            op.builder.input("recent", DataType.INT64, ["batch", recent_size]),
            op.builder.input("counts", DataType.FLOAT, ["batch", recent_size]),
            op.builder.input("clicks", DataType.FLOAT, ["batch"]),
            recent_size,
        )
        default_k = ir.tensor([k], dtype=DataType.INT64, name="k")
        head = Head(
            hidden,
            constant(op, "output", weights.output.numpy()),
            constant(op, "output_bias", weights.output_bias.numpy()),
            op.builder.input("k", DataType.INT64, [1], const_value=default_k),
        )
        if weights.items >= LEAST_ITEMS:
            index, score = best_of_shortlist(
                op,
                head,
                Catalogue(weights.output.numpy(), weights.output_bias.numpy()),
                most=k,
                memory=ListedMemory(memory, sessions) if memory else None,
            )
        else:
            scores = op.Gemm(hidden, head.output, head.bias, transB=1)  # [B, I]
            sums = add_memory(op, memory, sessions, scores, weights.items)
            score, index = op.TopK(sums, head.k, axis=1, largest=1, sorted=1, _outputs=2)
        for value in (index, score):
            value.shape = ir.Shape(["batch", "k"])
        return serialized(op, {"top_index": index, "top_score": score})


def save_bundle(
    parent: Path,
    version: str,
    model: TrainedModel,
    *,
    popularity: npt.NDArray[np.int64],
    training: Mapping[str, Any],
    metrics: Mapping[str, Any],
    created_at: int,
    git_revision: str | None = None,
) -> Path:
    """Export a model and write it as the bundle ``parent/version``; see :func:`schemas.bundle.files.write_bundle`."""
    exported = export(model.weights, model.memory, k=model.settings.list_length)
    return write_bundle(
        parent,
        version=version,
        advance=exported.advance,
        rank=exported.rank,
        vocabulary=Vocabulary(model.item_ids),
        popularity=popularity,
        golden=exported.golden,
        layers=exported.layers,
        hidden_size=exported.hidden_size,
        k=exported.k,
        recent_size=exported.recent_size,
        training=training,
        metrics=metrics,
        created_at=created_at,
        git_revision=git_revision,
    )


def read_bundle_weights(bundle: Path) -> tuple[Weights, tuple[str, ...]]:
    """Weights and item ids of a bundle, to start from. The bundle is verified. Raises :class:`BundleError`."""
    model = open_bundle(bundle)
    return read_weights(bundle), model.vocabulary.items


def read_weights(bundle: Path) -> Weights:
    """The weights of a bundle that :func:`export` made, from its two graphs. Raises :class:`BundleError`."""
    named = {}
    for name in (ADVANCE, RANK):
        try:
            model = onnx.load(bundle / name, load_external_data=False)
        except (OSError, ValueError) as error:
            raise BundleError(f"{name}: cannot be read: {error}") from error
        for tensor in model.graph.initializer:
            array = numpy_helper.to_array(tensor)
            if array.dtype == np.float32:
                named[tensor.name] = torch.from_numpy(array.copy())
    try:
        return Weights.of_tensors(named)
    except KeyError as error:
        raise BundleError(f"{bundle}: holds no weights {error}; it was not exported by this trainer") from error
