"""Tiny GRUs as ONNX graphs and bundles, written with the `onnx` package: real models of any size in milliseconds."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from schemas.bundle.files import Golden, recent_items, write_bundle
from schemas.bundle.vocabulary import Vocabulary

F32, I64 = TensorProto.FLOAT, TensorProto.INT64


@dataclass(frozen=True)
class TinyModel:
    """The size and seed of a model; the same values give the same weights.

    Attributes:
        chooses_k: whether the length of a ranking is an input of the graph, as in those that the trainer exports.
    """

    items: tuple[str, ...] = tuple(f"item-{index}" for index in range(12))
    layers: int = 1
    hidden_size: int = 4
    k: int = 5
    recent_size: int = 6
    seed: int = 0
    chooses_k: bool = False

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
            constants += [
                _constant(f"w{layer}", self.weights(1, 3 * size, size, salt=10 + layer)),
                _constant(f"r{layer}", self.weights(1, 3 * size, size, salt=20 + layer)),
            ]
            inputs = [f"x{layer}", f"w{layer}", f"r{layer}", "", "", f"h{layer}"]
            nodes.append(
                helper.make_node("GRU", inputs, ["", f"x{layer + 1}"], hidden_size=size, linear_before_reset=1)
            )
        nodes.append(
            helper.make_node("Concat", [f"x{layer + 1}" for layer in range(self.layers)], ["hidden_out"], axis=0)
        )
        return graph_bytes(
            nodes,
            inputs=[("item_index", I64, ["batch"]), ("hidden", F32, [self.layers, "batch", size])],
            outputs=[("hidden_out", F32, [self.layers, "batch", size])],
            constants=constants,
        )

    def rank(self) -> bytes:
        listed = "k" if self.chooses_k else self.k
        return graph_bytes(
            [
                helper.make_node("MatMul", ["hidden", "output"], ["scores"]),
                helper.make_node("TopK", ["scores", "k"], ["top_score", "top_index"]),
            ],
            inputs=self.rank_inputs(),
            outputs=[("top_index", I64, ["batch", listed]), ("top_score", F32, ["batch", listed])],
            constants=[
                _constant("output", self.weights(self.hidden_size, len(self.items), salt=2)),
                _constant("k", np.asarray([self.k], dtype=np.int64)),
            ],
        )

    def rank_inputs(self) -> list[tuple[str, int, list[int | str]]]:
        inputs: list[tuple[str, int, list[int | str]]] = [
            ("hidden", F32, ["batch", self.hidden_size]),
            ("recent", I64, ["batch", self.recent_size]),
            ("counts", F32, ["batch", self.recent_size]),
            ("clicks", F32, ["batch"]),
        ]
        return [*inputs, ("k", I64, [1])] if self.chooses_k else inputs

    def golden(self) -> Golden:
        """Recorded by running the graphs outside the bundle runtime: 4 clicks of 3 sessions."""
        item_index = np.random.default_rng(self.seed).integers(len(self.items), size=(4, 3))
        hidden = np.zeros((self.layers, 3, self.hidden_size), dtype=np.float32)
        advance, rank = ort.InferenceSession(self.advance()), ort.InferenceSession(self.rank())
        for step in item_index:
            (hidden,) = advance.run(["hidden_out"], {"item_index": step, "hidden": hidden})
        recent, counts, clicks = recent_items(item_index, self.recent_size)
        top_index, top_score = rank.run(
            ["top_index", "top_score"], {"hidden": hidden[-1], "recent": recent, "counts": counts, "clicks": clicks}
        )
        return Golden(item_index, hidden, recent, counts, clicks, top_index, top_score)

    def write(self, parent: Path, version: str = "v1", **changed: Any) -> Path:
        """The bundle `parent/version`; `changed` replaces arguments of `write_bundle`."""
        arguments: dict[str, Any] = {
            "version": version,
            "advance": self.advance(),
            "rank": self.rank(),
            "vocabulary": Vocabulary(self.items),
            "popularity": np.arange(len(self.items), dtype=np.int64),
            "golden": self.golden(),
            "layers": self.layers,
            "hidden_size": self.hidden_size,
            "k": self.k,
            "recent_size": self.recent_size,
            "training": {"window": [0, 1], "settings": {"loss": "cross-entropy"}},
            "metrics": {"model": {"recall@20": 0.5}, "champion": None, "baselines": {}},
            "created_at": 1_767_225_600_000,
            "git_revision": None,
        }
        return write_bundle(parent, **(arguments | changed))


def graph_bytes(
    nodes: list[Any],
    *,
    inputs: list[tuple[str, int, list[int | str]]],
    outputs: list[tuple[str, int, list[int | str]]],
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
