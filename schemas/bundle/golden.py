"""Golden pair: a few sessions and what the model must answer to them, kept in the bundle and run before it serves.

It is recorded from the network as it was trained, so it catches a wrong export, a damaged graph, and a machine or an
ONNX runtime that computes something else.
"""

from dataclasses import dataclass
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from schemas.bundle.manifest import GOLDEN, BundleLimits, Manifest
from schemas.errors import BundleError

RELATIVE: Final = 1e-3
ABSOLUTE: Final = 1e-4
"""How far float32 results may lie apart: the two sides sum in different orders."""


@dataclass(frozen=True, eq=False)
class Golden:
    """T clicks of B sessions in lockstep, starting from nothing, and what the model makes of them.

    L layers, H hidden size, D query size, R recent items, k ranked items. `recent`, `counts` and `clicks` are the
    inputs of the rank graph after the last click; `recent_items` makes them from `item_index`.
    """

    item_index: NDArray[np.int64]  # [T, B]
    recent: NDArray[np.int64]  # [B, R], padded with -1
    counts: NDArray[np.float32]  # [B, R], 0 where padded
    clicks: NDArray[np.float32]  # [B]
    top_index: NDArray[np.int64]  # [B, k] after the last click
    top_score: NDArray[np.float32]  # [B, k], best first
    query: NDArray[np.float32] | None = None  # [T, B, D] after each click; None without an encoder and in format 1
    hidden: NDArray[np.float32] | None = None  # [L, B, H] after the last click; None unless recurrent

    @property
    def last_query(self) -> NDArray[np.float32] | None:
        """f32[B, D]: what the rank graph takes after the last click; None where it takes none."""
        along = self.hidden if self.query is None else self.query
        return None if along is None else np.asarray(along[-1])


_DTYPES: Final[dict[str, type[np.int64] | type[np.float32]]] = {
    "item_index": np.int64,
    "recent": np.int64,
    "counts": np.float32,
    "clicks": np.float32,
    "top_index": np.int64,
    "top_score": np.float32,
    "query": np.float32,
    "hidden": np.float32,
}
_OPTIONAL: Final = {"query", "hidden"}


def recent_items(
    item_index: NDArray[np.int64], recent_size: int
) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.float32]]:
    """The rank graph's view of sessions int64[T, B]: what their last R clicks were on, how often, and their length.

    Returns recent int64[B, R] (the last R clicks' distinct items, most recent first, padded with -1), counts f32[B, R]
    (how many of these clicks each has, 0 where padded) and clicks f32[B] (all of the session).
    The definition of these inputs: the worker and the trainer's evaluation must agree with it. -1 in `item_index` means
    no click (a shorter session).
    """
    lanes = item_index.shape[1]
    recent = np.full((lanes, recent_size), -1, dtype=np.int64)
    counts = np.zeros((lanes, recent_size), dtype=np.float32)
    clicks = np.zeros(lanes, dtype=np.float32)
    for lane in range(lanes):
        items = [int(item) for item in item_index[:, lane] if item >= 0]
        last = items[-recent_size:]
        distinct = list(dict.fromkeys(reversed(last)))
        recent[lane, : len(distinct)] = distinct
        counts[lane, : len(distinct)] = [last.count(item) for item in distinct]
        clicks[lane] = len(items)
    return recent, counts, clicks


def encode_golden(golden: Golden) -> bytes:
    """JSON of nested lists; float32 survives it exactly."""
    arrays = {name: getattr(golden, name) for name in _DTYPES}
    return msgspec.json.encode({name: array.tolist() for name, array in arrays.items() if array is not None})


