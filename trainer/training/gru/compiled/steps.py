"""Many training steps in one compiled call.

A step has three phases: the distinct items and their rows; the lanes (forward, loss, backward); the rows (sum, square,
move). Within a phase every part works on its own lanes or rows and writes to its own arrays, so several threads can
have a part each, and the bits are the same whatever the threads' timing.
"""

from collections.abc import Callable

import numba

from trainer.compilation import kept, sources
from trainer.training.gru.compiled.arrays import Array, Data, Options, Scratch, Tables
from trainer.training.gru.compiled.columns import gather
from trainer.training.gru.compiled.lanes import find_columns, find_inputs, run_lanes
from trainer.training.gru.compiled.rows import part, run_rows


def steps_of(of_sources: int) -> Callable[..., float]:
    """:func:`run_steps` as its machine code is kept: under a digest of all the code that it calls."""

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
        if of_sources == 0:  # never; but what is not used is no part of the key
            return 0.0
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

    return run_steps


# Threads that sleep while they wait. Those of OpenMP wait in a loop, and on a machine with other work they take from
# each other the time that they wait for.
numba.config.THREADING_LAYER = "workqueue"  # type: ignore[attr-defined]

on_one_thread = kept(steps_of(sources(__file__)))
on_threads = kept(steps_of(-sources(__file__)), parallel=True)
