"""Bundles: what was written opens and answers; whatever is wrong with one is refused, naming the file."""

import dataclasses
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from onnx import helper
from onnx.external_data_helper import convert_model_to_external_data

from bench.random_model import random_bundle
from schemas.bundle.adjust import EXCLUDED
from schemas.bundle.files import BundleLimits, Golden, manifest_digest, open_bundle, read_manifest
from schemas.bundle.golden import encode_golden
from schemas.bundle.manifest import files_of
from schemas.bundle.runtime import item_rows
from schemas.bundle.vocabulary import Vocabulary
from schemas.errors import BundleError, BundleExistsError, NoAnswerError
from tests.contract.tiny_model import (
    F32,
    I64,
    TinyFailing,
    TinyModel,
    TinyNone,
    TinyOutside,
    TinyWindow,
    graph_bytes,
    seal,
)

ROOT = Path(__file__).parents[2]
TINY = TinyModel()
OWN_QUERY = TinyModel(layers=2, hidden_size=3, own_query=True)
WINDOW = TinyWindow()
NONE = TinyNone()
Change = Callable[[Path], None]


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return TINY.write(tmp_path)


# --- what is written opens


@pytest.mark.parametrize("tiny", [TINY, TinyModel(layers=2, hidden_size=3, k=12, recent_size=1, seed=4)])
def test_an_opened_model_is_what_was_written(tmp_path: Path, tiny: TinyModel) -> None:
    folder = tiny.write(tmp_path, training={"window": [1, 2]}, metrics={"model": {"mrr@20": 0.25}}, git_revision="abc")
    assert folder == tmp_path / "v1"
    model = open_bundle(str(folder), manifest_sha256=manifest_digest(folder))
    assert (model.version, model.layers, model.hidden_size) == ("v1", tiny.layers, tiny.hidden_size)
    assert (model.k, model.recent_size) == (tiny.k, tiny.recent_size)
    assert model.vocabulary == Vocabulary(tiny.items)
    assert model.manifest == read_manifest(folder)
    assert model.manifest.training == {"window": [1, 2]}
    assert model.manifest.metrics == {"model": {"mrr@20": 0.25}}
    assert model.manifest.git_revision == "abc"
    model.warm_up([1, 7, 64])


def test_a_model_answers_as_its_graphs_do(bundle: Path) -> None:
    model, golden = open_bundle(bundle.as_uri()), TINY.golden()
    hidden = model.initial_hidden(3)
    for item_index in golden.item_index:
        before = hidden.copy()
        after, query = model.advance(item_index, hidden)
        np.testing.assert_array_equal(hidden, before)  # the caller's state is not touched
        hidden = after
    assert golden.hidden is not None
    np.testing.assert_allclose(hidden, golden.hidden, rtol=1e-5)
    top_index, top_score = model.rank(query, golden.recent, golden.counts, golden.clicks)
    np.testing.assert_array_equal(top_index, golden.top_index)
    np.testing.assert_allclose(top_score, golden.top_score, rtol=1e-5)
    assert [array.dtype.name for array in (top_index, top_score, hidden)] == ["int64", "float32", "float32"]


@pytest.mark.parametrize("chooses_k", [False, True], ids=["exported for 5", "with k as an input"])
def test_a_model_ranks_fewer_items_if_told_to(tmp_path: Path, chooses_k: bool) -> None:
    tiny, golden = TinyModel(chooses_k=chooses_k), TINY.golden()
    model = open_bundle(tiny.write(tmp_path))
    sessions = golden.last_query, golden.recent, golden.counts, golden.clicks
    index, score = model.rank(*sessions)
    short = model.ranking(3)
    assert (short.k, short.version) == (3, model.version)
    np.testing.assert_array_equal(short.popular[0], model.popular[0][:3])
    short_index, short_score = short.rank(*sessions)
    np.testing.assert_array_equal(short_index, index[:, :3])
    np.testing.assert_array_equal(short_score, score[:, :3])
    assert model.ranking(100).k == model.k == 5
    np.testing.assert_array_equal(model.ranking(100).rank(*sessions)[0], index)


def test_a_model_leaves_out_and_boosts_what_it_is_told(tmp_path: Path) -> None:
    items = tuple(f"item-{n}" for n in range(40))
    folder = random_bundle(tmp_path, "v1", items, units=8, seed=0)
    plain, model = open_bundle(folder), open_bundle(folder, adjusts=True).ranking(5)
    query = model.advance(np.arange(3), model.initial_hidden(3))[1]
    sessions = query, np.full((3, 1), -1), np.zeros((3, 1), np.float32), np.ones(3, np.float32)
    index = plain.rank(*sessions)[0]
    np.testing.assert_array_equal(model.rank(*sessions)[0], index[:, :5])
    adjust = np.zeros(40, dtype=np.float32)
    adjust[index[0, :3]] = EXCLUDED
    found, _ = model.rank(*sessions, adjust=adjust, k=7)
    assert found[0].tolist() == index[0, 3:10].tolist()
    found, found_score = model.rank(*sessions, adjust=np.full(40, EXCLUDED, np.float32), k=100)
    assert found.shape == (3, 40)
    assert (found_score < EXCLUDED / 2).all()
    with pytest.raises(ValueError, match="was not opened to adjust scores"):
        plain.rank(*sessions, adjust=adjust)
    with pytest.raises(ValueError, match="was not opened to adjust scores"):
        plain.rank(*sessions, k=35)


@pytest.mark.parametrize("tiny", [TINY, TinyModel(chooses_k=True), TinyNone(chooses_k=True)])
def test_a_bundle_of_an_older_release_is_served_but_not_adjusted(tmp_path: Path, tiny: TinyModel) -> None:
    folder = tiny.write(tmp_path)
    open_bundle(folder)
    with pytest.raises(BundleError, match="cannot leave items out, boost them or rank more than it lists, as worker"):
        open_bundle(folder, adjusts=True)


