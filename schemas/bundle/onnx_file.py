"""What an ONNX file may hold, checked on its bytes before ONNX Runtime sees them.

The worker does not install the `onnx` package, and ONNX Runtime does not tell what we must know: whether a tensor's
data lie in another file (it would open any path the graph names), whether a weight is NaN (it would serve it), and
which operators there are. That stands in the protobuf, of which this reads only the fields that lead to tensors and
operators. Field numbers: onnx.proto of ONNX IR version 3 to 13; protobuf keeps them for good. Wire format:
https://protobuf.dev/programming-guides/encoding.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from schemas.errors import BundleError

_MAX_DEPTH: Final = 64

# message -> field number -> message of that field; TENSOR is where a walk ends.
_TENSOR: Final = "TensorProto"
_CHILDREN: Final[dict[str, dict[int, str]]] = {
    "ModelProto": {7: "GraphProto", 20: "TrainingInfoProto", 25: "FunctionProto"},
    "TrainingInfoProto": {1: "GraphProto", 2: "GraphProto"},
    "FunctionProto": {7: "NodeProto", 11: "AttributeProto"},
    "GraphProto": {1: "NodeProto", 5: _TENSOR, 15: "SparseTensorProto"},
    "NodeProto": {5: "AttributeProto"},
    "AttributeProto": {
        5: _TENSOR,
        6: "GraphProto",
        10: _TENSOR,
        11: "GraphProto",
        22: "SparseTensorProto",
        23: "SparseTensorProto",
    },
    "SparseTensorProto": {1: _TENSOR, 2: _TENSOR},
}
_DIMS, _DATA_TYPE, _FLOAT_DATA, _INT32_DATA, _NAME, _RAW_DATA, _DOUBLE_DATA = 1, 2, 4, 5, 8, 9, 10
_EXTERNAL_DATA, _DATA_LOCATION = 13, 14
_OP_TYPE, _DOMAIN = 4, 7  # of a NodeProto
_ONE_FLOAT, _FLOATS = 2, 7  # of an AttributeProto
_STANDARD: Final = (b"", b"ai.onnx")
_LOOPS: Final = (b"Loop", b"Scan", b"SequenceMap")
_FLOAT, _FLOAT16, _DOUBLE, _BFLOAT16 = 1, 10, 11, 16


@dataclass
class _Tensor:
    name: str = ""
    data_type: int = 0
    dims: list[int] = field(default_factory=list)
    finite: bool = True
    nan: bool = False


def check_onnx_file(name: str, data: bytes, *, catalogue_size: int) -> None:
    """Refuse a graph with data outside the file, weights that are not finite, or weights of another catalogue.

    And one with operators that are not ONNX's own, which another machine may not have, or with loops, which may never
    end. An infinity is allowed in a tensor of one element, as a mask's constant. Raises BundleError naming `name`.
    """
    sizes: set[int] = set()
    tensors = 0
    for raw in _tensors(name, memoryview(data), "ModelProto", 0):
        tensor = _read_tensor(name, raw)
        tensors += 1
        elements = int(np.prod(tensor.dims, dtype=object)) if tensor.dims else 1
        if tensor.nan or (not tensor.finite and elements > 1):
            raise BundleError(f"{name}: the weights {tensor.name!r} hold values that are not finite")
        sizes.update(tensor.dims)
    if not tensors:
        raise BundleError(f"{name}: no ONNX graph with weights")
    if catalogue_size not in sizes:
        raise BundleError(f"{name}: no weights for a catalogue of {catalogue_size} items")


def turned_on(name: str, data: bytes, constant: str) -> bytes | None:
    """The graph with its bool constant of this name true; None if it has no such constant."""
    turned = bytearray(data)
    for tensor in _tensors(name, memoryview(turned), "ModelProto", 0):
        fields = {number: value for number, value in _fields(name, tensor) if isinstance(value, memoryview)}
        if (
            bytes(fields.get(_NAME, b"")) == constant.encode()
            and len(value := fields.get(_RAW_DATA, memoryview(b""))) == 1
        ):
            value[0] = 1
            return bytes(turned)
    return None


def float_tensor(name: str, data: bytes, tensor: str) -> NDArray[np.float32] | None:
    """The graph's float32 tensor of this name; None if it has none. Raises BundleError naming `name`."""
    for raw in _tensors(name, memoryview(data), "ModelProto", 0):
        fields = list(_fields(name, raw))
        names = [value for number, value in fields if number == _NAME and isinstance(value, memoryview)]
        if [bytes(one) for one in names] != [tensor.encode()]:
            continue
        found = _read_tensor(name, raw)
        for number, value in fields:
            if found.data_type == _FLOAT and number in (_RAW_DATA, _FLOAT_DATA):
                values = _floats(name, _FLOAT, number, value)
                if values is not None and len(values) == int(np.prod(found.dims, dtype=object)):
                    return values.astype(np.float32, copy=False).reshape(found.dims)
    return None


def float_tensors(name: str, data: bytes) -> dict[str, tuple[int, ...]]:
    """The graph's float32 tensors: name -> shape. Raises BundleError naming `name`."""
    found = (_read_tensor(name, raw) for raw in _tensors(name, memoryview(data), "ModelProto", 0))
    return {tensor.name: tuple(tensor.dims) for tensor in found if tensor.data_type == _FLOAT}


