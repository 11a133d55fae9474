"""Reading ONNX bytes: against files of the `onnx` package, and against any other bytes."""

import contextlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from schemas.bundle.onnx_file import check_onnx_file
from schemas.errors import BundleError

N = 7


def file(*tensors: Any, node: Any = None) -> bytes:
    nodes = [node or helper.make_node("Identity", ["x"], ["y"])]
    graph = helper.make_graph(nodes, "g", [], [], initializer=list(tensors))
    return bytes(helper.make_model(graph).SerializeToString())


def check(data: bytes) -> None:
    check_onnx_file("rank.onnx", data, catalogue_size=N)


ITEMS = numpy_helper.from_array(np.zeros((2, N), dtype=np.float32), "items")
FLOATS = [TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16]


def tensor(dtype: int, values: list[float], *, raw: bool) -> Any:
    if raw and dtype == TensorProto.BFLOAT16:
        bits = (np.asarray(values, dtype=np.float32).view(np.uint32) >> 16).astype("<u2").tobytes()
        return helper.make_tensor("w", dtype, [len(values)], bits, raw=True)
    if raw:
        return numpy_helper.from_array(np.asarray(values, dtype=helper.tensor_dtype_to_np_dtype(dtype)), "w")
    return helper.make_tensor("w", dtype, [len(values)], values)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("raw", [True, False])
def test_weights_must_be_finite(dtype: int, raw: bool) -> None:
    check(file(ITEMS, tensor(dtype, [0.0, -1.5, 3.0], raw=raw)))
    for bad in (float("nan"), float("inf"), -float("inf")):
        with pytest.raises(BundleError, match=r"^rank\.onnx: the weights 'w' hold values that are not finite"):
            check(file(ITEMS, tensor(dtype, [0.0, bad, 3.0], raw=raw)))


def test_an_infinity_may_be_a_masks_constant() -> None:
    check(file(ITEMS, tensor(TensorProto.FLOAT, [-float("inf")], raw=True)))
    with pytest.raises(BundleError, match="not finite"):
        check(file(ITEMS, tensor(TensorProto.FLOAT, [float("nan")], raw=True)))


def test_integers_are_no_floats() -> None:
    check(file(ITEMS, numpy_helper.from_array(np.full(3, -1, dtype=np.int64), "minus")))
    check(file(ITEMS, helper.make_tensor("w", TensorProto.INT32, [2], [-1, 2**31 - 1])))


def nested(inner: Any) -> Any:
    """A tensor in a constant in a branch of an If."""
    constant = helper.make_node("Constant", [], ["c"], value=inner)
    branch = helper.make_graph([constant], "branch", [], [])
    return helper.make_node("If", ["x"], ["y"], then_branch=branch, else_branch=branch)


def outside(name: str = "w") -> Any:
    external = helper.make_tensor(name, TensorProto.FLOAT, [1], [1.0])
    external.ClearField("float_data")
    external.data_location = TensorProto.EXTERNAL
    external.external_data.add(key="location", value="../../etc/passwd")
    return external


def test_tensors_inside_branches_are_read() -> None:
    check(file(ITEMS, node=nested(tensor(TensorProto.FLOAT, [1.0, 2.0], raw=True))))
    with pytest.raises(BundleError, match="not finite"):
        check(file(ITEMS, node=nested(tensor(TensorProto.FLOAT, [1.0, float("nan")], raw=True))))
    with pytest.raises(BundleError, match="outside the file"):
        check(file(ITEMS, node=nested(outside())))


def test_functions_and_sparse_tensors_are_refused() -> None:
    model = helper.make_model(helper.make_graph([], "g", [], [], initializer=[ITEMS]))
    constant = helper.make_node("Constant", [], ["c"], value=ITEMS)
    model.functions.append(helper.make_function("d", "f", [], ["c"], [constant], [helper.make_opsetid("", 18)]))
    with pytest.raises(BundleError, match="has functions of its own"):
        check(model.SerializeToString())
    sparse = helper.make_model(helper.make_graph([], "g", [], [], initializer=[ITEMS]))
    indices = helper.make_tensor("i", TensorProto.INT64, [1], [0])
    sparse.graph.sparse_initializer.append(
        helper.make_sparse_tensor(tensor(TensorProto.FLOAT, [1.0], raw=True), indices, [1])
    )
    with pytest.raises(BundleError, match="has sparse weights"):
        check(sparse.SerializeToString())


