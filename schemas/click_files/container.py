"""What a file is by its content, whatever its name says: packed or not, and in which encoding."""

import bz2
import gzip
import io
import lzma
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

from schemas.errors import ClickFileError

BLOCK: Final = 1 << 20
PARQUET: Final = b"PAR1"
# What reading raises when the bytes are damaged or end too early.
DAMAGED: Final = (OSError, EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, UnicodeError)

_PACKED: Final[dict[bytes, tuple[str, Callable[[Any], Any]]]] = {
    b"\x1f\x8b": ("gzip", lambda raw: gzip.GzipFile(fileobj=raw)),
    b"BZh": ("bzip2", bz2.BZ2File),
    b"\xfd7zXZ\0": ("xz", lzma.LZMAFile),
}
# What we do not read, and what to do with it. Told by the first bytes.
_OTHERS: Final = {
    b"\x28\xb5\x2f\xfd": "zstd: unpack it with `zstd -d`",
    b"7z\xbc\xaf": "7-Zip: unpack it",
    b"\x04\x22\x4d\x18": "lz4: unpack it with `lz4 -d`",
    b"ORC": "ORC: write it as Parquet or CSV",
    b"Obj\x01": "Avro: write it as Parquet or CSV",
    b"ARROW1": "an Arrow file: write it as Parquet or CSV",
    b"SQLite": "a database: write a table of it as CSV",
    b"\xd0\xcf\x11\xe0": "a spreadsheet: save it as CSV",
    b"\x89HDF": "HDF5: write it as Parquet or CSV",
}
_MARKS: Final = {  # the longer one first: that of UTF-16 begins it
    b"\xff\xfe\0\0": "utf-32",
    b"\0\0\xfe\xff": "utf-32",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
    b"\xef\xbb\xbf": "utf-8-sig",
}


@dataclass(frozen=True)
class Content:
    """An open file. `read(n)` gives up to n bytes (UTF-8) or characters (other encodings, as UTF-8), b"" at the end.

    `wrapped` is what it was packed in, for people: "gzip", "zip, UTF-16", or nothing.
    """

    path: Path
    wrapped: str
    read: Callable[[int], bytes]
    is_parquet: bool = False


@contextmanager
def opened(path: Path) -> Iterator[Content]:
    """The content of a file, unpacked, as UTF-8; Parquet as it is. Raises ClickFileError when it is something else."""
    with ExitStack() as stack:
        try:
            content = _content(path, stack)
        except DAMAGED as error:
            raise ClickFileError(f"{path}: cannot be read: {cause(error)}") from error
        yield content


def cause(error: BaseException) -> str:
    """What went wrong, without what the message says anyway."""
    return str(getattr(error, "strerror", None) or error or type(error).__name__)


def _content(path: Path, stack: ExitStack) -> Content:
    raw: BinaryIO = stack.enter_context(path.open("rb"))
    head = raw.peek(8)  # type: ignore[attr-defined]  # a pipe is read once, so nothing is taken from it to look
    if head.startswith(PARQUET):
        return Content(path, "", raw.read, is_parquet=True)
    wrapped: list[str] = []
    if head.startswith(b"PK\x03\x04"):
        wrapped.append("zip")
        raw = stack.enter_context(_member(path, stack.enter_context(zipfile.ZipFile(raw))))
    for magic, (name, unpack) in _PACKED.items():
        if head.startswith(magic):
            wrapped.append(name)
            raw = stack.enter_context(unpack(raw))
    buffered: io.BufferedReader = io.BufferedReader(raw, 1 << 17) if wrapped else raw  # type: ignore[assignment, arg-type]
    head = buffered.peek(512)
    _refuse_others(path, head, wrapped)
    encoding = next((encoding for mark, encoding in _MARKS.items() if head.startswith(mark)), None)
    if encoding == "utf-8-sig":
        buffered.read(3)
    elif encoding is not None:
        wrapped.append(encoding.upper())
        text = stack.enter_context(io.TextIOWrapper(buffered, encoding, newline=""))
        return Content(path, ", ".join(wrapped), lambda size: text.read(size).encode())
    return Content(path, ", ".join(wrapped), buffered.read)


def _refuse_others(path: Path, head: bytes, wrapped: list[str]) -> None:
    if wrapped and head.startswith((PARQUET, b"\x1f\x8b", b"PK\x03\x04")):
        raise ClickFileError(f"{path}: is packed twice: unpack it")
    if head[257:262] == b"ustar":
        raise ClickFileError(f"{path}: a tar archive: unpack it, and name the file with the clicks")
    for magic, advice in _OTHERS.items():
        if head.startswith(magic):
            raise ClickFileError(f"{path}: is no text: {advice}")


def _member(path: Path, archive: zipfile.ZipFile) -> BinaryIO:
    """The one file of an archive."""
    names = [name for name in archive.namelist() if not name.endswith("/") and not name.startswith("__MACOSX/")]
    if "[Content_Types].xml" in names:
        raise ClickFileError(f"{path}: a spreadsheet: save it as CSV")
    if len(names) != 1:
        shown = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
        raise ClickFileError(f"{path}: an archive of {len(names)} files ({shown}): unpack the one with the clicks")
    try:
        return archive.open(names[0])  # type: ignore[return-value]
    except (RuntimeError, NotImplementedError) as error:  # a password; a compression that Python does not know
        raise ClickFileError(f"{path}: {error}: unpack it") from error
