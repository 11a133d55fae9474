"""A step's rows: the gradients that the parts found, summed, and the weights moved. Shapes as in :mod:`.arrays`."""

from trainer.compilation import compiled
from trainer.training.gru.compiled.arithmetic import ZERO
from trainer.training.gru.compiled.arrays import Array, Options, Scratch, Tables
from trainer.training.gru.compiled.optimizers import move_rows


@compiled
def part(of: int, which: int, parts: int) -> tuple[int, int]:
    """The share of 0..of that a part has."""
    return of * which // parts, of * (which + 1) // parts


@compiled
def add_inputs(n: int, first: int, last: int, slot: Array, d_item: Array, d_rows: Array) -> None:
    """Add the gradient of each lane's input to the row of its item, for the rows first..last."""
    for i in range(n):
        if first <= slot[i] < last:
            row, d = d_rows[slot[i]], d_item[i]
            for k in range(len(d)):
                row[k] += d[k]


@compiled
def move_items(
    items: Array, first: int, last: int, d_rows: Array, w: Array, accumulator: Array, velocity: Array, options: Options
) -> None:
    """Move the rows first..last of a table's touched ones by their gradients."""
    if options.embedding_l2 > ZERO:
        for c in range(first, last):
            row, g = w[items[c]], d_rows[c]
            for k in range(len(g)):
                g[k] += options.embedding_l2 * row[k]
    move_rows(items, first, last, d_rows, w, accumulator, velocity, options)


@compiled
def sum_parts(gradients: Array, first: int, last: int) -> None:
    """Add the rows first..last of every part's gradient to those of the first part."""
    for q in range(1, len(gradients)):
        for c in range(first, last):
            row, other = gradients[0, c], gradients[q, c]
            for k in range(len(row)):
                row[k] += other[k]


@compiled
def move_bias(
    p: int, columns: int, model: Tables, accumulators: Tables, velocities: Tables, scratch: Scratch, options: Options
) -> None:
    """Move the output bias: gathered, moved as one row, and put back."""
    parts = len(scratch.d_bias)
    first, last = part(columns, p, parts)
    n, items = last - first, scratch.items[first:last]
    sum_parts(scratch.d_bias.reshape((parts, 1, -1))[:, :, first:last], 0, 1)
    g, temporary = scratch.d_bias[0, first:last], scratch.temporary[p]
    w, accumulator, velocity = temporary[0, :n], temporary[1, :n], temporary[2, :n]
    for c in range(n):
        w[c] = model.bias[items[c]]
        accumulator[c] = accumulators.bias[items[c]] if options.adagrad else ZERO
        velocity[c] = velocities.bias[items[c]] if options.momentum > ZERO else ZERO
    row = (1, n)
    move_rows(
        scratch.identity, 0, 1, g.reshape(row), w.reshape(row), accumulator.reshape(row), velocity.reshape(row), options
    )
    for c in range(n):
        model.bias[items[c]] = w[c]
        if options.adagrad:
            accumulators.bias[items[c]] = accumulator[c]
        if options.momentum > ZERO:
            velocities.bias[items[c]] = velocity[c]


@compiled
def move_dense(
    p: int, gradients: Array, w: Array, accumulator: Array, velocity: Array, scratch: Scratch, options: Options
) -> None:
    """Move a part of the rows of a matrix that every step touches as a whole."""
    first, last = part(w.shape[0], p, len(gradients))
    sum_parts(gradients, first, last)
    move_rows(scratch.identity, first, last, gradients[0], w, accumulator, velocity, options)


@compiled
def run_rows(
    p: int,
    n: int,
    columns: int,
    touched: int,
    model: Tables,
    accumulators: Tables,
    velocities: Tables,
    scratch: Scratch,
    options: Options,
) -> None:
    """Move the weights of part p by the gradients that all parts found."""
    parts, size = len(scratch.d_rows), scratch.hidden.shape[1]
    d_rows = scratch.d_rows.reshape((parts, scratch.d_rows.shape[1] // size, size))
    first, last = part(touched if options.shared else columns, p, parts)
    d_rows[0, max(first, columns) : last] = ZERO  # an item that is input alone
    sum_parts(d_rows, first, min(last, columns))
    if options.shared:
        add_inputs(n, first, last, scratch.input_slot, scratch.d_x, d_rows[0])
    else:
        begin, end = part(touched, p, parts)
        scratch.d_inputs[begin:end] = ZERO
        add_inputs(n, begin, end, scratch.input_slot, scratch.d_x, scratch.d_inputs)
        move_items(
            scratch.input_items, begin, end, scratch.d_inputs,
            model.inputs, accumulators.inputs, velocities.inputs, options,
        )  # fmt: skip
    move_items(scratch.items, first, last, d_rows[0], model.output, accumulators.output, velocities.output, options)
    move_bias(p, columns, model, accumulators, velocities, scratch, options)
    move_dense(p, scratch.d_w, model.w, accumulators.w, velocities.w, scratch, options)
    move_dense(p, scratch.d_u, model.u, accumulators.u, velocities.u, scratch, options)
    move_dense(p, scratch.d_b, model.b, accumulators.b, velocities.b, scratch, options)
