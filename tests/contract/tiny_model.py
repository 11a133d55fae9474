"""Tiny models as ONNX graphs and bundles, written with the `onnx` package: real ones of any size in milliseconds.

`TinyModel` is a GRU, `TinyWindow` looks at a session's last items, `TinyNone` counts: one of each encoder.
"""

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from schemas.bundle.files import Golden, recent_items, write_bundle
from schemas.bundle.golden import encode_golden
from schemas.bundle.vocabulary import Vocabulary

F32, I64 = TensorProto.FLOAT, TensorProto.INT64
Io = tuple[str, int, list[int | str]]


@dataclass(frozen=True)
class TinyModel:
    """The size and seed of a model; the same values give the same weights.

    Attributes:
        chooses_k: whether the length of a ranking is an input of the graph, as in those that the trainer exports.
        own_query: whether the query is an output of its own, one number longer than the hidden state.
    """

    items: tuple[str, ...] = tuple(f"item-{index}" for index in range(12))
    layers: int = 1
    hidden_size: int = 4
    k: int = 5
    recent_size: int = 6
    seed: int = 0
    chooses_k: bool = False
    own_query: bool = False

    def weights(self, *shape: int, salt: int) -> NDArray[np.float32]:
        return np.random.default_rng((self.seed, salt)).normal(size=shape).astype(np.float32)

    def advance(self) -> bytes:
        size = self.hidden_size
        before = [f"h{layer}" for layer in range(self.layers)]
        nodes, constants = [], [_constant("embedding", self.weights(len(self.items), size, salt=1))]
        nodes += [
            helper.make_node("Gather", ["embedding", "item_index"], ["embedded"]),
            helper.make_node("Unsqueeze", ["embedded", "first_axis"], ["x0"]),  # [1, B, H]: one step
            helper.make_node("Split", ["hidden"], before, axis=0, num_outputs=self.layers),
        ]
        constants.append(_constant("first_axis", np.asarray([0], dtype=np.int64)))
        for layer in range(self.layers):
            constants += self.gru_weights(layer)
            inputs = [f"x{layer}", f"w{layer}", f"r{layer}", "", "", f"h{layer}"]
            nodes.append(
                helper.make_node("GRU", inputs, ["", f"x{layer + 1}"], hidden_size=size, linear_before_reset=1)
            )
        nodes.append(
            helper.make_node("Concat", [f"x{layer + 1}" for layer in range(self.layers)], ["hidden_out"], axis=0)
        )
        outputs: list[Io] = [("hidden_out", F32, [self.layers, "batch", size])]
        if self.own_query:
            constants += [
                _constant("projection", self.weights(size, self.query_size, salt=4)),
                _constant("last", np.asarray(self.layers - 1)),
            ]
            nodes += [
                helper.make_node("Gather", ["hidden_out", "last"], ["top"], axis=0),  # [B, H]
                helper.make_node("MatMul", ["top", "projection"], ["query"]),
            ]
            outputs.append(("query", F32, ["batch", self.query_size]))
        return graph_bytes(
            nodes,
            inputs=[("item_index", I64, ["batch"]), ("hidden", F32, [self.layers, "batch", size])],
            outputs=outputs,
            constants=constants,
        )

    def gru_weights(self, layer: int) -> list[Any]:
        size = self.hidden_size
        return [
            _constant(f"w{layer}", self.weights(1, 3 * size, size, salt=10 + layer)),
            _constant(f"r{layer}", self.weights(1, 3 * size, size, salt=20 + layer)),
        ]

    def rank(self, query: str = "query") -> bytes:
        nodes = [
            helper.make_node("MatMul", [query, "output"], ["scores"]),
            helper.make_node("TopK", ["scores", "k"], ["top_score", "top_index"]),
        ]
        listed = "k" if self.chooses_k else self.k
        return graph_bytes(
            nodes,
            inputs=self.rank_inputs(query),
            outputs=[("top_index", I64, ["batch", listed]), ("top_score", F32, ["batch", listed])],
            constants=[
                _constant("output", self.weights(self.query_size, len(self.items), salt=2)),
                _constant("k", np.asarray([self.k])),
            ],
        )

    def rank_inputs(self, query: str = "query") -> list[Io]:
        return [(query, F32, ["batch", self.query_size]), *self.session_inputs()]

    def session_inputs(self) -> list[Io]:
        inputs: list[Io] = [
            ("recent", I64, ["batch", self.recent_size]),
            ("counts", F32, ["batch", self.recent_size]),
            ("clicks", F32, ["batch"]),
        ]
        return [*inputs, ("k", I64, [1])] if self.chooses_k else inputs

    @property
    def query_size(self) -> int:
        return self.hidden_size + self.own_query

    def graphs(self) -> dict[str, bytes]:
        """The graphs as arguments of `write_bundle`."""
        return {"advance": self.advance(), "rank": self.rank()}

    def sizes(self) -> dict[str, int]:
        """The sizes as arguments of `write_bundle`, but for those of `rank`."""
        return {"layers": self.layers, "hidden_size": self.hidden_size, "query_size": self.query_size}

    def golden(self) -> Golden:
        """Recorded by running the graphs outside the bundle runtime: 4 clicks of 3 sessions."""
        item_index = np.random.default_rng(self.seed).integers(len(self.items), size=(4, 3))
        query, hidden = self.queries(item_index)
        recent, counts, clicks = recent_items(item_index, self.recent_size)
        inputs = {"recent": recent, "counts": counts, "clicks": clicks}
        if query is not None:
            inputs["query"] = query[-1]
        top_index, top_score = ort.InferenceSession(self.rank()).run(["top_index", "top_score"], inputs)
        return Golden(item_index, recent, counts, clicks, top_index, top_score, query, hidden)

    def queries(self, item_index: NDArray[np.int64]) -> tuple[NDArray[np.float32] | None, NDArray[np.float32] | None]:
        """After each click of sessions int64[T, B]: f32[T, B, D], and the hidden state after the last, f32[L, B, H]."""
        hidden = np.zeros((self.layers, item_index.shape[1], self.hidden_size), dtype=np.float32)
        advance, queries = ort.InferenceSession(self.advance()), []
        for step in item_index:
            hidden, *own = advance.run(None, {"item_index": step, "hidden": hidden})
            queries.append(own[0] if self.own_query else hidden[-1])
        return np.stack(queries), hidden

    def write(self, parent: Path, version: str = "v1", **changed: Any) -> Path:
        """The bundle `parent/version`; `changed` replaces arguments of `write_bundle`."""
        arguments: dict[str, Any] = {
            "version": version,
            "family": "tiny",
            **self.graphs(),
            "vocabulary": Vocabulary(self.items),
            "popularity": np.arange(len(self.items), dtype=np.int64),
            "golden": self.golden(),
            **self.sizes(),
            "k": self.k,
            "recent_size": self.recent_size,
            "training": {"window": [0, 1], "settings": {"loss": "cross-entropy"}},
            "metrics": {"model": {"recall@20": 0.5}, "champion": None, "baselines": {}},
            "created_at": 1_767_225_600_000,
            "git_revision": None,
        }
        return write_bundle(parent, **(arguments | changed))

    def write_format_1(self, parent: Path, version: str = "v1") -> Path:
        """The same as a bundle of format 1: other manifest, golden pair and name of the rank graph's first input."""
        folder = self.write(parent, version)
        (folder / "rank.onnx").write_bytes(self.rank("hidden"))
        (folder / "golden.json").write_bytes(encode_golden(replace(self.golden(), query=None)))
        manifest = json.loads((folder / "manifest.json").read_text()) | {"format_version": 1}
        for name in ("family", "encoder", "query_size", "window"):
            del manifest[name]
        (folder / "manifest.json").write_text(json.dumps(manifest))
        seal(folder)
        return folder


