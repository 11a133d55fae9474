"""Parquet, in columns: the log of `trainer collect`, and what others write. Needs pyarrow, as the worker does not."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np

from schemas.click_files.columns import Encoded
from schemas.click_files.forms import Layout, layout_of
from schemas.click_files.options import ReadOptions
from schemas.click_files.rows import Rows
from schemas.errors import ClickFileError

_ROWS: Final = 1 << 17


@contextmanager
def opened_parquet(path: Path, options: ReadOptions) -> Iterator[tuple[Layout, bool, Iterator[Rows]]]:
    """The layout of a file, whether its times are of a type that knows their unit, and its rows.

    Raises ClickFileError, also while the rows are read.
    """
    try:
        import pyarrow.parquet as pq
    except ImportError as error:
        raise ClickFileError(
            f"{path}: is Parquet, and pyarrow is not installed: `pip install pyarrow`, or write it as CSV"
        ) from error
    with ExitStack() as stack:
        with _told():
            file = stack.enter_context(pq.ParquetFile(path))
            schema = file.schema_arrow
            layout = layout_of(schema.names, options, has_header=True)
            typed = layout.time is not None and _is_moment(schema.field(layout.time).type)
        yield layout, typed, _rows(file, layout)


@contextmanager
def _told() -> Iterator[None]:
    """Whatever pyarrow raises, as a ClickFileError, which does not name the file yet.

    Of damaged bytes it raises errors of Arrow, and Python's own as well: UnicodeDecodeError, IndexError and others.
    """
    try:
        yield
    except ClickFileError:
        raise
    except Exception as error:
        said = [line for line in str(error).splitlines() if line]
        raise ClickFileError(f"cannot be read as Parquet: {said[0] if said else type(error).__name__}") from error


def _rows(file: Any, layout: Layout) -> Iterator[Rows]:
    at = (layout.session, layout.item, layout.time, layout.since, layout.kind, layout.event)
    names = [None if place is None else layout.names[place] for place in at]
    with _told():  # nothing but what is done here: a generator does not see its reader's errors
        first = 1
        for batch in file.iter_batches(_ROWS, columns=[name for name in names if name]):
            session, item, time, since, kind, event = (None if name is None else batch.column(name) for name in names)
            yield Rows(
                np.arange(first, first + len(batch)),
                _ids(session, names[0]),
                _ids(item, names[1]),
                None if time is None else _times(time, names[2]),
                None if since is None else _times(since, names[3]),
                None if kind is None else _ids(kind, names[4]),
                None if event is None else _ids(event, names[5]),
            )
            first += len(batch)


def _ids(column: Any, name: str | None) -> Encoded:
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    kind = column.type
    if pa.types.is_integer(kind):
        column = column.cast(pa.string())
    elif not (_is_text(kind) or _is_bytes(kind) or _is_null(kind)):
        raise ClickFileError(f"{name} is of the type {kind}: write ids as text or whole numbers")
    encoded = pc.fill_null(column.cast(pa.binary()), b"").dictionary_encode()
    return Encoded(encoded.dictionary.to_pylist(), encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64))


def _times(column: Any, name: str | None) -> Any:
    """Texts, or float64[n] with NaN where there is none; milliseconds where the type knows the unit."""
    import pyarrow as pa

    kind = column.type
    if _is_text(kind):
        return [value.encode() for value in column.cast(pa.string()).fill_null("").to_pylist()]
    if _is_moment(kind):
        # Through float64: whole numbers have no NaN. A millisecond of our time is far below 2^53.
        column = column.cast(pa.timestamp("ms"), safe=False).cast(pa.int64())
    elif not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind) or _is_null(kind)):
        raise ClickFileError(f"{name} is of the type {kind}: write times as timestamps or numbers")
    return column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)


def _is_text(kind: Any) -> bool:
    import pyarrow as pa

    # Views: what other writers than pyarrow, such as Arrow's in Rust, name in a file's schema.
    return any(of(kind) for of in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view))


def _is_bytes(kind: Any) -> bool:
    import pyarrow as pa

    return any(of(kind) for of in (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view))


def _is_moment(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_timestamp(kind) or pa.types.is_date(kind))


def _is_null(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_null(kind))
