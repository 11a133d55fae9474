"""The first graph of a bundle: from a session's clicks to a query.

A recurrent network's is built operator by operator from the equations in :mod:`trainer.models.gru4rec`; a window
network's is traced by torch from its encoder. Every tensor is an initializer under its own name
(:meth:`trainer.models.base.Network.tensors`), so a bundle needs no second copy to warm-start from.
"""

import contextlib
import io
import logging
import warnings
from dataclasses import dataclass

import onnx
import onnx_ir as ir
import torch
from onnx_ir import DataType
from torch import Tensor, nn

from schemas.bundle.manifest import Manifest
from trainer.errors import TrainingSettingsError
from trainer.export.graph import constant, new_graph, serialized
from trainer.models.base import Network, SessionModel
from trainer.models.counting import RowModel
from trainer.models.gru4rec import Weights
from trainer.models.mixed import MixedSettings, initial_mixed
from trainer.models.settings import LearnedSettings, WindowSettings
from trainer.models.window import WindowNetwork, initial_windows

_TRACED_OPSET = 18  # the least that torch's exporter knows; ONNX Runtime 1.14 has it
_INPUTS = ("items", "length")


@dataclass(frozen=True)
class EncoderGraph:
    """`advance.onnx` with the sizes of its state, or `encode.onnx` with its window."""

    advance: bytes | None = None
    layers: int = 0
    hidden_size: int = 0
    encode: bytes | None = None
    window: int = 0


def encoder_graph(network: SessionModel) -> EncoderGraph:
    """The graph of a model's encoder; a model that counts has none."""
    match network:
        case RowModel():
            return EncoderGraph()
        case Weights():
            return EncoderGraph(
                advance=_advance_graph(network), layers=network.state_rows, hidden_size=network.hidden_size
            )
        case WindowNetwork():
            return EncoderGraph(encode=_encode_graph(network), window=network.window)
    raise TypeError(f"no graph of a {type(network).__name__}")


def network_of(manifest: Manifest, named: dict[str, Tensor]) -> Network:
    """The network whose tensors the graphs of a bundle hold, by their names.

    Raises KeyError when one is missing, and :class:`TrainingSettingsError` for settings that are not known here, or
    under which a network has other tensors.
    """
    if manifest.encoder == "recurrent":
        return Weights.of_tensors(named)
    match settings := LearnedSettings.parse(manifest.training["settings"]):
        case WindowSettings():
            network = initial_windows(1, settings, torch.Generator())
        case MixedSettings():
            network = initial_mixed(1, settings, torch.Generator())
        case _:
            raise TrainingSettingsError(f"family={settings.family}: has no window")
    if network.encoder.tied and not torch.equal(named["input"], named["output"]):
        raise TrainingSettingsError(f"family={settings.family}: its items have input rows of their own")
    return network.with_tensors(named)


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


class _Encode(nn.Module):
    """A window network's encoder with its item rows: two of them, as the graph is the same for any number."""

    def __init__(self, network: WindowNetwork) -> None:
        super().__init__()
        self.encoder = network.encoder
        self.register_buffer("input", torch.zeros(2, network.input.shape[1]))

    def forward(self, items: Tensor, length: Tensor) -> Tensor:
        """int64[B, T], int64[B] -> [B, D]."""
        rows = nn.functional.embedding(items.clamp(min=0), self.get_buffer("input"))  # [B, T, E]
        query: Tensor = self.encoder(rows, items, length)
        return query


def _encode_graph(network: WindowNetwork) -> bytes:
    model = _traced(network)
    graph = model.graph
    weights = {value.name: value for value in graph.inputs[len(_INPUTS) :]}
    graph.inputs[len(_INPUTS) :] = []
    for name, tensor in {"input": network.input, **network.tensors()}.items():
        if name.startswith("output"):  # in the graph that ranks
            continue
        own = ir.tensor(tensor.numpy(), name=name)
        # What training alone uses has no part in the graph, but a warm start reads it from the file.
        weight = weights.get(name, ir.val(name, const_value=own))
        weight.const_value, weight.shape = own, ir.Shape(tensor.shape)
        graph.register_initializer(weight)
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto)
    return bytes(proto.SerializeToString(deterministic=True))


_traces: dict[str, ir.Model] = {}


def _traced(network: WindowNetwork) -> ir.Model:
    """A copy of the optimised graph of such an encoder, whose weights are inputs behind its own.

    Tracing takes seconds, and a trainer publishes the same encoder with other numbers again and again.
    """
    structure = _structure(network)
    if structure not in _traces:
        _traces[structure] = _trace(network)
    return _traces[structure].clone()


def _structure(network: WindowNetwork) -> str:
    """All that makes an encoder's graph, which is everything but the numbers in its weights."""
    encoder, of_any_module = network.encoder, vars(nn.Module()).keys()
    weights = encoder.state_dict()
    parts: list[object] = [network.window, network.input.shape[1]]
    for name, module in encoder.named_modules():
        own = {
            key: value.tolist() if isinstance(value, Tensor) else value
            for key, value in vars(module).items()
            if key not in of_any_module
        }
        parts.append((name, type(module), own))
    parts += [(name, tensor.shape, tensor.dtype) for name, tensor in weights.items()]
    parts += [(name, buffer.tolist()) for name, buffer in encoder.named_buffers() if name not in weights]
    return repr(parts)


def _trace(network: WindowNetwork) -> ir.Model:
    most = network.window
    batch, clicks = torch.export.Dim("batch", min=1), torch.export.Dim("clicks", min=1, max=most)
    seen = min(3, most)
    # torch tells on standard output what it does, warns of what it itself calls, and logs which packages are not there.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings(action="ignore"):
        program = torch.onnx.export(
            _Encode(network),
            (torch.zeros(2, seen, dtype=torch.int64), torch.full((2,), seen)),
            dynamo=True,
            opset_version=_TRACED_OPSET,
            input_names=_INPUTS,
            output_names=["query"],
            dynamic_shapes=({0: batch, 1: clicks}, {0: batch}),
            optimize=False,  # it would compute with the weights
            verbose=False,
        )
    assert program is not None
    graph = program.model.graph
    # As inputs they have no numbers that the optimiser could compute with: the next network has others.
    for name in ("input", *network.tensors()):
        if name in graph.initializers:
            weight = graph.initializers.pop(name)
            weight.const_value = None
            graph.inputs.append(weight)
    program.optimize()
    for node in graph.all_nodes():
        node.metadata_props.clear()  # where in our code it was made
    return program.model
