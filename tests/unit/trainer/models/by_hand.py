"""The papers' formulas of attention for one session, row by row in NumPy, for the tests of the families."""

import math
from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt
from torch import nn

Array = npt.NDArray[np.float64]
Named = Mapping[str, Array]
Activation = Callable[[Array], Array]
Sees = Callable[[int, int], bool]
"""Whether the row at one place may look at the click at another."""

SESSION = [4, 1, 7, 1]
"""Clicks of the session that the tests compare, an item twice among them."""


def named(module: nn.Module) -> dict[str, Array]:
    return {name: tensor.detach().numpy().astype(np.float64) for name, tensor in module.named_parameters()}


def under(weights: Named, prefix: str) -> dict[str, Array]:
    """Those of one part of a module."""
    return {name.removeprefix(f"{prefix}."): w for name, w in weights.items() if name.startswith(f"{prefix}.")}


def linear(x: Array, weights: Named) -> Array:
    return x @ weights["weight"].T + weights.get("bias", np.zeros(1))


def norm(x: Array, weights: Named) -> Array:
    centred = x - x.mean(-1, keepdims=True)
    scaled: Array = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    return scaled * weights["weight"] + weights["bias"]


def relu(x: Array) -> Array:
    return np.maximum(x, 0)


def gelu(x: Array) -> Array:
    """x times the probability that a standard normal number is below x."""
    below: Array = (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2
    return x * below


def wave(distance: int, size: int) -> Array:
    """r of a distance."""
    angles = [distance / 10_000 ** (2 * k / size) for k in range(size // 2)]
    return np.array([math.sin(a) for a in angles] + [math.cos(a) for a in angles])


def attention(asking: Array, seen: Array, sees: Sees, weights: Named, *, heads: int, place: int = 0) -> Array:
    """Of rows [Q, D] that ask, the first at this place, and rows [T, D]: [Q, D]."""
    size = asking.shape[1]
    part = size // heads
    asks, keys, values = (
        linear(x, under(weights, name)) for x, name in ((asking, "ask"), (seen, "key"), (seen, "value"))
    )
    answers = []
    for i in range(len(asking)):
        row = np.zeros(size)
        for head in range(heads):
            own = slice(head * part, (head + 1) * part)
            scores = {}
            for j in range(len(seen)):
                if not sees(place + i, j):
                    continue
                score = asks[i, own] @ keys[j, own]
                if "apart.weight" in weights:
                    far = (weights["apart.weight"] @ wave(place + i - j, size))[own]
                    u, v = weights["of_key"][head, 0], weights["of_distance"][head, 0]
                    score += asks[i, own] @ far + u @ keys[j, own] + v @ far
                scores[j] = math.exp(score / math.sqrt(part))
            row[own] = sum(score / sum(scores.values()) * values[j, own] for j, score in scores.items())
        answers.append(row)
    return linear(np.array(answers), under(weights, "out"))


def layer_after(
    asking: Array, seen: Array, sees: Sees, weights: Named, activation: Activation, *, heads: int, place: int = 0
) -> Array:
    """A layer normed after each part."""
    attended = attention(asking, seen, sees, under(weights, "attention"), heads=heads, place=place)
    x = norm(asking + attended, under(weights, "norm_attention"))
    return norm(x + feed(x, weights, activation), under(weights, "norm_feed"))


def layer_before(x: Array, sees: Sees, weights: Named, activation: Activation, *, heads: int) -> Array:
    """A layer normed before each part."""
    normed = norm(x, under(weights, "norm_attention"))
    x = x + attention(normed, normed, sees, under(weights, "attention"), heads=heads)
    return x + feed(norm(x, under(weights, "norm_feed")), weights, activation)


def feed(x: Array, weights: Named, activation: Activation) -> Array:
    return linear(activation(linear(x, under(weights, "widen"))), under(weights, "narrow"))


def causal(i: int, j: int) -> bool:
    return j <= i


def everywhere(i: int, j: int) -> bool:
    return True
