"""From a network to the ONNX graphs of a bundle, and back from a bundle to a network."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import torch
from onnx import numpy_helper
from onnx_ir import DataType

from schemas.bundle.files import BundleFiles, Golden, open_files, read_bundle, recent_items, write_bundle
from schemas.bundle.manifest import GRAPHS, MANIFEST, Manifest
from schemas.bundle.vocabulary import Vocabulary
from schemas.errors import BundleError
from trainer.data.lanes import Lanes
from trainer.data.sessions import SessionSet
from trainer.errors import TrainingSettingsError
from trainer.export.adjust import Adjust
from trainer.export.counting_graph import counting_rank
from trainer.export.encoders import EncoderGraph, encoder_graph, network_of
from trainer.export.graph import constant, new_graph, serialized
from trainer.export.memory_graph import Sessions, add_memory, memory_of_tensors
from trainer.export.sample import sample_of
from trainer.export.shortlist import best_of_shortlist, with_tail
from trainer.export.shortlist_catalogue import LEAST_ITEMS, LEAST_WITH_TAIL, Catalogue
from trainer.export.shortlist_memory import ListedMemory
from trainer.export.shortlist_scores import Head
from trainer.memory.terms import NO_MEMORY, RECENT, SessionMemory, remember
from trainer.memory.trained import TrainedModel
from trainer.models.base import Network, SessionModel
from trainer.models.counting import RowModel
from trainer.models.settings import TrainingSettings
from trainer.models.window import WindowNetwork

_GOLDEN_SESSIONS, _GOLDEN_CLICKS, _MOST_GOLDEN_CLICKS = 4, 8, 40


@dataclass(frozen=True)
class Exported:
    """The graphs of a model, what they must answer, and the sizes that a manifest states."""

    encoder: EncoderGraph
    rank: bytes
    golden: Golden
    query_size: int
    k: int
    recent_size: int
    pruned_items: int


def export(
    network: SessionModel,
    memory: SessionMemory = NO_MEMORY,
    *,
    k: int = TrainingSettings.model_fields["list_length"].default,
    recent_size: int = RECENT,
    prune: bool = False,
    seed: int = 0,
) -> Exported:
    """Build the graphs. ``k`` is lowered to the catalogue's size where that is smaller.

    With ``prune`` a very large catalogue gets a tail where that pays: see :mod:`trainer.export.tail`.
    ``recent_size`` clicks are what the memory looks at; without one the bundle asks for as few as there can be.
    """
    k, recent_size = min(k, network.items), recent_size if memory else 1
    if isinstance(network, RowModel):
        recent_size = network.recent_size
        rank, query_size = counting_rank(network.counted, k=k, memory=memory, recent_size=recent_size), 0
        pruned_items = 0
    else:
        learned = cast(Network, network)
        catalogue = catalogue_of(learned, memory, k=k, prune=prune, seed=seed)
        rank, query_size = rank_graph(catalogue, memory, k, recent_size), learned.output.shape[1]
        pruned_items = catalogue.items - catalogue.front
    return Exported(
        encoder=encoder_graph(network),
        rank=rank,
        golden=golden_of(network, memory, k=k, recent_size=recent_size, seed=seed),
        query_size=query_size,
        k=k,
        recent_size=recent_size,
        pruned_items=pruned_items,
    )


def golden_of(network: SessionModel, memory: SessionMemory, *, k: int, recent_size: int, seed: int) -> Golden:
    """A few made-up sessions and the answers of the network itself (not of the graphs) to them."""
    # Two clicks more than the model looks back on, so that what it sees of a session moves on.
    looks_back = max(network.window if isinstance(network, WindowNetwork) else 0, recent_size)
    clicks, lanes = min(max(looks_back + 2, _GOLDEN_CLICKS), _MOST_GOLDEN_CLICKS), _GOLDEN_SESSIONS
    item_index = _golden_sessions(network.items, memory, np.random.default_rng(seed), clicks)  # [T, B]
    recent, counts, length = recent_items(item_index, recent_size)
    starts = np.arange(lanes) * clicks
    walked = SessionSet(item_index.T.reshape(-1), np.append(starts, lanes * clicks), (), starts, timed=False)
    with torch.inference_mode():
        state, queries = network.start(lanes), []
        for click in range(clicks):
            here = Lanes(walked, starts + click, starts)
            state = network.advance(state, here)
            queries.append(network.queries(state, here))
        z = network.scores(queries[-1])
        if memory:
            z = remember(memory, z, *map(torch.from_numpy, (recent, counts, length)))
    found = z.numpy()
    top = np.argsort(-found, axis=1, kind="stable")[:, :k]
    return Golden(
        item_index=item_index,
        query=None if isinstance(network, RowModel) else torch.stack(queries).numpy(),
        hidden=state.numpy() if isinstance(state, torch.Tensor) else None,
        recent=recent,
        counts=counts,
        clicks=length,
        top_index=top.astype(np.int64),
        top_score=np.take_along_axis(found, top, axis=1),
    )


def _golden_sessions(items: int, memory: SessionMemory, rng: np.random.Generator, clicks: int) -> npt.NDArray[np.int64]:
    """int64[clicks, sessions]: at random, but with a memory often along its tables, and back to an earlier item."""
    sessions = rng.integers(items, size=(clicks, _GOLDEN_SESSIONS))
    tables = [term.table for term in memory.tables.values()]
    for table in tables:
        filled = np.flatnonzero(np.diff(table.starts))
        if len(filled):
            sessions[0] = rng.choice(filled, size=_GOLDEN_SESSIONS)
    for click in range(1, clicks if memory else 0):
        for session in range(_GOLDEN_SESSIONS):
            related = [table.row(int(sessions[click - 1, session])) for table in tables]
            choice = int(rng.integers(3))
            if choice == 0:
                sessions[click, session] = rng.choice(sessions[:click, session])
            elif choice == 1 and any(map(np.size, related)):
                sessions[click, session] = rng.choice(np.concatenate(related))
    return sessions


def catalogue_of(network: Network, memory: SessionMemory, *, k: int, prune: bool, seed: int) -> Catalogue:
    """What a rank graph ranks k items of; with ``prune`` it has a tail if it is very large and that pays."""
    catalogue = Catalogue(network.output.numpy(), network.output_bias.numpy())
    if not prune or catalogue.items < LEAST_WITH_TAIL:
        return catalogue
    return with_tail(catalogue, sample_of(network, k=k, seed=seed), memory=bool(memory))


def rank_graph(catalogue: Catalogue, memory: SessionMemory, k: int, recent_size: int) -> bytes:
    """The ONNX file of the graph that ranks a catalogue."""
    items, query_size = catalogue.output.shape
    with new_graph("rank") as op:
        query = op.builder.input("query", DataType.FLOAT, ["batch", query_size])
        # Part of every bundle's interface; without a session memory they are not looked at.
        sessions = Sessions(
            op.builder.input("recent", DataType.INT64, ["batch", recent_size]),
            op.builder.input("counts", DataType.FLOAT, ["batch", recent_size]),
            op.builder.input("clicks", DataType.FLOAT, ["batch"]),
            recent_size,
        )
        default_k = ir.tensor([k], dtype=DataType.INT64, name="k")
        head = Head(
            query,
            constant(op, "output", catalogue.output),
            constant(op, "output_bias", catalogue.bias),
            op.builder.input("k", DataType.INT64, [1], const_value=default_k),
            Adjust.input(op),
        )
        if items >= LEAST_ITEMS:
            index, score = best_of_shortlist(
                op,
                head,
                catalogue,
                memory=ListedMemory(memory, sessions) if memory else None,
            )
        else:
            scores = op.Gemm(query, head.output, head.bias, transB=1)  # [B, I]
            sums = head.adjust.added(op, add_memory(op, memory, sessions, scores, items))
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
    states_of: str | None = None,
) -> Path:
    """Export a model and write it as the bundle ``parent/version``; see :func:`schemas.bundle.files.write_bundle`."""
    exported = export(model.weights, model.memory, k=model.settings.list_length, prune=model.settings.prune)
    return write_bundle(
        parent,
        version=version,
        family=model.settings.family,
        advance=exported.encoder.advance,
        encode=exported.encoder.encode,
        rank=exported.rank,
        vocabulary=Vocabulary(model.item_ids),
        popularity=popularity,
        golden=exported.golden,
        layers=exported.encoder.layers,
        hidden_size=exported.encoder.hidden_size,
        query_size=exported.query_size,
        window=exported.encoder.window,
        k=exported.k,
        recent_size=exported.recent_size,
        pruned_items=exported.pruned_items,
        training=training,
        metrics=metrics,
        created_at=created_at,
        git_revision=git_revision,
        states_of=states_of,
    )


def read_bundle_network(bundle: Path) -> tuple[Network, tuple[str, ...]]:
    """Network and item ids of a bundle, to start from. The bundle is verified. Raises :class:`BundleError`."""
    files = read_bundle(bundle)
    model = open_files(files)
    return read_network(files), model.vocabulary.items


def read_network(files: BundleFiles) -> Network:
    """The network of a bundle that :func:`export` made, from graphs that were opened before.

    Raises :class:`BundleError` for another one's.
    """
    return _network(files.manifest, _tensors(files))


def read_trained(files: BundleFiles) -> TrainedModel:
    """Network and memory of a bundle that :func:`export` made; the memory's tables are empty, its weights its own.

    The bundle is verified. Raises :class:`BundleError`.
    """
    model, named = open_files(files), _tensors(files)
    try:
        settings = TrainingSettings.parse(model.manifest.training["settings"])
        memory = memory_of_tensors(named, len(model.vocabulary))
    except (KeyError, TrainingSettingsError) as error:
        raise BundleError(f"{MANIFEST}: names no model that is known here ({error}); train one") from error
    return TrainedModel(
        weights=_network(model.manifest, named),
        item_ids=model.vocabulary.items,
        settings=settings,
        memory=memory,
    )


def _tensors(files: BundleFiles) -> dict[str, torch.Tensor]:
    """All float32 initializers of the graphs by name. Raises :class:`BundleError` for a model that counts."""
    manifest = files.manifest
    if manifest.encoder == "none":
        raise BundleError(f"{manifest.version} holds no network: its family, {manifest.family}, counts")
    named = {}
    for name in GRAPHS[manifest.encoder]:
        for tensor in onnx.load_model_from_string(files.data[name]).graph.initializer:
            array = numpy_helper.to_array(tensor)
            if array.dtype == np.float32:
                named[tensor.name] = torch.from_numpy(array.copy())
    return named


def _network(manifest: Manifest, named: dict[str, torch.Tensor]) -> Network:
    try:
        return network_of(manifest, named)
    except (KeyError, TrainingSettingsError) as error:
        raise BundleError(
            f"{manifest.version} holds no network ({error}); it was not exported by this trainer"
        ) from error
