"""A step's lanes: which columns there are, forward, loss, backward. Letters of shapes as in :mod:`.arrays`."""

import math

import numpy as np

from trainer.compilation import compiled
from trainer.training.gru.compiled import gru
from trainer.training.gru.compiled.arithmetic import ONE, ZERO
from trainer.training.gru.compiled.arrays import Array, Data, Options, Scratch, Tables
from trainer.training.gru.compiled.columns import add_distinct, weigh
from trainer.training.gru.compiled.losses import CROSS_ENTROPY, cross_entropy, ranking_loss
from trainer.training.gru.compiled.products import product


@compiled
def find_columns(data: Data, t: int, samples: Array, model: Tables, scratch: Scratch, options: Options) -> int:
    """The step's distinct score columns, what each weighs and adds to the score. Their number."""
    n = data.alive[t]
    targets = scratch.input_items[:n]  # borrowed until the inputs are looked at
    for i in range(n):
        at = data.position[t, i] + 1
        targets[i] = data.items[at]
        scratch.lane_weight[i] = data.target_weight[at] if len(data.target_weight) > 1 else ONE
    found = add_distinct(targets, 0, scratch.items, scratch.place, scratch.target_slot)
    found = add_distinct(samples, found, scratch.items, scratch.place, scratch.sample_slot)
    scratch.weight[:found] = ZERO
    weigh(scratch.target_slot, targets, data.weight_target, scratch.weight)
    weigh(scratch.sample_slot, samples, data.weight_sample, scratch.weight)
    for c in range(found):
        scratch.bias[c] = model.bias[scratch.items[c]]
    if options.loss == CROSS_ENTROPY:
        for c in range(found):
            scratch.log_weight[c] = np.float32(math.log(scratch.weight[c]))
            scratch.bias[c] += scratch.log_weight[c]
        for i in range(n):
            own = data.weight_target[targets[i]] if len(data.weight_target) > 1 else ONE
            scratch.shift[i] = scratch.log_weight[scratch.target_slot[i]] - np.float32(math.log(own))
    return found


@compiled
def find_inputs(data: Data, t: int, columns: int, scratch: Scratch, options: Options) -> int:
    """The distinct input items: appended to the columns of a shared table. The number of distinct items there."""
    n = data.alive[t]
    inputs = scratch.input_items[:n]
    for i in range(n):
        inputs[i] = data.items[data.position[t, i]]
    if options.shared:
        return add_distinct(inputs, columns, scratch.items, scratch.place, scratch.input_slot)
    # In place: of distinct items there are never more than were looked at.
    return add_distinct(inputs, 0, inputs, scratch.input_place, scratch.input_slot)


@compiled
def score_lanes(p: int, a: int, b: int, columns: int, n: int, samples: int, scratch: Scratch, options: Options) -> None:
    """Scores of lanes a..b against the columns, their loss, and the gradient of state and columns."""
    size = scratch.hidden.shape[1]
    rows, top = scratch.rows[:columns], scratch.out[a:b]
    scores = scratch.scores[a * columns : b * columns].reshape((b - a, columns))
    np.dot(top, rows.T, scores)
    d_bias, bias, count = scratch.d_bias[p, :columns], scratch.bias[:columns], scratch.temporary[p, 2, :columns]
    d_bias[:] = ZERO
    for c in range(columns):
        count[c] = scratch.weight[c]
    loss = 0.0
    for i in range(b - a):
        r, target, weight = scores[i], scratch.target_slot[a + i], scratch.lane_weight[a + i]
        scale = options.per_lane * weight
        if options.loss == CROSS_ENTROPY:
            of_row = cross_entropy(
                r, bias, d_bias, target, scratch.shift[a + i], scale, scratch.temporary[p, 0, :columns]
            )
        else:
            of_row = ranking_loss(r, bias, d_bias, target, count, n + samples - 1, scale, scratch.temporary[p], options)
        loss += float(weight) * of_row
    scratch.loss[p] = loss
    product(scores, rows, scratch.d_out[a:b])
    product(scores.T, top, scratch.d_rows[p, : columns * size].reshape((columns, size)))


@compiled
def enter_lanes(t: int, a: int, b: int, data: Data, model: Tables, scratch: Scratch, options: Options) -> None:
    """The input of lanes a..b; a session that begins has no state."""
    for i in range(a, b):
        source, x, carried = model.inputs[data.items[data.position[t, i]]], scratch.x[i], scratch.sums[i]
        if data.fresh[t, i]:
            scratch.hidden[i] = ZERO
            carried[:] = ZERO
        for k in range(len(x)):
            x[k] = source[k]
        for k in range(len(carried)):
            x[k] += options.input_decay * carried[k]
            carried[k] = x[k]


@compiled
def copy(source: Array, target: Array) -> None:
    """Between matrices of one shape. For an assignment Numba takes seconds, to compile what tells of other shapes."""
    for i in range(source.shape[0]):
        for k in range(source.shape[1]):
            target[i, k] = source[i, k]


@compiled
def run_lanes(
    p: int,
    t: int,
    a: int,
    b: int,
    columns: int,
    samples: int,
    keys: Array,
    data: Data,
    model: Tables,
    scratch: Scratch,
    options: Options,
) -> None:
    """Forward, loss and backward of lanes a..b, and the sums of their gradients."""
    size = scratch.hidden.shape[1]
    if a == b:  # more parts than lanes are left
        scratch.d_rows[p, : columns * size] = ZERO
        scratch.d_bias[p] = ZERO
        scratch.d_w[p], scratch.d_u[p], scratch.d_b[p] = ZERO, ZERO, ZERO
        scratch.loss[p] = 0.0
        return
    enter_lanes(t, a, b, data, model, scratch, options)
    x, gates, from_h, hidden = scratch.x[a:b], scratch.gates[a:b], scratch.from_h[a:b], scratch.hidden[a:b]
    out, d_out, d_x = scratch.out[a:b], scratch.d_out[a:b], scratch.d_x[a:b]
    width = 1 if options.one_hot else size
    if options.input_threshold > 0:
        gru.drop(x, options.input_threshold, keys[0], a, options.input_scale, width)
    if options.one_hot:
        copy(x, gates)
    else:
        np.dot(x, model.w.T, gates)
    np.dot(hidden, model.u.T, from_h)
    gru.forward(gates, from_h, model.b[0], hidden, out)
    if options.hidden_threshold > 0:
        gru.drop(out, options.hidden_threshold, keys[1], a, options.hidden_scale, size)

    score_lanes(p, a, b, columns, data.alive[t], samples, scratch, options)

    if options.hidden_threshold > 0:
        gru.drop(d_out, options.hidden_threshold, keys[1], a, options.hidden_scale, size)
    gru.backward(gates, from_h, hidden, d_out, scratch.d_b[p, 0])
    product(from_h.T, hidden, scratch.d_u[p])
    if options.one_hot:
        copy(gates, d_x)
    else:
        product(gates.T, x, scratch.d_w[p])
        product(gates, model.w, d_x)
    if options.input_threshold > 0:
        gru.drop(d_x, options.input_threshold, keys[0], a, options.input_scale, width)
    copy(out, hidden)
