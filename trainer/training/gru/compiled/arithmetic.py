"""Elementary functions in float32 that the compiler turns into vector instructions."""

from typing import Any

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from trainer.compilation import compiled, strictly_compiled

ZERO, HALF, ONE, TWO = np.float32(0.0), np.float32(0.5), np.float32(1.0), np.float32(2.0)
_LOWEST, _HIGHEST = np.float32(-87.0), np.float32(88.0)  # e^x is a normal number between
_LOG2_E = np.float32(1.4426950408889634)
_LN2_HIGH, _LN2_LOW = np.float32(0.693145751953125), np.float32(1.4286067653e-06)  # ln 2, its last digits apart
_ROUND = np.float32(12582912.0)  # 1.5 * 2^23: x plus this has the integer nearest to x as its last bits
_TAYLOR = tuple(np.float32(1.0 / factorial) for factorial in (720, 120, 24, 6))
_ATANH = tuple(np.float32(2.0 / k) for k in (11, 9, 7, 5, 3, 1))


@intrinsic
def _two_to_the(_context: Any, rounded: Any) -> Any:
    """2^k as float32, from k + ``_ROUND`` as float32: k's bits moved to where a float keeps its exponent."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        word = ir.IntType(32)
        bits = builder.shl(builder.bitcast(arguments[0], word), ir.Constant(word, 23))
        return builder.bitcast(builder.add(bits, ir.Constant(word, 127 << 23)), ir.FloatType())

    return types.float32(types.float32), generate


@intrinsic
def fetch(_context: Any, array: Any, at: Any) -> Any:
    """Ask for the cache line of an element of an array [n] that will be needed soon."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        of = context.make_array(signature.args[0])(context, builder, arguments[0])
        place = cgutils.get_item_pointer(context, builder, signature.args[0], of, [arguments[1]])  # type: ignore[no-untyped-call]
        pointer, word = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [pointer, word, word, word])
        call = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")  # type: ignore[no-untyped-call]
        builder.call(call, [builder.bitcast(place, pointer), word(1), word(3), word(1)])  # to write, keep, data
        return context.get_dummy_value()

    return types.void(array, types.intp), generate


@compiled
def fetch_row(table: Any, row: int) -> None:
    """Ask for a row of a table, so that it is there when its turn comes: rows of a step lie anywhere in memory."""
    numbers = table[row]
    for k in range(0, len(numbers), 16):  # a cache line has 16 numbers
        fetch(numbers, k)  # type: ignore[call-arg]


@strictly_compiled
def exp(x: np.float32) -> np.float32:
    """e^x to 3e-7 of its value, between the least and the greatest normal number; NaN stays NaN."""
    x = _LOWEST if x < _LOWEST else x
    x = _HIGHEST if x > _HIGHEST else x
    rounded = x * _LOG2_E + _ROUND
    k = rounded - _ROUND
    rest = (x - k * _LN2_HIGH) - k * _LN2_LOW  # within ln(2) / 2 of 0
    p = _TAYLOR[0]
    p = p * rest + _TAYLOR[1]
    p = p * rest + _TAYLOR[2]
    p = p * rest + _TAYLOR[3]
    p = p * rest + HALF
    p = p * rest + ONE
    p = p * rest + ONE
    result: np.float32 = p * _two_to_the(rounded)  # type: ignore[call-arg]
    return result


@strictly_compiled
def sigmoid(x: np.float32) -> np.float32:
    return ONE / (ONE + exp(-x))


@strictly_compiled
def tanh(x: np.float32) -> np.float32:
    return ONE - TWO / (ONE + exp(TWO * x))


@strictly_compiled
def softplus(x: np.float32) -> np.float32:
    """ln(1 + e^x), which is -ln σ(-x)."""
    e = exp(-abs(x))
    z = e / (TWO + e)  # ln(1 + e) = 2 atanh(e / (2 + e)), and that is within 1/3
    square = z * z
    p = _ATANH[0]
    p = p * square + _ATANH[1]
    p = p * square + _ATANH[2]
    p = p * square + _ATANH[3]
    p = p * square + _ATANH[4]
    p = p * square + _ATANH[5]
    return (x if x > ZERO else ZERO) + p * z
