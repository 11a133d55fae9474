"""What a session must come to, one click at a time, on NumPy and ONNX Runtime alone.

Written from docs/bundle.md, docs/messages.md, docs/architecture.md and the row's layout (`state_codec`), not from the
worker's code: no batches, no waves, no rows in flight. It knows the worker's defaults, and of items and rules
what leaves items out, and of splits who ranks for whom.
"""

import json
import struct
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnxruntime as ort
from kafka.partitioner.default import murmur2
from numpy.typing import NDArray

IDLE_GAP_MS: Final = 30 * 60 * 1000
RECENT_ITEMS: Final = 30
PUBLISHED: Final = 20
MAX_BYTES: Final = 16_384
_HIDDEN_TOLERANCE: Final = 2e-3
"""A batch of another size sums in another order. Where that tips the rounding to half precision, it is 2^-11 off."""
_SCORE_TOLERANCE: Final = 1e-2


@dataclass(frozen=True)
class Click:
    """A valid record of the clicks topic."""

    session_id: str
    item_id: str
    timestamp: int
    event_id: str | None


def click_of(key: bytes | None, value: bytes | None) -> Click | None:
    """The click in a record, None if a worker has to reject it; of the rules those that the harness's load breaks."""
    if value is None or len(value) > MAX_BYTES:
        return None
    try:
        told = json.loads(value)
    except ValueError:
        return None
    if not isinstance(told, dict) or not all(isinstance(told.get(name), str) for name in ("session_id", "item_id")):
        return None
    if not isinstance(told.get("timestamp"), int) or key != told["session_id"].encode():
        return None
    return Click(told["session_id"], told["item_id"], told["timestamp"], told.get("event_id"))


class Catalogue:
    """The topics of items and rules: which items may not be shown, by how far a worker had read the two."""

    def __init__(self) -> None:
        self.records: dict[str, list[tuple[int, str, bytes | None]]] = {"items": [], "rules": []}
        self._known: dict[tuple[int, int], tuple[dict[str, tuple[float, float]], set[str]]] = {}

    def hidden(self, applied: Mapping[str, int] | None, items: Sequence[str], now_ms: int) -> frozenset[str]:
        """Those of a model's items, where a ranking says what it has `applied`, and when; none without."""
        if applied is None:
            return frozenset()
        place = applied["items"], applied["rules"]
        if place not in self._known:
            told = {name: self._told(name, offset) for name, offset in zip(self.records, place, strict=True)}
            times = {
                key: (item.get("available_from", 0), item.get("available_until", np.inf))
                for key, item in told["items"].items()
                if item.get("available", True)
            }
            excluded = {item for rule in told["rules"].values() for item in rule["match"]["items"]}
            self._known[place] = times, excluded
        times, excluded = self._known[place]
        shown = {item for item, (begin, end) in times.items() if begin <= now_ms < end}
        return frozenset(item for item in items if item not in shown or item in excluded)

    def _told(self, topic: str, last: int) -> dict[str, Any]:
        newest = {key: value for offset, key, value in self.records[topic] if offset <= last}
        return {key: json.loads(value) for key, value in newest.items() if value is not None}


def variant_of(session_id: str, shares: Sequence[tuple[str, int]]) -> str | None:
    """Which alias ranks for a session, by the percentages of a split; None without one."""
    place, end = (murmur2(session_id.encode()) & 0x7FFFFFFF) % 10_000, 0
    for alias, percent in shares:
        end += 100 * percent
        if place < end:
            return alias
    return None


@dataclass(frozen=True, eq=False)
class Row:
    """What a session's row holds.

    Attributes:
        model: the version whose hidden state it is; empty without one.
        offset: of the last click that is in it.
        last_click: the newest click's time, ms.
        clicks: of the session so far.
        recent: the last items, oldest first.
        hidden: float16[L, H], or None.
    """

    model: str
    offset: int
    last_click: int
    clicks: int
    recent: tuple[str, ...]
    hidden: NDArray[np.float16] | None

    def is_like(self, other: "Row") -> bool:
        """Whether it is the same, but for rounding."""
        mine, its = self.hidden, other.hidden
        if (self.model, self.offset, self.last_click, self.clicks, self.recent) != (
            other.model, other.offset, other.last_click, other.clicks, other.recent,
        ):  # fmt: skip
            return False
        if mine is None or its is None:
            return mine is its
        return mine.shape == its.shape and np.allclose(mine, its, rtol=0, atol=_HIDDEN_TOLERANCE)


def decode_row(row: bytes) -> Row:
    """A row's bytes: format 2, without purchases."""
    version, layers, size, n_model, n_items, offset, last_click, clicks = struct.unpack_from("<BBHBBqqI", row)
    assert version == 2, f"a row of format {version}"
    at = 26
    model = row[at : at + n_model].decode()
    at += n_model
    width, at = row[at], at + 1
    if width:
        recent = tuple(map(str, struct.unpack_from(f"<{n_items}{'I' if width == 4 else 'Q'}", row, at)))
        at += n_items * width
    else:
        lengths, at, texts = row[at : at + n_items], at + n_items, []
        for less_one in lengths:
            texts.append(row[at : at + less_one + 1].decode())
            at += less_one + 1
        recent = tuple(texts)
    hidden = np.frombuffer(row, "<f2", layers * size, at).reshape(layers, size) if layers else None
    assert len(row) == at + 2 * layers * size, "a row of another length than it says"
    return Row(model, offset, last_click, clicks, recent, hidden)