@pytest.mark.parametrize("items", [40, 20_001], ids=["all ranked", "with a shortlist"])
def test_a_model_is_opened_with_its_items_rows_where_it_has_some(tmp_path: Path, items: int) -> None:
    folder = random_bundle(tmp_path, "v1", [f"item-{n}" for n in range(items)], units=8, seed=0)
    [rows] = [
        onnx.numpy_helper.to_array(tensor)
        for tensor in onnx.load(folder / "rank.onnx").graph.initializer
        if tensor.name == "output"
    ]
    model = open_bundle(folder, rows=True)
    assert model.rows is not None
    np.testing.assert_allclose(model.rows, rows / np.linalg.norm(rows, axis=1, keepdims=True), rtol=1e-5)
    assert model.ranking(5).rows is model.rows
    assert open_bundle(folder).rows is None


def test_rows_of_any_size_are_made_as_long_as_one(tmp_path: Path) -> None:
    rows = np.outer([0, 1e-30, 1, 1e30], [3, 4]).astype(np.float32)
    graph = onnx.helper.make_graph([], "rank", [], [], [onnx.numpy_helper.from_array(rows, "output")])
    manifest = msgspec.structs.replace(open_bundle(TINY.write(tmp_path)).manifest, catalogue_size=len(rows))
    found = item_rows(manifest, onnx.helper.make_model(graph).SerializeToString())
    np.testing.assert_allclose(found, np.array([[0, 0], [0.6, 0.8], [0.6, 0.8], [0.6, 0.8]]), rtol=1e-6)


@pytest.mark.parametrize("tiny", [NONE, TINY], ids=["counts", "has columns instead"])
def test_a_model_without_rows_of_items_is_served_but_not_for_mmr(tmp_path: Path, tiny: TinyModel) -> None:
    folder = tiny.write(tmp_path)
    with pytest.raises(BundleError, match=r"rank\.onnx: has no rows of items .* Set worker\.mmr_lambda to 1, or train"):
        open_bundle(folder, rows=True)


@pytest.mark.parametrize("inputs", [["k"], ["adjust"], ["k", "adjust"]])
def test_a_graph_that_only_says_that_it_adjusts_is_refused(tmp_path: Path, inputs: list[str]) -> None:
    folder = random_bundle(tmp_path, "v1", [f"item-{n}" for n in range(40)], units=8, seed=0)
    graph = onnx.load(folder / "rank.onnx")
    for given in [given for given in graph.graph.input if given.name in ("k", "adjust") and given.name not in inputs]:
        graph.graph.input.remove(given)
    if inputs == ["k", "adjust"]:  # looks at neither branch
        [chosen] = [node for node in graph.graph.node if node.op_type == "If"]
        branches = {branch.name: branch.g for branch in chosen.attribute}
        branches["then_branch"].CopyFrom(branches["else_branch"])
    (folder / "rank.onnx").write_bytes(graph.SerializeToString())
    seal(folder)
    open_bundle(folder)
    problem = "does not leave out or boost" if len(inputs) == 2 else "not both of the inputs"
    with pytest.raises(BundleError, match=problem):
        open_bundle(folder, adjusts=True)


def test_the_most_popular_items_are_best_first(tmp_path: Path) -> None:
    counts = np.asarray([3, 9, 0, 3, 1, 0, 0, 0, 0, 0, 0, 0], dtype=np.int64)
    index, share = open_bundle(TINY.write(tmp_path, popularity=counts)).popular
    assert index.tolist() == [1, 0, 3, 4, 2]  # ties by index
    np.testing.assert_allclose(share, np.asarray([9, 3, 3, 1, 0]) / 16, rtol=1e-6)
    assert [array.dtype.name for array in (index, share)] == ["int64", "float32"]
    with pytest.raises(ValueError, match="read-only"):
        index[0] = 0


@pytest.mark.parametrize("bad", [-1, 12])
def test_an_unknown_item_has_no_step(bundle: Path, bad: int) -> None:
    model = open_bundle(bundle)
    with pytest.raises(ValueError, match="unknown items have no step"):
        model.advance(np.asarray([0, bad]), model.initial_hidden(2))


@pytest.mark.parametrize(
    ("tiny", "encoder", "files"),
    [
        (OWN_QUERY, "recurrent", ["advance.onnx", "rank.onnx"]),
        (WINDOW, "window", ["encode.onnx", "rank.onnx"]),
        (TinyWindow(window=2, k=12, recent_size=1, seed=4), "window", ["encode.onnx", "rank.onnx"]),
        (TinyWindow(layers=2, unrolled=True), "window", ["encode.onnx", "rank.onnx"]),
        (NONE, "none", ["rank.onnx"]),
        (TinyNone(chooses_k=True), "none", ["rank.onnx"]),
    ],
    ids=["own query", "window", "short window", "unrolled", "none", "none with k as an input"],
)
def test_a_model_of_every_encoder_answers_as_its_graphs_do(
    tmp_path: Path, tiny: TinyModel, encoder: str, files: list[str]
) -> None:
    folder, golden = tiny.write(tmp_path, family="stamp"), tiny.golden()
    assert sorted(path.name for path in folder.glob("*.onnx")) == files
    model = open_bundle(folder)
    assert (model.encoder, model.manifest.format_version, model.manifest.family) == (encoder, 2, "stamp")
    sizes = {"layers": 0, "hidden_size": 0, "query_size": 0, "window": 0} | tiny.sizes()
    assert {name: getattr(model, name) for name in sizes} == sizes
    assert model.own_query is tiny.own_query
    top_index, top_score = model.rank(golden.last_query, golden.recent, golden.counts, golden.clicks)
    np.testing.assert_array_equal(top_index, golden.top_index)
    np.testing.assert_allclose(top_score, golden.top_score, rtol=1e-5)
    model.warm_up([1, 7, 64])
    assert model.ranking(3).rank(golden.last_query, golden.recent, golden.counts, golden.clicks)[0].shape == (3, 3)


def test_a_query_of_the_graphs_own_comes_with_each_step(tmp_path: Path) -> None:
    model, golden = open_bundle(OWN_QUERY.write(tmp_path)), OWN_QUERY.golden()
    assert golden.query is not None
    hidden = model.initial_hidden(3)
    for item_index, expected in zip(golden.item_index, golden.query, strict=True):
        _, of_step, finite = model.step(item_index, hidden)
        hidden, query = model.advance(item_index, hidden)
        np.testing.assert_allclose(query, expected, rtol=1e-5)
        np.testing.assert_allclose(of_step, expected, rtol=1e-5)
        assert finite.all()
    assert query.shape == (3, 4)  # one more than the hidden state


