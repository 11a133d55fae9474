"""Many training steps in one compiled call.

A step has three phases: the distinct items and their rows; the lanes (forward, loss, backward); the rows (sum, square,
move). Within a phase every part works on its own lanes or rows and writes to its own arrays, so several threads can
have a part each, and the bits are the same whatever the threads' timing.
"""

from collections.abc import Callable

import numba

from trainer.compilation import SUMS, kept, sources
from trainer.training.gru.compiled.arrays import Array, Data, Options, Scratch, Tables
from trainer.training.gru.compiled.columns import gather
from trainer.training.gru.compiled.lanes import find_columns, find_inputs, run_lanes
from trainer.training.gru.compiled.rows import part, run_rows


def run_steps(
    first: int,
    samples: Array,
    keys: Array,
    data: Data,
    model: Tables,
    accumulators: Tables,
    velocities: Tables,
    scratch: Scratch,
    options: Options,
) -> float:
    """Steps ``first`` and on, one for each row of ``samples`` int64[K, N] and ``keys`` uint32[K, 2]: their loss."""
    parts = len(scratch.loss)
    total = 0.0
    for step in range(len(samples)):
        t = first + step
        n = data.alive[t]
        columns = find_columns(data, t, samples[step], model, scratch, options)
        touched = find_inputs(data, t, columns, scratch, options)
        for p in numba.prange(parts):
            begin, end = part(columns, p, parts)
            gather(scratch.items, model.output, begin, end, scratch.rows)
        for p in numba.prange(parts):
            begin, end = part(n, p, parts)
            run_lanes(p, t, begin, end, columns, len(samples[step]), keys[step], data, model, scratch, options)
        for p in numba.prange(parts):
            run_rows(p, n, columns, touched, model, accumulators, velocities, scratch, options)
        for p in range(parts):
            total += scratch.loss[p]
    return total


# Threads that sleep while they wait. Those of OpenMP wait in a loop, and on a machine with other work they take from
# each other the time that they wait for.
numba.config.THREADING_LAYER = "workqueue"  # type: ignore[attr-defined]

_one_thread = numba.njit(nogil=True, fastmath=SUMS, error_model="numpy")(run_steps)
_threads = numba.njit(nogil=True, fastmath=SUMS, error_model="numpy", parallel=True)(run_steps)


def _entries(of_sources: int) -> tuple[Callable[..., float], Callable[..., float]]:
    # A use of the number that never comes to pass: what is not used is no part of what the code is kept under.
    def one_thread(  # type: ignore[no-untyped-def]
        first, samples, keys, data, model, accumulators, velocities, scratch, options
    ):
        if of_sources == 0:
            return 0.0
        return _one_thread(first, samples, keys, data, model, accumulators, velocities, scratch, options)

    def threads(  # type: ignore[no-untyped-def]
        first, samples, keys, data, model, accumulators, velocities, scratch, options
    ):
        if of_sources == 0:
            return 0.0
        return _threads(first, samples, keys, data, model, accumulators, velocities, scratch, options)

    return kept(one_thread), kept(threads)


on_one_thread, on_threads = _entries(sources(__file__))
