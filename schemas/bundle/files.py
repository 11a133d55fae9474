"""Model bundle: an immutable folder with everything that serves one model, written atomically, verified when opened.

version/
    manifest.json     what it is, and size and SHA-256 of every other file
    advance.onnx      encoder `recurrent` alone: one click, hidden state -> next hidden state and query
    encode.onnx       encoder `window` alone: a session's last clicks -> query
    rank.onnx         query and session memory -> top k
    vocabulary.json   item ids in index order
    popularity.npy    clicks of each item in the training window, for the fallback
    golden.json       sessions and the answers that the graphs must give to them
    manifest.sig      of a signed bundle alone: see `schemas.bundle.signature`
"""

import io
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tokenize import TokenError
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from schemas import durable
from schemas.bundle.checks import check_answers
from schemas.bundle.golden import Golden, check_golden, decode_golden, encode_golden, recent_items
from schemas.bundle.manifest import (
    ADVANCE,
    ENCODE,
    FORMAT_VERSION,
    GOLDEN,
    GRAPHS,
    MANIFEST,
    POPULARITY,
    RANK,
    SIGNATURE,
    VOCABULARY,
    BundleLimits,
    Encoder,
    FileEntry,
    Manifest,
    decode_manifest,
    encode_manifest,
    files_of,
)
from schemas.bundle.onnx_file import check_onnx_file
from schemas.bundle.runtime import Indices, Model, check_popularity, item_rows, open_graphs
from schemas.bundle.signature import TrustedKeys
from schemas.bundle.store import (
    check_manifest_sha256,
    check_signature,
    fetch,
    local_path,
    read_file,
    read_listed,
    remove_bundle,
    sha256,
)
from schemas.bundle.vocabulary import Vocabulary
from schemas.errors import BundleError, BundleExistsError, VocabularyError
from schemas.messages.announcement import VERSION_PATTERN, is_version

__all__ = [
    "BundleFiles",
    "BundleLimits",
    "Golden",
    "Manifest",
    "Model",
    "manifest_digest",
    "open_bundle",
    "open_files",
    "read_bundle",
    "read_manifest",
    "recent_items",
    "write_bundle",
]

DEFAULT_LIMITS: Final = BundleLimits()
_UNFINISHED: Final = ".unfinished-"


@dataclass(frozen=True)
class BundleFiles:
    """What a bundle's folder held when it was read.

    Attributes:
        data: each file beside the manifest; its size and SHA-256 are the manifest's.
    """

    manifest: Manifest
    data: Mapping[str, bytes]


def open_bundle(
    uri: str | Path,
    *,
    manifest_sha256: str | None = None,
    trusted: TrustedKeys | None = None,
    cache_dir: Path | None = None,
    threads: int = 1,
    adjusts: bool = False,
    rows: bool = False,
    limits: BundleLimits = DEFAULT_LIMITS,
) -> Model:
    """A verified model from a bundle's folder: `read_bundle`, then `open_files`. Raises BundleError."""
    files = read_bundle(uri, manifest_sha256=manifest_sha256, trusted=trusted, cache_dir=cache_dir, limits=limits)
    return open_files(files, threads=threads, adjusts=adjusts, rows=rows, limits=limits)


def read_bundle(
    uri: str | Path,
    *,
    manifest_sha256: str | None = None,
    trusted: TrustedKeys | None = None,
    cache_dir: Path | None = None,
    limits: BundleLimits = DEFAULT_LIMITS,
) -> BundleFiles:
    """The files of a bundle in a local folder, or behind an fsspec URL that is copied into `cache_dir` first.

    Verified are: the manifest's own SHA-256 and the signature when given `manifest_sha256` and `trusted`, the limits,
    the size and SHA-256 of each file, and that there is no other file. Each file is read once: what was verified is
    what is returned, whatever happens to the folder meanwhile. Raises BundleError saying which file and why.
    """
    folder = local_path(uri)
    if folder is None:
        folder = fetch(str(uri), manifest_sha256, cache_dir, limits, trusted)
    if not folder.is_dir():
        raise BundleError(f"{folder}: no such folder; is the registry mounted here, and was the bundle removed?")
    manifest_bytes = read_file(folder, MANIFEST, limits.manifest_bytes)
    check_manifest_sha256(manifest_bytes, manifest_sha256)
    check_signature(folder, manifest_bytes, trusted)
    manifest = decode_manifest(manifest_bytes, limits)
    names = files_of(manifest.encoder)
    _check_names(folder, names)
    data = {name: read_listed(folder, name, manifest) for name in names}
    return BundleFiles(manifest, data)