@pytest.mark.parametrize("chosen", [TINY, TinyModel(layers=2, hidden_size=3, chooses_k=True)])
def test_a_bundle_of_format_1_opens_and_answers_as_before(tmp_path: Path, chosen: TinyModel) -> None:
    old, new = open_bundle(chosen.write_format_1(tmp_path / "1")), open_bundle(chosen.write(tmp_path / "2"))
    manifest = old.manifest
    assert (manifest.format_version, manifest.family, manifest.encoder) == (1, "gru4rec", "recurrent")
    assert (manifest.query_size, manifest.window, old.own_query) == (chosen.hidden_size, 0, False)
    golden = chosen.golden()
    sessions = golden.last_query, golden.recent, golden.counts, golden.clicks
    for before, after in zip(old.rank(*sessions), new.rank(*sessions), strict=True):
        np.testing.assert_array_equal(before, after)
    old.warm_up([3])


def test_what_a_manifest_of_format_1_lacks_is_told_by_its_own_name(tmp_path: Path) -> None:
    folder = TINY.write_format_1(tmp_path)
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["hidden_size"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=r"^manifest\.json: .*missing required field `hidden_size`"):
        open_bundle(folder)


@pytest.mark.parametrize("layers", [1, 3])
def test_a_network_exported_both_ways_is_one(tmp_path: Path, layers: int) -> None:
    """Step by step, and all at once from its window."""
    step = open_bundle(TinyModel(layers=layers).write(tmp_path, "step"))
    window = open_bundle(TinyWindow(layers=layers, window=9, unrolled=True).write(tmp_path, "window"))
    items = np.random.default_rng(2).integers(12, size=(9, 5))  # [T, B]
    hidden = step.initial_hidden(5)
    for clicks in range(1, 10):
        hidden, query = step.advance(items[clicks - 1], hidden)
        padded = np.full((5, 9), -1)
        padded[:, :clicks] = items[:clicks].T
        for given in (padded, padded[:, :clicks]):
            found = window.encode(np.ascontiguousarray(given), np.full(5, clicks))
            np.testing.assert_allclose(found, query, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("items", "length"),
    [
        ([[12]], [1]),
        ([[-1]], [1]),
        ([[0, -1]], [2]),
        ([[0, 1]], [1]),
        ([[-1, 0]], [1]),
        ([[0]], [2]),
        ([[-1]], [0]),
        ([[]], [0]),
        ([[]], [2]),
        ([[0] * 7], [7]),
    ],
)
def test_what_is_no_window_is_not_encoded(tmp_path: Path, items: list[list[int]], length: list[int]) -> None:
    model = open_bundle(WINDOW.write(tmp_path))
    with pytest.raises(ValueError, match="session"):
        model.encode(np.asarray(items, dtype=np.int64), np.asarray(length))


def test_many_long_sessions_are_encoded_as_few_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = open_bundle(WINDOW.write(tmp_path))
    items = np.random.default_rng(0).integers(12, size=(50, 6))
    length = np.full(50, 6)
    whole = model.encode(items, length)
    monkeypatch.setattr("schemas.bundle.runtime._PAIRS_A_RUN", 7 * 6**2)
    np.testing.assert_allclose(model.encode(items, length), whole, rtol=1e-6)


# --- damage that the checksums find


def flip(name: str) -> Change:
    def change(bundle: Path) -> None:
        data = bytearray((bundle / name).read_bytes())
        data[len(data) // 2] ^= 0x10
        (bundle / name).write_bytes(data)

    return change


def truncate(name: str) -> Change:
    return lambda bundle: os.truncate(bundle / name, (bundle / name).stat().st_size // 2)


def remove(name: str) -> Change:
    return lambda bundle: (bundle / name).unlink()


def lengthen(name: str) -> Change:
    return lambda bundle: os.truncate(bundle / name, (bundle / name).stat().st_size + 1)


def link(name: str) -> Change:
    def change(bundle: Path) -> None:
        (bundle / name).rename(bundle.parent / name)
        (bundle / name).symlink_to(bundle.parent / name)

    return change


@pytest.mark.parametrize("name", files_of("recurrent"))
@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (flip, "SHA-256 is not the manifest's"),
        (truncate, "truncated or changed"),
        (lengthen, "truncated or changed"),
        (remove, "missing"),
        (link, "no plain file"),
    ],
)
def test_damaged_files_are_refused(bundle: Path, name: str, damage: Callable[[str], Change], problem: str) -> None:
    damage(name)(bundle)
    with pytest.raises(BundleError, match=problem) as caught:
        open_bundle(bundle)
    assert str(caught.value).startswith(f"{name}: ")


def test_another_manifest_than_announced_is_refused(bundle: Path) -> None:
    announced = manifest_digest(bundle)
    seal(bundle, version="v2")
    with pytest.raises(BundleError, match=f"manifest.json: SHA-256 is .*, announced was {announced}"):
        open_bundle(bundle, manifest_sha256=announced)


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no such folder; is the registry mounted"):
        open_bundle(tmp_path / "v9")


def test_a_file_too_many_is_refused(bundle: Path) -> None:
    (bundle / "model.pkl").write_bytes(b"")
    with pytest.raises(BundleError, match=r"model\.pkl: is no file of a bundle"):
        open_bundle(bundle)


