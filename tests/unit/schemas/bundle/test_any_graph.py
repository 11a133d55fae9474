"""Whatever the graphs of a bundle are, with a manifest that vouches for them: they rank, or the bundle is refused.

What ends the process that opens one is refused by its trial in a process of its own (`worker.bundle_memory_mb`).
"""

import copy
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from schemas.bundle.files import open_bundle
from schemas.bundle.operators import SERVED
from schemas.bundle.trial import try_bundle
from schemas.errors import BundleError
from tests.bundle_opener import Opener
from tests.contract.tiny_model import TinyModel, TinyNone, TinyWindow, seal
from tests.unit.test_decoders import damaged

TINY: Final = {
    "recurrent": TinyModel(layers=2, own_query=True, chooses_k=True),
    "window": TinyWindow(),
    "unrolled": TinyWindow(unrolled=True),
    "none": TinyNone(),
}
_INTEGERS: Final = (0, 1, -1, 2, 3, -2, 12, 31, 2**31 - 1, -(2**31), 2**62, -(2**63))
_FLOATS: Final = (0.0, -1.0, 1e-45, 3e38, -3e38, 65_504.0)
_TYPES: Final = sorted(set(TensorProto.DataType.values()) - {TensorProto.UNDEFINED})
_ATTRIBUTES: Final = (
    "axis", "axes", "to", "keepdims", "num_outputs", "hidden_size", "direction", "perm", "start", "end", "largest",
    "sorted", "batch_dims", "linear_before_reset", "clip", "activations", "alpha", "mode", "allowzero", "exclusive",
)  # fmt: skip
_OPERATORS: Final = sorted(name.decode() for name in SERVED)

numbers = st.sampled_from(_INTEGERS)
attribute_values: st.SearchStrategy[Any] = st.one_of(
    numbers,
    st.sampled_from(_FLOATS),
    st.lists(numbers, min_size=1, max_size=4),
    st.lists(st.sampled_from(_FLOATS), min_size=1, max_size=3),
    st.sampled_from(["", "reverse", "bidirectional", "Relu", "x" * 300, ["Sigmoid"], ["Tanh", "x"]]),
)


def _change_node(draw: st.DrawFn, graph: Any) -> None:
    node = graph.node[draw(st.integers(0, len(graph.node) - 1))]
    names = ["", "absent", *_names(graph)]
    action = draw(st.sampled_from(["operator", "input", "input", "output", "attribute", "attribute", "move", "insert"]))
    if action == "operator":
        node.op_type = draw(st.sampled_from(_OPERATORS))
    elif action == "input":
        place = draw(st.integers(0, len(node.input)))
        node.input[place : place + draw(st.integers(0, 1))] = draw(st.lists(st.sampled_from(names), max_size=2))
    elif action == "output":
        place = draw(st.integers(0, len(node.output)))
        node.output[place : place + draw(st.integers(0, 1))] = draw(st.lists(st.sampled_from(names), max_size=2))
    elif action == "attribute":
        name = draw(st.sampled_from([*(one.name for one in node.attribute), *_ATTRIBUTES]))
        for one in [one for one in node.attribute if one.name == name]:
            node.attribute.remove(one)
        if draw(st.integers(0, 4)):
            node.attribute.append(helper.make_attribute(name, draw(attribute_values)))
    elif action == "move":
        moved = copy.deepcopy(node)
        graph.node.remove(node)
        for _ in range(draw(st.integers(0, 2))):
            graph.node.insert(draw(st.integers(0, len(graph.node))), copy.deepcopy(moved))
    else:
        _insert(draw, graph, node)


def _insert(draw: st.DrawFn, graph: Any, node: Any) -> None:
    """An operator more, on what another one takes."""
    if not node.input:
        return
    place = draw(st.integers(0, len(node.input) - 1))
    others = draw(st.lists(st.sampled_from(_names(graph)), max_size=3))
    inserted = helper.make_node(
        draw(st.sampled_from(_OPERATORS)), [node.input[place], *others], [f"more{len(graph.node)}"]
    )
    if draw(st.booleans()):
        inserted.attribute.append(helper.make_attribute(draw(st.sampled_from(_ATTRIBUTES)), draw(attribute_values)))
    at = list(graph.node).index(node)
    node.input[place] = inserted.output[0]
    graph.node.insert(at, inserted)


def _names(graph: Any) -> list[str]:
    return [
        *(one.name for one in graph.initializer),
        *(one.name for one in graph.input),
        *(name for node in graph.node for name in node.output if name),
    ]


def _change_weights(draw: st.DrawFn, graph: Any) -> None:
    place = draw(st.integers(0, len(graph.initializer) - 1))
    tensor = graph.initializer[place]
    action = draw(
        st.sampled_from(["values", "values", "resize", "resize", "dims", "type", "name", "remove", "cast", "raw"])
    )
    if action == "dims":
        at = draw(st.integers(0, len(tensor.dims)))
        tensor.dims[at : at + draw(st.integers(0, 1))] = draw(st.lists(numbers, max_size=2))
    elif action == "type":
        tensor.data_type = draw(st.sampled_from([0, 99, -1, *_TYPES]))
    elif action == "name":
        tensor.name = draw(st.sampled_from(["", *_names(graph)]))
    elif action == "remove":
        del graph.initializer[place]
    elif action == "raw":
        tensor.raw_data = draw(st.binary(max_size=40))
    elif _numbers_of(tensor) is not None:
        _change_numbers(draw, tensor, cast=action == "cast", resized=action == "resize")