def decode_golden(data: bytes) -> Golden:
    """Inverse of `encode_golden`. Raises BundleError."""
    try:
        raw: dict[str, Any] = msgspec.json.decode(data, type=dict[str, list[Any]])
        missing = sorted(_DTYPES.keys() - raw.keys() - _OPTIONAL)
        if missing:
            raise BundleError(f"{GOLDEN}: {', '.join(missing)} missing")
        with np.errstate(over="ignore"):  # beyond float32 is an infinity, which `check_golden` refuses
            arrays: dict[str, Any] = {
                name: np.asarray(raw[name], dtype=dtype) for name, dtype in _DTYPES.items() if name in raw
            }
        return Golden(**arrays)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError, TypeError, OverflowError) as error:
        raise BundleError(f"{GOLDEN}: {error}") from error


def check_golden(golden: Golden, manifest: Manifest, limits: BundleLimits) -> None:
    """Size, shapes, ranges and finiteness against the manifest. Raises BundleError."""
    if golden.item_index.ndim != 2 or 0 in golden.item_index.shape:
        raise BundleError(f"{GOLDEN}: item_index has the shape {golden.item_index.shape}, expected [clicks, sessions]")
    clicks, lanes = golden.item_index.shape
    if clicks * lanes > limits.golden_clicks:
        raise BundleError(f"{GOLDEN}: has {clicks * lanes} clicks, the limit is {limits.golden_clicks}")
    shapes: dict[str, tuple[int, ...] | None] = {
        "query": (clicks, lanes, manifest.query_size),
        "hidden": (manifest.layers, lanes, manifest.hidden_size),
        "recent": (lanes, manifest.recent_size),
        "counts": (lanes, manifest.recent_size),
        "clicks": (lanes,),
        "top_index": (lanes, manifest.k),
        "top_score": (lanes, manifest.k),
    }
    if manifest.encoder == "none" or manifest.format_version == 1:
        shapes["query"] = None
    if manifest.encoder != "recurrent":
        shapes["hidden"] = None
    for name, shape in shapes.items():
        found = getattr(golden, name)
        if shape is None and found is not None:
            raise BundleError(f"{GOLDEN}: holds {name}, which a model with the encoder {manifest.encoder!r} has not")
        if shape is not None and found is None:
            raise BundleError(f"{GOLDEN}: {name} missing")
        if shape is not None and found.shape != shape:
            raise BundleError(f"{GOLDEN}: {name} has the shape {found.shape}, expected {shape}")
    for name, least in (("item_index", 0), ("recent", -1), ("top_index", 0)):
        indices = getattr(golden, name)
        if indices.min() < least or indices.max() >= manifest.catalogue_size:
            raise BundleError(f"{GOLDEN}: {name} holds indices outside the catalogue of {manifest.catalogue_size}")
    for name, dtype in _DTYPES.items():
        if dtype is np.float32 and shapes[name] is not None and not np.isfinite(getattr(golden, name)).all():
            raise BundleError(f"{GOLDEN}: {name} holds a value that is not finite")


def close(expected: NDArray[np.float32], found: NDArray[np.float32]) -> bool:
    """Whether two float results are the same up to float32 rounding. NaN is close to nothing."""
    return expected.shape == found.shape and bool(np.allclose(found, expected, rtol=RELATIVE, atol=ABSOLUTE))


def same_ranking(
    expected: tuple[NDArray[np.int64], NDArray[np.float32]], found: tuple[NDArray[np.int64], NDArray[np.float32]]
) -> bool:
    """Whether two top-k results agree: scores close, and items swapped only where their scores are that close.

    Each side is (int64[B, k], f32[B, k]), best first.
    """
    expected_index, expected_score = expected
    found_index, found_score = found
    if expected_index.shape != found_index.shape or not close(expected_score, found_score):
        return False
    for lane, place in zip(*np.nonzero(expected_index != found_index), strict=True):
        there = np.nonzero(expected_index[lane] == found_index[lane, place])[0]
        # An item that was not in the expected list can only have tied with its last one.
        own_score = expected_score[lane, there[0] if len(there) else -1]
        if not np.isclose(expected_score[lane, place], own_score, rtol=RELATIVE, atol=ABSOLUTE):
            return False
    return all(len(set(row)) == len(row) for row in found_index.tolist())
