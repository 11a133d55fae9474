"""Bundles that lie elsewhere: fetched once through the cache, checked on the way."""

import os
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import pytest

from schemas.bundle.files import manifest_digest, open_bundle
from schemas.bundle.store import CACHED_BUNDLES, lies_within
from schemas.errors import BundleError
from tests.contract.tiny_model import TinyModel, TinyNone, TinyWindow

TINY = TinyModel()
STORE = "memory://models"


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def remote(tmp_path: Path) -> Iterator[str]:
    """A bundle's URL in fsspec's store in memory."""
    yield upload(TINY, tmp_path, "v1")
    filesystem = fsspec.filesystem("memory")
    filesystem.rm("/models", recursive=True)


def upload(tiny: TinyModel, tmp_path: Path, version: str) -> str:
    folder = tiny.write(tmp_path / "local", version)
    filesystem = fsspec.filesystem("memory")
    for path in folder.iterdir():
        filesystem.pipe_file(f"/models/{version}/{path.name}", path.read_bytes())
    return f"{STORE}/{version}"


def test_a_remote_bundle_is_served_from_the_cache(tmp_path: Path, remote: str, cache: Path) -> None:
    digest = manifest_digest(tmp_path / "local" / "v1")
    assert open_bundle(remote, cache_dir=cache).version == "v1"
    assert [path.name for path in cache.iterdir()] == [digest]
    # Whoever knows the announcement needs the store no more.
    fsspec.filesystem("memory").rm("/models/v1/rank.onnx")
    assert open_bundle(remote + "/", manifest_sha256=digest, cache_dir=cache).version == "v1"


@pytest.mark.usefixtures("remote")
@pytest.mark.parametrize("tiny", [TinyWindow(), TinyNone()], ids=["window", "none"])
def test_a_remote_bundle_of_any_encoder_is_fetched(tmp_path: Path, cache: Path, tiny: TinyModel) -> None:
    uri = upload(tiny, tmp_path, "other")
    for _ in range(2):
        assert open_bundle(uri, cache_dir=cache).encoder == ("window" if isinstance(tiny, TinyWindow) else "none")
    [folder] = cache.iterdir()
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        path.name for path in (tmp_path / "local" / "other").iterdir()
    )


def test_a_damaged_cache_is_fetched_anew(tmp_path: Path, remote: str, cache: Path) -> None:
    digest = manifest_digest(tmp_path / "local" / "v1")
    open_bundle(remote, cache_dir=cache)
    (cache / digest / "rank.onnx").write_bytes(b"damaged")
    (cache / digest / "golden.json").unlink()
    assert open_bundle(remote, manifest_sha256=digest, cache_dir=cache).version == "v1"
    assert [path.name for path in cache.iterdir()] == [digest]


@pytest.mark.parametrize(
    ("name", "data", "problem"),
    [
        ("rank.onnx", b"x", r"^rank\.onnx: 1 bytes, the manifest says"),
        ("rank.onnx", bytes(100_000), r"^rank\.onnx: more than \d+ bytes at"),
        ("rank.onnx", None, r"^rank\.onnx: missing at /models/v1/rank\.onnx"),
        ("manifest.json", b"{}", r"^manifest\.json: "),
        ("manifest.json", None, r"^manifest\.json: missing at"),
    ],
)
def test_a_damaged_remote_bundle_is_refused(
    remote: str, cache: Path, name: str, data: bytes | None, problem: str
) -> None:
    filesystem = fsspec.filesystem("memory")
    filesystem.rm(f"/models/v1/{name}")
    if data is not None:
        filesystem.pipe_file(f"/models/v1/{name}", data)
    with pytest.raises(BundleError, match=problem):
        open_bundle(remote, cache_dir=cache)
    assert not cache.exists() or list(cache.iterdir()) == []


def test_another_manifest_than_announced_is_not_fetched(remote: str, cache: Path) -> None:
    with pytest.raises(BundleError, match="announced was 000"):
        open_bundle(remote, manifest_sha256="0" * 64, cache_dir=cache)
    assert not cache.exists()


def test_a_store_that_is_not_known_is_an_error_of_the_bundle(cache: Path) -> None:
    with pytest.raises(BundleError, match=r"^nowhere://models/v1: cannot be fetched: ValueError"):
        open_bundle("nowhere://models/v1", cache_dir=cache)


