"""The model of a bundle, one click at a time, as the peers call it: no package of ours is imported here."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

PUBLISHED = 20


class Gru:
    """The two graphs of a bundle on one thread."""

    def __init__(self, bundle: Path) -> None:
        manifest = json.loads((bundle / "manifest.json").read_text())
        self._items: list[str] = json.loads((bundle / "vocabulary.json").read_text())
        self._index = {item: n for n, item in enumerate(self._items)}
        self._shape = (manifest["layers"], 1, manifest["hidden_size"])
        # The models measured here use the hidden state alone.
        self._nothing_else = {
            "recent": np.full((1, manifest["recent_size"]), -1, dtype=np.int64),
            "counts": np.zeros((1, manifest["recent_size"]), dtype=np.float32),
            "clicks": np.ones(1, dtype=np.float32),
            "k": np.array([PUBLISHED]),
        }
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3  # errors; `k` is an input with a default, which it takes for a mistake
        self._advance = ort.InferenceSession(bundle / "advance.onnx", options)
        self._rank = ort.InferenceSession(bundle / "rank.onnx", options)

    def step(self, click: dict[str, Any], state: bytes | None) -> tuple[bytes, dict[str, Any]]:
        """The session's next state and the ranking that answers the click."""
        hidden = np.zeros(self._shape, dtype=np.float32) if state is None else np.frombuffer(state, dtype=np.float32)
        hidden = hidden.reshape(self._shape)
        index = np.array([self._index[click["item_id"]]], dtype=np.int64)
        (hidden,) = self._advance.run(None, {"item_index": index, "hidden": hidden})
        top_index, top_score = self._rank.run(["top_index", "top_score"], {"query": hidden[-1], **self._nothing_else})
        best = zip(top_index[0].tolist(), top_score[0].tolist(), strict=True)
        ranking = {
            "session_id": click["session_id"],
            "event_id": click["event_id"],
            "item_id": click["item_id"],
            "items": [{"item_id": self._items[item], "score": score} for item, score in best],
            "click_timestamp": click["timestamp"],
        }
        return hidden.tobytes(), ranking