def _numbers_of(tensor: Any) -> NDArray[Any] | None:
    """None where an earlier change left none."""
    try:
        return np.array(numpy_helper.to_array(tensor))
    except (ValueError, TypeError, KeyError):
        return None


def _change_numbers(draw: st.DrawFn, tensor: Any, *, cast: bool, resized: bool) -> None:
    values = _numbers_of(tensor)
    assert values is not None
    if cast:
        with np.errstate(all="ignore"):
            values = values.astype(draw(st.sampled_from(["f4", "f8", "f2", "i4", "i8", "u1", "i1", "?"])))
        values = values.reshape(draw(st.sampled_from([values.shape, (-1,), values.shape[::-1], (1, *values.shape)])))
    elif resized:
        shape = list(values.shape) or [1]
        shape[draw(st.integers(0, len(shape) - 1))] = draw(st.sampled_from([0, 1, 2, 3, 5, 12, 13, 24, 500]))
        values = np.resize(values, shape)
    elif values.size and values.dtype.kind in "fi":
        flat, most = values.reshape(-1), np.finfo("f4").max if values.dtype.kind == "f" else np.iinfo(values.dtype).max
        of_type = [one for one in (_FLOATS if values.dtype.kind == "f" else _INTEGERS) if -most - 1 <= one <= most]
        for _ in range(draw(st.integers(1, 3))):
            with np.errstate(over="ignore"):
                flat[draw(st.integers(0, flat.size - 1))] = draw(st.sampled_from(of_type))
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


def _change_ends(draw: st.DrawFn, graph: Any) -> None:
    """An input or output of the graph."""
    ends = draw(st.sampled_from([graph.input, graph.output]))
    one = ends[draw(st.integers(0, len(ends) - 1))]
    action = draw(st.sampled_from(["type", "shape", "name", "remove", "repeat"]))
    if action == "type":
        one.type.tensor_type.elem_type = draw(st.sampled_from([0, 99, *_TYPES]))
    elif action == "shape":
        dims = one.type.tensor_type.shape.dim
        if not dims or not draw(st.integers(0, 3)):
            one.type.tensor_type.ClearField("shape")
        elif draw(st.booleans()):
            dims[draw(st.integers(0, len(dims) - 1))].dim_value = draw(numbers)
        else:
            dims[draw(st.integers(0, len(dims) - 1))].dim_param = draw(st.sampled_from(["", "batch", "k", "x"]))
    elif action == "name":
        one.name = draw(st.sampled_from(["", *_names(graph)]))
    elif action == "remove":
        ends.remove(one)
    else:
        ends.append(copy.deepcopy(one))


@st.composite
def changed_graph(draw: st.DrawFn, content: bytes) -> bytes:
    """It with up to three of its parts changed; each is still protobuf."""
    model = onnx.ModelProto.FromString(content)
    for _ in range(draw(st.sampled_from([1, 1, 1, 2, 3]))):
        part = draw(st.sampled_from([_change_node, _change_node, _change_weights, _change_ends, None]))
        if part is None:
            model.ir_version = draw(st.sampled_from([model.ir_version, 3, 0, 2**31, 99]))
            model.opset_import[0].version = draw(st.sampled_from([1, 7, 13, 18, 22, 0, -1, 10**6]))
        elif model.graph.node and model.graph.initializer and model.graph.input and model.graph.output:
            part(draw, model.graph)
    return bytes(model.SerializeToString())


@pytest.fixture(scope="module")
def opener() -> Iterator[Opener]:
    opener = Opener()
    yield opener
    opener.close()


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bundles")
    return {name: tiny.write(folder / name) for name, tiny in TINY.items()}


@pytest.mark.parametrize("name", TINY)
@given(data=st.data())
def test_any_graph_ranks_or_is_refused(
    name: str, opener: Opener, written: dict[str, Path], data: st.DataObject
) -> None:
    bundle = written[name].parent / "changed"
    shutil.rmtree(bundle, ignore_errors=True)
    shutil.copytree(written[name], bundle)
    file = bundle / data.draw(st.sampled_from(sorted(path.name for path in bundle.glob("*.onnx"))))
    content = file.read_bytes()
    file.write_bytes(data.draw(changed_graph(content) | changed_graph(content) | damaged(content)))
    seal(bundle)
    told = opener.open(bundle, forged=data.draw(st.booleans()))
    assert told.startswith(("served", "refused: ", "ended: ")), told
    if told.startswith("ended: "):
        _is_found_by_a_trial(bundle)


def _is_found_by_a_trial(bundle: Path) -> None:
    with pytest.raises(BundleError):
        try_bundle(
            str(bundle), manifest_sha256=None, cache_dir=bundle, adjusts=False, rows=False, batches=(1, 8),
            memory_mb=512, seconds=20.0,
        )  # fmt: skip


@pytest.mark.parametrize("name", TINY)
def test_a_graph_as_it_was_ranks(name: str, opener: Opener, written: dict[str, Path]) -> None:
    for forged in (False, True):
        assert opener.open(written[name], forged=forged) == "served"


def test_a_name_that_is_no_text_is_refused(written: dict[str, Path], tmp_path: Path) -> None:
    """ONNX Runtime loads it, and says so only when it is asked for the shape."""
    bundle = shutil.copytree(written["none"], tmp_path / "v1")
    content = (bundle / "rank.onnx").read_bytes()
    (bundle / "rank.onnx").write_bytes(content.replace(b"\x12\x05batch", b"\x12\x05b\xa1tch"))
    seal(bundle)
    with pytest.raises(BundleError, match=r"^rank\.onnx: ONNX Runtime cannot load it: 'utf-8' codec"):
        open_bundle(bundle)