@dataclass(frozen=True)
class TinyWindow(TinyModel):
    """A model with the encoder `window`, `hidden_size` being the size of its query.

    Attributes:
        unrolled: whether it computes what the TinyModel of the same values does; else the mean of the items' rows plus
            that of the last one.
    """

    window: int = 6
    unrolled: bool = False

    def encode(self) -> bytes:
        zero = _constant("zero", np.asarray(0, dtype=np.int64))
        embedding = _constant("embedding", self.weights(len(self.items), self.hidden_size, salt=1))
        rows = [
            helper.make_node("Max", ["items", "zero"], ["safe"]),  # padding is -1, which would count from the end
            helper.make_node("Gather", ["embedding", "safe"], ["rows"]),  # [B, T, D]
        ]
        nodes, constants = self._gru() if self.unrolled else self._mean()
        return graph_bytes(
            [*rows, *nodes],
            inputs=[("items", I64, ["batch", "clicks"]), ("length", I64, ["batch"])],
            outputs=[("query", F32, ["batch", self.hidden_size])],
            constants=[zero, embedding, *constants],
        )

    def _mean(self) -> tuple[list[Any], list[Any]]:
        nodes = [
            helper.make_node("GreaterOrEqual", ["items", "zero"], ["is_item"]),
            helper.make_node("Unsqueeze", ["length", "one"], ["lengths"]),  # [B, 1]
            helper.make_node("Cast", ["lengths"], ["divisor"], to=F32),
            helper.make_node("Cast", ["is_item"], ["ones"], to=F32),
            helper.make_node("Div", ["ones", "divisor"], ["share"]),  # [B, T]
            helper.make_node("Shape", ["items"], ["clicks"], start=1, end=2),
            helper.make_node("Squeeze", ["clicks"], ["end"]),
            helper.make_node("Add", ["end", "step"], ["behind"]),
            helper.make_node("Range", ["step", "behind", "step"], ["places"]),  # 1, 2, ..., T
            helper.make_node("Equal", ["places", "lengths"], ["is_last"]),
            helper.make_node("Cast", ["is_last"], ["last"], to=F32),
            helper.make_node("Add", ["share", "last"], ["weight"]),
            helper.make_node("Unsqueeze", ["weight", "two"], ["weights"]),  # [B, T, 1]
            helper.make_node("Mul", ["rows", "weights"], ["weighted"]),
            helper.make_node("ReduceSum", ["weighted", "one"], ["query"], keepdims=0),
        ]
        named = {"one": np.asarray([1]), "two": np.asarray([2]), "step": np.asarray(1)}
        return nodes, [_constant(name, values) for name, values in named.items()]

    def _gru(self) -> tuple[list[Any], list[Any]]:
        size = self.hidden_size
        nodes = [
            helper.make_node("Transpose", ["rows"], ["x0"], perm=[1, 0, 2]),  # [T, B, D]
            helper.make_node("Cast", ["length"], ["lengths"], to=TensorProto.INT32),
        ]
        constants = [_constant("first", np.asarray([0], dtype=np.int64)), _constant("one", np.asarray([1]))]
        for layer in range(self.layers):
            constants += self.gru_weights(layer)
            inputs = [f"x{layer}", f"w{layer}", f"r{layer}", "", "lengths"]
            outputs = [f"y{layer}", f"h{layer}"]  # [T, 1, B, D], [1, B, D] after each session's last click
            nodes.append(helper.make_node("GRU", inputs, outputs, hidden_size=size, linear_before_reset=1))
            nodes.append(helper.make_node("Squeeze", [f"y{layer}", "one"], [f"x{layer + 1}"]))
        nodes.append(helper.make_node("Squeeze", [f"h{self.layers - 1}", "first"], ["query"]))
        return nodes, constants

    def graphs(self) -> dict[str, bytes]:
        return {"encode": self.encode(), "rank": self.rank()}

    def sizes(self) -> dict[str, int]:
        return {"query_size": self.hidden_size, "window": self.window}

    def queries(self, item_index: NDArray[np.int64]) -> tuple[NDArray[np.float32] | None, NDArray[np.float32] | None]:
        encode, lanes = ort.InferenceSession(self.encode()), item_index.shape[1]
        queries = []
        for clicks in range(1, len(item_index) + 1):
            last = np.ascontiguousarray(item_index[max(0, clicks - self.window) : clicks].T)
            queries.append(encode.run(None, {"items": last, "length": np.full(lanes, last.shape[1])})[0])
        return np.stack(queries), None