# --- a manifest that cannot be believed


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"format_version": 3}, "format version 3, this program reads 1 and 2"),
        ({"format_version": "1"}, r"\$\.format_version"),
        ({"version": "../v1"}, r"\$\.version"),
        ({"layers": -1}, r"\$\.layers"),
        ({"layers": 0}, "layers is 0, of a model with the encoder 'recurrent' it must be 1 or more"),
        ({"layers": 9}, "layers is 9, the limit is 8"),
        ({"hidden_size": 10**9}, "hidden_size is 1000000000, the limit"),
        ({"catalogue_size": 10**9}, "catalogue_size is 1000000000, the limit"),
        ({"k": 13}, "k is 13, more than the 12 items"),
        ({"recent_size": 10**6}, "recent_size is 1000000, the limit"),
        ({"files": {}}, r"does not list advance\.onnx"),
        ({"created_at": None}, r"\$\.created_at"),
    ],
)
def test_bad_manifests_are_refused(bundle: Path, changed: dict[str, Any], problem: str) -> None:
    seal(bundle, **changed)
    with pytest.raises(BundleError, match=problem) as caught:
        open_bundle(bundle)
    assert str(caught.value).startswith("manifest.json: ")


@pytest.mark.parametrize(
    ("tiny", "changed", "problem"),
    [
        (WINDOW, {"encoder": "graph"}, r"\$\.encoder"),
        (WINDOW, {"family": ""}, r"\$\.family"),
        (WINDOW, {"window": 0}, "window is 0, of a model with the encoder 'window' it must be 1 or more"),
        (WINDOW, {"window": 1001}, "window is 1001, the limit is 1000"),
        (WINDOW, {"query_size": 0}, "query_size is 0, of a model with the encoder 'window' it must be 1 or more"),
        (WINDOW, {"query_size": 5000}, "query_size is 5000, the limit is 4096"),
        (WINDOW, {"layers": 1}, "layers is 1, of a model with the encoder 'window' it must be 0"),
        (WINDOW, {"hidden_size": 4}, "hidden_size is 4, of a model with the encoder 'window' it must be 0"),
        (WINDOW, {"encoder": "none", "window": 0, "query_size": 0}, "lists 'encode.onnx', which is no file"),
        (WINDOW, {"format_version": 1}, "layers is 0, of a model with the encoder 'recurrent'"),
        (NONE, {"query_size": 4}, "query_size is 4, of a model with the encoder 'none' it must be 0"),
        (NONE, {"window": 4}, "window is 4, of a model with the encoder 'none' it must be 0"),
        (NONE, {"encoder": "window", "window": 4, "query_size": 4}, r"does not list encode\.onnx"),
        (TINY, {"window": 4}, "window is 4, of a model with the encoder 'recurrent' it must be 0"),
    ],
)
def test_manifests_that_contradict_their_encoder_are_refused(
    tmp_path: Path, tiny: TinyModel, changed: dict[str, Any], problem: str
) -> None:
    folder = tiny.write(tmp_path)
    seal(folder, **changed)
    with pytest.raises(BundleError, match=problem) as caught:
        open_bundle(folder)
    assert str(caught.value).startswith("manifest.json: ")


@pytest.mark.parametrize("name", ["../../outside", "/etc/passwd", "extra.onnx", "encode.onnx", "sub/rank.onnx"])
def test_a_path_too_many_in_the_manifest_is_refused(bundle: Path, name: str) -> None:
    files = json.loads((bundle / "manifest.json").read_text())["files"]
    seal(bundle, files=files | {name: {"sha256": "0" * 64, "size": 1}})
    with pytest.raises(BundleError, match=r"manifest\.json: lists .* which is no file of a bundle"):
        open_bundle(bundle)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"\xff", b"[" * 9_000, b'{"format_version": 1}'])
def test_a_manifest_that_is_none_is_refused(bundle: Path, data: bytes) -> None:
    (bundle / "manifest.json").write_bytes(data)
    with pytest.raises(BundleError, match=r"^manifest\.json: "):
        open_bundle(bundle)


@pytest.mark.parametrize("name", files_of("window"))
@pytest.mark.parametrize(
    ("damage", "problem"), [(flip, "SHA-256 is not"), (remove, "missing"), (link, "no plain file")]
)
def test_damaged_files_of_a_window_are_refused(
    tmp_path: Path, name: str, damage: Callable[[str], Change], problem: str
) -> None:
    folder = WINDOW.write(tmp_path)
    damage(name)(folder)
    with pytest.raises(BundleError, match=rf"^{name}: .*{problem}"):
        open_bundle(folder)


def test_oversized_files_are_refused_before_they_are_read(bundle: Path) -> None:
    limits = BundleLimits(graph_bytes=600)
    with pytest.raises(BundleError, match=r"advance\.onnx: \d+ bytes, the limit is 600"):
        open_bundle(bundle, limits=limits)
    with pytest.raises(BundleError, match=r"golden\.json: \d+ bytes, the limit is 90"):
        open_bundle(bundle, limits=BundleLimits(golden_bytes=90))
    with (bundle / "manifest.json").open("ab") as file:
        file.truncate(100 * 1024**2)
    with pytest.raises(BundleError, match=r"manifest\.json: more than 4194304 bytes"):
        open_bundle(bundle)


# --- files that are whole and wrong: the manifest vouches for each of these


def npy(array: Any, *, pickled: bool = False) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=pickled)
    return file.getvalue()


@pytest.mark.parametrize(
    ("name", "data", "problem"),
    [
        ("vocabulary.json", msgspec.json.encode(["a"] * 12), "'a' is there twice"),
        ("vocabulary.json", msgspec.json.encode(list("abc")), "3 items, the manifest says 12"),
        ("vocabulary.json", msgspec.json.encode([*TINY.items[:-1], ""]), "item 11 is ''"),
        ("vocabulary.json", b'{"a":1}', "Expected `array`"),
        ("popularity.npy", npy(np.zeros(11, dtype=np.int64)), r"int64\[11\], expected int64\[12\]"),
        ("popularity.npy", npy(np.zeros((12, 1), dtype=np.int64)), r"expected int64\[12\]"),
        ("popularity.npy", npy(np.zeros(12)), r"float64\[12\], expected int64\[12\]"),
        ("popularity.npy", npy(np.full(12, -1)), "negative count"),
        ("popularity.npy", npy(np.asarray([{}] * 12, dtype=object), pickled=True), r"holds object\[12\], expected"),
        ("popularity.npy", npy(np.zeros(12, dtype=np.int64))[:-1], "."),
        ("popularity.npy", npy(np.zeros(12)).replace(b"(12,), }", b"(99999999999999,), }"), "."),
        ("popularity.npy", b"no array", "."),
        ("golden.json", b"{}", "item_index, recent, top_index, top_score missing"),
        ("golden.json", b"[]", "Expected `object`"),
        ("golden.json", b"{", "truncated"),
    ],
)
def test_wrong_data_files_are_refused(bundle: Path, name: str, data: bytes, problem: str) -> None:
    (bundle / name).write_bytes(data)
    seal(bundle)
    with pytest.raises(BundleError, match=problem) as caught:
        open_bundle(bundle)
    assert str(caught.value).startswith(f"{name}: ")