def open_files(
    files: BundleFiles,
    *,
    threads: int = 1,
    adjusts: bool = False,
    rows: bool = False,
    limits: BundleLimits = DEFAULT_LIMITS,
) -> Model:
    """The model in these files.

    Verified are: that the graphs keep no data outside, have finite weights, operators of ONNX alone and the agreed
    inputs and outputs, that vocabulary, popularity and manifest agree, and that the answers to the golden pair are
    right and finite. `threads` is ONNX Runtime's for one run of a graph. With `adjusts` the model can leave items out
    and boost them (see `Model.rank`), which bundles of older releases cannot; with `rows` it has its item rows, which
    models that count have not. Raises BundleError saying which file and why.
    """
    manifest, data = files.manifest, files.data
    vocabulary = _vocabulary(data[VOCABULARY], manifest.catalogue_size)
    popularity = _popularity(data[POPULARITY], manifest.catalogue_size)
    golden = decode_golden(data[GOLDEN])
    check_golden(golden, manifest, limits)
    for name in GRAPHS[manifest.encoder]:
        check_onnx_file(name, data[name], catalogue_size=manifest.catalogue_size)
    graphs = open_graphs(manifest, data, threads=threads, adjusts=adjusts)
    of_items = item_rows(manifest, data[RANK]) if rows else None
    model = Model(manifest, vocabulary, popularity, graphs, adjusts=adjusts, rows=of_items)
    check_answers(model, golden)
    return model


# Long: its arguments are what a manifest tells; the steps of a publication follow each other.
def write_bundle(
    parent: Path,
    *,
    version: str,
    family: str,
    rank: bytes,
    advance: bytes | None = None,
    encode: bytes | None = None,
    vocabulary: Vocabulary,
    popularity: NDArray[np.int64],
    golden: Golden,
    layers: int = 0,
    hidden_size: int = 0,
    query_size: int = 0,
    window: int = 0,
    k: int,
    recent_size: int,
    pruned_items: int = 0,
    training: Mapping[str, Any],
    metrics: Mapping[str, Any],
    created_at: int,
    git_revision: str | None = None,
    states_of: str | None = None,
    limits: BundleLimits = DEFAULT_LIMITS,
) -> Path:
    """Write `parent/version`, all or nothing: whoever sees the folder sees a complete and verified bundle.

    `rank`, `advance` and `encode` are ONNX files: a model with `advance` is recurrent, one with `encode` is of the
    encoder `window`, one with neither has none. `created_at` is in milliseconds since the epoch; see Manifest for the
    sizes, `training`, `metrics` and `states_of`. What was written is opened as a worker would before it gets its name.
    Raises BundleExistsError when the version is there, BundleError when the bundle would not be served. A crash leaves
    at most a folder whose name starts with a dot, which whoever knows that no such process runs any more may remove.
    """
    if not is_version(version):
        raise BundleError(f"version {version!r} cannot name a folder; it must match {VERSION_PATTERN}")
    target = parent / version
    if target.exists():
        raise BundleExistsError(f"{target}: exists; bundles are immutable, choose another version")
    if advance is not None and encode is not None:
        raise BundleError(f"{version}: has both {ADVANCE} and {ENCODE}; a model has one encoder")
    encoder: Encoder = "recurrent" if advance is not None else "window" if encode is not None else "none"
    npy = io.BytesIO()
    np.save(npy, check_popularity(popularity, len(vocabulary)), allow_pickle=False)
    data = {
        **{name: graph for name, graph in ((ADVANCE, advance), (ENCODE, encode)) if graph is not None},
        RANK: rank,
        VOCABULARY: vocabulary.to_json(),
        POPULARITY: npy.getvalue(),
        GOLDEN: encode_golden(golden),
    }
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        version=version,
        created_at=created_at,
        family=family,
        encoder=encoder,
        layers=layers,
        hidden_size=hidden_size,
        query_size=query_size,
        window=window,
        catalogue_size=len(vocabulary),
        k=k,
        recent_size=recent_size,
        pruned_items=pruned_items,
        training=dict(training),
        metrics=dict(metrics),
        files={name: FileEntry(sha256=sha256(content), size=len(content)) for name, content in data.items()},
        git_revision=git_revision,
        states_of=states_of,
    )
    data[MANIFEST] = encode_manifest(manifest)
    parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(dir=parent, prefix=f"{_UNFINISHED}{version}-"))
    try:
        for name, content in data.items():
            (unfinished / name).write_bytes(content)
            durable.sync(unfinished / name)
        unfinished.chmod(0o755)  # mkdtemp makes it private; the worker may be another user
        durable.sync(unfinished)
        open_bundle(unfinished, limits=limits)
        try:
            durable.rename(unfinished, target)
        except OSError as error:
            if target.exists():
                raise BundleExistsError(f"{target}: another process wrote it meanwhile") from error
            raise
    except OSError as error:
        raise BundleError(f"{target}: cannot be written: {error}") from error
    finally:
        remove_bundle(unfinished)
    return target


