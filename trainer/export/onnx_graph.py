"""Operators and constants of an ONNX graph as they come together."""

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper


@dataclass(frozen=True)
class Graph:
    """A place to add to: what is added under a name gets it behind `prefix`. Parts of a graph share its constants.

    A constant may be added again under the same name; the first one stays.
    """

    prefix: str = ""
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: dict[str, onnx.TensorProto] = field(default_factory=dict)

    def part(self, name: str) -> "Graph":
        """The same graph with longer names."""
        return replace(self, prefix=f"{self.prefix}{name}.")

    def branch(self, name: str) -> "Graph":
        """A graph of its own, for a branch of an `If`; its constants are the whole graph's."""
        return replace(self, prefix=f"{self.prefix}{name}.", nodes=[])

    def shared(self, name: str, values: npt.ArrayLike, dtype: type[np.generic]) -> str:
        """A constant under exactly this name."""
        if name not in self.constants:
            array = np.ascontiguousarray(np.asarray(values, dtype=dtype)).reshape(np.shape(values))
            self.constants[name] = numpy_helper.from_array(array, name)
        return name

    def integers(self, *values: int) -> str:
        """int64[n] of the values."""
        return self.shared("integers." + ".".join(map(str, values)), values, np.int64)

    def integer(self, value: int) -> str:
        """int64 scalar."""
        return self.shared(f"integer.{value}", value, np.int64)

    def float(self, value: float) -> str:
        """float32 scalar."""
        return self.shared(f"float.{np.float32(value)!s}", value, np.float32)

    def apply(self, operator: str, inputs: list[str], output: str, **attributes: Any) -> str:
        """One operator with one output; the name of that."""
        self.nodes.append(helper.make_node(operator, inputs, [self.prefix + output], **attributes))
        return self.prefix + output

    def top(self, values: str, k: str, output: str, *, in_order: bool) -> tuple[str, str]:
        """The k highest values of each row and their places."""
        names = [f"{self.prefix}{output}", f"{self.prefix}{output}_place"]
        self.nodes.append(helper.make_node("TopK", [values, k], names, axis=1, sorted=int(in_order)))
        return names[0], names[1]