def _tensors(name: str, message: memoryview, kind: str, depth: int) -> Iterator[memoryview]:
    if depth > _MAX_DEPTH:
        raise BundleError(f"{name}: nested too deep")
    children = _CHILDREN[kind]
    for number, value in _fields(name, message):
        if kind == "NodeProto" and number in (_OP_TYPE, _DOMAIN):
            _check_operator(name, number, value)
        if kind == "AttributeProto" and number in (_ONE_FLOAT, _FLOATS) and isinstance(value, memoryview):
            _check_attribute(name, value)
        child = children.get(number)
        if child is None or not isinstance(value, memoryview):
            continue
        if child == _TENSOR:
            yield value
        else:
            yield from _tensors(name, value, child, depth + 1)


def _check_operator(name: str, number: int, value: int | memoryview) -> None:
    text = b"" if isinstance(value, int) else bytes(value)
    if number == _DOMAIN and text not in _STANDARD:
        raise BundleError(f"{name}: has operators of {text.decode(errors='replace')!r}; use ONNX's own alone")
    if number == _OP_TYPE and text in _LOOPS:
        raise BundleError(f"{name}: has the operator {text.decode()}; a graph that is served has no loops")


def _check_attribute(name: str, numbers: memoryview) -> None:
    """Of an operator, as a constant's; they may come one by one, so an infinity cannot be told from a mask's."""
    floats = _floats(name, _FLOAT, _FLOAT_DATA, numbers)
    assert floats is not None
    if np.isnan(floats).any():
        raise BundleError(f"{name}: an operator's attribute is not a number")


def _read_tensor(name: str, message: memoryview) -> _Tensor:
    tensor = _Tensor()
    numbers: list[tuple[int, int | memoryview]] = []
    for number, value in _fields(name, message):
        if number == _EXTERNAL_DATA or (number == _DATA_LOCATION and value != 0):
            raise BundleError(f"{name}: keeps weights outside the file (ONNX external data); export them inside")
        if number == _DATA_TYPE and isinstance(value, int):
            tensor.data_type = value
        elif number == _NAME and isinstance(value, memoryview):
            tensor.name = bytes(value).decode(errors="replace")
        elif number == _DIMS:
            tensor.dims += [value] if isinstance(value, int) else _packed(name, value)
        elif number in (_RAW_DATA, _FLOAT_DATA, _DOUBLE_DATA, _INT32_DATA):
            numbers.append((number, value))
    for number, value in numbers:
        floats = _floats(name, tensor.data_type, number, value)
        if floats is not None:
            tensor.finite = tensor.finite and bool(np.isfinite(floats).all())
            tensor.nan = tensor.nan or bool(np.isnan(floats).any())
    return tensor


def _floats(name: str, data_type: int, number: int, value: int | memoryview) -> NDArray[np.floating[Any]] | None:
    """The numbers of one data field, None for integers. Only floating-point types can be NaN."""
    if data_type not in (_FLOAT, _FLOAT16, _DOUBLE, _BFLOAT16):
        return None
    if number == _INT32_DATA:  # float16 and bfloat16 as varints of their bits
        bits = np.asarray([value] if isinstance(value, int) else _packed(name, value), dtype=np.uint64)
        raw = memoryview(bits.astype("<u2").tobytes())
    elif isinstance(value, int):
        raise BundleError(f"{name}: damaged: a number where weights should be")
    else:
        raw = value
    if number == _FLOAT_DATA or (number == _RAW_DATA and data_type == _FLOAT):
        dtype = "<f4"
    elif number == _DOUBLE_DATA or (number == _RAW_DATA and data_type == _DOUBLE):
        dtype = "<f8"
    else:
        dtype = "<f2" if data_type == _FLOAT16 else "<u2"
    if len(raw) % np.dtype(dtype).itemsize:
        raise BundleError(f"{name}: damaged: weights end in the middle of a number")
    if dtype == "<u2":  # bfloat16 is the upper half of a float32
        return (np.frombuffer(raw, dtype=dtype).astype(np.uint32) << 16).view(np.float32)
    return np.frombuffer(raw, dtype=dtype)


def _packed(name: str, message: memoryview) -> list[int]:
    values, at = [], 0
    while at < len(message):
        value, at = _varint(name, message, at)
        values.append(value)
    return values


def _fields(name: str, message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """(field number, value) of a message: an int for varints, a view for everything that has bytes."""
    at, end = 0, len(message)
    while at < end:
        tag, at = _varint(name, message, at)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            value, at = _varint(name, message, at)
            yield number, value
            continue
        if wire == 1:
            size = 8
        elif wire == 2:
            size, at = _varint(name, message, at)
        elif wire == 5:
            size = 4
        else:
            raise BundleError(f"{name}: no ONNX file, or damaged (protobuf wire type {wire})")
        if number == 0 or size > end - at:
            raise BundleError(f"{name}: no ONNX file, or truncated")
        yield number, message[at : at + size]
        at += size


def _varint(name: str, message: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(message) or shift > 63:
            raise BundleError(f"{name}: no ONNX file, or truncated")
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