@pytest.mark.parametrize(
    ("field", "value", "problem"),
    [
        ("item_index", np.zeros(4, dtype=np.int64), "expected .clicks, sessions."),
        ("item_index", np.zeros((0, 3), dtype=np.int64), "expected .clicks, sessions."),
        ("item_index", np.zeros((3334, 3), dtype=np.int64), "has 10002 clicks, the limit is 10000"),
        ("item_index", np.full((4, 3), 12), "outside the catalogue of 12"),
        ("item_index", np.full((4, 3), -1), "outside the catalogue of 12"),
        ("top_index", np.full((3, 5), 99), "outside the catalogue of 12"),
        ("hidden", np.zeros((1, 3, 5)), r"hidden has the shape \(1, 3, 5\), expected \(1, 3, 4\)"),
        ("recent", np.zeros((3, 7), dtype=np.int64), "recent has the shape"),
        ("clicks", np.full(3, 1e39), "clicks holds a value that is not finite"),
    ],
)
def test_golden_pairs_of_another_shape_are_refused(bundle: Path, field: str, value: Any, problem: str) -> None:
    golden: Golden = dataclasses.replace(TINY.golden(), **{field: value})
    (bundle / "golden.json").write_bytes(encode_golden(golden))
    seal(bundle)
    with pytest.raises(BundleError, match=rf"^golden\.json: .*{problem}"):
        open_bundle(bundle)


def changed_model(data: bytes, change: Callable[[Any], None]) -> bytes:
    model = onnx.load_from_string(data)
    change(model)
    return bytes(model.SerializeToString())


def poison(name: str, value: float) -> Callable[[Any], None]:
    """Put a number into a weight that the golden pair does not touch."""

    def change(model: Any) -> None:
        tensor = next(one for one in model.graph.initializer if one.name == name)
        weights = np.frombuffer(tensor.raw_data, dtype=np.float32).copy()
        weights[-1] = value
        tensor.raw_data = weights.tobytes()

    return change


def use_external_data(model: Any) -> None:
    convert_model_to_external_data(model, location="../secret.bin", size_threshold=0)
    for tensor in model.graph.initializer:
        tensor.ClearField("raw_data")


def rename_input(model: Any) -> None:
    model.graph.input[0].name = "item"
    model.graph.node[0].input[1] = "item"


def fix_batch(model: Any) -> None:
    for io_value in (*model.graph.input, *model.graph.output):
        for dimension in io_value.type.tensor_type.shape.dim:
            if dimension.dim_param == "batch":
                dimension.ClearField("dim_param")
                dimension.dim_value = 3


def scale(name: str, factor: float) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        tensor = next(one for one in model.graph.initializer if one.name == name)
        tensor.raw_data = (np.frombuffer(tensor.raw_data, dtype=np.float32) * np.float32(factor)).tobytes()

    return change


OTHER = TinyModel(seed=1)
LESS_HIDDEN = TinyModel(hidden_size=3)
FEWER_ITEMS = TinyModel(items=TINY.items[:-1])
WRONG_GRAPHS = {
    "not ONNX": ("advance.onnx", b"not an onnx file", "no ONNX file"),
    "empty": ("rank.onnx", b"", "no ONNX graph"),
    "cut": ("advance.onnx", TINY.advance()[:-200], "truncated|cannot load"),
    "NaN in advance": ("advance.onnx", changed_model(TINY.advance(), poison("embedding", np.nan)), "'embedding' hold"),
    "NaN in rank": ("rank.onnx", changed_model(TINY.rank(), poison("output", np.nan)), "'output' hold"),
    "infinity": ("rank.onnx", changed_model(TINY.rank(), poison("output", np.inf)), "'output' hold"),
    "external data": ("rank.onnx", changed_model(TINY.rank(), use_external_data), "external data"),
    "input name": ("advance.onnx", changed_model(TINY.advance(), rename_input), r"inputs .*'item'.*expected"),
    "fixed batch": ("advance.onnx", changed_model(TINY.advance(), fix_batch), r"item_index has the shape \[3\]"),
    "swapped": ("advance.onnx", TINY.rank(), "has the inputs"),
    "hidden size": ("advance.onnx", LESS_HIDDEN.advance(), "input hidden has the shape"),
    "layers": ("advance.onnx", TinyModel(layers=2).advance(), "input hidden has the shape"),
    "k": ("rank.onnx", TinyModel(k=4).rank(), r"output top_index has the shape \['batch', 4\]"),
    "recent size": ("rank.onnx", TinyModel(recent_size=5).rank(), "input recent has the shape"),
    "catalogue of advance": ("advance.onnx", FEWER_ITEMS.advance(), "cannot run it|no weights for a catalogue"),
    "catalogue of rank": ("rank.onnx", FEWER_ITEMS.rank(), "no weights for a catalogue of 12"),
    "other advance weights": ("advance.onnx", OTHER.advance(), r"answer to golden\.json is off by"),
    "other rank weights": ("rank.onnx", OTHER.rank(), r"answer to golden\.json differs"),
    "slightly other": ("rank.onnx", changed_model(TINY.rank(), scale("output", 1.01)), "answer to golden"),
}


@pytest.mark.parametrize(("name", "data", "problem"), WRONG_GRAPHS.values(), ids=WRONG_GRAPHS.keys())
def test_wrong_graphs_are_refused(bundle: Path, name: str, data: bytes, problem: str) -> None:
    (bundle / name).write_bytes(data)
    seal(bundle)
    with pytest.raises(BundleError, match=problem) as caught:
        open_bundle(bundle)
    assert str(caught.value).startswith(f"{name}: ")