def read_manifest(folder: Path, limits: BundleLimits = DEFAULT_LIMITS) -> Manifest:
    """A local bundle's manifest alone, for listings; nothing else is verified. Raises BundleError."""
    return decode_manifest(read_file(folder, MANIFEST, limits.manifest_bytes), limits)


def manifest_digest(folder: Path, limits: BundleLimits = DEFAULT_LIMITS) -> str:
    """SHA-256 of a local bundle's manifest, as an announcement carries it. Raises BundleError."""
    return sha256(read_file(folder, MANIFEST, limits.manifest_bytes))


def _check_names(folder: Path, names: Sequence[str]) -> None:
    # A bundle that is signed anew may be opened meanwhile, and after a writer that was killed over it.
    known = (*names, MANIFEST, SIGNATURE, durable.unfinished(SIGNATURE))
    try:
        extra = sorted(path.name for path in folder.iterdir() if path.name not in known)
    except OSError as error:
        raise BundleError(f"{folder}: cannot be listed: {error}") from error
    if extra:
        raise BundleError(f"{extra[0]}: is no file of a bundle; {folder} was changed since it was written")


def _vocabulary(data: bytes, catalogue_size: int) -> Vocabulary:
    try:
        vocabulary = Vocabulary.from_json(data, most=catalogue_size)
    except VocabularyError as error:
        raise BundleError(f"{VOCABULARY}: {error}") from error
    if len(vocabulary) != catalogue_size:
        raise BundleError(f"{VOCABULARY}: {len(vocabulary)} items, the manifest says {catalogue_size}")
    return vocabulary


def _popularity(data: bytes, catalogue_size: int) -> Indices:
    """The counts of a .npy file. What its header claims is compared before any memory is taken for it."""
    file = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(file)
        if version != (1, 0):
            raise BundleError(f"{POPULARITY}: is of version {version} of the format, expected (1, 0)")
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    except (ValueError, TypeError, SyntaxError, TokenError, OverflowError, RecursionError, MemoryError) as error:
        raise BundleError(f"{POPULARITY}: its header cannot be read: {error}") from error
    if dtype != np.int64 or shape != (catalogue_size,):
        raise BundleError(f"{POPULARITY}: holds {dtype}{list(shape)}, expected int64[{catalogue_size}]")
    if (left := len(data) - file.tell()) != 8 * catalogue_size:
        raise BundleError(f"{POPULARITY}: {left} bytes of counts, expected {8 * catalogue_size}")
    return check_popularity(np.frombuffer(data, dtype=dtype, offset=file.tell()).astype(np.int64), catalogue_size)
