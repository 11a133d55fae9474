"""What an ONNX file may hold, checked on its bytes before ONNX Runtime sees them.

The worker does not install the `onnx` package, and ONNX Runtime does not tell what we must know: whether a tensor's
data lie in another file (it would open any path the graph names), whether a weight is NaN (it would serve it), which
operators there are, and what would grow while it is read. That stands in the protobuf, of which this reads only the
fields that lead to tensors and operators. Field numbers: onnx.proto of ONNX IR version 3 to 13; protobuf keeps them for
good. Wire format: https://protobuf.dev/programming-guides/encoding.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from schemas.bundle.operators import COMPLETE, LOOPS, SERVED
from schemas.errors import BundleError

_MAX_DEPTH: Final = 64
_MOST_FIELDS: Final = 2_000_000
"""Of a file: graphs of ours have some thousands. It takes this code a microsecond each."""
_MOST_NAME: Final = 200
_MOST_DIMENSIONS: Final = 32
_MOST_A_BYTE: Final = 4
"""Elements of a tensor: no type of ONNX is smaller than two bits."""

# message -> field number -> message of that field; TENSOR is where a walk ends.
_TENSOR: Final = "TensorProto"
_CHILDREN: Final[dict[str, dict[int, str]]] = {
    "ModelProto": {7: "GraphProto"},
    "GraphProto": {1: "NodeProto", 5: _TENSOR},
    "NodeProto": {5: "AttributeProto"},
    "AttributeProto": {5: _TENSOR, 6: "GraphProto", 10: _TENSOR, 11: "GraphProto"},
}
# A function is written out wherever it is called, and a sparse tensor made a whole one: a few bytes become gigabytes.
_REFUSED: Final = {
    ("ModelProto", 20): "has graphs for training",
    ("ModelProto", 25): "has functions of its own",
    ("GraphProto", 15): "has sparse weights",
    ("AttributeProto", 22): "has sparse weights",
    ("AttributeProto", 23): "has sparse weights",
}
_DIMS, _DATA_TYPE, _FLOAT_DATA, _INT32_DATA, _NAME, _RAW_DATA, _DOUBLE_DATA = 1, 2, 4, 5, 8, 9, 10
_EXTERNAL_DATA, _DATA_LOCATION = 13, 14
_INPUT, _OP_TYPE, _DOMAIN = 1, 4, 7  # of a NodeProto
_ONE_FLOAT, _FLOATS = 2, 7  # of an AttributeProto
_STANDARD: Final = (b"", b"ai.onnx")
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

    And one with operators that are not ONNX's own, which another machine may not have, with loops, which may never
    end, or with what is larger in memory than in the file. An infinity is allowed in a tensor of one element, as a
    mask's constant. Raises BundleError naming `name`.
    """
    sizes: set[int] = set()
    tensors = 0
    file = _File(name)
    for raw in file.tensors(memoryview(data)):
        tensor = file.tensor(raw)
        tensors += 1
        elements = int(np.prod(tensor.dims, dtype=object)) if tensor.dims else 1
        if elements > _MOST_A_BYTE * len(raw):
            raise BundleError(f"{name}: the weights {tensor.name!r} are to be {elements}, of {len(raw)} bytes")
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
    file = _File(name)
    for tensor in file.tensors(memoryview(turned)):
        fields = {number: value for number, value in file.fields(tensor) if isinstance(value, memoryview)}
        if (
            bytes(fields.get(_NAME, b"")) == constant.encode()
            and len(value := fields.get(_RAW_DATA, memoryview(b""))) == 1
        ):
            value[0] = 1
            return bytes(turned)
    return None


def float_tensor(name: str, data: bytes, tensor: str) -> NDArray[np.float32] | None:
    """The graph's float32 tensor of this name; None if it has none. Raises BundleError naming `name`."""
    file = _File(name)
    for raw in file.tensors(memoryview(data)):
        fields = list(file.fields(raw))
        names = [value for number, value in fields if number == _NAME and isinstance(value, memoryview)]
        if [bytes(one) for one in names] != [tensor.encode()]:
            continue
        found = file.tensor(raw)
        for number, value in fields:
            if found.data_type == _FLOAT and number in (_RAW_DATA, _FLOAT_DATA):
                values = file.floats(_FLOAT, number, value)
                if values is not None and len(values) == int(np.prod(found.dims, dtype=object)):
                    return values.astype(np.float32, copy=False).reshape(found.dims)
    return None


def float_tensors(name: str, data: bytes) -> dict[str, tuple[int, ...]]:
    """The graph's float32 tensors: name -> shape. Raises BundleError naming `name`."""
    file = _File(name)
    found = (file.tensor(raw) for raw in file.tensors(memoryview(data)))
    return {tensor.name: tuple(tensor.dims) for tensor in found if tensor.data_type == _FLOAT}


