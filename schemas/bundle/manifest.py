"""Manifest: what a model bundle says of itself, and the limits within which we believe it."""

import math
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

import msgspec

from schemas.errors import BundleError
from schemas.messages.announcement import SHA256_PATTERN, VERSION_PATTERN
from schemas.messages.click import Moment

FORMAT_VERSION: Final = 2
"""Of the bundles that are written now."""
READABLE: Final = (1, 2)
"""Format 1 knew recurrent models alone, whose query is the last layer of the hidden state."""

MANIFEST: Final = "manifest.json"
SIGNATURE: Final = "manifest.sig"
"""Of a signed bundle alone; the manifest cannot list it."""
ADVANCE: Final = "advance.onnx"
ENCODE: Final = "encode.onnx"
RANK: Final = "rank.onnx"
VOCABULARY: Final = "vocabulary.json"
POPULARITY: Final = "popularity.npy"
GOLDEN: Final = "golden.json"
FILES: Final = (ADVANCE, ENCODE, RANK, VOCABULARY, POPULARITY, GOLDEN)
"""Every file that a bundle may have beside its manifest; `files_of` has those of one."""

Encoder = Literal["recurrent", "window", "none"]
"""How a model comes from a session's clicks to a query: click by click, from the last ones at once, or not at all."""
GRAPHS: Final[dict[Encoder, tuple[str, ...]]] = {
    "recurrent": (ADVANCE, RANK),
    "window": (ENCODE, RANK),
    "none": (RANK,),
}

Size = Annotated[int, msgspec.Meta(ge=1)]
SizeOrZero = Annotated[int, msgspec.Meta(ge=0)]


@dataclass(frozen=True, slots=True)
class BundleLimits:
    """The largest bundle a process opens: a damaged or hostile one must not take its memory."""

    manifest_bytes: int = 4 * 1024**2
    graph_bytes: int = 2 * 1024**3 - 1
    """Protobuf itself ends at 2 GiB."""
    data_bytes: int = 512 * 1024**2
    """Vocabulary and popularity, each."""
    golden_bytes: int = 16 * 1024**2
    """As JSON; in memory it takes twenty times as much."""
    golden_clicks: int = 10_000
    """Of all sessions of the golden pair: after each of them the model is run."""
    catalogue_size: int = 5_000_000
    hidden_size: int = 4_096
    query_size: int = 4_096
    layers: int = 8
    k: int = 1_000
    recent_size: int = 1_000
    """Of a window, too."""

    def file_bytes(self, name: str) -> int:
        """The size limit of one of FILES or of the manifest."""
        if name == MANIFEST:
            return self.manifest_bytes
        if name == GOLDEN:
            return self.golden_bytes
        return self.graph_bytes if name in (ADVANCE, ENCODE, RANK) else self.data_bytes


class FileEntry(msgspec.Struct, frozen=True):
    """What a file of the bundle must be."""

    sha256: Annotated[str, msgspec.Meta(pattern=SHA256_PATTERN)]
    size: Annotated[int, msgspec.Meta(ge=0, description="Bytes.")]


class Manifest(msgspec.Struct, frozen=True):
    """`manifest.json` of a bundle. Its own SHA-256 travels in the announcement, so it vouches for all the rest."""

    format_version: int
    version: Annotated[str, msgspec.Meta(pattern=VERSION_PATTERN)]
    created_at: Moment
    family: Annotated[str, msgspec.Meta(min_length=1, description="Kind of network, for people and for a warm start.")]
    encoder: Annotated[
        Encoder,
        msgspec.Meta(
            description="How a query comes about: `recurrent` from a hidden state, click by click; `window` from the "
            "last clicks at once; `none`: the rank graph takes no query."
        ),
    ]
    layers: Annotated[SizeOrZero, msgspec.Meta(description="Of the hidden state; 0 unless recurrent.")]
    hidden_size: Annotated[SizeOrZero, msgspec.Meta(description="Of the hidden state; 0 unless recurrent.")]
    query_size: Annotated[SizeOrZero, msgspec.Meta(description="Numbers in a query; 0 without one.")]
    window: Annotated[SizeOrZero, msgspec.Meta(description="How many last clicks `encode` takes; 0 unless window.")]
    catalogue_size: Size
    k: Annotated[Size, msgspec.Meta(description="Length of the lists that the rank graph returns.")]
    recent_size: Annotated[Size, msgspec.Meta(description="Distinct recent items that the rank graph takes (R).")]
    training: Annotated[dict[str, Any], msgspec.Meta(description="Window of the sessions and settings of the fit.")]
    metrics: Annotated[
        dict[str, Any],
        msgspec.Meta(
            description="Offline metrics on the holdout: `model`, `champion` (null, or with its `version`), "
            "`predecessors` by version and `baselines` by name, each with numbers such as `recall@20`, `mrr@20` and "
            "`predictions`; `gate` is the verdict with its reasons, and what the model is `ahead` of the others by."
        ),
    ]
    files: dict[str, FileEntry]
    pruned_items: Annotated[
        SizeOrZero,
        msgspec.Meta(
            description="Items that a ranking does not score where a bound on their scores keeps them off the list. 0 "
            "unless the catalogue is very large and its weights allow it; the rankings are the same either way."
        ),
    ] = 0
    git_revision: str | None = None
    states_of: Annotated[
        Annotated[str, msgspec.Meta(pattern=VERSION_PATTERN)] | None,
        msgspec.Meta(
            description="The version whose hidden states this one goes on with, because it steps from click to click "
            "as that does: of a refreshed model the one that was trained. Without: its own alone.",
        ),
    ] = None


