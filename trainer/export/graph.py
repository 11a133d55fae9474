"""ONNX graphs written as formulas, with onnxscript's builder: `op.Sigmoid(x)`, `x + y`, numbers for constants."""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import numpy as np
import onnx
import onnx_ir as ir
from onnxscript import GraphBuilder, OpBuilder

OPSET: Final = 17
"""Every ONNX Runtime since 1.12 knows it, and nothing newer is needed."""
_IR: Final = 8
_ARITHMETIC: Final = threading.RLock()


@contextmanager
def new_graph(name: str) -> Iterator[OpBuilder]:
    """An empty graph, to which operators and arithmetic on its values are added until the block ends."""
    op = GraphBuilder(ir.Graph([], [], nodes=[], name=name, opset_imports={"": OPSET})).op
    with arithmetic(op):
        yield op


@contextmanager
def arithmetic(op: OpBuilder) -> Iterator[None]:
    """Lets `+ - * /` between values add operators to this graph: of a branch of `If`, say.

    For one thread at a time: there is one such graph a process.
    """
    with _ARITHMETIC:
        before = ir.set_value_magic_handler(op)
        try:
            yield
        finally:
            ir.set_value_magic_handler(before)


def constant(op: OpBuilder, name: str, values: Any) -> ir.Value:
    """The initializer of this name, made from the array unless the graph has it already."""
    known = op.builder.root.graph.initializers.get(name)
    return (
        op.builder.initializer(ir.tensor(np.asarray(values, order="C")), name, qualify=False)
        if known is None
        else known
    )


def serialized(op: OpBuilder, outputs: Mapping[str, ir.Value]) -> bytes:
    """The ONNX file of a graph with these outputs. Raises :class:`onnx.checker.ValidationError`."""
    for name, value in outputs.items():
        op.builder.add_output(value, name)
    for node in op.builder.graph.all_nodes():
        node.metadata_props.clear()  # where in our code it was made
    model = ir.to_proto(ir.Model(op.builder.graph, ir_version=_IR, producer_name="nextclick"))
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString(deterministic=True))