def renamed(old: str, new: str) -> Callable[[Any], None]:
    """Give an input or output of a graph another name."""

    def change(model: Any) -> None:
        for value in (*model.graph.input, *model.graph.output):
            value.name = new if value.name == old else value.name
        for node in model.graph.node:
            node.input[:] = [new if name == old else name for name in node.input]
            node.output[:] = [new if name == old else name for name in node.output]

    return change


def rewired(operator: str, place: int, name: str) -> Callable[[Any], None]:
    """Give the first node of this operator another input."""

    def change(model: Any) -> None:
        next(node for node in model.graph.node if node.op_type == operator).input[place] = name

    return change


def fix_clicks(model: Any) -> None:
    shape = next(value for value in model.graph.input if value.name == "items").type.tensor_type.shape
    shape.dim[1].ClearField("dim_param")
    shape.dim[1].dim_value = 6


def of_a_vendor(model: Any) -> None:
    model.graph.node.append(helper.make_node("Gelu", ["query"], ["unused"], domain="com.microsoft"))
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))


def with_a_loop(model: Any) -> None:
    inputs = [
        helper.make_tensor_value_info(name, kind, []) for name, kind in (("i", I64), ("go", onnx.TensorProto.BOOL))
    ]
    body = helper.make_graph([helper.make_node("Identity", ["go"], ["on"])], "body", inputs, [])
    body.output.append(helper.make_tensor_value_info("on", onnx.TensorProto.BOOL, []))
    model.graph.node.append(helper.make_node("Loop", ["", ""], [], body=body))


def divide_by_places(model: Any) -> None:
    """By how many places there are, not by how many clicks."""
    node = next(node for node in model.graph.node if node.op_type == "Cast" and node.output[0] == "divisor")
    model.graph.node.insert(3, helper.make_node("Shape", ["items"], ["of_places"], start=1, end=2))
    node.input[0] = "of_places"


def mix_the_batch(model: Any) -> None:
    """Each session sees the first one."""
    model.graph.node[-1].output[0] = "own"
    model.graph.node.append(helper.make_node("ReduceMean", ["own", "first"], ["mean"], keepdims=1))
    model.graph.node.append(helper.make_node("Add", ["own", "mean"], ["query"]))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray([0]), "first"))


ENCODE, UNROLLED = WINDOW.encode(), TinyWindow(unrolled=True)
WRONG_ENCODERS: dict[str, tuple[TinyModel, str, bytes, str]] = {
    "input name": (WINDOW, "encode.onnx", changed_model(ENCODE, renamed("items", "clicked")), "has the inputs"),
    "output name": (WINDOW, "encode.onnx", changed_model(ENCODE, renamed("query", "hidden")), "has the outputs"),
    "fixed clicks": (WINDOW, "encode.onnx", changed_model(ENCODE, fix_clicks), r"items has the shape \['batch', 6\]"),
    "fixed batch": (WINDOW, "encode.onnx", changed_model(ENCODE, fix_batch), r"items has the shape \[3, 'clicks'\]"),
    "query size": (WINDOW, "encode.onnx", TinyWindow(hidden_size=3).encode(), r"query has the shape \['batch', 3\]"),
    "NaN": (WINDOW, "encode.onnx", changed_model(ENCODE, poison("embedding", np.nan)), "'embedding' hold"),
    "catalogue": (WINDOW, "encode.onnx", TinyWindow(items=TINY.items[:-1]).encode(), "no weights for a catalogue"),
    "other weights": (WINDOW, "encode.onnx", TinyWindow(seed=1).encode(), r"answer to golden\.json with its 4 places"),
    "places for clicks": (WINDOW, "encode.onnx", changed_model(ENCODE, divide_by_places), "places is off by"),
    "padding is gathered": (UNROLLED, "encode.onnx", changed_model(UNROLLED.encode(), rewired("GRU", 4, "")), "places"),
    "mixed batch": (WINDOW, "encode.onnx", changed_model(ENCODE, mix_the_batch), "is off by"),
    "vendor": (WINDOW, "encode.onnx", changed_model(ENCODE, of_a_vendor), "has operators of 'com.microsoft'"),
    "loop": (NONE, "rank.onnx", changed_model(NONE.rank(), with_a_loop), "has the operator Loop"),
    "query for none": (NONE, "rank.onnx", TINY.rank(), r"has the inputs .*'query'.*, expected .*'clicks'"),
    "no query for a window": (WINDOW, "rank.onnx", NONE.rank(), r"has the inputs .*, expected .*'query'"),
    "format 1 in format 2": (
        TINY,
        "rank.onnx",
        TINY.rank("hidden"),
        r"has the inputs .*'hidden'.*, expected .*'query'",
    ),
    "no query of its own": (
        OWN_QUERY,
        "advance.onnx",
        TinyModel(layers=2, hidden_size=3).advance(),
        "has no output query, so a query is its last layer of 3; manifest.json says that query_size is 4",
    ),
    "other query size": (
        TINY,
        "advance.onnx",
        TinyModel(own_query=True).advance(),
        r"output query has the shape \['batch', 5\], expected \['batch', 4\]",
    ),
    "other query": (
        OWN_QUERY,
        "advance.onnx",
        changed_model(OWN_QUERY.advance(), scale("projection", 1.1)),
        r"answer to golden\.json is off by",
    ),
    "other counts": (NONE, "rank.onnx", TinyNone(seed=1).rank(), r"answer to golden\.json differs"),
}


@pytest.mark.parametrize(("tiny", "name", "data", "problem"), WRONG_ENCODERS.values(), ids=WRONG_ENCODERS.keys())
def test_graphs_that_do_not_fit_their_encoder_are_refused(
    tmp_path: Path, tiny: TinyModel, name: str, data: bytes, problem: str
) -> None:
    folder = tiny.write(tmp_path)
    (folder / name).write_bytes(data)
    seal(folder)
    with pytest.raises(BundleError, match=problem) as caught:
        open_bundle(folder)
    assert str(caught.value).startswith(f"{name}: ")


