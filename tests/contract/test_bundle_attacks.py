"""A bundle from somebody who means harm: it is refused before it is run, read from elsewhere, or fills the memory.

The manifest vouches for every file here, as it would in an announced bundle of the attacker's own. What a damaged one
leads to: `test_bundle.py`.
"""

import io
import itertools
import json
import os
import select
import signal
import subprocess
import sys
import time
import tracemalloc
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from schemas.bundle import onnx_file
from schemas.bundle.files import manifest_digest, open_bundle
from schemas.bundle.trial import try_bundle
from schemas.errors import BundleError
from tests.conftest import REPOSITORY as ROOT
from tests.contract.tiny_model import TinyModel, seal
from tests.patience import PATIENCE

TINY = TinyModel()
MIB = 1024**2


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return TINY.write(tmp_path)


def refused(bundle: Path, problem: str, *, most: int = 8 * MIB) -> None:
    """Refused for this reason, without more than so many bytes taken on the way."""
    tracemalloc.start()
    try:
        with pytest.raises(BundleError, match=problem):
            open_bundle(bundle)
        assert tracemalloc.get_traced_memory()[1] < most
    finally:
        tracemalloc.stop()


# -- paths ------------------------------------------------------------------------------------------------------------


def pipe(path: Path) -> None:
    os.mkfifo(path)


def endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def secret(path: Path) -> None:
    path.symlink_to("/etc/hostname")


@pytest.mark.parametrize("name", ["manifest.json", "rank.onnx", "vocabulary.json"])
@pytest.mark.parametrize("put", [pipe, endless, secret, Path.mkdir], ids=["pipe", "device", "link", "folder"])
def test_a_name_that_stands_for_something_else(bundle: Path, name: str, put: Callable[[Path], None]) -> None:
    (bundle / name).unlink()
    put(bundle / name)
    refused(bundle, f"^{name}: is no plain file")


def test_a_file_that_is_longer_than_it_says(bundle: Path) -> None:
    for name in ("rank.onnx", "vocabulary.json"):
        os.truncate(bundle / name, 2**40)  # sparse: it takes no place on the disk
    refused(bundle, "truncated or changed")


# -- data -------------------------------------------------------------------------------------------------------------


def bomb() -> bytes:
    """64 MiB of zeros in some kilobytes, which `np.load` would unpack."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("a.npy", "w") as member:
        np.lib.format.write_array(member, np.zeros(8 * MIB, np.int64))
    return file.getvalue()


def claims(shape: str, dtype: str = "<i8") -> bytes:
    header = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + bytes(96)


@pytest.mark.parametrize(
    "data",
    [bomb(), claims("(99999999999,)"), claims("(12,)", "|V99999999"), claims("(12,)", "|O"), claims("(-12,)"),
     claims("(12,)" + "(" * 90)],
    ids=["archive", "huge shape", "huge items", "pickles", "negative", "nested"],
)  # fmt: skip
def test_counts_that_are_something_else(bundle: Path, data: bytes) -> None:
    (bundle / "popularity.npy").write_bytes(data)
    seal(bundle)
    refused(bundle, r"^popularity\.npy: ")


def test_a_vocabulary_of_millions_for_a_catalogue_of_twelve(bundle: Path) -> None:
    (bundle / "vocabulary.json").write_bytes(b'["' + b'","'.join(b"%d" % n for n in range(1_000_000)) + b'"]')
    seal(bundle)
    refused(bundle, r"^vocabulary\.json: more than 12 items", most=24 * MIB)  # the file itself, and no strings


def test_a_golden_pair_of_lists_and_nothing_else(bundle: Path) -> None:
    (bundle / "golden.json").write_bytes(b'{"item_index":[' + b"[]," * (6 * MIB) + b"[]]}")
    seal(bundle)
    refused(bundle, r"^golden\.json: \d+ bytes, the limit is")


@pytest.mark.parametrize("item", ["a\0b", "\0", "../etc", "é" * 128])
def test_odd_items_are_items_like_others(tmp_path: Path, item: str) -> None:
    """Ids name no file and end no string."""
    items = (*TINY.items[:-1], item)
    model = open_bundle(replace(TINY, items=items).write(tmp_path))
    assert model.vocabulary.index(item) == 11


# -- graphs -----------------------------------------------------------------------------------------------------------


def changed(change: Callable[[Any], None]) -> bytes:
    """The rank graph of TINY with something more in it."""
    model = onnx.load_from_string(TINY.rank())
    change(model)
    return bytes(model.SerializeToString())


def add(*nodes: Any) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        model.graph.node.extend(nodes)

    return change


def laughs(model: Any) -> None:
    """Functions that call each other ten times each: written out, a billion operators."""
    opset = [helper.make_opsetid("", 17)]
    for level in range(9):
        inner = f"f{level - 1}" if level else "Identity"
        calls = [helper.make_node(inner, ["x"], [f"y{n}"]) for n in range(10)]
        model.functions.append(helper.make_function("", f"f{level}", ["x"], ["y0"], calls, opset))
    model.graph.node.append(helper.make_node("f8", ["query"], ["unused"]))


def overridden(model: Any) -> None:
    """A function in the place of one of ONNX's own operators."""
    body = [helper.make_node("Add", ["a", "b"], ["c"])]
    model.functions.append(helper.make_function("", "MatMul", ["a", "b"], ["c"], body, [helper.make_opsetid("", 17)]))


