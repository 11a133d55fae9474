"""Graphs written as formulas."""

import time
from concurrent.futures import ThreadPoolExecutor

import onnx_ir as ir
from onnx_ir import DataType

from trainer.export.graph import new_graph


def additions(of: int) -> int:
    """How many a graph has that adds a number `of` times, slowly."""
    with new_graph(f"adds-{of}") as op:
        x = ir.Value(name="x", shape=ir.Shape([1]), type=ir.TensorType(DataType.FLOAT))
        op.builder.graph.inputs.append(x)
        y = x
        for _ in range(of):
            y = y + x
            time.sleep(0.001)
        return sum(node.op_type == "Add" for node in op.builder.graph)


def test_threads_that_write_at_once_write_a_graph_each() -> None:
    """Arithmetic between values goes to one graph of the process."""
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(additions, [20, 21, 22, 23])) == [20, 21, 22, 23]