@pytest.mark.parametrize(
    ("operator", "domain", "problem"),
    [
        ("Gelu", "com.microsoft", "has operators of 'com.microsoft'; use ONNX's own alone"),
        ("TreeEnsemble", "ai.onnx.ml", "has operators of 'ai.onnx.ml'"),
        ("Loop", "", "has the operator Loop; a graph that is served has no loops"),
        ("Scan", "ai.onnx", "has the operator Scan"),
        ("SequenceMap", "", "has the operator SequenceMap"),
    ],
)
def test_operators_that_others_may_not_have_and_loops_are_refused(operator: str, domain: str, problem: str) -> None:
    node = helper.make_node(operator, ["x"], ["y"], domain=domain)
    branch = helper.make_graph([node], "branch", [], [])
    for whole in (node, helper.make_node("If", ["x"], ["y"], then_branch=branch, else_branch=branch)):
        with pytest.raises(BundleError, match=rf"^rank\.onnx: {problem}"):
            check(file(ITEMS, node=whole))
    check(file(ITEMS, node=helper.make_node("GRU", ["x", "w", "r"], ["y"], domain="ai.onnx", hidden_size=3)))


@pytest.mark.parametrize("operator", ["Concat", "Einsum", "LayerNormalization", "Max", "Mean", "Min", "Sum"])
def test_an_input_that_is_left_out_is_refused_where_onnx_runtime_would_end_the_process(operator: str) -> None:
    check(file(ITEMS, node=helper.make_node(operator, ["x", "x"], ["y"])))
    with pytest.raises(BundleError, match=rf"^rank\.onnx: has the operator {operator} with an input that is left out"):
        check(file(ITEMS, node=helper.make_node(operator, ["x", "", "x"], ["y"])))
    check(file(ITEMS, node=helper.make_node("GRU", ["x", "w", "r", "", "", "h"], ["y"], hidden_size=3)))


@pytest.mark.parametrize(
    ("attribute", "served"),
    [
        ({"value_float": 1.0}, True),
        ({"value_float": float("-inf")}, True),
        ({"value_float": float("nan")}, False),
        ({"value_floats": [1.0, 2.0]}, True),
        ({"value_floats": [1.0, float("nan")]}, False),
    ],
)
def test_numbers_of_operators_are_read(attribute: dict[str, Any], served: bool) -> None:
    content = file(ITEMS, node=helper.make_node("Constant", [], ["c"], **attribute))
    if served:
        check(content)
    else:
        with pytest.raises(BundleError, match=r"^rank\.onnx: an operator's attribute is not a number"):
            check(content)


@pytest.mark.parametrize("only", ["location", "data"])
def test_either_mark_of_external_data_is_enough(only: str) -> None:
    external = outside()
    external.ClearField("external_data" if only == "location" else "data_location")
    with pytest.raises(BundleError, match=r"^rank\.onnx: keeps weights outside the file"):
        check(file(ITEMS, external))


def test_another_catalogue_is_refused() -> None:
    with pytest.raises(BundleError, match="no weights for a catalogue of 8 items"):
        check_onnx_file("rank.onnx", file(ITEMS), catalogue_size=8)


def test_nothing_but_onnx() -> None:
    for data in (b"", b"hello", b"\x80" * 40, b"\x3a\xff\xff\xff\xff\x0f"):
        with pytest.raises(BundleError, match=r"^rank\.onnx: "):
            check(data)


def test_endless_nesting_is_refused() -> None:
    data = b""
    for _ in range(200):  # graph in attribute in node in graph
        node = b"\x2a" + length(b"\x32" + length(data))
        data = b"\x0a" + length(node)
    with pytest.raises(BundleError, match="nested too deep"):
        check(b"\x3a" + length(data))


def length(data: bytes) -> bytes:
    size, prefix = len(data), bytearray()
    while size >= 128:
        prefix.append(size & 127 | 128)
        size >>= 7
    return bytes([*prefix, size]) + data


GOOD = file(ITEMS, tensor(TensorProto.FLOAT16, [1.0, 2.0], raw=False), node=nested(tensor(1, [1.0], raw=True)))


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    with pytest.raises(BundleError):
        check(data)


@given(st.integers(0, len(GOOD) - 1), st.integers(1, 255))
def test_any_damage_is_read_or_refused(place: int, bits: int) -> None:
    damaged = bytearray(GOOD)
    damaged[place] ^= bits
    with contextlib.suppress(BundleError):
        check(bytes(damaged))