def first_rows(name: str, rows: int, axis: int = 0) -> Callable[[Any], None]:
    """Return the first few sessions alone, however many were asked for: as many as the golden pair has."""

    def change(model: Any) -> None:
        for node in model.graph.node:
            node.output[:] = ["all" if output == name else output for output in node.output]
            node.input[:] = ["all" if given == name else given for given in node.input]
        model.graph.node.append(helper.make_node("Slice", ["all", "from", "to", "along"], [name]))
        for constant, value in (("from", 0), ("to", rows), ("along", axis)):
            model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray([value]), constant))

    return change


MORE = tuple(f"item-{index}" for index in range(20))


@pytest.mark.parametrize(
    ("tiny", "name", "cut"),
    [
        (TINY, "advance", first_rows("hidden_out", 3, axis=1)),
        (OWN_QUERY, "advance", first_rows("query", 3)),
        (TinyWindow(items=MORE), "encode", first_rows("query", 12)),
        (NONE, "rank", first_rows("top_index", 3)),
        (NONE, "rank", first_rows("top_score", 3)),
    ],
)
def test_answers_to_other_sessions_than_were_asked_for_are_refused(
    tmp_path: Path, tiny: TinyModel, name: str, cut: Callable[[Any], None]
) -> None:
    folder = tiny.write(tmp_path)
    (folder / f"{name}.onnx").write_bytes(changed_model(tiny.graphs()[name], cut))
    seal(folder)
    with pytest.raises(BundleError, match=rf"^{name}\.onnx: returns .* of the shape .*, expected"):
        open_bundle(folder)


@pytest.mark.parametrize("unseen", [4, 11])
def test_a_query_that_is_not_finite_is_refused_whatever_the_item(tmp_path: Path, unseen: int) -> None:
    """Its weights are finite, and the golden pair does not click on it: only a click on it shows."""
    tiny = TinyWindow(seed=next(seed for seed in range(99) if unseen not in TinyWindow(seed=seed).golden().item_index))

    def enlarge(model: Any) -> None:
        rows = model.graph.node[1]
        rows.output[0] = "small"
        model.graph.node.insert(2, helper.make_node("Gather", ["factor", "safe"], ["factors"]))  # [B, T, 1]
        model.graph.node.insert(3, helper.make_node("Mul", ["small", "factors"], ["large"]))
        model.graph.node.insert(4, helper.make_node("Mul", ["large", "factors"], ["rows"]))
        values = np.where(np.arange(12) == unseen, 3e30, 1).astype(np.float32)[:, None]
        model.graph.initializer.append(onnx.numpy_helper.from_array(values, "factor"))

    folder = tiny.write(tmp_path)
    (folder / "encode.onnx").write_bytes(changed_model(tiny.encode(), enlarge))
    seal(folder)
    with pytest.raises(BundleError, match=rf"^encode\.onnx: a click on 'item-{unseen}' leads to a query"):
        open_bundle(folder)


@pytest.mark.parametrize(
    ("tiny", "changed", "problem"),
    [
        (WINDOW, {"query": None}, "query missing"),
        (WINDOW, {"query": np.zeros((3, 3, 4))}, r"query has the shape \(3, 3, 4\), expected \(4, 3, 4\)"),
        (WINDOW, {"hidden": np.zeros((1, 3, 4))}, "holds hidden, which a model with the encoder 'window' has not"),
        (TINY, {"query": None}, "query missing"),
        (TINY, {"hidden": None}, "hidden missing"),
        (NONE, {"query": np.zeros((4, 3, 4))}, "holds query, which a model with the encoder 'none' has not"),
    ],
)
def test_golden_pairs_of_another_encoder_are_refused(
    tmp_path: Path, tiny: TinyModel, changed: dict[str, Any], problem: str
) -> None:
    folder = tiny.write(tmp_path)
    (folder / "golden.json").write_bytes(encode_golden(dataclasses.replace(tiny.golden(), **changed)))
    seal(folder)
    with pytest.raises(BundleError, match=rf"^golden\.json: {problem}"):
        open_bundle(folder)


FAULTS = {
    "fails": TinyFailing(),
    "an index behind the last": TinyOutside(),
    "an index below 0": TinyOutside(by=-12),
}


@pytest.mark.parametrize("tiny", FAULTS.values(), ids=FAULTS.keys())
def test_what_is_no_answer_is_an_error_of_the_bundles(tmp_path: Path, tiny: TinyModel) -> None:
    """Of a session that no bundle is tried with. Python takes an index below 0 for a place from the end."""
    model = open_bundle(tiny.write(tmp_path))
    _, query = model.advance(np.zeros(1, np.int64), model.initial_hidden(1))
    session = query, np.full((1, 6), -1), np.zeros((1, 6), np.float32)
    assert model.rank(*session, np.full(1, 8, np.float32))[0].shape == (1, 5)
    with pytest.raises(NoAnswerError, match=r"^rank\.onnx: (ONNX Runtime cannot run it|returns items outside the cat)"):
        model.rank(*session, np.full(1, 9, np.float32))


@pytest.mark.parametrize("by", [12, -12])
def test_items_outside_the_catalogue_for_a_long_session_are_refused(tmp_path: Path, by: int) -> None:
    with pytest.raises(BundleError, match=r"^rank\.onnx: returns items outside the catalogue of 12"):
        TinyOutside(longest=5.5, by=by).write(tmp_path)  # more clicks than a golden session has


def rank_graph(nodes: list[Any], dtype_of_index: int = I64) -> bytes:
    output = TINY.weights(4, 12, salt=2)
    constants = [
        onnx.numpy_helper.from_array(output, "output"),
        onnx.numpy_helper.from_array(np.asarray([5]), "k"),
        onnx.numpy_helper.from_array(np.float32(0), "zero"),
    ]
    outputs: list[tuple[str, int, list[int | str]]] = [
        ("top_index", dtype_of_index, ["batch", 5]),
        ("top_score", F32, ["batch", 5]),
    ]
    return graph_bytes(nodes, inputs=TINY.rank_inputs(), outputs=outputs, constants=constants)


SCORES = helper.make_node("MatMul", ["query", "output"], ["scores"])