def sparse(model: Any) -> None:
    """One number, and zeros for gigabytes around it."""
    values = helper.make_tensor("zeros", TensorProto.FLOAT, [1], [1.0])
    places = helper.make_tensor("places", TensorProto.INT64, [1], [0])
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, places, [2**31]))


def claimed(*dims: int) -> Callable[[Any], None]:
    """Weights of a few bytes that say they are more."""

    def change(model: Any) -> None:
        model.graph.initializer.append(TensorProto(name="w", data_type=TensorProto.FLOAT, dims=dims, raw_data=b"1234"))

    return change


def many_numbers(model: Any) -> None:
    """Weights as numbers of one byte each, of which each becomes an object."""
    numbers = [0] * 2000
    model.graph.initializer.append(
        TensorProto(name="w", data_type=TensorProto.FLOAT16, dims=[len(numbers)], int32_data=numbers)
    )


def endless_loop(model: Any) -> None:
    body = helper.make_graph([helper.make_node("Identity", ["c"], ["d"])], "body", [], [])
    model.graph.node.append(helper.make_node("Loop", ["", "true"], ["unused"], body=body))


def training(model: Any) -> None:
    model.training_info.add().algorithm.CopyFrom(helper.make_graph([], "g", [], []))


GRAPHS: dict[str, tuple[Callable[[Any], None], str]] = {
    "functions": (laughs, "has functions of its own|has the operator 'f8'"),
    "an operator of its own": (overridden, "has functions of its own"),
    "sparse weights": (sparse, "has sparse weights"),
    "huge weights": (claimed(2**40), "are to be 1099511627776, of"),
    "overflowing weights": (claimed(2**62, 2**62), "are to be"),
    "negative weights": (claimed(-1, 4), "are to be"),
    "many dimensions": (claimed(*[1] * 33), "more than 32 dimensions"),
    "many numbers": (many_numbers, "more than 1000 fields"),
    "a loop": (endless_loop, "has the operator Loop"),
    "training": (training, "has graphs for training"),
    "chance": (add(helper.make_node("RandomNormal", [], ["r"], shape=[2])), "'RandomNormal', which is none of"),
    "a decoder of images": (add(helper.make_node("ImageDecoder", ["x"], ["r"])), "'ImageDecoder', which is none of"),
    "texts": (
        add(helper.make_node("RegexFullMatch", ["x"], ["r"], pattern="(a+)+")),
        "'RegexFullMatch', which is none",
    ),
    "code of Python": (add(helper.make_node("PyOp", ["x"], ["r"], domain="ai.onnx.contrib")), "'ai.onnx.contrib'"),
}


@pytest.mark.parametrize(("change", "problem"), GRAPHS.values(), ids=GRAPHS.keys())
def test_graphs_that_are_small_in_their_file_alone(
    bundle: Path, change: Callable[[Any], None], problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_file, "_MOST_FIELDS", 1000)  # two million take a while
    (bundle / "rank.onnx").write_bytes(changed(change))
    seal(bundle)
    refused(bundle, rf"^rank\.onnx: .*({problem})", most=64 * MIB)