class _File:
    """Reads an ONNX file, as long as that takes no more fields than a graph that is served has."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._left = _MOST_FIELDS

    def tensors(self, message: memoryview, kind: str = "ModelProto", depth: int = 0) -> Iterator[memoryview]:
        """Every tensor; raises BundleError for what else is not served."""
        if depth > _MAX_DEPTH:
            raise self._refused("nested too deep")
        children = _CHILDREN[kind]
        called: dict[int, list[bytes]] = {_INPUT: [], _DOMAIN: [], _OP_TYPE: []}
        for number, value in self.fields(message):
            if (problem := _REFUSED.get((kind, number))) is not None:
                raise self._refused(f"{problem}; a graph that is served has none")
            if kind == "NodeProto" and number in called:
                called[number].append(b"" if isinstance(value, int) else bytes(value[:_MOST_NAME]))
            if kind == "AttributeProto" and number in (_ONE_FLOAT, _FLOATS) and isinstance(value, memoryview):
                self._check_attribute(value)
            child = children.get(number)
            if child is None or not isinstance(value, memoryview):
                continue
            if child == _TENSOR:
                yield value
            else:
                yield from self.tensors(value, child, depth + 1)
        self._check_operator(called[_DOMAIN], called[_OP_TYPE], called[_INPUT])

    def _check_operator(self, domains: list[bytes], names: list[bytes], inputs: list[bytes]) -> None:
        for domain in domains:
            if domain not in _STANDARD:
                raise self._refused(f"has operators of {domain.decode(errors='replace')!r}; use ONNX's own alone")
        for name in names:
            told = name.decode(errors="replace")
            if name in LOOPS:
                raise self._refused(f"has the operator {told}; a graph that is served has no loops")
            if name not in SERVED:
                raise self._refused(f"has the operator {told!r}, which is none of those that are served")
            if name in COMPLETE and b"" in inputs:
                raise self._refused(f"has the operator {told} with an input that is left out; name all that it takes")

    def _check_attribute(self, numbers: memoryview) -> None:
        """Of an operator, as a constant's; they may come one by one, so an infinity cannot be told from a mask's."""
        floats = self.floats(_FLOAT, _FLOAT_DATA, numbers)
        assert floats is not None
        if np.isnan(floats).any():
            raise self._refused("an operator's attribute is not a number")

    def tensor(self, message: memoryview) -> _Tensor:
        """What a tensor is, and whether its numbers are some."""
        tensor = _Tensor()
        numbers: list[tuple[int, int | memoryview]] = []
        for number, value in self.fields(message):
            if number == _EXTERNAL_DATA or (number == _DATA_LOCATION and value != 0):
                raise self._refused("keeps weights outside the file (ONNX external data); export them inside")
            if number == _DATA_TYPE and isinstance(value, int):
                tensor.data_type = value
            elif number == _NAME and isinstance(value, memoryview):
                tensor.name = bytes(value[:_MOST_NAME]).decode(errors="replace")
            elif number == _DIMS:
                tensor.dims += [value] if isinstance(value, int) else self._packed(value[: 10 * _MOST_DIMENSIONS])
                if len(tensor.dims) > _MOST_DIMENSIONS:
                    raise self._refused(f"has weights of more than {_MOST_DIMENSIONS} dimensions")
            elif number in (_RAW_DATA, _FLOAT_DATA, _DOUBLE_DATA, _INT32_DATA):
                numbers.append((number, value))
        for number, value in numbers:
            floats = self.floats(tensor.data_type, number, value)
            if floats is not None:
                tensor.finite = tensor.finite and bool(np.isfinite(floats).all())
                tensor.nan = tensor.nan or bool(np.isnan(floats).any())
        return tensor

    def floats(self, data_type: int, number: int, value: int | memoryview) -> NDArray[np.floating[Any]] | None:
        """The numbers of one data field, None for integers. Only floating-point types can be NaN."""
        if data_type not in (_FLOAT, _FLOAT16, _DOUBLE, _BFLOAT16):
            return None
        if number == _INT32_DATA:  # float16 and bfloat16 as varints of their bits
            bits = np.asarray([value] if isinstance(value, int) else self._packed(value), dtype=np.uint64)
            raw = memoryview(bits.astype("<u2").tobytes())
        elif isinstance(value, int):
            raise self._refused("damaged: a number where weights should be")
        else:
            raw = value
        if number == _FLOAT_DATA or (number == _RAW_DATA and data_type == _FLOAT):
            dtype = "<f4"
        elif number == _DOUBLE_DATA or (number == _RAW_DATA and data_type == _DOUBLE):
            dtype = "<f8"
        else:
            dtype = "<f2" if data_type == _FLOAT16 else "<u2"
        if len(raw) % np.dtype(dtype).itemsize:
            raise self._refused("damaged: weights end in the middle of a number")
        if dtype == "<u2":  # bfloat16 is the upper half of a float32
            return (np.frombuffer(raw, dtype=dtype).astype(np.uint32) << 16).view(np.float32)
        return np.frombuffer(raw, dtype=dtype)

    def _packed(self, message: memoryview) -> list[int]:
        values, at = [], 0
        while at < len(message):
            value, at = self._varint(message, at)
            values.append(value)
        return values

    def fields(self, message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
        """(field number, value) of a message: an int for varints, a view for everything that has bytes."""
        at, end = 0, len(message)
        while at < end:
            tag, at = self._varint(message, at)
            number, wire = tag >> 3, tag & 7
            if wire == 0:
                value, at = self._varint(message, at)
                yield number, value
                continue
            if wire == 1:
                size = 8
            elif wire == 2:
                size, at = self._varint(message, at)
            elif wire == 5:
                size = 4
            else:
                raise self._refused(f"no ONNX file, or damaged (protobuf wire type {wire})")
            if number == 0 or size > end - at:
                raise self._refused("no ONNX file, or truncated")
            yield number, message[at : at + size]
            at += size

    def _varint(self, message: memoryview, at: int) -> tuple[int, int]:
        self._left -= 1
        if self._left < 0:
            raise self._refused(f"has more than {_MOST_FIELDS} fields; export its weights as raw data")
        value = shift = 0
        while True:
            if at >= len(message) or shift > 63:
                raise self._refused("no ONNX file, or truncated")
            byte = message[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value, at
            shift += 7

    def _refused(self, problem: str) -> BundleError:
        return BundleError(f"{self._name}: {problem}")