def test_an_index_of_another_type_is_refused(bundle: Path) -> None:
    top = helper.make_node("TopK", ["scores", "k"], ["top_score", "wide"])
    narrow = helper.make_node("Cast", ["wide"], ["top_index"], to=onnx.TensorProto.INT32)
    (bundle / "rank.onnx").write_bytes(rank_graph([SCORES, top, narrow], onnx.TensorProto.INT32))
    seal(bundle)
    with pytest.raises(
        BundleError, match=r"^rank\.onnx: output top_index is tensor\(int32\), expected tensor\(int64\)"
    ):
        open_bundle(bundle)


def test_nan_that_no_weight_holds_is_refused(bundle: Path) -> None:
    top = helper.make_node("TopK", ["scores", "k"], ["best", "top_index"])
    nan = helper.make_node("Div", ["zero", "zero"], ["nan"])
    add = helper.make_node("Add", ["best", "nan"], ["top_score"])
    (bundle / "rank.onnx").write_bytes(rank_graph([SCORES, top, nan, add]))
    seal(bundle)
    with pytest.raises(BundleError, match=r"^rank\.onnx: returns scores that are not finite"):
        open_bundle(bundle)


@pytest.mark.parametrize(("unseen", "added"), [(4, 70_000), (11, 3e38)])
def test_an_item_with_a_state_that_no_row_can_hold_is_refused(bundle: Path, unseen: int, added: float) -> None:
    """Its weights are finite, and the golden pair does not click on it: only a click on it shows."""
    assert unseen not in TINY.golden().item_index

    def enlarge(model: Any) -> None:
        nodes = model.graph.node
        assert nodes[-1].output[0] == "hidden_out"
        nodes[-1].output[0] = "small"
        nodes.append(helper.make_node("Gather", ["added", "item_index"], ["of_item"]))  # [B, 1]
        nodes.append(helper.make_node("Add", ["small", "of_item"], ["hidden_out"]))
        values = np.where(np.arange(12) == unseen, added, 0).astype(np.float32)[:, None]
        model.graph.initializer.append(onnx.numpy_helper.from_array(values, "added"))

    (bundle / "advance.onnx").write_bytes(changed_model(TINY.advance(), enlarge))
    seal(bundle)
    with pytest.raises(BundleError, match=rf"^advance\.onnx: a click on 'item-{unseen}' leads to a state"):
        open_bundle(bundle)


def test_a_step_is_rounded_to_what_a_row_keeps(bundle: Path) -> None:
    model = open_bundle(bundle)
    items, before = np.arange(12), np.full((1, 12, 4), 0.1, dtype=np.float32)
    after, query, finite = model.step(items, before)
    np.testing.assert_array_equal(after, model.advance(items, before)[0].astype(np.float16))
    np.testing.assert_array_equal(query, after[-1])
    assert finite.all()
    assert after.dtype == np.float32


def test_worst_first_is_refused(bundle: Path) -> None:
    top = helper.make_node("TopK", ["scores", "k"], ["top_score", "top_index"], largest=0)
    (bundle / "rank.onnx").write_bytes(rank_graph([SCORES, top]))
    seal(bundle)
    with pytest.raises(BundleError, match=r"^rank\.onnx: does not return the best item first"):
        open_bundle(bundle)


# --- writing


def test_a_version_is_written_once(bundle: Path) -> None:
    before = manifest_digest(bundle)
    with pytest.raises(BundleExistsError, match="immutable"):
        OTHER.write(bundle.parent)
    assert manifest_digest(bundle) == before
    assert [path.name for path in bundle.parent.iterdir()] == ["v1"]


@pytest.mark.parametrize("version", ["", ".hidden", "../v1", "a/b", "v1\n", "v" * 129])
def test_a_version_must_name_a_folder(tmp_path: Path, version: str) -> None:
    with pytest.raises(BundleError, match="cannot name a folder"):
        TINY.write(tmp_path, version)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"advance": OTHER.advance()}, r"advance\.onnx: its answer to golden\.json"),
        ({"popularity": np.zeros(3, dtype=np.int64)}, "popularity.npy: holds"),
        ({"vocabulary": Vocabulary(TINY.items[:-1])}, "popularity.npy: holds"),
        ({"metrics": {"model": {"mrr@20": float("nan")}}}, r"manifest\.json: not a finite .*: metrics\.model\.mrr@20"),
        ({"k": 6}, "golden.json: top_index has the shape"),
        ({"limits": BundleLimits(hidden_size=3)}, "hidden_size is 4, the limit is 3"),
        ({"encode": WINDOW.encode()}, r"has both advance\.onnx and encode\.onnx; a model has one encoder"),
        ({"advance": None}, "layers is 1, of a model with the encoder 'none' it must be 0"),
    ],
)  # fmt: skip
def test_what_would_be_refused_is_not_published(tmp_path: Path, changed: dict[str, Any], problem: str) -> None:
    with pytest.raises(BundleError, match=problem):
        TINY.write(tmp_path, **changed)
    assert list(tmp_path.iterdir()) == []


WRITE_AND_DIE = """
import os, signal, sys
from pathlib import Path
from tests.contract.tiny_model import TinyModel

flushes, fsync = iter(range(1, 100)), os.fsync

def dying_fsync(descriptor):
    fsync(descriptor)
    if next(flushes) == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)

os.fsync = dying_fsync
TinyModel().write(Path(sys.argv[1]))
"""


@pytest.mark.parametrize(("die_at", "visible"), [(1, []), (3, []), (6, []), (7, []), (8, ["v1"])])
def test_a_crash_leaves_a_whole_bundle_or_none(tmp_path: Path, die_at: int, visible: list[str]) -> None:
    """The writer is killed at its n-th flush to disk: six files, their folder, and the folder above it."""
    command = [sys.executable, "-c", WRITE_AND_DIE, str(tmp_path), str(die_at)]
    process = subprocess.run(command, cwd=ROOT, timeout=240, check=False)
    assert process.returncode == -signal.SIGKILL
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith(".")] == visible
    if visible:
        open_bundle(tmp_path / "v1")
        return
    open_bundle(TINY.write(tmp_path))  # what is left is in nobody's way