class _Format(msgspec.Struct):
    format_version: int


_decoder: Final = msgspec.json.Decoder(Manifest)
_format_decoder: Final = msgspec.json.Decoder(_Format)
_object_decoder: Final = msgspec.json.Decoder(dict[str, Any])


def encode_manifest(manifest: Manifest) -> bytes:
    """JSON, indented for people. Raises BundleError for a NaN or an infinity, which JSON would show as null."""
    bad = list(_non_finite(msgspec.to_builtins(manifest), ""))
    if bad:
        raise BundleError(f"{MANIFEST}: not a finite number: {', '.join(bad)}")
    return msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n"


def decode_manifest(data: bytes, limits: BundleLimits) -> Manifest:
    """The manifest in these bytes, within the limits. Raises BundleError.

    One of format 1 is returned with what it means in the fields that it does not have.
    """
    try:
        # The format first: of a newer one nothing else can be expected to fit.
        found = _format_decoder.decode(data).format_version
        if found not in READABLE:
            raise BundleError(
                f"{MANIFEST}: format version {found}, this program reads {' and '.join(map(str, READABLE))}; "
                "run the worker of the release that wrote the bundle, or export it again"
            )
        manifest = _decoder.decode(data) if found == FORMAT_VERSION else _of_format_1(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BundleError(f"{MANIFEST}: {error}") from error
    _check_sizes(manifest, limits)
    files = files_of(manifest.encoder)
    for name in sorted(set(manifest.files) - set(files)):
        raise BundleError(f"{MANIFEST}: lists {name!r}, which is no file of a bundle ({', '.join(files)})")
    for name in files:
        if name not in manifest.files:
            raise BundleError(f"{MANIFEST}: does not list {name}")
        if manifest.files[name].size > limits.file_bytes(name):
            raise BundleError(f"{name}: {manifest.files[name].size} bytes, the limit is {limits.file_bytes(name)}")
    return manifest


def files_of(encoder: Encoder) -> tuple[str, ...]:
    """The files of a bundle beside its manifest: these and no others."""
    return (*GRAPHS[encoder], VOCABULARY, POPULARITY, GOLDEN)


def _of_format_1(data: bytes) -> Manifest:
    values = _object_decoder.decode(data)
    new = {"family": "gru4rec", "encoder": "recurrent", "window": 0}
    # 0 where there is none: then that is told.
    return msgspec.convert(values | new | {"query_size": values.get("hidden_size", 0)}, Manifest)


def _check_sizes(manifest: Manifest, limits: BundleLimits) -> None:
    for field in ("layers", "hidden_size", "query_size", "window", "catalogue_size", "k", "recent_size"):
        value, limit = getattr(manifest, field), getattr(limits, "recent_size" if field == "window" else field)
        if value > limit:
            raise BundleError(f"{MANIFEST}: {field} is {value}, the limit is {limit}")
    if manifest.k > manifest.catalogue_size:
        raise BundleError(f"{MANIFEST}: k is {manifest.k}, more than the {manifest.catalogue_size} items there are")
    recurrent, window = manifest.encoder == "recurrent", manifest.encoder == "window"
    wanted = {
        "layers": recurrent,
        "hidden_size": recurrent,
        "query_size": recurrent or window,
        "window": window,
    }
    for field, some in wanted.items():
        value = getattr(manifest, field)
        if some != (value > 0):
            raise BundleError(
                f"{MANIFEST}: {field} is {value}, of a model with the encoder {manifest.encoder!r} it must be "
                f"{'1 or more' if some else 0}"
            )


def _non_finite(value: object, path: str) -> "list[str]":
    match value:
        case float() if not math.isfinite(value):
            return [path]
        case dict():
            return [bad for key, inner in value.items() for bad in _non_finite(inner, f"{path}.{key}".lstrip("."))]
        case list() | tuple():
            return [bad for index, inner in enumerate(value) for bad in _non_finite(inner, f"{path}[{index}]")]
        case _:
            return []
