"""A process that opens bundles as a worker does, and ranks with them: what ends it does not end the tests.

Asked on standard input, a folder a line; answers on standard output, a line of JSON each.
"""

import contextlib
import json
import os
import resource
import select
import subprocess
import sys
import traceback
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from schemas.bundle.files import open_bundle, read_bundle
from schemas.bundle.golden import decode_golden, encode_golden, recent_items
from schemas.bundle.manifest import GOLDEN
from schemas.bundle.runtime import Model, finite_rows, open_graphs
from schemas.errors import BundleError, NoAnswerError
from tests.conftest import REPOSITORY
from tests.contract.tiny_model import seal

_MEMORY_BYTES: Final = 1024**3
_SECONDS: Final = 20.0


class Opener:
    """Such a process; another one after each that has ended."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def open(self, bundle: Path, *, forged: bool) -> str:
        """`served`, or why it was refused, or how the process ended; what nobody expected is a failure of the test.

        `forged`: its golden pair is made to hold what its graphs answer, as whoever means harm would have it.
        """
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=REPOSITORY
            )
        asked, told = self._process.stdin, self._process.stdout
        assert asked is not None
        assert told is not None
        asked.write(json.dumps([str(bundle), forged]).encode() + b"\n")
        asked.flush()
        if not select.select([told], [], [], _SECONDS)[0]:
            self.close()
            return "ended: takes too long"
        line = told.readline()
        if not line:
            code = self._process.wait()
            self.close()
            return f"ended: {code}"
        return str(json.loads(line))

    def close(self) -> None:
        """End it."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
        self._process = None


def _forge(bundle: Path) -> None:
    """Write the answers of the graphs into the golden pair, where they have any."""
    files = read_bundle(bundle)
    golden = decode_golden(files.data[GOLDEN])
    graphs = open_graphs(files.manifest, files.data, threads=1)
    steps, changed = golden.item_index, {}
    if files.manifest.encoder == "recurrent":
        assert golden.hidden is not None
        hidden, queries = np.zeros_like(golden.hidden), []
        for step in steps:
            hidden, *own = graphs["advance.onnx"].run(None, {"item_index": step, "hidden": hidden})
            queries.append(own[0] if own else hidden[-1])
        changed = {"query": np.stack(queries), "hidden": hidden}
    elif files.manifest.encoder == "window":
        queries = [_encoded(graphs["encode.onnx"], steps[: clicks + 1].T) for clicks in range(len(steps))]
        changed = {"query": np.stack(queries)}
    recent, counts, clicks = recent_items(steps, files.manifest.recent_size)
    inputs = {"recent": recent, "counts": counts, "clicks": clicks}
    if changed:
        inputs["query"] = changed["query"][-1]
    index, score = graphs["rank.onnx"].run(["top_index", "top_score"], inputs)
    forged = replace(golden, **changed, top_index=index, top_score=score)
    (bundle / GOLDEN).write_bytes(encode_golden(forged))
    seal(bundle)


def _encoded(encode: Any, clicks: Any) -> Any:
    items = np.ascontiguousarray(clicks)
    return encode.run(None, {"items": items, "length": np.full(len(items), items.shape[1])})[0]


def _rank(model: Model) -> None:
    """Some sessions that grow click by click, as a worker computes them."""
    listed = model.ranking(3)
    listed.warm_up([1, 8])
    n_items = len(model.vocabulary)
    for lanes in (1, 3, 40):
        steps = np.arange(9 * lanes).reshape(9, lanes) % n_items
        hidden, query = model.initial_hidden(lanes), None
        for click, step in enumerate(steps):
            if model.encoder == "recurrent":
                hidden, query, finite = listed.step(step, hidden)
                assert np.isfinite(hidden).all()
                assert finite.shape == (lanes,)
            elif model.encoder == "window":
                items = np.ascontiguousarray(steps[max(0, click + 1 - model.window) : click + 1].T)
                query = listed.encode(items, np.full(lanes, items.shape[1]))
            recent, counts, clicks = recent_items(steps[: click + 1], model.recent_size)
            index, score = listed.rank(query, recent, counts, clicks)
            assert index.shape == score.shape == (lanes, 3)
            assert finite_rows(score).shape == (lanes,)
            assert 0 <= index.min() <= index.max() < n_items


def _told(bundle: Path, *, forged: bool) -> str:
    if forged:
        with contextlib.suppress(Exception):  # its graphs give no answer to write down
            _forge(bundle)
    try:
        model = open_bundle(bundle)
    except BundleError as error:
        return f"refused: {error}"
    try:
        _rank(model)
    except NoAnswerError as error:
        return f"served, without an answer: {error}"
    return "served"


if __name__ == "__main__":
    warnings.simplefilter("error")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (4 * _MEMORY_BYTES, 4 * _MEMORY_BYTES))
    answers = os.dup(1)
    os.dup2(2, 1)  # what a library prints is no answer
    for line in sys.stdin:
        folder, forged = json.loads(line)
        try:
            answer = _told(Path(folder), forged=forged)
        except Exception as error:  # noqa: BLE001 - it is what the test is about
            answer = "failed: " + "".join(traceback.format_exception(error))
        os.write(answers, json.dumps(answer).encode() + b"\n")