# -- what only shows when it runs -------------------------------------------------------------------------------------


def gigabytes(model: Any) -> None:
    """Zeros that the graph asks for itself, of any number, added to the scores."""
    model.graph.initializer.extend(
        [numpy_helper.from_array(np.array([2**33]), "amount"), numpy_helper.from_array(np.array([0]), "first")]
    )
    scores = next(node for node in model.graph.node if node.op_type == "MatMul")
    scores.output[0] = "plain"
    top = next(node for node in model.graph.node if node.op_type == "TopK")
    model.graph.node.remove(top)
    model.graph.node.extend(
        [
            helper.make_node("ConstantOfShape", ["amount"], ["zeros"]),
            helper.make_node("ReduceSum", ["zeros", "first"], ["zero"], keepdims=1),
            helper.make_node("Add", ["plain", "zero"], ["scores"]),
            top,
        ]
    )


def tried(bundle: Path, *, memory_mb: int = 512, seconds: float = 60.0) -> None:
    try_bundle(
        str(bundle), manifest_sha256=manifest_digest(bundle), cache_dir=bundle.parent / "cache", adjusts=False,
        rows=False, batches=(1, 8), memory_mb=memory_mb, seconds=seconds,
    )  # fmt: skip


def test_a_bundle_is_tried_with_so_much_memory_and_time(bundle: Path) -> None:
    tried(bundle)
    with pytest.raises(BundleError, match=r"did not open within 0\.01 s"):
        tried(bundle, seconds=0.01)
    (bundle / "rank.onnx").write_bytes(changed(gigabytes))
    seal(bundle)
    with pytest.raises(BundleError, match=r"^rank\.onnx: ONNX Runtime cannot .*worker\.bundle_memory_mb = 512"):
        tried(bundle)


def minutes(model: Any) -> None:
    """Products of large matrices that the graph makes itself, one of the other, added to the scores."""
    names = ["ones", *(f"product-{n}" for n in range(5000))]
    gigabytes(model)
    nodes, tensors = model.graph.node, model.graph.initializer
    tensors[-2].CopyFrom(numpy_helper.from_array(np.array([2048, 2048]), "amount"))
    made = next(node for node in nodes if node.op_type == "ConstantOfShape")
    made.output[0] = names[0]
    places = list(nodes).index(made)
    for n, (before, after) in enumerate(itertools.pairwise(names), start=places + 1):
        nodes.insert(n, helper.make_node("MatMul", [before, before], [after]))
    total = next(node for node in nodes if node.op_type == "ReduceSum")
    total.input[0] = names[-1]
    del total.input[1]
    total.attribute[0].i = 0


def test_a_trial_ends_with_whoever_began_it_and_when_it_has_had_its_time(bundle: Path) -> None:
    (bundle / "rank.onnx").write_bytes(changed(minutes))
    seal(bundle)
    about = {
        "uri": str(bundle), "manifest_sha256": None, "cache_dir": str(bundle.parent), "adjusts": False, "rows": False,
        "batches": [1], "memory_mb": 4096,
    }  # fmt: skip
    begin = f"from schemas.bundle.trial import try_bundle; try_bundle(**{about | {'seconds': 1e5}})"
    with subprocess.Popen([sys.executable, "-c", begin], cwd=ROOT, stderr=subprocess.PIPE) as worker:
        children = Path(f"/proc/{worker.pid}/task/{worker.pid}/children")
        while worker.poll() is None and not children.read_text():
            time.sleep(0.01)
        worker.kill()
        assert worker.stderr is not None
        ready, _, _ = select.select([worker.stderr], [], [], PATIENCE)
        assert ready, "the trial has the other end of the pipe, too"
        assert worker.stderr.read() == b""
    command = [sys.executable, "-m", "schemas.bundle.trial", json.dumps(about | {"seconds": 0.5})]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE) as process:
        assert process.wait(PATIENCE) == -signal.SIGXCPU