@dataclass(frozen=True)
class TinyNone(TinyModel):
    """A model without an encoder: what it scores is counted among the session's recent items."""

    def rank(self, query: str = "") -> bytes:
        nodes = [
            helper.make_node("Max", ["recent", "zero"], ["safe"]),
            helper.make_node("Gather", ["related", "safe"], ["rows"]),  # [B, R, N]
            helper.make_node("Unsqueeze", ["counts", "two"], ["weights"]),  # [B, R, 1], 0 where padded
            helper.make_node("Mul", ["rows", "weights"], ["weighted"]),
            helper.make_node("ReduceSum", ["weighted", "one"], ["scores"], keepdims=0),
            helper.make_node("TopK", ["scores", "k"], ["top_score", "top_index"]),
        ]
        listed = "k" if self.chooses_k else self.k
        named = {"zero": np.asarray(0), "one": np.asarray([1]), "two": np.asarray([2]), "k": np.asarray([self.k])}
        return graph_bytes(
            nodes,
            inputs=self.session_inputs(),
            outputs=[("top_index", I64, ["batch", listed]), ("top_score", F32, ["batch", listed])],
            constants=[
                _constant("related", self.weights(len(self.items), len(self.items), salt=3)),
                *(_constant(name, values) for name, values in named.items()),
            ],
        )

    def graphs(self) -> dict[str, bytes]:
        return {"rank": self.rank()}

    def sizes(self) -> dict[str, int]:
        return {}

    def queries(self, item_index: NDArray[np.int64]) -> tuple[NDArray[np.float32] | None, NDArray[np.float32] | None]:
        return None, None


