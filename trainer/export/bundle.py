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
import torch
from onnx import TensorProto, helper, numpy_helper

from schemas.bundle.files import Golden, open_bundle, recent_items, write_bundle
from schemas.bundle.manifest import ADVANCE, RANK
from schemas.bundle.vocabulary import Vocabulary
from schemas.errors import BundleError
from trainer.export.memory_graph import add_memory
from trainer.export.onnx_graph import Graph
from trainer.export.shortlist import LEAST_ITEMS, shortlist_graph
from trainer.export.shortlist_memory import ListedMemory
from trainer.memory.terms import NO_MEMORY, RECENT, SessionMemory, remember
from trainer.memory.trained import TrainedModel
from trainer.models import gru4rec
from trainer.models.gru4rec import Weights
from trainer.models.settings import TrainingSettings

_OPSET, _IR = 17, 8  # every ONNX Runtime since 1.12 knows them, and nothing newer is needed
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
        advance=_advance_graph(weights).SerializeToString(deterministic=True),
        rank=_rank_graph(weights, memory, k, recent_size).SerializeToString(deterministic=True),
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


def _advance_graph(weights: Weights) -> onnx.ModelProto:
    depth, size, rows = len(weights.layers), weights.hidden_size, weights.sum_rows
    sums = [f"sum{i}" for i in range(rows)]
    table = "output" if weights.embedding is None else "embedding"
    nodes = [
        helper.make_node("Gather", [table, "item_index"], ["item" if rows else "x0"]),  # [B, D]
        helper.make_node("Split", ["hidden"], [*sums, *(f"hidden{i}" for i in range(depth))], axis=0),  # [1, B, H] each
    ]
    if rows:
        nodes += [
            helper.make_node("Concat", sums, ["wide_sum"], axis=2),  # [1, B, D]
            helper.make_node("Squeeze", ["wide_sum", "first"], ["sum"]),  # [B, D]
            helper.make_node("Mul", ["sum", "input_decay"], ["decayed"]),
            helper.make_node("Add", ["item", "decayed"], ["x0"]),
            helper.make_node("Unsqueeze", ["x0", "first"], ["wide_out"]),  # [1, B, D]
            helper.make_node("Split", ["wide_out"], [f"{name}_out" for name in sums], axis=2),  # [1, B, H] each
        ]
    for i, layer in enumerate(weights.layers):
        if layer.w is None:
            from_x = [helper.make_node("Add", [f"x{i}", f"layer{i}.b"], [f"from_x{i}"])]  # [B, 3H]
        else:
            seen, from_x = f"x{i}", []
            if i > 0 and layer.w.shape[1] > size:
                seen = f"seen{i}"
                from_x = [helper.make_node("Concat", [f"x{i}", "x0"], [seen], axis=1)]  # [B, 2H]
            given = [seen, f"layer{i}.w", f"layer{i}.b"]
            from_x.append(helper.make_node("Gemm", given, [f"from_x{i}"], transB=1))  # [B, 3H]
        nodes += [
            *from_x,
            helper.make_node("Squeeze", [f"hidden{i}", "first"], [f"h{i}"]),  # [B, H]
            helper.make_node("Gemm", [f"h{i}", f"layer{i}.u"], [f"from_h{i}"], transB=1),  # [B, 3H]
            helper.make_node("Split", [f"from_x{i}", "gates"], [f"x_rz{i}", f"x_n{i}"], axis=1),
            helper.make_node("Split", [f"from_h{i}", "gates"], [f"h_rz{i}", f"h_n{i}"], axis=1),
            helper.make_node("Add", [f"x_rz{i}", f"h_rz{i}"], [f"sum_rz{i}"]),
            helper.make_node("Sigmoid", [f"sum_rz{i}"], [f"rz{i}"]),
            helper.make_node("Split", [f"rz{i}"], [f"r{i}", f"z{i}"], axis=1),
            helper.make_node("Mul", [f"r{i}", f"h_n{i}"], [f"reset{i}"]),
            helper.make_node("Add", [f"x_n{i}", f"reset{i}"], [f"sum_n{i}"]),
            helper.make_node("Tanh", [f"sum_n{i}"], [f"n{i}"]),
            # (1 - z) n + z h = n + z (h - n)
            helper.make_node("Sub", [f"h{i}", f"n{i}"], [f"h_less_n{i}"]),
            helper.make_node("Mul", [f"z{i}", f"h_less_n{i}"], [f"kept{i}"]),
            helper.make_node("Add", [f"n{i}", f"kept{i}"], [f"x{i + 1}"]),  # [B, H]
            helper.make_node("Unsqueeze", [f"x{i + 1}", "first"], [f"out{i}"]),
        ]
    outs = [*(f"{name}_out" for name in sums), *(f"out{i}" for i in range(depth))]
    nodes.append(helper.make_node("Concat", outs, ["hidden_out"], axis=0))
    initializers = [
        _initializer(table, weights.input_table.numpy()),
        _initializer("first", np.array([0])),
        _initializer("gates", np.array([2 * size, size])),
    ]
    for name, tensor in weights.tensors().items():
        if name.startswith(("layer", "input_decay")):
            initializers.append(_initializer(name, tensor.numpy()))
    graph = helper.make_graph(
        nodes,
        "advance",
        [
            _io("item_index", TensorProto.INT64, ["batch"]),
            _io("hidden", TensorProto.FLOAT, [rows + depth, "batch", size]),
        ],
        [_io("hidden_out", TensorProto.FLOAT, [rows + depth, "batch", size])],
        initializers,
    )
    return _model(graph)


