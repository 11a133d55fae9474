"""Matrix products whose right factor has few columns, which it needs neither to copy nor to turn round.

A step's gradients are such products: a BLAS packs both factors anew for each of them, and pads 100 columns to its own
tiles. Here three rows of the result stay in registers while the inner index runs, as many columns at once as registers
allow. That takes the 32 registers of 512 bits that AVX-512 has; other processors get the BLAS's product.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from llvmlite import binding, ir  # type: ignore[import-untyped]
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from trainer.compilation import compiled

Matrix = Any  # float32[rows, columns]

_REGISTERS = bool(binding.get_host_cpu_features().get("avx512f"))
_ROWS, _VECTORS, _LANES, _SHORT = 3, 7, 16, 4  # of a tile; numbers in a vector, and in a short one for what is left
_CHUNK = _VECTORS * _LANES
_WIDEST = 256  # with 480 columns and more the BLAS was faster: rows as far apart crowd each other out of the caches
_DEPTH = 384  # of the inner index at once: that much of the right factor stays in the second cache
_I32, _I64, _F32 = ir.IntType(32), ir.IntType(64), ir.FloatType()


@compiled
def product(a: Matrix, b: Matrix, out: Matrix) -> None:
    """out [m, w] = a [m, k] b [k, w]; the numbers of a row of b, and of out, next to each other."""
    if not _REGISTERS or b.shape[1] > _WIDEST:
        np.dot(a, b, out)
        return
    depth, width = b.shape
    chunks = (width + _CHUNK - 1) // _CHUNK
    chunk = (width + chunks * _LANES - 1) // (chunks * _LANES) * _LANES
    for column in range(0, width, chunk):
        columns = min(chunk, width - column)
        for first in range(0, depth, _DEPTH):
            last = min(first + _DEPTH, depth)
            for row in range(0, len(out), _ROWS):
                _tile(a, b, out, row, column, columns, first, last)  # type: ignore[call-arg]


@intrinsic
def _tile(_context: Any, a: Any, b: Any, out: Any, row: Any, column: Any, columns: Any, first: Any, last: Any) -> Any:
    """Three rows of some columns (``_CHUNK`` at most): plus a's numbers first..last of a row times b's rows.

    With a ``first`` of 0 the result begins there. Rows beyond the last one are the last one once more.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        arrays = [
            context.make_array(kind)(context, builder, value)
            for kind, value in zip(signature.args[:3], arguments[:3], strict=True)
        ]
        row, column, columns, first, last = arguments[3:]

        def place(array: Any, i: Any, j: Any) -> Any:
            strides = cgutils.unpack_tuple(builder, array.strides)  # type: ignore[no-untyped-call]
            offset = builder.add(builder.mul(i, strides[0]), builder.mul(j, strides[1]))
            return builder.gep(builder.bitcast(array.data, ir.IntType(8).as_pointer()), [offset])

        a, b, out = arrays
        bottom = builder.sub(cgutils.unpack_tuple(builder, out.shape)[0], _I64(1))  # type: ignore[no-untyped-call]
        rows = []
        for r in range(_ROWS):
            at = builder.add(row, _I64(r))
            rows.append(builder.select(builder.icmp_signed("<", at, bottom), at, bottom))
        loop = _Loop(
            count=builder.sub(last, first),
            begins=builder.icmp_signed("==", first, _I64(0)),
            a=[place(a, at, first) for at in rows],
            a_step=cgutils.unpack_tuple(builder, a.strides)[1],  # type: ignore[no-untyped-call]
            b=place(b, first, column),
            b_step=cgutils.unpack_tuple(builder, b.strides)[0],  # type: ignore[no-untyped-call]
            out=[place(out, at, column) for at in rows],
        )
        # A loop for each number of vectors, whose last one may be a short one.
        vectors = builder.sdiv(builder.add(columns, _I64(_LANES - 1)), _I64(_LANES))
        rest = builder.sub(columns, builder.mul(builder.sub(vectors, _I64(1)), _I64(_LANES)))
        short = builder.zext(builder.icmp_signed("<=", rest, _I64(_SHORT)), _I64)
        end = builder.append_basic_block("end")
        switch = builder.switch(builder.add(builder.mul(vectors, _I64(2)), short), end)
        for count in range(1, _VECTORS + 1):
            for lanes in (_LANES, _SHORT):
                block = builder.append_basic_block("tile")
                switch.add_case(_I64(2 * count + (lanes == _SHORT)), block)
                builder.position_at_end(block)
                loop.write(builder, [_LANES] * (count - 1) + [lanes], builder.trunc(rest, _I32))
                builder.branch(end)
        builder.position_at_end(end)
        return context.get_dummy_value()

    return types.void(a, b, out, *[types.intp] * 5), generate


