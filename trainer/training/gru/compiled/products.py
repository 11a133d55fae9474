"""Matrix products whose right factor has few columns, which it needs neither to copy nor to turn round.

A step's gradients are such products: a BLAS packs both factors anew for each of them, and pads 100 columns to its own
tiles. Here some rows of the result stay in registers while the inner index runs, as many columns at once as registers
allow: how many that are depends on the processor. One without AVX2 gets the BLAS's product.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba import config, types
from numba.core import cgutils
from numba.core.codegen import get_host_cpu_features
from numba.extending import intrinsic

from trainer.compilation import compiled

Matrix = Any  # float32[rows, columns]


@dataclass(frozen=True)
class Tile:
    """The part of a result that stays in registers.

    Attributes:
        rows: of the result.
        vectors: of each row.
        lanes: numbers in a vector.
        depth: of the inner index at once: so much of the right factor's columns stays in a cache.
        masks: whether a vector with a mask is as fast as one without.
    """

    rows: int
    vectors: int
    lanes: int
    depth: int
    masks: bool


AVX512 = Tile(rows=3, vectors=7, lanes=16, depth=384, masks=True)  # 32 registers
AVX2 = Tile(rows=6, vectors=2, lanes=8, depth=128, masks=False)  # 16

_SHORT = 4  # numbers in a vector for what is left
_WIDEST = 256  # with 480 columns and more the BLAS was faster: rows as far apart crowd each other out of the caches
_I32, _I64, _F32 = ir.IntType(32), ir.IntType(64), ir.FloatType()


def target_features() -> str:
    """Of the processor that Numba compiles for, as LLVM writes them; NUMBA_CPU_FEATURES may name one of fewer."""
    told = config.CPU_FEATURES  # type: ignore[attr-defined]
    return str(get_host_cpu_features() if told is None else told)  # type: ignore[no-untyped-call]


def tile_of(features: str) -> Tile | None:
    """The tile for a processor with such features; None where the BLAS is to multiply."""
    has = set(features.split(","))
    if "+avx512f" in has:
        return AVX512
    return AVX2 if {"+avx2", "+fma"} <= has else None


def product_by(tile: Tile | None) -> Callable[[Matrix, Matrix, Matrix], None]:
    """The product that keeps such a tile in registers."""
    if tile is None:

        @compiled
        def by_blas(a: Matrix, b: Matrix, out: Matrix) -> None:
            np.dot(a, b, out)

        return by_blas
    rows, most, lanes, deepest, add = tile.rows, tile.vectors * tile.lanes, tile.lanes, tile.depth, _tile(tile)

    @compiled
    def product(a: Matrix, b: Matrix, out: Matrix) -> None:
        """out [m, w] = a [m, k] b [k, w]; the numbers of a row of b, and of out, next to each other."""
        if b.shape[1] > _WIDEST:
            np.dot(a, b, out)
            return
        depth, width = b.shape
        chunks = (width + most - 1) // most
        chunk = (width + chunks * lanes - 1) // (chunks * lanes) * lanes
        for column in range(0, width, chunk):
            columns = min(chunk, width - column)
            for first in range(0, depth, deepest):
                last = min(first + deepest, depth)
                for row in range(0, len(out), rows):
                    add(a, b, out, row, column, columns, first, last)

    return product


def _tile(tile: Tile) -> Any:
    """What adds to a tile."""

    @intrinsic
    def add(_context: Any, a: Any, b: Any, out: Any, row: Any, column: Any, columns: Any, first: Any, last: Any) -> Any:
        """Some rows of some columns: plus a's numbers first..last of a row times b's rows.

        With a ``first`` of 0 the result begins there. Rows beyond the last one are the last one once more.
        """

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            arrays = [
                context.make_array(kind)(context, builder, value)
                for kind, value in zip(signature.args[:3], arguments[:3], strict=True)
            ]
            _write(tile, builder, arrays, arguments[3:])
            return context.get_dummy_value()

        return types.void(a, b, out, *[types.intp] * 5), generate

    return add


def _write(tile: Tile, builder: Any, arrays: list[Any], arguments: list[Any]) -> None:
    """The instructions that add to a tile: a loop for each number of vectors, whose last one may be a short one."""
    a, b, out = arrays
    row, column, columns, first, last = arguments

    def place(array: Any, i: Any, j: Any) -> Any:
        strides = cgutils.unpack_tuple(builder, array.strides)  # type: ignore[no-untyped-call]
        offset = builder.add(builder.mul(i, strides[0]), builder.mul(j, strides[1]))
        return builder.gep(builder.bitcast(array.data, ir.IntType(8).as_pointer()), [offset])

    bottom = builder.sub(cgutils.unpack_tuple(builder, out.shape)[0], _I64(1))  # type: ignore[no-untyped-call]
    rows = []
    for r in range(tile.rows):
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
    vectors = builder.sdiv(builder.add(columns, _I64(tile.lanes - 1)), _I64(tile.lanes))
    rest = builder.sub(columns, builder.mul(builder.sub(vectors, _I64(1)), _I64(tile.lanes)))
    short = builder.icmp_signed("<=", rest, _I64(_SHORT))
    whole = ir.Constant(ir.IntType(1), 0)
    if not tile.masks:
        full = builder.select(short, _I64(_SHORT), _I64(tile.lanes))
        whole = builder.icmp_signed("==", rest, full)
    end = builder.append_basic_block("end")
    kind = builder.add(builder.mul(builder.zext(short, _I64), _I64(2)), builder.zext(whole, _I64))
    switch = builder.switch(builder.add(builder.mul(vectors, _I64(4)), kind), end)
    for count in range(1, tile.vectors + 1):
        for lanes in (tile.lanes, _SHORT):
            for masked in (True,) if tile.masks else (True, False):
                block = builder.append_basic_block("tile")
                switch.add_case(_I64(4 * count + 2 * (lanes == _SHORT) + (not masked)), block)
                builder.position_at_end(block)
                vectors_of = [tile.lanes] * (count - 1) + [lanes]
                loop.write(builder, vectors_of, builder.trunc(rest, _I32) if masked else None)
                builder.branch(end)
    builder.position_at_end(end)


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
        """The instructions of one tile with such vectors, of whose last one ``rest`` numbers count, or all for None."""
        kinds = [ir.VectorType(_F32, lanes) for lanes in vectors]
        lanes, last = vectors[-1], len(vectors) - 1
        if rest is not None:
            places = ir.Constant(ir.VectorType(_I32, lanes), list(range(lanes)))
            some = builder.icmp_signed(">", _spread(builder, rest, _I32, lanes), places)

        def at(base: Any, v: int) -> Any:
            return builder.bitcast(builder.gep(base, [_I64(4 * vectors[0] * v)]), kinds[v].as_pointer())

        def load(base: Any, v: int) -> Any:
            if v < last or rest is None:
                return builder.load(at(base, v), align=4)
            nothing = ir.Constant(kinds[v], [0.0] * lanes)
            return _call(builder, f"llvm.masked.load.v{lanes}f32.p0", kinds[v], at(base, v), _I32(4), some, nothing)

        def store(value: Any, base: Any, v: int) -> None:
            if v < last or rest is None:
                builder.store(value, at(base, v), align=4)
            else:
                _call(builder, f"llvm.masked.store.v{lanes}f32.p0", ir.VoidType(), value, at(base, v), _I32(4), some)

        rows = range(len(self.out))
        tile = [(r, v) for r in rows for v in range(len(vectors))]
        sums = {place: cgutils.alloca_once(builder, kinds[place[1]]) for place in tile}  # type: ignore[no-untyped-call]
        with builder.if_else(self.begins) as (yes, no):
            with yes:
                for r, v in tile:
                    builder.store(ir.Constant(kinds[v], [0.0] * vectors[v]), sums[r, v])
            with no:
                for r, v in tile:
                    builder.store(load(self.out[r], v), sums[r, v])
        with _each(builder, self.count) as step:
            offset = builder.mul(step, self.a_step)
            b = builder.gep(self.b, [builder.mul(step, self.b_step)])

            def factor(r: int) -> Any:
                return builder.load(builder.bitcast(builder.gep(self.a[r], [offset]), _F32.as_pointer()))

            def add(r: int, v: int, factor: Any, numbers: Any) -> None:
                spread, name = _spread(builder, factor, _F32, vectors[v]), f"llvm.fma.v{vectors[v]}f32"
                builder.store(_call(builder, name, kinds[v], spread, numbers, builder.load(sums[r, v])), sums[r, v])

            # Registers are few: one side's are held, the other's come one by one.
            if len(rows) < len(vectors):
                factors = [factor(r) for r in rows]
                for v in range(len(vectors)):
                    numbers = load(b, v)
                    for r in rows:
                        add(r, v, factors[r], numbers)
            else:
                of_row = [load(b, v) for v in range(len(vectors))]
                for r in rows:
                    of_this = factor(r)
                    for v, numbers in enumerate(of_row):
                        add(r, v, of_this, numbers)
        for r, v in tile:
            store(builder.load(sums[r, v]), self.out[r], v)


@contextmanager
def _each(builder: Any, count: Any) -> Iterator[Any]:
    """A loop over 0..count that stays one step long: the addresses of several at once take too many registers."""
    before = builder.block
    head, body, end = (builder.append_basic_block(name) for name in ("head", "body", "end"))
    builder.branch(head)
    builder.position_at_end(head)
    step = builder.phi(_I64)
    step.add_incoming(_I64(0), before)
    builder.cbranch(builder.icmp_signed("<", step, count), body, end)
    builder.position_at_end(body)
    yield step
    step.add_incoming(builder.add(step, _I64(1)), builder.block)
    once = builder.module.add_metadata(["llvm.loop.unroll.disable"])
    loop = builder.module.add_metadata([once, _I64(id(step))])
    loop.operands = (loop, once)  # of its own, as LLVM wants it: the first one names the loop
    builder.branch(head).set_metadata("llvm.loop", loop)
    builder.position_at_end(end)


def _spread(builder: Any, number: Any, kind: Any, lanes: int) -> Any:
    """A vector that has the number everywhere."""
    nothing = ir.Constant(ir.VectorType(kind, lanes), ir.Undefined)
    first = builder.insert_element(nothing, number, _I32(0))
    return builder.shuffle_vector(first, nothing, ir.Constant(ir.VectorType(_I32, lanes), [0] * lanes))


def _call(builder: Any, name: str, result: Any, *arguments: Any) -> Any:
    kind = ir.FunctionType(result, [argument.type for argument in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), arguments)  # type: ignore[no-untyped-call]


product = product_by(tile_of(target_features()))