class Model:
    """A bundle: what it makes of clicks."""

    def __init__(self, path: Path) -> None:
        manifest = json.loads((path / "manifest.json").read_text())
        self.version: str = manifest["version"]
        self.states_of: str = manifest.get("states_of") or self.version
        self.encoder: str = manifest.get("encoder", "recurrent")
        self.items: list[str] = json.loads((path / "vocabulary.json").read_text())
        self.index = {item: index for index, item in enumerate(self.items)}
        self._shape = manifest["layers"], 1, manifest["hidden_size"]
        self._query = "hidden" if manifest["format_version"] == 1 else "query"
        self._recent, self._window, self._k = manifest["recent_size"], manifest.get("window", 0), manifest["k"]
        popularity = np.load(path / "popularity.npy")
        best = np.argsort(-popularity, kind="stable")
        self._popular = best, (popularity[best] / max(int(popularity.sum()), 1)).astype(np.float32)
        graphs = {"recurrent": ["advance", "rank"], "window": ["encode", "rank"], "none": ["rank"]}[self.encoder]
        self._graphs = {name: _graph(path / f"{name}.onnx") for name in graphs}

    def after(self, before: Row | None, click: Click, offset: int) -> Row:
        """The row after a click; a session begins anew behind a long pause."""
        if before is None or click.timestamp - before.last_click > IDLE_GAP_MS:
            before = Row("", -1, click.timestamp, 0, (), None)
        hidden = before.hidden if before.model == self.states_of else None
        if self.encoder == "recurrent":
            for item in (click.item_id,) if before.model == self.states_of else (*before.recent, click.item_id):
                hidden = self._step(hidden, item)
        return Row(
            model="" if hidden is None else self.states_of,
            offset=offset,
            last_click=max(before.last_click, click.timestamp),
            clicks=before.clicks + 1,
            recent=(*before.recent, click.item_id)[-RECENT_ITEMS:],
            hidden=hidden,
        )

    def _step(self, hidden: NDArray[np.float16] | None, item: str) -> NDArray[np.float16] | None:
        if item not in self.index:
            return hidden
        given = np.zeros(self._shape, np.float32) if hidden is None else hidden[:, np.newaxis].astype(np.float32)
        inputs = {"item_index": np.array([self.index[item]]), "hidden": given}
        stepped: NDArray[np.float16] = self._run("advance", "hidden_out", inputs)[:, 0].astype(np.float16)  # [L, H]
        return stepped

    def answer(self, row: Row, hidden: Set[str] = frozenset()) -> tuple[str, list[str], NDArray[np.float32]]:
        """To the last click of a row: the reason, items that are not hidden, best first, and their float32 scores."""
        reason, indices, scores = self._answer(row, all_items=bool(hidden))
        shown = [(self.items[index], score) for index, score in zip(indices, scores, strict=True)]
        shown = [(item, score) for item, score in shown if item not in hidden]
        return reason, [item for item, _ in shown], np.array([score for _, score in shown], np.float32)

    def _answer(self, row: Row, *, all_items: bool) -> tuple[str, NDArray[np.int64], NDArray[np.float32]]:
        known = [self.index[item] for item in row.recent[-(self._window or self._recent) :] if item in self.index]
        query = {}
        if self.encoder == "recurrent" and row.hidden is not None:
            query = {self._query: row.hidden[-1:].astype(np.float32)}
        elif self.encoder == "window" and known:
            query = {
                "query": self._run("encode", "query", {"items": np.array([known]), "length": np.array([len(known)])})
            }
        if not (query or (self.encoder == "none" and known)):
            return "popularity", *self._popular
        last = [self.index.get(item) for item in row.recent[-self._recent :]]
        distinct = [index for index in dict.fromkeys(reversed(last)) if index is not None]
        recent = np.full((1, self._recent), -1, dtype=np.int64)
        counts = np.zeros((1, self._recent), dtype=np.float32)
        recent[0, : len(distinct)] = distinct
        counts[0, : len(distinct)] = [last.count(index) for index in distinct]
        inputs = query | {"recent": recent, "counts": counts, "clicks": np.array([row.clicks], dtype=np.float32)}
        if all_items:
            inputs["k"] = np.array([len(self.items)])
        index, score = self._graphs["rank"].run(["top_index", "top_score"], inputs)
        reason = "model" if row.recent[-1] in self.index else "unknown-item"
        return reason, index[0], score[0]

    def _run(self, graph: str, output: str, inputs: dict[str, Any]) -> Any:
        return self._graphs[graph].run([output], inputs)[0]


def wrong(
    ranking: Mapping[str, Any], click: Click, row: Row, model: Model, hidden: Set[str] = frozenset()
) -> str | None:
    """What is wrong with a ranking of the click that led to a row; None if nothing is."""
    copied = (click.session_id, click.event_id, click.item_id, click.timestamp)
    if (ranking["session_id"], ranking["event_id"], ranking["item_id"], ranking["click_timestamp"]) != copied:
        return "it is not of its click"
    reason, items, scores = model.answer(row, hidden)
    if ranking["reason"] != reason:
        return f"its reason is {ranking['reason']}, must be {reason}"
    length = min(PUBLISHED, len(model.items) - len(hidden))
    given: Sequence[tuple[str, float]] = [(item["item_id"], item["score"]) for item in ranking["items"]]
    if len({item for item, _ in given}) != length or len(given) != length:
        return f"it has {len(given)} items, must have {length}, all different"
    # Items of almost the same score may change places.
    off = np.abs(np.array([score for _, score in given], np.float32) - scores[:length]).max()
    if not off <= _SCORE_TOLERANCE:
        return f"its scores are {off:.3f} off"
    true = dict(zip(items, map(float, scores), strict=True))
    for item, score in given:
        if item in hidden or not abs(true.get(item, float(scores[-1])) - score) <= 2 * _SCORE_TOLERANCE:
            return f"the item {item} does not have this score, or may not be shown"
    return None


def _graph(path: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