@dataclass(frozen=True)
class _Loop:
    """What the loops over the inner index have in common: addresses, and by how many bytes a step moves them."""

    count: Any
    begins: Any
    a: list[Any]
    a_step: Any
    b: Any
    b_step: Any
    out: list[Any]

    def write(self, builder: Any, vectors: list[int], rest: Any) -> None:
        """The instructions of one tile with such vectors, of whose last one ``rest`` numbers count."""
        kinds = [ir.VectorType(_F32, lanes) for lanes in vectors]
        lanes = vectors[-1]
        some = builder.icmp_signed(
            ">", _spread(builder, rest, _I32, lanes), ir.Constant(ir.VectorType(_I32, lanes), list(range(lanes)))
        )

        def at(base: Any, v: int) -> Any:
            return builder.bitcast(builder.gep(base, [_I64(4 * _LANES * v)]), kinds[v].as_pointer())

        def load(base: Any, v: int) -> Any:
            if v + 1 < len(vectors):
                return builder.load(at(base, v), align=4)
            nothing = ir.Constant(kinds[v], [0.0] * lanes)
            name = f"llvm.masked.load.v{lanes}f32.p0"
            return _call(builder, name, kinds[v], at(base, v), _I32(4), some, nothing)

        def store(value: Any, base: Any, v: int) -> None:
            if v + 1 < len(vectors):
                builder.store(value, at(base, v), align=4)
            else:
                name = f"llvm.masked.store.v{lanes}f32.p0"
                _call(builder, name, ir.VoidType(), value, at(base, v), _I32(4), some)

        tile = [(r, v) for r in range(len(self.out)) for v in range(len(vectors))]
        sums = {place: cgutils.alloca_once(builder, kinds[place[1]]) for place in tile}  # type: ignore[no-untyped-call]
        with builder.if_else(self.begins) as (yes, no):
            with yes:
                for r, v in tile:
                    builder.store(ir.Constant(kinds[v], [0.0] * vectors[v]), sums[r, v])
            with no:
                for r, v in tile:
                    builder.store(load(self.out[r], v), sums[r, v])
        with cgutils.for_range(builder, self.count) as step:
            offset = builder.mul(step.index, self.a_step)
            factors = [builder.load(builder.bitcast(builder.gep(a, [offset]), _F32.as_pointer())) for a in self.a]
            b = builder.gep(self.b, [builder.mul(step.index, self.b_step)])
            for v, kind in enumerate(kinds):
                numbers = load(b, v)
                for r, factor in enumerate(factors):
                    spread = _spread(builder, factor, _F32, vectors[v])
                    name = f"llvm.fma.v{vectors[v]}f32"
                    builder.store(_call(builder, name, kind, spread, numbers, builder.load(sums[r, v])), sums[r, v])
        for r, v in tile:
            store(builder.load(sums[r, v]), self.out[r], v)


def _spread(builder: Any, number: Any, kind: Any, lanes: int) -> Any:
    """A vector that has the number everywhere."""
    nothing = ir.Constant(ir.VectorType(kind, lanes), ir.Undefined)
    first = builder.insert_element(nothing, number, _I32(0))
    return builder.shuffle_vector(first, nothing, ir.Constant(ir.VectorType(_I32, lanes), [0] * lanes))


def _call(builder: Any, name: str, result: Any, *arguments: Any) -> Any:
    kind = ir.FunctionType(result, [argument.type for argument in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), arguments)  # type: ignore[no-untyped-call]
