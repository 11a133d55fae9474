"""What does the best k of a catalogue cost, by size, batch, threads and method, and how far is it from the limit?

Methods: `bundle` is what a worker runs; `gemm, topk` is the exact product and a selection from it, without more ado;
`gemm` and `matmul int8` are bare products (the limit: nothing is selected), `numpy` the same by numpy's BLAS. Recall is
that of the exact best 20. Random weights, unless TRAINED (environment) names a bundle that `trainer fit` wrote.

    python -m bench rank
"""

import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from bench.bundles import bundle
from bench.report import Report, console
from schemas.bundle.files import open_bundle
from schemas.bundle.manifest import RANK
from schemas.bundle.runtime import Model

CATALOGUES = (5_000, 37_000, 330_000, 1_000_000)
BATCHES = (1, 16, 64, 256)
THREADS = (1, 2)
PUBLISHED = 20

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Subject:
    """A model and its weights as arrays: output float32[N, H], bias float32[N]."""

    folder: Path
    output: Floats
    bias: Floats


def main() -> None:
    """The whole grid; threads beyond the first for the larger batches only."""
    measure(CATALOGUES, BATCHES, THREADS, seconds=1.0).show("Top k of a catalogue")


def measure(
    catalogues: tuple[int, ...], batches: tuple[int, ...], threads: tuple[int, ...], *, seconds: float
) -> Report:
    """Every method in turn, for `seconds` in all of each case."""
    rows: list[dict[str, Any]] = []
    ratios: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="nextclick-bench-") as name:
        trained = os.environ.get("TRAINED")
        folders = [Path(trained)] if trained else [bundle(Path(name), items) for items in catalogues]
        for folder in folders:
            subject = _subject(folder)
            for count in threads:
                model = open_bundle(folder, threads=count)
                for batch in batches:
                    if count > 1 and batch < 64:
                        continue
                    with console.status(f"{len(subject.output):,} items, batch {batch}, {count} threads"):
                        rows += _case(subject, model, batch, count, seconds)
                    by_method = {row["method"]: row["us_per_row"] for row in rows[-5:]}
                    ratios[f"gemm_topk_to_bundle_{len(subject.output)}_items_batch_{batch}_threads_{count}"] = (
                        by_method["gemm, topk"] / by_method["bundle"]
                    )
    return Report("rank", rows, ratios)


def _case(subject: Subject, model: Model, batch: int, threads: int, seconds: float) -> list[dict[str, Any]]:
    items, units = subject.output.shape
    hidden = _hidden(model, batch)
    recent = np.full((batch, model.recent_size), -1, dtype=np.int64)
    counts, clicks = np.zeros(recent.shape, dtype=np.float32), np.ones(batch, dtype=np.float32)
    quantised = np.rint(hidden * 127 + 128).astype(np.uint8)
    weights = np.rint(subject.output * (63 / np.abs(subject.output).max())).astype(np.int8)
    floats = {"hidden": hidden}
    gemm = _product(subject, threads)
    top = _product(subject, threads, k=model.k)
    integers = _integer_product(weights, threads)
    methods: dict[str, Callable[[], Any]] = {
        "bundle": lambda: model.rank(hidden, recent, counts, clicks),
        "gemm, topk": lambda: top.run(["top_index", "top_score"], floats),
        "gemm": lambda: gemm.run(["scores"], floats),
        "matmul int8": lambda: integers.run(["scores"], {"hidden": quantised}),
        "numpy": lambda: hidden @ subject.output.T,
    }
    times: dict[str, list[float]] = {name: [] for name in methods}
    with threadpool_limits(threads, user_api="blas"):  # a thread more would wait spinning, into the next measurement
        for method in methods.values():
            method()
        end = time.perf_counter() + seconds
        while time.perf_counter() < end or min(map(len, times.values())) < 3:
            for name, method in methods.items():
                began = time.perf_counter()
                method()
                times[name].append(time.perf_counter() - began)
    exact = methods["gemm, topk"]()[0][:, :PUBLISHED]
    found = methods["bundle"]()[0][:, :PUBLISHED]
    recall = np.mean([len(set(a) & set(b)) / PUBLISHED for a, b in zip(exact.tolist(), found.tolist(), strict=True)])
    return [
        {
            "items": items,
            "batch": batch,
            "threads": threads,
            "method": name,
            "us_per_row": 1e6 * median(spent) / batch,
            "gflops": 2e-9 * items * units * batch / median(spent),
            "weights_gb_per_second": 1e-9 * items * units * (1 if "int8" in name else 4) / median(spent),
            **({"recall_at_20": float(recall)} if name == "bundle" else {}),
        }
        for name, spent in times.items()
    ]


def _subject(folder: Path) -> Subject:
    graph = onnx.load(folder / RANK).graph
    named = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    return Subject(folder, named["output"], named["output_bias"])


def _hidden(model: Model, batch: int) -> Floats:
    """float32[B, H]: states that the model itself comes to, after a few popular clicks."""
    rng = np.random.default_rng(batch)
    hidden = model.initial_hidden(batch)
    for _ in range(4):
        clicked = (len(model.vocabulary) * rng.random(batch) ** 2).astype(np.int64)
        hidden, _ = model.advance(clicked, hidden)
    return np.ascontiguousarray(hidden[-1])


def _product(subject: Subject, threads: int, *, k: int = 0) -> ort.InferenceSession:
    nodes = [helper.make_node("Gemm", ["hidden", "output", "bias"], ["scores"], transB=1)]
    outputs = [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", len(subject.output)])]
    initializers = [numpy_helper.from_array(subject.output, "output"), numpy_helper.from_array(subject.bias, "bias")]
    if k:
        nodes.append(helper.make_node("TopK", ["scores", "k"], ["top_score", "top_index"]))
        initializers.append(numpy_helper.from_array(np.array([k]), "k"))
        outputs = [
            helper.make_tensor_value_info("top_index", TensorProto.INT64, ["batch", k]),
            helper.make_tensor_value_info("top_score", TensorProto.FLOAT, ["batch", k]),
        ]
    hidden = helper.make_tensor_value_info("hidden", TensorProto.FLOAT, ["batch", subject.output.shape[1]])
    return _session(helper.make_graph(nodes, "product", [hidden], outputs, initializers), threads)


def _integer_product(weights: NDArray[np.int8], threads: int) -> ort.InferenceSession:
    nodes = [helper.make_node("MatMulInteger", ["hidden", "output", "zero"], ["scores"])]
    initializers = [
        numpy_helper.from_array(np.ascontiguousarray(weights.T), "output"),
        numpy_helper.from_array(np.uint8(128), "zero"),
    ]
    hidden = helper.make_tensor_value_info("hidden", TensorProto.UINT8, ["batch", weights.shape[1]])
    scores = helper.make_tensor_value_info("scores", TensorProto.INT32, ["batch", len(weights)])
    return _session(helper.make_graph(nodes, "product", [hidden], [scores], initializers), threads)


def _session(graph: onnx.GraphProto, threads: int) -> ort.InferenceSession:
    """As a worker opens its graphs."""
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.enable_mem_pattern = False
    if threads == 1:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return ort.InferenceSession(model.SerializeToString(), sess_options=options, providers=["CPUExecutionProvider"])