def test_a_remote_bundle_needs_a_cache(remote: str) -> None:
    with pytest.raises(BundleError, match="name a cache folder"):
        open_bundle(remote)


@pytest.mark.usefixtures("remote")
def test_the_cache_forgets_the_oldest(tmp_path: Path, cache: Path) -> None:
    digests = []
    for number in range(CACHED_BUNDLES + 2):
        uri = upload(TinyModel(seed=number), tmp_path, f"n{number}")
        open_bundle(uri, cache_dir=cache)
        digests.append(manifest_digest(tmp_path / "local" / f"n{number}"))
    assert {path.name for path in cache.iterdir()} == set(digests[-CACHED_BUNDLES:])


def test_what_a_killed_fetch_left_is_dropped_when_it_is_old(remote: str, cache: Path) -> None:
    old, new = cache / ".unfinished-old", cache / ".unfinished-new"
    for folder in (old, new):
        folder.mkdir(parents=True)
    os.utime(old, (0, 0))
    open_bundle(remote, cache_dir=cache)
    assert not old.exists()
    assert new.exists()  # may be another process at work


def test_what_is_not_of_the_cache_stays(tmp_path: Path, remote: str, cache: Path) -> None:
    """A cache folder of a setting that names a folder of the user's."""
    theirs = {
        "thesis.odt": b"x",
        "photos/2025/a.jpg": b"x",
        ".unfinished-work/draft.txt": b"x",
        f"{'0' * 64}/notes.txt": b"x",
    }
    for name, content in theirs.items():
        (cache / name).parent.mkdir(parents=True, exist_ok=True)
        (cache / name).write_bytes(content)
        os.utime((cache / name).parent, (0, 0))
    os.utime(cache / "thesis.odt", (0, 0))
    open_bundle(remote, cache_dir=cache)
    for number in range(CACHED_BUNDLES + 2):
        open_bundle(upload(TinyModel(seed=number), tmp_path, f"n{number}"), cache_dir=cache)
    assert {name: (cache / name).read_bytes() for name in theirs} == theirs
    assert len(list(cache.iterdir())) == CACHED_BUNDLES + len(theirs)


def test_several_may_fetch_at_once(remote: str, cache: Path) -> None:
    ready = threading.Barrier(4)

    def fetch() -> str:
        ready.wait()
        return open_bundle(remote, cache_dir=cache).version

    with ThreadPoolExecutor(4) as pool:
        fetches = [pool.submit(fetch) for _ in range(4)]
        assert [one.result() for one in fetches] == ["v1"] * 4
    assert len(list(cache.iterdir())) == 1


def test_local_urls_are_read_in_place(tmp_path: Path) -> None:
    folder = TINY.write(tmp_path / "with space")
    for uri in (folder.as_uri(), f"file://{folder}", str(folder), folder):
        assert open_bundle(uri).version == "v1"
    shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("uri", "within"),
    [
        ("/models/v1", True),
        ("/models/sub/v1", True),
        ("file:///models/v1", True),
        ("/models-of-others/v1", False),
        ("/models/../etc", False),
        ("file:///models/%2e%2e/etc", False),
        ("s3://ours/registry/v1", True),
        ("s3://ours/registry-of-others/v1", False),
        ("s3://ours/registry/../v1", False),
        ("s3://ours/registry/%2e%2e/v1", False),
        ("s3://others/registry/v1", False),
        ("http://ours/registry/v1", False),
        ("s3://ours/registry/v1::http://others", False),
        ("simplecache::s3://ours/registry/v1", False),
        ("s3://others/models/v1", False),
    ],
)
def test_what_lies_within_the_locations(uri: str, within: bool) -> None:
    assert lies_within(uri, ["/models", "s3://ours/registry/"]) is within


def test_a_link_out_of_a_folder_lies_outside(tmp_path: Path) -> None:
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours" / "v1").symlink_to(tmp_path)
    assert lies_within(str(tmp_path / "ours" / "v2"), [str(tmp_path / "ours")])
    assert not lies_within(str(tmp_path / "ours" / "v1"), [str(tmp_path / "ours")])
