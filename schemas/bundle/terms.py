"""A model without a part of what it adds up: the same graph, in which that part's weights are 0.

A rank graph of ours has the weights of each term of the session memory as tensors of its own, `memory.<term>.<weight>`.
ONNX Runtime takes other values for them when it opens the graph, so what a term adds to a score, and an item's place
without it, come from the very operators that rank online.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from schemas.bundle.manifest import RANK
from schemas.bundle.onnx_file import float_tensors
from schemas.bundle.runtime import Model, open_graph, zeros

_TERM: Final = "memory."
_SHORTLIST: Final = "shortlist."
"""Of a large catalogue: such a graph ranks no more items than the manifest says."""


@dataclass(frozen=True)
class Terms:
    """The memory's terms of a model, by name, and the graph that they are in.

    It has to live as long as the models that it makes: ONNX Runtime reads their zeros from here.
    """

    model: Model
    graph: bytes
    zeros: Mapping[str, Mapping[str, Any]]
    """Term -> tensor -> as many zeros as it has weights."""
    depth: int
    """The longest list that the graph can be asked for: the whole catalogue, unless it is large."""

    @classmethod
    def of(cls, model: Model, graph: bytes) -> "Terms":
        """Of a model and the bytes of its rank graph. Raises BundleError."""
        found: dict[str, dict[str, Any]] = {}
        shapes = float_tensors(RANK, graph)
        for name, shape in shapes.items():
            if name.startswith(_TERM):
                found.setdefault(name.split(".")[1], {})[name] = zeros(shape)
        large = any(name.startswith(_SHORTLIST) for name in shapes)
        return cls(model, graph, found, model.manifest.k if large else len(model.vocabulary))

    @property
    def names(self) -> tuple[str, ...]:
        """Of the terms."""
        return tuple(self.zeros)

    def without(self, *terms: str) -> Model:
        """The model without these terms, with lists of :attr:`depth` items. Raises BundleError."""
        weights = {name: value for term in terms for name, value in self.zeros[term].items()}
        return self.model.with_rank(open_graph(RANK, self.graph, weights=weights), k=self.depth)
