"""What is added to every item's score when a ranking is made: 0, a boost, or so little that the item is left out.

The input `adjust` f32[I] is the same for all sessions of a run and is added last: what a session memory adds does not
depend on it, so the list is that of ranking everything and taking out what may not be shown.

Most deployments have no such numbers, and to add zeros to B I scores takes time. So whatever looks at the input stands
in an `If`, whose condition is a constant of the graph, false: ONNX Runtime puts the other branch in its place when it
loads the graph, and nothing is left of it. A worker with items or rules turns the constant
(:func:`schemas.bundle.runtime.open_graphs`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnx_ir import DataType
from onnxscript import OpBuilder

from schemas.bundle.adjust import ADJUST, ADJUSTS
from trainer.export.graph import arithmetic, constant

Traced = Callable[[OpBuilder], ir.Value]
TracedAll = Callable[[OpBuilder], Sequence[ir.Value]]


@dataclass(frozen=True)
class Adjust:
    """The input f32[I], and the constant that tells whether it counts."""

    values: ir.Value
    counts: ir.Value

    @classmethod
    def input(cls, op: OpBuilder) -> "Adjust":
        """A new input of the graph; its default, of one number, is never looked at."""
        nothing = ir.tensor([0.0], dtype=DataType.FLOAT, name=ADJUST)
        values = op.builder.input(ADJUST, DataType.FLOAT, [1], const_value=nothing)
        values.shape = ir.Shape(["adjusted"])
        return cls(values, constant(op, ADJUSTS, np.asarray(False)))

    def added(self, op: OpBuilder, scores: ir.Value) -> ir.Value:
        """To all scores [B, I]."""
        return self.either(op, "adjusted", lambda op: scores + self.values, lambda op: op.Identity(scores))

    def either(
        self, op: OpBuilder, name: str, on: Traced, off: Traced, *, kind: DataType = DataType.FLOAT, rank: int = 2
    ) -> ir.Value:
        """What `on` makes where the input counts, else what `off` makes; of one kind and of `rank` axes."""
        kinds = [(kind, rank)]
        [chosen] = either(op, self.counts, name, on=lambda op: [on(op)], off=lambda op: [off(op)], kinds=kinds)
        return chosen


def either(
    op: OpBuilder,
    condition: ir.Value,
    name: str,
    *,
    on: TracedAll,
    off: TracedAll,
    kinds: Sequence[tuple[DataType, int]],
) -> list[ir.Value]:
    """One of two branches; their values' kinds and numbers of axes."""

    def branch(traced: TracedAll, which: str) -> ir.Graph:
        def trace(op: OpBuilder) -> Sequence[ir.Value]:
            op.builder.push_module(f"{name}.{which}")
            with arithmetic(op):
                return traced(op)

        outputs = [ir.val(f"{name}.{which}.{i}", kind, [None] * rank) for i, (kind, rank) in enumerate(kinds)]
        return op.builder.subgraph(trace, [], outputs, name=f"{name}.{which}")

    chosen = op.If(condition, then_branch=branch(on, "on"), else_branch=branch(off, "off"), _outputs=len(kinds))
    return [chosen] if isinstance(chosen, ir.Value) else list(chosen)
