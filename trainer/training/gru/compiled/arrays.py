"""What the compiled step is handed: settings, data, tables, and room to work in.

B lanes, N samples, C distinct columns of a step at most (B + N, and B more for inputs), H units, D width of the input
(H, or 3H where it is one-hot), P parts, I items. One layer. Arrays are float32 unless said otherwise; a step with n
lanes uses the first n.
"""

from typing import Any, NamedTuple

import numpy as np

Array = Any  # mypy has no use for the shapes; they are in the comments


class Options(NamedTuple):
    """The settings, as the compiled code wants them."""

    loss: int
    activation: int
    elu: np.float32
    bpreg: np.float32
    shared: bool  # one table for input and output
    one_hot: bool
    adagrad: bool
    learning_rate: np.float32
    momentum: np.float32
    embedding_l2: np.float32
    input_decay: np.float32
    input_scale: np.float32  # what is not dropped is multiplied by it; 1 for no dropout
    input_threshold: np.uint32
    hidden_scale: np.float32
    hidden_threshold: np.uint32
    per_lane: np.float32  # 1 / batch_size


class Tables(NamedTuple):
    """The weights, or one number an optimizer keeps for each of them: then empty arrays where it keeps none."""

    output: Array  # [I, H]
    bias: Array  # [I]
    inputs: Array  # [I, D], the same array as output where that is shared
    w: Array  # [3H, H]; [0, 0] where the input needs no product
    u: Array  # [3H, H]
    b: Array  # [1, 3H]


class Data(NamedTuple):
    """What is trained on."""

    items: Array  # int64[clicks]
    position: Array  # int32[T, B]
    fresh: Array  # bool[T, B]
    alive: Array  # int64[T]
    weight_target: Array  # [I] what a column of a batch's target counts in the softmax; [1] for 1
    weight_sample: Array  # [I]
    target_weight: Array  # [clicks] how much the loss of a click counts where it is the target; [1] for 1


class Scratch(NamedTuple):
    """The state that the lanes carry on, and room for what a step computes."""

    hidden: Array  # [B, H] carried
    sums: Array  # [B, D] carried with input decay
    items: Array  # int64[C]
    place: Array  # int32[I]
    target_slot: Array  # int32[B]
    sample_slot: Array  # int32[N]
    input_slot: Array  # int32[B]
    input_items: Array  # int64[B], of an input table of its own
    input_place: Array  # int32[I]
    rows: Array  # [C, H]
    weight: Array  # [C]
    log_weight: Array  # [C]
    bias: Array  # [C]
    shift: Array  # [B] what the target's column has in its score beyond the target's own, as cross-entropy sees it
    lane_weight: Array  # [B] how much the loss of each lane's target counts
    scores: Array  # [B * C]
    x: Array  # [B, D]
    gates: Array  # [B, 3H]
    from_h: Array  # [B, 3H]
    out: Array  # [B, H]
    d_out: Array  # [B, H]
    d_x: Array  # [B, D]
    d_rows: Array  # [P, C * H]
    d_bias: Array  # [P, C]
    d_inputs: Array  # [B, D], of an input table of its own
    d_w: Array  # [P, 3H, H]
    d_u: Array  # [P, 3H, H]
    d_b: Array  # [P, 1, 3H]
    temporary: Array  # [P, 4, C]
    identity: Array  # int64[3H], 0, 1, 2 and so on
    loss: Array  # float64[P]
