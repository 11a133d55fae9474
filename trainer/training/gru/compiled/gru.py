"""The GRU's gates of :mod:`trainer.models.gru4rec`, forward and backward, in place between the matrix products."""

from typing import Any

import numpy as np

from trainer.compilation import compiled
from trainer.training.gru.compiled.arithmetic import ONE, ZERO, sigmoid, tanh

Matrix = Any  # float32[rows, columns], rows one after another


@compiled
def forward(from_x: Matrix, from_h: Matrix, b: Any, h: Matrix, out: Matrix) -> None:
    """W x [n, 3H], U h [n, 3H], b [3H], h [n, H] -> h' in ``out`` [n, H]; r, z and n take the place of W x."""
    size = h.shape[1]
    b_r, b_z, b_n = b[:size], b[size : 2 * size], b[2 * size : 3 * size]
    for i in range(len(h)):
        r, z, n = from_x[i, :size], from_x[i, size : 2 * size], from_x[i, 2 * size : 3 * size]
        u_r, u_z, u_n = from_h[i, :size], from_h[i, size : 2 * size], from_h[i, 2 * size : 3 * size]
        before, after = h[i], out[i]
        for k in range(size):
            r[k] = sigmoid(r[k] + u_r[k] + b_r[k])
        for k in range(size):
            z[k] = sigmoid(z[k] + u_z[k] + b_z[k])
        for k in range(size):
            n[k] = tanh(n[k] + r[k] * u_n[k] + b_n[k])
        for k in range(size):
            after[k] = n[k] + z[k] * (before[k] - n[k])


@compiled
def backward(gates: Matrix, from_h: Matrix, h: Matrix, d_out: Matrix, d_b: Any) -> None:
    """From what :func:`forward` left and d loss / dh': the gradients of W x and U h take the places of gates and U h.

    ``d_b`` [3H] becomes the gradient of the bias.
    """
    size = h.shape[1]
    d_b[:] = ZERO
    for i in range(len(h)):
        r, z, n = gates[i, :size], gates[i, size : 2 * size], gates[i, 2 * size : 3 * size]
        u_r, u_z, u_n = from_h[i, :size], from_h[i, size : 2 * size], from_h[i, 2 * size : 3 * size]
        before, d = h[i], d_out[i]
        for k in range(size):
            d_z = d[k] * (before[k] - n[k]) * z[k] * (ONE - z[k])
            d_n = d[k] * (ONE - z[k]) * (ONE - n[k] * n[k])
            z[k], n[k] = d_z, d_n
        for k in range(size):
            d_r = n[k] * u_n[k] * r[k] * (ONE - r[k])
            u_n[k] = n[k] * r[k]
            r[k] = d_r
        for k in range(size):
            u_r[k], u_z[k] = r[k], z[k]
        row = gates[i]
        for k in range(len(row)):
            d_b[k] += row[k]


@compiled
def drop(rows: Matrix, threshold: np.uint32, key: np.uint32, first: int, scale: np.float32, width: int) -> None:
    """Dropout as :mod:`trainer.training.dropout` defines it, for rows whose first one is row ``first`` of the mask.

    With a ``width`` of 1 a row is dropped as a whole, or not at all.
    """
    for i in range(len(rows)):
        row, base = rows[i], (first + i) * width
        if width == 1:
            factor = scale if scrambled(base, key) >= threshold else ZERO
            for k in range(len(row)):
                row[k] *= factor
        else:
            for k in range(len(row)):
                row[k] *= scale if scrambled(base + k, key) >= threshold else ZERO


@compiled
def scrambled(place: int, key: np.uint32) -> np.uint32:
    """:func:`trainer.training.dropout.scrambled`, one number."""
    h = np.uint32(np.uint32(place) * np.uint32(0x9E3779B9)) ^ key
    h ^= h >> np.uint32(16)
    h = np.uint32(h * np.uint32(0x7FEB352D))
    h ^= h >> np.uint32(15)
    h = np.uint32(h * np.uint32(0x846CA68B))
    h ^= h >> np.uint32(16)
    return np.uint32(h)