def _rank_graph(weights: Weights, memory: SessionMemory, k: int, recent_size: int) -> onnx.ModelProto:
    if weights.items >= LEAST_ITEMS:
        listed = ListedMemory(memory, recent_size) if memory else None
        nodes, constants = shortlist_graph(weights.output.numpy(), weights.output_bias.numpy(), k, listed)
    else:
        whole = Graph()
        whole.apply("Gemm", ["hidden", "output", "output_bias"], "scores", transB=1)  # [B, I]
        scores = add_memory(whole.part("remember"), memory, "scores", weights.items, recent_size)
        nodes, constants = whole.nodes, list(whole.constants.values())
        nodes.append(helper.make_node("TopK", [scores, "k"], ["top_score", "top_index"], axis=1, largest=1, sorted=1))
    graph = helper.make_graph(
        nodes,
        "rank",
        [
            _io("hidden", TensorProto.FLOAT, ["batch", weights.hidden_size]),
            # Part of every bundle's interface; without a session memory they are not looked at.
            _io("recent", TensorProto.INT64, ["batch", recent_size]),
            _io("counts", TensorProto.FLOAT, ["batch", recent_size]),
            _io("clicks", TensorProto.FLOAT, ["batch"]),
            _io("k", TensorProto.INT64, [1]),  # its initializer is the default
        ],
        [_io("top_index", TensorProto.INT64, ["batch", "k"]), _io("top_score", TensorProto.FLOAT, ["batch", "k"])],
        [
            _initializer("output", weights.output.numpy()),
            _initializer("output_bias", weights.output_bias.numpy()),
            _initializer("k", np.array([k])),
            *constants,
        ],
    )
    return _model(graph)


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


def _initializer(name: str, array: npt.NDArray[np.float32] | npt.NDArray[np.int64]) -> onnx.TensorProto:
    return numpy_helper.from_array(np.ascontiguousarray(array), name)


def _io(name: str, kind: int, shape: list[int | str]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def _model(graph: onnx.GraphProto) -> onnx.ModelProto:
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", _OPSET)],
        ir_version=_IR,
        producer_name="nextclick",
    )
    onnx.checker.check_model(model)
    return model