@dataclass(frozen=True)
class TinyFailing(TinyModel):
    """A TinyModel whose rank graph fails for sessions of more than so many clicks, which no golden session has."""

    longest: float = 8.0

    def rank(self, query: str = "query") -> bytes:
        nodes = [
            helper.make_node("Greater", ["clicks", "longest"], ["is_longer"]),
            helper.make_node("Cast", ["is_longer"], ["index"], to=I64),
            helper.make_node("Gather", ["only", "index"], ["one"]),  # [B]; there is no second one
            helper.make_node("Unsqueeze", ["one", "axis"], ["ones"]),
            helper.make_node("MatMul", [query, "output"], ["raw"]),
            helper.make_node("Mul", ["raw", "ones"], ["scores"]),
            helper.make_node("TopK", ["scores", "k"], ["top_score", "top_index"]),
        ]
        listed = "k" if self.chooses_k else self.k
        constants = {"longest": np.float32(self.longest), "only": np.ones(1, dtype=np.float32), "axis": np.asarray([1])}
        return graph_bytes(
            nodes,
            inputs=self.rank_inputs(query),
            outputs=[("top_index", I64, ["batch", listed]), ("top_score", F32, ["batch", listed])],
            constants=[
                _constant("output", self.weights(self.query_size, len(self.items), salt=2)),
                _constant("k", np.asarray([self.k])),
                *(_constant(name, np.asarray(values)) for name, values in constants.items()),
            ],
        )


@dataclass(frozen=True)
class TinyOutside(TinyModel):
    """A TinyModel that moves the indices of items, for sessions of more than so many clicks, by so many places."""

    longest: float = 8.0
    by: int = 12

    def rank(self, query: str = "query") -> bytes:
        nodes = [
            helper.make_node("Greater", ["clicks", "longest"], ["is_longer"]),
            helper.make_node("Cast", ["is_longer"], ["one"], to=I64),
            helper.make_node("Mul", ["one", "by"], ["moved"]),
            helper.make_node("Unsqueeze", ["moved", "axis"], ["further"]),  # [B, 1]
            helper.make_node("MatMul", [query, "output"], ["scores"]),
            helper.make_node("TopK", ["scores", "k"], ["top_score", "right"]),
            helper.make_node("Add", ["right", "further"], ["top_index"]),
        ]
        constants = {"longest": np.float32(self.longest), "by": np.asarray(self.by), "axis": np.asarray([1])}
        return graph_bytes(
            nodes,
            inputs=self.rank_inputs(query),
            outputs=[("top_index", I64, ["batch", self.k]), ("top_score", F32, ["batch", self.k])],
            constants=[
                _constant("output", self.weights(self.query_size, len(self.items), salt=2)),
                _constant("k", np.asarray([self.k])),
                *(_constant(name, np.asarray(values)) for name, values in constants.items()),
            ],
        )


def seal(bundle: Path, **changed: Any) -> None:
    """Make the manifest vouch for the files as they are now: what a checksum cannot find must be found otherwise."""
    manifest = json.loads((bundle / "manifest.json").read_text()) | changed
    if "files" not in changed:
        for name in manifest["files"]:
            data = (bundle / name).read_bytes()
            manifest["files"][name] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
    (bundle / "manifest.json").write_text(json.dumps(manifest))


def graph_bytes(
    nodes: list[Any],
    *,
    inputs: list[Io],
    outputs: list[Io],
    constants: list[Any],
) -> bytes:
    """An ONNX file of these nodes."""
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info(*one) for one in inputs],
        [helper.make_tensor_value_info(*one) for one in outputs],
        initializer=constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def _constant(name: str, values: NDArray[Any]) -> Any:
    return numpy_helper.from_array(values, name)
